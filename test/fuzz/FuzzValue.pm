
=pod

=head1 NAME

FuzzValue - values that a careless or hostile caller may give

=head1 DESCRIPTION

A function whose name ends in _raw returns bytes, the others an SQL expression
on one line.  All chance comes from rand(), so that a seed makes everything
repeatable.

=cut

package FuzzValue;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(pick chance quote mutate expression name_raw text_raw
  json_raw integer_raw interval_raw options_raw statement_raw know_options
  @POOL);

# Queues that exist, as a rule.
our @POOL = ('q0' .. 'q5', 'Q "x" {queue}', 'n' x 63, ("\xc3\xa4" x 31) . 'z');

# The lines of batcher.option.
my @options;

my @words = qw(enqueue manage listen public postgres fuzz_a fuzz_b batch
  batch_size wait_time flush_time end_to_end flushed spill wait error none
  summary all last first merge true false null 0 1 -1 q0 target payload);

# Pieces of text that have hurt somebody.
my @pieces = (
	'', ' ', 'a', "'", '"', '\\', '%', '%s%n%d', '$1', '{queue}', '{', '}',
	'{}', '{queue', '{topic}{key}', ';', '--', '/*', '*/', "\n", "\t", "\r\n",
	"\x01", "\x1f", "\x7f", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80",
	"\xef\xbb\xbf", "\xe2\x80\xae", "\xcc\x81", 'NULL', 'null', '0', '-1',
	'1e400', 'NaN', 'Infinity', '\u0000', '\x00', 'pg_catalog.', '..', '../',
	'a.b.c.d');

# No UTF-8.
my @broken = ("\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
	"\xe2\x82");

my @numbers = (
	0, -0.0, 1, -1, 2, 5, 9, 10, 100, 255, 256, 999, 1000, 1001, 32767, 32768,
	65535, 65536, 999999, 1000000, 1000001, 2147483647, 2147483648,
	-2147483648, -2147483649, 4294967295, 4294967296, '9007199254740993',
	'9223372036854775807', '9223372036854775808', '-9223372036854775808',
	'18446744073709551616', '0.5', '1.5', '-0.1', '0.0000001', '1e-5', '1e5',
	'1e10', '1e18', '1e19', '1e100', '1e308', '1e309', '1e400', '-1e400',
	'1e-400', '1e131071', '1e-16383', '0.1e1', '123456789.987654321',
	'1' x 400, '0.' . '3' x 400);

my @units = (
	'ms', 's', 'sec', 'second', 'min', 'minutes', 'h', 'hours', 'd', 'day',
	'days', 'w', 'weeks', 'mon', 'month', 'months', 'y', 'year', 'years',
	'decade', 'c', 'centuries', 'millennium', 'us', 'microseconds', 'm', '',
	'x', 'B', 'kB', 'MB', 'GB', 'TB', 'PB', 'mb', 'ago', ':', '%');

my @statements = (
	'SELECT count(*) FROM batch',
	'SELECT FROM batch',
	'INSERT INTO t1 (id, v) SELECT batch_ticket, payload FROM batch',
	'INSERT INTO t1 (v) SELECT payload FROM batch WHERE batch_key IS NOT NULL',
	'INSERT INTO t2 AS t SELECT coalesce(batch_key, \'\'), count(*) FROM batch'
	  . ' GROUP BY 1 ON CONFLICT (k) DO UPDATE SET n = t.n + excluded.n',
	'UPDATE t2 SET n = n + b.c FROM (SELECT batch_topic, count(*) c FROM batch'
	  . ' GROUP BY 1) b WHERE k = b.batch_topic',
	'DELETE FROM t1 USING batch WHERE t1.id = batch_ticket',
	'MERGE INTO t2 USING (SELECT DISTINCT coalesce(batch_key, \'\') k FROM'
	  . ' batch) b ON t2.k = b.k WHEN MATCHED THEN UPDATE SET n = n + 1'
	  . ' WHEN NOT MATCHED THEN INSERT VALUES (b.k, 1)',
	'WITH b AS (DELETE FROM t1 RETURNING *) SELECT (payload->>\'a\')::int FROM'
	  . ' batch, b',
	'WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r WHERE'
	  . ' i < 50) SELECT * FROM r, batch',
	'SELECT 1 / (batch_priority - 1) FROM batch',
	'SELECT batch_key::int FROM batch',
	'SELECT payload::text::xml FROM batch',
	'SELECT jsonb_agg(payload ORDER BY batch_pos) FROM batch',
	'SELECT b FROM batch b, batch c, LATERAL (SELECT b.batch_pos) d',
	'TABLE batch', 'VALUES (1)', 'SELECT 1', 'SELECT * FROM batch FOR UPDATE',
	'SELECT * INTO t9 FROM batch', 'CREATE TABLE t9 AS SELECT * FROM batch',
	'TRUNCATE t1', 'COPY t1 TO STDOUT', 'BEGIN', 'COMMIT', 'LISTEN a',
	'SELECT 1; SELECT 2', ';', '', '-- nothing', 'SELECT $1 FROM batch',
	'SELECT * FROM nowhere', 'SELECT nothing FROM batch', 'EXPLAIN SELECT 1',
	'SELECT set_config(\'batcher.enabled\', \'x\', false) FROM batch',
	'SELECT batch_enqueue(\'q1\', payload) FROM batch',
	'SELECT batch_flush() FROM batch', 'SELECT batch_purge(\'q0\') FROM batch',
	'SELECT pg_advisory_lock(batch_pos) FROM batch',
	'SELECT pg_notify(\'d\', payload::text) FROM batch',
	'SELECT current_setting(batch_topic) FROM batch',
	'SELECT pg_sleep(0.002) FROM batch LIMIT 1',
	'SELECT generate_series(1, batch_priority % 100) FROM batch');

# For notify_sql.
my @selects = (
	'SELECT \'d\', payload FROM batch', 'SELECT \'d\', payload::text FROM batch',
	'SELECT \'d\' || batch_key, to_jsonb(batch) FROM batch',
	'SELECT batch_topic, jsonb_build_object(\'a\', payload) FROM batch',
	'SELECT \'d\', to_jsonb(result) FROM result',
	'SELECT \'d\', jsonb_agg(payload) FROM batch, batch b',
	'SELECT NULL::text, \'x\' FROM batch', 'SELECT 1, 2', 'TABLE batch',
	'SELECT \'d\', repeat(\'x\', batch_priority) FROM batch', 'VALUES (\'d\', \'\')');

sub pick { return $_[ rand @_ ]; }

sub chance { return rand() < $_[0]; }

sub know_options { @options = @_; return; }

# Bytes as a literal on one line.
sub quote
{
	my ($raw) = @_;

	if ($raw =~ /[^\x20-\x5b\x5d-\x7e]/)
	{
		$raw =~ s/([\\'])/\\$1/g;
		$raw =~ s/([^\x20-\x7e])/sprintf('\\x%02x', ord $1)/ge;
		return "E'$raw'";
	}
	$raw =~ s/'/''/g;
	return "'$raw'";
}

# Bytes with a few of them gone, doubled, moved or replaced.
sub mutate
{
	my ($raw) = @_;

	for (0 .. rand 3)
	{
		my $at = int rand(1 + length $raw);
		my $len = int rand(1 + rand 8);
		my $what = rand;

		if ($what < 0.3)
		{
			substr($raw, $at, $len) = '' if $at + $len <= length $raw;
		}
		elsif ($what < 0.5)
		{
			substr($raw, $at, 0) = substr($raw, int rand(1 + length $raw), $len)
			  // '';
		}
		elsif ($what < 0.9) { substr($raw, $at, 0) = pick(@pieces, @words); }
		else { $raw = substr($raw, 0, $at); }
	}
	$raw =~ s/\0//g;
	return $raw;
}

# The name of something, often of a queue that is there.
sub name_raw
{
	my $what = rand;

	return pick(@POOL) if $what < 0.8;
	return mutate(pick(@POOL)) if $what < 0.85;
	# about as long as a name may be, and cut within a character
	return substr(pick('x', "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", '"')
		  x 70, 0, pick(62 .. 65, 127, 255))
	  if $what < 0.9;
	return text_raw();
}

sub text_raw
{
	my $what = rand;

	return pick(@words) if $what < 0.3;
	return pick(@pieces) if $what < 0.6;
	return join '', map { pick(@pieces, @words) } 0 .. rand 6 if $what < 0.9;
	return join '', map { chr(1 + rand 127) } 0 .. rand 20 if $what < 0.95;
	return join '', map { pick(@pieces, @broken) } 0 .. rand 6 if $what < 0.97;
	return pick(@pieces[ 2 .. $#pieces ], @words) x rand(300) if $what < 0.99;
	return 'x' x rand(20000);
}

sub number_raw
{
	return pick(@numbers) if chance(0.6);
	return int(rand(2000)) - 100 if chance(0.5);
	return int(rand(1e6)) . pick('', '.', '.5', 'e', 'e1') . int(rand(400));
}

sub json_string_raw
{
	my $raw = text_raw();

	if (chance(0.99))
	{
		$raw =~ s/(["\\])/\\$1/g;
		$raw =~ s/([\x00-\x1f])/sprintf('\\u%04x', ord $1)/ge;
	}
	$raw .= pick('\u0000', '\ud800', '\udc00', '\ud83d\ude00', '\uDEAD\u0041',
		'\u12', '\x', '\u00e4') if chance(0.03);
	return "\"$raw\"";
}

sub json_raw
{
	my ($depth) = @_;
	my $what = rand;

	$depth //= 3;
	return 'null' if $what < 0.05;
	return pick('true', 'false') if $what < 0.1;
	return number_raw() if $what < 0.25;
	return json_string_raw() if $what < 0.45 || $depth <= 0;
	return '[' . join(',', map { json_raw($depth - 1) } 1 .. rand 6) . ']'
	  if $what < 0.6;
	if ($what < 0.62)
	{
		my $n = pick(10, 100, 1000, 7000);
		my ($open, $close) = @{ pick([ '[', ']' ], [ '{"a":', '}' ]) };

		return ($open x $n) . '1' . ($close x pick($n, $n, $n, $n - 1));
	}
	return '{'
	  . join(',',
		map { pick('"a"', '"b"', '"event"', '""', json_string_raw()) . ':'
			  . json_raw($depth - 1) } 1 .. rand 6)
	  . '}';
}

sub interval_raw
{
	my $what = rand;

	return join ' ',
	  map { number_raw() . pick('', ' ') . pick(@units) } 0 .. rand 3
	  if $what < 0.5;
	return 'P'
	  . join('', map { number_raw() . pick(qw(Y M D W H S T)) } 0 .. rand 3)
	  . pick('', 'T1M', 'T' . number_raw() . 'S')
	  if $what < 0.65;
	return pick('', '-') . number_raw() . ':' . number_raw() . pick('', ':1.5')
	  if $what < 0.75;
	return pick('infinity', '-infinity', 'epoch', 'now', 'allballs', '@ 1 s',
		'1 2:3:4', '1-2', '-1-2 +3 -4:5:6', '178000000 years',
		'-178000000 years', '2147483647 months', '2562047788 hours',
		'9223372036854 s', 'P0002-01-01T00:00:01', 'PT', 'P', '1 s' x 100)
	  if $what < 0.9;
	return text_raw();
}

# What an option may take, by its line in batcher.option; or nearly.
sub option_value_raw
{
	my ($option) = @_;
	my ($name, $type, $default, $min, $max, $description) = @$option;
	my $what = rand;

	return json_raw(1) if $what < 0.1;
	return 'null' if $what < 0.15;
	if ($what < 0.3)
	{
		my $limit = pick(grep { $_ ne '' } $min, $max, $default, 'x');

		$limit = mutate($limit) if chance(0.3);
		return $limit if $limit =~ /^-?\d+(\.\d+)?$/ && chance(0.5);
		$limit =~ s/([\\"])/\\$1/g;
		return "\"$limit\"" if $limit !~ /[^\x20-\x7e]/;
	}
	return pick('{"a": "b"}', '{"a": ""}', '{"x": "c", "": "d"}', '{}',
		json_raw(1))
	  if $type eq 'jsonb';
	return '"' . pick(@selects) . '"' if $name eq 'notify_sql' && chance(0.8);
	return pick('true', 'false') if $type eq 'boolean';
	return chance(0.9) ? 1 + int rand(2000) : number_raw()
	  if $type eq 'integer';
	return chance(0.5)
	  ? int rand(60000)
	  : '"' . (chance(0.5) ? interval_raw() =~ s/(["\\])/\\$1/gr : '5 ms') . '"'
	  if $type eq 'interval';
	return '"' . number_raw() . pick(@units) . '"'
	  if $type eq 'size' && chance(0.5);
	return number_raw() if $type ne 'enum' && $type ne 'text';
	return '"' . pick(($description =~ /"([^"]+)"/g), @words) . '"'
	  if $type eq 'enum';
	return json_string_raw();
}

sub options_raw
{
	my @pairs;

	return json_raw(1) if chance(0.03);
	for (1 .. rand 4)
	{
		my $option = pick(@options);
		my $name = $option->[0];

		$name = pick(mutate($name), uc $name, text_raw()) if chance(0.08);
		$name =~ s/([\\"])/\\$1/g;
		$name =~ s/([\x00-\x1f])/sprintf('\\u%04x', ord $1)/ge;
		push @pairs, "\"$name\": " . option_value_raw($option);
	}
	my $raw = '{' . join(', ', @pairs) . '}';

	return chance(0.03) ? mutate($raw) : $raw;
}

sub statement_raw
{
	my $raw = pick(@statements);
	my $what = rand;

	return $raw if $what < 0.6;
	return mutate($raw) if $what < 0.9;
	return pick($raw, '') . text_raw() if $what < 0.97;
	return 'SELECT ' . ('(' x 3000) . '1' . (')' x 3000) . ' FROM batch'
	  if $what < 0.98;
	return 'SELECT ' . ('1+' x 3000) . '1 FROM batch' if $what < 0.99;
	return 'SELECT ' . join(',', 1 .. pick(1600, 1700)) . ' FROM batch';
}

sub integer_raw
{
	return pick(grep { /^-?\d{1,19}$/ } @numbers) if chance(0.5);
	return int(rand(200)) - 20;
}

# An array, also of two dimensions and with other bounds, of elements that
# 'element' makes.
sub array
{
	my ($type, $element) = @_;
	my @elements =
	  map { chance(0.05) ? 'NULL' : $element->() } 1 .. pick(0 .. 5, 50);
	my $array = 'ARRAY[' . join(',', @elements) . "]::$type";
	my $what = rand;

	return $array if $what < 0.9 || !@elements;
	return "ARRAY[$array, $array]" if $what < 0.95;
	return "array_fill($elements[0], ARRAY[" . pick(1, 3, 1000) . '], ARRAY['
	  . pick(-5, 0, 2, 2147480000) . "])::$type";
}

# A value for an argument of this name and type.
sub expression
{
	my ($name, $type) = @_;

	return 'NULL' if chance(0.04);
	if ($type eq 'text')
	{
		return quote(statement_raw()) if $name =~ /sql|query|route/;
		return quote(name_raw()) if $name =~ /queue|feed/;
		return 'repeat(' . quote(text_raw()) . ', ' . int(rand 3000) . ')'
		  if chance(0.005);
		return quote(text_raw());
	}
	return quote(options_raw()) . '::jsonb'
	  if $type eq 'jsonb' && $name eq 'options';
	return quote(chance(0.97) ? json_raw() : mutate(json_raw())) . '::jsonb'
	  if $type eq 'jsonb';
	return pick('true', 'false') if $type eq 'boolean';
	return '(SELECT ' . pick('min', 'max') . '(ticket) FROM batcher.pending)'
	  if $type eq 'bigint' && chance(0.05);
	return quote(integer_raw()) . "::$type" if $type =~ /int/ && $type !~ /\[/;
	return quote(pick('NaN', 'Infinity', '-Infinity', 0, 1, 0.5, '-0', 1e308,
			number_raw())) . "::$type"
	  if $type =~ /double|real|numeric/;
	return quote(interval_raw()) . '::interval' if $type eq 'interval';
	return pick(quote(pick('t1', 't2', 'pg_class', 'batcher.spool', 't1_id_seq',
				'batcher.status', 'nowhere', '0', '4294967295', text_raw())))
	  . '::regclass'
	  if $type eq 'regclass';
	return pick(quote(pick('t1', 'int', 'text[]', 'record', 'anyelement', 'void',
				'trigger', 'jsonb', 'unknown', 'pair', '0', '4294967295',
				text_raw()))) . '::regtype'
	  if $type eq 'regtype';
	return pick('ROW()', 'ROW(1)', 'ROW(NULL, \'x\')', 'ROW(1, 2)::pair',
		'NULL::t1', '(SELECT t1 FROM t1 LIMIT 1)', 'ROW(ROW(1))')
	  if $type eq 'record';
	if ($type =~ /^(.*)\[\]$/)
	{
		my $element = $1;

		return '(SELECT array_agg(ticket) FROM batcher.pending)'
		  if $type eq 'bigint[]' && chance(0.2);
		return array($type, sub { expression('', $element) });
	}
	return quote(text_raw()) . "::$type";
}

1;
