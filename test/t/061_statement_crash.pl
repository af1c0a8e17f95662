
# A statement that crashes the server: after the recovery its queue is held by
# its breaker, and the other queues go on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = new_node('statement_crash', "batcher.flush_interval = '10ms'");

sql(
	$node, q(
CREATE TABLE done (queue text, id int);
SELECT batch_create_queue('bad', $$INSERT INTO done SELECT 'bad', payload::int FROM batch$$,
	options => '{"breaker_recovery": "10 ms"}');
SELECT batch_create_queue('good', $$INSERT INTO done SELECT 'good', payload::int FROM batch$$);
SELECT batch_create_queue('bad memory', $$INSERT INTO done SELECT 'bad memory', payload::int FROM batch$$,
	options => '{"durable": false}');
));

sub breaker
{
	my ($queue) = @_;

	return sql(
		$node, qq(
SELECT breaker_state, breaker_reason, next_flush_at
FROM batcher.status WHERE queue = '$queue'));
}

sub markers
{
	my @markers = glob($node->data_dir . '/pg_stat/batcher.flushing.*');

	return scalar @markers;
}

# A signal that the statement has caused convicts it at once.
my $position = log_position($node);
arm($node, 'executing=crash');
sql($node, q(SELECT batch_enqueue('bad', '1')));
wait_crash_over($node, $position);
wait_sql($node, q(SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'bad'));
is(breaker('bad'), 'open|its statement crashed the server|infinity',
	'the breaker is open, and does not close by itself');
disarm($node);
sql($node, q(SELECT batch_enqueue('good', '2')));
wait_drained($node, 'good');
is(sql($node, 'SELECT queue, id FROM done'), 'good|2', 'another queue goes on');
is(sql($node, q(SELECT batch_flush('bad'))), '0', 'who asks for a flush is told');

# A clean restart does not forget it.
$node->restart;
wait_sql($node, q(SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'bad'));
is(markers(), 1, 'there is a marker');
sql($node, q(SELECT batch_reset_breaker('bad')));
wait_drained($node, 'bad');
is(sql($node, q(SELECT id FROM done WHERE queue = 'bad')),
	'1', 'the row is flushed when somebody says so');
is(markers(), 0, 'the marker is gone');
is(sql($node, q(SELECT breaker_state FROM batcher.status WHERE queue = 'bad')),
	'closed', 'the breaker is closed');

# A SIGKILL may have come from anybody: from the third in a row on the queue is
# held for a time.
sql($node, q(
SELECT batch_alter_queue('bad', options => '{"breaker_recovery": "1 h"}')));
$position = log_position($node);
arm($node, 'executing=kill');
sql($node, q(SELECT batch_enqueue('bad', '3')));
$node->wait_for_log(
	qr/breaker of queue "bad" is open: the server crashed 3 times in a row/, $position);
wait_sql($node, q(SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'bad'));
my $log = slurp_file($node->logfile, $position);
my $killed = () = $log =~ /"batcher worker".* was terminated by signal 9/g;
is($killed, 3, 'three workers were killed');
is( sql(
		$node, q(
SELECT next_flush_at < now() + '1 h' FROM batcher.status WHERE queue = 'bad')),
	't', 'the breaker is open for a time');
disarm($node);

# Other processes that are killed do not speak against a statement.
sql($node, q(SELECT batch_reset_breaker('bad')));
wait_drained($node, 'bad');
foreach my $n (1 .. 4)
{
	arm($node, 'executing=wait');
	sql($node, q(SELECT batch_enqueue('bad', '4')));
	wait_point($node, 'executing');
	disarm($node);
	kill_process($node, sql($node, q(
SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer')));
	wait_drained($node, 'bad');
}
is(breaker('bad'), 'closed||', 'the death of others is not its fault');
is(sql($node, q(SELECT count(*) FROM done WHERE id = 4)), '4', 'each row once');

# A queue in memory only: its rows are gone with the memory.
$position = log_position($node);
arm($node, 'executing=crash');
sql($node, q(SELECT batch_enqueue('bad memory', '5')));
wait_crash_over($node, $position);
wait_sql($node, q(SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'bad memory'));
disarm($node);
is(sql($node, q(SELECT pending FROM batcher.status WHERE queue = 'bad memory')),
	'0', 'the row is lost');

# Another statement is another matter, also to who has only changed it.
sql($node, q(
SELECT batch_alter_queue('bad memory', flush_sql => $$INSERT INTO done SELECT 'altered', payload::int FROM batch$$);
SELECT batch_enqueue('bad memory', '6')));
wait_drained($node, 'bad memory');
is(sql($node, q(SELECT id FROM done WHERE queue = 'altered')), '6', 'it is tried');
is(markers(), 0, 'no marker is left');

# A marker goes with its queue, and with its database.
sub wait_no_markers
{
	my $end = time() + $PostgreSQL::Test::Utils::timeout_default;

	usleep(20_000) while markers() > 0 && time() < $end;
	return;
}
sub crash_by_queue
{
	my ($database) = @_;

	$position = log_position($node);
	arm($node, 'executing=crash');
	$node->safe_psql($database, q(SELECT batch_enqueue('short', '7')));
	wait_crash_over($node, $position);
	disarm($node);
	$node->poll_query_until($database,
		q(SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'short'))
	  or die 'the breaker does not open';
	return;
}
my $create_short = q(
SELECT batch_create_queue('short', 'SELECT FROM batch', options => '{"flush_interval": "10 ms"}'););
sql($node, $create_short);
crash_by_queue('postgres');
is(markers(), 1, 'there is a marker');
sql($node, q(SELECT batch_drop_queue('short', force => true)));
wait_no_markers();
is(markers(), 0, 'it goes with the queue');
sql($node, 'CREATE DATABASE other');
$node->safe_psql('other', "CREATE EXTENSION batcher; $create_short");
crash_by_queue('other');
is(markers(), 1, 'there is one of another database');
sql($node, 'DROP DATABASE other');
wait_no_markers();
is(markers(), 0, 'it goes with the database');

$node->stop;
done_testing();
