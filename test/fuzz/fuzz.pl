#!/usr/bin/perl
#
# fuzz.pl PSQL SEED INPUTS HUGE DATABASE...: call everything that the extension
# has with careless and hostile values.
#
# Run by run.sh, which starts the server and looks at its log.  Each database
# has a client of its own, which runs its share of the inputs in blocks.  An
# input is one line of SQL, and the psql that reads a block tells by its line
# which input failed, and how.  The last block has values of about HUGE bytes.
#
# Prints name=value: inputs, those that succeeded, errors by SQLSTATE, lost
# connections, internal errors (class XX), calls that did not return, and
# messages that were no JSON; and before that, each such finding.  The exit
# status is 1 if there was any.

use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;

use FuzzInput;
use JSON::PP ();
use POSIX ();

my ($psql, $seed, $inputs, $huge, @databases) = @ARGV;

# Inputs of one psql.  Between blocks the queues are made anew.
my $block_size = 5000;

# A call that has no reason to wait must return within this many seconds, a
# block of them within that many.
my $patience = $ENV{FUZZ_PATIENCE} || 30;
my $block_patience = 20 * $patience;

# What is counted, here or in a client.
my %count = map { $_ => 0 }
  qw(inputs succeeded crashes internal_errors hangs messages bad_messages);

# Start psql on a database with statements from a file; returns what it wrote
# to standard output and to standard error, or nothing if it did not end.
sub run_psql
{
	my ($database, $file, @options) = @_;
	my $pid = fork() // die "fork: $!";

	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null' or die;
		open STDOUT, '>', "$file.out" or die;
		open STDERR, '>', "$file.err" or die;
		exec $psql, '-XqAt', '-U', 'postgres', '-d', $database, '-v',
		  'VERBOSITY=sqlstate', @options, '-f', $file or die "$psql: $!";
	}
	my $ended = eval {
		local $SIG{ALRM} = sub { die "alarm\n" };
		alarm $block_patience;
		waitpid $pid, 0;
		alarm 0;
		1;
	};
	if (!$ended)
	{
		kill 'KILL', $pid;
		waitpid $pid, 0;
	}
	return ($ended, map { slurp("$file.$_") } 'out', 'err');
}

sub slurp
{
	my ($name) = @_;

	open my $in, '<', $name or die "$name: $!";
	local $/;
	return scalar(<$in>) // '';
}

sub write_file
{
	my ($name, @lines) = @_;

	open my $out, '>', $name or die "$name: $!";
	print $out map { "$_\n" } @lines;
	close $out or die "$name: $!";
	return;
}

# What is found is shown once for each kind, and counted.
my %shown;

sub finding
{
	my ($kind, $what, $input) = @_;

	$count{$kind}++;
	return if $shown{"$kind $what"}++ >= 3;
	$input = substr($input, 0, 2000) . ' ...' if length $input > 2000;
	print "$kind: $what\n    $input\n";
	return;
}

# Check the messages that psql has shown.
sub check_messages
{
	my ($out) = @_;

	while ($out =~ /^Asynchronous notification "[^\n]*?" with payload "(.*)" received from server process with PID \d+\.$/mg)
	{
		my $message = $1;

		$count{messages}++;
		next
		  if length $message <= 7999
		  && eval {
			ref JSON::PP->new->max_depth(8000)->decode($message) eq 'HASH';
		  };
		finding('bad_messages', 'no JSON object', $message);
	}
	return;
}

# Run lines of SQL after a prelude.  Returns what became of the lines that
# failed, by their number, and the line at which the connection was lost or
# nothing happened any more, if so.
sub run_lines
{
	my ($database, $prelude, $lines) = @_;
	my $file = "fuzz.$database";
	my (%state, $lost);
	my $last = 0;

	write_file("$file.prelude", @$prelude);
	write_file($file, @$lines);
	my ($ended, $out, $err) = run_psql($database, $file, '-f', "$file.prelude");

	check_messages($out);
	for my $line (split /\n/, $err)
	{
		if ($line =~ /connection to server was lost|server closed the connection/)
		{
			$lost //= $line =~ /^psql:\Q$file\E:(\d+): / ? $1 : $last + 1;
		}
		elsif ($line =~ /^psql:\Q$file\E:(\d+): (?:ERROR|FATAL|PANIC):  (\S+)/)
		{
			$last = $1;
			$state{$last} //= $2;
		}
		elsif ($line =~ /^psql:\Q$file\E\.prelude:(\d+): (?:ERROR|error)/)
		{
			finding('hangs', 'could not prepare', $prelude->[ $1 - 1 ]);
		}
	}
	if (!$ended)
	{
		$lost //= $last + 1;
		finding('hangs', 'nothing happened after', $lines->[ $last - 1 ]);
	}
	elsif (defined $lost)
	{
		finding('crashes', 'the connection was lost', $lines->[ $lost - 1 ]);
		wait_for_server($database);
	}
	unlink glob "$file $file.*";
	return (\%state, $lost);
}

# Run a block of inputs, and judge what became of each.
sub run_block
{
	my ($database, $lines, $prelude) = @_;
	my ($state, $lost) = run_lines($database, $prelude, $lines);

	$lost = defined $lost ? $lost - 1 : @$lines;
	$count{inputs} += $lost;
	for my $number (sort { $a <=> $b } keys %$state)
	{
		my $code = $state->{$number};
		my $input = $lines->[ $number - 1 ];

		$count{"errors_$code"}++;
		finding('internal_errors', $code, $input) if $code =~ /^(XX|58)/;
		finding('hangs', 'a call that has nothing to wait for', $input)
		  if $code eq '57014' && $input !~ /^SET statement_timeout/;
	}
	$count{succeeded} += $lost - keys %$state;
	return;
}

# Run what must succeed, whatever was done before.
sub run_musts
{
	my ($database, @lines) = @_;
	my ($state) = run_lines($database, [], \@lines);

	finding('hangs', $state->{$_}, $lines[ $_ - 1 ]) for sort keys %$state;
	return;
}

# After a crash: wait until the server takes connections again.
sub wait_for_server
{
	my ($database) = @_;
	my $deadline = time + 4 * $patience;

	while (time < $deadline)
	{
		system("$psql -XqAt -U postgres -d $database -c '' >/dev/null 2>&1");
		return if $? == 0;
		select undef, undef, undef, 0.1;
	}
	finding('hangs', 'the server does not come back', $database);
	return;
}

# The part of one client; what it counted goes to a file.
sub client
{
	my ($number, $database, $n) = @_;
	my @catalog = map { chomp; [ split /\t/, $_, -1 ] }
	  `$psql -XqAt -F '\t' -U postgres -d $database -f $FindBin::Bin/catalog.sql`;

	know_catalog($patience, @catalog);
	for (my $done = 0; $done < $n; $done += $block_size)
	{
		my $size = $n - $done < $block_size ? $n - $done : $block_size;

		# a block does not depend on those before
		srand($seed + 1000003 * $number + $done);
		run_block($database, [ map { input() } 1 .. $size ],
			[ prelude($patience) ]);
		run_musts($database, must_flush($patience));
	}
	run_block($database, [ huge_inputs($huge) ], [ prelude($block_patience) ])
	  if $huge > 0 && $number == 0;
	run_musts($database, must_end($patience));
	write_file("fuzz.$database.count", map { "$_=$count{$_}" } keys %count);
	return;
}

my @pids;
$| = 1;
for my $number (0 .. $#databases)
{
	my $pid = fork() // die "fork: $!";

	if ($pid == 0)
	{
		client($number, $databases[$number],
			int(($inputs + $number) / @databases));
		POSIX::_exit(0);
	}
	push @pids, $pid;
}
for my $number (0 .. $#pids)
{
	waitpid $pids[$number], 0;
	die "client $number failed\n" if $?;
	for my $line (split /\n/, slurp("fuzz.$databases[$number].count"))
	{
		my ($name, $n) = split /=/, $line;

		$count{$name} += $n;
	}
}
print "$_=$count{$_}\n"
  for qw(inputs succeeded messages), (sort grep { /^errors_/ } keys %count),
  qw(crashes internal_errors hangs bad_messages);
exit(($count{crashes} || $count{internal_errors} || $count{hangs}
	  || $count{bad_messages}) ? 1 : 0);
