
# A queue that is dropped while workers have just read its definition leaves
# nothing in shared memory.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# There is room for five lanes.  Two queues have a worker each, because their
# owners differ; nobody has the lanes of the third one, which may be taken away
# by whoever comes first.
my $node = new_node('drop_while_read', 'batcher.max_queues = 5');

sql(
	$node, q(
CREATE ROLE alice;
CREATE ROLE bob;
GRANT EXECUTE ON FUNCTION batch_create_queue TO alice, bob;
CREATE FUNCTION make(queue text, role text, lanes int) RETURNS void
BEGIN ATOMIC
	SELECT set_config('role', role, true);
	SELECT batch_create_queue(queue, 'SELECT FROM batch',
		options => jsonb_build_object('lanes', lanes));
END;
SELECT make('hers', 'alice', 1);
SELECT batch_create_queue('ours', 'SELECT FROM batch');
SELECT batch_enqueue(queue, '{}') FROM batcher.queue;
SELECT batch_flush();
));
wait_sql($node, q(SELECT count(*) = 2 FROM batcher.worker));

foreach my $lanes (1, 3)
{
	sql($node, "SELECT make('his', 'bob', $lanes)");
	# both have read it, of whom one tells
	arm($node, 'definitions-read=wait');
	wait_point($node, 'definitions-read');
	wait_sql(
		$node, q(
SELECT count(*) = 2 FROM pg_stat_activity a, batcher.worker w
WHERE a.pid = w.pid AND clock_timestamp() - xact_start > '1 s'));
	disarm($node);
	sql($node, q(SELECT batch_drop_queue('his')));
	# one takes the lanes away, as can be seen when another queue has their room
	release_point($node, 'definitions-read');
	sql($node, q(SELECT make('next', 'bob', 3); SELECT batch_drop_queue('next')));
	release_point($node, 'definitions-read');
	sql($node, q(SELECT batch_enqueue(queue, '{}') FROM batcher.queue));
	wait_drained($node, 'hers', 'ours');
	my ($rc, $out, $err) = try_sql($node, "SELECT make('next', 'bob', 3)");
	is($rc, 0, "there is room again after a queue with lanes: $lanes") || diag $err;
	sql($node, q(SELECT batch_drop_queue('next')));
}

$node->stop;
done_testing();
