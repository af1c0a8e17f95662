
# Lanes of one queue fail each for itself: one that passes rows does not make
# another one be tried too soon, nor does a flush that began before the breaker
# opened close it.

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
	'lanes_fail', q(
batcher.flush_interval = '10ms'
batcher.max_workers = 4
));

# A row waits while somebody holds its lock, and fails if it is to, before that or
# after it.
sql(
	$node, q(
CREATE TABLE fails (key text, sqlstate text);
CREATE FUNCTION work(key text, lock int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	state text;
BEGIN
	FOR i IN 1 .. 2 LOOP
		SELECT sqlstate INTO state FROM fails WHERE fails.key = work.key;
		IF FOUND THEN
			RAISE 'no' USING ERRCODE = state;
		END IF;
		PERFORM pg_advisory_xact_lock_shared(lock);
	END LOOP;
END $$;
SELECT batch_create_queue('q', $$SELECT work(batch_key, payload::int) FROM batch$$,
	options => '{"lanes": 2, "retry_delay": "100 ms", "breaker_threshold": 1000}');
SELECT batch_pause('q');
SELECT batch_enqueue('q', '0', 'k' || i) FROM generate_series(1, 20) i));
my ($good, $bad) = split /\n/,
  sql($node, 'SELECT min(key) FROM batcher.spool GROUP BY lane');
ok(defined $bad, 'there are keys for both lanes');
sql($node, q(SELECT batch_resume('q')));
wait_drained($node, 'q');

my $status = "FROM batcher.status WHERE queue = 'q'";

# --- put off ---

sql($node, "INSERT INTO fails VALUES ('$bad', '40001')");
sql($node, "SELECT batch_enqueue('q', '0', '$bad')");
my $load =
  start_load($node, "SELECT batch_enqueue('q', '0', '$good');\n", 1, 20);
wait_sql(
	$node, q(
SELECT retry_at > last_error_at + interval '1 s'
FROM batcher.status JOIN batcher.stat_queue USING (queue)));
pass('a lane that fails is tried later and later');
my $flushed = sql($node, 'SELECT rows_flushed FROM batcher.stat_queue');
wait_sql($node, "SELECT rows_flushed > $flushed + 3 FROM batcher.stat_queue");
pass('while the other one goes on');
stop_load($load);
sql($node, q(TRUNCATE fails; SELECT batch_reset_breaker('q')));
wait_drained($node, 'q');

# --- breaker ---

my @blockers;
foreach my $i (1, 2)
{
	$blockers[$i] = $node->background_psql('postgres');
	$blockers[$i]->query_safe("SELECT pg_advisory_lock($i)");
}

sub wait_blocked
{
	my ($lock) = @_;

	wait_sql(
		$node, qq(
SELECT count(*) = 1 FROM pg_locks
WHERE locktype = 'advisory' AND objid = $lock AND NOT granted));
	return;
}

sql(
	$node, q(
SELECT batch_alter_queue('q', '{"breaker_threshold": 1, "breaker_probes": 1,
	"breaker_recovery": "100 ms", "retry_delay": "2 s", "flush_timeout": "10 min"}')));

# One lane tries while the flush of another one that began before still runs.
sub try_beside
{
	sql(
		$node, qq(
INSERT INTO fails VALUES ('$bad', '42P01');
SELECT batch_enqueue('q', '1', '$good')));
	wait_blocked(1);
	sql($node, "SELECT batch_enqueue('q', '2', '$bad')");
	wait_sql($node, "SELECT breaker_state <> 'closed' $status");
	sql($node, q(DELETE FROM fails));
	wait_blocked(2);
	is(sql($node, "SELECT breaker_state $status"), 'half_open', 'one lane tries');
	return;
}

# It passes, and the breaker closes.
sub try_passes
{
	$blockers[2]->query_safe('SELECT pg_advisory_unlock(2)');
	wait_sql($node, "SELECT breaker_state = 'closed' $status");
	wait_drained($node, 'q');
	return;
}

try_beside();
$flushed = sql($node, 'SELECT rows_flushed FROM batcher.stat_queue');
$blockers[1]->query_safe('SELECT pg_advisory_unlock(1)');
wait_sql($node, "SELECT rows_flushed = $flushed + 1 FROM batcher.stat_queue");
is(sql($node, "SELECT breaker_state $status"),
	'half_open', 'an earlier flush of another lane does not count for that');
try_passes();

# Nor does one that fails, whatever it fails with.
foreach my $sqlstate ('40001', '42P01')
{
	$blockers[$_]->query_safe("SELECT pg_advisory_lock($_)") foreach 1, 2;
	try_beside();
	my $failed = sql($node, 'SELECT batches_failed FROM batcher.stat_queue');
	sql($node, "INSERT INTO fails VALUES ('$good', '$sqlstate')");
	$blockers[1]->query_safe('SELECT pg_advisory_unlock(1)');
	wait_sql($node, "SELECT batches_failed > $failed FROM batcher.stat_queue");
	is(sql($node, "SELECT breaker_state $status"),
		'half_open', "nor one that fails with $sqlstate");
	sql($node, q(DELETE FROM fails));
	try_passes();
}
$_->quit foreach $blockers[1], $blockers[2];

$node->stop;
done_testing();
