
# A queue that its rate limit holds back: the worker sleeps until there is
# something to flush, other queues do not wait, and a stop of the server does
# not wait either: rows stay in the spool or in the saved file, and none is
# flushed twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node(
	'rate_limit', q(
batcher.flush_interval = '10ms'
batcher.shutdown_timeout = '60s'
));

sql(
	$node, q(
CREATE TABLE done (queue text, id int);
SELECT batch_create_queue(q, format('INSERT INTO done SELECT %L, payload::int FROM batch', q),
	options => jsonb_build_object('durable', q <> 'volatile') ||
		CASE WHEN q = 'other' THEN '{}'::jsonb ELSE '{"rate_limit": 0.001}' END)
FROM unnest('{durable,volatile,other}'::text[]) q;
));

# How often the worker has gone to sleep so far.
sub sleeps
{
	my ($pid) = @_;

	slurp_file("/proc/$pid/status") =~
	  /^voluntary_ctxt_switches:\s*(\d+)/m or die "no such line";
	return $1;
}

# One row leaves, the others would wait for a quarter of an hour each.
sql($node, "SELECT batch_enqueue_many('$_', '{1,2,3,4}')")
  for qw(durable volatile);
wait_sql(
	$node, q(SELECT count(*) = 2 FROM batcher.status
		WHERE pending = 3 AND next_flush_at > now() + interval '10 min'));

my $pid = worker_pid($node);
my $before = sleeps($pid);
sql($node, "SELECT batch_enqueue('other', '$_')"),
  wait_sql($node, "SELECT count(*) = $_ FROM done WHERE queue = 'other'")
  for 1 .. 20;
is(worker_pid($node), $pid, 'the worker is the same');
cmp_ok(sleeps($pid) - $before, '<', 600, 'the worker sleeps meanwhile');
is(sql($node, q(SELECT count(*) FROM done WHERE queue <> 'other')),
	2, 'the limit holds');

# A forced flush gives up at its timeout.
my ($status, $out, $err) = $node->psql('postgres',
	"SELECT batch_flush('durable', '100 ms')");
is($out, '0', 'batch_flush flushes nothing against the limit');
like($err, qr/WARNING/, 'and says so');

my $start = time();
$node->stop('fast');
cmp_ok(time() - $start, '<', 30, 'a stop does not wait for the limit');

# After the start the bucket is full, so that a row of each may leave.
$node->start;
wait_sql($node,
	q(SELECT count(*) = 4 FROM done WHERE queue <> 'other'));
is( sql(
		$node, q(SELECT string_agg(queue || pending, ',' ORDER BY queue)
			FROM batcher.status)),
	'durable2,other0,volatile2', 'the others wait');
sql($node, qq(SELECT batch_alter_queue('$_', '{"rate_limit": null}')))
  for qw(durable volatile);
wait_drained($node, qw(durable volatile));
is( sql(
		$node, q(SELECT string_agg(queue || id, ',' ORDER BY queue, id)
			FROM done WHERE queue <> 'other')),
	'durable1,durable2,durable3,durable4,volatile1,volatile2,volatile3,volatile4',
	'each row was flushed once');

done_testing();
