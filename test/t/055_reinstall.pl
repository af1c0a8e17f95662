# The extension is dropped and made again beside a session that has used it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('reinstall', q(
batcher.flush_interval = '20ms'
));

my $make = q(
CREATE TABLE IF NOT EXISTS done (what text, durable bool);
SELECT batch_create_queue('durable', 'INSERT INTO done SELECT payload->>0, true FROM batch');
SELECT batch_create_queue('memory', 'INSERT INTO done SELECT payload->>0, false FROM batch',
	options => '{"durable": false}');
);
sql($node, $make);

# It caches where things are, both queues, its rights; a plan, and a function.
my $session = $node->background_psql('postgres', on_error_stop => 0);

sub enqueue
{
	my ($what) = @_;

	return $session->query(
		qq(
SELECT batch_enqueue('durable', '["$what"]') > 0, batch_enqueue('memory', '["$what"]') > 0;
EXECUTE planned('["$what planned"]');
SELECT put('["$what function"]')));
}

sub check_done
{
	my ($what) = @_;

	wait_sql($node, qq(SELECT count(*) = 6 FROM done WHERE what LIKE '$what%'));
	is( sql(
			$node, qq(
SELECT count(DISTINCT (what, durable)) FROM done WHERE what LIKE '$what%')),
		'6',
		"$what: each row was flushed");
	return;
}

$session->query_safe(
	q(
PREPARE planned AS
	SELECT batch_enqueue('durable', $1) > 0, batch_enqueue('memory', $1) > 0;
CREATE FUNCTION put(payload jsonb) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	RETURN batch_enqueue('durable', payload) > 0 AND batch_enqueue('memory', payload) > 0;
END $$));
enqueue('first');
check_done('first');
is($session->query(q(SELECT batch_flush() >= 0)), 't', 'and asks for a flush');

# Gone.
sql($node, 'DROP EXTENSION batcher CASCADE');
enqueue('nowhere');
like($session->{stderr}, qr/function batch_enqueue\(.*\) does not exist/,
	'there is nothing to enqueue into');
$session->{stderr} = '';

# There again, with other objects.
sql($node, "CREATE EXTENSION batcher; $make");
enqueue('second');
is($session->{stderr} =~ /ERROR/ ? $session->{stderr} : '',
	'', 'the session uses the new one');
check_done('second');

# Again, without a statement between, and with queues of other ids.
sql(
	$node, qq(
DROP EXTENSION batcher CASCADE;
CREATE EXTENSION batcher;
SELECT batch_create_queue('other', NULL);
$make));
enqueue('third');
check_done('third');
is( $session->query(
		q(SELECT queue || ' ' || rows_enqueued FROM batcher.stat_queue ORDER BY queue)),
	"durable 3\nmemory 3\nother 0",
	'it sees the new queues');
is($session->query(q(SELECT count(*) FROM batcher.pending)),
	'0', 'and that nothing waits');

# Made and dropped in the session itself, while another has it cached.
my $second = $node->background_psql('postgres', on_error_stop => 0);
$second->query_safe(q(SELECT batch_enqueue('durable', '["fourth"]')));
$session->query("BEGIN; DROP EXTENSION batcher CASCADE; CREATE EXTENSION batcher; $make");
enqueue('rolled back');
$session->query('ROLLBACK');
$second->query_safe(q(SELECT batch_enqueue('memory', '["fourth"]')));
enqueue('fourth');
wait_sql($node, q(SELECT count(*) = 8 FROM done WHERE what LIKE 'fourth%'));
is(sql($node, q(SELECT count(*) FROM done WHERE what LIKE 'rolled%')),
	'0', 'what is rolled back is not there');

# Dropped while another waits for the lock.
$session->query('BEGIN; DROP EXTENSION batcher CASCADE');
$second->{stderr} = '';
$second->query_until(qr/begins/,
	qq(\\echo begins\nSELECT batch_create_queue('late', NULL);\n));
wait_sql($node,
	q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'
		AND query LIKE '%late%' AND pid <> pg_backend_pid()));
$session->query('COMMIT');
$second->query('SELECT 1');
like(
	$second->{stderr},
	qr/extension "batcher" is not installed in this database/,
	'who waited for the lock is told that it is gone');

# As the README has it where the extension is in use: who has enqueued goes on,
# whatever of ours he looks at, and is not met in a deadlock.
$node->append_conf('postgresql.conf', "deadlock_timeout = '10ms'");
$node->reload;
sql($node, 'CREATE EXTENSION batcher');
sql($node, $make);
$session->query(q(BEGIN; SELECT batch_enqueue('durable', '["beside"]')));
$second->{stderr} = '';
$second->query_until(
	qr/begins/, q(
\echo begins
BEGIN; LOCK TABLE batcher.spool; DROP EXTENSION batcher; COMMIT;
));
wait_sql(
	$node, q(
SELECT count(*) = 1 FROM pg_locks
WHERE NOT granted AND mode = 'AccessExclusiveLock'));
is( $session->query(
		q(
SELECT count(*) FROM batcher.status;
SELECT count(*) FROM batcher.pending;
SELECT batch_create_queue('beside');
SELECT batch_enqueue('memory', '["beside"]') > 0;
COMMIT)),
	"2\n0\n\nt",
	'who has enqueued goes on');
$second->query('SELECT 1');
is($second->{stderr}, '', 'the extension is dropped then');
is(sql($node, q(SELECT count(*) FROM pg_extension WHERE extname = 'batcher')),
	'0', 'it is gone');

# A drop that fails before it has closed the queue leaves it open.
sql($node, 'CREATE DATABASE fresh');
my $tickets;
$node->psql(
	'fresh', q(
BEGIN;
CREATE EXTENSION batcher;
SELECT batch_create_queue('q', 'SELECT FROM batch');
SAVEPOINT s;
SET LOCAL batcher.debug_points = 'numbers=error';
SELECT batch_drop_queue('q');
ROLLBACK TO s;
SELECT batch_enqueue('q', '1') > 0;
COMMIT),
	stdout => \$tickets,
	on_error_stop => 0,
	timeout => 30);
like($tickets, qr/^t$/m, 'a queue that was not dropped is open');

$_->quit foreach $session, $second;
$node->stop;
done_testing();
