
# Dump and restore into new servers, of a database whose queues update a target
# with primary key, foreign key and triggers: nothing is flushed before all of
# that is there and batch_resume() was called, and everything once after it.
#
# Failure table: "dump and restore".  (025_dump.pl has the formats, owners and
# what is dumped.)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "batcher.flush_interval = '10ms'";
my $source = new_node('source', $conf);
my $dumps = $source->basedir;

# Each flush adds up the rows of an account, whose bank must exist; a trigger
# writes what has changed, and another one refuses what is too much.
sql(
	$source, q(
CREATE ROLE clerk;
CREATE ROLE teller;
GRANT EXECUTE ON FUNCTION
	batch_create_queue(text, text, regclass, regtype, jsonb, boolean) TO clerk;
CREATE TABLE bank (id int PRIMARY KEY);
CREATE TABLE account (id int PRIMARY KEY, bank int REFERENCES bank,
	n int NOT NULL DEFAULT 0);
CREATE TABLE change (pos serial PRIMARY KEY, id int REFERENCES account,
	before int, after int);
CREATE TABLE arrival (ticket bigint PRIMARY KEY, bank int REFERENCES bank);
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.change (id, before, after) VALUES (new.id, old.n, new.n);
	RETURN new;
END $$;
CREATE FUNCTION check_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF new.n > 1000000 THEN
		RAISE EXCEPTION 'too much';
	END IF;
	RETURN new;
END $$;
CREATE TRIGGER note_change AFTER UPDATE ON account
	FOR EACH ROW EXECUTE FUNCTION note_change();
CREATE TRIGGER check_change BEFORE UPDATE ON account
	FOR EACH ROW EXECUTE FUNCTION check_change();
GRANT SELECT, INSERT, UPDATE ON bank, account, change, arrival TO clerk;
GRANT USAGE ON SEQUENCE change_pos_seq TO clerk;
INSERT INTO bank SELECT generate_series(1, 3);
INSERT INTO account (id, bank) SELECT g, 1 + g % 3 FROM generate_series(1, 10) g;
SET ROLE clerk;
SELECT batch_create_queue('add', $$UPDATE account a SET n = a.n + s.n
	FROM (SELECT (payload->>'id')::int AS id, sum((payload->>'n')::int) AS n
		FROM batch GROUP BY 1) s WHERE a.id = s.id$$,
	options => '{"flush_interval": "20 ms", "max_batch_size": 50,
		"notify_channel": "added"}');
SELECT batch_create_queue('arrive', $$INSERT INTO arrival
	SELECT batch_ticket, (payload->>'bank')::int FROM batch$$,
	options => '{"flush_interval": "30 ms"}');
SELECT batch_create_queue('volatile', $$INSERT INTO arrival
	SELECT batch_ticket, (payload->>'bank')::int FROM batch$$,
	options => '{"durable": false}');
SELECT batch_grant('add', 'teller', 'manage');
SELECT batch_grant('arrive', 'teller', 'enqueue');
SELECT batch_grant('arrive', 'public', 'enqueue');
RESET ROLE;
));

# A dead letter: the bank of this row does not exist.
sql(
	$source, q(
SELECT batch_alter_queue('arrive', '{"max_attempts": 1}');
SET ROLE teller;
SELECT batch_enqueue('arrive', '{"bank": 4}', 'no such bank', 'topic');
));
wait_sql($source, 'SELECT count(*) = 1 FROM batcher.dead_letter');

# Some rows are flushed before, the others wait.
sub enqueue
{
	my ($n) = @_;

	sql(
		$source, qq(
SELECT count(batch_enqueue('add', jsonb_build_object('id', 1 + g % 10, 'n', 1),
	'account ' || g % 10, 'topic')) FROM generate_series(1, $n) g;
SELECT count(batch_enqueue('arrive', jsonb_build_object('bank', 1 + g % 3)))
FROM generate_series(1, 100) g;));
	return;
}

enqueue(200);
sql($source, 'SELECT batch_flush()');
sql($source, 'SELECT batch_pause()');
enqueue(330);
sql($source, q(SELECT batch_enqueue('volatile', '{"bank": 1}')));

my $definitions = q(
SELECT string_agg(q::text, ',' ORDER BY queue)
FROM (SELECT queue, owner, flush_sql, search_path, options, created_at
	FROM batcher.queue) q);
my $grants = 'SELECT queue, grants FROM batcher.queue ORDER BY 1';
my $dead_letters = 'SELECT * FROM batcher.dead_letter';
my $pending = q(
SELECT count(*), md5(string_agg(p::text, ',' ORDER BY ticket))
FROM (SELECT * FROM batcher.pending WHERE durable) p);
my $balance = 'SELECT sum(n), count(*) FILTER (WHERE n = 20) FROM account';
my $defined = sql($source, $definitions);
my $waiting = sql($source, $pending);
my $granted = sql($source, $grants);
my $dead = sql($source, $dead_letters);
my $changes = sql($source, 'SELECT count(*) FROM change');

is(sql($source, $balance), '200|10', 'what was flushed before');
like($waiting, qr/^430\|/, 'what waits');
command_ok(
	[
		'pg_dump', '-Fc', '-d', $source->connstr('postgres'),
		'-f', "$dumps/custom.dump"
	],
	'pg_dump -Fc');
command_ok(
	[
		'pg_dumpall', '-d', $source->connstr('postgres'),
		'-f', "$dumps/all.sql"
	],
	'pg_dumpall');
command_ok(
	[
		'pg_dumpall', '-g', '-d', $source->connstr('postgres'),
		'-f', "$dumps/globals.sql"
	],
	'pg_dumpall -g');

# A server in which there is nothing yet.
sub empty_node
{
	my ($name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init;
	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = 'batcher'\nmax_worker_processes = 16\n$conf\n"
	);
	$node->start;
	return $node;
}

sub check_restored
{
	my ($node, $what) = @_;

	is(sql($node, $definitions), $defined, "$what: queues with their options");
	is(sql($node, $pending), $waiting, "$what: waiting rows");
	is(sql($node, $dead_letters), $dead, "$what: dead letters");
	is( sql(
			$node,
			'SELECT DISTINCT paused, pause_reason FROM batcher.queue'),
		't|restored', "$what: all queues are held");
	wait_sql($node, q(SELECT sum(pending) = 430 FROM batcher.status));
	is(sql($node, 'SELECT batch_flush()'), '0', "$what: nothing is flushed");
	is( sql($node, $balance) . ' ' . sql($node, 'SELECT count(*) FROM change'),
		"200|10 $changes", "$what: the target is as it was dumped");

	sql($node, 'SELECT batch_resume()');
	is(sql($node, $grants), $granted, "$what: grants, once it was resumed");
	wait_drained($node, 'add', 'arrive', 'volatile');
	is( sql($node, 'SELECT sum(n), min(n), max(n) FROM account'),
		'530|53|53', "$what: after batch_resume() each row was added once");
	is( sql(
			$node,
			"SELECT sum(after - before), count(*) > $changes FROM change"),
		'530|t', "$what: the trigger has seen it");
	is( sql($node, 'SELECT count(*), count(DISTINCT ticket) FROM arrival'),
		'200|200', "$what: and each other row was inserted once");
	is(sql($node, 'SELECT count(*) FROM batcher.spool'),
		'0', "$what: nothing waits any more");

	# It goes on, with a check that works and tickets of its own.
	my $last = sql($node, 'SELECT max(ticket) FROM arrival');
	my $ticket =
	  sql($node, q(SET ROLE clerk; SELECT batch_enqueue('arrive', '{"bank": 1}')));
	cmp_ok($ticket, '>', $last, "$what: tickets do not repeat");
	is(sql($node, "SELECT batch_wait('arrive', $ticket)"),
		'flushed', "$what: the queues go on");

	# Grants are of the roles of that name, and dead letters can be repaired.
	is( sql(
			$node, q(
INSERT INTO bank VALUES (4);
SET ROLE teller;
SELECT batch_alter_queue('add', '{"flush_interval": "10 ms"}');
RESET ROLE;
SELECT batch_retry_dead('arrive');
SELECT batch_flush('arrive') IS NOT NULL;
SELECT count(*) FROM arrival WHERE bank = 4;)),
		"\n1\nt\n1",
		"$what: grants work, and a dead letter is flushed");
	return;
}

# The database of the same name has the same OID in both servers.
my $custom = empty_node('custom');
command_ok(
	[
		'psql', '-X', '-q', '-d', $custom->connstr('postgres'),
		'-f', "$dumps/globals.sql"
	],
	'restore of the roles');
command_ok(
	[
		'pg_restore', '-j4', '--exit-on-error', '-d',
		$custom->connstr('postgres'), "$dumps/custom.dump"
	],
	'pg_restore -j4');
check_restored($custom, 'custom, -j4');
$custom->stop;

my $plain = empty_node('plain');
command_ok(
	[
		'psql', '-X', '-q', '-d', $plain->connstr('postgres'),
		'-f', "$dumps/all.sql"
	],
	'restore of a dump of the whole server');
check_restored($plain, 'plain, whole server');
$plain->stop;

sql($source, 'SELECT batch_resume()');
wait_drained($source, 'add', 'arrive', 'volatile');
is(sql($source, 'SELECT sum(n), min(n), max(n) FROM account'),
	'530|53|53', 'the source flushes what is its own');
$source->stop;
done_testing();
