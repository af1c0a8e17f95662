
# A wake-up that comes while the worker waits in a flush, for a lock or for a
# standby, is not lost: such a wait resets the latch of the process.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node(
	'wakeup', q(
batcher.flush_interval = '1h'
batcher.shutdown_timeout = '500ms'
deadlock_timeout = '10ms'
),
	init => { allows_streaming => 1 });

# The worker looks at "early" first.
sql(
	$node, q(
CREATE TABLE gate ();
CREATE TABLE done (id int);
CREATE FUNCTION fail() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	LOCK TABLE public.gate IN SHARE MODE;
	RAISE EXCEPTION 'not yet' USING errcode = 'serialization_failure';
END $$;
SELECT batch_create_queue('early',
	$$INSERT INTO done SELECT (payload->>'id')::int FROM batch$$);
SELECT batch_create_queue('failing', 'SELECT fail()',
	options => '{"retry_delay": "1 min"}');
SELECT batch_enqueue('early', '{"id": 1}');
));

# While the flush of one queue waits for a lock, the other gets a row for now.
# The alarm of deadlock_timeout would wake the worker, too: let that be over.
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE gate');
sql($node, q(SELECT batch_enqueue('failing', '{}', immediate => true)));
wait_sql(
	$node, q(
SELECT count(*) = 1 FROM pg_locks
WHERE NOT granted AND relation = 'gate'::regclass
	AND waitstart < clock_timestamp() - interval '100 ms'));
sql($node, q(SELECT batch_enqueue('early', '{"id": 2}', immediate => true)));
$locker->query_safe('COMMIT');
$locker->quit;
my $start = time();
wait_sql(
	$node, q(
SELECT consecutive_failures = 1 FROM batcher.status WHERE queue = 'failing'));
wait_sql($node, 'SELECT count(*) = 1 FROM done WHERE id = 2');
cmp_ok(time() - $start, '<', 25,
	'a row for now does not wait until a failed flush is tried again');

# A flush whose commit waits for a standby that is not there ends a stop when
# its time is over.
sql(
	$node, q(
SELECT batch_drop_queue('failing', force => true);
SELECT batch_alter_queue('early', '{"flush_interval": "10ms"}');
));
$node->append_conf('postgresql.conf', q(synchronous_standby_names = 'nobody'));
$node->restart;
sql(
	$node, q(
SET synchronous_commit = local;
SELECT batch_enqueue('early', '{"id": 3}')));
wait_sql(
	$node, q(
SELECT count(*) = 1 FROM pg_stat_activity
WHERE backend_type = 'batcher worker' AND wait_event = 'SyncRep'));
$start = time();
$node->stop('fast');
cmp_ok(time() - $start, '<', 25,
	'a commit that waits for a standby does not hold a stop up');
$node->append_conf('postgresql.conf', q(synchronous_standby_names = ''));
$node->start;
is(sql($node, 'SELECT count(*), count(DISTINCT id) FROM done'),
	'3|3', 'and its rows are flushed once');

$node->stop('immediate');
done_testing();
