
# The server's queue of notifications is full: what was flushed stays flushed,
# its messages are dropped and counted, and the next ones show by their epoch
# that some are missing.  A queue that only announces keeps its rows until there
# is room.
#
# Failure table: "NOTIFY queue full".
#
# Filling that queue takes 8 GB and half a minute before PostgreSQL 17, which
# can make it small.  There a NOTIFY fails at a debug point instead, unless
# PG_TEST_EXTRA contains "notify_full".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('notify_full', "batcher.flush_interval = '10ms'");
my $can_shrink =
  sql($node, q(SELECT current_setting('server_version_num')::int >= 170000));
my $fill =
  $can_shrink eq 't' || ($ENV{PG_TEST_EXTRA} || '') =~ /\bnotify_full\b/;

if ($can_shrink eq 't')
{
	$node->append_conf('postgresql.conf', 'max_notify_queue_pages = 64');
	$node->restart;
}
note($fill ? 'filling the queue' : 'failing at a debug point');
sql(
	$node, q(
CREATE TABLE target (queue text, n int);
SELECT batch_create_queue('durable',
	$$INSERT INTO target SELECT 'durable', payload::int FROM batch$$,
	options => '{"notify_channel": "news"}');
SELECT batch_create_queue('volatile',
	$$INSERT INTO target SELECT 'volatile', payload::int FROM batch$$,
	options => '{"notify_channel": "other_news", "durable": false}');
SELECT batch_create_queue('announce',
	options => '{"notify_channel": "announcements"}');
));

my $listener = $node->background_psql('postgres');
my $reader = $node->background_psql('postgres', on_error_die => 0);

$listener->query_safe('LISTEN news; LISTEN other_news; LISTEN announcements');

# Enqueue, and see that the data is there.
sub flush_rows
{
	my ($n) = @_;

	sql($node, "SELECT batch_enqueue(q, '$n')
		FROM unnest('{durable,volatile}'::text[]) q");
	wait_sql($node, "SELECT count(*) = 2 FROM target WHERE n = $n");
	return;
}

my $counters = q(
SELECT string_agg(concat_ws(' ', queue, rows_flushed, batches_failed,
	messages_sent, messages_dropped), ', ' ORDER BY queue)
FROM batcher.stat_queue WHERE queue <> 'announce');

flush_rows(1);
my @before = wait_messages($listener, 2);

# Full: by one who listens and does not come to read, and one who writes.
if ($fill)
{
	my $at_once = $can_shrink eq 't' ? 5 : 1000;

	$reader->query_safe('LISTEN filler; BEGIN; SELECT 1');
	my ($rc, $out, $err) = try_sql(
		$node, qq(
DO \$\$
BEGIN
	FOR i IN 1 .. 2000 LOOP
		PERFORM pg_notify('filler', repeat('x', 7900) || j)
		FROM generate_series(1, $at_once) j;
		COMMIT;
	END LOOP;
END \$\$;));

	isnt($rc, 0, 'the queue becomes full');
	like($err, qr/ERROR:  54000: too many notifications/, 'NOTIFY is refused');
}

# Have a NOTIFY fail at this point, unless it fails by itself.
sub refuse_notify
{
	my ($point) = @_;

	arm($node, "$point=error") if !$fill;
	return;
}

refuse_notify('notify');
flush_rows(2);
flush_rows(3);
wait_sql($node, q(SELECT sum(messages_dropped) >= 4 FROM batcher.stat_queue));
is( sql($node, $counters),
	'durable 3 0 1 2, volatile 3 0 1 2',
	'data is committed, each message is counted as dropped');
is(sql($node, 'SELECT count(*) FROM batcher.pending'),
	'0', 'and nothing is flushed again');

# What the claim and the NOTIFY are one transaction for.
refuse_notify('settle');
sql($node, q(SELECT batch_enqueue('announce', '1')));
wait_sql(
	$node, q(
SELECT consecutive_failures > 0 FROM batcher.status WHERE queue = 'announce'));
is( sql($node, q(SELECT queue, durable FROM batcher.pending)),
	'announce|t', 'a queue that only announces keeps its rows');

# There is room again.
if ($fill)
{
	my $pid = $reader->query_safe('SELECT pg_backend_pid()');

	sql($node, "SELECT pg_terminate_backend($pid)");
	wait_sql($node, 'SELECT pg_notification_queue_usage() < 0.5');
}
else
{
	disarm($node);
}
sql($node, q(SELECT batch_alter_queue('announce', '{"flush_interval": "5 ms"}')));
flush_rows(4);

my @after = wait_messages($listener, 3);
my %epoch = map { $_->{channel} => $_->{epoch} } @before;

is( join(' ', sort map { "$_->{queue}:$_->{count}" } @after),
	'announce:1 durable:1 volatile:1',
	'then messages go out again, those of the rows that waited too');
isnt($_->{epoch}, $epoch{ $_->{channel} }, "$_->{channel}: of another epoch")
  foreach grep { $epoch{ $_->{channel} } } @after;
is( sql($node, $counters),
	'durable 4 0 2 2, volatile 4 0 2 2',
	'no flush has failed because of a message');
is( sql(
		$node, q(
SELECT queue, count(*), count(DISTINCT n) FROM target GROUP BY 1 ORDER BY 1)),
	"durable|4|4\nvolatile|4|4",
	'and each row was flushed once');

$listener->quit;
eval { $reader->quit };
$node->stop;
done_testing();
