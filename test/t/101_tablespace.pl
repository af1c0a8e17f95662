
# The spool is made in a tablespace, moved to another one while clients enqueue,
# and the database is moved with rows that wait; the server is killed at times.
# What has committed is flushed exactly once, and what has not never is.
#
# Failure table: "the spool or the database is moved to another tablespace".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('tablespace', "batcher.flush_interval = '20ms'");
my $collect = collect_statement();

sql($node,
	"CREATE TABLESPACE $_ LOCATION '" . PostgreSQL::Test::Utils::tempdir . "'")
  foreach ('one', 'two', 'three');

# Where the spool is; 'database' where that is.
sub place
{
	return sql(
		$node, q(
SELECT coalesce(t.spcname, 'database')
FROM pg_class c LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
WHERE c.oid = 'batcher.spool'::regclass));
}

# A statement that moves it to the other tablespace.
sub move
{
	my ($from) = @_;

	return 'ALTER TABLE batcher.spool SET TABLESPACE '
	  . ($from eq 'one' ? 'two' : 'one') . ';';
}

# A statement that enqueues rows of a queue, of which 9 come.
sub produce
{
	my ($queue, $key) = @_;

	$key = "'k'" unless defined $key;
	return "SELECT produce('$queue', 10, $key, nextval('serial'));";
}

sub start_session
{
	return $node->background_psql('postgres', on_error_stop => 0);
}

# All rows of these queues that have come wait, and go on coming; then they
# leave, once.
sub check_after
{
	my ($what, @queues) = @_;
	my $names = join(', ', map { "'$_'" } @queues);

	is( sql(
			$node, qq(
SELECT count(*), count(DISTINCT payload->>'id') FROM batcher.pending
WHERE queue IN ($names))),
		sql(
			$node, qq(
SELECT count(*), count(*) FROM acknowledged a WHERE queue IN ($names)
	AND NOT EXISTS (SELECT FROM collected c WHERE c.id = a.id))),
		"$what: what has committed waits");
	sql($node, join '', map { produce($_) } @queues);
	sql($node, 'SELECT batch_resume()');
	wait_drained($node, @queues);
	check_rows($node, "$what: is flushed once", "queue IN ($names)");
	check_order($node, "$what: each key in order", "queue IN ($names)");
	return;
}

# --- the extension is made in a tablespace ---

sql($node, 'DROP EXTENSION batcher');
sql($node, 'SET default_tablespace = one; CREATE EXTENSION batcher');
is(place(), 'one', 'default_tablespace: the spool is there');
create_checker($node);
sql(
	$node, qq(
CREATE SEQUENCE serial;
SELECT batch_create_queue('a', \$\$$collect\$\$,
	options => '{"max_batch_size": 30}');
SELECT batch_create_queue('volatile', \$\$$collect\$\$,
	options => '{"durable": false}');
SELECT batch_pause();
));
sql($node, produce('a') . produce('volatile'));
check_after('default_tablespace', 'a', 'volatile');
sql($node, 'SELECT batch_pause();' . produce('a'));
kill_postmaster($node);
check_after('default_tablespace, a kill', 'a');

# --- who moves the spool also enqueues, and somebody waits for him ---

my %end = (
	COMMIT => sub { shift->query_safe('COMMIT') },
	ROLLBACK => sub { shift->query_safe('ROLLBACK') },
	'a kill' => sub { kill_postmaster($node) });

foreach my $how ('ROLLBACK', 'a kill', 'COMMIT', 'COMMIT, a kill')
{
	my $from = place();
	my $mover = start_session();
	my $other = start_session();
	my $is_moved = $how =~ /^COMMIT/;

	sql($node, 'SELECT batch_pause();' . produce('a'));
	$mover->query_safe('BEGIN;' . produce('a') . move($from) . produce('a'));
	$other->query_until(qr/^go$/m,
		"\\echo go\n" . produce('a', "'other'") . "\n");
	wait_sql(
		$node, q(
SELECT count(*) > 0 FROM pg_locks
WHERE relation = 'batcher.spool'::regclass AND NOT granted));
	foreach my $next (split /, /, $how)
	{
		$end{$next}->($mover);
		$other->query_safe('SELECT 1') if $next ne 'a kill';
	}
	eval { $_->quit } foreach ($mover, $other);
	is(place() ne $from, $is_moved,
		"$how: the spool is " . ($is_moved ? 'moved' : 'where it was'));
	check_after("moved, $how", 'a');
}

# --- clients enqueue all the time ---

my $load = start_load($node, produce('a', "'c' || :client_id"), 4, 300);
my $flushed = 0;

foreach my $round (1 .. 6)
{
	my $from = place();

	sql($node, move($from));
	isnt(place(), $from, "round $round: the spool is moved");
	kill_postmaster($node) if $round % 3 == 2;
	wait_sql($node, "SELECT count(*) > $flushed + 100 FROM collected");
	$flushed = sql($node, 'SELECT count(*) FROM collected');
}
stop_load($load);
wait_drained($node, 'a');
check_rows($node, 'moved while clients enqueue', "queue = 'a'");
check_order($node, 'moved while clients enqueue: each key in order',
	"queue = 'a'");

# --- the database is moved, with the spool ---

# (not to where a move was killed: there is a file that nothing tells of)

sql($node, 'ALTER TABLE batcher.spool SET TABLESPACE pg_default');
is(place(), 'database', 'the spool is where the database is');
foreach my $to ('three', 'pg_default')
{
	my $is_killed = $to eq 'pg_default';
	my $what = "ALTER DATABASE to $to" . ($is_killed ? ', a kill' : '');
	my @queues = $is_killed ? ('a') : ('a', 'volatile');
	my $enqueue = join '', map { produce($_) } @queues;
	my $before = sql($node, q(SELECT pg_relation_filepath('batcher.spool')));

	sql($node, "SELECT batch_pause(); $enqueue");
	$node->safe_psql('template1', "ALTER DATABASE postgres SET TABLESPACE $to");
	isnt(sql($node, q(SELECT pg_relation_filepath('batcher.spool'))),
		$before, "$what: the spool is moved");
	sql($node, $enqueue);
	kill_postmaster($node) if $is_killed;
	check_after($what, @queues);
}
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');

$node->stop;
done_testing();
