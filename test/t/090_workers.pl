# Several workers for one database and owner: a slow queue does not keep the
# others waiting.  A second worker is started when rows wait beyond their
# window because their worker is busy, and takes their queues over; it stays
# while there are slow flushes (M1.12: processing is spread).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('workers', q(
batcher.flush_interval = '10ms'
));

# A flush of the slow queue lasts as long as somebody holds this lock.
sql(
	$node, q(
CREATE TABLE done (queue text, n int);
SELECT batch_create_queue('slow', $$WITH l AS MATERIALIZED
	(SELECT pg_advisory_xact_lock(1))
	INSERT INTO done SELECT 'slow', (payload->>'n')::int FROM batch, l$$,
	options => '{"flush_timeout": "10 min"}');
SELECT batch_create_queue(q, format(
	'INSERT INTO done SELECT %L, (payload->>''n'')::int FROM batch', q))
FROM unnest('{quick, quicker}'::text[]) q;
SELECT batch_create_queue('later', $$INSERT INTO done
	SELECT 'later', (payload->>'n')::int FROM batch$$,
	options => '{"flush_interval": "1 h"}')));
wait_worker($node);

my $blocker = $node->background_psql('postgres');

sub block
{
	$blocker->query_safe('SELECT pg_advisory_lock(1)');
	return;
}

sub unblock
{
	$blocker->query_safe('SELECT pg_advisory_unlock(1)');
	return;
}

# What has become of a row of the queue after so long.
sub fate
{
	my ($queue, $timeout) = @_;

	return sql(
		$node, qq(
SELECT batch_enqueue('$queue', '{"n": 1}') AS ticket \\gset
SELECT batch_wait('$queue', :ticket, '$timeout')));
}

sub slow_worker
{
	wait_sql($node,
		q(SELECT count(*) = 1 FROM batcher.worker WHERE queue = 'slow'));
	return sql($node, q(SELECT pid FROM batcher.worker WHERE queue = 'slow'));
}

sub workers
{
	return sql($node,
		q(SELECT count(*) FROM batcher.worker WHERE database = 'postgres'));
}

is(workers(), 1, 'one worker at first');
sql($node, q(SELECT batch_enqueue('later', '{"n": 1}')));
block();
sql($node, q(SELECT batch_enqueue('slow', '{"n": 1}')));
my $slow = slow_worker();
is(fate('quick', '1 min'), 'flushed', 'a quick queue is flushed meanwhile');
is(fate('quicker', '1 min'), 'flushed', 'and another one');
is(fate('quick', '1 min'), 'flushed', 'and again');
is(workers(), 2, 'a second worker has come');
is(slow_worker(), $slow, 'the first one is still at the slow queue');
my $quick = sql($node,
	q(SELECT worker_pid FROM batcher.status WHERE queue = 'quick'));
isnt($quick, $slow, 'the second one has the quick queue');
is( sql(
		$node,
		q(SELECT worker_pid FROM batcher.status WHERE queue = 'later')),
	$slow,
	'a queue whose rows have time stays where it is');

# who asks for a flush does not wait for the slow queue either
is(sql($node, q(SELECT batch_flush('later'))), '1', 'forced');
sql($node, q(SELECT batch_enqueue('later', '{"n": 2}', immediate => true)));
wait_sql($node,
	q(SELECT count(*) = 2 FROM done WHERE queue = 'later'));
pass('an immediate row');
unblock();
wait_drained($node, 'slow');

# the next time nobody has to come first
block();
sql($node, q(SELECT batch_enqueue('slow', '{"n": 2}')));
slow_worker();
is(fate('quick', '1 min'), 'flushed', 'again a slow flush');
is(workers(), 2, 'two workers are enough');

# a queue that has just been made has no worker yet
sql(
	$node, q(
SELECT batch_create_queue('new', $$INSERT INTO done
	SELECT 'new', (payload->>'n')::int FROM batch$$)));
is(fate('new', '1 min'), 'flushed', 'a new queue meanwhile');
sql($node, q(SELECT batch_enqueue('new', '{"n": 2}', immediate => true)));
wait_sql($node, q(SELECT count(*) = 2 FROM done WHERE queue = 'new'));
pass('and an immediate row of it');

# a worker that ends gives its queues to the other, and is replaced
sql(
	$node, q(
SELECT pg_terminate_backend(worker_pid) FROM batcher.status
WHERE queue = 'quick'));
is(fate('quick', '1 min'), 'flushed', 'the worker of the quick queue has ended');
wait_sql($node, qq(
SELECT worker_pid NOT IN ($slow, $quick) FROM batcher.status
WHERE queue = 'quick'));
pass('another one has come');
unblock();
wait_drained($node, 'slow', 'quick', 'quicker', 'later');
sql($node, q(SELECT batch_drop_queue('new')));

# with one place there is one worker
sql($node, q(
ALTER SYSTEM SET batcher.max_workers = 1;
SELECT pg_reload_conf()));
wait_sql($node, q(SELECT count(*) = 1 FROM batcher.worker));
block();
sql($node, q(SELECT batch_enqueue('slow', '{"n": 3}')));
slow_worker();
is(fate('quick', '200 ms'), 'pending', 'with one worker they wait');
unblock();
wait_drained($node, 'slow', 'quick');
is(workers(), 1, 'one worker');

is( sql(
		$node,
		q(SELECT queue || ' ' || count(*) FROM done GROUP BY queue
		ORDER BY queue)),
	"later 2\nnew 2\nquick 5\nquicker 1\nslow 3",
	'each row was flushed once');

$blocker->quit;
$node->stop;
done_testing();
