
# Rows that wait when the server stops without warning are read back in order,
# and rows that come meanwhile do not overtake them.
#
# M4.8 (persistent queues)
#
# Failure table: "kill -9 of any server process", "immediate stop, power loss".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('crash_stop', "batcher.flush_interval = '20ms'");
my $n = 0;

create_order_queue($node, 'ordered', 'flushed', '{"max_batch_size": 37}');
sql(
	$node, q(
CREATE TABLE volatile_target (n int);
SELECT batch_create_queue('volatile',
	$$INSERT INTO volatile_target SELECT (payload->>'n')::int FROM batch$$,
	options => '{"durable": false}');
SELECT batch_pause('ordered'), batch_pause('volatile');
));

# Each row in a transaction of its own, some transactions of many rows; five
# keys take turns.
sub enqueue
{
	my ($single, $many) = @_;
	my $script = '';

	for (1 .. $single)
	{
		$n++;
		$script .= qq(SELECT batch_enqueue('ordered', '{"n": $n}', 'k' || $n % 5);\n);
	}
	my $last = $n + $many;
	my $first = $n + 1;
	$script .= qq(
SELECT batch_enqueue_many('ordered',
	array_agg(jsonb_build_object('n', g) ORDER BY g),
	array_agg('k' || g % 5 ORDER BY g)) FROM generate_series($first, $last) g;
SELECT batch_enqueue('volatile', '{"n": 1}'););
	$n = $last;
	sql($node, $script);
	return;
}

sub pending
{
	my ($queue) = @_;

	return sql($node,
		"SELECT count(*) FROM batcher.pending WHERE queue = '$queue'");
}

my $message = 'before';

sub check_waiting
{
	is(pending('ordered'), $n, "$message: all durable rows wait");
	is( sql(
			$node, q(
SELECT count(*) FROM
	(SELECT (payload->>'n')::int AS n, lag((payload->>'n')::int) OVER
		(PARTITION BY key ORDER BY ticket) AS before
	 FROM batcher.pending WHERE queue = 'ordered') s
WHERE n <= before)),
		'0',
		"$message: tickets grow");
	return;
}

enqueue(40, 60);
check_waiting();

$message = 'immediate stop';
$node->stop('immediate');
$node->start;
check_waiting();
is(pending('volatile'), '0', "$message: rows in memory only are lost");
enqueue(40, 60);
check_waiting();

$message = 'kill -9 of the postmaster';
kill_postmaster($node);
check_waiting();
is(pending('volatile'), '0', "$message: rows in memory only are lost");
enqueue(40, 60);

foreach my $type ('checkpointer', 'batcher launcher', 'client backend')
{
	my $victim = $node->background_psql('postgres', on_error_die => 0);
	my $position = log_position($node);

	$message = "kill -9 of the $type";
	kill_process(
		$node,
		sql(
			$node, qq(
SELECT pid FROM pg_stat_activity
WHERE backend_type = '$type' AND pid <> pg_backend_pid() LIMIT 1)));
	eval { $victim->quit };
	check_waiting();
	like(slurp_file($node->logfile, $position),
		qr/1 row of non-durable queues is lost/, "$message: the log says so");
	is(pending('volatile'), '0', "$message: rows in memory only are lost");
	enqueue(10, 90);
}
is( sql(
		$node, q(
SELECT pending, spilled > 0 FROM batcher.status WHERE queue = 'ordered')),
	"$n|t",
	'batcher.status counts what waits in the spool');

# Now let the flush begin, but hold it up; what comes before the spool is read
# back keeps its place.
my $lock = $node->background_psql('postgres');

$lock->query_safe('BEGIN; LOCK TABLE flushed IN EXCLUSIVE MODE');
sql($node, q(SELECT batch_resume('ordered')));
wait_sql(
	$node, q(SELECT is_flushing FROM batcher.status WHERE queue = 'ordered'));
enqueue(40, 60);
is(sql($node, 'SELECT count(*) FROM flushed'), '0', 'nothing is flushed yet');
$lock->query_safe('COMMIT');
enqueue(100, 10);
$lock->quit;
wait_drained($node, 'ordered');
is( sql(
		$node, q(
SELECT count(*), count(DISTINCT n), count(DISTINCT ticket), max(n) FROM flushed)),
	"$n|$n|$n|$n",
	'each row was flushed once');
is(order_faults($node, 'flushed'), '0', 'rows of one key were flushed in order');
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');

# The lane is in memory again.
my $spilled = sql(
	$node, q(SELECT rows_spilled FROM batcher.stat_queue WHERE queue = 'ordered'));
wait_sql(
	$node, qq(
SELECT batch_enqueue('ordered', '{"n": 100000}', 'k0') > 0 AND
	rows_spilled = $spilled FROM batcher.stat_queue WHERE queue = 'ordered'));
wait_drained($node, 'ordered');
pass('later rows are not spilled');

# The queue that lost its rows works as before.
sql($node, q(SELECT batch_purge('volatile')));
sql($node, q(SELECT batch_resume('volatile')));
sql($node, q(SELECT batch_enqueue('volatile', '{"n": 7}')));
wait_drained($node, 'volatile');
is(sql($node, 'SELECT count(*), max(n) FROM volatile_target'),
	'1|7', 'the non-durable queue goes on');

# A crash in the middle of reading back, with batches that take parts of
# transactions.
my $before = sql($node, 'SELECT count(*) FROM flushed');
sql($node, q(SELECT batch_pause('ordered')));
$n = 200000;
enqueue(0, 1000);
$node->stop('immediate');
$node->start;
arm($node, 'settle=wait');
sql($node, q(SELECT batch_resume('ordered')));
for (1 .. 3)
{
	wait_point($node, 'settle');
	release_point($node, 'settle');
}
wait_point($node, 'settle');
disarm($node);
my $done = sql($node, 'SELECT count(*) FROM flushed') - $before;
is($done, 3 * 37, 'three batches were flushed before the crash');
kill_process($node, worker_pid($node));
wait_drained($node, 'ordered');
is( sql($node, 'SELECT count(*), count(DISTINCT n) FROM flushed WHERE n > 200000'),
	'1000|1000', 'and the rest once after it');
is(order_faults($node, 'flushed'), '0', 'in order');

$node->stop;
done_testing();
