# A row that is tried again and again holds back the later rows of its key, which
# wait in the spool and are more than the worker takes into memory: rows of other
# keys are flushed meanwhile, and those of the key once it may go on, each once
# and in order.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'retried_key', q(
batcher.shared_memory_size = '8MB'
batcher.debug_points = 'most-ahead=1000000'
));

sql(
	$node, q(
CREATE TABLE cause (n int);
INSERT INTO cause VALUES (0);
CREATE TABLE done (pos serial, key text, n int);
SELECT batch_create_queue('q', $$INSERT INTO done (key, n)
	SELECT batch_key, (payload->>'n')::int /
		CASE WHEN batch_key LIKE 'bad%' AND payload->>'n' = '1' THEN c.n ELSE 1 END
	FROM batch, cause c ORDER BY batch_pos$$,
	options => '{"flush_interval": "10 ms", "memory_limit": "200kB",
		"retry_delay": "1 h", "retry_max_delay": "1 h", "max_attempts": 1000}');
SELECT batch_pause('q');
CREATE FUNCTION large(n int) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('n', n, 'text', repeat('x', 50000)) $$;
-- Each tenth transaction has a row of another key too.
DO $$
BEGIN
	FOR i IN 1 .. 100 LOOP
		PERFORM batch_enqueue('q', large(i), 'bad');
		IF i % 10 = 0 THEN
			PERFORM batch_enqueue('q', jsonb_build_object('n', i), 'mixed');
		END IF;
		COMMIT;
	END LOOP;
	FOR i IN 1 .. 30 LOOP
		PERFORM batch_enqueue('q', large(i), 'bad too');
		PERFORM batch_enqueue('q', large(i), 'good');
		COMMIT;
	END LOOP;
END $$;
SELECT batch_resume('q');
));

sub counts
{
	return sql($node,
		'SELECT key, count(*), count(DISTINCT n) FROM done GROUP BY 1 ORDER BY 1');
}

wait_sql($node, q(SELECT count(*) = 40 FROM done));
is(counts(), "good|30|30\nmixed|10|10", 'rows of other keys are flushed');

# What comes later passes too, or is held back as the others are.
sql(
	$node, q(
DO $$
BEGIN
	FOR i IN 101 .. 110 LOOP
		PERFORM batch_enqueue('q', large(i), 'bad');
		PERFORM batch_enqueue('q', large(i), 'good');
		COMMIT;
	END LOOP;
END $$));
wait_sql($node, q(SELECT count(*) = 50 FROM done));
is(counts(), "good|40|40\nmixed|10|10", 'those that come later too');
is(sql($node, q(SELECT pending FROM batcher.status WHERE queue = 'q')),
	140, 'the others wait');

my $position = log_position($node);
sql($node, 'SELECT pg_log_backend_memory_contexts(' . worker_pid($node) . ')');
$node->wait_for_log(qr/Grand total/, $position);
my ($bytes) =
  slurp_file($node->logfile, $position) =~ /batcher readback: (\d+) total/;
cmp_ok($bytes, '<', 4_000_000, 'and take little of the memory of the worker');

# Who asks for them is not told that they are flushed, and has them tried.
my ($rc, $out, $err) = try_sql($node, q(SELECT batch_flush('q', '100 ms')));
like($err, qr/was not flushed in time/, 'they are known to wait');
is(sql($node, 'SELECT count(*) FROM done'), 50, 'as they did before');

sql(
	$node, q(
UPDATE cause SET n = 1;
SELECT batch_reset_breaker('q')));
wait_drained($node, 'q');
is( counts(), "bad|110|110\nbad too|30|30\ngood|40|40\nmixed|10|10",
	'when the cause is mended, each row is flushed once');
is( sql(
		$node, q(
SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY pos) AS before FROM done) s
WHERE n < before)),
	0, 'in the order of its key');

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/,
	'nothing crashed');
done_testing();
