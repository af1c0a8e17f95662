
=pod

=head1 NAME

FuzzTuple - tuples that a restore may bring into our tables

=head1 DESCRIPTION

A dump that somebody has edited, or another version has made, may hold anything
that its columns can hold.  So a tuple is made as batcher would write it, as a
rule, and some columns of it get other values of their types.  The columns are
read from the server's catalogs; one that is not known here is NULL, or gets
any value.

=cut

package FuzzTuple;

use strict;
use warnings;

use Exporter 'import';
use FuzzValue;

our @EXPORT = qw(know_column insert_tuple orphans);

# The columns of a table, in their order: [name, type, not null].
my %columns;

sub know_column
{
	my ($table, @column) = @_;

	push @{ $columns{$table} }, \@column;
	return;
}

# What deletes rows of queues that are not there: nobody else does.
sub orphans
{
	return 'DELETE FROM batcher.spool WHERE queue_id NOT IN'
	  . ' (SELECT id FROM batcher.queue_definition)';
}

sub queue_id
{
	return '(SELECT coalesce(max(id), 0) FROM batcher.queue_definition'
	  . ' WHERE name = ' . quote(pick(@POOL)) . ')';
}

# An array of 'n' elements, each an expression of i from 1 to n.
sub series
{
	my ($type, $n, $element) = @_;

	return "ARRAY(SELECT ($element) FROM generate_series(1, $n) i)::$type";
}

# A tuple of the spool with one row, or with several: expressions by column.
sub spool_tuple
{
	my $number = 1 + int rand 1000000;
	my %tuple = (
		number => $number,
		home => pick(0, 0, 0, 1, 12345, -1, -$number),
		enqueued_at => pick('now()', 'now()', "now() - '1 day'::interval"),
		queue_id => queue_id(),
		lane => pick(0, 0, 0, 1),
		enqueuer => pick(0, 10),
		enqueued_by => quote(pick('postgres', 'fuzz_a', 'nobody')));

	if (chance(0.3))
	{
		return (
			%tuple,
			ticket => $number + 1,
			payload => expression('', 'jsonb'),
			map { chance(0.5) ? ($_->[0] => $_->[1]) : () } (
				[ key => "'k1'" ],
				[ topic => quote(pick('t', 'up', text_raw())) ],
				[ priority => pick(1, -1, 100) ],
				[ attempts => pick(1, 2, 100) ],
				[ immediate => 'true' ],
				[ alone => 'true' ]));
	}
	my $n = pick(1, 2, 3, 10, 100, 1000);
	return (
		%tuple,
		tickets => series('bigint[]', $n, "$number + i"),
		payloads => series('jsonb[]', $n, "jsonb_build_object('a', i)"),
		map { chance(0.5) ? ($_->[0] => series($_->[1], $n, $_->[2])) : () } (
			[ keys => 'text[]', "CASE WHEN i % 3 > 0 THEN 'k' || i % 5 END" ],
			[ topics => 'text[]', "'t' || i % 2" ],
			[ priorities => 'integer[]', 'i % 4 - 1' ],
			[ attempts_each => 'integer[]', 'i % 3' ],
			[ immediate_each => 'boolean[]', 'i % 7 = 0' ],
			[ alone_each => 'boolean[]', 'i % 9 = 0' ]));
}

sub definition_tuple
{
	return (
		id => 100000 + int rand 1000000,
		name => quote(pick('restored', name_raw())),
		owner => 10,
		owner_name => quote(pick('postgres', 'postgres', 'fuzz_a', 'nobody')),
		flush_sql => pick('NULL', quote(statement_raw())),
		search_path => quote(pick('public', 'public', 'nowhere', '', text_raw())),
		options => quote(options_raw()) . '::jsonb',
		paused => pick('true', 'false'),
		database => pick(0, 1),
		created_at => 'now()',
		notify_search_path => pick('NULL', "'public'"),
		target_name => pick('NULL', 'NULL', "'public.t1'", quote(text_raw())),
		row_type_name =>
		  pick('NULL', 'NULL', "'public.pair'", quote(text_raw())));
}

sub grant_tuple
{
	return (
		queue_id => queue_id(),
		role => pick(0, 10),
		role_name => quote(pick('fuzz_a', 'fuzz_b', 'public', 'nobody')),
		privilege => quote(pick('enqueue', 'manage', 'listen', text_raw())));
}

sub dead_tuple
{
	return (
		queue_id => queue_id(),
		ticket => 1 + int rand 1000000,
		key => pick('NULL', "'k1'"),
		topic => pick('NULL', "'t'"),
		priority => 0,
		payload => expression('', 'jsonb'),
		sqlstate => "'22012'",
		message => quote(text_raw()),
		attempts => 3,
		enqueued_at => 'now()',
		enqueued_by => quote(pick('postgres', 'fuzz_a', 'nobody')),
		enqueuer => pick(0, 10),
		died_at => 'now()');
}

sub bound_tuple
{
	return (
		bound => pick('NULL', -1, 0, 1 + int rand 1000000000,
			'9223372036854775807'));
}

my %tuples = (
	'batcher.number_bound' => \&bound_tuple,
	'batcher.spool' => \&spool_tuple,
	'batcher.queue_definition' => \&definition_tuple,
	'batcher.queue_grant' => \&grant_tuple,
	'batcher.dead_row' => \&dead_tuple);

# Elements of arrays, as expressions of i, that no tuple of ours has.
my %elements = (
	bigint => [
		'i', '-i', '1000000 - i', '7', '0', 'i * 4294967296', '-1',
		'9223372036854775807 - i', 'CASE WHEN i <> 2 THEN i END', 'NULL'
	],
	jsonb => [
		"'null'", "to_jsonb(i)", 'CASE WHEN i <> 2 THEN to_jsonb(i) END',
		'NULL', "to_jsonb(repeat('x', i * 100))"
	],
	text => [
		"''", "'k'", "repeat('x', i * 100)", "E'\\n\"' || i", 'NULL',
		'CASE WHEN i <> 2 THEN i::text END'
	],
	integer => [
		'2147483647', '-2147483648', '-i', 'NULL',
		'CASE WHEN i <> 2 THEN i END'
	],
	boolean => [ 'NULL', 'true', 'false', 'i = 2' ]);

# Most numbers of rows are small; one is the most that a tuple may have, and
# one is more.
sub hostile_array
{
	my ($element) = @_;
	my $type = "${element}[]";
	my $array = series($type, pick(0 .. 4, 10, 100, 1000, 65535, 65536),
		pick(@{ $elements{$element} }));
	my $what = rand;

	return $array if $what < 0.5;
	return "ARRAY[$array, $array]::$type" if $what < 0.6;
	return "'{}'::$type" if $what < 0.7;
	return "'" . pick('[0:1]={0,1}', '[-5:-4]={0,1}', '[1:1][1:2]={{0,1}}',
		'[2147483645:2147483646]={0,1}') . "'::$type"
	  if $what < 0.8;
	return expression('', $type);
}

# Any value of a type.
sub hostile
{
	my ($type) = @_;

	return hostile_array($1) if $type =~ /^(.*)\[\]$/;
	return quote(pick('infinity', '-infinity', '4713-01-01 BC', '2100-01-01',
			'294276-12-31', '1999-12-31', 'epoch'))
	  . "::$type"
	  if $type =~ /^timestamp/;
	return pick(0, 1, 10, 16384, 2147483648, '4294967295') if $type eq 'oid';
	return pick(1000000000, -1, -1000000000, 0, 2147483647, -2147483648, 65535,
		65536)
	  if $type eq 'integer';
	return pick(0, -1, 1, '9223372036854775807', '-9223372036854775808',
		'4611686018427387903', '4611686018427387904', 4294967296)
	  if $type eq 'bigint';
	return pick("''", quote(text_raw()), "repeat('x', 9000)",
		'(SELECT string_agg(md5(i::text), \'\') FROM generate_series(1, 500) i)')
	  if $type eq 'text';
	return expression('', $type);
}

# Insert a tuple into one of our tables; returns the statement, and what makes
# everything as it was before if it was committed.
sub insert_tuple
{
	my $table = pick(('batcher.spool') x 7, ('batcher.queue_definition') x 2,
		grep { $_ ne 'batcher.spool' } sort keys %columns);
	my %tuple = $tuples{$table} ? $tuples{$table}->() : ();
	my @columns = @{ $columns{$table} };
	my $undo = '';

	for (1 .. pick(0, 1, 1, 1, 2, 2, 3, 6))
	{
		my ($name, $type, $not_null) = @{ pick(@columns) };

		$tuple{$name} =
		  $not_null ne 't' && chance(0.2) ? 'NULL' : hostile($type);
	}
	for (grep { $_->[2] eq 't' } @columns)
	{
		$tuple{ $_->[0] } //= hostile($_->[1]);
	}
	$undo =
	  q(SELECT format('SELECT batch_drop_queue(%L, true)', name) FROM)
	  . " batcher.queue_definition WHERE id = $tuple{id} \\gexec \\\\ "
	  if $table eq 'batcher.queue_definition';
	my @names = sort keys %tuple;
	return (
		"INSERT INTO $table (" . join(', ', @names) . ') VALUES ('
		  . join(', ', map { $tuple{$_} } @names) . ')',
		$undo);
}

1;
