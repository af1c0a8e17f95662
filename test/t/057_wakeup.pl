
# A wake-up that comes while the worker waits in a flush, for a lock or for a
# standby, is not lost: such a wait resets the latch of the process.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use IPC::Run ();
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
# its time is over, also when the launcher has just left, or is leaving, so that
# nobody tells the worker what its signal means.
sql(
	$node, q(
SELECT batch_drop_queue('failing', force => true);
SELECT batch_alter_queue('early', '{"flush_interval": "10ms"}');
));
$node->append_conf('postgresql.conf', q(synchronous_standby_names = 'nobody'));
my $launcher = q(FROM pg_stat_activity
WHERE backend_type = 'batcher launcher');
my $id = 2;

# Have a commit wait, with another row enqueued, and start the server anew.
sub begin_wait
{
	$node->restart if $id == 2;
	$node->start if $id > 2;
	$id++;
	sql(
		$node, qq(
SET synchronous_commit = local;
SELECT batch_enqueue('early', '{"id": $id}')));
	wait_sql(
		$node, q(
SELECT count(*) = 1 FROM pg_stat_activity
WHERE backend_type = 'batcher worker' AND wait_event = 'SyncRep'));
	wait_sql($node, "SELECT count(*) = 1 $launcher");
	return;
}

sub stop_in_time
{
	my ($name) = @_;
	local $ENV{PGCTLTIMEOUT} = 20;

	ok($node->stop('fast', fail_ok => 1), $name)
	  or $node->stop('immediate');
	return;
}

begin_wait();
stop_in_time('a commit that waits for a standby does not hold a stop up');

begin_wait();
sql($node, "SELECT pg_terminate_backend(pid, 10000) $launcher");
stop_in_time('nor does it without a launcher');

begin_wait();
arm($node, 'launcher-leaves=wait');
sql($node, "SELECT pg_terminate_backend(pid) $launcher");
wait_point($node, 'launcher-leaves');
my $release = IPC::Run::start(
	[
		'bash',
		'-c',
		'until grep -q stopping postmaster.pid; do sleep 0.01; done;'
		  . 'touch batcher_debug_launcher-leaves.go'
	],
	init => sub { chdir $node->data_dir });
stop_in_time('nor does it when the launcher has found no stop');
$release->finish;

$node->append_conf('postgresql.conf', q(synchronous_standby_names = ''));
$node->start;
is(sql($node, 'SELECT count(*), count(DISTINCT id) FROM done'),
	'5|5', 'and its rows are flushed once');

$node->stop('immediate');
done_testing();
