
# A preset goes before the server's settings, and these give way to it; without
# a preset a change of the settings reaches the queue.
#
# M1.7 (interval and size by server configuration, changed at run time)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('preset', "batcher.flush_interval = '10ms'");

sql(
	$node, q(
SELECT batch_create_queue('q', 'SELECT FROM batch', options => '{"preset": "development"}');
SELECT batch_create_queue('plain', 'SELECT FROM batch');
));

# The effective value of an option, and where it is from.
sub config
{
	my ($queue, $option) = @_;

	return sql($node, "SELECT batch_stats('$queue')->'config'->'$option'");
}

is(config('plain', 'flush_interval'),
	'{"value": "10 ms", "source": "server"}', 'a setting counts');
is(config('q', 'flush_interval'),
	'{"value": "500 ms", "source": "preset"}', 'a preset goes before it');

$node->append_conf('postgresql.conf',
	"batcher.max_batch_size = 30\nbatcher.flush_interval = '1h'");
$node->reload;
wait_sql($node,
	"SELECT batch_stats('plain')->'config'->'max_batch_size'->>'value' = '30'");
is(config('plain', 'flush_interval'),
	'{"value": "1 h", "source": "server"}', 'a changed setting counts');
is(config('plain', 'flush_size'),
	'{"value": 30, "source": "default"}', 'and what follows from it');
is(config('q', 'flush_size'),
	'{"value": 50, "source": "preset"}', 'a preset stays as it is');
is(config('q', 'max_batch_size'),
	'{"value": 50, "source": "preset"}', 'a setting gives way to it');

# The worker sees it that way, too: 50 rows make a batch of the one queue, and
# two of the other.
sql($node, "SELECT batch_enqueue_many('$_', array_fill('1'::jsonb, '{50}'))")
  for qw(q plain);
wait_sql($node, "SELECT count(*) = 2 FROM batcher.stat_queue
	WHERE (queue, rows_flushed) IN (('q', 50), ('plain', 30))");
is( sql(
		$node, "SELECT string_agg(batches::text, ',' ORDER BY queue)
			FROM batcher.stat_queue"),
	'1,1', 'sizes of batches');

done_testing();
