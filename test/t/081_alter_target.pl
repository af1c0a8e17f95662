
# A target and a row type that change just before a flush looks at them, and
# while it uses them: the rows go into what is there, or are dead letters with
# a reason; nothing is lost, and nothing ends a worker.
#
# Failure table: "target or row type is altered while rows wait".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# Let the worker go on at a point, also when it comes there again, until the
# query returns true: it rereads its settings only when the flush is over.
sub release_until
{
	my ($node, $point, $query) = @_;
	my $go = $node->data_dir . "/batcher_debug_$point.go";
	my $tries = 0;

	disarm($node);
	while (sql($node, $query) ne 't')
	{
		die "waited in vain for: $query" if $tries++ > 1000;
		append_to_file($go, '');
		usleep(10_000);
	}
	unlink $go;
	return;
}

my $node = new_node('main', "batcher.flush_interval = '10ms'");

# How many row types the worker remembers.
sub count_row_types
{
	my ($pid) = @_;
	my $position = log_position($node);

	sql($node, "SELECT pg_log_backend_memory_contexts($pid)");
	$node->wait_for_log(qr/Grand total/, $position);
	return scalar(() =
		  slurp_file($node->logfile, $position) =~ /batcher row type:/g);
}

foreach my $durable ('true', 'false')
{
	note("durable $durable");
	sql(
		$node, qq(
CREATE TABLE target (id int PRIMARY KEY, a int, b text DEFAULT 'b');
SELECT batch_create_queue('q', target => 'target',
	options => '{"retry_delay": "10 ms", "max_attempts": 1, "durable": $durable}');
SELECT batch_enqueue('q', '{"id": 1, "a": 1}');
));
	wait_sql($node, 'SELECT count(*) = 1 FROM target');
	my $pid = worker_pid($node);

	# --- between the claim and the look at the target ---

	arm($node, 'statement=wait');
	sql($node, q(SELECT batch_enqueue('q', '{"id": 2, "a": 2}'),
	batch_enqueue('q', '{"id": 3, "b": "three"}'),
	batch_enqueue('q', '{"id": 4, "b": "four"}')));
	wait_point($node, 'statement');
	sql(
		$node, q(
SET lock_timeout = '10 s';
ALTER TABLE target DROP COLUMN a, ADD COLUMN c int DEFAULT 7;
UPDATE target SET b = '1';
ALTER TABLE target ALTER b DROP DEFAULT,
	ALTER b TYPE varchar(4), ADD CHECK (b <> 'four');
ALTER TABLE target RENAME TO renamed;
));
	release_until($node, 'statement', q(SELECT NOT EXISTS (SELECT FROM batcher.pending)));
	is( sql($node, 'SELECT * FROM renamed ORDER BY id'),
		"1|1|7\n2||7", 'rows that the changed target takes');
	is( sql($node, 'SELECT payload, sqlstate FROM batcher.dead_letter ORDER BY ticket'),
		qq({"b": "three", "id": 3}|22001
{"b": "four", "id": 4}|23514), 'rows that it does not take');
	is(worker_pid($node), $pid, 'the worker goes on');

	# --- while the statement runs ---

	arm($node, 'executing=wait');
	sql($node, q(SELECT batch_enqueue('q', '{"id": 5}')));
	wait_point($node, 'executing');
	my ($rc, $out, $err) =
	  try_sql($node, q(SET lock_timeout = '10 ms'; ALTER TABLE renamed ADD d int));
	like($err, qr/55P03/, 'a target in use is locked');
	release_until($node, 'executing', 'SELECT count(*) = 3 FROM renamed');
	sql($node, 'ALTER TABLE renamed ADD d int DEFAULT 8');
	sql($node, q(SELECT batch_enqueue('q', '{"id": 6}')));
	wait_sql($node, 'SELECT d = 8 FROM renamed WHERE id = 6');
	is(worker_pid($node), $pid, 'the worker goes on');

	# --- another table takes the name of the target, and the place is dropped ---

	sql($node, q(CREATE TABLE target (id int)));
	sql($node, q(SELECT batch_enqueue('q', '{"id": 7}')));
	wait_sql($node, 'SELECT count(*) = 1 FROM renamed WHERE id = 7');
	is(sql($node, 'SELECT count(*) FROM target'),
		'0', 'another table of the old name gets nothing');
	arm($node, 'statement=wait');
	sql($node, q(SELECT batch_enqueue('q', '{"id": 8}')));
	wait_point($node, 'statement');
	sql($node, 'DROP TABLE renamed');
	release_until($node, 'statement', q(SELECT breaker_state = 'open' AND breaker_reason ~ 'target .* was dropped'
		FROM batcher.status));
	is(sql($node, 'SELECT payload FROM batcher.pending'),
		'{"id": 8}', 'the row waits');
	sql($node, q(SELECT batch_alter_queue('q', target => 'target')));
	wait_sql($node, 'SELECT count(*) = 1 FROM target WHERE id = 8');
	is(worker_pid($node), $pid, 'the worker goes on');

	# --- a type that changes between the claim and the look at it ---

	sql(
		$node, qq(
CREATE TYPE pair AS (x int, y text);
CREATE TABLE pairs (x text, y text);
SELECT batch_create_queue('typed', 'INSERT INTO pairs SELECT x, y FROM batch',
	row_type => 'pair', options => '{"max_attempts": 1, "durable": $durable}');
SELECT batch_enqueue_row('typed', ROW(1, 'one')::pair);
));
	wait_sql($node, 'SELECT count(*) = 1 FROM pairs');
	arm($node, 'statement=wait');
	sql($node, q(SELECT batch_enqueue_row('typed', ROW(2, 'two')::pair)));
	wait_point($node, 'statement');
	sql($node, q(ALTER TYPE pair ADD ATTRIBUTE z int, ALTER ATTRIBUTE x TYPE text));
	release_until($node, 'statement', q(SELECT count(*) = 1 FROM pairs WHERE x = '2'));
	is(worker_pid($node), $pid, 'the worker goes on');
	is(sql($node, 'SELECT count(*) FROM batcher.dead_letter'),
		'2', 'no other dead letters');

	# --- a type that is dropped ---

	sql($node, q(SELECT batch_pause('typed')));
	sql($node, q(SELECT batch_enqueue_row('typed', ROW('3', 'three', 3)::pair)));
	sql($node, 'DROP TYPE pair');
	sql($node, q(SELECT batch_resume('typed')));
	wait_sql(
		$node, q(
SELECT breaker_state = 'open' AND breaker_reason ~ 'row type .* was dropped'
FROM batcher.status WHERE queue = 'typed'));
	is(sql($node, q(SELECT payload->>'y' FROM batcher.pending WHERE queue = 'typed')),
		'three', 'the row waits');
	sql($node, 'CREATE TYPE pair AS (y text, x text)');
	sql($node, q(SELECT batch_alter_queue('typed', row_type => 'pair')));
	wait_sql($node, q(SELECT count(*) = 1 FROM pairs WHERE x = '3' AND y = 'three'));
	is(worker_pid($node), $pid, 'the worker goes on');

	# --- flushes that wait in vain for the target leave nothing behind ---

	sql(
		$node, qq(
CREATE TABLE kept (id int);
SELECT batch_create_queue('waits', target => 'kept', options =>
	'{"flush_timeout": "50 ms", "retry_delay": "10 ms",
		"breaker_threshold": 1000000, "durable": $durable}');
SELECT batch_enqueue('waits', '{"id": 0}')));
	wait_sql($node, 'SELECT count(*) = 1 FROM kept');
	my $row_types = count_row_types($pid);
	cmp_ok($row_types, '>', 0, 'the worker remembers row types');
	my $locker = $node->background_psql('postgres');
	foreach my $round (1 .. 3)
	{
		my $failed = q(SELECT batches_failed FROM batcher.stat_queue
WHERE queue = 'waits');
		my $before = sql($node, $failed);

		$locker->query_safe('BEGIN; LOCK TABLE kept IN SHARE MODE');
		sql($node, qq(SELECT batch_enqueue('waits', '{"id": $round}')));
		wait_sql($node, "SELECT ($failed) > $before");
		$locker->query_safe('COMMIT');
		wait_sql($node, "SELECT count(*) = 1 + $round FROM kept");
	}
	$locker->quit;
	is(count_row_types($pid), $row_types, 'and no more after flushes that failed');
	is(worker_pid($node), $pid, 'the worker goes on');

	sql(
		$node, q(
SELECT batch_drop_queue(queue, force => true) FROM batcher.queue;
DROP TABLE target, pairs, kept;
DROP TYPE pair;
));
}

done_testing();
