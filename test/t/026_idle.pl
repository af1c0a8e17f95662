
# Idle costs nothing: no WAL, no transaction ids, next to no wake-ups.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# With wal_level = minimal the server itself writes nothing either.
my $node = new_node('idle', q(
wal_level = minimal
max_wal_senders = 0
checkpoint_timeout = 1h
track_activities = on
batcher.flush_interval = '20ms'
));

sql($node, 'CREATE TABLE done (queue int, id int)');
foreach my $i (1 .. 10)
{
	my $durable = $i % 2 ? 'true' : 'false';

	# two have rows that wait for long, one of them is paused, two announce
	my $options = qq({"durable": $durable)
	  . ($i > 8 ? ', "flush_interval": "1 h"' : '') . '}';
	my $statement =
	  $i == 7 || $i == 8
	  ? 'NULL'
	  : "\$\$INSERT INTO done SELECT $i, (payload->>'id')::int FROM batch\$\$";
	sql($node,
		"SELECT batch_create_queue('q$i', $statement, options => '$options')");
}
sql($node, "SELECT batch_pause('q9')");
sql(
	$node, q(
SELECT count(batch_enqueue('q' || q, jsonb_build_object('id', i)))
FROM generate_series(1, 10) q, generate_series(1, 300) i));
wait_drained($node, map { "q$_" } 1 .. 8);
is(sql($node, 'SELECT count(*) FROM done'), 1800, 'all is flushed');
sql($node, 'CHECKPOINT');

my @pids = split(/\n/, sql(
		$node, "SELECT pid FROM pg_stat_activity
		WHERE backend_type LIKE 'batcher%'"));
cmp_ok(scalar(@pids), '>=', 2, 'a launcher and a worker or two');

# How often these processes have gone to sleep so far.
sub sleeps
{
	my $sum = 0;

	foreach my $pid (@pids)
	{
		$sum += $1
		  if slurp_file("/proc/$pid/status") =~
		  /^voluntary_ctxt_switches:\s*(\d+)/m;
	}
	return $sum;
}

my $state = q(SELECT pg_current_wal_insert_lsn(),
pg_snapshot_xmax(pg_current_snapshot()));

# What was begun ends: two looks agree.
my ($before, $again) = ('', sql($node, $state));
while ($before ne $again)
{
	$before = $again;
	sql($node, 'SELECT pg_sleep(0.3)');
	$again = sql($node, $state);
}
my $slept = sleeps();
sql($node, 'SELECT pg_sleep(5)');
is(sql($node, $state), $before,
	'5 idle seconds with ten queues: no WAL and no transaction ids');
cmp_ok(sleeps() - $slept, '<=', 2, 'and hardly a wake-up');

# It is still alive.
sql($node, "SELECT batch_resume('q9')");
is(sql($node, 'SELECT batch_flush()'), 600, 'what waited is flushed');

$node->stop;
done_testing();
