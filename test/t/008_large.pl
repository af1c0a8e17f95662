
# Large transactions, large rows, and batches that take a part of what a
# transaction has enqueued.
#
# Failure table: "a flush takes part of a transaction's rows", "transaction or
# savepoint rolls back".

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
	'large', q(
batcher.shared_memory_size = 48MB
batcher.flush_interval = '20ms'
));

create_order_queue($node, 'large', 'flushed', '{"max_batch_size": 5000}');

sub enqueue
{
	my ($from, $to) = @_;

	return qq(
SELECT count(batch_enqueue('large', jsonb_build_object('n', g, 'text', repeat('x', 50)),
	'k' || g % 50)) FROM generate_series($from, $to) g;);
}

# One transaction; a savepoint in its middle is rolled back, another is
# released within one that is rolled back, a third is kept.
my ($out, $err);

sql($node,
	'BEGIN;'
	  . enqueue(1, 70000)
	  . 'SAVEPOINT a;'
	  . enqueue(70001, 100000)
	  . 'ROLLBACK TO a;'
	  . enqueue(100001, 120000)
	  . 'SAVEPOINT b; SAVEPOINT c;'
	  . enqueue(120001, 150000)
	  . 'RELEASE c; ROLLBACK TO b; SAVEPOINT d;'
	  . enqueue(150001, 170000)
	  . 'RELEASE d;'
	  . enqueue(170001, 200000)
	  . 'COMMIT;');
wait_drained($node, 'large');
is( sql(
		$node, q(
SELECT count(*), count(DISTINCT n), count(DISTINCT ticket),
	count(*) FILTER (WHERE n BETWEEN 70001 AND 100000),
	count(*) FILTER (WHERE n BETWEEN 120001 AND 150000)
FROM flushed)),
	'140000|140000|140000|0|0',
	'savepoints of a large transaction');
is(order_faults($node, 'flushed'), '0', 'rows of one key were flushed in order');
is( sql(
		$node, q(
SELECT rows_spilled > 0, rows_enqueued FROM batcher.stat_queue
WHERE queue = 'large')),
	't|140000',
	'it was written to the spool early');

# Rolled back as a whole: it leaves nothing.
sql($node, 'BEGIN;' . enqueue(200001, 300000) . 'ROLLBACK;');
is( sql(
		$node, q(
SELECT pending, pending_bytes, spilled FROM batcher.status WHERE queue = 'large')),
	'0|0|0',
	'a large transaction that rolls back leaves nothing');

# A large transaction does not hold smaller ones back while it is open, and
# it is visible at once when it commits.
my $session = $node->background_psql('postgres');

$session->query_safe('BEGIN;' . enqueue(300001, 400000));
sql($node, enqueue(400001, 400100));
wait_sql($node, 'SELECT count(*) = 100 FROM flushed WHERE n > 200000');
$session->query_safe('COMMIT');
sql($node, q(SELECT batch_flush('large')));
is( sql(
		$node, q(
SELECT count(*), count(DISTINCT n) FROM flushed WHERE n > 200000)),
	'100100|100100',
	'batch_flush flushes the rows that were written early, each once');

# What it had written early comes after the rows that others have committed
# meanwhile.
sql($node, q(SELECT batch_pause('large')));
$session->query_safe(
	q(BEGIN; SELECT batch_enqueue('large', '{"n": 2}', 'z');)
	  . enqueue(410001, 440000));
sql($node, q(SELECT batch_enqueue('large', '{"n": 1}', 'z')));
$session->query_safe(
	q(SELECT batch_enqueue('large', '{"n": 3}', 'z'); COMMIT;));
sql($node, q(SELECT batch_resume('large')));
wait_drained($node, 'large');
is( sql(
		$node, q(
SELECT string_agg(n::text, ' ' ORDER BY pos) FROM flushed WHERE key = 'z')),
	'1 2 3',
	'rows of one key are flushed in the order of the commits');

# The session that has enqueued much ends without a word.
$session->query_safe('BEGIN;' . enqueue(500001, 600000));
sql($node, q(
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE state = 'idle in transaction'));
eval { $session->quit };
wait_sql(
	$node, q(
SELECT pending_bytes = 0 AND pending = 0 FROM batcher.status WHERE queue = 'large'));
is(sql($node, 'SELECT count(*) FROM flushed WHERE n > 500000'),
	'0', 'a session that ends leaves nothing');

# Rows of five megabytes, durable and not, before and after a crash.
sql(
	$node, q(
CREATE TABLE big (queue text, length bigint, hash text);
SELECT batch_create_queue('big', $$INSERT INTO big
	SELECT 'big', length(payload->>'t'), md5(payload->>'t') FROM batch$$);
SELECT batch_create_queue('big_volatile', $$INSERT INTO big
	SELECT 'big_volatile', length(payload->>'t'), md5(payload->>'t') FROM batch$$,
	options => '{"durable": false}');
CREATE TABLE sent AS SELECT t FROM
	(SELECT string_agg(md5(g::text), '' ORDER BY g) AS t
	 FROM generate_series(1, 163840) g) s;
));
my $enqueue_big = q(
SELECT batch_enqueue('QUEUE', jsonb_build_object('t', t)) > 0 FROM sent;);

foreach my $queue ('big', 'big_volatile')
{
	my $enqueue = $enqueue_big =~ s/QUEUE/$queue/r;

	sql($node, $enqueue);
	wait_drained($node, $queue);
	is( sql(
			$node, qq(
SELECT count(*), max(length), bool_and(hash = md5(t)) FROM big, sent
WHERE queue = '$queue')),
		'1|5242880|t',
		"a row of 5 MB through \"$queue\"");
}
sql($node, q(TRUNCATE big; SELECT batch_pause('big')));
sql($node, $enqueue_big =~ s/QUEUE/big/r) for 1 .. 2;
$node->stop('immediate');
$node->start;
sql($node, q(SELECT batch_resume('big')));
wait_drained($node, 'big');
is(sql($node, 'SELECT count(*), max(length), bool_and(hash = md5(t)) FROM big, sent'),
	'2|5242880|t', 'rows of 5 MB are read back after a crash');

# One that is too large is refused, and the transaction with it.
my $rc;
($rc, $out, $err) = try_sql(
	$node, q(
SELECT batch_enqueue('big', to_jsonb(repeat('x', 7 * 1024 * 1024)));));
like($err, qr/ERROR:  54000/, 'a row larger than an eighth of the memory is refused');

# Batches that take a part of a transaction, with a worker that ends in between,
# with the server if the rows are durable: what was taken is not taken again, and
# the rest is.
sql(
	$node, q(
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.n = 150 THEN
		RAISE EXCEPTION 'not this one';
	END IF;
	RETURN NEW;
END $$));
foreach my $durable ('true', 'false')
{
	my $queue = $durable eq 'true' ? 'parts' : 'parts_volatile';
	my $target = "${queue}_flushed";
	my $enqueue = qq(
SELECT count(batch_enqueue('$queue', jsonb_build_object('n', g), 'k' || g % 3))
FROM generate_series(1, 300) g;);
	my $once = "SELECT count(*), count(DISTINCT n), max(n) FROM $target";
	my ($flushed, $pid);

	create_order_queue($node, $queue, $target,
		qq({"max_batch_size": 7, "max_attempts": 1000,
			"retry_delay": "50 ms", "durable": $durable}));
	sql($node, "SELECT batch_pause('$queue');" . $enqueue);
	is(sql($node, 'SELECT count(*) < 10 FROM batcher.spool'),
		't', "$queue: the rows are in few tuples");
	arm($node, 'claimed=wait');
	sql($node, "SELECT batch_resume('$queue')");
	for (1 .. 5)
	{
		wait_point($node, 'claimed');
		release_point($node, 'claimed');
	}
	wait_point($node, 'claimed');
	disarm($node);
	$flushed = sql($node, "SELECT count(*) FROM $target");
	is($flushed, 5 * 7, "$queue: five batches are flushed");
	is( sql(
			$node, qq(
SELECT count(*), count(DISTINCT ticket), min((payload->>'n')::int)
FROM batcher.pending WHERE queue = '$queue')),
		(300 - $flushed) . '|' . (300 - $flushed) . '|' . ($flushed + 1),
		"$queue: the rest waits");
	$pid = worker_pid($node);
	if ($durable eq 'true')
	{
		kill_process($node, $pid);
	}
	else
	{
		sql($node, "SELECT pg_terminate_backend($pid)");
		release_point($node, 'claimed');
		wait_sql($node,
			"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
	}
	wait_drained($node, $queue);
	is(sql($node, $once), '300|300|300', "$queue: each row was flushed once");
	is(order_faults($node, $target), '0', "$queue: in order");

	# The same when one row fails in the middle, and without an end: the later
	# rows of its key wait for it, and no others.
	sql(
		$node, qq(
TRUNCATE $target;
CREATE TRIGGER refuse BEFORE INSERT ON $target
	FOR EACH ROW EXECUTE FUNCTION refuse();
$enqueue));
	wait_sql($node, "SELECT count(*) = 249 FROM $target");
	is( sql(
			$node, qq(
SELECT min(n), count(*) FROM
	(SELECT (payload->>'n')::int AS n, key FROM batcher.pending
	 WHERE queue = '$queue') p WHERE key = 'k0' AND n % 3 = 0)),
		'150|51', "$queue: the row and the later ones of its key wait");
	wait_sql(
		$node, qq(
SELECT attempts > 1 FROM batcher.pending
WHERE queue = '$queue' AND payload->>'n' = '150'));
	sql($node, "DROP TRIGGER refuse ON $target");
	wait_drained($node, $queue);
	is(sql($node, $once), '300|300|300', "$queue: and the others after it");
	is(order_faults($node, $target), '0', "$queue: in order");
}
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');

$node->stop;
done_testing();
