# A queue that fills up leaves the others their share of the memory.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A share is 64 kB, for up to 32 queues.
my $node = new_node('fair', q(
batcher.shared_memory_size = '8MB'
));

# fill() enqueues so many rows of a kilobyte, one in a transaction, and returns
# how many went in.
sql(
	$node, q(
CREATE TABLE done (queue text, n int);
CREATE PROCEDURE fill(queue text, how_many int, INOUT filled int DEFAULT 0)
LANGUAGE plpgsql AS $$
DECLARE
	is_full bool := false;
BEGIN
	WHILE filled < how_many AND NOT is_full LOOP
		BEGIN
			PERFORM batch_enqueue(queue, jsonb_build_object('n', filled,
				'text', repeat('x', 1000)));
			filled := filled + 1;
		EXCEPTION WHEN configuration_limit_exceeded THEN
			is_full := true;
		END;
		COMMIT;
	END LOOP;
END $$;
CREATE FUNCTION make(queue text, options jsonb) RETURNS void LANGUAGE sql AS $$
	SELECT batch_create_queue(queue, format(
		'INSERT INTO done SELECT %L, (payload->>''n'')::int FROM batch', queue),
		options => options);
	SELECT batch_pause(queue);
$$;
SELECT make('durable', '{}');
SELECT make('memory', '{"durable": false, "when_full": "error"}');
SELECT make('small ' || n, '{"durable": false, "when_full": "error"}')
FROM generate_series(1, 3) n;
SELECT make('small durable', '{}');
));

sub fill
{
	my ($queue, $how_many) = @_;

	return sql($node, "CALL fill('$queue', $how_many)");
}

sub status
{
	my ($columns, $queue) = @_;

	return sql($node,
		"SELECT $columns FROM batcher.status WHERE queue = '$queue'");
}

# A durable queue takes what it can get, and spills.
is(fill('durable', 10000), '10000', 'a durable queue takes all rows');
is(status('spilled > 1000, pending_bytes > 7000000', 'durable'),
	't|t', 'many of them spill');
is(fill('small 1', 50), '50', 'another queue has room left');
cmp_ok(fill('small 1', 1000), '<', '1000', 'but not much');
is(status('pending_bytes <= 65536', 'small 1'), 't', 'its share, no more');
is(fill('small 2', 50), '50', 'and a third has its own');
is(fill('small durable', 50), '50', 'a durable one too');
is(status('spilled', 'small durable'), '0', 'and it does not spill');

# So does a queue that is not durable, and refuses.
sql(
	$node, q(
SELECT batch_purge(queue) FROM batcher.queue));
my $in = fill('memory', 10000);
cmp_ok($in, '<', 10000, 'a non-durable queue is full');
cmp_ok($in, '>', 6000, 'when most of the memory is taken');
is(fill('small 1', 50), '50', 'another queue has room left then');
is(fill('small durable', 50), '50', 'a durable one too');
is(status('spilled', 'small durable'), '0', 'and it does not spill');
sql($node, q(SELECT batch_resume()));
wait_drained($node, 'memory', 'small 1', 'small durable');
is( sql(
		$node, q(
SELECT count(*) FILTER (WHERE queue = 'memory'), count(*) FROM done)),
	$in . '|' . ($in + 100),
	'what went in is flushed');
sql($node, q(SELECT batch_pause()));

# An open transaction counts as well.
my $open = $node->background_psql('postgres');
$open->query_safe(
	q(
BEGIN;
DO $$
BEGIN
	LOOP
		BEGIN
			PERFORM batch_enqueue('memory', to_jsonb(repeat('x', 1000)));
		EXCEPTION WHEN configuration_limit_exceeded THEN
			EXIT;
		END;
	END LOOP;
END $$;));
is(fill('small 1', 50), '50', 'another queue has room left beside a large transaction');
$open->query_safe('COMMIT');
$open->quit;
cmp_ok(status('pending', 'memory'), '>', 6000, 'which keeps what it has');

# A database that uses more channels than are counted leaves others theirs.
$node->safe_psql('postgres', 'CREATE DATABASE other');
sql($node, q(
SELECT batch_create_queue('loud', options => '{"notify_channel": "loud_{key}",
	"max_batch_size": 20000, "flush_interval": "1 h"}')));
$node->safe_psql(
	'other', q(
CREATE EXTENSION batcher;
SELECT batch_create_queue('quiet', options => '{"notify_channel": "quiet_{topic}",
	"flush_interval": "10 ms"}')));
my $listener = $node->background_psql('other');
$listener->query_safe("LISTEN quiet_$_") foreach 'before', 'after';

# Send a message, and return its epoch and number.
sub quiet_message
{
	my ($topic) = @_;

	$node->safe_psql('other',
		"SELECT batch_enqueue('quiet', '1', topic => '$topic')");
	my ($message) = wait_messages($listener, 1);
	return "$message->{epoch} $message->{seq}";
}

sub be_loud
{
	my ($from, $upto) = @_;

	sql($node, qq(
SELECT count(batch_enqueue('loud', '1', n::text)) FROM generate_series($from, $upto) n;
SELECT batch_flush('loud')));
	wait_sql($node, "SELECT messages_sent = $upto FROM batcher.stat_queue
		WHERE queue = 'loud'");
	return;
}

my ($epoch, $seq) = split / /, quiet_message('before');
is($seq, '1', 'a message on a channel that nobody has used');
be_loud(1, 17000);
is(quiet_message('before'), "$epoch 2",
	'its count goes on when another database has used thousands of others');
my ($new_epoch) = split / /, quiet_message('after');
be_loud(17001, 34000);
is(quiet_message('before'), "$epoch 3", 'and on');
is(quiet_message('after'), "$new_epoch 2",
	'that of a channel too that came when there was no room');
$listener->quit;

$node->stop;
done_testing();
