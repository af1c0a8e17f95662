
=pod

=head1 NAME

BatcherTest - what the TAP tests of batcher share

=head1 DESCRIPTION

Nodes with batcher preloaded, waiting (never sleeping), arming the debug points
of src/base/debug.c, killing processes, and a checker of lost and duplicated
rows.

=cut

package BatcherTest;

use strict;
use warnings;

use Exporter 'import';
use File::Spec;
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

our @EXPORT = qw(
  new_node sql try_sql wait_sql wait_drained wait_worker worker_pid
  arm disarm wait_point release_point end_worker take_messages wait_messages
  log_position wait_crash_over kill_process kill_postmaster
  create_order_queue order_faults
  create_checker collect_statement check_rows check_order start_load
  stop_load start_client client_acks);

# Every call of psql ends by itself after so many seconds.
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

=pod

=over

=item new_node(name, configuration, new => {...}, init => {...})

Make and start a node with batcher preloaded and the extension installed in
the database postgres.  Unlike Cluster.pm's own nodes it restarts after a
crash, and does not log statements.

=cut

sub new_node
{
	my ($name, $conf, %params) = @_;
	my $node =
	  PostgreSQL::Test::Cluster->new($name, %{ $params{new} || {} });

	$node->init(extra => [ '--encoding', 'UTF8' ], %{ $params{init} || {} });
	$node->append_conf(
		'postgresql.conf', qq(
shared_preload_libraries = 'batcher'
max_worker_processes = 16
max_prepared_transactions = 4
max_connections = 40
restart_after_crash = on
log_statement = none
autovacuum = off
log_line_prefix = '%m [%p] %b '
));
	$node->append_conf('postgresql.conf', $conf) if defined $conf;
	$node->start;
	sql($node, 'CREATE EXTENSION batcher');
	return $node;
}

=pod

=item sql(node, statements)

Execute; returns what psql prints, and dies of an error.

=cut

sub sql
{
	my ($node, $sql) = @_;

	return $node->safe_psql('postgres', $sql, timeout => $timeout);
}

=pod

=item try_sql(node, statements)

Execute what may fail: returns the exit code of psql, its output and its
errors, which begin with the SQLSTATE.

=cut

sub try_sql
{
	my ($node, $sql) = @_;
	my ($out, $err) = ('', '');
	my $timed_out = 0;
	my $rc = $node->psql(
		'postgres', "\\set VERBOSITY verbose\n$sql",
		stdout => \$out,
		stderr => \$err,
		timeout => $timeout,
		timed_out => \$timed_out,
		on_error_die => 0,
		on_error_stop => 1);

	diag("timed out: $sql") if $timed_out;
	return (defined $rc ? $rc : -1, $out, $err);
}

=pod

=item wait_sql(node, query [, expected])

Wait until a query returns 't', or what is expected; dies after a long time.
Errors of the connection are waited out.  Unlike poll_query_until it writes
nothing to psql, which does not read when it finds no server: under load that
was an error of the pipe, and the end of the test.

=cut

sub wait_sql
{
	my ($node, $query, $expected) = @_;
	my @psql = (
		$node->installed_command('psql'), '-XAtc', $query, '-d',
		$node->connstr('postgres'));
	my $end = time() + $timeout;

	$expected = 't' unless defined $expected;
	while (time() < $end)
	{
		my ($out, $err) = ('', '');

		IPC::Run::run(\@psql, '<', \undef, '>', \$out, '2>', \$err);
		chomp($out);
		return if $out eq $expected && $err eq '';
		usleep(100_000);
	}
	die "waited in vain for: $query";
}

=pod

=item wait_drained(node, queue...)

Wait until no row of these queues waits any more, in the spool either: after a
crash batcher.status does not know yet what is there.

=cut

sub wait_drained
{
	my ($node, @queues) = @_;
	my $names = join(', ', map { "'$_'" } @queues);

	wait_sql(
		$node, qq(
SELECT count(*) = ) . scalar(@queues) . qq( FROM batcher.status
WHERE queue IN ($names) AND pending = 0 AND NOT is_flushing
	AND NOT EXISTS (SELECT FROM batcher.spool s
		JOIN batcher.queue_definition d ON d.id = s.queue_id
		WHERE d.name = queue)));
	return;
}

=pod

=item worker_pid(node), wait_worker(node)

The pid of the worker of the database postgres, or ''; wait for one.

=cut

sub worker_pid
{
	my ($node) = @_;

	return sql(
		$node, qq(
SELECT pid FROM batcher.worker WHERE database = 'postgres' LIMIT 1));
}

sub wait_worker
{
	my ($node) = @_;

	wait_sql(
		$node, qq(
SELECT count(*) > 0 FROM batcher.worker
WHERE database = 'postgres' AND pid IS NOT NULL AND pid <> 0));
	return worker_pid($node);
}

# The file of a debug point.
sub point_file
{
	my ($node, $point, $what) = @_;

	return $node->data_dir . "/batcher_debug_$point.$what";
}

=pod

=item arm(node, 'point=action,...')

Arm debug points of all processes but the sessions that have set their own.
When it returns, every process has been told to reread its settings: a new
session that shows the setting was forked after the postmaster had passed the
signal on.

=cut

sub arm
{
	my ($node, $points) = @_;

	foreach my $point (split /,/, $points)
	{
		$point =~ s/=.*//;
		unlink point_file($node, $point, 'waiting'),
		  point_file($node, $point, 'go');
	}
	unlink $node->data_dir . '/batcher_debug.off';
	sql(
		$node, qq(
ALTER SYSTEM SET batcher.debug_points = '$points';
SELECT pg_reload_conf();));
	wait_sql($node, "SHOW batcher.debug_points", $points);
	return;
}

=pod

=item disarm(node)

Undo arm().  A process that waits at a point goes on waiting; none begins to.

=cut

sub disarm
{
	my ($node) = @_;

	append_to_file($node->data_dir . '/batcher_debug.off', '');
	sql(
		$node, qq(
ALTER SYSTEM RESET batcher.debug_points;
SELECT pg_reload_conf();));
	wait_sql($node, "SHOW batcher.debug_points", '');
	return;
}

=pod

=item wait_point(node, point), release_point(node, point)

Wait until a process waits at a point that is armed with 'wait'; let it go.
It waits there again the next time.

=cut

sub wait_point
{
	my ($node, $point) = @_;
	my $file = point_file($node, $point, 'waiting');
	my $end = time() + $timeout;

	while (!-e $file)
	{
		die "no process came to the point $point" if time() > $end;
		usleep(5_000);
	}
	return;
}

sub release_point
{
	my ($node, $point) = @_;
	my $file = point_file($node, $point, 'go');
	my $end = time() + $timeout;

	# Who waits takes the file away.
	append_to_file($file, '');
	while (-e $file)
	{
		die "nobody left the point $point" if time() > $end;
		usleep(1_000);
	}
	return;
}

=pod

=item end_worker(node, point, function)

Have the worker end with a FATAL at a point, to which what the function does
brings it.  Returns the pid that it had.

=cut

sub end_worker
{
	my ($node, $point, $function) = @_;
	my $pid = wait_worker($node);
	my $position;

	# A worker that ends as soon as it has come is started again after a while.
	wait_sql(
		$node, qq(
SELECT backend_start < clock_timestamp() - interval '1.1 s'
FROM pg_stat_activity WHERE pid = $pid));
	arm($node, "$point=fatal");
	$position = log_position($node);
	$function->();
	$node->wait_for_log(qr/FATAL:.*batcher debug point "$point"/, $position);
	disarm($node);
	return $pid;
}

=pod

=item take_messages(session), wait_messages(session, count)

The messages that have come to a background session that listens: those there
are, or exactly so many within the time that a test waits.  Each is its JSON
object, with the member channel added.

=cut

sub take_messages
{
	my ($listener) = @_;
	my $out = $listener->query_safe('SELECT 1');
	my @messages;

	# psql tells of them when a statement has ended
	while ($out =~
		/Asynchronous notification "(\w+)" with payload "(.*)" received from/g)
	{
		my $channel = $1;

		push @messages, { %{ decode_json($2) }, channel => $channel };
	}
	return @messages;
}

sub wait_messages
{
	my ($listener, $count) = @_;
	my $end = time() + $timeout;
	my @messages;

	while (@messages < $count && time() < $end)
	{
		push @messages, take_messages($listener);
		usleep(20_000) if @messages < $count;
	}
	is(scalar(@messages), $count, "$count messages came");
	return @messages;
}

=pod

=item log_position(node)

Where the server's log ends now, for wait_crash_over and wait_for_log.

=cut

sub log_position
{
	my ($node) = @_;

	return -s $node->logfile;
}

=pod

=item wait_crash_over(node, position)

Wait until the server has restarted itself after a crash that came after the
position in its log.

=cut

sub wait_crash_over
{
	my ($node, $position) = @_;

	$node->wait_for_log(
		qr/all server processes terminated; reinitializing.*database system is ready to accept connections/s,
		$position);
	wait_sql($node, 'SELECT true');
	return;
}

=pod

=item kill_process(node, pid)

Kill -9 one process of the server, and wait until the server has restarted
itself.  Instead of a pid a function that finds one: it is asked again when
that process has ended by itself meanwhile.

=cut

sub kill_process
{
	my ($node, $pid) = @_;
	my $find = ref $pid ? $pid : sub { return $pid };
	my $position = log_position($node);
	my $end = time() + $timeout;

	until (has_killed($node, $find->(), $position))
	{
		die 'killed no process' if time() > $end || !ref $pid;
	}
	wait_crash_over($node, $position);
	return;
}

# Kill a process; false if it was ending by itself, which is no crash.  The
# postmaster logs how it ended before it lets anybody in again.
sub has_killed
{
	my ($node, $pid, $position) = @_;

	return 0 unless ($pid || '') =~ /^\d+$/ && kill('KILL', $pid) == 1;
	my $end = time() + $timeout;

	while (kill(0, $pid) == 1)
	{
		die "process $pid does not go" if time() > $end;
		usleep(1_000);
	}
	wait_sql($node, 'SELECT true');
	return slurp_file($node->logfile, $position) =~
	  /\(PID $pid\) was terminated by signal 9/;
}

=pod

=item kill_postmaster(node [, function])

Kill -9 the postmaster and start the server again.  Its children end by
themselves, some time later; those that wait at a debug point do not, so the
function, called when the postmaster is gone, has to see to them.

=cut

sub kill_postmaster
{
	my ($node, $when_gone) = @_;
	my $end = time() + $timeout;

	$node->kill9;
	$when_gone->() if $when_gone;
	while (!$node->start(fail_ok => 1))
	{
		die 'the server does not start' if time() > $end;
		$node->stop('fast', fail_ok => 1);
		usleep(100_000);
	}
	return;
}

=pod

=item create_order_queue(node, queue, target, options)

Make a queue whose flush stores key, number, ticket and the order of flushing
in a table of that name, made too.  Rows of one key are to be enqueued with
growing numbers: {"n": ...}.

=item order_faults(node, target)

How many rows of that table were flushed before a row of their key with a
smaller number.

=cut

sub create_order_queue
{
	my ($node, $queue, $target, $options) = @_;

	sql(
		$node, qq(
CREATE TABLE $target (pos bigserial, key text, n bigint, ticket bigint);
SELECT batch_create_queue('$queue',
	\$\$INSERT INTO $target (key, n, ticket)
	SELECT batch_key, (payload->>'n')::bigint, batch_ticket
	FROM batch ORDER BY batch_pos\$\$, options => '$options')));
	return;
}

sub order_faults
{
	my ($node, $target) = @_;

	return sql(
		$node, qq(
SELECT count(*) FROM
	(SELECT n, lag(n) OVER (PARTITION BY key ORDER BY pos) AS before
	 FROM $target) s
WHERE n <= before));
}

=pod

=item create_checker(node)

Make the tables and the function of the checker of lost and duplicated rows.

The function produce(queue, how many, key) enqueues that many rows with
unique ids; about a third are in savepoints of which half are rolled back,
and in each case the id goes into the table acknowledged, or, from an inner
savepoint that is rolled back, nowhere.  So acknowledged holds, by the
server's own atomicity and durability, exactly the ids whose rows committed:
more than a client can know, for whom the fate of a COMMIT that was
interrupted is open.

=item check_rows(node, message)

Test that the table collected holds each acknowledged id once and no other.

=item check_order(node, message, condition)

Test that the rows of one key, of those that fulfil the condition, if given,
were collected in the order of their numbers.

=cut

sub create_checker
{
	my ($node) = @_;

	sql(
		$node, q(
CREATE TABLE acknowledged (queue text, id uuid, key text, n bigint);
CREATE TABLE collected (pos bigserial, queue text, id uuid, key text, n bigint);
CREATE FUNCTION produce(queue text, how_many int, key text, n bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	id uuid;
BEGIN
	FOR i IN 1 .. how_many LOOP
		id := gen_random_uuid();
		IF i % 3 > 0 THEN
			PERFORM batch_enqueue(queue, jsonb_build_object('q', queue,
				'id', id, 'n', n * 1000 + i), key);
			INSERT INTO acknowledged VALUES (queue, id, key, n * 1000 + i);
		ELSE
			BEGIN
				PERFORM batch_enqueue(queue, jsonb_build_object('q', queue,
					'id', id, 'n', n * 1000 + i), key);
				INSERT INTO acknowledged VALUES (queue, id, key, n * 1000 + i);
				IF i % 2 = 0 THEN
					RAISE EXCEPTION 'rolled back';
				END IF;
			EXCEPTION WHEN raise_exception THEN
				NULL;
			END;
		END IF;
	END LOOP;
END $$;
));
	return;
}

# The statement of a queue of the checker.
sub collect_statement
{
	return q(INSERT INTO collected (queue, id, key, n)
SELECT payload->>'q', (payload->>'id')::uuid, batch_key, (payload->>'n')::bigint
FROM batch ORDER BY batch_pos);
}

sub check_rows
{
	my ($node, $message, $condition) = @_;

	$condition = 'true' unless defined $condition;
	is( sql(
			$node, qq(
SELECT 'lost ' || count(*) FILTER (WHERE c.id IS NULL) ||
	', duplicated ' || count(*) FILTER (WHERE c.n > 1) ||
	', phantom ' || count(*) FILTER (WHERE a.id IS NULL)
FROM (SELECT id FROM acknowledged WHERE $condition) a
	FULL JOIN (SELECT id, count(*) AS n FROM collected WHERE $condition
		GROUP BY id) c ON c.id = a.id)
		),
		'lost 0, duplicated 0, phantom 0',
		$message);
	return;
}

sub check_order
{
	my ($node, $message, $condition) = @_;

	$condition = 'true' unless defined $condition;
	is( sql(
			$node, qq(
SELECT count(*) FROM
	(SELECT n, lag(n) OVER (PARTITION BY queue, key ORDER BY pos) AS before
	 FROM collected WHERE $condition) s
WHERE n <= before)
		),
		'0',
		$message);
	return;
}

=pod

=item start_load(node, script, clients, rate), stop_load(load)

Run pgbench in the background until stop_load, at so many transactions a second
at most, again and again when the server throws it out.  It ends when the test
has died, too.

=cut

sub start_load
{
	my ($node, $script, $clients, $rate) = @_;
	my $file = File::Spec->catfile($node->basedir, 'load.sql');
	my $stop = File::Spec->catfile($node->basedir, 'load.stop');
	my $log = File::Spec->catfile($node->basedir, 'load.log');
	my @command = (
		'bash', '-c',
		'until [ -e "$1" ] || ! kill -0 $PPID 2>&-; do '
		  . 'timeout 60 pgbench -n -T 1 -c "$2" -R "$3" -f "$4" '
		  . 'postgres >>"$5" 2>&1 || sleep 0.1; done',
		'load', $stop, $clients, $rate, $file, $log);

	unlink $stop;
	append_to_file($file, $script);
	local %ENV = $node->_get_env();
	return {
		stop => $stop,
		file => $file,
		log => $log,
		run => IPC::Run::start(\@command, '<', \undef) };
}

sub stop_load
{
	my ($load) = @_;

	append_to_file($load->{stop}, '');
	$load->{run}->finish;
	unlink $load->{file}, $load->{stop};
	note(slurp_file($load->{log}));
	return;
}

=pod

=item start_client(node, name, statements), client_acks(client)

Run psql in the background, which commits these statements again and again,
each time with another value of :n from the sequence serial, until the server
is gone.  The values whose commit the client was told of so far.

=cut

sub start_client
{
	my ($node, $name, $statements) = @_;
	my $acks = File::Spec->catfile($node->basedir, "$name.acks");
	my $file = File::Spec->catfile($node->basedir, "$name.sql");

	append_to_file(
		$file, qq(
SELECT nextval('serial') AS n \\gset
$statements;
\\echo :n
) x 20000);
	return {
		acks => $acks,
		run => IPC::Run::start(
			[
				'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d',
				$node->connstr('postgres'), '-f', $file
			],
			'<', \undef,
			'>', $acks,
			'2>', "$acks.err") };
}

sub client_acks
{
	my ($client) = @_;

	# the last line may not be complete
	return grep { /^\d+\n$/ } split /(?<=\n)/, slurp_file($client->{acks});
}

=pod

=back

=cut

1;
