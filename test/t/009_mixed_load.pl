
# Several clients and queues, while processes are killed and workers sent away:
# nothing is lost, doubled or invented.
#
# Failure table: "kill -9 of any server process", "worker ends by ERROR or
# FATAL in a flush", "transaction or savepoint rolls back".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_node(
	'mixed_load', q(
batcher.shared_memory_size = 8MB
batcher.flush_interval = '10ms'
));
my $collect = collect_statement();

create_checker($node);
sql(
	$node, qq(
CREATE SEQUENCE serial;
SELECT batch_create_queue('d1', \$\$$collect\$\$, options => '{"max_batch_size": 20}');
SELECT batch_create_queue('d2', \$\$$collect\$\$,
	options => '{"memory_limit": "32kB", "notify_channel": "{queue}"}');
SELECT batch_create_queue('d3', \$\$$collect\$\$, options => '{"flush_interval": "200ms"}');
SELECT batch_create_queue('v1', \$\$$collect\$\$, options => '{"durable": false}');
SELECT batch_create_queue('v2', \$\$$collect\$\$,
	options => '{"durable": false, "max_batch_size": 10}');
));

# Each client has its keys; their rows have growing numbers.  Some rows are
# immediate, some transactions large, one in eight is rolled back.
my $load = start_load(
	$node, q(
\set die random(1, 8)
\set q random(1, 3)
\set v random(1, 2)
\set many random(1, 20)
BEGIN;
SELECT produce('d' || :q, CASE :many WHEN 1 THEN 400 ELSE :many END,
	'c' || :client_id, nextval('serial'));
SELECT produce('v' || :v, 4, 'c' || :client_id, nextval('serial'));
SAVEPOINT s;
SELECT produce('d1', 5, 'c' || :client_id, nextval('serial'));
\if :many < 5
ROLLBACK TO s;
\else
RELEASE s;
\endif
SELECT produce('d3', 2, NULL, nextval('serial'));
\if :die = 1
ROLLBACK;
\else
COMMIT;
\endif
), 6, 700);

# Wait until much more has been flushed than now.
sub wait_progress
{
	my $now = sql($node, q(SELECT count(*) FROM collected WHERE queue LIKE 'd%'));

	wait_sql(
		$node, qq(
SELECT count(*) > $now + 300 FROM collected WHERE queue LIKE 'd%'));
	return;
}

sub terminate_workers
{
	sql(
		$node, q(
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'batcher worker'));
	return;
}

# Without a crash first: then rows of non-durable queues are not lost either.
wait_progress();
foreach my $round (1 .. 6)
{
	terminate_workers();
	wait_progress();
}
sql($node, q(VACUUM FULL batcher.spool));
wait_progress();
stop_load($load);
wait_drained($node, 'd1', 'd2', 'd3', 'v1', 'v2');
check_rows($node, 'workers were terminated, all queues');

my $script = slurp_file($node->basedir . '/load.log');
unlike($script, qr/deadlock|53400|ERROR/, 'no client has had an error');

$load = start_load(
	$node, q(
\set die random(1, 8)
\set q random(1, 3)
\set many random(1, 20)
BEGIN;
SELECT produce('d' || :q, CASE :many WHEN 1 THEN 400 ELSE :many END,
	'c' || :client_id, nextval('serial'));
SELECT produce('v1', 4, 'c' || :client_id, nextval('serial'));
SAVEPOINT s;
SELECT produce('d1', 5, 'c' || :client_id, nextval('serial'));
\if :many < 5
ROLLBACK TO s;
\endif
\if :die = 1
ROLLBACK;
\else
COMMIT;
\endif
), 6, 700);
foreach my $round (1 .. 5)
{
	wait_progress();
	terminate_workers() if $round % 2;
	wait_progress();
	# The worker, or a client in the middle of its work.
	kill_process(
		$node,
		sub {
			return worker_pid($node) if $round % 3;
			return sql(
				$node, q(
SELECT pid FROM pg_stat_activity
WHERE query LIKE '%produce%' AND pid <> pg_backend_pid() LIMIT 1));
		});
}
wait_progress();
stop_load($load);
wait_drained($node, 'd1', 'd2', 'd3', 'v1', 'v2');
check_rows($node, 'server processes were killed, durable queues',
	"queue LIKE 'd%'");
is( sql(
		$node, q(
SELECT count(*) - count(DISTINCT c.id), count(*) FILTER (WHERE a.id IS NULL)
FROM collected c LEFT JOIN acknowledged a ON a.id = c.id
WHERE c.queue LIKE 'v%')),
	'0|0',
	'rows of non-durable queues are not duplicated or invented');
check_order($node, 'rows of one key were flushed in order', 'key IS NOT NULL');
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');
is(sql($node, 'SELECT sum(pending_bytes) FROM batcher.status'),
	'0', 'all memory was given back');
note(sql($node, 'SELECT queue, count(*) FROM collected GROUP BY 1 ORDER BY 1'));

$node->stop;
done_testing();
