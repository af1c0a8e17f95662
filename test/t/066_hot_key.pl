# M2.4: a key that comes again and again while nothing is flushed takes bounded
# memory, where memory is all that has its rows.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $rows = 20_000;
my $limit = 1024 * 1024;
my $node = new_node('hot_key', q(
batcher.shared_memory_size = 16MB
batcher.enqueue_timeout = '1s'
batcher.max_workers = 1
batcher.flush_interval = '10ms'
synchronous_commit = off
));

sql(
	$node, qq(
CREATE TABLE done (queue text, key text, payload jsonb);
CREATE PROCEDURE enqueue_each(queue text, upto int) LANGUAGE plpgsql AS \$\$
BEGIN
	FOR i IN 1 .. upto LOOP
		PERFORM batch_enqueue(queue, to_jsonb(i), 'hot');
		COMMIT;
	END LOOP;
END \$\$;
SELECT batch_create_queue(policy,
	format('INSERT INTO done SELECT %L, batch_key, payload FROM batch', policy),
	options => jsonb_build_object('durable', false, 'key_policy', policy,
		'memory_limit', $limit, 'when_full', full_does))
FROM (VALUES ('last', 'wait'), ('first', 'error'), ('merge', 'error')) v (policy, full_does)));
wait_worker($node);

# A flush that waits for a lock, and so keeps the worker.
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE done');

foreach my $policy ('last', 'first')
{
	sql($node, qq(SELECT batch_enqueue('$policy', '0', 'before')));
	wait_sql($node,
		"SELECT is_flushing FROM batcher.status WHERE queue = '$policy'");
	my $ticket = sql($node, qq(SELECT batch_enqueue('$policy', '"cold"', 'cold')));
	sql($node, qq(CALL enqueue_each('$policy', 10)));
	my $early = sql($node, qq(SELECT batch_enqueue('$policy', '11', 'hot')));
	sql($node, qq(CALL enqueue_each('$policy', $rows)));
	my ($bytes, $enqueued) = split /\|/, sql(
		$node, qq(
SELECT pending_bytes, rows_enqueued FROM batcher.status
JOIN batcher.stat_queue USING (queue) WHERE queue = '$policy'));
	is($enqueued, $rows + 13, "$policy: all rows were taken");
	cmp_ok($bytes, '<=', $limit, 'within the memory of a few');
	is(sql($node, qq(SELECT batch_wait('$policy', $early, '0'))),
		'superseded', 'one of the many has given way');
	is(sql($node, qq(SELECT batch_wait('$policy', $ticket, '0'))),
		'pending', 'a key that came once waits');
}

# Rows that are merged are not given up: each counts.
my $taken = 0;
my $full;
while ($taken < $rows)
{
	my ($rc, $out, $err) = try_sql($node, qq(
SELECT batch_enqueue('merge', jsonb_build_object('member ' || $taken, repeat('x', 20000)), 'hot')));
	if ($rc != 0)
	{
		$full = $err;
		last;
	}
	$taken++;
}
like($full, qr/53400: queue "merge" is full/,
	'a queue that merges is full after a while');

$locker->query_safe('COMMIT');
wait_drained($node, $_) foreach 'last', 'first', 'merge';
is( sql(
		$node, q(
SELECT queue, key, payload FROM done WHERE queue <> 'merge' ORDER BY 1, 2)),
	qq(first|before|0
first|cold|"cold"
first|hot|1
last|before|0
last|cold|"cold"
last|hot|$rows),
	'the first, or the last, of each key was flushed');
is( sql(
		$node, q(
SELECT queue, rows_enqueued - rows_flushed - rows_superseded FROM batcher.stat_queue
WHERE queue <> 'merge' ORDER BY 1)),
	"first|0\nlast|0",
	'all others were superseded');
is( sql(
		$node, q(
SELECT count(*) FROM done, jsonb_object_keys(payload) WHERE queue = 'merge')),
	$taken,
	'nothing that was merged is missing');

# Rows of a queue whose policy is about to change, or has just been changed, are
# not given up: neither by who may roll that back, nor by a worker that has not
# read it yet.
sql(
	$node, qq(
SELECT batch_create_queue('all', 'INSERT INTO done SELECT ''all'', batch_key, payload FROM batch',
	options => '{"durable": false, "memory_limit": $limit, "when_full": "error"}');
SELECT batch_create_queue('changed', 'INSERT INTO done SELECT ''changed'', batch_key, payload FROM batch',
	options => '{"durable": false, "key_policy": "last", "debounce": "1 h", "max_wait": "1 h"}')));
$locker->query_safe('BEGIN; LOCK TABLE done');
sql($node, q(SELECT batch_enqueue('all', '0', 'before', immediate => true)));
wait_sql($node, q(SELECT is_flushing FROM batcher.status WHERE queue = 'all'));
try_sql($node, qq(CALL enqueue_each('all', $rows)));
my $enqueued = sql($node,
	q(SELECT rows_enqueued FROM batcher.stat_queue WHERE queue = 'all'));
cmp_ok($enqueued, '<', $rows, 'memory is full');
try_sql($node, q(
BEGIN;
SELECT batch_alter_queue('all', '{"key_policy": "last"}');
SELECT batch_enqueue('all', '-1', 'hot') FROM generate_series(1, 100);
ROLLBACK));
sql($node, q(SELECT batch_alter_queue('changed', '{"key_policy": "all", "debounce": null, "max_wait": null}')));
sql($node, qq(
SELECT batch_enqueue_many('changed', array_agg(to_jsonb(i)), array_agg('hot'::text))
FROM generate_series(1, $rows) i));
$locker->query_safe('COMMIT');
wait_drained($node, $_) foreach 'all', 'changed';
is( sql(
		$node, q(
SELECT queue, count(*) FROM done WHERE queue IN ('all', 'changed') GROUP BY 1 ORDER BY 1)),
	"all|$enqueued\nchanged|$rows",
	'all rows were flushed where each counts');

# The worker looks at rows whose keys are not quiet yet, and gives up most.
sql(
	$node, qq(
SELECT batch_create_queue('quiet',
	'INSERT INTO done SELECT ''quiet'', batch_key, payload FROM batch',
	options => '{"durable": false, "key_policy": "last", "debounce": "1 h",
		"max_wait": "1 h"}');
SELECT batch_enqueue_many('quiet', array_agg(to_jsonb(i * 100 + j)),
	array_agg('key ' || j % 3))
FROM generate_series(1, $rows / 100) i, generate_series(1, 100) j GROUP BY i
ORDER BY i));
wait_sql($node, q(
SELECT pending < 10000 AND timers = 3 FROM batcher.status WHERE queue = 'quiet'));
sql($node, q(SELECT batch_flush('quiet')));
is( sql(
		$node, q(
SELECT key, payload FROM done WHERE queue = 'quiet' ORDER BY 1)),
	join("\n",
		"key 0|" . ($rows + 99),
		"key 1|" . ($rows + 100),
		"key 2|" . ($rows + 98)),
	'the last of each key was flushed');
is( sql(
		$node, q(
SELECT rows_enqueued, rows_flushed + rows_superseded FROM batcher.stat_queue
WHERE queue = 'quiet')),
	"$rows|$rows",
	'all others were superseded');

# What is known of rows that had failed before they were given up is forgotten.
sql(
	$node, q(
CREATE TABLE fails AS VALUES ('bad', '22012'), ('hot', '40001');
CREATE FUNCTION fail(key text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	state text;
BEGIN
	SELECT column2 INTO state FROM fails WHERE column1 = key;
	IF FOUND THEN
		RAISE 'no' USING ERRCODE = state;
	END IF;
END $$;
SELECT batch_create_queue('again', 'SELECT fail(batch_key) FROM batch ORDER BY batch_key',
	options => '{"durable": false, "key_policy": "last", "retry_delay": "1 h",
		"retry_max_delay": "1 h", "breaker_threshold": 1000}')));

sub knows_failures
{
	my $pid = worker_pid($node);
	my $position = log_position($node);

	sql($node, "SELECT pg_log_backend_memory_contexts($pid)");
	$node->wait_for_log(qr/\[$pid\].*Grand total/, $position);
	return slurp_file($node->logfile, $position) =~ /batcher retries/ ? 1 : 0;
}

sql(
	$node, q(
SELECT batch_enqueue_many('again', '{1,2,3,4}', '{bad,hot,hot,good}')));
wait_sql($node,
	q(SELECT rows_retried = 2 FROM batcher.stat_queue WHERE queue = 'again'));
is(knows_failures(), 1, 'a row is put off');
sql(
	$node, qq(
SELECT batch_enqueue_many('again', array_agg(to_jsonb(i)), array_agg('hot'::text))
FROM generate_series(1, $rows) i));
wait_sql($node,
	q(SELECT pending < 10000 FROM batcher.status WHERE queue = 'again'));
sql($node, q(TRUNCATE fails; SELECT batch_flush('again')));
wait_drained($node, 'again');
is(knows_failures(), 0, 'and nothing is known of it when none waits');

$locker->quit;
$node->stop;
done_testing();
