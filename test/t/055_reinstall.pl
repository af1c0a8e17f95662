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

# The command meets transactions that go on using the extension: it waits for
# them, and gets nothing that they want before.
sql($node, "CREATE EXTENSION batcher; $make");

sub begin_drop
{
	my ($deadlock_timeout) = @_;
	my $drop = $node->background_psql('postgres', on_error_stop => 0);

	$drop->query_until(qr/begins/,
		"SET deadlock_timeout = '$deadlock_timeout';
\\echo begins
DROP EXTENSION batcher CASCADE;
");
	wait_sql($node,
		q(SELECT count(*) = 1 FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND query LIKE 'DROP EXTENSION%'));
	return $drop;
}

sub check_dropped
{
	my ($drop, $what) = @_;

	$drop->query('SELECT 1');
	unlike($drop->{stderr}, qr/ERROR/, "$what: the drop has waited");
	$drop->quit;
	is( sql(
			$node, q(SELECT count(*) FROM pg_extension WHERE extname = 'batcher')),
		'0',
		"$what: the extension is gone");
	sql($node, "CREATE EXTENSION batcher; $make");
	return;
}

# What a transaction does first, and then.  Nobody looks for deadlocks.
foreach my $case (
	[
		'enqueuing',
		q(SELECT batch_enqueue('durable', '["x"]') > 0),
		q(SELECT batch_enqueue('memory', '["x"]') > 0)
	],
	[
		'a queue that was made',
		q(SELECT batch_create_queue('made', NULL)),
		q(SELECT batch_enqueue('made', '["x"]') > 0)
	],
	[
		'a queue that was altered',
		q(SELECT batch_alter_queue('durable', '{"flush_size": 10}')),
		q(SELECT batch_enqueue('durable', '["x"]') > 0)
	],
	[
		'dead letters',
		q(SELECT batch_purge_dead('durable') = 0),
		q(SELECT batch_enqueue('durable', '["x"]') > 0)
	],
	[
		'a view',
		q(SELECT count(*) = 2 FROM batcher.status),
		q(SELECT count(*) = 2 FROM batcher.status)
	],
	[
		'a drop that is rolled back',
		q(SAVEPOINT s; DROP EXTENSION batcher CASCADE; ROLLBACK TO s;
			SELECT batch_enqueue('durable', '["x"]') > 0),
		q(SELECT batch_enqueue('memory', '["x"]') > 0)
	])
{
	my ($what, $begin, $go_on) = @$case;
	my $client = $node->background_psql('postgres', on_error_stop => 0);

	$client->query("SET deadlock_timeout = '1h'; BEGIN; $begin");
	my $drop = begin_drop('1h');
	is($client->query("SET LOCAL statement_timeout = '20s'; $go_on"),
		't', "$what: the transaction goes on");
	$client->{stderr} = '';
	$client->query('COMMIT');
	unlike($client->{stderr}, qr/ERROR/, "$what: and commits");
	$client->quit;
	check_dropped($drop, $what);
}

# Where it comes to a deadlock all the same, and the command is the one to find
# it, it gives way.
{
	my ($first, $last) = split /\n/, sql(
		$node, q(
SELECT oid::regclass FROM pg_class WHERE relkind = 'v' AND relnamespace = 'batcher'::regnamespace
	AND oid IN (SELECT min(oid) FROM pg_class WHERE relkind = 'v' AND relnamespace = 'batcher'::regnamespace
		UNION SELECT max(oid) FROM pg_class WHERE relkind = 'v' AND relnamespace = 'batcher'::regnamespace)
ORDER BY oid));
	my $client = $node->background_psql('postgres', on_error_stop => 0);
	my $other = $node->background_psql('postgres', on_error_stop => 0);

	$client->query(
		q(SET deadlock_timeout = '1h'; BEGIN; SELECT batch_enqueue('durable', '["x"]')));
	$other->query("BEGIN; SELECT count(*) FROM $last");
	my $drop = begin_drop('10ms');
	$client->query_until(qr/looks/,
		"\\echo looks\nSELECT 'seen' FROM (SELECT count(*) FROM $first) AS f;\n");
	wait_sql($node, qq(
SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'
	AND query LIKE '%FROM $first%' AND pid <> pg_backend_pid()));
	# It waits for the client now, who waits for it.
	$other->query('COMMIT');
	is($client->query(q(SELECT batch_enqueue('memory', '["x"]') > 0)),
		"seen\nt", 'the command has given way');
	$client->query('COMMIT');
	check_dropped($drop, 'deadlock');
	$_->quit foreach $client, $other;
}

# Who may not drop it waits for nobody, and nobody waits for him.
sql($node, 'CREATE ROLE passer_by');
$session->query(q(BEGIN; SELECT batch_enqueue('durable', '["x"]')));
(undef, undef, my $refused) = try_sql($node, q(
SET ROLE passer_by;
SET statement_timeout = '20s';
DROP EXTENSION batcher CASCADE));
like($refused, qr/42501: must be owner of extension batcher/,
	'others do not get so far');
$session->query('COMMIT');

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
