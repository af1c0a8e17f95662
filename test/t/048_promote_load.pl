
# A standby is promoted while clients enqueue and a worker flushes on the
# primary, which dies: all that a client was told to be committed is flushed,
# once and in order, while new rows come.
#
# Failure table: "promotion of a standby" (006_standby.pl has it without load).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_node(
	'primary', q(
batcher.flush_interval = '20ms'
batcher.shared_memory_size = '8MB'
),
	init => { allows_streaming => 1 });
my $collect = collect_statement();

create_checker($primary);
sql(
	$primary, qq(
CREATE SEQUENCE serial;
SELECT batch_create_queue('fast', \$\$$collect\$\$,
	options => '{"max_batch_size": 40}');
SELECT batch_create_queue('slow', \$\$$collect\$\$,
	options => '{"flush_interval": "1 h"}');
));
$primary->backup('b');

my $standby = PostgreSQL::Test::Cluster->new('standby');

$standby->init_from_backup($primary, 'b', has_streaming => 1);
$standby->start;

# Commits wait for the standby, so that what a client hears of is there.
$primary->safe_psql('postgres',
	q(ALTER SYSTEM SET synchronous_standby_names = '*'; SELECT pg_reload_conf()));
wait_sql($primary,
	q(SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'));

my @clients = map {
	start_client($primary, "c$_",
		"SELECT produce('fast', 5, 'c$_', :n), produce('slow', 3, 'c$_', :n)")
} 1 .. 4;

wait_sql($primary, 'SELECT count(*) > 1000 FROM collected');
$primary->stop('immediate');
$_->{run}->finish foreach @clients;

my @acks = map { client_acks($_) } @clients;

cmp_ok(scalar(@acks), '>', 100,
	scalar(@acks) . ' transactions were committed, as their clients know');

# New rows come from the first moment on.
$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$standby->promote;
$standby->reload;
my $load = start_load(
	$standby, q(
SELECT produce('fast', 5, 'n' || :client_id, nextval('serial')),
	produce('slow', 3, 'n' || :client_id, nextval('serial'));
), 4, 300);

wait_sql($standby,
	q(SELECT count(*) > 300 FROM collected WHERE queue = 'fast' AND key LIKE 'n%'));
sql($standby, q(SELECT batch_flush()));
stop_load($load);
sql($standby, q(SELECT batch_flush()));
wait_drained($standby, 'fast', 'slow');

my $acks = join ',', @acks;
is( sql(
		$standby, qq(
SELECT count(*) FROM unnest('{$acks}'::bigint[]) a
WHERE NOT EXISTS (SELECT FROM acknowledged WHERE n / 1000 = a
		AND queue = 'fast' AND key LIKE 'c%') OR
	NOT EXISTS (SELECT FROM acknowledged WHERE n / 1000 = a
		AND queue = 'slow' AND key LIKE 'c%'))),
	'0',
	'all of them reached the standby');
check_rows($standby, 'each row that was committed is flushed once');
check_order($standby, 'rows of one key in order');
is(sql($standby, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');

$standby->stop;
done_testing();
