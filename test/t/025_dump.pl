
# Dump and restore: the queues and their waiting rows are in the dump; what is
# restored is held until batch_resume(), and flushed once then.  Logical
# replication of all tables carries none of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "batcher.flush_interval = '10ms'";
my $source =
  new_node('source', $conf, init => { allows_streaming => 'logical' });
my $dest = new_node('dest', $conf);
my $dumps = $source->basedir;

# --- what is dumped ---

# On the other node the owner is to have another OID.
$dest->safe_psql('postgres', 'CREATE ROLE someone; CREATE ROLE owner');
sql(
	$source, q(
CREATE ROLE owner;
CREATE TABLE target (id int PRIMARY KEY, queue text, by text);
GRANT INSERT ON target TO owner;
GRANT EXECUTE ON FUNCTION
	batch_create_queue(text, text, regclass, regtype, jsonb, boolean)
	TO owner;
SELECT batch_create_queue('paused',
	$$INSERT INTO target SELECT (payload->>'id')::int, 'paused',
		batch_enqueued_by FROM batch$$,
	options => '{"max_batch_size": 7, "notify_channel": "ch"}');
SELECT batch_pause('paused');
SELECT batch_create_queue('volatile',
	$$INSERT INTO target SELECT (payload->>'id')::int, 'volatile',
		batch_enqueued_by FROM batch$$,
	options => '{"durable": false, "flush_interval": "1 h"}');
SELECT batch_create_queue('announce',
	options => '{"flush_interval": "1 h"}');
SET ROLE owner;
SELECT batch_create_queue('q',
	$$INSERT INTO target SELECT (payload->>'id')::int, 'q',
		batch_enqueued_by FROM batch$$,
	options => '{"flush_interval": "1 h"}');
SELECT count(batch_enqueue('q', jsonb_build_object('id', i, 'text',
	E'\\ \t "x" \u00e9')::jsonb, key => 'k' || i, topic => 't', priority => i))
FROM generate_series(1, 100) i;
RESET ROLE;
SELECT batch_enqueue_many('paused', array_agg(jsonb_build_object('id', i)))
FROM generate_series(101, 200) i;
SELECT batch_enqueue('volatile', '{"id": 201}');
SELECT batch_enqueue('announce', '{"id": 202}');
));

# One was flushed already, and some rows of one tuple too.
sql($source, q(SELECT batch_alter_queue('paused', '{"flush_interval": "1 h"}')));

my $pending = q(
SELECT md5(string_agg(p::text, ',' ORDER BY ticket)), count(*)
FROM (SELECT queue, ticket, key, topic, priority, payload, attempts, durable,
	enqueued_at, enqueued_by FROM batcher.pending WHERE durable) p);
my $definitions = q(
SELECT string_agg(q::text, ',' ORDER BY queue)
FROM (SELECT queue, owner, flush_sql, search_path, options, created_at
	FROM batcher.queue) q);
my $waiting = sql($source, $pending);
my $defined = sql($source, $definitions);
my $last_ticket = sql($source, 'SELECT max(ticket) FROM batcher.pending');
like($waiting, qr/\|201$/, '201 durable rows wait');

command_ok(
	[
		'pg_dump', '-d', $source->connstr('postgres'),
		'-f', "$dumps/plain.sql"
	],
	'pg_dump, plain');
command_ok(
	[
		'pg_dump', '-Fc', '-d', $source->connstr('postgres'),
		'-f', "$dumps/custom.dump"
	],
	'pg_dump, custom');
command_ok(
	[
		'pg_dump', '-Fd', '-j2', '-d', $source->connstr('postgres'),
		'-f', "$dumps/directory"
	],
	'pg_dump, directory');

# Queues and rows are data of tables: where no data is dumped, or not that of
# the spool, they are not.
foreach my $case (
	[ 'schema', 0, '--schema-only' ],
	[ 'no_queues', 0, '--exclude-table-data', 'batcher.*' ],
	[ 'no_rows', 4, '--exclude-table-data', 'batcher.spool' ])
{
	my ($db, $queues, @options) = @$case;

	$dest->safe_psql('postgres', "CREATE DATABASE $db");
	command_ok(
		[
			'pg_dump', @options, '-d', $source->connstr('postgres'),
			'-f', "$dumps/$db.sql"
		],
		"pg_dump @options");
	command_ok(
		[
			'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
			$dest->connstr($db), '-f', "$dumps/$db.sql"
		],
		'is restored');
	is( $dest->safe_psql(
			$db, q(SELECT count(*) FROM batcher.queue
			UNION ALL SELECT count(*) FROM batcher.pending)),
		"$queues\n0",
		"with $queues queues and no rows");
}

# The source goes on.
is(sql($source, "SELECT batch_flush('q')"), '100', 'the source flushes');

# --- what is restored ---

# Queues are held, rows wait, nothing is flushed; then everything is, once.
sub check_restored
{
	my ($node, $db, $what) = @_;
	my $query = sub { $node->safe_psql($db, shift, timeout => 60) };

	is($query->($definitions), $defined, "$what: the definitions are there");
	is($query->($pending), $waiting, "$what: the waiting rows are there");
	is( $query->(
			q(SELECT DISTINCT paused, pause_reason FROM batcher.queue)),
		't|restored', "$what: every queue is held");
	ok( $node->poll_query_until('postgres',
			"SELECT count(*) > 0 FROM batcher.worker WHERE database = '$db'"),
		"$what: a worker is there");
	is($query->('SELECT batch_flush()'), '0', "$what: flushes nothing");
	is($query->('SELECT count(*) FROM target'), '0', "$what: nothing is flushed");
	is( $query->('SELECT sum(pending) FROM batcher.status'),
		'201', "$what: batcher.status shows what waits");

	# More of them, with numbers of their own.
	my $ticket = $query->(q(SELECT batch_enqueue('q', '{"id": 203}')));
	cmp_ok($ticket, '>', $last_ticket, "$what: tickets do not repeat");
	is($query->('SELECT count(*) FROM batcher.pending'),
		'202', "$what: it waits too");

	# One of them by name, then all.
	$query->(q(SELECT batch_resume('q')));
	is( $query->('SELECT owner, paused FROM batcher.queue WHERE queue = \'q\''),
		'owner|f', "$what: a queue is resumed with its owner");
	is($query->(q(SELECT batch_flush('q'))),
		'101', "$what: its rows are flushed");
	is( $query->('SELECT count(*), count(DISTINCT queue), min(by) FROM target'),
		'101|1|owner', "$what: they are there");
	$query->('SELECT batch_resume()');
	$query->('SELECT batch_flush()');
	is( $query->('SELECT count(*), count(DISTINCT id), max(id) FROM target'),
		'201|201|203', "$what: everything is flushed once");
	is( $query->('SELECT sum(pending) FROM batcher.status'),
		'0', "$what: nothing waits any more");
	is($query->('SELECT count(*) FROM batcher.spool'),
		'0', "$what: nothing is left in the spool");
	return;
}

$dest->safe_psql('postgres', "CREATE DATABASE $_")
  foreach qw(plain custom directory single);
command_ok(
	[
		'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
		$dest->connstr('plain'), '-f', "$dumps/plain.sql"
	],
	'restore by psql');
check_restored($dest, 'plain', 'plain');
command_ok(
	[
		'pg_restore', '--exit-on-error', '-d',
		$dest->connstr('custom'), "$dumps/custom.dump"
	],
	'pg_restore');
check_restored($dest, 'custom', 'custom');
command_ok(
	[
		'pg_restore', '-j2', '--exit-on-error', '-d',
		$dest->connstr('directory'), "$dumps/directory"
	],
	'pg_restore -j2');
check_restored($dest, 'directory', 'directory');
command_ok(
	[
		'pg_restore', '--single-transaction', '-d',
		$dest->connstr('single'), "$dumps/custom.dump"
	],
	'pg_restore --single-transaction');
check_restored($dest, 'single', 'single transaction');

# Into another database of the same server, whose memory is the rows' home.
$source->safe_psql('postgres', 'CREATE DATABASE again');
command_ok(
	[
		'pg_restore', '--exit-on-error', '-d',
		$source->connstr('again'), "$dumps/custom.dump"
	],
	'restore into the same server');
check_restored($source, 'again', 'same server');

# A held database is held after a restart, too.
$dest->safe_psql('postgres', 'CREATE DATABASE held');
command_ok(
	[
		'pg_restore', '--exit-on-error', '-d',
		$dest->connstr('held'), "$dumps/custom.dump"
	],
	'another one');
$dest->restart;
check_restored($dest, 'held', 'after a restart');

# A worker that has read the definitions just before finds what is restored.
my $early = new_node('early', $conf);
$early->safe_psql('postgres',
	'CREATE ROLE someone; CREATE ROLE owner; SELECT batch_flush()');
arm($early, 'definitions-read=wait');
# the worker that is there reads them with the setting
wait_point($early, 'definitions-read');
release_point($early, 'definitions-read');
$early->safe_psql('postgres', 'CREATE DATABASE early');
$early->safe_psql('early', 'CREATE EXTENSION batcher');
wait_point($early, 'definitions-read');
disarm($early);
command_ok(
	[
		'pg_restore', '--exit-on-error', '-d',
		$early->connstr('early'), "$dumps/custom.dump"
	],
	'one that a worker is in');
release_point($early, 'definitions-read');
check_restored($early, 'early', 'restored under a worker');
$early->stop;

# An owner that is not there is named, and found when it is.
$dest->safe_psql('postgres',
	'CREATE DATABASE orphan; ALTER ROLE owner RENAME TO former_owner');
command_ok(
	[
		'pg_restore', '--no-privileges', '--exit-on-error', '-d',
		$dest->connstr('orphan'), "$dumps/custom.dump"
	],
	'pg_restore where the owner is missing');
my ($out, $err) = ('', '');
$dest->psql('orphan', q(SELECT batch_resume('q')), stderr => \$err);
like($err, qr/owner "owner" of queue "q" does not exist/,
	'its queue cannot be resumed');
$dest->safe_psql('postgres', 'CREATE ROLE owner');
$dest->safe_psql('orphan',
	q(GRANT INSERT ON target TO owner; SELECT batch_resume('q')));
is($dest->safe_psql('orphan', q(SELECT batch_flush('q'))),
	'100', 'until the role is there');

# --- rows that are restored into a database that has its queues ---

sql($source, q(SELECT batch_resume('paused')));
sql($source, 'SELECT batch_flush()');
is(sql($source, 'SELECT count(*) FROM target'),
	'201', 'the source flushes the rest');
sql(
	$source, q(
SELECT batch_enqueue('q', '{"id": 302}');
CREATE TEMP TABLE saved AS SELECT * FROM batcher.spool;
SELECT batch_flush('q');
INSERT INTO batcher.spool SELECT * FROM saved;
));
is( sql(
		$source, q(SELECT DISTINCT paused, pause_reason FROM batcher.queue)),
	't|restored', 'rows that arrive hold all queues');
sql($source, 'DELETE FROM target WHERE id = 302; SELECT batch_resume()');
sql($source, 'SELECT batch_flush()');
is(sql($source, 'SELECT count(*) FROM target WHERE id = 302'),
	'1', 'and are flushed after batch_resume()');

# --- a publication of all tables ---

$source->safe_psql('postgres', 'CREATE DATABASE pub');
$dest->safe_psql('postgres', 'CREATE DATABASE sub');
my $schema = q(
CREATE EXTENSION batcher;
CREATE TABLE target (id int PRIMARY KEY, node text);
);
my $queue = q(
SELECT batch_create_queue('q', $$INSERT INTO target
	SELECT (payload->>'id')::int, '%s' FROM batch$$);
SELECT batch_create_queue('held', $$INSERT INTO target
	SELECT (payload->>'id')::int, '%s' FROM batch$$);
SELECT batch_pause('held');
);
$source->safe_psql('pub', $schema . sprintf($queue, 'pub', 'pub'));
$dest->safe_psql('sub', $schema . sprintf($queue, 'sub', 'sub'));
$source->safe_psql(
	'pub', q(
SELECT batch_enqueue('held', '{"id": 1}');
CREATE PUBLICATION p FOR ALL TABLES));
$dest->safe_psql('sub',
	"CREATE SUBSCRIPTION s CONNECTION 'host="
	  . $source->host . ' port='
	  . $source->port
	  . " dbname=pub' PUBLICATION p");
$dest->wait_for_subscription_sync($source, 's', 'sub');
$source->safe_psql(
	'pub', q(
SELECT batch_enqueue('q', '{"id": 2}');
SELECT batch_enqueue('held', '{"id": 3}');
SELECT batch_flush('q');
));
is( $source->safe_psql('pub', 'SELECT count(*) FROM target'),
	'1', 'the publisher enqueues and flushes');
$source->wait_for_catchup('s');
is( $dest->safe_psql('sub', 'SELECT id, node FROM target'),
	'2|pub', 'what was flushed is replicated');
is( $dest->safe_psql(
		'sub', q(SELECT count(*) FROM batcher.spool
		UNION ALL SELECT sum(pending) FROM batcher.status)),
	"0\n0", 'the rows that wait are not');

# Definitions are those of each node.
my $paused = q(SELECT string_agg(concat_ws(' ', queue, paused, pause_reason), ', '
	ORDER BY queue) FROM batcher.queue);
my $before = $dest->safe_psql('sub', $paused);
is($before, 'held t paused, q f', 'the queues of the subscriber are its own');
$source->safe_psql(
	'pub', q(
SELECT batch_create_queue('more');
SELECT batch_pause('q');
SELECT batch_alter_queue('q', '{"flush_interval": "1 h"}');
SELECT batch_resume('held');
SELECT batch_flush('held');
SELECT batch_drop_queue('held');
));
$source->wait_for_catchup('s');
is($dest->safe_psql('sub', $paused),
	$before, 'changes of the publisher do not reach the subscriber');
$dest->safe_psql('sub', q(SELECT batch_enqueue('q', '{"id": 4}')));
ok( $dest->poll_query_until('sub',
		q(SELECT count(*) = 1 FROM target WHERE node = 'sub')),
	'the subscriber enqueues and flushes by itself');
is( $dest->safe_psql('sub',
		'SELECT string_agg(id || node, \' \' ORDER BY id) FROM target'),
	'1pub 2pub 3pub 4sub', 'and has all rows once');
is( $dest->safe_psql('sub',
		q(SELECT count(*) FROM pg_stat_subscription_stats
		WHERE apply_error_count + sync_error_count > 0)),
	'0', 'without an error of the subscription');

# A TRUNCATE that comes all the same, because somebody has taken the triggers out
# of the way at the publisher, is refused by the subscriber, which goes on when
# it is told to skip it.
my $kept = q(SELECT (SELECT count(*) FROM batcher.queue_definition),
	(SELECT count(*) FROM batcher.queue_grant),
	(SELECT count(*) FROM batcher.spool),
	(SELECT count(*) FROM batcher.dead_row));
my $id = 10;

$dest->append_conf('postgresql.conf', "wal_retrieve_retry_interval = '100ms'");
$dest->reload;
$dest->safe_psql(
	'sub', q(
SELECT batch_create_queue('broken', 'SELECT 1 / payload::int FROM batch',
	options => '{"max_attempts": 1}');
SELECT batch_grant('q', 'someone', 'enqueue');
SELECT batch_enqueue('held', '{"id": 5}');
SELECT batch_wait('broken', batch_enqueue('broken', '0'));
));
is($dest->safe_psql('sub', $kept), '3|1|1|1', 'what the subscriber has');
foreach my $table ('spool', 'dead_row', 'queue_grant', 'queue_definition')
{
	my $position = log_position($dest);
	my $lsn;

	$source->safe_psql(
		'pub', qq(
ALTER TABLE batcher.$table DISABLE TRIGGER USER;
TRUNCATE batcher.$table;
INSERT INTO target VALUES ($id, 'pub');
));
	$dest->wait_for_log(
		qr/ERROR: .* table "batcher.$table" cannot be changed directly.*message type "TRUNCATE".* finished at \S+/s,
		$position);
	($lsn) = slurp_file($dest->logfile, $position) =~
	  /message type "TRUNCATE".* finished at (\S+)/;
	is($dest->safe_psql('sub', $kept),
		'3|1|1|1', "TRUNCATE of $table is refused");
	$dest->safe_psql('sub', "ALTER SUBSCRIPTION s SKIP (lsn = '$lsn')");
	$source->wait_for_catchup('s');
	is($dest->safe_psql('sub', "SELECT node FROM target WHERE id = $id"),
		'pub', 'it is skipped, and what comes after it is replicated');
	$id++;
}
is($dest->safe_psql('sub', $kept), '3|1|1|1', 'the subscriber has lost nothing');
$dest->safe_psql('sub', q(SELECT batch_resume('held')));
ok( $dest->poll_query_until('sub',
		q(SELECT node = 'sub' FROM target WHERE id = 5)),
	'and flushes what has waited');

$dest->safe_psql('sub', 'DROP SUBSCRIPTION s');
$_->stop foreach ($source, $dest);
unlike(slurp_file($_->logfile), qr/PANIC|TRAP:|terminated by signal/,
	'nothing crashed') foreach ($source, $dest);
done_testing();
