
# Owners and grants belong to roles, not to names, and other sessions and the
# worker follow their changes: renamed, dropped, given away, dumped, restored.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "batcher.flush_interval = '10ms'";
my $node = new_node('roles', $conf);
my $other = new_node('other', $conf);

sql(
	$node, q(
CREATE ROLE alice;
CREATE ROLE bob;
CREATE ROLE "ca rol";
CREATE ROLE dave;
CREATE ROLE erin;
CREATE ROLE twin IN ROLE alice, erin;
GRANT EXECUTE ON FUNCTION
	batch_create_queue(text, text, regclass, regtype, jsonb, boolean)
	TO alice, erin;
CREATE TABLE flushed (id int, role name DEFAULT current_user,
	pid int DEFAULT pg_backend_pid());
GRANT ALL ON flushed TO PUBLIC;
SET ROLE alice;
SELECT batch_create_queue('q',
	$$INSERT INTO flushed SELECT (payload->>'id')::int FROM batch$$);
SELECT batch_grant('q', 'bob', 'enqueue');
SELECT batch_grant('q', 'ca rol', 'manage');
SELECT batch_grant('q', 'dave', 'enqueue');
SELECT batch_grant('q', 'dave', 'manage');
SELECT batch_grant('q', 'public', 'listen');
SET ROLE erin;
SELECT batch_create_queue('lost',
	$$INSERT INTO flushed SELECT (payload->>'id')::int FROM batch$$);
SELECT batch_grant('lost', 'public', 'manage');
));

# --- other sessions ---

# A session of one role, which stays.
sub session_of
{
	my ($role) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query_safe("SET ROLE $role");
	return $session;
}

# What the session of a role says to an attempt to enqueue: the ticket, or
# the error.
sub attempt
{
	my ($session, $id) = @_;

	my $out = $session->query(qq(SELECT batch_enqueue('q', '{"id": $id}') > 0));
	my $err = $session->{stderr};
	$session->{stderr} = '';
	return $out . $err;
}

my $bob = session_of('bob');
is(attempt($bob, 1), 't', 'a session enqueues by a grant');
sql($node, q(SELECT batch_revoke('q', 'bob', 'enqueue')));
like(attempt($bob, 2), qr/permission denied for queue "q"/,
	'it sees that it was revoked');
sql($node, q(GRANT "ca rol" TO bob));
is(attempt($bob, 3), 't', 'and a grant to a role that it has come to have');
sql($node, q(REVOKE "ca rol" FROM bob));
like(attempt($bob, 4), qr/permission denied for queue "q"/, 'or has no more');
sql($node, q(SELECT batch_grant('q', 'bob', 'enqueue')));
is(attempt($bob, 5), 't', 'and a grant anew');
wait_sql($node, 'SELECT count(*) = 3 FROM flushed');
is( sql($node, 'SELECT string_agg(id::text, \' \' ORDER BY id) FROM flushed'),
	'1 3 5', 'what was refused is not there');

# --- given away ---

my $alice_pid = sql($node, 'SELECT pid FROM flushed WHERE id = 5');
is(sql($node, 'SELECT role FROM flushed WHERE id = 5'),
	'alice', 'flushed as the owner');
sql(
	$node, q(
SELECT batch_enqueue('lost', '{"id": 10}');
));
wait_sql($node, 'SELECT count(*) = 1 FROM flushed WHERE id = 10');
my $erin_pid = sql($node, 'SELECT pid FROM flushed WHERE id = 10');

# A flush that runs when the queue is given away is the old owner's, the next
# one the new owner's; each in the process of its role.
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; LOCK TABLE flushed IN EXCLUSIVE MODE');
sql($node, q(SELECT batch_enqueue('q', '{"id": 11}')));
wait_sql($node,
	"SELECT is_flushing FROM batcher.status WHERE queue = 'q'");
sql($node, q(SET ROLE twin; SELECT batch_change_owner('q', 'erin')));
sql($node, q(SELECT batch_enqueue('q', '{"id": 12}')));
$holder->query_safe('COMMIT');
wait_sql($node, 'SELECT count(*) = 2 FROM flushed WHERE id IN (11, 12)');
is( sql(
		$node, 'SELECT string_agg(id || role, \' \' ORDER BY id) FROM flushed
		WHERE id IN (11, 12)'),
	'11alice 12erin',
	'a flush that runs goes on as it began, the next one is the new owner\'s');
is( sql(
		$node, "SELECT pid = $alice_pid FROM flushed WHERE id = 11
		UNION ALL SELECT pid <> $alice_pid FROM flushed WHERE id = 12"),
	"t\nt", 'each in the process of its role');
is(sql($node, "SELECT pid = $erin_pid FROM flushed WHERE id = 12"),
	't', 'the one that the new owner has');
sql($node, q(SET ROLE twin; SELECT batch_change_owner('q', 'alice')));

# --- renamed, dropped, made again ---

sql(
	$node, q(
ALTER ROLE alice RENAME TO alicia;
ALTER ROLE bob RENAME TO "ro bert";
DROP OWNED BY "ca rol";
DROP ROLE "ca rol";
DROP OWNED BY erin;
DROP ROLE erin;
CREATE ROLE alice;
CREATE ROLE bob;
CREATE ROLE "ca rol";
CREATE ROLE erin;
));
is( sql(
		$node, q(SELECT queue, owner, grants FROM batcher.queue
		ORDER BY queue)),
	q(lost|erin|{"manage": ["public"]}
q|alicia|{"listen": ["public"], "manage": ["dave"], "enqueue": ["dave", "ro bert"]}),
	'names of today are shown, without who is gone');
is(attempt($bob, 21), 't', 'the role with the new name has its grant');
wait_sql($node, 'SELECT count(*) = 1 FROM flushed WHERE id = 21');
is(sql($node, 'SELECT role FROM flushed WHERE id = 21'),
	'alicia', 'the owner\'s new name is followed');
$bob->quit;
foreach my $role ('alice', 'bob', '"ca rol"', 'erin')
{
	my ($rc, $out, $err) = try_sql($node,
		qq(SET ROLE $role; SELECT batch_enqueue('q', '{"id": 22}')));
	like($err, qr/42501: permission denied for queue "q"/,
		"a new role of the old name has nothing: $role");
}
foreach my $role ('alice', 'erin', 'dave')
{
	my ($rc, $out, $err) = try_sql($node,
		qq(SET ROLE $role; SELECT batch_drop_queue('lost')));
	like($err, qr/42501: must be owner of queue "lost"/,
		"nor is it the owner: $role");
}

# --- dumped and restored ---

# The names are those of today, though nothing of batcher was called since.
sql($node, q(
SELECT batch_alter_queue('q', '{"flush_interval": "1 h"}');
SELECT batch_enqueue('q', '{"id": 31}');
SELECT batch_enqueue('lost', '{"id": 32}');
ALTER ROLE alicia RENAME TO alina;
ALTER ROLE "ro bert" RENAME TO rob;
));
$other->safe_psql('postgres', q(
CREATE ROLE a; CREATE ROLE b; CREATE ROLE c;
CREATE ROLE alice; CREATE ROLE alicia; CREATE ROLE alina;
CREATE ROLE bob; CREATE ROLE "ro bert"; CREATE ROLE rob;
CREATE ROLE "ca rol"; CREATE ROLE erin; CREATE ROLE stranger;
));
foreach my $way ('', '--inserts', '--column-inserts')
{
	my $db = 'way' . $way =~ tr/-//dr;
	my $file = $node->basedir . "/$db.sql";
	my ($rc, $out, $err);
	my $try = sub {
		my ($sql) = @_;
		my $error = '';

		$other->psql($db, $sql, stderr => \$error);
		return $error;
	};

	command_ok(
		[
			'pg_dump', '--no-privileges', ($way ? $way : ()),
			'-d', $node->connstr('postgres'), '-f', $file
		],
		"pg_dump $way");
	$other->safe_psql('postgres', "CREATE DATABASE $db");
	command_ok(
		[
			'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
			$other->connstr($db), '-f', $file
		],
		'restored');
	is( $other->safe_psql(
			$db, q(SELECT queue, paused, pause_reason, grants
			FROM batcher.queue ORDER BY queue)),
		qq(lost|t|restored|{"manage": ["public"]}
q|t|restored|{"listen": ["public"]}),
		'all queues are held, and grants by name are not in force');
	like($try->(q(SET ROLE rob; SELECT batch_enqueue('q', '{}'))),
		qr/permission denied for queue "q"/, 'also to the roles themselves');
	like(
		$try->(q(SET ROLE stranger; SELECT batch_resume('lost'))),
		qr/must be superuser to find queue "lost" its owner/,
		'who may manage does not find a queue its owner');
	like(
		$try->(q(SELECT batch_resume('q'))),
		qr/^[^\n]*WARNING:  role "dave" does not exist\n.*privilege "[a-z]+" for queue "q" is not restored.\n[^\n]*WARNING:  role "dave" does not exist\n[^\n]*$/,
		'batch_resume tells of what is missing');
	is( $other->safe_psql(
			$db, q(SELECT owner, paused, grants FROM batcher.queue
			WHERE queue = 'q')),
		'alina|f|{"listen": ["public"], "enqueue": ["rob"]}',
		'owner and grants are those of the names of today');
	is($try->(q(SET ROLE rob; SELECT batch_enqueue('q', '{"id": 33}'))),
		'', 'they are in force');
	foreach my $role ('alice', 'alicia', 'bob', '"ro bert"', '"ca rol"')
	{
		like($try->(qq(SET ROLE $role; SELECT batch_enqueue('q', '{}'))),
			qr/permission denied for queue "q"/, "for nobody else: $role");
	}
	$other->safe_psql($db, 'GRANT INSERT ON flushed TO alina, erin');
	is($other->safe_psql($db, q(SELECT batch_flush('q'))),
		'2', 'what was restored is flushed');
	is( $other->safe_psql($db,
			'SELECT DISTINCT role FROM flushed WHERE id IN (31, 33)'),
		'alina', 'as its owner');

	# The role that the other queue's owner was is nobody's name.
	like(
		$try->(q(SELECT batch_resume('lost'))),
		qr/owner "unknown \(OID=\d+\)" of queue "lost" does not exist/,
		'an owner that was gone is not found by name');
	$other->safe_psql(
		$db, q(SELECT batch_change_owner('lost', 'erin');
		SELECT batch_resume('lost')));
	ok( $other->poll_query_until(
			$db, q(SELECT role = 'erin' FROM flushed WHERE id = 32)),
		'the queue can be given another');
}

$_->stop foreach ($node, $other);
unlike(slurp_file($_->logfile), qr/PANIC|TRAP:|terminated by signal/,
	'nothing crashed') foreach ($node, $other);
done_testing();
