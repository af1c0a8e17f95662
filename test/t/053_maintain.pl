# The worker's own vacuum of the spool: rows that come meanwhile, and errors.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('maintain', q(
batcher.flush_interval = '20ms'
log_min_messages = debug2
));

sql(
	$node, q(
CREATE TABLE done (id int);
SELECT batch_create_queue('q', 'INSERT INTO done SELECT (payload->>0)::int FROM batch');
));
wait_worker($node);
sql($node, q(CREATE TABLE serial AS SELECT 0 AS n));

# So many tuples of the spool are to be deleted that the worker vacuums it.
sub delete_many
{
	sql(
		$node, q(
DO $$
BEGIN
	FOR i IN 1 .. 1500 LOOP
		PERFORM batch_enqueue('q', '[0]');
		COMMIT;
	END LOOP;
END $$));
	return;
}

my $vacuums = q(SELECT vacuum_count FROM pg_stat_all_tables
WHERE relid = 'batcher.spool'::regclass);

# A vacuum that is about to cut the tail of the table, which nobody uses then.
arm($node, 'vacuum=wait');
sql($node, q(SELECT batch_pause('q')));
delete_many();
sql($node, q(SELECT batch_resume('q')));
wait_point($node, 'vacuum');
my $position = log_position($node);

# Now somebody holds the table, so that the cutting waits for him in vain ...
my $holder = $node->background_psql('postgres');
$holder->query_safe(q(BEGIN; SELECT batch_enqueue('q', '[1]')));
disarm($node);
release_point($node, 'vacuum');
wait_sql(
	$node, q(
SELECT phase = 'truncating heap' FROM pg_stat_progress_vacuum
WHERE relid = 'batcher.spool'::regclass));

# ... and meanwhile a row comes.  It is flushed soon after, though nobody else
# wakes the worker.
sql($node, q(SELECT batch_enqueue('q', '[2]')));
$node->wait_for_log(qr/"spool": stopping truncate due to conflicting lock request/,
	$position);
{
	local $PostgreSQL::Test::Utils::timeout_default = 30;

	ok( $node->poll_query_until(
			'postgres', 'SELECT count(*) = 1 FROM done WHERE id = 2'),
		'a row that came during the vacuum is flushed');
}
$holder->query_safe('COMMIT');
$holder->quit;
wait_drained($node, 'q');

# An error does not end the worker; the next vacuum is tried in time.
my $pid = worker_pid($node);
$position = log_position($node);
arm($node, 'vacuum=error');
delete_many();
$node->wait_for_log(
	qr/ERROR:  batcher debug point "vacuum".*CONTEXT:  vacuum of the spool/s,
	$position);
sql($node, q(SELECT batch_enqueue('q', '[3]')));
wait_sql($node, 'SELECT count(*) = 1 FROM done WHERE id = 3');
is(worker_pid($node), $pid, 'the worker goes on after an error in the vacuum');
disarm($node);
my $before = sql($node, $vacuums);
delete_many();
wait_sql($node, "SELECT ($vacuums) > $before");
is(worker_pid($node), $pid, 'and vacuums the spool later');

$node->stop;
done_testing();
