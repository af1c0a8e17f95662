# A lane that its queue has no more counts as spilled when its owner ends: it is
# looked after by another worker, and goes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'lane_gone', q(
batcher.flush_interval = '10ms'
batcher.max_workers = 2
));

sql(
	$node, q(
CREATE TABLE done (key text);
SELECT batch_create_queue(queue,
	$$INSERT INTO done SELECT batch_key FROM batch$$, options => options)
FROM (VALUES ('spread', '{"lanes": 2}'::jsonb), ('slow', '{}'),
	('other', '{}')) q (queue, options)));
sql(
	$node, q(
SELECT count(batch_enqueue('spread', '1', 'k' || i))
FROM generate_series(1, 20) i));
wait_drained($node, 'spread');

# Its owner is busy with another queue while the lane goes, ...
arm($node, 'committed=wait');
sql($node, q(SELECT batch_enqueue('slow', '1', 'slow')));
wait_point($node, 'committed');
disarm($node);
sql($node, q(SELECT batch_alter_queue('spread', '{"lanes": 1}')));

# ... and another worker notices that the spool was rewritten.
sql($node, 'VACUUM FULL batcher.spool');
sql($node, q(SELECT batch_enqueue('other', '1', 'other')));
wait_drained($node, 'other');

sql(
	$node, q(
SELECT pg_terminate_backend(pid) FROM batcher.worker WHERE queue = 'slow'));
release_point($node, 'committed');
sql($node, q(SELECT batch_enqueue('spread', '1', 'late')));
my $warning;
$node->psql(
	'postgres',
	q(SELECT batch_flush('spread', '30 s')),
	stderr => \$warning);
is($warning, '', 'a flush of the queue comes to an end');
is(sql($node, 'SELECT count(*), count(DISTINCT key) FROM done'),
	'23|23', 'each row was flushed once');

$node->stop;
done_testing();
