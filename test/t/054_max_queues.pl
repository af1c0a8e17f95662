# batcher.max_queues is lowered below the number of queues there are, and raised
# again: what is durable comes back, and the log counts what is lost.  Queues that
# are not served then can be seen, changed and dropped.

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
SELECT count(*) = 15 FROM done WHERE n < 4 AND queue ~ '^q[1-5]$'));
is( sql(
		$node, q(
SELECT count(*), count(DISTINCT (queue, n)) FROM done)),
	join('|', (15 + $restored + 4) x 2),
	'each row that is not lost is flushed once');

# Twelve durable queues, held, six of them with three rows, and four places.
my $refused_hint =
  qr/53400: too many queues.*HINT:  .*or drop a queue; last_error in batcher\.status/s;
my $is_unserved =
  q(last_error = 'too many queues: this one is not served');

sub unserved
{
	my ($kind) = @_;

	return split /\n/, sql(
		$node, qq(
SELECT queue FROM batcher.status WHERE $is_unserved AND queue LIKE '$kind%'));
}

sql($node, q(SELECT batch_drop_queue('q' || i, true) FROM generate_series(1, 10) i));
set_max_queues(12);
sql(
	$node, q(
TRUNCATE done;
SELECT batch_create_queue(kind || i, format(
	'INSERT INTO done SELECT %L, payload::int FROM batch', kind || i))
FROM generate_series(1, 6) i, unnest('{empty,full}'::text[]) kind;
SELECT batch_pause();
SELECT batch_enqueue_many('full' || i, '{1,2,3}') FROM generate_series(1, 6) i;
));
set_max_queues(4);
wait_sql($node,
	"SELECT count(*) = 8 FROM batcher.status WHERE $is_unserved");
is( sql(
		$node, qq(
CREATE ROLE watcher IN ROLE pg_monitor;
SET ROLE watcher;
SELECT count(*) FROM batcher.status WHERE $is_unserved)),
	'8',
	'who watches the server sees it');
my ($full) = unserved('full');
my ($empty) = unserved('empty');
my $dropped = sql($node,
	"SELECT queue FROM batcher.status WHERE last_error IS NULL LIMIT 1");

# What needs no place goes on, and the rest says so.
sql(
	$node, qq(
SELECT batch_alter_queue('$full', '{"flush_size": 7}');
SELECT batch_resume('$full'), batch_pause('$full')));
is( sql(
		$node, qq(
SELECT options, paused FROM batcher.queue WHERE queue = '$full')),
	'{"flush_size": 7}|t',
	'a queue that is not served can be changed');
foreach my $call (
	qq(batch_purge('$full')), qq(batch_enqueue('$full', '4')),
	qq(batch_alter_queue('$full', '{"lanes": 2}')))
{
	($rc, $out, $err) = try_sql($node, "SELECT $call");
	like($err, $refused_hint, "$call needs a place");
}
($rc, $out, $err) = try_sql($node, "SELECT batch_drop_queue('$full')");
like($err, qr/55006: .*DETAIL:  3 rows wait/s,
	'it is not dropped while rows wait');

# Nobody gets a place for a queue that another one is about to drop, though there
# is one.
my $session = $node->background_psql('postgres');
$session->query_safe("BEGIN; SELECT batch_drop_queue('$empty')");
sql($node, "SELECT batch_drop_queue('$dropped', force => true)");
sql($node,
	q(BEGIN; SELECT batch_create_queue('there is a place', NULL); ROLLBACK));
($rc, $out, $err) = try_sql($node, "SELECT batch_enqueue('$empty', '4')");
like($err, $refused_hint, 'who enqueues gets none');
wait_sql($node,
	"SELECT $is_unserved FROM batcher.status WHERE queue = '$empty'");
is(scalar(unserved('')), 8, 'nor does a worker');

# Until that is rolled back.
$session->query_safe('ROLLBACK');
$session->quit;
wait_sql($node,
	"SELECT count(*) = 7 FROM batcher.status WHERE $is_unserved");

# With force, rows that nobody serves go too.
sql($node, "SELECT batch_drop_queue('$_', force => true)")
  foreach unserved('');
is(sql($node, 'SELECT count(*), count(last_error) FROM batcher.status'),
	'4|0', 'those that are left are served');
my $nfull = sql($node,
	q(SELECT count(*) FROM batcher.status WHERE queue LIKE 'full%'));
is(sql($node, 'SELECT count(*) FROM batcher.spool'),
	$nfull, 'the spool has only their rows');
sql($node, q(SELECT batch_resume()));
wait_sql($node, qq(SELECT count(*) = 3 * $nfull FROM done));
is( sql($node, 'SELECT count(DISTINCT (queue, n)), count(DISTINCT queue) FROM done'),
	3 * $nfull . "|$nfull",
	'which are flushed, once');
($rc, $out, $err) = try_sql($node, q(SELECT batch_create_queue('one more')));
like($err, $refused_hint, 'there is no place for another');
sql($node, q(SELECT batch_drop_queue(queue) FROM batcher.queue));
sql($node, q(SELECT batch_create_queue('n' || i) FROM generate_series(1, 4) i));
is(sql($node, 'SELECT count(*), count(last_error) FROM batcher.status'),
	'4|0', 'nothing was left in their places');

# A queue with more lanes than there is room for takes none of it, and does not
# keep the others from being flushed.
sql($node, q(SELECT batch_drop_queue(queue) FROM batcher.queue));
set_max_queues(12);
sql(
	$node, q(
TRUNCATE done;
CREATE DATABASE two;
SELECT batch_create_queue(queue, format(
	'INSERT INTO done SELECT %L, payload::int FROM batch', queue),
	options => jsonb_build_object('flush_interval', '1 h', 'lanes', lanes))
FROM (VALUES ('a', 1), ('b', 1), ('lanes', 6)) q (queue, lanes);
SELECT batch_pause();
SELECT batch_enqueue_many(queue, '{1,2,3}') FROM batcher.queue;
));
$node->safe_psql(
	'two', q(
CREATE EXTENSION batcher;
SELECT batch_create_queue('c'), batch_create_queue('d')));
set_max_queues(5);
wait_sql($node, "SELECT $is_unserved FROM batcher.status WHERE queue = 'lanes'");
sql($node, 'SELECT batch_resume()');
wait_sql($node,
	"SELECT count(*) = 1 FROM batcher.status WHERE $is_unserved");
is( sql(
		$node, q(
SELECT count(*), min(last_error) = min(batch_stats(queue)->>'last_error')
FROM batcher.stat_queue WHERE last_error IS NOT NULL)),
	'1|t',
	'all views say it');
is( $node->safe_psql(
		'two', q(SELECT count(batch_enqueue(queue, '1')) FROM batcher.queue)),
	'2',
	'the others have their places');
foreach my $call ("batch_flush('lanes')", "batch_purge('lanes')")
{
	($rc, $out, $err) = try_sql($node, "SELECT $call");
	like($err, $refused_hint, "$call needs a place");
}
($rc, $out, $err) = try_sql($node, 'SELECT batch_flush()');
is($out, '6', 'batch_flush flushes the others');
like($err,
	qr/WARNING:  53400: queue "lanes" is not served, because there are too many queues/,
	'and says which it does not');

# A place is taken also when it becomes free in another database.
sql($node, q(SELECT batch_drop_queue('lanes', true)));
set_max_queues(3);
my ($has, $other) = ('postgres', 'two');
my $count_unserved =
  "SELECT count(*) FROM batcher.status WHERE $is_unserved";
my $end = time() + $PostgreSQL::Test::Utils::timeout_default;
until ($node->safe_psql($has, $count_unserved) eq '1')
{
	die 'all have a place' if time() > $end;
	($has, $other) = ($other, $has);
}
is($node->safe_psql($other, $count_unserved), '0', 'one has no place');
$node->safe_psql($other,
	q(SELECT batch_drop_queue(min(queue), true) FROM batcher.queue));
ok($node->poll_query_until($has, $count_unserved, '0'),
	'it takes one that another database had');
is( $node->safe_psql(
		$has, q(SELECT count(batch_enqueue(queue, '1')) FROM batcher.queue)),
	'2',
	'and is served');

$node->stop;
done_testing();
