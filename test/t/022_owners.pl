
# A flush runs as the queue's owner, in a process that has not run another
# non-superuser's code; what becomes of a queue whose owner is renamed, is
# dropped, or becomes or is no more a superuser.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('owners', "batcher.flush_interval = '10ms'");

sql(
	$node, q(
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
GRANT EXECUTE ON FUNCTION
	batch_create_queue(text, text, regclass, regtype, jsonb, boolean)
	TO alice, bob;
CREATE SCHEMA log;
GRANT USAGE ON SCHEMA log TO PUBLIC;
CREATE TABLE log.flushed (queue text, id int, role name DEFAULT current_user,
	pid int DEFAULT pg_backend_pid());
GRANT INSERT ON log.flushed TO PUBLIC;
CREATE TABLE log.of_bob (id int);
ALTER TABLE log.of_bob OWNER TO bob;
SELECT batch_create_queue('q_postgres', $$INSERT INTO log.flushed (queue, id)
	SELECT 'q_postgres', (payload->>'id')::int FROM batch$$);
SET ROLE alice;
SELECT batch_create_queue('q_alice', $$INSERT INTO log.flushed (queue, id)
	SELECT 'q_alice', (payload->>'id')::int FROM batch$$);
RESET ROLE;
SET ROLE bob;
SELECT batch_create_queue('q_bob', $$INSERT INTO log.flushed (queue, id)
	SELECT 'q_bob', (payload->>'id')::int FROM batch$$);
));

sub enqueue
{
	my ($queue, $id) = @_;

	sql($node, qq(SELECT batch_enqueue('$queue', '{"id": $id}')));
	return;
}

# The pid of the process that has flushed this row, and as whom.
sub flushed_by
{
	my ($queue, $id) = @_;

	wait_sql($node,
		"SELECT count(*) > 0 FROM log.flushed
		WHERE queue = '$queue' AND id = $id");
	return split(/\|/,
		sql($node, "SELECT pid, role FROM log.flushed
			WHERE queue = '$queue' AND id = $id"));
}

# --- one process for each owner ---

my %by;
foreach my $id (1 .. 3)
{
	foreach my $role ('postgres', 'alice', 'bob')
	{
		enqueue("q_$role", $id);
	}
	foreach my $role ('postgres', 'alice', 'bob')
	{
		my ($pid, $as) = flushed_by("q_$role", $id);
		is($as, $role, "queue of $role is flushed as $role");
		$by{$pid}{$role} = 1;
	}
}
is(scalar(grep { keys %{ $by{$_} } > 1 } keys %by),
	0, 'no process has flushed for two owners');
is(scalar(keys %by), 3, 'each owner has one worker');

# With one place for a worker they take turns, and still none serves two.
sql($node, q(ALTER SYSTEM SET batcher.max_workers = 1; SELECT pg_reload_conf()));
wait_sql($node, "SELECT count(*) <= 1 FROM batcher.worker");
foreach my $id (11 .. 12)
{
	enqueue("q_$_", $id) foreach ('postgres', 'alice', 'bob');
	foreach my $role ('postgres', 'alice', 'bob')
	{
		my ($pid, $as) = flushed_by("q_$role", $id);
		$by{$pid}{$role} = 1;
	}
}
is(scalar(grep { keys %{ $by{$_} } > 1 } keys %by),
	0, 'nor with one place for all');
sql($node,
	q(ALTER SYSTEM SET batcher.max_workers = 4; SELECT pg_reload_conf()));

# --- the owner's rights and no others ---

sql(
	$node, q(
SET ROLE alice;
SELECT batch_create_queue('trespass',
	$$INSERT INTO log.of_bob SELECT (payload->>'id')::int FROM batch$$);
SELECT batch_enqueue('trespass', '{"id": 1}');
));
wait_sql($node,
	"SELECT consecutive_failures > 0 FROM batcher.status
	WHERE queue = 'trespass'");
is( sql(
		$node, "SELECT last_error, pending FROM batcher.status
		WHERE queue = 'trespass'"),
	'permission denied for table of_bob|1',
	'the owner of the queue may not write there, and the status says so');
is(sql($node, 'SELECT count(*) FROM log.of_bob'), '0', 'nothing is written');
is( sql(
		$node, "SET ROLE alice; SELECT last_error FROM batcher.stat_queue
		WHERE queue = 'trespass'"),
	'permission denied for table of_bob', 'the owner sees the error');
is( sql(
		$node, "SET ROLE watcher; SELECT consecutive_failures > 0, last_error
		FROM batcher.status WHERE queue = 'trespass'"),
	't|', 'pg_monitor sees that there is one, but not which');
is( sql(
		$node,
		"SET ROLE bob; SELECT string_agg(queue, ' ') FROM batcher.status"),
	'q_bob', 'others see nothing of it');
foreach my $call ("batch_enqueue('trespass', '{}')", "batch_flush('trespass')",
	"batch_pause('trespass')", "batch_purge('trespass')",
	"batch_alter_queue('trespass', flush_sql => 'SELECT 1')",
	"batch_drop_queue('trespass')", "batch_wait('trespass', 1)",
	"batch_resume('trespass')", "batch_reset_stats('trespass')")
{
	my ($rc, $out, $err) = try_sql($node, "SET ROLE bob;\nSELECT $call");
	like($err, qr/ERROR:  42501: (permission denied for|must be owner of) queue "trespass"/,
		"bob may not: $call");
}
is( sql(
		$node,
		"SET ROLE bob; SELECT batch_pause(); SELECT batch_resume();
		RESET ROLE; SELECT count(*) FROM batcher.queue WHERE paused"),
	"\n\n0", 'batch_pause() and batch_resume() leave queues of others alone');
sql($node, q(GRANT INSERT ON log.of_bob TO alice;
	SELECT batch_reset_breaker('trespass')));
is(sql($node, "SELECT batch_flush('trespass') IS NOT NULL"),
	't', 'with the right it is flushed');
is(sql($node, 'SELECT count(*) FROM log.of_bob'), '1', 'once');

# --- renamed ---

my $names = 'SELECT owner FROM batcher.queue WHERE queue =';
sql($node, 'ALTER ROLE alice RENAME TO alicia');
is(sql($node, "$names 'q_alice'"), 'alicia', 'a new name is followed');
enqueue('q_alice', 21);
is((flushed_by('q_alice', 21))[1], 'alicia', 'and used in the flush');

# --- dropped ---

sql(
	$node, q(
DROP OWNED BY bob;
DROP ROLE bob;
));
sql($node, qq(SELECT batch_enqueue('q_bob', '{"id": 31}')));
wait_sql($node, "SELECT paused FROM batcher.status WHERE queue = 'q_bob'");
is( sql(
		$node,
		"SELECT owner, pause_reason FROM batcher.queue WHERE queue = 'q_bob'"),
	'bob|owner "bob" is gone', 'a queue without owner is held, with a reason');

# the others go on meanwhile, and it does not
enqueue('q_postgres', 31);
flushed_by('q_postgres', 31);
enqueue('q_alice', 31);
flushed_by('q_alice', 31);
is( sql(
		$node, "SELECT pending, pause_reason FROM batcher.status
		WHERE queue = 'q_bob'"),
	'1|owner "bob" is gone', 'its row waits');
my ($rc, $out, $err) = try_sql($node, "SELECT batch_resume('q_bob')");
like($err, qr/42704: owner "bob" of queue "q_bob" is gone/,
	'it cannot be resumed');

sql($node, q(CREATE ROLE bob; GRANT INSERT ON log.flushed TO bob));
enqueue('q_postgres', 32);
flushed_by('q_postgres', 32);
is( sql(
		$node, "SELECT pause_reason FROM batcher.status
		WHERE queue = 'q_bob'"),
	'owner "bob" is gone', 'another role of the same name does not get it');
($rc, $out, $err) = try_sql($node, "SELECT batch_resume('q_bob')");
like($err, qr/42704: owner "bob" of queue "q_bob" is gone/,
	'nor by batch_resume()');
sql($node, "SELECT batch_change_owner('q_bob', 'bob')");
is((flushed_by('q_bob', 31))[1], 'bob', 'batch_change_owner gives it to him');
is( sql(
		$node, "SELECT paused, pause_reason FROM batcher.queue
		WHERE queue = 'q_bob'"),
	'f|', 'and it is held no more');

# A role that goes while a row waits, and nothing else happens.
sql(
	$node, q(
SELECT batch_alter_queue('q_bob', '{"flush_interval": "300 ms"}');
SELECT batch_enqueue('q_bob', '{"id": 33}');
DROP OWNED BY bob;
DROP ROLE bob;
));
wait_sql($node, "SELECT paused FROM batcher.status WHERE queue = 'q_bob'");
sql($node, q(CREATE ROLE bob; GRANT INSERT ON log.flushed TO bob));
sql($node, "SELECT batch_change_owner('q_bob', 'bob')");
is((flushed_by('q_bob', 33))[1], 'bob', 'the row has waited');

# --- a superuser no more, and one from now on ---

sql($node, 'ALTER ROLE alicia SUPERUSER');
enqueue('q_alice', 41);
my ($pid) = flushed_by('q_alice', 41);
enqueue('q_bob', 41);
isnt((flushed_by('q_bob', 41))[0], $pid,
	'the worker of a role that became a superuser serves nobody else');
sql($node, 'ALTER ROLE alicia NOSUPERUSER');
enqueue('q_alice', 42);
enqueue('q_bob', 42);
($pid) = flushed_by('q_alice', 42);
isnt((flushed_by('q_bob', 42))[0],
	$pid, 'nor that of one that is a superuser no more');

# the same, after the worker of superusers has taken the queue over
sql($node, q(ALTER ROLE alicia SUPERUSER; SELECT batch_pause('q_bob');
SELECT batch_resume('q_bob')));
enqueue('q_alice', 44);
($pid) = flushed_by('q_alice', 44);
enqueue('q_postgres', 44);
is((flushed_by('q_postgres', 44))[0],
	$pid, 'superusers share a worker');
sql($node, 'ALTER ROLE alicia NOSUPERUSER');
enqueue('q_alice', 45);
($pid) = flushed_by('q_alice', 45);
enqueue('q_postgres', 45);
isnt((flushed_by('q_postgres', 45))[0],
	$pid, 'but not with one that is a superuser no more');
sql($node, 'REVOKE INSERT ON log.flushed FROM PUBLIC');
sql(
	$node, q(
SET ROLE alicia;
SELECT batch_enqueue('q_alice', '{"id": 43}')));
wait_sql($node,
	"SELECT consecutive_failures > 0 FROM batcher.status
	WHERE queue = 'q_alice'");
is( sql(
		$node, "SELECT last_error FROM batcher.status
		WHERE queue = 'q_alice'"),
	'permission denied for table flushed',
	'whose queue has a superuser\'s rights no more');
is( sql(
		$node, 'SELECT count(*) = count(DISTINCT (queue, id)) FROM log.flushed'
	),
	't', 'no row was flushed twice');

$node->stop;
done_testing();
