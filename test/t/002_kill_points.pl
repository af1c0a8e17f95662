
# Processes die at each point of the life of a row.  What has committed is
# flushed exactly once, and what has not never is.
#
# Failure table: "enqueuer killed before commit / between PRE_COMMIT and
# COMMIT", "worker ends by ERROR or FATAL in a flush", "worker ends right after
# its commit, before it has tidied up", "kill -9 of any server process".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# one worker, so that it is known which one is meant
my $node = new_node(
	'kill_points', q(
batcher.flush_interval = '20ms'
batcher.max_workers = 1
));
my $collect = collect_statement();

create_checker($node);
sql(
	$node, qq(
SELECT batch_create_queue('waiting', \$\$$collect\$\$);
SELECT batch_create_queue('served', \$\$$collect\$\$);
SELECT batch_create_queue('volatile', \$\$$collect\$\$,
	options => '{"durable": false}');
SELECT batch_pause('waiting');
));

# Rows that wait while processes die around them.
sub add_waiting
{
	sql($node, q(SELECT produce('waiting', 20, 'k', nextval('batcher.number'))));
	return;
}

# An enqueuing session is killed at a point of its commit.  Rows in memory only
# are lost with the memory, whether it has committed or not.
foreach my $point ('spool-written', 'pre-commit', 'commit')
{
	my $position = log_position($node);
	my $committed = $point eq 'commit';
	my ($rc, $out, $err);

	add_waiting();
	($rc, $out, $err) = try_sql(
		$node, qq(
SET batcher.debug_points = '$point=kill';
BEGIN;
SELECT produce('served', 12, 'k', nextval('batcher.number'));
SELECT produce('volatile', 12, 'k', nextval('batcher.number'));
INSERT INTO acknowledged (queue) VALUES ('$point');
COMMIT;));
	isnt($rc, 0, "$point: the enqueuer is gone");
	wait_crash_over($node, $position);
	is( sql($node, "SELECT count(*) FROM acknowledged WHERE queue = '$point'"),
		$committed ? 1 : 0,
		"$point: the transaction has " . ($committed ? '' : 'not ') . 'committed');
	sql($node, "DELETE FROM acknowledged WHERE queue = '$point'");
	is( sql($node, q(
WITH d AS (DELETE FROM acknowledged a WHERE queue = 'volatile'
	AND NOT EXISTS (SELECT FROM collected c WHERE c.id = a.id) RETURNING 1)
SELECT count(*) FROM d)),
		$committed ? 10 : 0,
		"$point: so have its rows in memory only");
	sql($node, q(SELECT produce('volatile', 12, 'k', nextval('batcher.number'))));
	wait_drained($node, 'served', 'volatile');
	check_rows($node, "$point: rows of the killed session", "queue = 'served'");
	check_rows($node, "$point: those in memory only are lost",
		"queue = 'volatile'");
}

# An error or a FATAL in its commit: the transaction rolls back, also when its
# rows are in the inbox already.  Its memory is given back.
foreach my $action ('error', 'fatal')
{
	foreach my $point ('spool-written', 'pre-commit')
	{
		my ($rc, $out, $err) = try_sql(
			$node, qq(
SET batcher.debug_points = '$point=$action';
BEGIN;
SELECT produce('served', 12, 'k', nextval('batcher.number'));
SELECT produce('waiting', 12, 'k', nextval('batcher.number'));
SELECT produce('volatile', 12, 'k', nextval('batcher.number'));
COMMIT;));

		like($err, qr/batcher debug point "$point"/,
			"$point: the commit fails with $action");
		foreach my $queue ('served', 'volatile')
		{
			sql($node,
				"SELECT produce('$queue', 12, 'k', nextval('batcher.number'))");
			wait_drained($node, $queue);
			check_rows($node, "$point: $action in the commit, $queue",
				"queue = '$queue'");
		}
	}
}
is( sql(
		$node, q(
SELECT sum(pending_bytes) FROM batcher.status
WHERE queue IN ('served', 'volatile'))),
	'0',
	'memory of transactions that failed was given back');

# The worker is killed at a point of its flush.  The rows are of one
# transaction before the crash, and of one after it.
foreach my $point ('claimed', 'statement', 'settle', 'committed', 'notify')
{
	my $pid;

	sql($node, q(SELECT batch_alter_queue('served', '{"notify_channel": "c"}')))
	  if $point eq 'notify';
	add_waiting();
	$pid = wait_worker($node);
	arm($node, "$point=wait");
	sql($node, q(SELECT produce('served', 10, 'k', nextval('batcher.number'))));
	wait_point($node, $point);
	sql($node, q(SELECT produce('served', 5, 'k', nextval('batcher.number'))));
	disarm($node);
	is(worker_pid($node), $pid, "$point: the worker waits there");
	kill_process($node, $pid);
	sql($node, q(SELECT produce('served', 5, 'k', nextval('batcher.number'))));
	wait_drained($node, 'served');
	check_rows($node, "$point: the worker was killed", "queue = 'served'");
}

# An error in the flush, at a point where one may come: the flush is rolled
# back and tried again.
foreach my $point ('claimed', 'statement', 'settle')
{
	foreach my $queue ('served', 'volatile')
	{
		my $failed = sql(
			$node, qq(
SELECT batches_failed FROM batcher.stat_queue WHERE queue = '$queue'));

		wait_worker($node);
		arm($node, "$point=error");
		sql($node, "SELECT produce('$queue', 10, 'k', nextval('batcher.number'))");
		wait_sql(
			$node, qq(
SELECT batches_failed > $failed FROM batcher.stat_queue WHERE queue = '$queue'));
		is( sql(
				$node, qq(
SELECT consecutive_failures > 0, last_error LIKE '%debug point%', retry_at IS NOT NULL, pending
FROM batcher.status WHERE queue = '$queue')),
			't|t|t|9',
			"$point, $queue: the failure is in the status");
		disarm($node);
		wait_drained($node, $queue);
		check_rows($node, "$point, $queue: error in the flush",
			"queue = '$queue'");
		is( sql(
				$node, qq(
SELECT consecutive_failures FROM batcher.status WHERE queue = '$queue')),
			'0',
			"$point, $queue: the next flush has passed");
	}
}

# The worker ends with a FATAL, before and right after the commit; the server
# goes on, and memory holds what the worker knew.
sql($node, q(SELECT batch_alter_queue('volatile', '{"notify_channel": "c"}')));
foreach my $point ('claimed', 'statement', 'settle', 'committed', 'notify')
{
	foreach my $queue ('served', 'volatile')
	{
		my $position = log_position($node);
		my $pid = end_worker(
			$node, $point,
			sub {
				sql($node,
					"SELECT produce('$queue', 10, 'k', nextval('batcher.number'))");
			});

		sql($node, "SELECT produce('$queue', 5, 'k', nextval('batcher.number'))");
		wait_drained($node, $queue);
		check_rows($node, "$point, $queue: the worker ended with a FATAL",
			"queue = '$queue'");
		isnt(wait_worker($node), $pid, "$point, $queue: there is another worker");
		unlike(slurp_file($node->logfile, $position),
			qr/reinitializing/, "$point, $queue: without a crash");
	}
}

# Ending right after the commit leaves nothing in memory or on disk.
is( sql(
		$node, q(
SELECT pending, pending_bytes, spilled FROM batcher.status
WHERE queue IN ('served', 'volatile'))),
	"0|0|0\n0|0|0",
	'nothing is left in memory');

# Who waits for a flush is told by the next worker.
foreach my $point ('claimed', 'committed')
{
	my $waiter = $node->background_psql('postgres');
	my $ticket;

	sql($node, q(SELECT batch_alter_queue('served', '{"flush_interval": "1 h"}')));
	$ticket = sql($node, q(SELECT batch_enqueue('served', '{"n": 0, "q": "w"}')));
	end_worker(
		$node, $point,
		sub {
			$waiter->query_until(qr/^go$/m, qq(\\echo go
SELECT 'flush: ' || batch_flush('served');
SELECT 'wait: ' || batch_wait('served', $ticket);
));
		});
	like($waiter->query_safe('SELECT 1'),
		$point eq 'claimed' ? qr/^flush: 1\nwait: flushed$/m : qr/^wait: flushed$/m,
		"$point: batch_flush and batch_wait outlive the worker");
	$waiter->quit;
	is(sql($node, q(SELECT count(*) FROM collected WHERE queue = 'w')),
		'1', "$point: flushed once");
	sql($node, q(DELETE FROM collected WHERE queue = 'w'));
}
sql($node, q(SELECT batch_alter_queue('served', '{"flush_interval": null}')));

# pg_terminate_backend and pg_cancel_backend in a flush.
foreach my $function ('pg_terminate_backend', 'pg_cancel_backend')
{
	my $pid = wait_worker($node);
	my $lock = $node->background_psql('postgres');

	$lock->query_safe('BEGIN; LOCK TABLE collected IN EXCLUSIVE MODE');
	sql($node, q(SELECT produce('served', 10, 'k', nextval('batcher.number'))));
	wait_sql(
		$node, qq(
SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid));
	sql($node, "SELECT $function($pid)");
	if ($function eq 'pg_terminate_backend')
	{
		wait_sql(
			$node, qq(
SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid));
	}
	else
	{
		wait_sql(
			$node, q(
SELECT consecutive_failures > 0 FROM batcher.status WHERE queue = 'served'));
	}
	$lock->query_safe('COMMIT');
	$lock->quit;
	wait_drained($node, 'served');
	check_rows($node, "$function in a flush", "queue = 'served'");
}

# What waited through all of it.
is( sql(
		$node, q(
SELECT count(*), count(DISTINCT payload->>'id') FROM batcher.pending
WHERE queue = 'waiting')),
	sql(
		$node, q(
SELECT count(*), count(*) FROM acknowledged WHERE queue = 'waiting')),
	'batcher.pending shows each row that waits');
sql($node, q(SELECT batch_resume('waiting')));
wait_drained($node, 'waiting');
check_rows($node, 'rows that waited through all of it');
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');

$node->stop;
done_testing();
