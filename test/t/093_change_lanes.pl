
# The lanes of a queue are changed, and rows are spilled into new ones, while its
# worker is in a turn that began before: what it reads back then for a lane stays
# in its lane.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'change_lanes', q(
batcher.flush_interval = '10ms'
batcher.max_workers = 1
));

# The worker serves them in this order.  The first two are flushed as long as
# somebody holds a lock.
sql(
	$node, q(
CREATE TABLE done (key text, flush xid8);
SELECT batch_create_queue('slow' || i, format($$SELECT l FROM batch,
	pg_advisory_xact_lock_shared(%s) l$$, i),
	options => '{"flush_timeout": "10 min"}')
FROM generate_series(1, 2) i;
SELECT batch_create_queue('spread', $$INSERT INTO done
	SELECT batch_key, pg_current_xact_id() FROM batch$$,
	options => '{"memory_limit": "4kB"}')));
wait_worker($node);
my @blockers;
foreach my $i (1, 2)
{
	$blockers[$i] = $node->background_psql('postgres');
	$blockers[$i]->query_safe("SELECT pg_advisory_lock($i)");
}

sub wait_slow
{
	my ($queue) = @_;

	wait_sql($node,
		"SELECT is_flushing FROM batcher.status WHERE queue = '$queue'");
	return;
}

# The worker flushes it in the turn in which it comes to it.
sub wait_due
{
	my ($queue) = @_;

	wait_sql(
		$node, qq(
SELECT min(enqueued_at) < now() - interval '0.1 s' FROM batcher.pending
WHERE queue = '$queue'));
	return;
}

sql($node, q(SELECT batch_enqueue('slow1', '1')));
wait_slow('slow1');
sql($node, q(SELECT batch_enqueue('slow2', '1')));
my $change = $node->background_psql('postgres');

# Change the number of lanes, for which somebody is waited for when this returns.
sub begin_change
{
	my ($lanes) = @_;

	$change->query_until(
		qr/^go$/m, qq(\\echo go
SELECT batch_alter_queue('spread', '{"lanes": $lanes}');
));
	wait_sql(
		$node, q(
SELECT count(*) = 1 FROM pg_locks
WHERE locktype = 'virtualxid' AND NOT granted));
	return;
}

$change->query_safe('BEGIN');
# it waits for the first flush only, and takes effect in the second
begin_change(2);
wait_due('slow2');
$blockers[1]->query_safe('SELECT pg_advisory_unlock(1)');
wait_slow('slow2');
$change->query_safe('COMMIT');
sql(
	$node, q(
SELECT count(batch_enqueue('spread', jsonb_build_object('n', repeat(i::text, 100)),
	'k' || i)) FROM generate_series(1, 400) i;
CREATE TABLE lanes AS SELECT lane, k AS key FROM batcher.spool,
	unnest(coalesce(keys, ARRAY[key])) AS k WHERE k IS NOT NULL));
is(sql($node, 'SELECT count(DISTINCT lane), count(*) FROM lanes'),
	'2|400', 'rows wait in two lanes');
wait_due('spread');
$blockers[2]->query_safe('SELECT pg_advisory_unlock(2)');
wait_drained($node, 'spread');
is( sql($node, 'SELECT count(*), count(DISTINCT key) FROM done'),
	'400|400', 'each row was flushed once');
is( sql(
		$node, q(
SELECT count(*) FROM (SELECT FROM done JOIN lanes USING (key)
	GROUP BY flush HAVING count(DISTINCT lane) > 1) s)),
	'0',
	'no batch has rows of two lanes');

# A flush that enqueues into the queue meanwhile is waited for, and so is what it
# has enqueued.
sql(
	$node, q(
SELECT batch_create_queue('fill', $$SELECT batch_enqueue('spread', '1', 'late')
	FROM batch, pg_advisory_xact_lock_shared(1)$$,
	options => '{"flush_timeout": "10 min"}')));
$blockers[1]->query_safe('SELECT pg_advisory_lock(1)');
sql($node, q(SELECT batch_enqueue('fill', '1')));
wait_slow('fill');
begin_change(3);
$blockers[1]->query_safe('SELECT pg_advisory_unlock(1)');
$change->query_safe('SELECT 1');
is( sql(
		$node, q(
SELECT lanes, (SELECT count(*) FROM done WHERE key = 'late')
FROM batcher.status WHERE queue = 'spread')),
	'3|1', 'a flush enqueues while the lanes are changed');

# One that begins later is not waited for: it is tried again.
my $user = $node->background_psql('postgres');
$user->query_safe(q(BEGIN; SELECT batch_enqueue('spread', '1', 'open')));
begin_change(2);
sql($node, q(SELECT batch_enqueue('fill', '1')));
wait_sql($node,
	"SELECT last_error LIKE '%is being changed' FROM batcher.status WHERE queue = 'fill'");
is( sql(
		$node,
		q(SELECT consecutive_failures FROM batcher.status WHERE queue = 'fill')),
	'0',
	'which does not count for its breaker');
$user->query_safe('COMMIT');
$user->quit;
$change->query_safe('SELECT 1');
wait_drained($node, 'fill');
wait_drained($node, 'spread');
is( sql(
		$node, q(
SELECT lanes, (SELECT count(*) FROM done WHERE key = 'open'),
	(SELECT count(*) FROM done WHERE key = 'late')
FROM batcher.status WHERE queue = 'spread')),
	'2|1|2', 'a flush that would wait for the change is tried again');
$_->quit foreach $change, $blockers[1], $blockers[2];
unlike(slurp_file($node->logfile), qr/deadlock/, 'without a deadlock');

$node->stop;
done_testing();
