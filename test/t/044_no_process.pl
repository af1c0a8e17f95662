
# All background worker processes of the server are taken: rows are accepted and
# wait, the log says once why, and a worker comes when there is a place.
#
# Failure table: "no process for a worker".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Places for the launcher and two more.
my $node = PostgreSQL::Test::Cluster->new('no_process');
$node->init;
$node->append_conf(
	'postgresql.conf', q(
shared_preload_libraries = 'batcher'
max_worker_processes = 3
max_logical_replication_workers = 0
max_parallel_workers = 2
batcher.flush_interval = '10ms'
));
$node->start;

# Both are taken by a parallel query.
sql(
	$node, q(
CREATE TABLE hog AS SELECT FROM generate_series(1, 100000);
ALTER TABLE hog SET (parallel_workers = 2);
));

my $hog = $node->background_psql('postgres', on_error_stop => 0);

$hog->query_safe(
	q(SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2));
$hog->query_until(qr/^go$/m,
	"\\echo go\nSELECT count(*) FROM hog WHERE pg_sleep(600) IS NULL;\n");
wait_sql(
	$node, q(
SELECT count(*) = 2 FROM pg_stat_activity
WHERE backend_type = 'parallel worker' AND wait_event = 'PgSleep'));

my $position = log_position($node);
my $shortage = qr/LOG:  could not start a worker for batcher/;

sql(
	$node, q(
CREATE EXTENSION batcher;
CREATE TABLE target (queue text, n int);
SELECT batch_create_queue('durable',
	$$INSERT INTO target SELECT 'durable', payload::int FROM batch$$);
SELECT batch_create_queue('volatile',
	$$INSERT INTO target SELECT 'volatile', payload::int FROM batch$$,
	options => '{"durable": false}');
));
$node->wait_for_log($shortage, $position);
foreach my $n (1 .. 5)
{
	sql($node, "SELECT batch_enqueue('durable', '$n'),
		batch_enqueue('volatile', '$n')");
}
my ($rc, $out, $err) = try_sql($node, q(SELECT batch_flush(NULL, '200 ms');));
like($err, qr/WARNING: .*No worker serves the queue; the server's log may tell why/s,
	'batch_flush says that there is no worker');
is(sql($node, 'SELECT queue, pending FROM batcher.status ORDER BY 1'),
	"durable|5\nvolatile|5", 'rows wait');
is(sql($node, 'SELECT count(*) FROM batcher.worker WHERE pid IS NOT NULL'),
	'0', 'no worker is there');

my $log = slurp_file($node->logfile, $position);
is(scalar(() = $log =~ /$shortage/g), 1, 'the log says it once');
like($log,
	qr/DETAIL:  All background worker processes are in use\.\n.*HINT:  Increase "max_worker_processes"\./,
	'and what to do');

# The places are free again: it comes without being asked.
sql(
	$node, q(
SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%FROM hog%'
	AND backend_type = 'client backend' AND pid <> pg_backend_pid()));
wait_drained($node, 'durable', 'volatile');
is( sql(
		$node, q(
SELECT queue, count(*), count(DISTINCT n) FROM target GROUP BY 1 ORDER BY 1)),
	"durable|5|5\nvolatile|5|5",
	'when there is a place the rows are flushed, each once');

eval { $hog->quit };
$node->stop;
done_testing();
