
# Rows that fail, and processes that end while they are isolated, tried again or
# buried: no row is lost or flushed twice, attempts are known afterwards, and a
# row is a dead letter once.  What it costs, and what the log says of it.
# M5.5 (each step of degrading is logged once)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('isolation', "batcher.flush_interval = '10ms'");

sql(
	$node, q(
CREATE TABLE done (queue text, id int CHECK (id > 0));
SELECT batch_create_queue('durable', $$INSERT INTO done
	SELECT 'durable', (payload->>'id')::int FROM batch$$,
	options => '{"retry_delay": "1 h", "retry_max_delay": "1 h"}');
SELECT batch_create_queue('volatile', $$INSERT INTO done
	SELECT 'volatile', (payload->>'id')::int FROM batch$$,
	options => '{"retry_delay": "1 h", "retry_max_delay": "1 h", "durable": false}');
));

sub enqueue
{
	my ($queue, @ids) = @_;

	my $ids = join ',', @ids;

	return sql(
		$node, qq(
SELECT batch_enqueue_many('$queue', array(
	SELECT jsonb_build_object('id', id) FROM unnest('{$ids}'::int[]) id)) IS NOT NULL));
}

# The rows that were flushed since the last call.
sub flushed
{
	my ($queue) = @_;

	return sql(
		$node, qq(
WITH d AS (DELETE FROM done WHERE queue = '$queue' RETURNING id)
SELECT string_agg(id::text, ' ' ORDER BY id) FROM d));
}

sub pending
{
	my ($queue) = @_;

	return sql(
		$node, qq(
SELECT string_agg((payload->>'id') || ':' || attempts, ' ' ORDER BY ticket)
FROM batcher.pending WHERE queue = '$queue'));
}

# What the isolation has settled and what it has charged commits together.
enqueue('durable', 1, 2, -3, 4);
wait_sql($node, q(SELECT count(*) = 3 FROM done));
is(pending('durable'), '-3:1', 'the row that failed is charged');
is(flushed('durable'), '1 2 4', 'the others are flushed');

# The attempts are in the spool: after a crash the row is tried again, and
# again, and then it is dead.
$node->stop('immediate');
$node->start;
wait_sql($node, q(SELECT attempts = 2 FROM batcher.pending));
is(sql($node, q(SELECT count(*) FROM batcher.spool)), '1', 'one tuple');
$node->stop('immediate');
$node->start;
wait_sql($node, q(SELECT count(*) = 1 FROM batcher.dead_letter));
is( sql(
		$node, q(
SELECT queue, payload->>'id', attempts, sqlstate FROM batcher.dead_letter)),
	'durable|-3|3|23514',
	'it is a dead letter after three attempts');
is(sql($node, q(SELECT count(*) FROM batcher.spool)),
	'0', 'and no longer in the spool');
is(sql($node, q(SELECT batch_wait('durable', ticket) FROM batcher.dead_letter)),
	'dead', 'batch_wait knows it');

# After a restart nothing but the table knows it.
$node->restart;
is(sql($node, q(SELECT batch_wait('durable', ticket) FROM batcher.dead_letter)),
	'dead', 'batch_wait knows it after a restart');
sql($node, q(SELECT batch_purge_dead('durable')));

# The same in memory only, through clean stops.
enqueue('volatile', 11, -12, 13);
wait_sql($node, q(SELECT count(*) = 2 FROM done));
is(pending('volatile'), '-12:1', 'a row in memory is charged');
is(flushed('volatile'), '11 13', 'and the others are flushed');
$node->restart;
wait_sql($node, q(SELECT attempts = 2 FROM batcher.pending));
$node->restart;
wait_sql($node, q(SELECT count(*) = 1 FROM batcher.dead_letter));
is(sql($node, q(SELECT payload->>'id', attempts FROM batcher.dead_letter)),
	'-12|3', 'attempts survive a clean stop');
sql($node, q(SELECT batch_purge_dead('volatile')));

# Processes that end on the way: the worker, before its commit, and after it.
sql($node, q(SELECT batch_alter_queue('durable', options => '{"max_attempts": 1}')));
enqueue('durable', 20);
wait_sql($node, q(SELECT count(*) = 1 FROM done));
flushed('durable');
foreach my $point (qw(claimed settle committed))
{
	sql($node, q(SELECT batch_pause('durable')));
	enqueue('durable', 21, 22, -23, 24, -25);
	arm($node, "$point=wait");
	sql($node, q(SELECT batch_resume('durable')));
	wait_point($node, $point);
	if ($point eq 'claimed')
	{
		# once for the whole batch, and once for its isolation
		release_point($node, $point);
		wait_point($node, $point);
	}
	disarm($node);
	kill_process($node, worker_pid($node));
	wait_drained($node, 'durable');
	wait_sql($node, q(SELECT count(*) = 2 FROM batcher.dead_letter));
	is(flushed('durable'), '21 22 24', "killed at \"$point\": flushed once");
	is( sql(
			$node, q(
SELECT string_agg((payload->>'id') || ':' || attempts, ' ' ORDER BY ticket)
FROM batcher.dead_letter)),
		'-23:1 -25:1',
		"killed at \"$point\": dead once");
	sql($node, q(SELECT batch_purge_dead('durable')));
}

# An error that looks like the statement's, of a row that had failed among
# others before a restart: nobody knows of that afterwards.  It neither holds up
# the others nor waits for ever.
sql(
	$node, q(
CREATE FUNCTION deny(id int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	IF id < 0 THEN
		RAISE insufficient_privilege;
	END IF;
	RETURN id;
END $$;
SELECT batch_create_queue('denied', $$INSERT INTO done
	SELECT 'denied', deny((payload->>'id')::int) FROM batch$$,
	options => '{"retry_delay": "1 h", "retry_max_delay": "1 h",
		"breaker_recovery": "20 ms", "breaker_probes": 1}');
));
enqueue('denied', 41, -42, 43);
wait_sql($node, q(SELECT attempts = 1 FROM batcher.pending));
my $good = 50;
foreach my $attempt (2, 3)
{
	$node->restart;
	wait_sql($node, q(
SELECT breaker_opened > 0 FROM batcher.stat_queue WHERE queue = 'denied'));
	enqueue('denied', $good++, $good++);
	wait_sql($node, $attempt == 3 ?
		  q(SELECT count(*) = 1 FROM batcher.dead_letter) :
		  q(SELECT count(*) = 1 AND bool_and(attempts = 2) FROM batcher.pending));
	sql($node, q(SELECT batch_reset_stats('denied')));
}
wait_drained($node, 'denied');
is(flushed('denied'), '41 43 50 51 52 53', 'the others are flushed');
is(sql($node, q(SELECT payload->>'id', attempts FROM batcher.dead_letter)),
	'-42|3', 'the row is a dead letter');
sql($node, q(SELECT batch_purge_dead('denied')));

# Nor does anybody know it of another statement, in which each row fails so: that
# opens the breaker, and no row is charged for it.
sql(
	$node, q(
SELECT batch_alter_queue('denied', options => '{"breaker_recovery": "1 h",
	"breaker_threshold": 2}')));
enqueue('denied', 45, -46, 47);
wait_sql($node, q(SELECT attempts = 1 FROM batcher.pending));
is(flushed('denied'), '45 47', 'the others are flushed');
sql($node, q(SELECT batch_reset_stats('denied')));
sql(
	$node, q(
SELECT batch_alter_queue('denied', flush_sql => $$INSERT INTO done
	SELECT 'denied', deny(-abs((payload->>'id')::int)) FROM batch$$)));
foreach my $try (1 .. 3)
{
	sql($node, q(SELECT batch_flush('denied')));
}
is( sql(
		$node, q(
SELECT breaker_state, rows_failed, rows_dead
FROM batcher.status JOIN batcher.stat_queue USING (queue)
WHERE queue = 'denied')),
	'open|0|0',
	'another statement opens the breaker');
is(pending('denied'), '-46:1', 'and the row is not charged for it');
sql($node, q(SELECT batch_drop_queue('denied', true)));

# An error outside of the statement is nobody's fault.
sql(
	$node, q(
SELECT batch_alter_queue('durable', options => '{"retry_delay": "10 ms",
	"retry_max_delay": "10 ms", "breaker_threshold": 1000}')));
arm($node, 'settle=error');
enqueue('durable', 31, -32);
wait_sql($node, q(
SELECT batches_failed > 2 FROM batcher.stat_queue WHERE queue = 'durable'));
is(pending('durable'), '31:0 -32:0', 'nobody is charged for it');
disarm($node);
wait_drained($node, 'durable');
is(flushed('durable'), '31', 'the good row is flushed when it is over');
is(sql($node, q(SELECT payload->>'id' FROM batcher.dead_letter)),
	'-32', 'and the other is a dead letter');

# Rows that are tried again from the table of dead letters, and a crash.
sql($node, q(ALTER TABLE done DROP CONSTRAINT done_id_check));
sql($node, q(SELECT batch_pause('durable'); SELECT batch_retry_dead('durable')));
$node->stop('immediate');
$node->start;
is(sql($node, q(SELECT count(*) FROM batcher.dead_letter)), '0', 'it has left');
sql($node, q(SELECT batch_resume('durable')));
wait_drained($node, 'durable');
is(flushed('durable'), '-32', 'and is flushed once');

# --- what an isolation costs, and what it says ---

# How many lines of the log since a position match.
sub log_lines
{
	my ($position, $pattern) = @_;

	return scalar(() = slurp_file($node->logfile, $position) =~ /$pattern/g);
}

# The numbers of subtransactions that transactions committed with since a
# place in the WAL, as their commit records say: the largest, and how many had
# any.
sub subtransactions_since
{
	my ($lsn) = @_;
	my $end = sql($node, 'SELECT pg_switch_wal()');
	my ($stdout, $stderr) = run_command(
		[
			'pg_waldump', '-p', $node->data_dir . '/pg_wal',
			'-r', 'Transaction', '-s', $lsn, '-e', $end
		]);
	my ($largest, $some) = (0, 0);

	foreach my $line (grep { /desc: COMMIT / } split /\n/, $stdout)
	{
		my $n = $line =~ /subxacts:((?: \d+)+)/ ? split(' ', $1) : 0;

		$some++ if $n > 0;
		$largest = $n if $n > $largest;
	}
	die "no commits in the WAL: $stderr" unless $stdout =~ /desc: COMMIT /;
	return ($largest, $some);
}

# The rows below zero fail in one way at first, and in another when they are
# tried again.
sql(
	$node, q(
CREATE FUNCTION odd(id int, attempts int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	IF id < 0 AND attempts = 0 THEN
		RAISE EXCEPTION 'refused' USING ERRCODE = 'YY001';
	ELSIF id < 0 THEN
		RAISE EXCEPTION 'refused again' USING ERRCODE = 'YY002';
	END IF;
	RETURN id;
END $$;
SELECT batch_create_queue('odd', $$INSERT INTO done
	SELECT 'odd', odd((payload->>'id')::int, batch_attempts) FROM batch$$,
	options => '{"max_attempts": 2, "retry_delay": "1 h",
		"retry_max_delay": "1 h"}');
));
my $lsn = sql($node, 'SELECT pg_current_wal_insert_lsn()');
enqueue('odd', 1 .. 400);
wait_sql($node, q(SELECT count(*) = 400 FROM done));
wait_drained($node, 'odd');
my ($largest, $some) = subtransactions_since($lsn);
is($some, 0, 'a batch that passes needs no subtransactions');
sql($node, q(DELETE FROM done));

my $position = log_position($node);
$lsn = sql($node, 'SELECT pg_current_wal_insert_lsn()');
enqueue('odd', map { $_ % 2 ? $_ : -$_ } 1 .. 400);
wait_sql($node, q(SELECT count(*) = 200 FROM done));
wait_sql($node, q(
SELECT count(*) = 200 AND bool_and(attempts = 1) FROM batcher.pending));
($largest, $some) = subtransactions_since($lsn);
cmp_ok($some, '>=', 4, 'what passes in pieces takes several transactions');
# 64 of each process are at hand to all others (PGPROC_MAX_CACHED_SUBXIDS)
cmp_ok($largest, '<=', 64, 'none of them has more than 64 subtransactions');
cmp_ok($largest, '>', 2, 'and they have some');

# A step is logged once, however many rows and batches go that way.
is(log_lines($position,
		qr/LOG:  queue "odd": a batch of 400 rows failed, and is flushed in smaller ones$/m),
	1, 'smaller batches are logged once');
is( log_lines($position, qr/flushed in smaller ones/),
	1, 'not for the batches that follow');
is( log_lines($position, qr/LOG:  queue "odd": rows are flushed one by one/),
	1, 'single rows are logged once');
is(log_lines($position, qr/: +refused$/m), 1, 'and the error');

# So is what the rows fail with when they are tried again, as it is another.
$position = log_position($node);
sql($node, q(SELECT batch_flush('odd')));
wait_sql($node, q(
SELECT count(*) = 200 FROM batcher.dead_letter WHERE queue = 'odd'));
is( log_lines($position, qr/LOG:  queue "odd": a row failed: refused again$/m),
	1, 'another error is logged once');
is( log_lines($position, qr/LOG:  queue "odd": rows are flushed one by one/),
	0, 'the step is known');
my @dead = slurp_file($node->logfile, $position) =~
  /LOG:  queue "odd": (\d+) rows? (?:is a dead letter|are dead letters)$/mg;
my $sum = 0;
$sum += $_ foreach @dead;
is($sum, 200, 'dead letters are counted in the log');
cmp_ok(scalar(@dead), '<', 20, 'a line for each transaction, not for each row');
is( sql(
		$node, q(
SELECT rows_flushed, rows_failed, rows_dead, breaker_opened,
	batches_split BETWEEN 4 AND 20
FROM batcher.stat_queue WHERE queue = 'odd')),
	'600|400|200|0|t',
	'and counted');

# The last step: no row passes, and the breaker opens, once for each time.
sql(
	$node, q(
SELECT batch_purge_dead('odd');
CREATE TABLE mended (mended bool);
CREATE FUNCTION broken(id int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM public.mended) THEN
		RAISE EXCEPTION 'out of order';
	END IF;
	RETURN id;
END $$;
SELECT batch_create_queue('broken', $$INSERT INTO done
	SELECT 'broken', broken((payload->>'id')::int) FROM batch$$,
	options => '{"max_attempts": 1000, "retry_delay": "10 ms",
		"retry_max_delay": "10 ms", "breaker_threshold": 2,
		"breaker_recovery": "20 ms", "breaker_probes": 2}');
));
$position = log_position($node);
enqueue('broken', 1 .. 40);
wait_sql($node, q(
SELECT breaker_opened >= 3 FROM batcher.stat_queue WHERE queue = 'broken'));
sql($node, q(INSERT INTO mended VALUES (true)));
wait_drained($node, 'broken');
# all at once, perhaps, but two batches close it
enqueue('broken', 41);
wait_drained($node, 'broken');
wait_sql($node, q(
SELECT breaker_state = 'closed' FROM batcher.status WHERE queue = 'broken'));
is( log_lines($position, qr/LOG:  breaker of queue "broken" is open: /),
	sql($node, q(
SELECT breaker_opened FROM batcher.stat_queue WHERE queue = 'broken')),
	'the log tells each time that a breaker opens');
is( log_lines($position,
		qr/LOG:  breaker of queue "broken" is open: 2 flushes in a row failed, the last with: out of order$/m),
	1, 'at first with the number of flushes');
is( log_lines($position, qr/LOG:  breaker of queue "broken" is closed$/m),
	1, 'and that it is closed');
is(flushed('broken'), join(' ', 1 .. 41), 'the rows have waited for that');

$node->stop;
done_testing();
