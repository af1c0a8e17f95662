
# Rows that were written to the spool early, or that wait there for a row of
# their key, are read back in their places.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'places', q(
batcher.shared_memory_size = 8MB
batcher.flush_interval = '10ms'
batcher.shutdown_timeout = 0
));
my $others = 2000;

create_order_queue($node, 'q', 'done',
	'{"memory_limit": "64kB", "max_attempts": 1000, "retry_delay": "20 ms",
	  "retry_max_delay": "20 ms", "breaker_threshold": 1000000}');
sql(
	$node, q(
CREATE TABLE refused (n bigint);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM refused r WHERE r.n = NEW.n AND NEW.key = 'k') THEN
		RAISE EXCEPTION 'not this one';
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON done
	FOR EACH ROW EXECUTE FUNCTION refuse();));

sub enqueue
{
	my ($n) = @_;

	return qq(SELECT batch_enqueue('q', '{"n": $n}', 'k'););
}

# More than the queue's memory holds, so that full chunks are written at once.
sub enqueue_others
{
	return qq(
SELECT batch_enqueue_many('q', array_agg(jsonb_build_object('n', g, 'text', repeat('x', 50))),
	array_agg('o' || g)) FROM generate_series(1, $others) g;);
}

sub restart
{
	$node->stop('immediate');
	$node->start;
	return;
}

sub check_places
{
	my ($expected, $message) = @_;

	wait_drained($node, 'q');
	is( sql(
			$node,
			"SELECT string_agg(n::text, ' ' ORDER BY pos) FROM done WHERE key = 'k'"
		),
		$expected, $message);
	sql($node, 'TRUNCATE done, refused');
	return;
}

# What was written early is rolled back, and what came before it is committed
# after a row of another session.
my $session = $node->background_psql('postgres');
sql($node, q(SELECT batch_pause('q')));
$session->query_safe(
	'BEGIN;' . enqueue(2) . 'SAVEPOINT s;' . enqueue_others() . 'ROLLBACK TO s;');
sql($node, enqueue(1));
$session->query_safe('COMMIT');
$session->quit;
restart();
sql($node, q(SELECT batch_resume('q')));
check_places('1 2', 'a chunk that has its number from a rolled back savepoint');

# A row of a large transaction waits for one that was committed while that was
# open; the rest of the transaction is flushed.
sub hold_one
{
	sql($node, q(INSERT INTO refused VALUES (1); SELECT batch_pause('q')));
	$session = $node->background_psql('postgres');
	$session->query_safe('BEGIN;' . enqueue(2) . enqueue_others());
	sql($node, enqueue(1));
	$session->query_safe('COMMIT');
	$session->quit;
	is(sql($node, 'SELECT count(*) > 10 FROM batcher.spool WHERE home < 0'),
		't', 'the transaction is in the spool in many parts');
	return;
}

hold_one();
sql($node, q(SELECT batch_resume('q')));
wait_sql($node, "SELECT count(*) = $others FROM done");
restart();
wait_sql($node, 'SELECT count(*) = 1 FROM batcher.pending WHERE attempts > 0');
my $attempts = sql($node, 'SELECT max(attempts) FROM batcher.pending');
wait_sql($node, "SELECT max(attempts) > $attempts FROM batcher.pending");
sql($node, 'DELETE FROM refused');
check_places('1 2', 'what is left of a large transaction keeps its place');

# The same where the spool has more tuples than are noted in one look.
hold_one();
sql($node, q(DELETE FROM refused));
restart();
arm($node, 'max-entries=3');
sql($node, q(SELECT batch_resume('q')));
check_places('1 2', 'more tuples than are noted');
disarm($node);

# A tuple that was read back is not there any more when its row is to be
# flushed: the others are.
sql(
	$node, q(
CREATE EXTENSION pg_surgery;
INSERT INTO refused VALUES (1);
SELECT batch_pause('q');
) . enqueue(1) . enqueue(2) . enqueue(3));
restart();
sql($node, q(SELECT batch_resume('q')));
wait_sql($node, 'SELECT count(*) = 1 FROM batcher.pending WHERE attempts > 0');
arm($node, 'statement=wait');
wait_point($node, 'statement');
sql(
	$node, q(
DO $$
DECLARE
	place tid := (SELECT ctid FROM batcher.spool WHERE payload->>'n' = '2');
BEGIN
	PERFORM heap_force_kill('batcher.spool', ARRAY[place]);
END $$;
DELETE FROM refused;));
disarm($node);
release_point($node, 'statement');
check_places('1 3', 'a tuple that is gone');

$node->stop;
done_testing();
