# Several databases at once: workers come with CREATE EXTENSION, leave with
# DROP EXTENSION, step aside for commands that need a database to themselves,
# come back if such a command fails, and share the slots when there are more
# databases than slots.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', qq(
shared_preload_libraries = 'batcher'
max_worker_processes = 16
batcher.max_workers = 8
autovacuum = off
log_min_messages = debug1
allow_in_place_tablespaces = on
));
$node->start;

# A statement that hangs is an error, not a hanging test.
sub sql
{
	my ($db, $sql) = @_;
	return $node->safe_psql($db, "SET statement_timeout = '40s';\n$sql");
}

# The same for one that is to fail: what it says.
sub error_of
{
	my ($db, $sql) = @_;
	my ($out, $err) = ('', '');
	$node->psql($db, "SET statement_timeout = '40s';\n$sql",
		stdout => \$out, stderr => \$err);
	return $err;
}

sub worker_pid
{
	my ($db) = @_;
	return $node->safe_psql('postgres',
		"SELECT coalesce(string_agg(pid::text, ','), '') FROM pg_stat_activity
		 WHERE backend_type = 'batcher worker' AND datname = '$db'");
}

sub worker_comes
{
	my ($db, $name) = @_;
	ok( $node->poll_query_until(
			'postgres',
			"SELECT count(*) = 1 FROM pg_stat_activity
			 WHERE backend_type = 'batcher worker' AND datname = '$db'"),
		$name);
	return worker_pid($db);
}

sub worker_leaves
{
	my ($db, $name) = @_;
	ok( $node->poll_query_until(
			'postgres',
			"SELECT count(*) = 0 FROM pg_stat_activity
			 WHERE backend_type = 'batcher worker' AND datname = '$db'"),
		$name);
}

# The extension, and queues whose rows go into the table "done"; those of "v" are
# in memory only.
my $setup = q{
CREATE EXTENSION batcher;
CREATE TABLE done (id int, pid int DEFAULT pg_backend_pid());
SELECT batch_create_queue('q',
	'INSERT INTO done SELECT (payload->>''id'')::int FROM batch',
	options => '{"flush_interval": "10 ms"}');
SELECT batch_create_queue('v',
	'INSERT INTO done SELECT (payload->>''id'')::int FROM batch',
	options => '{"flush_interval": "10 ms", "durable": false}');
};

# Into both queues, or into one.
sub enqueue
{
	my ($db, $from, $to, $queue) = @_;
	my $even = $queue || 'q';
	my $odd = $queue || 'v';
	sql($db, "SELECT batch_enqueue(CASE WHEN i % 2 = 0 THEN '$even' ELSE '$odd' END,
			  jsonb_build_object('id', i)) FROM generate_series($from, $to) i");
}

# Are exactly the rows 1 to n there, each once?
sub all_done
{
	my ($db, $n, $name) = @_;
	$node->poll_query_until($db, "SELECT count(*) >= $n FROM done");
	is( sql($db, "SELECT count(*), count(DISTINCT id), min(id), max(id)
				  FROM done"),
		"$n|$n|1|$n", $name);
}

# A flush that goes on for a minute, unless the setting "quick" of the table
# says that it need not.
my $slow_setup = q{
CREATE TABLE quick (yes bool);
CREATE TABLE slow_done (id int);
CREATE FUNCTION dawdle() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM public.quick) THEN
		PERFORM pg_sleep(60);
	END IF;
	RETURN 1;
END $$;
SELECT batch_create_queue('slow',
	'INSERT INTO slow_done SELECT (payload->>''id'')::int * dawdle() FROM batch',
	options => '{"flush_interval": "10 ms"}');
SELECT batch_create_queue('slow_v',
	'INSERT INTO slow_done SELECT (payload->>''id'')::int * dawdle() FROM batch',
	options => '{"flush_interval": "10 ms", "durable": false}');
};

sub make_busy
{
	my ($db, $queue) = @_;
	sql($db, "SELECT batch_enqueue('$queue', '{\"id\": 7}')");
	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE backend_type = 'batcher worker' AND datname = '$db'
		 AND wait_event = 'PgSleep'")
	  or die "the worker of $db is not in its flush";
}

# Let the row through that was in the flush: it is done once.
sub end_busy
{
	my ($db, $name) = @_;
	sql($db, 'INSERT INTO quick VALUES (true)');
	# a worker that is in the old flush now does not see this
	$node->safe_psql('postgres',
		"SELECT pg_cancel_backend(pid) FROM pg_stat_activity
		 WHERE backend_type = 'batcher worker' AND datname = '$db'
		 AND wait_event = 'PgSleep'");
	$node->poll_query_until($db, 'SELECT count(*) > 0 FROM slow_done');
	is(sql($db, "SELECT count(*), min(id) FROM slow_done"), '1|7', $name);
	sql($db, 'TRUNCATE slow_done, quick');
}

# --- each database has its worker -----------------------------------------

# One of the names needs quotes.
my @dbs = ('db1', 'db2', 'Db "3"');
for my $db (@dbs)
{
	(my $quoted = $db) =~ s/"/""/g;
	sql('postgres', qq(CREATE DATABASE "$quoted"));
	sql($db, $setup);
}
my %pids;
$pids{ worker_comes($_, "$_: a worker comes by itself") } = 1 for @dbs;
is(scalar(keys %pids), 3, 'each database has its own worker');
enqueue($dbs[$_], 1, 10 * ($_ + 1)) for 0 .. 2;
all_done($dbs[$_], 10 * ($_ + 1), "$dbs[$_]: its rows and no others")
  for 0 .. 2;
is( sql('db1', "SELECT count(*) FROM batcher.worker
				WHERE database IN ('db1', 'db2', 'Db \"3\"')"),
	'3', 'batcher.worker shows the workers of all databases');
is(worker_pid('postgres'), '', 'no worker where there is no extension');

# --- CREATE EXTENSION that is rolled back ---------------------------------

# How many workers were started so far.
sub count_starts
{
	my $log = slurp_file($node->logfile);
	return scalar(() = $log =~ /starting background worker process "batcher worker"/g);
}

sql('postgres', 'CREATE DATABASE db4');
my $starts = count_starts();
sql('db4', "BEGIN;\n$setup
	SELECT batch_enqueue('q', '{\"id\": 1}');\nROLLBACK");
like(error_of('db4', "SELECT batch_enqueue('q', '{}')"),
	qr/function batch_enqueue\(unknown, unknown\) does not exist/,
	'nothing is left of a rolled back CREATE EXTENSION');
sql('db4', "BEGIN;\nSAVEPOINT s;\n$setup\nROLLBACK TO s;\nCOMMIT");

# The launcher has gone on since then: another database gets its worker.
sql('postgres', 'CREATE DATABASE db5');
sql('db5', $setup);
worker_comes('db5', 'worker of another database');
worker_leaves('db4', 'no worker stays after a rolled back CREATE EXTENSION');

# While the transaction is open, it is no concern of the launcher's yet.
my $open = $node->background_psql('db4');
$open->query_safe('BEGIN');
$open->query_safe('CREATE EXTENSION batcher');
enqueue('db1', 11, 12);
all_done('db1', 12, 'another database meanwhile');
sql('db1', "DELETE FROM done WHERE id > 10");
$open->quit;
worker_leaves('db4', 'nor after a session that ended');
cmp_ok(count_starts() - $starts, '<', 10,
	'no worker is started again and again for what was never committed');
sql('db4', "BEGIN;\n$setup
	SELECT batch_enqueue('q', '{\"id\": 1}');\nCOMMIT");
all_done('db4', 1, 'CREATE EXTENSION, queue and row in one transaction');

# --- DROP EXTENSION -------------------------------------------------------

my $pid = worker_pid('db4');
sql('db4', "BEGIN;\nDROP EXTENSION batcher;\nROLLBACK");
enqueue('db4', 2, 3);
all_done('db4', 3, 'flushes after a rolled back DROP EXTENSION');
sql('db4', "CREATE VIEW v AS SELECT * FROM batcher.status");
like(error_of('db4', 'DROP EXTENSION batcher'),
	qr/cannot drop extension batcher because other objects depend on it/,
	'DROP EXTENSION without CASCADE is refused');
enqueue('db4', 4, 5);
all_done('db4', 5, 'flushes after a refused DROP EXTENSION');
sql('db4', "BEGIN;\nSAVEPOINT s;\nDROP EXTENSION batcher CASCADE;
	ROLLBACK TO s;\nCOMMIT");
enqueue('db4', 6, 7);
all_done('db4', 7, 'flushes after ROLLBACK TO of a DROP EXTENSION');
sql('db4', "SELECT batch_pause('q'); SELECT batch_enqueue('q', '{\"id\": 0}')");
sql('db4', 'DROP EXTENSION batcher CASCADE');
worker_leaves('db4', 'the worker leaves after DROP EXTENSION CASCADE');

# And again, with the same names.
sql('db4', "DROP TABLE done;\n$setup");
enqueue('db4', 1, 5);
all_done('db4', 5, 'CREATE EXTENSION after DROP EXTENSION');
is(sql('db4', 'SELECT sum(pending) FROM batcher.status'),
	'0', 'rows of the dropped extension are gone');

# In one transaction: another extension of the same name.
sql('db4', "BEGIN;\nDROP EXTENSION batcher;\nDROP TABLE done;\n$setup
	SELECT batch_enqueue('q', '{\"id\": 1}');\nCOMMIT");
all_done('db4', 1, 'DROP and CREATE EXTENSION in one transaction');
worker_comes('db4', 'one worker after that');

# --- commands that need a database to themselves, the worker idle ---------

my $started;

sub quick_enough
{
	my ($what) = @_;
	cmp_ok(time() - $started, '<', 15, "$what does not wait for the worker");
}

$started = time();
sql('postgres', 'DROP DATABASE db5');
quick_enough('DROP DATABASE');
is(worker_pid('db5'), '', 'its worker is gone');

enqueue('db1', 11, 20);
$started = time();
sql('postgres', 'ALTER DATABASE db1 RENAME TO db1a');
enqueue('db1a', 21, 30);
sql('postgres', "CREATE TABLESPACE ts LOCATION ''");
sql('postgres', 'ALTER DATABASE db1a SET TABLESPACE ts');
# what waits in memory only would not be in the copies
all_done('db1a', 30, 'flushes after RENAME and SET TABLESPACE');
enqueue('db1a', 31, 40, 'q');
sql('postgres', 'CREATE DATABASE copy1 TEMPLATE db1a');
enqueue('db1a', 41, 50, 'q');
sql('postgres',
	'CREATE DATABASE copy2 TEMPLATE db1a STRATEGY file_copy TABLESPACE ts');
enqueue('db1a', 51, 60);
quick_enough('a run of commands');
all_done('db1a', 60, 'flushes after each of them');
worker_comes('copy1', 'a copy gets its worker');
worker_comes('copy2', 'a copy by files too');
sql($_, 'SELECT batch_resume()') for 'copy1', 'copy2';
enqueue('copy1', 41, 50);
enqueue('copy2', 51, 60);
all_done('copy1', 50, 'the copy flushes');
all_done('copy2', 60, 'the copy by files flushes');

# --- the same, the worker busy --------------------------------------------

sql('db1a', $slow_setup);
make_busy('db1a', 'slow');
$started = time();
sql('postgres', 'ALTER DATABASE db1a RENAME TO db1');
quick_enough('RENAME in a flush');
end_busy('db1', 'RENAME: the interrupted flush is repeated');

make_busy('db1', 'slow_v');
$started = time();
sql('postgres', 'ALTER DATABASE db1 SET TABLESPACE pg_default');
quick_enough('SET TABLESPACE in a flush');
end_busy('db1', 'SET TABLESPACE: the interrupted flush is repeated');

make_busy('db1', 'slow');
$started = time();
sql('postgres', 'CREATE DATABASE copy3 TEMPLATE db1');
quick_enough('CREATE DATABASE in a flush');
end_busy('db1', 'CREATE DATABASE: the interrupted flush is repeated');
sql('copy3', 'INSERT INTO quick VALUES (true); SELECT batch_resume()');
ok($node->poll_query_until('copy3', 'SELECT count(*) > 0 FROM slow_done'),
	'the row that was in the flush is flushed in the copy too');
is(sql('copy3', 'SELECT count(*) FROM slow_done'), '1', 'once');

make_busy('db2', 'slow_v') if sql('db2', $slow_setup) || 1;
$started = time();
sql('postgres', 'DROP DATABASE db2');
quick_enough('DROP DATABASE in a flush');
make_busy('copy1', 'slow') if sql('copy1', $slow_setup) || 1;
$started = time();
sql('postgres', 'DROP DATABASE copy1 WITH (FORCE)');
quick_enough('DROP DATABASE WITH (FORCE) in a flush');

# A statement of the flush that does not want to be interrupted.
sql('copy2', q{
CREATE FUNCTION stubborn() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
BEGIN
	FOR i IN 1 .. 3 LOOP
		BEGIN
			PERFORM pg_sleep(60);
		EXCEPTION WHEN query_canceled THEN
		END;
	END LOOP;
	RETURN 1;
END $$;
SELECT batch_create_queue('slow', 'SELECT stubborn() FROM batch',
	options => '{"flush_interval": "10 ms"}');
});
make_busy('copy2', 'slow');
$started = time();
sql('postgres', 'DROP DATABASE copy2');
quick_enough('DROP DATABASE in a flush that catches its cancel');

# --- commands that fail ---------------------------------------------------

like(error_of('postgres', 'ALTER DATABASE db1 RENAME TO copy3'),
	qr/database "copy3" already exists/, 'a command that fails');
worker_comes('db1', 'the worker comes back');
my $n = sql('db1', 'SELECT count(*) FROM done');
enqueue('db1', $n + 1, $n + 5);
all_done('db1', $n + 5, 'and flushes');

my $guest = $node->background_psql('db1');
$guest->query_safe('SELECT 1');
like(error_of('postgres', 'ALTER DATABASE db1 RENAME TO db1a'),
	qr/database "db1" is being accessed by other users/,
	'a command that fails because of a client');
enqueue('db1', $n + 6, $n + 10);
all_done('db1', $n + 10, 'the worker is back');

# The command waits five seconds for the guest; its backend dies before.
make_busy('db1', 'slow_v');
my $dropper = $node->background_psql('postgres', on_error_stop => 0);
$dropper->query_until(qr/go/, "\\echo go\nDROP DATABASE db1;\n");
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_activity
	 WHERE backend_type = 'client backend' AND query LIKE 'DROP DATABASE db1%'
	 AND state = 'active'");
worker_leaves('db1', 'the worker steps aside');
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	 WHERE query LIKE 'DROP DATABASE db1%' AND pid <> pg_backend_pid()");
worker_comes('db1', 'the command\'s backend died: the worker comes back');
eval { $dropper->quit; };
end_busy('db1', 'and flushes');
$guest->quit;

# Who may not run the command does not disturb the worker.
sql('postgres', 'CREATE ROLE nobody LOGIN; CREATE ROLE maker LOGIN CREATEDB');
$pid = worker_pid('db1');
for my $role ('nobody', 'maker')
{
	for my $command (
		'DROP DATABASE db1',
		'ALTER DATABASE db1 RENAME TO x',
		'CREATE DATABASE x TEMPLATE db1')
	{
		like(
			error_of('postgres', "SET ROLE $role;\n$command"),
			qr/must be owner|permission denied/,
			"$role may not: $command");
	}
}
is(worker_pid('db1'), $pid, 'the worker has not stirred');

# --- a copy of waiting rows -----------------------------------------------

sql('db1', q{
TRUNCATE done;
SELECT batch_alter_queue('q', '{"flush_interval": "1 h"}');
SELECT batch_create_queue('held',
	'INSERT INTO done SELECT (payload->>''id'')::int FROM batch',
	options => '{"flush_interval": "10 ms"}');
SELECT batch_pause('held');
SELECT batch_enqueue('q', jsonb_build_object('id', i))
FROM generate_series(1, 10) i;
SELECT batch_enqueue_many('held',
	(SELECT array_agg(jsonb_build_object('id', i))
	 FROM generate_series(11, 20) i));
});
sql('postgres', 'CREATE DATABASE copy4 TEMPLATE db1');
worker_comes('copy4', 'a copy with waiting rows: its worker comes');
is( sql('copy4', 'SELECT count(*) FROM batcher.pending'),
	'20', 'the copy has the waiting rows');
is(sql('copy4', "SELECT paused, pause_reason FROM batcher.status
				 GROUP BY 1, 2"),
	't|restored', 'its queues are held');
sql('copy4', "SELECT batch_resume(queue) FROM batcher.queue
	WHERE queue <> 'held'");
is(sql('copy4', 'SELECT batch_flush()'), '10', 'the copy flushes its rows');
is(sql('copy4', 'SELECT count(*), max(id) FROM done'), '10|10', 'they are there');
is(sql('db1', 'SELECT count(*) FROM done'), '0', 'the original waits');
sql('copy4', "SELECT batch_resume('held')");
all_done('copy4', 20, 'the copy: all rows once');
is(sql('db1', 'SELECT batch_flush()'), '10', 'the original flushes its rows');
sql('db1', "SELECT batch_resume('held')");
all_done('db1', 20, 'the original: all rows once');

# --- databases that nobody may connect to ---------------------------------

sql('postgres', 'ALTER DATABASE copy4 IS_TEMPLATE true');
sql('postgres', 'CREATE DATABASE copy5 TEMPLATE copy4');
sql('copy5', 'SELECT batch_resume()');
enqueue('copy5', 21, 30);
sql('copy5', "SELECT batch_flush()");
all_done('copy5', 30, 'copy of a template');
sql('postgres', 'ALTER DATABASE copy5 ALLOW_CONNECTIONS false');
sql('postgres', 'ALTER DATABASE copy5 RENAME TO copy6');
sql('postgres', 'ALTER DATABASE copy6 ALLOW_CONNECTIONS true');
worker_comes('copy6', 'connections allowed again: the worker comes');
sql('postgres', 'ALTER DATABASE copy4 IS_TEMPLATE false');

# --- more databases than workers ------------------------------------------

my @all = ('db1', 'db4', 'copy4', 'copy6');
for my $db (@all)
{
	sql($db, "TRUNCATE done;
		SELECT batch_alter_queue('q', '{\"flush_interval\": \"10 ms\"}')");
}
sql('postgres', 'DROP DATABASE copy3; ');
sql('postgres', 'DROP DATABASE "Db ""3"""');
$node->append_conf('postgresql.conf', 'batcher.max_workers = 2');
$node->reload;
ok( $node->poll_query_until('postgres',
		"SELECT count(*) <= 2 FROM pg_stat_activity
		 WHERE backend_type = 'batcher worker'"),
	'a smaller batcher.max_workers takes effect');
for my $round (0 .. 1)
{
	enqueue($_, 10 * $round + 1, 10 * $round + 10) for @all;
	all_done($_, 10 * $round + 10, "$_ is flushed with 2 workers for 4")
	  for @all;
}
cmp_ok(
	$node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity
		 WHERE backend_type = 'batcher worker'"),
	'<=', 2, 'no more than 2 workers');

$node->stop;
my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|TRAP:|terminated by signal/, 'nothing crashed');
unlike($log, qr/ERROR:.*\(XX000\)|could not open relation/,
	'no internal error');
done_testing();
