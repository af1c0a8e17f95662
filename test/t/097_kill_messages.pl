
# Processes die while messages are on their way.  A queue that only announces
# tells each row exactly once; one with a statement may lose the message of a
# batch with its worker, never the data, and whoever listens can tell.
#
# Failure table: "kill -9 of any server process", "worker ends by ERROR or FATAL
# in a flush", "worker ends right after its commit, before it has tidied up".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'kill_messages', q(
batcher.flush_interval = '20ms'
batcher.max_workers = 1
));

sql(
	$node, q(
CREATE TABLE done (queue text, id int);
));
foreach my $kind ('durable', 'volatile')
{
	my $durable = $kind eq 'durable' ? 'true' : 'false';

	sql(
		$node, qq(
SELECT batch_create_queue('${kind}_announced', options => '{"durable": $durable,
	"notify_channel": "${kind}_rows", "notify_format": "rows"}');
SELECT batch_create_queue('${kind}_stored',
	\$\$INSERT INTO done SELECT '$kind', payload::int FROM batch\$\$,
	options => '{"durable": $durable,
		"notify_channel": "${kind}_news", "notify_format": "rows"}')));
}

my $last = 0;

# Two more rows of one transaction; returns their ids.
sub enqueue
{
	my ($queue) = @_;
	my @ids = ($last + 1, $last + 2);

	$last += 2;
	sql($node,
		"SELECT batch_enqueue_many('$queue', '{$ids[0],$ids[1]}'::jsonb[])");
	return @ids;
}

sub start_listener
{
	my $listener = $node->background_psql('postgres');

	$listener->query_safe("LISTEN ${_}_rows; LISTEN ${_}_news")
	  foreach ('durable', 'volatile');
	return $listener;
}

# The ids that messages tell of, in the order in which they were enqueued.
sub told
{
	return join(' ', sort { $a <=> $b } map { @{ $_->{rows} } } @_);
}

# Have the worker end at a point with two rows of the queue; returns their ids.
sub end_worker_with
{
	my ($point, $queue) = @_;
	my @ids;

	end_worker($node, $point, sub { @ids = enqueue($queue) });
	return @ids;
}

# --- the worker ends in the flush of a queue that only announces ---

my $listener = start_listener();

foreach my $kind ('durable', 'volatile')
{
	my $queue = "${kind}_announced";
	my @ids = enqueue($queue);
	my @messages = wait_messages($listener, 1);

	foreach my $point ('claimed', 'settle', 'committed')
	{
		push @ids, end_worker_with($point, $queue);
		wait_drained($node, $queue);
		push @ids, enqueue($queue);
		push @messages, wait_messages($listener, 2);
		wait_drained($node, $queue);
		is(told(@messages, take_messages($listener)),
			"@ids", "$queue, $point: each row was told once");
	}
	is_deeply(
		[ map { "$_->{epoch} $_->{seq}" } @messages ],
		[ map { "$messages[0]->{epoch} $_" } 1 .. 7 ],
		"$queue: the numbers have no gap");
	is( sql(
			$node, qq(
SELECT rows_flushed, messages_sent, messages_dropped FROM batcher.stat_queue
WHERE queue = '$queue')),
		scalar(@ids) . '|7|0',
		"$queue: so say the counters");
}

# --- the worker ends between the commit of the data and the message ---

foreach my $kind ('durable', 'volatile')
{
	my $queue = "${kind}_stored";
	my $dropped = "SELECT messages_dropped FROM batcher.stat_queue
		WHERE queue = '$queue'";

	foreach my $point ('committed', 'notify')
	{
		my @before_ids = enqueue($queue);
		my ($before) = wait_messages($listener, 1);
		my $n = sql($node, $dropped) + 1;
		my @lost_ids = end_worker_with($point, $queue);
		my @after_ids;
		my $after;

		wait_sql($node, $dropped, $n);
		wait_drained($node, $queue);
		@after_ids = enqueue($queue);
		($after) = wait_messages($listener, 1);
		is(told($before, $after), "@before_ids @after_ids",
			"$queue, $point: the message is lost with the worker");
		isnt($after->{epoch}, $before->{epoch},
			"$queue, $point: the next one is of another epoch");
		is( sql(
				$node, "SELECT string_agg(id::text, ' ' ORDER BY id) FROM done
				WHERE id BETWEEN $before_ids[0] AND $after_ids[1]"),
			"@before_ids @lost_ids @after_ids",
			"$queue, $point: each row was flushed once");
		is(sql($node, $dropped), $n, "$queue, $point: one message is dropped");
	}
}
is(scalar(take_messages($listener)), 0, 'no message has come late');

# --- the worker is killed, and the sessions of those who listen end ---

# Who listens afterwards hears what had not been told: the worker waits for him
# when it has claimed the rows again, or others.
foreach my $point ('claimed', 'settle', 'committed')
{
	my $queue = 'durable_announced';
	my $pid = wait_worker($node);
	my $is_told = $point eq 'committed';
	my (@ids, @messages);

	arm($node, "$point=wait");
	@ids = enqueue($queue);
	wait_point($node, $point);
	@messages = wait_messages($listener, 1) if $is_told;
	is(told(@messages, take_messages($listener)),
		$is_told ? "@ids" : '',
		"$point: " . ($is_told ? 'told after' : 'not told before') . ' the commit');
	arm($node, 'claimed=wait');
	is(worker_pid($node), $pid, "$point: the worker waits there");
	kill_process($node, $pid);
	eval { $listener->quit };

	$listener = start_listener();
	@ids = enqueue($queue) if $is_told;
	wait_point($node, 'claimed');
	disarm($node);
	release_point($node, 'claimed');
	@messages = wait_messages($listener, 1);
	wait_drained($node, $queue);
	is( told(@messages, take_messages($listener)),
		"@ids",
		"$point: after the crash the rows that were not told are, once");
}
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');

$listener->quit;
$node->stop;
done_testing();
