
# Owners who write their flush statements to get at more than is theirs: other
# roles, the process after their flush, the queues of others, the worker.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('hostile', "batcher.flush_interval = '10ms'");

# alice writes the statements, bob and the superuser have queues of their own.
# run() executes a command, in a subtransaction if it is to be caught.
sql(
	$node, q(
CREATE ROLE alice LOGIN;
CREATE ROLE bob;
GRANT EXECUTE ON FUNCTION
	batch_create_queue(text, text, regclass, regtype, jsonb, boolean)
	TO alice, bob;
CREATE SCHEMA a AUTHORIZATION alice;
CREATE TABLE secret (s text);
INSERT INTO secret VALUES ('treasure');
CREATE TABLE seen (who name DEFAULT current_user, what text,
	pid int DEFAULT pg_backend_pid());
GRANT INSERT ON seen TO PUBLIC;
SET ROLE alice;
CREATE FUNCTION a.run(command text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN true;
END $$;
CREATE PROCEDURE a.commit() LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
SELECT batch_create_queue('evil',
	$$SELECT a.run(payload #>> '{}') FROM batch ORDER BY batch_pos$$);
SET ROLE bob;
SELECT batch_create_queue('bob',
	$$INSERT INTO seen (what) SELECT payload #>> '{}' FROM batch$$);
RESET ROLE;
SELECT batch_create_queue('super',
	$$INSERT INTO seen (what) SELECT payload #>> '{}' FROM batch$$);
));

# Change a setting by a reload, and wait until sessions have read it.
sub set
{
	my ($setting, $value) = @_;

	sql($node,
		"ALTER SYSTEM SET $setting = '$value'; SELECT pg_reload_conf()");
	wait_sql($node, "SELECT current_setting('$setting') = '$value'");
	return;
}

# Have alice's flush run a command, whatever became of the last; returns the
# error, or '' if it was flushed.
sub evil
{
	my ($command) = @_;
	my $json = $command =~ s/(["\\])/\\$1/gr;

	$json =~ s/\s+/ /g;
	sql(
		$node, qq(
SET client_min_messages = error;
SELECT batch_reset_stats('evil');
SELECT batch_reset_breaker('evil');
SELECT batch_enqueue('evil', \$q\$"$json"\$q\$);
SELECT batch_flush('evil', '0')));
	wait_sql(
		$node, "SELECT rows_flushed > 0 OR last_error IS NOT NULL
		FROM batcher.stat_queue WHERE queue = 'evil'");
	my $error = sql($node,
		"SELECT last_error FROM batcher.stat_queue WHERE queue = 'evil'");
	sql($node, "SELECT batch_purge('evil')") if $error ne '';
	return $error;
}

# A row of this queue is flushed, by the role that owns it.
my $number = 0;

sub others_go_on
{
	my ($queue, $role, $name) = @_;

	$number++;
	sql($node, qq(SELECT batch_enqueue('$queue', '"$queue $number"')));
	wait_sql($node, "SELECT count(*) = 1 FROM seen
		WHERE what = '$queue $number'");
	is(sql($node, "SELECT who FROM seen WHERE what = '$queue $number'"),
		$role, $name);
	return;
}

is(evil(q(INSERT INTO public.seen (what) VALUES ('works'))),
	'', 'alice has a statement that does what she says');

# --- other roles ---

my $restricted = qr/within security-restricted operation/;
my @refused = (
	[ 'SET ROLE postgres', $restricted ],
	[ 'SET ROLE NONE', $restricted ],
	[ 'RESET ROLE', $restricted ],
	[ 'SET LOCAL ROLE bob', $restricted ],
	[ q(SELECT set_config('role', 'postgres', true)), $restricted ],
	[ 'SET SESSION AUTHORIZATION postgres', $restricted ],
	[ 'RESET SESSION AUTHORIZATION', $restricted ],
	[ q(SELECT set_config('session_authorization', 'postgres', false)),
		$restricted ],
	[ 'ALTER ROLE alice SUPERUSER',
		qr/must be superuser|permission denied to alter role/ ],
	[ 'ALTER ROLE CURRENT_USER SUPERUSER',
		qr/must be superuser|permission denied to alter role/ ],
	[ 'ALTER ROLE SESSION_USER SET search_path = a',
		qr/must be superuser|permission denied to alter role/ ],
	[ 'GRANT postgres TO alice',
		qr/must be superuser|permission denied to grant role/ ],
	[ 'GRANT bob TO alice',
		qr/must have admin option on role "bob"|permission denied to grant role/ ],
	[ 'CREATE ROLE more', qr/permission denied to create role/ ],
	[ 'SET session_replication_role = replica',
		qr/permission denied to set parameter/ ],
	[ 'SET zero_damaged_pages = on', qr/permission denied to set parameter/ ],
	[ 'SELECT * FROM secret', qr/permission denied for table secret/ ],
	[ q(COPY secret TO PROGRAM 'true'), qr/permission denied|must be superuser/ ],
	[ q(SELECT pg_read_file('PG_VERSION')), qr/permission denied/ ],
	[ q(ALTER SYSTEM SET work_mem = '1GB'),
		qr/cannot be executed from a function|permission denied/ ],
	[ 'LOAD \'plpgsql\'', qr/access to library "plpgsql" is not allowed/ ],

	# the tables of batcher, and the queues of others
	[ 'SELECT * FROM batcher.spool', qr/permission denied for table spool/ ],
	[ 'DELETE FROM batcher.spool', qr/permission denied for table spool/ ],
	[ 'LOCK TABLE batcher.spool', qr/permission denied for table spool/ ],
	[ 'LOCK TABLE batcher.queue IN EXCLUSIVE MODE', qr/permission denied/ ],
	[ q(SELECT setval('batcher.number', 1)), qr/permission denied/ ],
	[ q(SELECT batch_enqueue('bob', '1')), qr/permission denied for queue/ ],
	[ q(SELECT batch_purge('bob')), qr/cannot be used inside a flush/ ],
	[ q(SELECT batch_flush()), qr/cannot be used inside a flush/ ],
	[ q(SELECT batch_wait('evil', 1)), qr/cannot be used inside a flush/ ],
	[ q(SELECT batch_change_owner('evil', 'bob')),
		qr/must be member of role|must be able to SET ROLE/ ],
	[ q(SELECT batch_change_owner('evil', 'postgres')),
		qr/must be member of role|must be able to SET ROLE/ ],

	# what would outlive the flush
	[ 'CREATE TEMP TABLE t (n int)', $restricted ],
	[ 'CREATE TEMP TABLE t AS SELECT 1', $restricted ],
	[ 'CREATE TEMP VIEW v AS SELECT 1', $restricted ],
	[ 'CREATE TEMP SEQUENCE s', $restricted ],
	[ 'CREATE TABLE pg_temp.t (n int)', $restricted ],
	[ 'LISTEN c', $restricted ],
	[ 'UNLISTEN *', $restricted ],
	[ 'PREPARE p AS SELECT 1', $restricted ],
	[ 'DECLARE c CURSOR WITH HOLD FOR SELECT 1', $restricted ],
	[ 'DISCARD TEMP', $restricted ],
	[ 'DISCARD SEQUENCES', $restricted ],
	[ 'COMMIT', qr/transaction commands is not implemented/ ],
	[ 'SAVEPOINT s', qr/transaction commands is not implemented/ ],
	[ q(PREPARE TRANSACTION 'x'), qr/transaction commands is not implemented/ ],
	[ 'DO $x$ BEGIN COMMIT; END $x$', qr/invalid transaction termination/ ],
	[ 'DO $x$ BEGIN ROLLBACK; END $x$', qr/invalid transaction termination/ ],
	[ 'CALL a.commit()', qr/invalid transaction termination/ ],
	[ 'VACUUM', qr/cannot be executed from a function/ ],

	# the worker
	[ 'SELECT pg_terminate_backend(pg_backend_pid())',
		qr/must be a superuser|permission denied to terminate process/ ],
	[ 'SELECT pg_cancel_backend(pg_backend_pid())',
		qr/must be a superuser|permission denied to cancel query/ ],
	[ 'SELECT pg_reload_conf()', qr/permission denied/ ]);

foreach (@refused)
{
	my ($command, $error) = @$_;

	like(evil($command), $error, "refused: $command");
}
is( sql(
		$node, q(SELECT rolsuper, (SELECT count(*) FROM pg_auth_members
		WHERE member = r.oid) FROM pg_roles r WHERE rolname = 'alice')),
	'f|0', 'alice is what she was');

# pg_signal_backend does not help: the worker is a superuser's process.
sql($node, 'GRANT pg_signal_backend TO alice');
like(evil('SELECT pg_terminate_backend(pg_backend_pid())'),
	qr/must be a superuser|permission denied to terminate process/,
	'the worker is not terminated by pg_signal_backend');
sql($node, 'REVOKE pg_signal_backend FROM alice');

# Functions of others: SECURITY DEFINER, or with a role among their settings.
sql(
	$node, q(
CREATE FUNCTION lend(command text) RETURNS name SECURITY DEFINER
	LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
	IF command <> '' THEN
		EXECUTE command;
	END IF;
	RETURN current_user;
END $$;
CREATE FUNCTION as_role() RETURNS name LANGUAGE sql SET role = 'bob'
	AS 'SELECT current_user';
CREATE FUNCTION as_session() RETURNS name LANGUAGE sql
	SET session_authorization = 'bob' AS 'SELECT current_user';
));
my $definer = qr/within security-definer function/;
like(evil(q(SELECT public.lend('SET ROLE alice'))),
	$definer, 'nor in a SECURITY DEFINER function');
like(evil(q(SELECT public.lend('RESET SESSION AUTHORIZATION'))),
	$definer, 'whatever the command');
like(evil(q(SELECT public.lend('CREATE TEMP TABLE t (n int)'))),
	$restricted, 'and whoever its owner is');
like(evil('SELECT public.as_role()'),
	$restricted, 'nor by a setting of a function');
like(evil('SELECT public.as_session()'), $restricted, 'of whatever name');
is(evil(q(INSERT INTO seen (what) SELECT 'after ' || public.lend(''))),
	'', 'after one of them');
is(sql($node, q(SELECT who, what FROM seen WHERE what LIKE 'after%')),
	'alice|after postgres', 'alice is herself again');

# What runs in the planner: when a superuser alters alice's queue, in the flush
# only, as her.
sql(
	$node, q(
SET ROLE alice;
CREATE FUNCTION a.rise() RETURNS void VOLATILE LANGUAGE plpgsql
	AS 'BEGIN ALTER ROLE alice SUPERUSER; END';
CREATE FUNCTION a.constant() RETURNS int IMMUTABLE LANGUAGE plpgsql
	AS 'BEGIN PERFORM a.rise(); RETURN 1; END';
));
my ($rc, $out, $err) = try_sql($node,
	q(SELECT batch_alter_queue('evil',
		flush_sql => 'SELECT a.constant() FROM batch')));
is($rc, 0, 'a superuser does not plan her statement');
like(evil('SELECT 1'), qr/^(must be superuser|permission denied to alter role)/,
	'the flush plans it as her');
sql(
	$node, q(SELECT batch_alter_queue('evil', flush_sql =>
		$$SELECT a.run(payload #>> '{}') FROM batch ORDER BY batch_pos$$)));
is(evil(q(INSERT INTO public.seen (what) VALUES ('the same'))),
	'', 'and it is the old one');

# --- deferred triggers and cursors: what runs at the commit ---

sql(
	$node, q(
SET ROLE alice;
CREATE TABLE a.deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION a.tattle() RETURNS int VOLATILE LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG 'tattle: % %', current_user,
		current_setting('search_path');
	BEGIN
		ALTER ROLE alice SUPERUSER;
	EXCEPTION WHEN insufficient_privilege THEN
	END;
	RETURN 1;
END $$;
CREATE FUNCTION a.fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM a.tattle();
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER fire AFTER INSERT ON a.deferred
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION a.fire();
CREATE FUNCTION a.leave_open() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	c refcursor := 'open';
	n int;
BEGIN
	OPEN c FOR SELECT a.tattle() FROM generate_series(1, 100);
	FETCH c INTO n;
END $$;
));
my $position = log_position($node);
is(evil('INSERT INTO a.deferred VALUES (1)'), '', 'a deferred trigger is fired');
like(evil('SET CONSTRAINTS ALL DEFERRED; INSERT INTO a.deferred VALUES (2)'),
	qr/cannot fire deferred trigger $restricted/, 'or nothing is flushed');
like(
	evil(
		'DO $x$ BEGIN SET CONSTRAINTS a.fire DEFERRED;
		INSERT INTO a.deferred VALUES (3); END $x$'),
	qr/cannot fire deferred trigger $restricted/, 'by whatever name');
is(evil('SELECT a.leave_open()'), '', 'a cursor is left open');
my $log = slurp_file($node->logfile, $position);
like($log, qr/tattle: alice/, 'they ran');
unlike($log, qr/tattle: (?!alice)/, 'as the owner and nobody else');
is(sql($node, q(SELECT rolsuper FROM pg_roles WHERE rolname = 'alice')),
	'f', 'and could do nothing');
is(sql($node, 'SELECT string_agg(n::text, \' \') FROM a.deferred'),
	'1', 'what could not be checked is not there');

# --- what a name means ---

# The path is that of when the statement was given, of schemas as they were;
# temporary objects come last and do not count.
sql(
	$node, q(
CREATE FUNCTION public.tell() RETURNS text LANGUAGE sql AS $$SELECT 'public'$$;
SET ROLE alice;
CREATE TEMP TABLE seen (who name, what text);
SET search_path = pg_temp, a, later, public;
SELECT batch_create_queue('named',
	$$INSERT INTO seen (what) SELECT 'told by ' || tell() FROM batch$$);
));
sql(
	$node, q(
CREATE SCHEMA later AUTHORIZATION bob;
SET ROLE bob;
CREATE FUNCTION later.tell() RETURNS text LANGUAGE sql AS $$SELECT 'later'$$;
CREATE TABLE later.seen (who name, what text);
SELECT batch_enqueue('bob', '1');
));
sql(
	$node, q(
SET search_path = later, public;
SET ROLE alice;
SELECT batch_enqueue('named', '1');
));
wait_drained($node, 'named');
is(sql($node, q(SELECT who, what FROM public.seen WHERE what LIKE 'told%')),
	'alice|told by public', 'a schema that came later is not looked into');

# --- settings ---

# All that alice sees of them in a flush is the same after one that changed
# them, in whatever way; and so it is for others.
sql(
	$node, q(
CREATE TABLE shown (who name DEFAULT current_user, name text, setting text);
GRANT INSERT ON shown TO PUBLIC;
SELECT batch_alter_queue('super', flush_sql => $$WITH i AS (INSERT INTO shown
	SELECT current_user, name, setting FROM pg_settings)
	INSERT INTO seen (what) SELECT payload #>> '{}' FROM batch$$);
));
my $show = 'INSERT INTO shown (name, setting)
	SELECT name, setting FROM pg_settings';

sub settings_of
{
	my ($role) = @_;
	my $settings = sql($node, "SELECT name, setting FROM shown
		WHERE who = '$role' ORDER BY name");

	sql($node, 'DELETE FROM shown');
	return $settings;
}

is(evil($show), '', 'alice shows her settings');
my $alice_settings = settings_of('alice');
like($alice_settings, qr/^work_mem\|/m, 'there are some');
others_go_on('super', 'postgres', 'the superuser too');
my $super_settings = settings_of('postgres');
foreach my $command (
	q(SELECT set_config('work_mem', '77MB', false),
		set_config('search_path', 'a', false),
		set_config('statement_timeout', '5ms', false),
		set_config('lock_timeout', '5ms', false),
		set_config('row_security', 'off', false),
		set_config('datestyle', 'German', false),
		set_config('default_transaction_read_only', 'on', false),
		set_config('synchronous_commit', 'off', false),
		set_config('client_min_messages', 'debug5', false),
		set_config('application_name', 'alice', false),
		set_config('batcher.enqueue_timeout', '0', false)),
	q(SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY,
		ISOLATION LEVEL SERIALIZABLE),
	q(SELECT set_config('transaction_read_only', 'on', false)),
	'SET TRANSACTION READ ONLY',
	'SET LOCAL enable_seqscan = off',
	'RESET ALL',
	q(DO $x$ BEGIN SET work_mem = '88MB'; PERFORM 1 / 0;
		EXCEPTION WHEN division_by_zero THEN SET work_mem = '99MB'; END $x$))
{
	is(evil($command), '', "done: $command");
	is(evil($show), '', 'and then');
	is(settings_of('alice'), $alice_settings, 'alice\'s settings are the same');
}
is(evil(q(SELECT set_config('transaction_read_only', 'on', false), 1 / 0)),
	'division by zero', 'also if the flush fails');
is(evil($show), '', 'and then');
is(settings_of('alice'), $alice_settings, 'they are the same');
others_go_on('super', 'postgres', 'the superuser\'s');
is(settings_of('postgres'), $super_settings, 'too');

# Rows that fail are isolated from the others of their flush, also in what they
# have set; dead letters are written between them, with rights that alice has not.
sql(
	$node, qq(
SELECT batch_alter_queue('evil', '{"max_attempts": 1}');
SELECT batch_reset_breaker('evil');
SELECT batch_enqueue_many('evil', ARRAY[
	to_jsonb('SET work_mem = ''66MB''; SELECT pg_advisory_lock(1)'::text),
	to_jsonb('SET work_mem = ''66MB''; SELECT pg_advisory_lock(2), 1 / 0'::text),
	to_jsonb('SET CONSTRAINTS ALL DEFERRED'::text),
	to_jsonb('SELECT public.lend(''SELECT 1 / 0'')'::text),
	to_jsonb('$show'::text)]);
));
wait_drained($node, 'evil');
is(settings_of('alice'), $alice_settings, 'rows that fail set nothing');
is( sql(
		$node, q(SELECT count(*), min(message), max(message), min(enqueued_by)
		FROM batcher.dead_letter WHERE queue = 'evil')),
	'2|division by zero|division by zero|postgres', 'they are dead letters');
is(sql($node, q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')),
	'0', 'their locks are given back');
is( sql(
		$node, q(SET ROLE alice; SELECT count(*) FROM batcher.dead_letter;
		SET ROLE bob; SELECT count(*) FROM batcher.dead_letter)),
	"2\n0", 'dead letters are their owner\'s to see');
sql($node, q(SELECT batch_purge_dead('evil');
SELECT batch_alter_queue('evil', '{"max_attempts": null}')));

# A flush that says that it only reads has its rows removed, and those that it
# enqueues stored.
sql($node, q(SET ROLE bob; SELECT batch_grant('bob', 'alice', 'enqueue')));
is( evil(
		q(SELECT batch_enqueue('bob', '"handed on"'),
		set_config('transaction_read_only', 'on', false))),
	'', 'a flush that enqueues, and then reads only');
wait_sql($node, q(SELECT count(*) = 1 FROM seen WHERE what = 'handed on'));
is(sql($node, q(SELECT who FROM seen WHERE what = 'handed on')),
	'bob', 'what it enqueued is flushed as the other queue\'s owner');

# Row security cannot be switched off, and who may set what decides about
# triggers does it for the flush only.
sql(
	$node, q(
CREATE TABLE rows (who name, n int);
INSERT INTO rows VALUES ('alice', 1), ('bob', 2);
ALTER TABLE rows ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON rows USING (who = current_user);
GRANT SELECT ON rows TO alice;
GRANT SET ON PARAMETER session_replication_role TO alice;
));
like(evil('SET row_security = off; SELECT count(*) FROM rows'),
	qr/query would be affected by row-level security/, 'row security is on');
is( evil(
		q(INSERT INTO seen (what) SELECT 'rows ' ||
		string_agg(n::text, ' ') FROM rows)),
	'', 'and the owner\'s');
is(sql($node, q(SELECT what FROM seen WHERE what LIKE 'rows%')),
	'rows 1', 'who sees no row of others');
is(evil('SET session_replication_role = replica'), '', 'a role that may set it');
is(evil($show), '', 'and then');
is(settings_of('alice'), $alice_settings, 'it is what it was');

# --- what stays in a process ---

# A connection, a function in pg_temp, a lock: nobody else's flush is in the
# process that has them.  There is one place for a worker from now on.
set('batcher.max_workers', '1');
wait_sql($node, 'SELECT count(*) <= 1 FROM batcher.worker');
sql(
	$node, q(
CREATE EXTENSION dblink;
GRANT EXECUTE ON FUNCTION dblink_connect_u(text, text) TO alice;
SELECT batch_alter_queue('super', flush_sql =>
	$$INSERT INTO seen (what) SELECT payload #>> '{}' || coalesce(' has ' ||
	array_to_string(public.dblink_get_connections(), ' '), '') FROM batch$$);
SET ROLE bob;
SELECT batch_alter_queue('bob', flush_sql =>
	$$INSERT INTO seen (what) SELECT payload #>> '{}' || coalesce(' has ' ||
	array_to_string(public.dblink_get_connections(), ' '), '') FROM batch$$);
));
my $connect = 'SELECT public.dblink_connect_u(\'leak\', \'user=alice host='
  . $node->host . ' port=' . $node->port . ' dbname=postgres\')';
is(evil($connect), '', 'alice leaves a connection');
is( evil(
		q(INSERT INTO public.seen (what) SELECT 'alice has ' ||
		array_to_string(public.dblink_get_connections(), ' '))),
	'', 'and looks for it');
is(sql($node, q(SELECT count(*) FROM seen WHERE what = 'alice has leak')),
	'1', 'it is still there');
is( evil(
		q(CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS 'SELECT 1')),
	'', 'she leaves a function in pg_temp');
is(evil('SELECT pg_advisory_lock(1), pg_advisory_lock_shared(2)'),
	'', 'and locks');
is(sql($node, q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')),
	'0', 'which are given back');
foreach my $other ([ 'bob', 'bob' ], [ 'super', 'postgres' ], [ 'bob', 'bob' ])
{
	others_go_on(@$other, "then comes @$other[1], who has no connection");
}
is( sql(
		$node, 'SELECT count(*) FROM (SELECT pid FROM seen GROUP BY pid
		HAVING count(DISTINCT who) > 1) s'),
	'0', 'no process has flushed for two roles');

# --- its own queue ---

# What a statement does to its own queue is done at its commit, and no row is
# flushed twice or lost by it.
sql(
	$node, q(
GRANT alice TO bob;
SET ROLE alice;
SELECT batch_create_queue('own',
	$$WITH d AS MATERIALIZED (SELECT a.run(payload #>> '{}') FROM batch)
	INSERT INTO seen (what) SELECT 'own' FROM d$$);
));
foreach my $command (
	q(SELECT batch_pause('own')),
	q(SELECT batch_grant('own', 'bob', 'manage')),
	q(SELECT batch_alter_queue('own', '{"flush_size": 3}')),
	q(SELECT batch_reset_stats('own')))
{
	sql($node, q(DELETE FROM seen WHERE what = 'own'));
	sql($node, "SELECT batch_enqueue('own', to_jsonb(\$q\$$command\$q\$::text))");
	wait_sql($node, q(SELECT count(*) = 1 FROM seen WHERE what = 'own'));
	wait_drained($node, 'own');
	sql($node, q(SELECT batch_resume('own')));
	is(sql($node, q(SELECT count(*) FROM seen WHERE what = 'own')),
		'1', "of its own queue: $command");
}
sql(
	$node, q(
DELETE FROM seen WHERE what = 'own';
SELECT batch_enqueue('own', to_jsonb('SELECT batch_drop_queue(''own'', true)'::text));
));
wait_sql($node, q(SELECT count(*) = 0 FROM batcher.queue WHERE queue = 'own'));
wait_sql($node, q(SELECT count(*) = 1 FROM seen WHERE what = 'own'));
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0',
	'it can drop its queue');
others_go_on('bob', 'bob', 'and others go on');

# --- the worker, and its time ---

# A superuser may end the worker that runs the statement; others go on.
sql(
	$node, q(
SELECT batch_create_queue('suicide',
	'SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60) FROM batch');
SELECT batch_enqueue('suicide', '1');
));
wait_sql($node, "SELECT batches_failed > 0 FROM batcher.stat_queue
	WHERE queue = 'suicide'");
others_go_on('bob', 'bob', 'a worker that is ended by its flush');
sql($node, q(SELECT batch_drop_queue('suicide', true)));

# alice would like to have the only worker for a day.
set('batcher.max_flush_timeout', '100ms');
($rc, $out, $err) = try_sql($node,
	q(SET ROLE alice; SELECT batch_alter_queue('evil',
	'{"flush_timeout": "24 h"}')));
like($err, qr/22023: option "flush_timeout" cannot be "24 h"/,
	'a flush_timeout over the limit is refused');
set('batcher.max_flush_timeout', '1h');
sql($node, q(SET ROLE alice; SELECT batch_alter_queue('evil',
	'{"flush_timeout": "1 h"}')));
set('batcher.max_flush_timeout', '100ms');
like(
	evil(q(SELECT set_config('statement_timeout', '0', false), pg_sleep(600))),
	qr/canceling statement due to statement timeout/,
	'one that was given before does not count');
others_go_on('bob', 'bob', 'so that others have their turn');

# She catches the cancel, and has ten seconds more.
my $stubborn = q(DO $x$ BEGIN LOOP BEGIN PERFORM pg_sleep(600);
	EXCEPTION WHEN query_canceled THEN END; END LOOP; END $x$);
my $json = $stubborn =~ s/\s+/ /gr;
my $started = time();
sql($node, qq(SELECT batch_enqueue('evil', \$q\$"$json"\$q\$)));
wait_sql($node, "SELECT is_flushing FROM batcher.status
	WHERE queue = 'evil'");
others_go_on('bob', 'bob', 'if she catches the cancel, too');
cmp_ok(time() - $started, '<', 30, 'in not much more than ten seconds');
sql($node, "SELECT batch_purge('evil')");

others_go_on('super', 'postgres', 'after all that, the superuser\'s queue goes on');
is(evil(q(INSERT INTO public.seen (what) VALUES ('still works'))),
	'', 'and hers');
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/,
	'nothing crashed');
done_testing();
