
# A hot standby takes no rows and runs no worker; when it is promoted, what had
# reached it is flushed once.
#
# Failure table: "promotion of a standby".

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
	'primary', "batcher.flush_interval = '20ms'",
	init => { allows_streaming => 1 });
my $collect = collect_statement();

create_checker($primary);
sql(
	$primary, qq(
SELECT batch_create_queue('served', \$\$$collect\$\$);
SELECT batch_create_queue('paused', \$\$$collect\$\$);
SELECT batch_create_queue('late', \$\$$collect\$\$,
	options => '{"flush_interval": "1 h"}');
SELECT batch_create_queue('volatile', \$\$$collect\$\$,
	options => '{"durable": false, "flush_interval": "1 h"}');
SELECT batch_pause('paused');
));
$primary->backup('b');

my $standby = PostgreSQL::Test::Cluster->new('standby');

$standby->init_from_backup($primary, 'b', has_streaming => 1);
$standby->start;

sql(
	$primary, q(
SELECT produce('served', 30, 'k', nextval('batcher.number'));
SELECT produce('paused', 30, 'k', nextval('batcher.number'));
SELECT produce('late', 30, 'k', nextval('batcher.number'));
SELECT batch_enqueue('volatile', '{}');
));
wait_drained($primary, 'served');
$primary->wait_for_catchup($standby);

# On the standby.
foreach my $queue ('served', 'volatile')
{
	my ($rc, $out, $err) =
	  try_sql($standby, "SELECT batch_enqueue('$queue', '{}');");

	isnt($rc, 0, "enqueuing into \"$queue\" is refused on a standby");
	like($err, qr/ERROR:  25006/, 'with its SQLSTATE');
}
is(sql($standby, 'SELECT count(*) FROM batcher.queue'),
	'4', 'the queues can be seen there');
is(sql($standby, 'SELECT count(*) FROM batcher.status'),
	'4', 'so can their status');
is(sql($standby, q(
SELECT queue, count(*) FROM batcher.pending GROUP BY 1 ORDER BY 1)),
	"late|25\npaused|25", 'and the rows that wait in the spool');
is(sql($standby, 'SELECT count(*) FROM batcher.worker WHERE pid <> 0'),
	'0', 'there is no worker');
is( sql(
		$standby, q(
SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'batcher%')),
	'0',
	'nor a launcher');
my ($rc, $out, $err) = try_sql($standby, q(SELECT batch_flush('late', '2 s');));
like($err, qr/25006/, 'batch_flush is refused');

# Rows that are flushed or come shortly before the end.
sql(
	$primary, q(
SELECT produce('served', 30, 'k', nextval('batcher.number'));
SELECT produce('late', 30, 'k', nextval('batcher.number'));
));
$primary->wait_for_catchup($standby);
$primary->stop('immediate');
$standby->promote;

# The queue whose window is short is served at once, the others when asked.
wait_worker($standby);
wait_drained($standby, 'served');
check_rows($standby, 'promotion: the queue that was served',
	"queue = 'served'");
is(sql($standby, q(SELECT pending FROM batcher.status WHERE queue = 'late')),
	'50', 'rows whose window has not ended wait');
sql(
	$standby, q(
SELECT produce('late', 30, 'k', nextval('batcher.number'));
SELECT produce('paused', 30, 'k', nextval('batcher.number'));
));
is(sql($standby, q(SELECT batch_flush('late'))),
	'75', 'batch_flush flushes old and new rows');
sql($standby, q(SELECT batch_resume('paused')));
wait_drained($standby, 'served', 'late', 'paused');
check_rows($standby, 'promotion: all queues', "queue <> 'volatile'");
check_order($standby, 'rows of one key were flushed in order');

# What was never there is not counted as lost.
is(sql($standby, q(SELECT pending FROM batcher.status WHERE queue = 'volatile')),
	'0', 'rows in memory did not come along');
is(sql($standby, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');

$standby->stop;
done_testing();
