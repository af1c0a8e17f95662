
# Server processes that serve no client are killed while somebody stands at a
# point of the life of a row: the postmaster, the launcher, the checkpointer.
# What has committed is flushed exactly once, and what has not never is; rows in
# memory only are flushed at most once.
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

# one worker, so that it is known which one is meant
my $node = new_node(
	'kill_server', q(
batcher.flush_interval = '20ms'
batcher.max_workers = 1
));
my $collect = collect_statement();
my $collect_slowly = $collect =~ s/FROM batch/FROM g, batch/r;
my $launcher = q(SELECT pid FROM pg_stat_activity
WHERE backend_type = 'batcher launcher');

# "served" and "volatile" are flushed, the others wait.  The statement of "slow"
# waits as long as somebody has the table "gate".
create_checker($node);
sql(
	$node, qq(
CREATE TABLE gate ();
CREATE FUNCTION pass_gate() RETURNS boolean LANGUAGE plpgsql AS \$\$
BEGIN
	LOCK TABLE public.gate;
	RETURN true;
END \$\$;
SELECT batch_create_queue('served', \$\$$collect\$\$,
	options => '{"notify_channel": "c"}');
SELECT batch_create_queue('volatile', \$\$$collect\$\$,
	options => '{"notify_channel": "c", "durable": false}');
SELECT batch_create_queue('waiting', \$\$$collect\$\$);
SELECT batch_create_queue('volatile_waiting', \$\$$collect\$\$,
	options => '{"durable": false}');
SELECT batch_create_queue('slow',
	\$\$WITH g AS MATERIALIZED (SELECT pass_gate()) $collect_slowly\$\$);
SELECT batch_pause('waiting'), batch_pause('volatile_waiting');
));

# A statement that enqueues rows of a queue, of which 9 come.
sub produce
{
	my ($queue) = @_;

	return "SELECT produce('$queue', 10, 'k', nextval('batcher.number'));";
}

# Rows that wait while processes die around them.
sub add_waiting
{
	sql($node, produce('waiting') . produce('volatile_waiting'));
	return;
}

# After a crash: each durable row is flushed once, or waits.  Of those in memory
# only so many have come in vain, but for those that waited, which all are gone.
sub check_after
{
	my ($what, $nlost) = @_;

	sql($node, produce('served') . produce('volatile'));
	wait_drained($node, 'served', 'volatile');
	check_rows($node, "$what: durable rows", "queue = 'served'");
	# what is lost is no concern of the next crash
	like(
		sql(
			$node, q(
WITH lost AS (DELETE FROM acknowledged a WHERE queue ~ '^volatile'
	AND NOT EXISTS (SELECT FROM collected c WHERE c.id = a.id) RETURNING queue)
SELECT count(*) FILTER (WHERE queue = 'volatile'),
	count(*) FILTER (WHERE queue = 'volatile_waiting') FROM lost)),
		qr/^$nlost\|9$/,
		"$what: rows in memory only are lost");
	check_rows($node, "$what: and the others flushed once",
		"queue ~ '^volatile'");
	is( sql(
			$node, q(
SELECT count(DISTINCT payload->>'id'), count(*) FROM batcher.pending
WHERE queue LIKE '%waiting')),
		sql(
			$node, q(
SELECT count(*), count(*) FROM acknowledged WHERE queue = 'waiting')),
		"$what: durable rows that wait are there");
	return;
}

# How many rows the log says are lost.
sub check_log
{
	my ($what, $position, $nlost) = @_;

	like(slurp_file($node->logfile, $position),
		qr/LOG:  $nlost rows of non-durable queues are lost/,
		"$what: the log has the number");
	return;
}

# Kill the postmaster while a process stands at a point, which dies with it, or
# goes on, as any does until it notices.
sub kill_postmaster_at
{
	my ($point, $pid, $goes_on) = @_;

	disarm($node);
	kill_postmaster(
		$node,
		sub {
			release_point($node, $point) if $goes_on;
			kill('KILL', $pid) if !$goes_on;
		});
	return;
}

# Have a session stand in its commit; returns it and its pid.
sub stop_client
{
	my $client = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $client->query_safe('SELECT pg_backend_pid()');

	$client->query_safe('BEGIN;' . produce('served') . produce('volatile')
		  . "INSERT INTO acknowledged VALUES ('client')");
	arm($node, 'pre-commit=wait');
	$client->query_until(qr/^go$/m, "\\echo go\nCOMMIT;\n");
	wait_point($node, 'pre-commit');
	return ($client, $pid);
}

# Has its transaction committed?
sub check_client
{
	my ($what, $committed) = @_;

	is( sql(
			$node, q(
WITH d AS (DELETE FROM acknowledged WHERE queue = 'client' RETURNING 1)
SELECT count(*) FROM d)),
		$committed,
		"$what: its transaction has " . ($committed ? '' : 'not ') . 'committed');
	return;
}

# --- the postmaster ---

foreach my $goes_on (0, 1)
{
	my $what = 'postmaster, pre-commit, client '
	  . ($goes_on ? 'goes on' : 'is killed');
	my ($client, $pid);

	add_waiting();
	($client, $pid) = stop_client();
	kill_postmaster_at('pre-commit', $pid, $goes_on);
	eval { $client->quit };
	check_client($what, $goes_on);
	# a worker may have been there a moment longer
	check_after($what, $goes_on ? '[09]' : 0);
}

foreach my $point ('claimed', 'settle', 'committed', 'notify')
{
	foreach my $queue ('served', 'volatile')
	{
		# whether it goes on matters at the beginning of a transaction
		foreach my $goes_on ($point =~ /claimed|committed/ ? (0, 1) : 0)
		{
			my $what = "postmaster, $point of $queue, worker "
			  . ($goes_on ? 'goes on' : 'is killed');
			my $is_done = $goes_on || $point =~ /committed|notify/;
			my $pid = wait_worker($node);

			add_waiting();
			arm($node, "$point=wait");
			sql($node, produce($queue));
			wait_point($node, $point);
			kill_postmaster_at($point, $pid, $goes_on);
			check_after($what, $queue eq 'volatile' && !$is_done ? 9 : 0);
		}
	}
}

# --- the launcher, while it leaves ---

my $what = 'launcher-leaves';
my $pid = sql($node, $launcher);
my $position = log_position($node);

add_waiting();
arm($node, 'launcher-leaves=wait');
sql($node, "SELECT pg_terminate_backend($pid)");
wait_point($node, 'launcher-leaves');
sql($node, produce('served') . produce('volatile'));
wait_drained($node, 'served', 'volatile');
disarm($node);
is(sql($node, $launcher), $pid, "$what: the launcher waits there");
kill_process($node, $pid);
check_log($what, $position, 9);
check_after($what, 0);
wait_sql($node, "SELECT count(*) = 1 FROM ($launcher) s");
pass("$what: there is another launcher");

# --- the launcher, while a worker stands where it has taken a lane over ---

# The only worker has all lanes, and is held up with one of them when there may
# be others.
$what = 'taken-over';
sql($node, produce('served') . produce('volatile') . produce('slow'));
wait_drained($node, 'served', 'volatile', 'slow');
$node->append_conf('postgresql.conf', 'batcher.max_workers = 4');
$node->reload;
add_waiting();

my $gate = $node->background_psql('postgres', on_error_stop => 0);

$gate->query_safe('BEGIN; LOCK TABLE gate');
sql($node, produce('slow'));
wait_sql(
	$node, q(
SELECT count(*) = 1 FROM pg_stat_activity
WHERE backend_type = 'batcher worker' AND wait_event_type = 'Lock'));
arm($node, 'taken-over=wait');
sql($node, produce('served') . produce('volatile'));
wait_point($node, 'taken-over');
disarm($node);
$position = log_position($node);
kill_process($node, sub { return sql($node, $launcher) });
eval { $gate->quit };
check_log($what, $position, 18);
check_after($what, 9);
wait_drained($node, 'slow');
check_rows($node, "$what: rows whose flush held up the others", "queue = 'slow'");

# --- the checkpointer, while a client commits and a worker flushes ---

foreach my $queue ('served', 'volatile')
{
	my $client;

	$what = "checkpointer, settle of $queue";
	wait_worker($node);
	add_waiting();
	arm($node, 'settle=wait');
	sql($node, produce($queue));
	wait_point($node, 'settle');
	($client) = stop_client();
	disarm($node);
	$position = log_position($node);
	kill_process(
		$node,
		sql(
			$node, q(
SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer')));
	eval { $client->quit };
	check_client($what, 0);
	check_log($what, $position, $queue eq 'volatile' ? 18 : 9);
	check_after($what, $queue eq 'volatile' ? 9 : 0);
}

# --- what waited through all of it ---

sql($node, q(SELECT batch_resume('waiting'), batch_resume('volatile_waiting')));
wait_drained($node, 'waiting', 'volatile_waiting');
check_rows($node, 'rows that waited through all of it');
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');

$node->stop;
done_testing();
