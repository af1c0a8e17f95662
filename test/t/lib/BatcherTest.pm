
=pod

=head1 NAME

BatcherTest - what the TAP tests of batcher share

=head1 DESCRIPTION

Nodes with batcher preloaded, waiting (never sleeping), arming the debug points
of src/base/debug.c, and killing processes.

=cut

package BatcherTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

our @EXPORT = qw(
  new_node sql try_sql wait_sql wait_drained wait_worker worker_pid
  arm disarm wait_point release_point end_worker take_messages wait_messages
  log_position wait_crash_over kill_process kill_postmaster);

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

=back

=cut

1;
