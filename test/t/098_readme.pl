
# The tables of README.md say what the views show: the options, with type,
# default and range, and the columns of each view.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('readme');
my @readme = split /\n/, slurp_file("$FindBin::RealBin/../../README.md");

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

$node->stop;
done_testing();
