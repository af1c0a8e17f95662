# Queues that pass from worker to worker under load: no row is lost, flushed
# twice or out of order, no message comes before an earlier one, also when
# workers die (M3.3).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'takeover', q(
batcher.flush_interval = '5ms'
batcher.max_batch_size = 20
batcher.max_workers = 2
));

# Now and then a flush takes its time, so that the other queues of its worker
# are due.  Which process flushed is in the table flushed.
create_checker($node);
sql($node, 'CREATE SEQUENCE serial; CREATE TABLE flushed (pos bigserial, queue text, pid int)');
foreach my $i (1 .. 5)
{
	my $durable = $i == 5 ? 'false' : 'true';

	sql(
		$node, qq(
SELECT batch_create_queue('q$i', \$\$
	WITH f AS (INSERT INTO flushed (queue, pid)
		SELECT 'q$i', pg_backend_pid()),
	s AS MATERIALIZED
		(SELECT pg_sleep(CASE WHEN random() < 0.1 THEN 0.2 ELSE 0 END))
	INSERT INTO collected (queue, id, key, n)
	SELECT payload->>'q', (payload->>'id')::uuid, batch_key,
		(payload->>'n')::bigint
	FROM batch, s ORDER BY batch_pos\$\$,
	options => '{"durable": $durable, "notify_channel": "messages"}')));
}
my $listener = $node->background_psql('postgres');
$listener->query_safe('LISTEN messages');

my $load = start_load(
	$node, q(
\set q random(1, 5)
\set many random(1, 10)
BEGIN;
SELECT produce('q' || :q, :many, 'c' || :client_id, nextval('serial'));
SELECT produce('q5', 2, 'c' || :client_id, nextval('serial'));
COMMIT;
), 4, 200);

# How often a queue went on to another worker.
sub moves
{
	return sql(
		$node, q(
SELECT count(*) FROM
	(SELECT pid, lag(pid) OVER (PARTITION BY queue ORDER BY pos) AS before
	 FROM flushed) s
WHERE pid <> before));
}

sub wait_moves
{
	my ($n) = @_;
	my $now = moves();

	wait_sql(
		$node, qq(
SELECT count(*) >= $now + $n FROM
	(SELECT pid, lag(pid) OVER (PARTITION BY queue ORDER BY pos) AS before
	 FROM flushed) s
WHERE pid <> before));
	return;
}

wait_moves(20);
foreach my $round (1 .. 4)
{
	sql(
		$node, q(
SELECT count(pg_terminate_backend(pid)) FROM
	(SELECT pid FROM batcher.worker ORDER BY random() LIMIT 1) s));
	wait_moves(5);
}
my $log = log_position($node);
arm($node, 'taken-over=fatal');
$node->wait_for_log(qr/FATAL: .*"taken-over"/, $log);
disarm($node);
wait_moves(5);
sql($node, q(VACUUM FULL batcher.spool));
wait_moves(5);
stop_load($load);
wait_drained($node, map { "q$_" } 1 .. 5);
check_rows($node, 'workers were terminated, all queues');
check_order($node, 'rows of one key were flushed in order');
unlike(slurp_file($node->basedir . '/load.log'),
	qr/ERROR/, 'no client has had an error');

# the numbers of a queue's batches grow
my %last;
my $late = 0;
foreach my $message (take_messages($listener))
{
	my $queue = $message->{queue};

	$late++ if exists $last{$queue} && $message->{batch} <= $last{$queue};
	$last{$queue} = $message->{batch};
}
is(scalar(keys %last), 5, 'all queues have sent messages');
is($late, 0, 'in the order of their batches');
$listener->quit;

# the same with crashes, at any place, and of who has just taken a queue over
$load = start_load(
	$node, q(
\set q random(1, 4)
\set many random(1, 10)
BEGIN;
SELECT produce('q' || :q, :many, 'c' || :client_id, nextval('serial'));
COMMIT;
), 4, 200);
foreach my $point ('taken-over', 'claimed', 'committed', 'taken-over')
{
	wait_moves(5);
	arm($node, "$point=wait");
	wait_point($node, $point);
	disarm($node);
	kill_process($node, sub { return worker_pid($node) });
}
kill_process($node, sub { return worker_pid($node) });
wait_moves(3);
stop_load($load);
wait_drained($node, map { "q$_" } 1 .. 4);
check_rows($node, 'server processes were killed, durable queues',
	"queue <> 'q5'");
check_order($node, 'rows of one key were flushed in order, crashes or not');
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');
is(sql($node, 'SELECT sum(pending_bytes) FROM batcher.status'),
	'0', 'all memory was given back');

$node->stop;
done_testing();
