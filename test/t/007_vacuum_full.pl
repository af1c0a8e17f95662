
# The spool is rewritten under rows that wait, and under those that come.
#
# Failure table: "VACUUM FULL or CLUSTER of the spool".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('vacuum_full', "batcher.flush_interval = '20ms'");
my $collect = collect_statement();

create_checker($node);
sql(
	$node, qq(
CREATE SEQUENCE serial;
SELECT batch_create_queue('a', \$\$$collect\$\$, options => '{"max_batch_size": 30}');
SELECT batch_create_queue('b', \$\$$collect\$\$);
));

# Ways to give the spool another file.  An index of the spool would not be kept
# up to date, so CLUSTER has one for as long as it runs.  It is moved to and fro
# between two tablespaces.
sql($node, "CREATE TABLESPACE other LOCATION '"
	  . PostgreSQL::Test::Utils::tempdir . "'");
my %rewrite = (
	'VACUUM FULL' => 'VACUUM FULL batcher.spool',
	'CLUSTER' => q(
BEGIN;
CREATE INDEX spool_number ON batcher.spool (number DESC);
CLUSTER batcher.spool USING spool_number;
DROP INDEX batcher.spool_number;
COMMIT;),
	'ALTER TABLE' => q(
ALTER TABLE batcher.spool SET UNLOGGED;
ALTER TABLE batcher.spool SET LOGGED;),
	'SET TABLESPACE' => q(
SELECT CASE reltablespace WHEN 0 THEN 'other' ELSE 'pg_default' END AS place
FROM pg_class WHERE oid = 'batcher.spool'::regclass \gset
ALTER TABLE batcher.spool SET TABLESPACE :place;));

sub file_node
{
	return sql($node, q(SELECT pg_relation_filenode('batcher.spool')));
}

sub produce
{
	my ($count) = @_;

	sql(
		$node, join '',
		map { qq(
SELECT produce('a', 10, 'k1', nextval('serial'));
SELECT produce('b', 10, 'k1', nextval('serial'));
SELECT produce('a', 3, 'k2', nextval('serial'));) } 1 .. $count);
	return;
}

# Rows wait in a paused queue.
foreach my $what (sort keys %rewrite)
{
	my $before;
	my $pending = q(
SELECT queue, count(*), count(DISTINCT ticket) FROM batcher.pending
GROUP BY 1 ORDER BY 1);
	my $waiting;

	sql($node, 'SELECT batch_pause()');
	produce(20);
	$before = file_node();
	$waiting = sql($node, $pending);
	sql($node, $rewrite{$what});
	isnt(file_node(), $before, "$what: the spool has another file");
	is(sql($node, $pending), $waiting, "$what: batcher.pending shows the same");
	produce(10);
	sql($node, 'SELECT batch_resume()');
	produce(10);
	wait_drained($node, 'a', 'b');
	check_rows($node, "$what while rows waited");
	check_order($node, "$what while rows waited: each key in order");
}

# Rows that wait in a paused queue, and one that came after the rewrite, are
# thrown away.
sql(
	$node, qq(
SELECT batch_create_queue('e', 'SELECT FROM batch');
SELECT batch_pause('e');
SELECT batch_enqueue('e', '1');
$rewrite{'VACUUM FULL'};
SELECT batch_enqueue('e', '2');
));
is(sql($node, q(SELECT batch_purge('e'))),
	'2', 'rows are purged after a rewrite');
sql($node, q(SELECT batch_drop_queue('e')));

# A queue that is not durable has no part in it: its rows stay in memory.
sql(
	$node, qq(
SELECT batch_create_queue('v', 'SELECT FROM batch', options => '{"durable": false}');
$rewrite{'VACUUM FULL'};
SELECT batch_enqueue('v', '1');
SELECT batch_flush('v');
$rewrite{'VACUUM FULL'};
SELECT batch_pause('v');
SELECT batch_enqueue('b', jsonb_build_object('q', 'b', 'id', gen_random_uuid()));
SELECT batch_flush('b');
SELECT batch_enqueue('v', '2');
));
is( sql(
		$node,
		q(SELECT rows_enqueued, rows_spilled, (SELECT count(*) FROM batcher.spool)
		FROM batcher.stat_queue WHERE queue = 'v')),
	'2|0|0',
	'rows that are not durable are not spilled after a rewrite');
sql($node, q(SELECT batch_drop_queue('v', true); DELETE FROM collected
	WHERE id NOT IN (SELECT id FROM acknowledged)));

# Rewritten twice, and with a crash after it.
sql($node, 'SELECT batch_pause()');
produce(10);
sql($node, $rewrite{'VACUUM FULL'});
produce(10);
sql($node, $rewrite{'CLUSTER'});
produce(10);
$node->stop('immediate');
$node->start;
sql($node, $rewrite{'VACUUM FULL'});
produce(10);
sql($node, 'SELECT batch_resume()');
wait_drained($node, 'a', 'b');
check_rows($node, 'twice, and a crash');
check_order($node, "twice, and a crash: each key in order");

# While a flush is blocked after its claim: the rewrite waits for it.
my $lock = $node->background_psql('postgres');
my $vacuum = $node->background_psql('postgres');
$lock->query_safe('BEGIN; LOCK TABLE collected IN EXCLUSIVE MODE');
sql($node, q(
SELECT count(batch_enqueue('b', jsonb_build_object('q', 'b', 'id', id), NULL))
FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, 100)) s;));
wait_sql($node, q(SELECT is_flushing FROM batcher.status WHERE queue = 'b'));
$vacuum->query_until(qr/^go$/m, "\\echo go\nVACUUM FULL batcher.spool;\n");
wait_sql(
	$node, q(
SELECT count(*) > 0 FROM pg_stat_activity
WHERE query LIKE 'VACUUM FULL%' AND wait_event_type = 'Lock'));
$lock->query_safe('COMMIT');
$vacuum->query_safe('SELECT 1');
$lock->quit;
$vacuum->quit;
wait_drained($node, 'b');
is(sql($node, q(SELECT count(*), count(DISTINCT id) FROM collected
WHERE id NOT IN (SELECT id FROM acknowledged))),
	'100|100', 'rewritten during a flush: each row was flushed once');
sql($node, q(DELETE FROM collected WHERE id NOT IN (SELECT id FROM acknowledged)));

# One queue has rows at hand that were read back before the table was rewritten,
# and another one notices it.  The second of three tuples keeps its place.
create_order_queue($node, 'c', 'c_flushed',
	'{"max_attempts": 1000, "breaker_threshold": 1000, "retry_delay": "50 ms"}');
create_order_queue($node, 'd', 'd_flushed', '{}');
sql($node, q(
VACUUM FULL batcher.spool;
SELECT batch_pause();
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'not yet';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON c_flushed
	FOR EACH ROW EXECUTE FUNCTION refuse();
SELECT batch_enqueue('d', '{"n": 1}', 'k');
SELECT batch_enqueue('c', '{"n": 1}', 'k');
SELECT batch_enqueue('c', '{"n": 2}', 'k');
SELECT batch_enqueue('c', '{"n": 3}', 'k');
SELECT batch_enqueue('d', '{"n": 2}', 'k');
));
$node->stop('immediate');
$node->start;
sql($node, q(SELECT batch_resume('c')));
wait_sql(
	$node, q(
SELECT consecutive_failures >= 3 FROM batcher.status WHERE queue = 'c'));
sql($node, $rewrite{'CLUSTER'});
sql($node, q(SELECT batch_resume('d'); SELECT batch_flush('d');));
is(sql($node, q(SELECT string_agg(n::text, ' ' ORDER BY pos) FROM d_flushed)),
	'1 2', 'the queue that noticed it');
sql($node, 'DROP TRIGGER refuse ON c_flushed');
wait_drained($node, 'c');
is(sql($node, q(SELECT string_agg(n::text, ' ' ORDER BY pos) FROM c_flushed)),
	'1 2 3', 'the queue that had read rows back before');
sql($node, 'SELECT batch_resume()');

# While producers run.
my $load = start_load(
	$node, q(
\set queue random(1, 2)
SELECT produce(CASE :queue WHEN 1 THEN 'a' ELSE 'b' END, 7,
	'c' || :client_id, nextval('serial'));
), 4, 500);
my $rewrites = 0;
my $flushed = 0;

foreach my $round (1 .. 12)
{
	foreach my $what (sort keys %rewrite)
	{
		# SET UNLOGGED empties nothing, but a crash would.
		next if $what eq 'ALTER TABLE' && $round > 4;
		my ($rc, $out, $err) = try_sql($node, "$rewrite{$what};");

		$rewrites++ if $rc == 0;
	}
	wait_sql(
		$node, "SELECT count(*) > $flushed + 50 FROM collected");
	$flushed = sql($node, 'SELECT count(*) FROM collected');
}
stop_load($load);
cmp_ok($rewrites, '>', 10, "the spool was rewritten $rewrites times under load");
wait_drained($node, 'a', 'b');
check_rows($node, 'rewritten while producers run');
check_order($node, "rewritten while producers run: each key in order");
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');

$node->stop;
done_testing();
