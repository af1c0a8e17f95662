
# ALTER EXTENSION UPDATE while rows wait and come and workers run: nothing is
# lost, held or flushed twice.  The update is one of this test's own, to a
# version 1.0.1 that adds columns to the tables, as a later version may: the
# library that runs is the old one until the server is restarted.
#
# Failure table: "ALTER EXTENSION UPDATE".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('update', "batcher.flush_interval = '10ms'");
my $collect = collect_statement();

# A file of the private installation; it is an offer to update and no more, so
# other tests may run meanwhile.
chomp(my $share = `pg_config --sharedir`);
my $script = "$share/extension/batcher--1.0--1.0.1.sql";

append_to_file(
	$script, q(
\echo Use "ALTER EXTENSION batcher UPDATE" to load this file. \quit
-- In the order in which who enqueues takes locks.
LOCK TABLE batcher.spool IN ACCESS EXCLUSIVE MODE;
ALTER TABLE batcher.queue_definition ADD COLUMN note text;
ALTER TABLE batcher.queue_definition ADD COLUMN rank integer DEFAULT 7;
ALTER TABLE batcher.spool ADD COLUMN note text;
ALTER TABLE batcher.spool ADD COLUMN rank integer;
DO $$
BEGIN
	FOR i IN 1 .. 16 LOOP
		EXECUTE 'ALTER TABLE batcher.queue_grant ADD COLUMN more_' || i
			|| ' integer DEFAULT 1';
		EXECUTE 'ALTER TABLE batcher.dead_row ADD COLUMN more_' || i
			|| ' integer DEFAULT 1';
	END LOOP;
END $$;
CREATE TABLE batcher.news (id integer PRIMARY KEY);
CREATE FUNCTION batcher.version() RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT '1.0.1' $$;
));
END { unlink $script if $script }

create_checker($node);
sql(
	$node, qq(
CREATE SEQUENCE serial;
SELECT batch_create_queue('served', \$\$$collect\$\$);
SELECT batch_create_queue('paused', \$\$$collect\$\$);
SELECT batch_create_queue('volatile', \$\$$collect\$\$,
	options => '{"durable": false}');
SELECT batch_pause('paused');
SELECT produce('paused', 300, 'k', nextval('serial'));
));

# In the middle of a flush, and of a transaction that has enqueued: the update
# waits for them.
arm($node, 'settle=wait');
sql($node, q(SELECT produce('served', 30, 'before', nextval('serial'))));
wait_point($node, 'settle');
disarm($node);

my $open = $node->background_psql('postgres');
$open->query_safe(
	q(BEGIN; SELECT produce('served', 30, 'open', nextval('serial'))));

my $load = start_load(
	$node, q(
SELECT produce(CASE (random() * 2)::int WHEN 1 THEN 'served' WHEN 2 THEN 'paused'
	ELSE 'volatile' END, 7, 'c' || :client_id, nextval('serial'));
), 4, 300);
my $update = $node->background_psql('postgres');

$update->query_until(qr/^go$/m,
	"\\echo go\nALTER EXTENSION batcher UPDATE TO '1.0.1';\n");
wait_sql(
	$node, q(
SELECT count(*) > 0 FROM pg_stat_activity
WHERE query LIKE 'ALTER EXTENSION%' AND wait_event_type = 'Lock'));
release_point($node, 'settle');
$open->query_safe('COMMIT');
$open->quit;
$update->query_safe('SELECT 1');
$update->quit;
is( sql(
		$node, q(
SELECT extversion, batcher.version() FROM pg_extension WHERE extname = 'batcher')),
	'1.0.1|1.0.1',
	'the extension is updated');

# The load goes on for a while.
my $n = sql($node, 'SELECT last_value FROM serial');

wait_sql($node, "SELECT last_value > $n + 50 FROM serial");
stop_load($load);
is( sql($node, q(SELECT string_agg(queue, ' ') FROM batcher.queue WHERE paused)),
	'paused', 'no queue is held that was not');
sql($node, q(SELECT batch_resume('paused')));
wait_drained($node, 'served', 'paused', 'volatile');
check_rows($node, 'updated while rows waited and came');

# Definitions keep what this library does not know.
is( sql(
		$node, q(
SELECT batch_alter_queue('served', '{"flush_interval": "5 ms"}');
SELECT batch_create_queue('new');
SELECT string_agg(rank::text, ' ') FROM batcher.queue_definition)),
	"\n\n7 7 7 7",
	'columns that are new have their values');
is( sql(
		$node, q(
SELECT batch_grant('new', 'public', 'enqueue');
SELECT grants FROM batcher.queue WHERE queue = 'new';
SELECT batch_create_queue('dead', 'SELECT payload::int FROM batch',
	options => '{"max_attempts": 1}');
SELECT batch_enqueue('dead', '"x"') > 0;
SELECT batch_flush('dead') IS NOT NULL;
SELECT payload FROM batcher.dead_letter;
SELECT batch_retry_dead('dead');
SELECT batch_drop_queue('dead', true);
)),
	qq(\n{"enqueue": ["public"]}\n\nt\nt\n"x"\n1\n),
	'grants and dead letters are read and written');

# And through a restart and a crash.
sql(
	$node, q(
SELECT batch_pause('served');
SELECT produce('served', 300, 'k', nextval('serial'));
));
$node->restart;
sql($node, q(SELECT produce('served', 30, 'k', nextval('serial'))));
$node->stop('immediate');
$node->start;
sql($node, q(SELECT batch_resume('served')));
wait_drained($node, 'served');
check_rows($node, 'and after a restart', "queue <> 'volatile'");

# More than this library can read past: it says so.
sql($node, 'ALTER TABLE batcher.spool ' . join ', ',
	map { "ADD COLUMN more_$_ integer" } 1 .. 20);
my ($rc, $out, $err) = try_sql($node, q(SELECT batch_enqueue('served', '{}');));
like(
	$err,
	qr/ERROR:  55000: the version of extension "batcher" does not fit the library that is loaded.*HINT:  Restart the server\./s,
	'a version that is too new is refused');
is(sql($node, q(SELECT sum(pending) FROM batcher.status)),
	'0', 'and nothing of it is there');

$node->stop;
unlike(slurp_file($node->logfile), qr/TRAP|PANIC|terminated by signal/,
	'nothing crashed');
done_testing();
