
# Dump and restore of typed queues and of queues with a target: both are found
# again by the names that they had at the dump, when the queues are resumed, and
# waiting rows are flushed once.  In a copy of the database they are the same.
#
# Failure table: "dump and restore".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "batcher.flush_interval = '10ms'";
my $source = new_node('source', $conf);
my $dump = $source->basedir . '/dump.sql';

sql(
	$source, q(
CREATE SCHEMA s;
CREATE TYPE s.color AS ENUM ('red', 'green');
CREATE TABLE s.target (id int PRIMARY KEY, color s.color, at timestamptz,
	note text DEFAULT 'default', times int GENERATED ALWAYS AS (id * 2) STORED);
CREATE TYPE s.pair AS (x int, y text);
CREATE TABLE result (x int, y text, ticket bigint);
SELECT batch_create_queue('target', target => 's.target',
	options => '{"on_conflict": "update"}');
SELECT batch_create_queue('typed', 'INSERT INTO result SELECT x, y, batch_ticket
	FROM batch', row_type => 's.pair');
SELECT batch_create_queue('plain', 'INSERT INTO result SELECT 0, payload::text,
	batch_ticket FROM batch');
SELECT batch_pause();
SELECT count(batch_enqueue('target', jsonb_build_object('id', i, 'color', 'green',
	'at', '2024-01-01 00:00+00'))) FROM generate_series(1, 100) i;
SELECT count(batch_enqueue_row('typed', ROW(i, 'row ' || i)::s.pair))
FROM generate_series(1, 100) i;
SELECT batch_enqueue('plain', '1');
ALTER TABLE s.target RENAME TO "the ""target";
ALTER TYPE s.pair RENAME TO "the pair";
ALTER SCHEMA s RENAME TO "a schema";
));
command_ok(
	[
		'pg_dump', '-d', $source->connstr('postgres'), '-f', $dump
	],
	'pg_dump');

# Where a result is told to be; each row must be there once.
sub results
{
	my ($node, $database) = @_;

	return $node->safe_psql(
		$database || 'postgres', q(
SELECT count(*), sum(id), min(color::text), min(note), sum(times)
FROM "a schema"."the ""target";
SELECT count(*), sum(x), count(DISTINCT ticket), count(DISTINCT y) FROM result;));
}
my $all = "100|5050|green|default|10100\n101|5050|101|101";

# --- into a server in which OIDs are others ---

my $dest = new_node('dest', $conf);
sql($dest, 'DROP EXTENSION batcher; CREATE TABLE other1 (); CREATE TABLE other2 ()');
$dest->command_ok(
	[
		'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
		$dest->connstr('postgres'), '-f', $dump
	],
	'restored');
is(sql($dest, q(SELECT queue, pause_reason, target, row_type FROM batcher.queue
	ORDER BY 1)), qq(plain|restored||
target|restored|"a schema"."the ""target"|
typed|restored||"a schema"."the pair"), 'held, under the names of today');
is(results($dest), "0||||\n0||0|0", 'nothing is flushed');
sql($dest, 'SELECT batch_resume()');
wait_drained($dest, 'plain', 'target', 'typed');
is(results($dest), $all, 'each row once, after batch_resume');
is(sql($dest, 'SELECT count(*) FROM batcher.dead_letter'), '0',
	'no dead letters');
sql($dest, q(ALTER TABLE "a schema"."the ""target" RENAME TO followed;
	SELECT batch_enqueue('target', '{"id": 101}'), batch_flush()));
wait_sql($dest, 'SELECT count(*) = 101 FROM "a schema".followed');
pass('the found target is followed');

# --- into a database in which they are not yet ---

$dest->safe_psql('postgres', 'CREATE DATABASE late');
command_ok(
	[
		'pg_dump', '-T', '"a schema"."the ""target"', '-d',
		$source->connstr('postgres'), '-f', "$dump.less"
	],
	'pg_dump without the target');
$dest->command_ok(
	[
		'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
		$dest->connstr('late'), '-f', "$dump.less"
	],
	'restored without the target');
my ($rc, $out, $err) =
  $dest->psql('late', q(SELECT batch_resume('target')));
like($err, qr/target "a schema"."the ""target" of queue "target" does not exist/,
	'a target that is not there');
($rc, $out, $err) = $dest->psql('late', 'SELECT batch_resume()');
is($rc, 0, 'the others are resumed');
like($err, qr/WARNING:  target/, 'with a warning');
is( $dest->safe_psql('late', 'SELECT queue FROM batcher.queue WHERE paused'),
	'target', 'that queue is still held');
$dest->safe_psql(
	'late', q(
CREATE TABLE "a schema"."the ""target" (id int PRIMARY KEY,
	color "a schema".color, at timestamptz, note text DEFAULT 'default',
	times int DEFAULT 0);
SELECT batch_resume();));
$dest->poll_query_until('late',
	'SELECT NOT EXISTS (SELECT FROM batcher.pending)')
  or die 'rows still wait';
is( results($dest, 'late'),
	"100|5050|green|default|0\n101|5050|101|101",
	'each row once when it is there');

# --- a copy of the database ---

sql($source, 'CREATE DATABASE copy TEMPLATE postgres');
$source->safe_psql('copy', 'SELECT batch_resume()');
$source->poll_query_until('copy',
	'SELECT NOT EXISTS (SELECT FROM batcher.pending)')
  or die 'rows still wait';
is(results($source, 'copy'), $all, 'a copy of the database');
is(results($source), "0||||\n0||0|0", 'the original is as it was');
sql($source, 'SELECT batch_resume()');
wait_drained($source, 'plain', 'target', 'typed');
is(results($source), $all, 'and goes on');

done_testing();
