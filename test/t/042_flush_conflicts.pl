
# A flush that loses against another transaction (a lock timeout, a deadlock, a
# serialization failure, flush_timeout, no room for a lock) is rolled back whole
# and tried again; no row is lost, applied twice, or charged with it.
#
# Failure table: "disk full, out of memory, lock timeout".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Few locks, so that one session can take all there are.
my $node = new_node(
	'conflicts', q(
batcher.flush_interval = '10ms'
deadlock_timeout = '50ms'
max_locks_per_transaction = 10
log_min_error_statement = panic
));

# Rows name an id and an amount.  The table is partitioned by id, because a row
# that moves to another partition is a serialization failure for who waits for
# it.  "seen" tells each execution that was committed.
sql(
	$node, q(
CREATE TABLE account (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)
	PARTITION BY RANGE (id);
CREATE TABLE account_low PARTITION OF account FOR VALUES FROM (0) TO (100);
CREATE TABLE account_high PARTITION OF account FOR VALUES FROM (100) TO (1000);
INSERT INTO account SELECT g FROM generate_series(1, 9) g;
CREATE TABLE seen (queue text, ticket bigint, attempts int);

-- One row after the other, in the order of the batch.
CREATE FUNCTION apply(queue text, rows jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	r jsonb;
BEGIN
	FOR r IN SELECT * FROM jsonb_array_elements(rows) LOOP
		UPDATE account SET n = n + (r->>'n')::int WHERE id = (r->>'id')::int;
		INSERT INTO seen VALUES (queue, (r->>'ticket')::bigint,
			(r->>'attempts')::int);
	END LOOP;
END $$;
CREATE FUNCTION apply_hastily(queue text, rows jsonb) RETURNS void
LANGUAGE sql SET lock_timeout = '20ms' AS $$ SELECT apply(queue, rows) $$;
CREATE FUNCTION apply_with_locks(queue text, rows jsonb) RETURNS void
LANGUAGE sql AS $$
	SELECT pg_advisory_xact_lock(1000000 + g) FROM generate_series(1, 50) g;
	SELECT apply(queue, rows) $$;
));

sub create_queue
{
	my ($queue, $function, %options) = @_;
	my $options;

	$options{flush_interval} = '"1 h"';
	$options{retry_delay} = '"3 s"';	# time to look at what failed
	$options = join ', ', map { qq("$_": $options{$_}) } sort keys %options;
	my $statement = qq(SELECT $function('$queue', jsonb_agg(payload ||
		jsonb_build_object('ticket', batch_ticket, 'attempts', batch_attempts)
		ORDER BY batch_pos)) FROM batch);

	sql($node,
		"SELECT batch_create_queue('$queue', \$\$$statement\$\$,
			options => '{$options}')");
	return;
}

# Rows for the accounts 1, 2 and 3, of one transaction each and flushed together.
sub enqueue
{
	my ($queue) = @_;

	sql(
		$node, join '',
		map { qq(SELECT batch_enqueue('$queue', '{"id": $_, "n": $_}', 'k');) }
		  1 .. 3);
	sql($node,
		qq(SELECT batch_alter_queue('$queue', '{"flush_interval": "10 ms"}')));
	return;
}

my $other = $node->background_psql('postgres', on_error_stop => 0);

# The other session never is the one that a deadlock ends.
$other->query_safe(q(SET deadlock_timeout = '10min'));

# Wait until the flush of a queue has failed with such a message.
sub wait_failed
{
	my ($queue, $message) = @_;

	wait_sql(
		$node, "SELECT batches_failed > 0 AND last_error LIKE '$message'
			FROM batcher.stat_queue WHERE queue = '$queue'");
	pass("$queue: failed with \"$message\"");
	is(sql($node, "SELECT count(*) FROM seen WHERE queue = '$queue'"),
		'0', "$queue: nothing of it is left");
	is( sql(
			$node,
			"SELECT count(*), sum(attempts) FROM batcher.pending
			WHERE queue = '$queue'"),
		'3|0',
		"$queue: its rows wait, charged with nothing");
	return;
}

# And is done again.
my $sum = 0;

sub check_done
{
	my ($queue) = @_;

	wait_drained($node, $queue);
	is( sql(
			$node,
			"SELECT count(*), count(DISTINCT ticket), sum(attempts) FROM seen
			WHERE queue = '$queue'"),
		'3|3|0',
		"$queue: each row was applied once");
	$sum += 1 + 2 + 3;
	is(sql($node, 'SELECT sum(n) FROM account'), $sum, "$queue: and counted");
	is( sql(
			$node,
			"SELECT rows_flushed, consecutive_failures
			FROM batcher.stat_queue JOIN batcher.status USING (queue)
			WHERE queue = '$queue'"),
		'3|0',
		"$queue: so say the counters");
	return;
}

sub wait_for_lock
{
	my ($who) = @_;

	wait_sql(
		$node, qq(
SELECT count(*) > 0 FROM pg_stat_activity
WHERE backend_type = '$who' AND wait_event_type = 'Lock'));
	return;
}

# A gate in the way of the flush: it finds the deadlock, when it comes to 3.
my $gate = $node->background_psql('postgres');

foreach my $durable ('true', 'false')
{
	my $kind = $durable eq 'true' ? 'durable' : 'volatile';
	my $queue;

	# --- lock timeout ---

	$queue = "lock_timeout, $kind";
	create_queue($queue, 'apply_hastily', durable => $durable);
	$other->query_safe('BEGIN; UPDATE account SET n = n WHERE id = 3');
	enqueue($queue);
	wait_failed($queue, 'canceling statement due to lock timeout');
	$other->query_safe('COMMIT');
	check_done($queue);

	# --- flush_timeout ---

	$queue = "flush_timeout, $kind";
	create_queue($queue, 'apply',
		durable => $durable,
		flush_timeout => '"50 ms"');
	$other->query_safe('BEGIN; UPDATE account SET n = n WHERE id = 3');
	enqueue($queue);
	wait_failed($queue, 'canceling statement due to statement timeout');
	$other->query_safe('COMMIT');
	check_done($queue);

	# --- deadlock: the flush has 1 and wants 3, the other has 3 and wants 1 ---

	$queue = "deadlock, $kind";
	create_queue($queue, 'apply', durable => $durable);
	$other->query_safe('BEGIN; UPDATE account SET n = n WHERE id = 3');
	$gate->query_safe('BEGIN; UPDATE account SET n = n WHERE id = 2');
	enqueue($queue);
	wait_for_lock('batcher worker');
	$other->query_until(qr/^go$/m,
		"\\echo go\nUPDATE account SET n = n WHERE id = 1;\n");
	wait_for_lock('client backend');
	$gate->query_safe('COMMIT');
	wait_failed($queue, 'deadlock detected');
	$other->query_safe('COMMIT');
	check_done($queue);

	# --- serialization failure ---

	$queue = "serialization, $kind";
	create_queue($queue, 'apply', durable => $durable);
	$other->query_safe('BEGIN; UPDATE account SET id = 103 WHERE id = 3');
	enqueue($queue);
	wait_for_lock('batcher worker');
	$other->query_safe('COMMIT');
	wait_failed($queue,
		'tuple to be locked was already moved to another partition%');
	sql($node, 'UPDATE account SET id = 3 WHERE id = 103');
	check_done($queue);

	# --- no room for another lock ---

	$queue = "locks, $kind";
	create_queue($queue, 'apply_with_locks', durable => $durable);
	$other->query(
		'SELECT count(pg_advisory_lock(g)) FROM generate_series(1, 500000) g');
	like($other->{stderr}, qr/out of shared memory/, 'a session has all locks');
	$other->{stderr} = '';
	$other->query_safe(
		'SELECT count(pg_advisory_unlock(g)) FROM generate_series(1, 30) g');
	enqueue($queue);
	wait_failed($queue, 'out of shared memory');
	$other->query_safe('SELECT pg_advisory_unlock_all()');
	check_done($queue);
}
$gate->quit;

$other->quit;
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');
is( sql(
		$node, q(
SELECT count(*) FROM pg_locks l JOIN pg_stat_activity USING (pid)
WHERE backend_type = 'batcher worker' AND locktype IN ('advisory', 'tuple'))),
	'0',
	'the worker has no lock left');

$node->stop;
done_testing();
