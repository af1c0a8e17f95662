
# Settings: those of database, role and file that would change a flush do not;
# flush_timeout does; those of batcher take effect at a reload.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('settings', "batcher.flush_interval = '10ms'");

# What a flush sees.  The trigger is fired in the role "origin" only.
my @shown = qw(statement_timeout lock_timeout
  idle_in_transaction_session_timeout transaction_isolation
  transaction_read_only transaction_deferrable session_replication_role
  row_security search_path exit_on_error vacuum_cost_delay
  xmloption);
push @shown, 'transaction_timeout'
  if $node->pg_version >= 17;
my $columns = join(', ', map { "current_setting('$_') AS $_" } @shown);
sql(
	$node, qq(
CREATE SCHEMA other;
CREATE TABLE other.seen (wrong int);
CREATE TABLE seen AS SELECT 0 AS id, current_user, $columns WHERE false;
CREATE TABLE fired (id int);
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO public.fired VALUES (NEW.id);
	RETURN NEW;
END \$\$;
CREATE TRIGGER t BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION fire();
CREATE ROLE weak;
SELECT batch_create_queue('q', \$\$WITH s AS MATERIALIZED (SELECT pg_sleep(0.2))
	INSERT INTO seen SELECT (payload->>'id')::int, current_user, $columns
	FROM batch, s\$\$);
));

my $id = 0;

# What one flush has seen, a line for each setting.
sub look
{
	$id++;
	sql($node, qq(SELECT batch_enqueue('q', '{"id": $id}')));
	wait_sql($node, "SELECT count(*) = 1 FROM public.seen WHERE id = $id");
	return sql($node, "SELECT to_jsonb(s) - 'id' FROM public.seen s
		WHERE id = $id");
}

sub renew_worker
{
	my $pid = worker_pid($node);

	sql($node, "SELECT pg_terminate_backend($pid, 10000)");
	wait_sql($node, "SELECT count(*) > 0 FROM batcher.worker
		WHERE pid <> $pid");
	return;
}

# The sessions of this test keep their own settings.
$ENV{PGOPTIONS} = '-c statement_timeout=0 -c lock_timeout=0'
  . (grep({ $_ eq 'transaction_timeout' } @shown)
	? ' -c transaction_timeout=0' : '')
  . ' -c default_transaction_read_only=off -c row_security=on'
  . ' -c session_replication_role=origin -c search_path=public'
  . ' -c default_transaction_isolation=read\ committed'
  . ' -c default_transaction_deferrable=off -c role=postgres'
  . ' -c exit_on_error=off';

my $plain = look();
like($plain, qr/"statement_timeout": "0"/, 'a flush sees no statement_timeout');
like($plain, qr/"search_path": "[^"]*public, pg_temp"/, 'the search_path of its queue');

my @bad = (
	q(statement_timeout = '50ms'), q(lock_timeout = '50ms'),
	q(idle_in_transaction_session_timeout = '50ms'),
	q(default_transaction_isolation = 'serializable'),
	q(default_transaction_read_only = on),
	q(default_transaction_deferrable = on),
	q(session_replication_role = 'replica'),
	q(row_security = off), q(search_path = 'other'), q(exit_on_error = on),
	q(vacuum_cost_delay = '100ms'), q(xmloption = 'document'));
push @bad, q(transaction_timeout = '100ms')
  if grep { $_ eq 'transaction_timeout' } @shown;

foreach my $of ('DATABASE postgres', 'ROLE postgres',
	'ROLE postgres IN DATABASE postgres', 'SYSTEM')
{
	sql($node, "ALTER $of SET $_") foreach @bad;
	sql($node, 'SELECT pg_reload_conf()');
	is(look(), $plain, "ALTER $of SET: the worker that is there");
	renew_worker();
	is(look(), $plain, "ALTER $of SET: one that starts");
	sql($node, "ALTER $of RESET ALL");
	sql($node, 'SELECT pg_reload_conf()');
}
sql($node, "ALTER DATABASE postgres SET role = 'weak'");
renew_worker();
is(look(), $plain, 'ALTER DATABASE SET role does not matter either');
sql($node, "ALTER DATABASE postgres RESET ALL");
is( sql($node, 'SELECT count(*) = count(DISTINCT id), count(*) FROM fired'),
	"t|$id", 'triggers were fired');
delete $ENV{PGOPTIONS};
renew_worker();

# --- flush_timeout ---

my $position = log_position($node);
sql(
	$node, q(
CREATE TABLE pause (seconds int);
INSERT INTO pause VALUES (60);
CREATE TABLE done (id int);
CREATE FUNCTION linger() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
	PERFORM pg_sleep(seconds) FROM public.pause;
	RETURN true;
END $$;
SELECT batch_create_queue('slow', $$WITH l AS MATERIALIZED (SELECT linger())
	INSERT INTO done SELECT (payload->>'id')::int FROM batch, l$$,
	options => '{"flush_timeout": "200 ms"}');
SELECT batch_enqueue('slow', '{"id": 1}');
));
wait_sql($node,
	"SELECT consecutive_failures >= 2 FROM batcher.status
	WHERE queue = 'slow'");
is( sql(
		$node, "SELECT last_error, pending FROM batcher.status
		WHERE queue = 'slow'"),
	'canceling statement due to statement timeout|1',
	'flush_timeout ends a flush, whose row waits');
$node->wait_for_log(qr/ERROR:.*canceling statement due to statement timeout/,
	$position);
sql($node, 'UPDATE pause SET seconds = 0');
wait_sql($node, 'SELECT count(*) = 1 FROM done');
wait_drained($node, 'slow');
is( sql(
		$node, "SELECT consecutive_failures FROM batcher.status
		WHERE queue = 'slow'"),
	'0', 'and is flushed when that is possible');

# A flush that catches its cancel, and goes on, ends with its worker.  Queues
# of other owners are flushed all the time, others by the next worker.
sql(
	$node, q(
CREATE ROLE alice;
GRANT INSERT ON done TO alice;
GRANT EXECUTE ON FUNCTION
	batch_create_queue(text, text, regclass, regtype, jsonb, boolean)
	TO alice;
CREATE TABLE stop (stop boolean);
CREATE FUNCTION resist() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM public.stop) LOOP
		BEGIN
			PERFORM pg_sleep(60);
		EXCEPTION WHEN query_canceled THEN
		END;
	END LOOP;
	RETURN true;
END $$;
SELECT batch_create_queue('stubborn', $$WITH l AS MATERIALIZED (SELECT resist())
	INSERT INTO done SELECT (payload->>'id')::int FROM batch, l$$,
	options => '{"flush_timeout": "200 ms"}');
SELECT batch_create_queue('same',
	$$INSERT INTO done SELECT (payload->>'id')::int FROM batch$$);
SET ROLE alice;
SELECT batch_create_queue('other',
	$$INSERT INTO done SELECT (payload->>'id')::int FROM batch$$);
));
my $pid = wait_worker($node);
my $started = time();
sql($node, q(SELECT batch_enqueue('stubborn', '{"id": 2}')));
wait_sql(
	$node, "SELECT count(*) = 1 FROM pg_stat_activity
	WHERE pid = $pid AND wait_event = 'PgSleep'");
sql(
	$node, q(
SELECT batch_enqueue('same', '{"id": 3}');
SELECT batch_enqueue('other', '{"id": 4}');
));
wait_sql($node, 'SELECT count(*) = 1 FROM done WHERE id = 4');
cmp_ok(time() - $started, '<', 5,
	'a queue of another owner does not wait for it');
wait_sql($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
my $took = time() - $started;
cmp_ok($took, '>', 9, 'the worker is ended ten seconds after flush_timeout');
cmp_ok($took, '<', 15, 'and not later');
is( sql(
		$node, q(
SELECT breaker_state, breaker_reason, s.last_error, batches_failed, rows_failed,
	breaker_opened, pending, batches
FROM batcher.status t JOIN batcher.stat_queue s USING (queue)
WHERE queue = 'stubborn')),
	'open|flush outlived its timeout, and its worker was ended|'
	  . 'flush outlived its timeout, and its worker was ended|1|0|1|1|0',
	'the flush counts as failed, and the breaker is open');
sql($node, q(INSERT INTO stop VALUES (true); SELECT batch_reset_breaker('stubborn')));
wait_sql($node, 'SELECT count(*) = 1 FROM done WHERE id = 3');
pass('a queue of the same owner goes on with the next worker');
wait_drained($node, 'stubborn', 'same', 'other');
is( sql($node, 'SELECT count(*), count(DISTINCT id) FROM done'),
	'4|4', 'each row once');

# --- settings of batcher ---

# Changes a setting by a reload.
sub set
{
	my ($setting, $value) = @_;

	sql($node,
		"ALTER SYSTEM SET $setting = '$value'; SELECT pg_reload_conf()");
	wait_sql($node,
		"SELECT current_setting('$setting') = '$value'");
	return;
}

set('batcher.flush_interval', '1h');
is( sql(
		$node,
		"SELECT current_window FROM batcher.status WHERE queue = 'same'"),
	'01:00:00', 'batcher.flush_interval shows in the status');
# the worker has read it when it has flushed something since
sql(
	$node, q(
SELECT batch_enqueue('same', '{"id": 5}', immediate => true)));
wait_sql($node, 'SELECT count(*) = 1 FROM done WHERE id = 5');
sql($node, q(SELECT batch_enqueue('same', '{"id": 6}')));
wait_sql($node,
	"SELECT next_flush_at > now() + interval '50 min' FROM batcher.status
	WHERE queue = 'same'");
pass('a longer batcher.flush_interval takes effect');
set('batcher.flush_interval', '20ms');
wait_sql($node, 'SELECT count(*) = 1 FROM done WHERE id = 6');
pass('and a shorter one, for a row that waits too');

$position = log_position($node);
sql($node, q(SELECT batch_enqueue('same', '{"id": 7}')));
wait_sql($node, 'SELECT count(*) = 1 FROM done WHERE id = 7');
unlike(slurp_file($node->logfile, $position),
	qr/LOG:  queue /, 'flushes are not logged');
set('batcher.log_min_duration', '0');
sql($node, q(SELECT batch_enqueue('same', '{"id": 8}')));
wait_sql($node, 'SELECT count(*) = 1 FROM done WHERE id = 8');
$node->wait_for_log(
	qr/LOG:  queue "same": batch \d+ of 1 rows \(time\) took [\d.]+ ms, messages: 0, channels: 0/,
	$position);
pass('batcher.log_min_duration = 0 logs each');

# M4.6: how many rows, messages and topics
sql(
	$node, q(
SELECT batch_create_queue('topics', 'SELECT FROM batch', options =>
	'{"notify_channel": "{topic}", "notify_format": "summary"}');
SELECT batch_enqueue('topics', '{}', topic => t)
FROM unnest('{a,b,a}'::text[]) t));
$node->wait_for_log(
	qr/LOG:  queue "topics": batch 1 of 3 rows \(time\) took [\d.]+ ms, messages: 2, channels: 2/,
	$position);
pass('with its messages and channels');

# M1.10: what was flushed and how long it took is above; what failed, what was
# done about it, and that it goes on again
sql(
	$node, q(
SELECT batch_create_queue('troubled',
	'INSERT INTO done SELECT 700 / payload::int FROM batch',
	options => '{"max_attempts": 1, "breaker_recovery": "10 ms",
		"breaker_probes": 1}');
SELECT batch_enqueue_many('troubled', '{1,0,2}')));
$node->wait_for_log(
	qr/ERROR:  division by zero\n.*CONTEXT: .*\n\tflush of queue "troubled"\n/,
	$position);
pass('the log has what failed');
$node->wait_for_log(
	qr/LOG:  queue "troubled": rows are flushed one by one, to find those that fail/,
	$position);
$node->wait_for_log(qr/LOG:  queue "troubled": 1 row is a dead letter/,
	$position);
pass('that it was looked for, and what became of it');
sql(
	$node, q(
ALTER TABLE done RENAME TO moved;
SELECT batch_enqueue('troubled', '3')));
$node->wait_for_log(
	qr/LOG:  breaker of queue "troubled" is open: relation "done" does not exist/,
	$position);
sql($node, 'ALTER TABLE moved RENAME TO done');
$node->wait_for_log(qr/LOG:  breaker of queue "troubled" is closed/, $position);
pass('that its queue has stopped, and goes on');

# Two owners, one worker at a time.
set('batcher.max_workers', '1');
wait_sql($node, 'SELECT count(*) <= 1 FROM batcher.worker');
sql(
	$node, qq(
SELECT batch_enqueue('same', '{"id": 9}');
SELECT batch_enqueue('other', '{"id": 10}');
));
wait_sql($node, 'SELECT count(*) = 2 FROM done WHERE id IN (9, 10)');
cmp_ok(sql($node, 'SELECT count(*) FROM batcher.worker'),
	'<=', 1, 'a smaller batcher.max_workers takes effect');

$node->stop;
done_testing();
