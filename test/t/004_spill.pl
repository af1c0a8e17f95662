
# More rows wait than memory holds: those of durable queues spill, keep the
# order of their keys and are flushed once; those of others are refused.
#
# Failure table: "shared memory full".

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
	'spill', q(
batcher.shared_memory_size = 8MB
batcher.flush_interval = '20ms'
batcher.enqueue_timeout = '300ms'
));
my $memory = 8 * 1024 * 1024;

create_order_queue($node, 'ordered', 'flushed', '{"max_batch_size": 5000}');
sql(
	$node, q(
CREATE TABLE other (n int);
SELECT batch_create_queue('volatile', 'INSERT INTO other SELECT 1 FROM batch',
	options => '{"durable": false}');
SELECT batch_create_queue('small', 'INSERT INTO other SELECT 1 FROM batch',
	options => '{"memory_limit": "64kB"}');
SELECT batch_create_queue('small_volatile', 'INSERT INTO other SELECT 1 FROM batch',
	options => '{"memory_limit": "64kB", "durable": false}');
SELECT batch_create_queue('small_error', 'INSERT INTO other SELECT 1 FROM batch',
	options => '{"memory_limit": "64kB", "when_full": "error"}');
));

# Each client has keys of its own, so that their numbers grow as they are
# enqueued.  Transactions of one row and of many; one in ten is rolled back.
my $script = q(
\set n :n + 100
\set die random(1, 10)
BEGIN;
SELECT batch_enqueue('ordered', jsonb_build_object('n', :n), 'c' || :client_id || '-1');
SELECT batch_enqueue_many('ordered',
	array_agg(jsonb_build_object('n', :n + g, 'text', repeat('x', 40)) ORDER BY g),
	array_agg('c' || :client_id || '-' || g % 7 ORDER BY g))
FROM generate_series(1, 60) g;
\if :die = 1
ROLLBACK;
\else
INSERT INTO committed VALUES (61);
COMMIT;
\endif
SELECT batch_enqueue('ordered', jsonb_build_object('n', :n + 99), 'c' || :client_id || '-1');
INSERT INTO committed VALUES (1);
);
my $file = $node->basedir . '/spill.sql';
my $first = 0;

append_to_file($file, $script);
sql($node, 'CREATE TABLE committed (n int)');

sub produce
{
	my ($transactions) = @_;

	$node->command_ok(
		[
			'timeout', '120', 'pgbench', '-n', '-c', '8', '-t', $transactions,
			'-D', "n=$first", '-f', $file, 'postgres' ],
		"$transactions transactions of each of 8 clients");
	$first += 100 * $transactions;
	return;
}

sub status
{
	my ($columns, $queue) = @_;

	return sql($node,
		"SELECT $columns FROM batcher.status WHERE queue = '$queue'");
}

sub spilled_rows
{
	my ($queue) = @_;

	return sql($node,
		"SELECT rows_spilled FROM batcher.stat_queue WHERE queue = '$queue'");
}

sub check_flushed
{
	my ($message) = @_;

	is( sql($node, 'SELECT count(*), count(DISTINCT (key, n)), count(DISTINCT ticket) FROM flushed'),
		sql($node, 'SELECT sum(n), sum(n), sum(n) FROM committed'),
		"$message: each committed row was flushed once");
	is(order_faults($node, 'flushed'),
		'0', "$message: rows of one key were flushed in order");
	return;
}

# The flush stands still while hundreds of thousands of rows come.
my $lock = $node->background_psql('postgres');

$lock->query_safe('BEGIN; LOCK TABLE flushed IN EXCLUSIVE MODE');
produce(500);
my $waiting = sql($node, 'SELECT sum(n) FROM committed');
cmp_ok($waiting, '>', 200000, 'so many rows wait');
is( status("pending = $waiting, pending > spilled, spilled > pending / 2", 'ordered'),
	't|t|t',
	'they are all counted, most of them in the spool');
cmp_ok(sql($node, 'SELECT sum(pending_bytes) FROM batcher.status'),
	'<=', $memory, 'memory is not exceeded');
cmp_ok(spilled_rows('ordered'), '>', 100000, 'rows_spilled counts');

# A row of another durable queue finds no room either, and is not refused.
is( sql(
		$node, q(
SELECT count(batch_enqueue('small', '{}')) FROM generate_series(1, 10))),
	'10',
	'another durable queue spills');

# A queue that is not durable waits for room, then gives up.
my ($rc, $out, $err) = try_sql(
	$node, q(
SELECT count(batch_enqueue('volatile', jsonb_build_object('t', repeat('x', 1000))))
FROM generate_series(1, 10000);));
isnt($rc, 0, 'a non-durable queue is full');
like($err, qr/53400.*queue "volatile" is full/, 'it says so');
is(status('pending', 'volatile'), '0', 'and nothing of the transaction waits');

# More while rows are flushed and read back.
$lock->query_safe('COMMIT');
$lock->quit;
produce(250);
wait_drained($node, 'ordered', 'small');
check_flushed('after a standstill');

# Back in memory: nothing spills any more.
my $spilled = spilled_rows('ordered');
wait_sql(
	$node, q(
SELECT count(*) = 0 FROM batcher.spool));
is(status('pending_bytes', 'ordered'), '0', 'all memory was given back');
sql(
	$node, q(
INSERT INTO committed VALUES (100);
SELECT count(batch_enqueue('ordered', jsonb_build_object('n', 1e9 + g), 'x'))
FROM generate_series(1, 100) g));
wait_drained($node, 'ordered');
is(spilled_rows('ordered'), $spilled, 'the lane returned to memory');
check_flushed('in memory again');

# Again, with a crash while much is spilled.
$lock = $node->background_psql('postgres');
$lock->query_safe('BEGIN; LOCK TABLE flushed IN EXCLUSIVE MODE');
produce(100);
my $pid = worker_pid($node);
kill_process($node, $pid);
eval { $lock->quit };
produce(50);
wait_drained($node, 'ordered');
check_flushed('after a crash');

# The limit of a queue: durable rows beyond it spill, others are refused.
sql(
	$node, q(
TRUNCATE other;
SELECT batch_pause('small'), batch_pause('small_volatile'), batch_pause('small_error');
));
sql(
	$node, q(
SELECT count(batch_enqueue('small', jsonb_build_object('t', repeat('x', 100))))
FROM generate_series(1, 2000)));
is(status('pending, spilled > 0, pending_bytes <= 65536', 'small'),
	'2000|t|t', 'memory_limit of a durable queue');
foreach my $queue ('small_volatile', 'small_error')
{
	my $script = join "\n", map {
		"SELECT count(batch_enqueue('$queue', jsonb_build_object('t', repeat('x', 1000)))) FROM generate_series(1, 20);"
	} 1 .. 10;

	($rc, $out, $err) = try_sql($node, $script);
	like($err, qr/53400.*queue "$queue" is full/, "memory_limit of $queue");
	is( status(
			"pending > 0 AND pending % 20 = 0 AND pending_bytes <= 65536", $queue),
		't',
		"$queue keeps what was committed before");
}
sql(
	$node, q(
SELECT batch_resume('small'), batch_resume('small_volatile'), batch_resume('small_error')));
my $accepted = sql(
	$node, q(
SELECT sum(rows_enqueued) FROM batcher.stat_queue
WHERE queue IN ('small_volatile', 'small_error')));
wait_drained($node, 'small', 'small_volatile', 'small_error');
is(sql($node, 'SELECT count(*) FROM other'),
	2000 + $accepted, 'each accepted row was flushed once');
is(sql($node, 'SELECT sum(pending_bytes) FROM batcher.status'),
	'0', 'all memory was given back');

$node->stop;
done_testing();
