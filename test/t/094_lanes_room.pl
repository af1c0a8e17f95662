# The entries of lanes: there is no room for all of them, they were made in vain,
# or are not needed any more.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('lanes_room', q(
batcher.max_queues = 20
batcher.flush_interval = '10ms'
batcher.shutdown_timeout = 0
));

sub create
{
	my ($queue, $lanes) = @_;

	return try_sql($node, qq(
SELECT batch_create_queue('$queue', 'INSERT INTO done SELECT payload::int FROM batch',
	options => '{"durable": false, "lanes": $lanes}')));
}

# Is there room for so many queues more?
sub has_room
{
	my ($n) = @_;
	my $rc;

	sql($node, q(SELECT batch_enqueue('q', '0')));
	foreach my $i (1 .. $n)
	{
		($rc) = create("room $i", 1);
		last if $rc != 0;
	}
	sql($node, q(SELECT batch_drop_queue(queue, true) FROM batcher.queue WHERE queue LIKE 'room %'));
	return $rc == 0;
}

sub wait_room
{
	my ($n, $name) = @_;
	my $end = time() + $PostgreSQL::Test::Utils::timeout_default;

	until (has_room($n))
	{
		last if time() > $end;
	}
	ok(time() <= $end, $name);
	return;
}

sql($node, 'CREATE TABLE done (n int)');
create('q', 1);
wait_worker($node);

my ($rc, $out, $err) = try_sql($node,
	q(SELECT batch_alter_queue('q', '{"lanes": 30}')));
like($err, qr/53400: too many queues/, 'there is no room for so many lanes');
wait_room(19, 'what was made in vain is gone');

sql($node, q(BEGIN; SELECT batch_alter_queue('q', '{"lanes": 10}'); ROLLBACK));
wait_room(19, 'what was rolled back is gone');

sql($node, q(SELECT batch_alter_queue('q', '{"lanes": 10}')));
sql($node, q(
CREATE TABLE ticket AS SELECT batch_enqueue('q', to_jsonb(i), 'key ' || i) AS ticket
FROM generate_series(1, 100) i));
wait_drained($node, 'q');
my $last_flush = sql($node,
	q(SELECT last_flush_at FROM batcher.stat_queue WHERE queue = 'q'));
my $flushed = sql($node,
	q(SELECT rows_flushed FROM batcher.stat_queue WHERE queue = 'q'));
sql($node, q(SELECT batch_alter_queue('q', '{"lanes": 2}')));
wait_room(18, 'lanes that are not needed any more are gone');
cmp_ok(
	sql($node, q(SELECT rows_flushed FROM batcher.stat_queue WHERE queue = 'q')),
	'>=', $flushed, 'and what they have counted is not');
is( sql(
		$node, qq(
SELECT last_flush_at >= '$last_flush' FROM batcher.stat_queue WHERE queue = 'q')),
	't',
	'nor when they were flushed');
is( sql(
		$node, q(
SELECT batch_wait('q', ticket), count(*) FROM ticket GROUP BY 1)),
	'flushed|100',
	'nor what became of their rows');

# Rows of all lanes are saved, and there is no room for all lanes afterwards.
sql($node, q(SELECT batch_alter_queue('q', '{"lanes": 15}')));
sql($node, q(SELECT batch_pause('q')));
sql($node, q(
SELECT count(batch_enqueue('q', to_jsonb(i), 'key ' || i)) FROM generate_series(1, 100) i));
$node->stop('fast');
$node->append_conf('postgresql.conf', 'batcher.max_queues = 8');
$node->start;
($rc, $out, $err) = try_sql($node, q(
SELECT count(batch_enqueue('q', to_jsonb(i), 'key ' || i)) FROM generate_series(1, 100) i));
like($err, qr/53400: too many queues/, 'a queue whose lanes have no room takes nothing');
$node->stop('fast');
$node->append_conf('postgresql.conf', 'batcher.max_queues = 20');
$node->start;
sql($node, q(
SELECT count(batch_enqueue('q', to_jsonb(i), 'key ' || i)) FROM generate_series(1, 100) i));
sql($node, q(SELECT batch_resume('q')));
wait_drained($node, 'q');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/,
	'nothing crashed');
$node->stop;
done_testing();
