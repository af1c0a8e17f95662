
=pod

=head1 NAME

FuzzInput - calls that a careless or hostile client may make

=head1 DESCRIPTION

An input is one line of SQL.  What can be called is read from the server's
catalogs, so that a new function or option needs nothing here.  An input that
may have to wait begins with a short statement_timeout; any other must return.

=cut

package FuzzInput;

use strict;
use warnings;

use Exporter 'import';
use FuzzTuple;
use FuzzValue;

our @EXPORT = qw(know_catalog prelude input must_flush must_end huge_inputs);

my (@functions, @triggers, @relations, @settings, @options);

# The longest that an input may wait, and how long it may take otherwise.
my $wait = '5ms';
my $limit;

# The seconds that an input may take, and the lines of catalog.sql.
sub know_catalog
{
	my ($patience, @lines) = @_;

	$limit = "${patience}s";
	for my $line (@lines)
	{
		my ($what, @fields) = @$line;

		push @relations, $fields[0] if $what eq 'relation';
		know_column(@fields) if $what eq 'column';
		push @settings, $fields[0] if $what eq 'setting';
		push @options, \@fields if $what eq 'option';
		next if $what ne 'function';
		my ($name, $result, $ndefaults, $names, $types) = @fields;
		my @names = split / /, $names // '';
		my @types = split /,/, $types // '';

		push @functions,
		  {
			name => $name,
			ndefaults => $ndefaults,
			args => [ map { [ $names[$_] // '', $types[$_] ] } 0 .. $#types ]
		  };
		push @triggers, $name if $result eq 'trigger';
	}
	die "the catalog lacks something"
	  if !@functions || !@relations || !@options;
	know_options(@options);
	return;
}

# A call of a function; 'fixed' has expressions for arguments by their names.
sub call
{
	my ($function, %fixed) = @_;
	my @args = @{ $function->{args} };
	my $named = chance(0.5);
	my @list;

	for my $i (0 .. $#args)
	{
		my ($name, $type) = @{ $args[$i] };
		my $value = $fixed{$name};

		if (!defined $value)
		{
			my $optional = $i >= @args - $function->{ndefaults};

			next if $optional && $named && chance(0.5);
			last if $optional && !$named && !%fixed && chance(0.3);
			$value = expression($name, $type);
		}
		push @list, $named && $name ne '' ? "$name => $value" : $value;
	}
	return "SELECT $function->{name}(" . join(', ', @list) . ')';
}

# One of the functions whose name is like this.
sub function
{
	my ($pattern) = @_;

	return pick(grep { $_->{name} =~ $pattern } @functions);
}

# Let a statement wait a little, if it is one that waits.  What sets the limit
# back must be done in that time too, and on a busy machine may not.
sub patient
{
	my ($sql) = @_;

	return $sql if $sql !~ /batch_(flush|wait)\b|batcher\.enqueue_timeout/
	  || $sql =~ /^SET statement_timeout/;
	return "SET statement_timeout = '$wait'; $sql"
	  . "; SET statement_timeout = '$limit'" x 3;
}

sub enqueue
{
	my $function = function(qr/batch_enqueue/);
	my %fixed;

	$fixed{queue} = quote(pick(@POOL)) if chance(0.95);
	$fixed{payload} = "'{\"a\": 1}'" if chance(0.2);
	return call($function, %fixed);
}

sub define
{
	my $function = function(qr/batch_(create|alter)_/);
	my %fixed = (
		target => 'NULL',
		row_type => 'NULL',
		options => quote(options_raw()) . '::jsonb');

	$fixed{flush_sql} = quote('SELECT count(*) FROM batch') if chance(0.5);
	delete $fixed{target} if chance(0.1);
	delete $fixed{row_type} if chance(0.1);
	return call($function, %fixed);
}

sub transaction
{
	my @list = (pick('BEGIN', 'BEGIN', 'BEGIN READ ONLY',
			'BEGIN ISOLATION LEVEL SERIALIZABLE',
			'BEGIN ISOLATION LEVEL REPEATABLE READ'));

	for (0 .. rand 4)
	{
		my $savepoint = chance(0.4);

		push @list, 'SAVEPOINT s' if $savepoint;
		push @list, pick(\&enqueue, \&enqueue, \&define, \&anything)->();
		push @list, pick('ROLLBACK TO s', 'ROLLBACK TO s', 'RELEASE s')
		  if $savepoint;
	}
	push @list,
	  pick('COMMIT', 'COMMIT', 'ROLLBACK',
		"PREPARE TRANSACTION 'fuzz'; ROLLBACK PREPARED 'fuzz'");
	return join '; ', @list;
}

# Any function with any arguments.
sub anything { return call(pick(@functions)); }

sub look
{
	return 'SELECT sum(length(x::text)) FROM ' . pick(@relations) . ' x';
}

sub with_setting
{
	my $setting = pick(@settings);

	return "SET $setting = "
	  . quote(pick(interval_raw(), text_raw(), 'on', 'off', 0, '1s')) . '; '
	  . enqueue()
	  . "; RESET $setting";
}

# A table whose trigger one of our functions is.
sub trigger
{
	my $arguments = join ', ',
	  map { quote(pick(name_raw(), text_raw(), 'id', 'v')) } 1 .. pick(0 .. 3);

	return 'BEGIN; CREATE TRIGGER fuzz '
	  . pick('AFTER', 'AFTER', 'BEFORE') . ' '
	  . pick('INSERT', 'INSERT OR UPDATE OR DELETE', 'INSERT OR TRUNCATE')
	  . ' ON t1 FOR EACH '
	  . pick('ROW', 'ROW', 'STATEMENT')
	  . ' EXECUTE FUNCTION '
	  . pick(@triggers)
	  . "($arguments); INSERT INTO t1 (v) VALUES ('1'), (NULL);"
	  . ' UPDATE t1 SET v = \'2\'; DELETE FROM t1; '
	  . pick('COMMIT', 'ROLLBACK')
	  . '; DROP TRIGGER IF EXISTS fuzz ON t1';
}

# What a restore may bring: tuples that stay, as a rule.  All queues are held
# then; they go on, so that a worker reads what has come.
sub restore
{
	my @tuples = map { [ insert_tuple() ] } 1 .. pick(1, 1, 2, 4);
	my $queue = quote(pick(@POOL));
	my $then = pick(
		\&look, \&enqueue,
		sub { "SELECT batch_flush($queue, '0')" },
		sub { call(function(qr/batch_(wait|retry_dead|purge|get_pending)/)) },
		sub { "SELECT batch_purge($queue)" });

	return "SET statement_timeout = '$limit'; BEGIN; "
	  . join('', map { "$_->[0]; " } @tuples)
	  . look() . '; '
	  . pick('COMMIT', 'COMMIT', 'COMMIT', 'ROLLBACK') . '; '
	  . q(SELECT format('SELECT batch_resume(%L)', queue) FROM batcher.queue)
	  . ' WHERE paused \gexec \\\\ '
	  . patient($then->()) . '; '
	  . join('', map { $_->[1] } @tuples)
	  . 'SELECT 1';
}

# What nobody should do; none of it stays.
sub direct
{
	return 'BEGIN; '
	  . pick(
		'UPDATE batcher.queue_definition SET name = ' . quote(name_raw()),
		'UPDATE batcher.queue_definition SET options = '
		  . quote(json_raw(2)) . '::jsonb',
		'DELETE FROM batcher.queue_definition',
		'TRUNCATE ' . pick(@relations),
		'DROP EXTENSION batcher CASCADE; '
		  . pick('CREATE EXTENSION batcher; ', '') . enqueue())
	  . '; ROLLBACK';
}

sub maintain
{
	return pick(
		'VACUUM batcher.spool',
		'VACUUM FULL batcher.spool',
		'ANALYZE batcher.queue_definition',
		'ALTER TABLE t1 ADD IF NOT EXISTS more int',
		'ALTER TABLE t1 DROP COLUMN IF EXISTS more',
		'DROP TABLE IF EXISTS t2',
		'CREATE TABLE IF NOT EXISTS t2 (k text PRIMARY KEY, n bigint)',
		'ALTER ROLE fuzz_c RENAME TO fuzz_d',
		'ALTER ROLE fuzz_d RENAME TO fuzz_c',
		"DO 'BEGIN FOR i IN 1 .. 20 LOOP PERFORM batch_enqueue(''q0'', ''1'');"
		  . " COMMIT; END LOOP; END'");
}

my @kinds = (
	(\&enqueue) x 30, (\&define) x 25, (\&anything) x 20,
	(\&transaction) x 10, (\&look) x 4, (\&with_setting) x 4,
	(\&trigger) x 3, (\&restore) x 8, (\&direct) x 2, (\&maintain) x 1);

sub input
{
	my $sql = patient(pick(@kinds)->());

	if (chance(0.25))
	{
		# what a waiting input begins with stays there
		my $begin = $sql =~ s/^(SET statement_timeout = '\w+'; )// ? $1 : '';

		$sql = "${begin}SET ROLE " . pick(qw(fuzz_a fuzz_b fuzz_c))
		  . "; $sql; RESET ROLE";
	}
	return "$sql;";
}

# Make the queues and tables anew.  None of it may fail.
sub prelude
{
	my ($patience) = @_;
	my @options = (
		'{"notify_channel": "c", "flush_interval": "5 ms",'
		  . ' "notify_format": "rows", "notify_encoding": "zlib"}',
		'{"durable": false, "notify_channel": "c_{queue}",'
		  . ' "notify_format": "groups", "notify_group_by": "a"}',
		'{"memory_limit": 4000, "when_full": "error", "flush_size": 3}',
		'{"memory_limit": "20kB", "when_full": "wait"}',
		'{"memory_limit": "8kB", "flush_interval": "1 ms"}',
		'{"durable": false, "max_batch_size": 7, "notify_format": "none"}');
	my @statements = (
		'SELECT FROM batch', 'INSERT INTO t1 (v) SELECT payload FROM batch',
		'INSERT INTO t1 (v) SELECT payload FROM batch'
		  . ' WHERE 10 / batch_priority > 0',
		undef);
	my @lines = (
		"SET statement_timeout = '${patience}s';",
		q(SELECT format('SELECT batch_drop_queue(%L, true)', queue))
		  . q( FROM batcher.queue \gexec),
		orphans() . ';',
		'DROP TABLE IF EXISTS t1, t2;',
		'CREATE TABLE t1 (id bigserial, v jsonb);',
		'CREATE TABLE t2 (k text PRIMARY KEY, n bigint);',
		'GRANT ALL ON t1, t2, t1_id_seq TO PUBLIC;', 'LISTEN c;');

	for my $i (0 .. $#POOL)
	{
		my $statement = $statements[ $i % @statements ];

		push @lines,
			'SET ROLE ' . ('none', 'fuzz_a', 'none', 'fuzz_b')[ $i / 2 % 4 ] . ';',
			'SELECT batch_create_queue('
		  . quote($POOL[$i]) . ', '
		  . (defined $statement ? quote($statement) : 'NULL')
		  . ', options => '
		  . quote($options[ $i % @options ]) . ');',
		  'LISTEN "' . substr("c_$POOL[$i]", 0, 10) =~ s/"/""/gr . '";';
	}
	return (@lines, 'RESET ROLE;');
}

# An error here means that a row was not flushed in time.
sub must_flush
{
	my ($patience) = @_;

	return "SET statement_timeout = '${patience}s';"
	  . " SELECT batch_create_queue('probe', 'SELECT FROM batch');"
	  . " SELECT batch_enqueue('probe', '1') AS ticket \\gset \\\\"
	  . " SELECT 1 / (batch_wait('probe', :ticket, '${patience}s') = 'flushed')::int;"
	  . " SELECT batch_drop_queue('probe', true);";
}

# An error here means that something does not let go.
sub must_end
{
	my ($patience) = @_;

	return (
		"SET statement_timeout = '${patience}s';",
		orphans() . ';',
		'SELECT batch_drop_queue(queue, true) FROM batcher.queue;',
		'SELECT 1 / (count(*) = 0)::int FROM batcher.spool;',
		'DROP EXTENSION batcher CASCADE;');
}

# Texts of about so many bytes for an argument of this type.
sub huge_texts
{
	my ($n) = @_;

	return map { sprintf $_, $n }
	  "repeat('x', %d)", "repeat(E'\\x01\"', %d / 2)", "repeat('(', %d)",
	  "'SELECT ' || repeat('1,', %d / 2) || '1 FROM batch'",
	  "'SELECT ' || repeat('-', %d) || '1 FROM batch'",
	  "'SELECT ''' || repeat('x', %d - 50) || ''' FROM batch'",
	  "'SELECT FROM batch ' || repeat(' ', %d - 50)",
	  "'SELECT FROM batch WHERE \"' || repeat('x', %d - 50) || '\" = 1'";
}

sub huge_jsonbs
{
	my ($n) = @_;
	my $most = $n < 268435455 ? $n : 268435455;

	return (
		"to_jsonb(repeat('x', $most))",
		"('[' || repeat('0,', $most / 16) || '0]')::jsonb",
		"('{\"\": ' || repeat('9', least($n, 131072)) || '}')::jsonb",
		"(SELECT jsonb_object_agg(i, i) FROM generate_series(1, $most / 64) i)",
		map { "jsonb_build_object('$_->[0]', repeat('1', $most - 100))" }
		  @options);
}

sub huge_arrays
{
	my ($type, $n) = @_;

	$n = int($n / 100);
	return "array_fill('1'::$type, ARRAY[$n])",
	  "array_fill(NULL::$type, ARRAY[$n])",
	  ($type eq 'text' || $type eq 'jsonb')
	  ? "ARRAY[to_jsonb(repeat('x', $n))::$type]"
	  : ();
}

# Each function with a value of about so many bytes in each of its arguments,
# and with no more of the others than it needs.
sub huge_inputs
{
	my ($n) = @_;
	my %plain = (
		queue => "'q0'",
		payload => "'1'",
		payloads => "ARRAY['1'::jsonb]",
		flush_sql => "'SELECT FROM batch'");
	my @inputs;

	for my $function (@functions)
	{
		my @args = @{ $function->{args} };

		for my $i (0 .. $#args)
		{
			my ($name, $type) = @{ $args[$i] };
			my @values =
				$type eq 'text' ? huge_texts($n)
			  : $type eq 'jsonb' ? huge_jsonbs($n)
			  : $type =~ /(.*)\[\]$/ ? huge_arrays($1, $n)
			  :                        ();

			@values = @values[ 0 .. 1 ]
			  if $type eq 'text' && $name !~ /sql|query|route/;
			for my $value (@values)
			{
				my @list = map {
					my ($other, $its_type) = @{ $args[$_] };
					"$other => "
					  . ( $_ == $i ? $value
						: $other eq 'queue' && $function->{name} =~ /create/ ? "'huge'"
						: $plain{$other} // expression($other, $its_type));
				  } grep { $_ == $i || $_ < @args - $function->{ndefaults} }
				  0 .. $#args;

				# the log need not have such values in messages
				push @inputs, 'SET log_min_messages = panic;'
				  . " SELECT $function->{name}(" . join(', ', @list) . ');'
				  . ($function->{name} =~ /create/
					? " SELECT batch_drop_queue('huge', true);" : '');
			}
		}
	}
	return @inputs;
}

1;
