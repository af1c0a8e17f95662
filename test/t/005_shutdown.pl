
# What a stop of the server does with rows that wait.
#
# M3.3 (shutdown flushes), M4.4 (shutdown loses nothing)
#
# Failure table: "fast or smart stop", and "immediate stop" for the file of
# saved rows.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use File::Copy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# The timeout of a stop is one for stuck flushes: a drain must end by itself.
my $node = new_node(
	'shutdown', q(
batcher.shutdown_timeout = '30s'
batcher.flush_interval = '1h'
));
my $collect = collect_statement();
my $file = $node->data_dir . '/pg_stat/batcher.saved';

create_checker($node);
sql(
	$node, qq(
SELECT batch_create_queue('durable', \$\$$collect\$\$, options => '{"max_batch_size": 600}');
SELECT batch_create_queue('volatile', \$\$$collect\$\$, options => '{"durable": false}');
));

sub produce
{
	my ($n) = @_;

	sql(
		$node, qq(
SELECT produce('durable', $n, 'a', nextval('batcher.number'));
SELECT produce('volatile', $n, 'b', nextval('batcher.number'));));
	return;
}

sub collected
{
	return sql($node, 'SELECT count(*) FROM collected');
}

sub pending
{
	my ($queue) = @_;

	return sql($node,
		"SELECT count(*) FROM batcher.pending WHERE queue = '$queue'");
}

# Stop; returns for how many seconds, and what the log says.
sub stop_server
{
	my ($mode) = @_;
	my $position = log_position($node);
	my $start = time();

	$node->stop($mode);
	return (time() - $start, slurp_file($node->logfile, $position));
}

# A fast and a smart stop flush what waits, long before its window ends.  The
# server is not asked afterwards: a new one would flush by itself.
foreach my $mode ('fast', 'smart')
{
	my ($seconds, $log, $flushed);

	produce(600);
	is(pending('durable'), sql($node, q(
SELECT count(*) FROM acknowledged WHERE queue = 'durable')) -
		sql($node, q(SELECT count(*) FROM collected WHERE queue = 'durable')),
		"$mode stop: rows wait");
	sql(
		$node, q(
ALTER SYSTEM SET batcher.log_min_duration = 0; SELECT pg_reload_conf();));
	wait_sql($node, 'SHOW batcher.log_min_duration', '0');
	($seconds, $log) = stop_server($mode);
	cmp_ok($seconds, '<', 15, "$mode stop: it does not take long");
	$flushed = 0;
	$flushed += $1 while $log =~ /batch \d+ of (\d+) rows \(forced\)/g;
	is($flushed, 1000, "$mode stop: all rows were flushed");
	ok(!-e $file || -s $file, "$mode stop: a file may be there");
	$node->start;
	wait_drained($node, 'durable', 'volatile');
	check_rows($node, "$mode stop");
}

# The flush is blocked, and what blocks it survives the stop.
my $counters = q(
SELECT queue, rows_enqueued, rows_flushed, batches, batches_forced, messages_sent
FROM batcher.stat_queue ORDER BY queue);

foreach my $mode ('fast', 'smart')
{
	my ($seconds, $log, $before, $counted);

	sql(
		$node, q(
ALTER SYSTEM SET batcher.shutdown_timeout = '1s'; SELECT pg_reload_conf();));
	produce(60);
	$before = collected();
	sql(
		$node, q(
BEGIN;
LOCK TABLE collected IN EXCLUSIVE MODE;
PREPARE TRANSACTION 'blocker';));
	$counted = sql($node, $counters);
	($seconds, $log) = stop_server($mode);
	cmp_ok($seconds, '>', 0.9, "blocked $mode stop: it waits for the timeout");
	cmp_ok($seconds, '<', 10, "blocked $mode stop: and not much longer");
	like($log, qr/ending batcher workers before they have flushed all rows/,
		"blocked $mode stop: the log says so");
	like($log, qr/saved 50 rows of non-durable queues/,
		"blocked $mode stop: non-durable rows are saved");
	ok(-e $file, "blocked $mode stop: there is a file");
	$node->start;
	ok(!-e $file, "blocked $mode stop: the file is gone at the start");
	is(pending('durable'), '50', "blocked $mode stop: durable rows are there");
	is(pending('volatile'), '50', "blocked $mode stop: saved rows are there");
	is(collected(), $before, "blocked $mode stop: nothing was flushed");
	is(sql($node, $counters), $counted, "blocked $mode stop: counters survive");
	sql($node, q(COMMIT PREPARED 'blocker'));
	sql($node, 'SELECT batch_flush()');
	wait_drained($node, 'durable', 'volatile');
	check_rows($node, "blocked $mode stop");
}

# A second stop does not bring them back.
$node->restart;
is(pending('volatile'), '0', 'no row comes twice');
check_rows($node, 'after another stop');

# Rows of a paused queue are kept, through more than one stop.
sql($node, q(SELECT batch_pause('volatile')));
sql($node, q(SELECT produce('volatile', 12, NULL, nextval('batcher.number'))));
for my $round (1 .. 2)
{
	my ($seconds, $log) = stop_server('fast');

	like($log, qr/saved 10 rows of non-durable queues/, "stop $round: rows are saved");
	cmp_ok($seconds, '<', 10, "stop $round: a paused queue is not waited for");
	copy($file, "$file.copy") or die $!;
	$node->start;
	is(pending('volatile'), '10', "stop $round: rows are restored");
}

# After an immediate stop they are lost, and an old file brings nothing back.
my $position = log_position($node);
$node->stop('immediate');
ok(!-e $file, 'an immediate stop saves nothing');
like(slurp_file($node->logfile, $position),
	qr/10 rows of non-durable queues are lost/, 'the log says how many were lost');
copy("$file.copy", $file) or die $!;
$position = log_position($node);
$node->start;
is(pending('volatile'), '0', 'the rows are lost');
ok(!-e $file, 'an old file is removed');
like(slurp_file($node->logfile, $position),
	qr/saved at an earlier stop are discarded/, 'and the log says so');
sql($node, q(
DELETE FROM acknowledged a WHERE queue = 'volatile' AND NOT EXISTS
	(SELECT FROM collected c WHERE c.id = a.id)));

# A damaged file costs the rows, not the start.
sql($node, q(SELECT produce('durable', 12, NULL, nextval('batcher.number'))));
sql($node, q(SELECT batch_pause('durable')));
sql($node, q(SELECT batch_enqueue('volatile', '{}')));
$node->stop('fast');
open my $out, '+<', $file or die $!;
seek $out, 100, 0;
print $out 'damaged';
close $out;
$position = log_position($node);
$node->start;
like(slurp_file($node->logfile, $position), qr/ignoring file/,
	'a damaged file is ignored');
is(pending('volatile'), '0', 'its rows are lost');
is(pending('durable'), '10', 'durable rows are not in it');
sql($node, q(SELECT batch_resume(); SELECT batch_flush();));
wait_drained($node, 'durable', 'volatile');
check_rows($node, 'at the end');

# A transaction that is open when the server stops leaves nothing.
my $open = $node->background_psql('postgres', on_error_die => 0);
$open->query_safe(
	q(BEGIN; SELECT produce('durable', 100, 'x', 1); SELECT produce('volatile', 100, 'x', 1);));
$node->stop('fast');
eval { $open->quit };
$node->start;
is(pending('volatile') + pending('durable'), 0, 'nothing of an open transaction');
check_rows($node, 'an open transaction at the stop');

$node->stop;
done_testing();
