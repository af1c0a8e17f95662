
# Which rows leave, in which order and how the others end, against a model: key
# policies with priorities, rows that fail, rows that are immediate or not
# gathered, transactions that overlap or roll back, rows in memory, in the spool,
# and read back after a crash, in one lane or several.
#
# Rows gather while the queue is paused, so all of them wait together, and what
# becomes of each is known beforehand.  The cases are made up by a seed, which is
# printed: KEYS_SEED=1 KEYS_CASES=500 repeats and extends them.
#
# M1.12 (priorities), M2.4 (marking twice costs one processing), M3.5 (off for
# one producer)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{KEYS_SEED} || int(rand(2**31));
my $cases = $ENV{KEYS_CASES} || 25;

diag("KEYS_SEED=$seed");
srand($seed);

my $node = new_node('model');
my $json = JSON::PP->new->canonical;

sql($node, q(
CREATE SEQUENCE flush_number;
CREATE TABLE flushed (flush bigint, pos int, ticket bigint, key text, payload jsonb);
));

sub pick { return $_[ int(rand(@_)) ]; }
sub chance { return rand() < $_[0]; }

# One case: the options of its queue, and how often what occurs.
sub make_options
{
	my %c = (
		policy => pick('all', 'last', 'first', 'merge'),
		durable => chance(0.7) ? 1 : 0,
		max => pick(1, 2, 3, 5, 1000),
		lanes => pick(1, 1, 2, 3),
		bad => pick(0, 0, 0.15),
		alone => pick(0, 0, 0.15),
		immediate => pick(0, 0.1));

	$c{spills} = $c{durable} && chance(0.3);
	$c{crashes} = $c{durable} && chance(0.15);
	return %c;
}

sub make_row
{
	my ($c, $n) = @_;
	my %row = (
		n => $n,
		key => pick(undef, 'a', 'b', 'c'),
		priority => pick(0, 0, 0, 1, -1),
		immediate => chance($c->{immediate}),
		bad => chance($c->{bad}));

	$row{payload} = { n => $n, "f" . int(rand(3)) => $n,
		o => { "g" . int(rand(3)) => { h => $n } } };
	$row{payload}{bad} = 1 if $row{bad};
	return \%row;
}

sub enqueue_sql
{
	my ($row) = @_;

	return sprintf(
		q(SELECT batch_enqueue('model', '%s', %s, priority => %d, immediate => %s);),
		$json->encode($row->{payload}),
		defined $row->{key} ? "'$row->{key}'" : 'NULL',
		$row->{priority}, $row->{immediate} ? 'true' : 'false');
}

# Transactions of some sessions, one statement after the other; returns the
# rows that are committed, in the order of their commits.
sub enqueue_rows
{
	my ($c, @sessions) = @_;
	my @open = map { undef } @sessions;
	my @rows;
	my $n = 0;

	for (1 .. 12 + int(rand(20)))
	{
		my $i = int(rand(@sessions));

		if (!$open[$i])
		{
			my $alone = chance($c->{alone});

			$sessions[$i]->query_safe('SET batcher.enabled = '
				  . ($alone ? 'off' : 'on') . '; BEGIN');
			$open[$i] = { alone => $alone, rows => [] };
		}
		foreach (1 .. 1 + int(rand(3)))
		{
			my $row = make_row($c, ++$n);

			$row->{alone} = $open[$i]{alone};
			$row->{session} = $i;
			$row->{ticket} = $sessions[$i]->query_safe(enqueue_sql($row));
			push @{ $open[$i]{rows} }, $row;
		}
		next if chance(0.3);
		if (chance(0.2))
		{
			$sessions[$i]->query_safe('ROLLBACK');
		}
		else
		{
			$sessions[$i]->query_safe('COMMIT');
			push @rows, @{ $open[$i]{rows} };
		}
		$open[$i] = undef;
	}
	foreach my $i (0 .. $#sessions)
	{
		next unless $open[$i];
		$sessions[$i]->query_safe('COMMIT');
		push @rows, @{ $open[$i]{rows} };
	}
	return @rows;
}

sub merge
{
	my ($older, $newer) = @_;
	my %merged;

	return $newer unless ref $older eq 'HASH' && ref $newer eq 'HASH';
	%merged = %$older;
	foreach my $key (keys %$newer)
	{
		$merged{$key} = exists $older->{$key} ?
		  merge($older->{$key}, $newer->{$key}) : $newer->{$key};
	}
	return \%merged;
}

# Say of each row how it is to end, and with which payload.
sub foretell
{
	my ($policy, @rows) = @_;
	my %keys;

	foreach my $row (@rows)
	{
		$row->{end} = $row->{bad} ? 'dead' : 'flushed';
		$row->{shown} = $row->{payload};
		push @{ $keys{ $row->{key} } }, $row if defined $row->{key};
	}
	return if $policy eq 'all';
	foreach my $key (keys %keys)
	{
		my @segments = ([]);
		my $split = 0;

		# a row that is a batch of its own stands between the others
		foreach my $row (@{ $keys{$key} })
		{
			push @segments, [] if $row->{alone};
			push @{ $segments[-1] }, $row unless $row->{alone};
		}
		foreach my $segment (@segments)
		{
			my @good = grep { !$_->{bad} } @$segment;
			my $stays = $policy eq 'first' ? $good[0] : $good[-1];

			if ($policy eq 'merge')
			{
				my $payload = {};

				# a row that is bad makes what it is merged into bad
				$split = 1 if @good < @$segment && @$segment > 1;
				next if $split || !$stays;
				$payload = merge($payload, $_->{payload}) foreach @$segment;
				$stays->{shown} = $payload;
			}
			next unless $stays;
			foreach my $row (@$segment)
			{
				my $before = $row->{n_commit} < $stays->{n_commit};

				next if $row == $stays;
				$row->{end} = 'superseded'
				  if !$row->{bad} || ($policy eq 'first' ? !$before : $before);
			}
		}
	}
	return;
}

sub compare_order { return $_[0]{flush} <=> $_[1]{flush} || $_[0]{pos} <=> $_[1]{pos}; }

# What is wrong with how the rows of a case have ended.
sub check_case
{
	my ($c, @rows) = @_;
	my @wrong;
	my %flushed;
	my %count;
	my @order;

	foreach my $line (split /\n/, sql($node,
		q(SELECT flush, pos, ticket, payload FROM flushed ORDER BY flush, pos)))
	{
		my ($flush, $pos, $ticket, $payload) = split /\|/, $line, 4;

		push @wrong, "ticket $ticket was flushed twice" if $flushed{$ticket};
		$flushed{$ticket} = { flush => $flush, pos => $pos,
			payload => $json->encode($json->decode($payload)) };
		$count{$flush}++;
	}
	my $tickets = join ', ', map { "($_->{ticket})" } @rows;
	my %ends = map { split /\|/ } split /\n/, sql($node,
		"SELECT t, batch_wait('model', t, '0') FROM (VALUES $tickets) v (t)");
	foreach my $row (@rows)
	{
		my $f = $flushed{ $row->{ticket} };
		my $end = $f ? 'flushed' : $row->{end} eq 'flushed' ? 'not' : $row->{end};

		push @wrong, "row $row->{n} is $end, not $row->{end}" if $end ne $row->{end};
		push @wrong, "row $row->{n} is said to be $ends{$row->{ticket}}, not $row->{end}"
		  if $ends{ $row->{ticket} } ne $row->{end} && !$c->{crashes};
		next unless $f;
		push @wrong, "row $row->{n} is shown as $f->{payload}"
		  if $f->{payload} ne $json->encode($row->{shown});
		push @wrong, "row $row->{n} was not alone"
		  if $row->{alone} && $count{ $f->{flush} } > 1;
		push @order, { %$row, %$f };
		delete $flushed{ $row->{ticket} };
	}
	push @wrong, map { "ticket $_ was flushed" } keys %flushed;

	# order: of each key; without key, of each session and priority, and, where
	# there is one lane, by priority
	@order = sort { compare_order($a, $b) } @order;
	my %last;
	my $priority;
	foreach my $row (@order)
	{
		my $of = $row->{key} //
		  join('/', 'no key', @$row{ 'session', 'priority', 'alone', 'immediate' });

		push @wrong, "row $row->{n} was flushed after row $last{$of}{n}"
		  if $last{$of} && $last{$of}{n_commit} > $row->{n_commit};
		$last{$of} = $row;
		# what is in the spool has its priority when it is read back
		next if defined $row->{key} || $row->{alone} || $row->{immediate};
		next if $c->{bad} || $c->{spills} || $c->{crashes} || $c->{lanes} > 1;
		push @wrong, "row $row->{n} was flushed after one of priority $priority"
		  if defined $priority && $priority < $row->{priority};
		$priority = $row->{priority};
	}
	return @wrong;
}

sub run_case
{
	my ($case) = @_;
	my %c = make_options();
	my $name = join ', ', "case $case", map { "$_ $c{$_}" } sort keys %c;
	my @rows;
	my $n = 0;

	my $durable = $c{durable} ? 'true' : 'false';
	my $memory_limit = $c{spills} ? 2000 : 0;

	sql($node, <<"EOS");
TRUNCATE flushed;
SELECT batch_create_queue('model', \$\$WITH f AS MATERIALIZED (SELECT nextval('flush_number') AS number)
	INSERT INTO flushed SELECT f.number, batch_pos, batch_ticket, batch_key, payload
	FROM batch, f WHERE CASE WHEN payload ? 'bad' THEN 1 / (f.number * 0) = 0 ELSE true END\$\$,
	options => '{"flush_interval": "1 h", "key_policy": "$c{policy}", "max_batch_size": $c{max}, "lanes": $c{lanes},
		"durable": $durable, "memory_limit": $memory_limit,
		"max_attempts": 2, "retry_delay": 1, "breaker_threshold": 100000}');
SELECT batch_pause('model');
EOS
	my @sessions = map { $node->background_psql('postgres') } 1 .. 3;
	@rows = enqueue_rows(\%c, @sessions);
	$_->quit foreach @sessions;
	$_->{n_commit} = ++$n foreach @rows;
	foretell($c{policy}, @rows);
	if ($c{crashes})
	{
		$node->stop('immediate');
		$node->start;
	}
	sql($node, q(SELECT batch_resume('model')));
	sql($node, q(SELECT batch_flush('model')));
	wait_drained($node, 'model');
	my @wrong = check_case(\%c, @rows);
	is(join("\n", @wrong), '', $name);
	if (@wrong)
	{
		diag(join ' ', map { defined ? $_ : '-' }
			  @$_{ 'n', 'ticket', 'key', 'priority', 'immediate', 'alone', 'bad', 'end' })
		  foreach @rows;
		diag(sql($node, 'SELECT * FROM flushed ORDER BY flush, pos'));
	}
	else
	{
		is( sql($node, q(SELECT rows_flushed + rows_superseded + rows_dead = rows_enqueued
				FROM batcher.stat_queue WHERE queue = 'model')),
			't', "case $case: the counters add up") unless $c{crashes};
	}
	sql($node, q(SELECT batch_drop_queue('model', true)));
	return;
}

run_case($_) foreach 1 .. $cases;
$node->stop;
done_testing();
