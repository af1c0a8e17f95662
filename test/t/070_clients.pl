
# What clients get of messages: psycopg 3 and node-postgres listen, put parts
# together, decompress, and find everything as it was enqueued, in databases of
# several encodings; no message is longer than NOTIFY takes.
#
# Failure table: "a message cannot be made of the rows".
#
# M3.2 (three JOB_STARTED become one JOBS_BATCH_STARTED)
# M4.1 (grouped by topic)
# M4.5 (a consumer can tell single messages from batches)
# M4.8 (compression)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use File::Temp;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = "$FindBin::RealBin/../clients";
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

my @channels = qw(plain packed groups topic_a topic_b);
my $node = new_node('clients');

# A folder with node-postgres, or why there is none.
sub install_node_postgres
{
	my $dir = File::Temp::tempdir(CLEANUP => 1);
	my ($out, $err) = ('', '');

	return (undef, 'there is no node')
	  if !eval { IPC::Run::run([ 'node', '--version' ], '>', \$out, '2>', \$err) };
	my $ok = eval {
		IPC::Run::run(
			[ qw(npm install --no-audit --no-fund --prefix), $dir, 'pg' ],
			'<', \undef, '>', \$out, '2>', \$err,
			IPC::Run::timeout($timeout));
	};
	return (undef, "npm could not install pg: $err$@") if !$ok;
	return "$dir/node_modules";
}

sub in_database
{
	my ($db, $sql) = @_;

	return $node->safe_psql($db, $sql, timeout => $timeout);
}

# Start a client; returns once it listens.
sub start
{
	my ($db, @command) = @_;
	my %client = (out => '', err => '');

	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port,
		PGDATABASE => $db, PGUSER => scalar getpwuid($<));
	$client{timer} = IPC::Run::timer($timeout);
	$client{handle} = IPC::Run::start([@command], '<', \undef,
		'>', \$client{out}, '2>', \$client{err}, $client{timer});
	$client{handle}->pump
	  until $client{out} =~ /ready\n/ || !$client{handle}->pumpable;
	BAIL_OUT("@command: $client{err}") if $client{out} !~ /ready\n/;
	return \%client;
}

# What a client has noticed, when it has ended.
sub finish
{
	my ($client) = @_;

	ok($client->{handle}->finish, 'the client ends well')
	  or diag($client->{err});
	return { $client->{out} =~ /(\w+)=(\d+)/g };
}

# One database: all is enqueued, and then compared with what the clients got.
sub check_database
{
	my ($db, $word, %clients) = @_;

	in_database(
		$db, qq(
CREATE EXTENSION batcher;
CREATE TABLE sent (queue text, pos int, ticket bigint, item jsonb);
CREATE TABLE received (client text, channel text, queue text, pos int,
	item jsonb);
SELECT batch_create_queue('plain', options => '{"flush_interval": "1 h",
	"notify_channel": "{queue}", "notify_format": "rows"}');
SELECT batch_create_queue('packed', options => '{"flush_interval": "1 h",
	"notify_channel": "{queue}", "notify_format": "rows",
	"notify_encoding": "zlib"}');
SELECT batch_create_queue('groups', options => '{"flush_interval": "1 h",
	"notify_channel": "{queue}", "notify_format": "groups",
	"notify_names": {"JOB_STARTED": "JOBS_BATCH_STARTED"}}');
SELECT batch_create_queue('topics', options => '{"flush_interval": "1 h",
	"notify_channel": "topic_{topic}", "notify_format": "rows"}');
SELECT batch_create_queue('end', options => '{"flush_interval": "1 h",
	"notify_channel": "the {queue}"}');
));
	my %running = map { $_ => start($db, @{ $clients{$_} }) } sort keys %clients;

	# Rows of all lengths, also those that just fit, and just do not.
	in_database(
		$db, qq(
INSERT INTO sent SELECT queue, i, batch_enqueue(queue, item), item
FROM unnest('{plain,packed}'::text[]) queue, generate_series(1, 300) i,
	jsonb_build_object('n', i, 'text', repeat($word, i % 40), 'none', NULL,
		'escapes', E'"\\\\/\\b\\f\\n\\r\\t\\x01', $word, i / 8.0,
		'list', jsonb_build_array(true, '{}'::jsonb, '', -i)) item;
INSERT INTO sent SELECT queue, 300 + i, batch_enqueue(queue, item), item
FROM unnest('{plain,packed}'::text[]) queue, generate_series(1, 60) i,
	to_jsonb(repeat($word, 7650 / octet_length($word))
		|| repeat('x', i * 4)) item;
SELECT batch_flush('plain'), batch_flush('packed');
SELECT batch_enqueue('plain', '"single"');
SELECT batch_flush('plain');
INSERT INTO sent VALUES ('plain', 361, 0, '"single"');
SELECT batch_enqueue('groups', jsonb_build_object('event', 'JOB_STARTED',
	'job_id', id)) FROM generate_series(123, 125) id;
SELECT batch_enqueue('topics', to_jsonb(i), topic => CASE WHEN i % 2 = 0
	THEN 'b' ELSE 'a' END) FROM generate_series(1, 6) i;
SELECT batch_flush('groups'), batch_flush('topics');
SELECT batch_enqueue('end', '1');
SELECT batch_flush('end');
));
	foreach my $client (sort keys %running)
	{
		my $found = finish($running{$client});

		is($found->{gaps}, 0, "$db, $client: no number is missing");
		is($found->{incomplete}, 0, "$db, $client: no part is missing");
		is($found->{singles}, 1, "$db, $client: one message is of one row");
		cmp_ok($found->{compressed}, '>', 0,
			"$db, $client: messages are compressed");
		cmp_ok($found->{longest}, '<=', 7999,
			"$db, $client: no message is too long");
		cmp_ok($found->{longest}, '>', 7800,
			"$db, $client: messages are as long as they may be");
		is( in_database(
				$db, qq(
SELECT s.queue, s.pos, left(s.item::text, 100), left(r.item::text, 100)
FROM sent s LEFT JOIN received r ON r.client = '$client'
	AND r.queue = s.queue AND r.pos = s.pos
WHERE r.item IS DISTINCT FROM s.item AND NOT (octet_length(s.item::text) > 7700
	AND s.queue = 'plain' AND r.item IS NOT DISTINCT FROM
		jsonb_build_object('ticket', s.ticket, 'too_large', true))
ORDER BY 1, 2 LIMIT 5)),
			'', "$db, $client: rows come as they were enqueued");
		is( in_database(
				$db, qq(
SELECT count(*) FILTER (WHERE item ? 'too_large') BETWEEN 1 AND 59
FROM received WHERE client = '$client' AND queue = 'plain' AND pos > 300)),
			't', "$db, $client: the rows that are too large are named");
		is( in_database(
				$db, qq(
SELECT item FROM received WHERE client = '$client' AND queue = 'groups')),
			'{"event": "JOBS_BATCH_STARTED", "job_ids": [123, 124, 125], "batch_count": 3}',
			"$db, $client: three events have become one");
		is( in_database(
				$db, qq(
SELECT channel, jsonb_agg(item ORDER BY pos) FROM received
WHERE client = '$client' AND queue = 'topics' GROUP BY 1 ORDER BY 1)),
			"topic_a|[1, 3, 5]\ntopic_b|[2, 4, 6]",
			"$db, $client: each topic has its channel");
	}
	return;
}

my $has_psycopg =
  eval { IPC::Run::run([ '/usr/bin/python3', '-c', 'import psycopg' ],
		'>', '/dev/null', '2>', '/dev/null') };
my ($modules, $why) = install_node_postgres();

# The word is one that the encoding has, in letters that take several bytes
# where there are such.
foreach my $case (
	[ 'utf8', 'UTF8', 'utf-8', q(U&'\6F22\00E9\+01F600') ],
	[ 'latin1', 'LATIN1', 'latin-1', q(U&'\00E9\00DF\00FC') ],
	[ 'euc_jp', 'EUC_JP', 'euc_jp', q(U&'\6F22\5B57\FF76') ])
{
	my ($db, $encoding, $python_encoding, $word) = @$case;
	my %commands;

	$commands{psycopg} =
	  [ '/usr/bin/python3', "$clients/listen.py", $python_encoding, @channels ]
	  if $has_psycopg;
	$commands{'node-postgres'} =
	  [ 'node', "$clients/listen.js", $modules, @channels ]
	  if $modules && $encoding eq 'UTF8';
	next if !%commands;
	sql($node, "CREATE DATABASE $db ENCODING '$encoding' TEMPLATE template0
		LOCALE 'C'");
	local $ENV{PGCLIENTENCODING} = $encoding;
	check_database($db, $word, %commands);
}

SKIP:
{
	skip 'there is no psycopg for /usr/bin/python3', 1 if !$has_psycopg;
	pass('psycopg was there');
}
SKIP:
{
	skip $why, 1 if !$modules;
	pass('node-postgres was there');
}

# A payload that is nested so deeply that it does not fit into a message: the
# message is lost and never the row, and the next one shows it.
SKIP:
{
	my ($rc) = try_sql($node, q(SET max_stack_depth = '6MB'));

	skip 'the stack is too small', 4 if $rc != 0;
	sql(
		$node, q(
SELECT batch_create_queue('deep', options => '{"flush_interval": "1 h",
	"notify_channel": "deep", "notify_format": "rows",
	"notify_encoding": "zlib"}')));
	# workers have less of the stack than who enqueues
	sql(
		$node, q(
ALTER SYSTEM SET max_stack_depth = '400kB';
SELECT pg_reload_conf()));
	wait_sql($node, 'SHOW max_stack_depth', '400kB');
	my $listener = $node->background_psql('postgres');

	$listener->query_safe('LISTEN deep');
	my @messages;
	foreach my $payload (q('1'), q((repeat('[', 6000) || repeat(']', 6000))),
		q('2'))
	{
		sql(
			$node, qq(
SET max_stack_depth = '6MB';
SELECT batch_enqueue('deep', $payload\::jsonb);
SELECT batch_flush('deep')));
	}
	@messages = wait_messages($listener, 2);
	isnt($messages[0]->{epoch}, $messages[1]->{epoch},
		'a message that cannot be made changes the epoch');
	is( sql(
			$node, q(
SELECT rows_flushed, messages_sent, messages_dropped, batches_failed
FROM batcher.stat_queue WHERE queue = 'deep')),
		'3|2|1|0', 'its row is flushed');
	$listener->quit;

	# The worker waits for another one that sends just now: it can be ended.
	sql(
		$node, q(
CREATE ROLE deep_owner;
SELECT batch_change_owner('deep', 'deep_owner');
SELECT batch_create_queue('sender', 'SELECT FROM batch', options =>
	'{"flush_interval": "10 ms", "notify_channel": "sender"}')));
	arm($node, 'notify=wait');
	sql($node, q(SELECT batch_enqueue('sender', '1')));
	wait_point($node, 'notify');
	sql(
		$node, q(
SET max_stack_depth = '6MB';
SELECT batch_enqueue('deep', (repeat('[', 6000) || repeat(']', 6000))::jsonb,
	immediate => true)));
	my $waiting = q(
SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE NOT granted AND locktype = 'object' AND backend_type = 'batcher worker');
	wait_sql($node, "SELECT count(*) = 1 FROM ($waiting) s");
	is(sql($node, "SELECT pg_terminate_backend(pid, 10000) FROM ($waiting) s"),
		't', 'a worker that waits to tell of a lost message is terminated');
	disarm($node);
	release_point($node, 'notify');
	wait_drained($node, 'sender', 'deep');
}
$node->stop;
done_testing();
