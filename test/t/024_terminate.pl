
# Somebody ends or interrupts our processes: another one comes, and no row is
# lost or flushed twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# one worker, so that it is known which one is meant
my $node = new_node(
	'terminate', q(
batcher.flush_interval = '10ms'
batcher.max_workers = 1
));

sql(
	$node, q(
CREATE TABLE done (id int);
CREATE TABLE control (dawdle boolean);
INSERT INTO control VALUES (false);
-- tells that it is there by the lock that it waits for
CREATE FUNCTION dawdle() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
	IF (SELECT c.dawdle FROM public.control c) THEN
		PERFORM pg_sleep(60);
	END IF;
	RETURN true;
END $$;
SELECT batch_create_queue('q', $$WITH d AS MATERIALIZED (SELECT dawdle())
	INSERT INTO done SELECT (payload->>'id')::int FROM batch, d$$);
SELECT batch_create_queue('volatile', $$WITH d AS MATERIALIZED
	(SELECT dawdle())
	INSERT INTO done SELECT (payload->>'id')::int FROM batch, d$$,
	options => '{"durable": false}');
));

my $last = 0;

# Ten more rows for both queues.
sub enqueue
{
	my $from = $last + 1;

	$last += 20;
	sql(
		$node, qq(
SELECT count(batch_enqueue(CASE WHEN i % 2 = 0 THEN 'q' ELSE 'volatile' END,
	jsonb_build_object('id', i))) FROM generate_series($from, $last) i));
	return;
}

sub all_done
{
	my ($name) = @_;

	wait_sql($node, "SELECT count(*) >= $last FROM done");
	wait_drained($node, 'q', 'volatile');
	is( sql($node, 'SELECT count(*), count(DISTINCT id), max(id) FROM done'),
		"$last|$last|$last", $name);
	return;
}

# Have the worker in a flush that does not end; returns its pid.
sub make_busy
{
	sql($node, 'UPDATE control SET dawdle = true');
	enqueue();
	wait_sql(
		$node, "SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type = 'batcher worker' AND wait_event = 'PgSleep'");
	my $pid = worker_pid($node);
	sql($node, 'UPDATE control SET dawdle = false');
	return $pid;
}

sub other_worker
{
	my ($pid, $name) = @_;

	wait_sql($node,
		"SELECT count(*) > 0 FROM batcher.worker WHERE pid <> $pid");
	isnt(wait_worker($node), $pid, $name);
	return;
}

# --- pg_terminate_backend ---

my $pid = wait_worker($node);
is(sql($node, "SELECT pg_terminate_backend($pid, 10000)"),
	't', 'an idle worker is terminated');
other_worker($pid, 'another one comes');
enqueue();
all_done('and flushes');

foreach my $round (1 .. 3)
{
	$pid = make_busy();
	is(sql($node, "SELECT pg_terminate_backend($pid, 10000)"),
		't', 'a worker in a flush is terminated');
	other_worker($pid, 'another one comes');
	all_done('nothing lost or doubled');
}

# Under load, as often as it goes.
my $load = $node->background_psql('postgres');
$load->query_until(
	qr/go/, qq(\\echo go
DO \$\$
BEGIN
	FOR i IN 1 .. 3000 LOOP
		PERFORM batch_enqueue(CASE WHEN i % 2 = 0 THEN 'q' ELSE 'volatile' END,
			jsonb_build_object('id', $last + i));
		COMMIT;
	END LOOP;
END \$\$;
));
$last += 3000;
foreach my $round (1 .. 15)
{
	sql(
		$node, "SELECT pg_terminate_backend(pid, 10000) FROM batcher.worker
		WHERE database = 'postgres'");
	wait_worker($node);
}
$load->quit;
all_done('terminated 15 times under load: nothing lost or doubled');

# --- pg_cancel_backend ---

$pid = wait_worker($node);
sql($node, "SELECT pg_cancel_backend($pid)");
enqueue();
all_done('cancelled while idle: nothing happens');
is(worker_pid($node), $pid, 'the worker is the same');

my $position = log_position($node);
$pid = make_busy();
sql($node, "SELECT pg_cancel_backend($pid)");
all_done('cancelled in a flush: the batch is repeated');
is(worker_pid($node), $pid, 'by the same worker');
like(
	slurp_file($node->logfile, $position),
	qr/canceling statement due to user request/,
	'the log says why');

# --- the launcher ---

my $launcher = q(SELECT pid FROM pg_stat_activity
WHERE backend_type = 'batcher launcher');
my $old = sql($node, $launcher);
sql($node, "SELECT pg_terminate_backend($old, 10000)");
enqueue();
all_done('the worker does not need the launcher');
is(worker_pid($node), $pid, 'it is the same one');
wait_sql($node, "SELECT count(*) = 1 FROM ($launcher AND pid <> $old) s");
pass('another launcher comes');
is(worker_pid($node), $pid, 'and leaves the worker as it is');
$node->safe_psql('postgres', 'CREATE DATABASE more');
$node->safe_psql('more', 'CREATE EXTENSION batcher');
wait_sql($node,
	"SELECT count(*) = 1 FROM batcher.worker WHERE database = 'more'");
pass('it has workers started');

# Both at once: there is nobody to tell the worker what its signal means.
$old = sql($node, $launcher);
$pid = make_busy();
sql(
	$node, "SELECT pg_terminate_backend($old, 10000),
	pg_terminate_backend($pid)");
wait_sql($node, "SELECT count(*) = 1 FROM ($launcher AND pid <> $old) s");
other_worker($pid, 'launcher and worker terminated: others come');
all_done('and flush');

is(worker_pid($node) ne '', 1, 'a worker is there');
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP:|terminated by signal/,
	'nothing crashed');
done_testing();
