
# A queue that is dropped while batch_flush is about to ask for its flush, or
# somebody is about to enqueue, leaves nothing in shared memory.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# There is room for two queues.
my $node = new_node('flush_dropped', 'batcher.max_queues = 2');

# Make a queue.  It waits for the room of one that was just dropped.
sub create
{
	my ($queue) = @_;
	my ($rc) = try_sql($node,
		"SELECT batch_create_queue('$queue', 'SELECT FROM batch');");

	is($rc, 0, "there is room for queue $queue");
	return;
}

foreach my $call (q(batch_flush(NULL)), q(batch_flush('late')),
	q(batch_purge('late')))
{
	create('late');
	my $session = $node->background_psql('postgres');
	$session->query_until(
		qr/^go$/m,
		qq(\\echo go
SET batcher.debug_points = 'ensure-shared=wait';
SELECT $call;
));
	wait_point($node, 'ensure-shared');
	sql($node, q(SELECT batch_drop_queue('late')));
	# Both places are free again when two others can be made.
	create('one');
	create('two');
	sql($node, q(SELECT batch_drop_queue('two')));
	create('three');
	sql($node, q(SELECT batch_drop_queue('three'), batch_drop_queue('one')));
	create('one');
	release_point($node, 'ensure-shared');
	is($session->query_safe('SELECT 1'), "0\n1", "$call of a queue that is gone");
	create('two');
	sql($node, q(SELECT batch_drop_queue('one'), batch_drop_queue('two')));
	$session->quit;
}

# Who enqueues has the spool then: he has read the definition after the drop had
# waited for all others.
create('late');
my $drop = $node->background_psql('postgres');
my $session = $node->background_psql('postgres', on_error_stop => 0);
$drop->query_safe(q(BEGIN; SELECT batch_drop_queue('late')));
$session->query_until(
	qr/^go$/m,
	qq(\\echo go
SET batcher.debug_points = 'ensure-shared=wait';
SELECT batch_enqueue('late', '1');
));
wait_point($node, 'ensure-shared');
$drop->query_safe('COMMIT');
sql($node,
	q(BEGIN; SELECT batch_create_queue('one'), batch_create_queue('two'); ROLLBACK));
release_point($node, 'ensure-shared');
$session->query('SELECT 1');
like($session->{stderr}, qr/queue "late" does not exist/,
	'there is nothing to enqueue into');
create('one');
create('two');
$_->quit foreach $session, $drop;

$node->stop;
done_testing();
