# batcher.max_queues is lowered below the number of queues there are, and raised
# again: what is durable comes back, and the log counts what is lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('maxqueues', q(
batcher.max_queues = 10
batcher.flush_interval = '20ms'
));

sub set_max_queues
{
	my ($n) = @_;

	sql($node, "ALTER SYSTEM SET batcher.max_queues = $n");
	$node->restart;
	return;
}

# Five durable queues and five others, with three rows each, held.
sql(
	$node, q(
CREATE TABLE done (queue text, n int);
SELECT batch_create_queue('q' || i, format(
	'INSERT INTO done SELECT %L, payload::int FROM batch', 'q' || i),
	options => jsonb_build_object('durable', i <= 5))
FROM generate_series(1, 10) i;
SELECT batch_pause();
SELECT batch_enqueue_many('q' || i, '{1,2,3}') FROM generate_series(1, 10) i;
));
my ($rc, $out, $err) = try_sql($node, q(SELECT batch_create_queue('one more')));
like($err, qr/53400: too many queues.*HINT:  .*batcher\.max_queues/s,
	'no more queues than that');

# Four of them have a place now.
my $position = log_position($node);
set_max_queues(4);
$node->wait_for_log(
	qr/WARNING:  too many queues: 6 are not served.*HINT:  Increase "batcher\.max_queues"/s,
	$position);
my $log = slurp_file($node->logfile, $position);
my ($restored) = $log =~ /restored (\d+) rows? of non-durable queues/;
my ($lost) = $log =~ /(\d+) saved rows? of non-durable queues (?:is|are) lost/;
$restored = 0 unless defined $restored;
$lost = 0 unless defined $lost;
is($restored + $lost, 15, "$restored rows are restored, and $lost lost");

# Who enqueues into one of the others is told so; the rest works.
my ($served, $refused) = (0, 0);
foreach my $i (1 .. 10)
{
	($rc, $out, $err) =
	  try_sql($node, "SELECT batch_enqueue('q$i', '4') > 0");
	$served++ if $rc == 0 && $out eq 't';
	$refused++ if $err =~ /53400: too many queues/;
}
is("$served $refused", '4 6', 'four queues take rows, six refuse them');
sql($node, q(SELECT batch_resume()));
wait_sql(
	$node, q(
SELECT count(*) = 4 FROM done WHERE n = 4));
is( sql(
		$node, q(
SELECT count(DISTINCT queue) FROM done)),
	'4',
	'the four are flushed');

# With places for all, all comes that was durable, once.
set_max_queues(10);
wait_sql($node, q(
SELECT count(*) = 15 FROM done WHERE n < 4 AND queue <= 'q5'));
is( sql(
		$node, q(
SELECT count(*), count(DISTINCT (queue, n)) FROM done)),
	join('|', (15 + $restored + 4) x 2),
	'each row that is not lost is flushed once');

$node->stop;
done_testing();
