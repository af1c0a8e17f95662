
# Rows that fail, and processes that end while they are isolated, tried again or
# buried: no row is lost or flushed twice, attempts are known afterwards, and a
# row is a dead letter once.

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
sql($node, q(SELECT batch_purge_dead('denied'); SELECT batch_drop_queue('denied')));

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

$node->stop;
done_testing();
