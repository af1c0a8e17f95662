# An immediate row of a key of which a transaction is just committing leaves as
# soon as that is decided, and holds no other one up; it does not overtake the
# rows of that transaction.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('immediate');

create_order_queue($node, 'q', 'done', '{"flush_interval": "1 h"}');
wait_worker($node);

sub enqueue
{
	my ($n, $key, $immediate) = @_;

	sql($node,
		"SELECT batch_enqueue('q', '{\"n\": $n}', $key, immediate => $immediate)");
	return;
}

# A row that waits gives the lane a time at which the worker looks by itself.
enqueue(1, "'waits'", 'false');

# The transaction is committed, and its row undecided.
my $session = $node->background_psql('postgres');
$session->query_until(
	qr/^go$/m,
	qq(\\echo go
SET batcher.debug_points = 'commit=wait';
SELECT batch_enqueue('q', '{"n": 2}', 'k');
));
wait_point($node, 'commit');

enqueue(3, "'k'", 'true');
enqueue(4, "'other'", 'true');
enqueue(5, 'NULL', 'true');
wait_sql($node,
	q(SELECT array_agg(n ORDER BY n) = '{4,5}' FROM done));
pass('other immediate rows are not held up');

release_point($node, 'commit');
wait_sql($node,
	q(SELECT array_agg(n ORDER BY pos) = '{2,3}' FROM done WHERE key = 'k'));
pass('rows of the key leave when it is decided');
is(sql($node, q(SELECT n FROM batcher.pending p, LATERAL
	(SELECT (payload->>'n')::int AS n) s)),
	'1', 'what is not immediate waits');

# A row of a key that was held back when the worker looked, and is not any more
# when it takes the rows, does not overtake the one that has held it back.
$session->query_until(
	qr/^go$/m,
	qq(\\echo go
SELECT batch_enqueue('q', '{"n": 6}', 'late');
));
wait_point($node, 'commit');
arm($node, 'immediate=wait');
sql(
	$node, q(
SELECT batch_enqueue('q', '{"n": 7}', 'late', immediate => true),
	batch_enqueue('q', '{"n": 8}', 'free', immediate => true)));
wait_point($node, 'immediate');
release_point($node, 'commit');
$session->query_safe('SELECT 1');
disarm($node);
release_point($node, 'immediate');
wait_sql($node, q(SELECT count(*) = 1 FROM done WHERE n = 8));
sql($node, q(SELECT batch_flush('q')));
is(sql($node, q(SELECT count(*) FROM done WHERE n BETWEEN 6 AND 8)),
	'3', 'all of them are flushed');
is(order_faults($node, 'done'), '0', 'rows of a key stay in order');

$session->quit;
$node->stop;
done_testing();
