
# The main path: committed rows are flushed by one statement, and a message
# says so after the data is visible.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('flush', "batcher.flush_interval = '20ms'");

sql(
	$node, q(
CREATE TABLE target (n int, by text);
SELECT batch_create_queue('a',
	$$INSERT INTO target SELECT (payload->>'n')::int, batch_enqueued_by
	FROM batch ORDER BY batch_pos$$,
	options => '{"notify_channel": "news", "flush_interval": "1 h"}');
SELECT batch_create_queue('b',
	$$INSERT INTO target SELECT (payload->>'n')::int, batch_enqueued_by
	FROM batch$$,
	options => '{"notify_channel": "news", "flush_interval": "1 h",
		"durable": false}');
SELECT batch_create_queue('announce', NULL,
	options => '{"notify_channel": "{queue}_news"}');
));

my $listener = $node->background_psql('postgres');
my @messages;

$listener->query_safe('LISTEN news; LISTEN announce_news');

# Wait until so many have come since the beginning.
sub wait_total
{
	my ($total) = @_;

	push @messages, wait_messages($listener, $total - @messages);
	return;
}

sub enqueue
{
	my ($queue, $from, $to) = @_;

	sql(
		$node, qq(
SELECT count(batch_enqueue('$queue', jsonb_build_object('n', g)))
FROM generate_series($from, $to) g));
	return;
}

# One batch, one message.
enqueue('a', 1, 75);
is(sql($node, "SELECT batch_flush('a')"), '75', 'batch_flush counts the rows');
wait_total(1);
my $message = $messages[0];
is_deeply(
	[ sort keys %$message ],
	[qw(at batch channel count epoch queue seq type)],
	'a summary has its fields');
is($message->{type}, 'batch', 'type of a summary');
is($message->{queue}, 'a', 'queue of a summary');
is($message->{count}, 75, 'count of a summary');
is($message->{seq}, 1, 'the first message has number 1');
like($message->{at}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d/, 'time of a summary');
is(sql($node, 'SELECT count(DISTINCT n), count(*) FROM target'),
	'75|75', 'the rows are there');
is(sql($node, 'SELECT DISTINCT by = current_user FROM target'),
	't', 'the enqueuer is known');

# The messages of two queues on one channel are counted together.
my $expected = 1;
foreach my $round (1 .. 5)
{
	foreach my $queue ('a', 'b')
	{
		enqueue($queue, 1000 * $round, 1000 * $round + 9);
		sql($node, "SELECT batch_flush('$queue')");
		$expected++;
	}
}
wait_total($expected);
is( join(' ', map { $_->{seq} } @messages),
	join(' ', 1 .. $expected),
	'messages are numbered without a gap, in the order in which they come');
is(scalar(grep { $_->{epoch} ne $message->{epoch} } @messages),
	0, 'the epoch stays');
is(join('', map { $_->{queue} } @messages[ 1 .. 10 ]),
	'ab' x 5, 'the queues took turns');

# A queue without a statement only announces, on its own channel.
sql($node, q(SELECT batch_enqueue('announce', '{}')));
wait_total(++$expected);
is($messages[-1]->{channel}, 'announce_news', 'the name of the queue is put in');
is($messages[-1]->{seq}, 1, 'another channel is counted by itself');

# What the worker does can be seen in pg_stat_activity.
my $before = sql($node, 'SELECT count(*) FROM target');
arm($node, 'statement=wait,settle=wait,notify=wait');
enqueue('a', 1, 10);
my $flusher = $node->background_psql('postgres');
$flusher->query_until(qr/^go$/m, "\\echo go\nSELECT batch_flush('a');\n");
wait_point($node, 'statement');
my $pid = worker_pid($node);
is( sql(
		$node, qq(
SELECT backend_type LIKE 'batcher%', application_name, state, query LIKE 'INSERT INTO target%',
	datname, xact_start IS NOT NULL
FROM pg_stat_activity WHERE pid = $pid)),
	't|batcher worker|active|t|postgres|t',
	'pg_stat_activity shows the worker in a flush');
is( sql($node, q(SELECT queue, rows FROM batcher.worker WHERE queue IS NOT NULL)),
	'a|10', 'batcher.worker shows the flush');
is(sql($node, q(SELECT is_flushing FROM batcher.status WHERE queue = 'a')),
	't', 'batcher.status shows the flush');

# No message before the commit; the data first, the message then.
release_point($node, 'statement');
wait_point($node, 'settle');
is(sql($node, 'SELECT count(*) FROM target'),
	$before, 'before the commit the data is not visible');
push @messages, take_messages($listener);
is(scalar(@messages), $expected, 'before the commit there is no message');
release_point($node, 'settle');
wait_point($node, 'notify');
is(sql($node, 'SELECT count(*) FROM target'),
	$before + 10, 'the data is visible before the message is sent');
push @messages, take_messages($listener);
is(scalar(@messages), $expected, 'and the message was not sent yet');
disarm($node);
release_point($node, 'notify');
wait_total(++$expected);
is($messages[-1]->{seq}, 12, 'the number follows');
is($messages[-1]->{epoch}, $message->{epoch}, 'of the same epoch');
$flusher->quit;

# The server's own counters see what the worker writes.
wait_sql(
	$node, q(
SELECT n_tup_ins = (SELECT count(*) FROM target) FROM pg_stat_user_tables
WHERE relname = 'target'));
pass('n_tup_ins counts the rows of the target');
wait_sql(
	$node, q(
SELECT n_tup_del > 0 FROM pg_stat_all_tables
WHERE schemaname = 'batcher' AND relname = 'spool'));
pass('n_tup_del counts the tuples of the spool');
wait_sql(
	$node, qq(
SELECT state = 'idle' AND application_name = 'batcher worker'
FROM pg_stat_activity WHERE pid = $pid));
pass('pg_stat_activity shows an idle worker');
is( sql(
		$node, q(
SELECT rows_enqueued, rows_flushed, batches, batches_failed, messages_sent,
	messages_saved
FROM batcher.stat_queue WHERE queue = 'a')),
	'135|135|7|0|7|128',
	'counters of the queue');

# After a restart the count begins anew, with another epoch.
$listener->quit;
$node->restart;
$listener = $node->background_psql('postgres');
$listener->query_safe('LISTEN news');
enqueue('a', 1, 10);
sql($node, "SELECT batch_flush('a')");
wait_total(++$expected);
is($messages[-1]->{seq}, 1, 'after a restart the count begins anew');
isnt($messages[-1]->{epoch}, $message->{epoch}, 'with another epoch');

$listener->quit;
$node->stop;
done_testing();
