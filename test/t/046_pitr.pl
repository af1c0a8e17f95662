
# Recovery to a point in time at which rows wait: those that waited then are
# read back and flushed once, what was flushed or not yet committed then is as
# it was, and tickets do not repeat.
#
# Failure table: "promotion of a standby, PITR, pg_upgrade".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $original = new_node(
	'original', "batcher.flush_interval = '10ms'
batcher.shared_memory_size = '8MB'",
	init => { has_archiving => 1, allows_streaming => 1 });
my $collect = collect_statement();

create_checker($original);
sql(
	$original, qq(
CREATE SEQUENCE serial;
SELECT batch_create_queue('served', \$\$$collect\$\$);
SELECT batch_create_queue('late', \$\$$collect\$\$,
	options => '{"flush_interval": "1 h", "max_batch_size": 100000}');
SELECT batch_create_queue('volatile', 'SELECT FROM batch',
	options => '{"durable": false, "flush_interval": "1 h"}');
));

sub produce
{
	sql(
		$original, q(
SELECT produce('served', 30, 'k', nextval('serial'));
SELECT produce('late', 30, 'k', nextval('serial'));
SELECT batch_enqueue('volatile', '{}');
));
	return;
}

# Note what waits at a point.
my $counts = q(
SELECT (SELECT coalesce(sum(coalesce(cardinality(tickets), 1)), 0) FROM batcher.spool) || ' ' ||
	(SELECT count(*) FROM collected));
my %at;

sub mark_point
{
	my ($point) = @_;

	wait_drained($original, 'served');
	$at{$point} = sql($original, $counts);
	sql($original, "SELECT pg_create_restore_point('$point')");
	return;
}

produce();
$original->backup('b');
produce();

# While a transaction is open, of which some rows are in the spool already.
my $open = $original->background_psql('postgres');
$open->query_safe(
	q(BEGIN;
WITH r AS (
	INSERT INTO acknowledged
	SELECT 'late', gen_random_uuid(), 'large', g FROM generate_series(1, 5000) g
	RETURNING id, n)
SELECT count(batch_enqueue('late',
	jsonb_build_object('q', 'late', 'id', id, 'n', n), 'large')) FROM r));
cmp_ok(sql($original, q(SELECT pg_relation_size('batcher.spool'))),
	'>', 100000, 'an open transaction has written to the spool');
mark_point('first');
$open->query_safe('COMMIT');
$open->quit;

# In the middle of a flush of what waits: three batches of seven are through.
produce();
mark_point('between');
arm($original, 'settle=wait');
sql($original, q(SELECT batch_alter_queue('late', '{"max_batch_size": 7}')));
for (1 .. 3)
{
	wait_point($original, 'settle');
	release_point($original, 'settle');
}
wait_point($original, 'settle');
$at{second} = sql($original, $counts);
sql($original, "SELECT pg_create_restore_point('second')");
disarm($original);
release_point($original, 'settle');
produce();
sql($original, q(SELECT batch_flush('late')));
wait_drained($original, 'late', 'served');
check_rows($original, 'the original');

my $last_ticket = sql($original, q(SELECT batch_enqueue('volatile', '{}')));
my $segment =
  sql($original, 'SELECT pg_walfile_name(pg_current_wal_lsn())');

sql($original, 'SELECT pg_switch_wal()');
wait_sql($original,
	"SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver");
$original->stop;

# A server at one of the points.
sub recover
{
	my ($point, $conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new("at_$point");

	$node->init_from_backup($original, 'b', has_restoring => 1, standby => 0);
	$node->append_conf(
		'postgresql.conf', qq(
archive_mode = off
recovery_target_name = '$point'
recovery_target_action = promote
$conf
));
	$node->start;
	wait_sql($node, 'SELECT NOT pg_is_in_recovery()');
	return $node;
}

sub check_recovered
{
	my ($node, $point) = @_;

	sql($node, q(SELECT batch_flush('late')));
	wait_drained($node, 'late', 'served');
	check_rows($node, "$point: each row that waited is flushed once");
	check_order($node, "$point: in order");
	is(sql($node, 'SELECT count(*) FROM batcher.spool'),
		'0', "$point: the spool is empty");
	is(sql($node, q(SELECT pending FROM batcher.status WHERE queue = 'volatile')),
		'0', "$point: rows in memory did not come along");
	cmp_ok(
		sql($node, q(SELECT batch_enqueue('volatile', '{}'))),
		'>', $last_ticket, "$point: no ticket is given that was given before");
	return;
}

# It goes on by itself.
my $node = recover('first', '');
is(sql($node, $counts), $at{first}, 'first: what waited then waits');
is(sql($node, 'SELECT count(*) FROM batcher.queue WHERE paused'),
	'0', 'first: nothing is held');
check_recovered($node, 'first');
$node->stop;

$node = recover('second', '');
check_recovered($node, 'second');
is( sql($node, 'SELECT count(*) FROM collected'),
	eval { my ($w, $f) = split / /, $at{second}; $w + $f; },
	'second: all that were there then');
$node->stop;

# Unless somebody sees to it that it does not.
$node = recover('between', "shared_preload_libraries = ''");
is(sql($node, $counts), $at{between},
	'without the library nothing is flushed');
sql($node, q(SELECT batch_pause()));
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'batcher'");
$node->restart;
wait_worker($node);
my ($waiting) = split / /, $at{between};
wait_sql($node, "SELECT sum(pending) = $waiting FROM batcher.status");
is(sql($node, 'SELECT batch_flush()'), '0', 'nor when it is paused then');
is(sql($node, $counts), $at{between}, 'all of it waits');
sql($node, q(SELECT batch_resume()));
check_recovered($node, 'between');
$node->stop;
done_testing();
