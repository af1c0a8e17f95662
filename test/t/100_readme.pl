
# README.md says what there is: the options, with type, default and range, the
# presets, the columns of each view, the arguments of each function, the settings;
# and its first example does what it says.  The README of the tests and that of
# the source name tests that are there, and all debug points.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('readme');
my $root = "$FindBin::RealBin/../..";
my $readme = slurp_file("$root/README.md");
my @readme = split /\n/, $readme;

# The rows of the table whose head is this, each a list of cells, from the
# first one after a line that matches.
sub table
{
	my ($after, $head) = @_;
	my ($found, $within, @rows) = (0, 0);

	foreach my $line (@readme)
	{
		$found ||= $line =~ $after;
		next unless $found;
		if ($line eq $head)
		{
			$within = 1;
			next;
		}
		next unless $within;
		next if $line =~ /^\|-/;
		last unless $line =~ s/^\| //;
		push @rows, [ split /\s*\|\s?/, $line ];
	}
	return @rows;
}

sub lines { return join "\n", sort @_ }

# README.md has a dash (U+2013) in ranges, and the unit of texts once.
my @options = table(qr/^## Options/,
	'| option | type | default | range | meaning |');
cmp_ok(scalar @options, '>', 30, 'README.md has the options');
is( lines(
		map
		{
			my ($name, $type, $default, $range) = @$_;

			$range =~ s/ \xe2\x80\x93 / to /;
			"$name|$type|$default|$range"
		} @options),
	lines(
		split /\n/,
		sql(
			$node, q(
SELECT name, type, coalesce("default", ''),
	coalesce(CASE type WHEN 'text' THEN regexp_replace(min, ' bytes?$', '') ELSE min END
		|| ' to ' || max, '')
FROM batcher.option))),
	'the options');

my $views = sql(
	$node, q(
SELECT relname FROM pg_class
WHERE relnamespace = 'batcher'::regnamespace AND relkind = 'v'));

foreach my $view (split /\n/, $views)
{
	my @described;

	foreach my $row (table(qr/^\*\*`batcher\.$view`\*\*/,
			'| column | type | meaning |'))
	{
		my @names = split /, /, $row->[0];
		my @types = split /, /, $row->[1];

		push @described,
		  map { "$names[$_] " . ($types[$_] // $types[0]) } 0 .. $#names;
	}
	my $columns = sql(
		$node, qq(
SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = 'batcher.$view'::regclass AND attnum > 0));

	$columns =~ s/timestamp with time zone/timestamptz/g;
	is(lines(@described), lines(split /\n/, $columns),
		"the columns of $view");
}

# A value that is only named is a truth.  What gives way to a preset is not of it.
foreach my $row (table(qr/^What `preset` sets|`preset` sets:$/, '| preset | values |'))
{
	my ($preset, $values) = @$row;

	is( sql(
			$node, qq(
SELECT batch_create_queue('$preset', options => '{"preset": "$preset"}');
SELECT string_agg(key || CASE value->>'value' WHEN 'true' THEN '' ELSE ' ' || (value->>'value') END,
	', ' ORDER BY key)
FROM jsonb_each(batch_stats('$preset')->'config')
WHERE value->>'source' = 'preset' AND key NOT IN ('preset', 'min_batch_size'))),
		"\n" . join(', ', sort split /, /, $values),
		"the preset $preset");
}

# Signatures, as the server shows them but for the short name of a type and the
# type of a default.  Two functions of a kind have one entry.
my (@described, @functions);

while ($readme =~ /^\*\*(`batch_\w+\([^`]*`(?:, `batch_\w+\([^`]*`)*) → `(\w+)`\*\*/mg)
{
	my ($signatures, $result) = ($1, $2);

	push @described, map { s/\s+/ /gr . " $result" } $signatures =~ /`([^`]*)`/g;
}
@functions = split /\n/, sql(
	$node, q(
SELECT format('%s(%s) %s', proname, pg_get_function_arguments(oid), pg_get_function_result(oid))
FROM pg_proc WHERE proname LIKE 'batch\_%'));
s/::\w+(\[\])?//g, s/\binteger\b/int/g, s/'00:00:30'/'30 s'/g foreach @functions;
is(lines(@described), lines(@functions), 'the functions');

# Settings.
@described = ();
push @described, "$1 $2" while $readme =~ /^\*\*`(batcher\.\w+)` \(`(\w+)`\)\*\*:/mg;
is( lines(@described),
	lines(
		split /\n/,
		sql(
			$node, q(
SELECT name || ' ' || CASE vartype WHEN 'bool' THEN 'boolean' ELSE vartype END FROM pg_settings
WHERE name LIKE 'batcher.%' AND name <> 'batcher.debug_points'))),
	'the settings');

# The first example.
my ($example) = $readme =~ /^## Ten lines\n\n[^\n]+\n\n((?:    [^\n]*\n)+)/m
  or die 'README.md has no ten lines';
my ($out, $err) = ('', '');

$node->safe_psql('postgres', 'CREATE DATABASE example');
is( $node->psql(
		'example', $example,
		stdout => \$out,
		stderr => \$err,
		on_error_stop => 1),
	0,
	'the example runs') or diag $err;
like($out, qr/^\/home\|750$/m, 'it counts 750 rows');
like(
	$out,
	qr/^Asynchronous notification "visits" with payload "\{"at": .*"seq": 1, .*"count": 750, .*"queue": "visits"\}"/m,
	'and a message says so');

# --- what the other READMEs say of the tests ---

sub files { return map { s{^\Q$root\E/}{}r } sort map { glob "$root/$_" } @_ }

my %points;

foreach my $file (files('src/*/*.c'))
{
	my $source = slurp_file("$root/$file");

	$points{$1} = 1 while $source =~ /batcher_debug_point\("([^"]+)"\)/g;
}
@readme = split /\n/, slurp_file("$root/test/README.md");
is( lines(
		map { $_->[0] }
		  table(qr/^## Debug points/, '| point | who | where |')),
	lines(keys %points),
	'the debug points');

# A test that a label has names it, and a label that a test names is there.
my (%promised, %named);

foreach my $row (table(qr/^## What must be possible/, '| label | what | test |'))
{
	$promised{"$row->[0] test/$_"} = 1 foreach $row->[2] =~ /`([^`]+)`/g;
}
foreach my $file (
	files('test/sql/*.sql', 'test/t/*.pl', 'test/unit/*.c', 'test/specs/*.spec',
		'test/bench/parts/*.sh'))
{
	my $source = slurp_file("$root/$file");

	$named{"$1 $file"} = 1 while $source =~ /\b(M[1-5]\.\d+)\b/g;
}
is(lines(grep { !$named{$_} } keys %promised),
	'', 'tests have the labels that README.md says');
is(lines(grep { !$promised{$_} } keys %named),
	'', 'and README.md has those that are in tests');
cmp_ok(scalar keys %named, '>', 80, 'which are many');

my @missing;

@readme = split /\n/, slurp_file("$root/src/README.md");
foreach my $row (
	table(
		qr/^## What happens when something fails/,
		'| what happens | durable queue | queue that is not durable | tests |'))
{
	foreach my $test ($row->[3] =~ /`([^`]+)`/g)
	{
		push @missing, $test
		  unless grep { -e "$root/test/$_" }
		  ("t/$test.pl", "specs/$test.spec", "sql/$test.sql");
	}
}
is(lines(@missing), '', 'the tests of failures are there');

$node->stop;
done_testing();
