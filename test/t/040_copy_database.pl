
# CREATE DATABASE ... TEMPLATE of a database in which rows wait: in the copy all
# queues are held until batch_resume(), whoever comes first, and the original
# goes on.  Renaming or moving a database holds nothing.
#
# Failure table: "copy of a database".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'copy', q(
batcher.flush_interval = '10ms'
batcher.max_workers = 8
allow_in_place_tablespaces = on
));

sub db_sql
{
	my ($db, $sql) = @_;

	return $node->safe_psql($db, $sql, timeout => 60);
}

my $held = q(SELECT string_agg(concat_ws(' ', queue, paused, pause_reason), ', '
	ORDER BY queue) FROM batcher.queue);
my $all_held =
  'empty t restored, paused t restored, q t restored, volatile t restored';
my $rows = 'SELECT count(*), count(DISTINCT id), min(id), max(id) FROM done';

# Queues, of which one has no rows; 20 rows wait, and only time lets them
# wait: 10 in "q", the others in "paused".  Those of "volatile" are in memory
# only.
db_sql('postgres', 'CREATE DATABASE original');
db_sql(
	'original', q(
CREATE EXTENSION batcher;
CREATE TABLE done (id int);
SELECT batch_create_queue('q',
	$$INSERT INTO done SELECT (payload->>'id')::int FROM batch$$,
	options => '{"flush_interval": "1 h"}');
SELECT batch_create_queue('paused',
	$$INSERT INTO done SELECT (payload->>'id')::int FROM batch$$);
SELECT batch_create_queue('empty', 'DELETE FROM done USING batch');
CREATE TABLE volatile_done (id int);
SELECT batch_create_queue('volatile',
	$$INSERT INTO volatile_done SELECT (payload->>'id')::int FROM batch$$,
	options => '{"durable": false, "flush_interval": "1 h"}');
SELECT batch_enqueue_many('volatile', '{"{\"id\": 1}", "{\"id\": 2}"}');
SELECT batch_pause('paused');
SELECT batch_enqueue_many('q', array_agg(jsonb_build_object('id', i)))
FROM generate_series(1, 10) i;
SELECT batch_enqueue_many('paused', array_agg(jsonb_build_object('id', i)))
FROM generate_series(11, 20) i;
));
my $last_ticket =
  db_sql('original', 'SELECT max(ticket) FROM batcher.pending');

# Have the one place for a worker taken by a worker of another database, which
# stops in the middle of a flush.
sub take_place
{
	arm($node, 'statement=wait');
	sql($node, q(SELECT batch_enqueue('busy', '{}')));
	wait_point($node, 'statement');
	sql($node, 'ALTER SYSTEM SET batcher.max_workers = 1');
	disarm($node);
	wait_sql(
		$node, q(
SELECT string_agg(datname, ' ') = 'postgres' FROM pg_stat_activity
WHERE backend_type = 'batcher worker'));
	return;
}

# Let it go, and have places for all.
sub give_places
{
	release_point($node, 'statement');
	sql($node,
		'ALTER SYSTEM RESET batcher.max_workers; SELECT pg_reload_conf()');
	return;
}

sql(
	$node, q(
CREATE TABLE elsewhere (id int);
SELECT batch_create_queue('busy', 'INSERT INTO elsewhere SELECT 1 FROM batch');
));
take_place();

my %how = (
	wal_log => 'STRATEGY wal_log',
	file_copy => 'STRATEGY file_copy',
	of_copy => '');
foreach my $db ('wal_log', 'file_copy', 'of_copy')
{
	my $template = $db eq 'of_copy' ? 'wal_log' : 'original';

	db_sql('postgres', "CREATE DATABASE $db TEMPLATE $template $how{$db}");
	is(db_sql($db, $held),
		$all_held,
		"$db: all queues are held at once");
	next if $db eq 'wal_log';
	cmp_ok(
		db_sql($db, q(SELECT batch_enqueue('q', '{"id": 21}'))),
		'>', $last_ticket, "$db: rows can be enqueued before a worker comes");
}
is( sql(
		$node, q(
SELECT string_agg(DISTINCT datname, ' ') FROM pg_stat_activity
WHERE backend_type = 'batcher worker')),
	'postgres', 'no worker has seen a copy yet');
give_places();
foreach my $db ('wal_log', 'file_copy', 'of_copy')
{
	my $n = $db eq 'wal_log' ? 20 : 21;

	wait_sql(
		$node, qq(
SELECT count(*) > 0 FROM pg_stat_activity
WHERE backend_type = 'batcher worker' AND datname = '$db'));
	is(db_sql($db, 'SELECT batch_flush()'), '0', "$db: flushes nothing");
	is(db_sql($db, 'SELECT count(*) FROM batcher.pending'),
		$n, "$db: its rows wait");
	is(db_sql($db, 'SELECT count(*) FROM done'), '0', "$db: none was flushed");
}
is(db_sql('original', $held), 'empty f, paused t paused, q f, volatile f',
	'the original is as it was');
is(db_sql('original', 'SELECT batch_flush()'), '12', 'and flushes');
is(db_sql('original', $rows), '10|10|1|10', 'its rows, once');
is(db_sql('original', 'SELECT array_agg(id ORDER BY id) FROM volatile_done'),
	'{1,2}', 'those in memory only, too');

# What is changed there meanwhile does not let it go; a queue that is new is
# not held.
db_sql(
	'of_copy', q(
SELECT batch_alter_queue('q', '{"flush_interval": "5 ms"}');
SELECT batch_pause('q');
SELECT batch_create_queue('new',
	$$INSERT INTO done SELECT (payload->>'id')::int FROM batch$$);
SELECT batch_enqueue('new', '{"id": 99}');
));
ok($node->poll_query_until('of_copy', 'SELECT count(*) = 1 FROM done'),
	'a new queue of a copy is served');
is(db_sql('of_copy', $held),
	'empty t restored, new f, paused t restored, q t restored, '
	  . 'volatile t restored',
	'the others are held after ALTER and pause');

# Held and not held survive what does not copy.
db_sql(
	'postgres', q(
ALTER DATABASE file_copy RENAME TO renamed_copy;
ALTER DATABASE original RENAME TO renamed));
db_sql('postgres', q(CREATE TABLESPACE ts LOCATION ''));
db_sql('postgres', 'ALTER DATABASE renamed SET TABLESPACE ts');
db_sql('renamed', q(SELECT batch_enqueue('q', '{"id": 31}')));
$node->stop('immediate');
$node->start;
is(db_sql('renamed_copy', $held),
	$all_held,
	'a copy is held after RENAME and a crash');
is(db_sql('renamed', $held), 'empty f, paused t paused, q f, volatile f',
	'the original is not, after RENAME, SET TABLESPACE and a crash');
is(db_sql('renamed', 'SELECT batch_flush()'), '1', 'it flushes');

# Let go, one queue by name, then all.  A worker has seen that it was held, and
# none is there when it is resumed: one comes for it.
$node->poll_query_until('renamed_copy',
	q(SELECT spilled = 11 FROM batcher.status WHERE queue = 'q'))
  or die 'no worker has looked through the spool of the copy';
take_place();
db_sql('renamed_copy',
	q(SELECT batch_alter_queue('q', '{"flush_interval": "10 ms"}')));
db_sql('renamed_copy', q(SELECT batch_resume('q')));
release_point($node, 'statement');
ok($node->poll_query_until('renamed_copy', 'SELECT count(*) > 0 FROM done'),
	'batch_resume brings a worker, though another has the only place');
db_sql('renamed_copy', q(SELECT batch_flush('q')));
is(db_sql('renamed_copy', 'SELECT count(*) FROM done'),
	'11', 'the copied rows are flushed, and the new one');
sql($node, 'ALTER SYSTEM RESET batcher.max_workers; SELECT pg_reload_conf()');
is(db_sql('renamed_copy', $held),
	'empty t restored, paused t restored, q f, volatile t restored',
	'the others are held');
db_sql('renamed_copy', 'SELECT batch_resume()');
ok( $node->poll_query_until('renamed_copy',
		'SELECT count(*) = 21 FROM done'),
	'batch_resume(): all are flushed');
is(db_sql('renamed_copy', $rows), '21|21|1|21', 'once');
is(db_sql('renamed_copy', 'SELECT count(*) FROM volatile_done'),
	'0', 'those in memory only are not in the copy');
db_sql('renamed_copy', q(SELECT batch_enqueue('volatile', '{"id": 3}')));
is(db_sql('renamed_copy', q(SELECT batch_flush('volatile'))),
	'1', 'where others are flushed');
is(db_sql('wal_log', q(SELECT batch_purge('q'))),
	'10', 'or they are thrown away');
db_sql('wal_log', 'SELECT batch_resume()');
ok($node->poll_query_until('wal_log', 'SELECT count(*) = 10 FROM done'),
	'then only the other rows are flushed');
is(db_sql('wal_log', $rows), '10|10|11|20', 'once');

# A copy of a database whose queues were let go is held again; the database
# that was copied is not.
db_sql('postgres', 'CREATE DATABASE again TEMPLATE renamed_copy');
is(db_sql('again', $held),
	$all_held,
	'a copy of a resumed copy is held');
is(db_sql('renamed_copy', $held),
	'empty f, paused f, q f, volatile f', 'its original is not');

$node->stop;
done_testing();
