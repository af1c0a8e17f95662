# A statement that ends its own worker is a flush that has failed: it is tried
# again with a delay, its breaker opens, and other queues go on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('ended', q(batcher.flush_interval = '10ms'));

sql(
	$node, q(
CREATE TABLE done (n int);
CREATE FUNCTION end_worker() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_terminate_backend(pg_backend_pid());
	PERFORM pg_sleep(60);
	RETURN 1;
END $$;
SELECT batch_create_queue('ends', 'SELECT end_worker() FROM batch',
	options => '{"breaker_threshold": 3, "breaker_recovery": "1 h",
		"retry_delay": "10 ms"}');
SELECT batch_create_queue('other', 'INSERT INTO done SELECT payload::int FROM batch')));
wait_worker($node);
sql($node, q(SELECT batch_enqueue('ends', '1')));
wait_sql($node,
	q(SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'ends'));
is( sql(
		$node, q(
SELECT batches_failed, rows_dead, last_error FROM batcher.stat_queue
WHERE queue = 'ends')),
	'3|0|the worker was ended in a flush',
	'three flushes have failed, and no row has died');
sql($node, q(SELECT batch_enqueue('other', '1')));
wait_sql($node, q(SELECT count(*) = 1 FROM done));
pass('another queue goes on');
is(sql($node, q(SELECT pending FROM batcher.status WHERE queue = 'ends')),
	'1', 'the row waits');

$node->stop;
done_testing();
