
# A full disk: a flush whose target cannot grow is rolled back whole and tried
# again; an enqueue whose row finds no place in the spool fails with 53100, and
# nothing of its transaction is there.
#
# Failure table: "disk full, out of memory, lock timeout".
#
# BATCHER_SMALL_DISK names a folder on a small file system of its own, which
# run.sh makes where it is root.  (A full disk under the WAL stops the server,
# as it does without batcher.)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $disk = $ENV{BATCHER_SMALL_DISK};

plan skip_all => 'needs a small file system, see BATCHER_SMALL_DISK'
  if !$disk;

my $node = new_node(
	'disk_full', q(
batcher.flush_interval = '10ms'
batcher.shared_memory_size = '8MB'
log_min_error_statement = panic
));
my $filler = "$disk/filler";

mkdir "$disk/space" or die "$disk/space: $!";
sql($node, "CREATE TABLESPACE small LOCATION '$disk/space'");

# Leave no room on the small disk; give it back.
sub fill_disk
{
	my $page = 'x' x 4096;

	open my $f, '>', $filler or die "$filler: $!";
	while (defined syswrite($f, $page)) { }
	die "$filler: $!" if !$!{ENOSPC};
	close $f;
	return;
}

sub empty_disk
{
	unlink $filler or die "$filler: $!";
	return;
}

# --- the target cannot grow ---

sql(
	$node, q(
CREATE TABLE target (queue text, n int, filler text) TABLESPACE small;
ALTER TABLE target ALTER filler SET STORAGE PLAIN;
SELECT batch_create_queue('durable',
	$$INSERT INTO target SELECT 'durable', (payload->>'n')::int, repeat('x', 1000)
	FROM batch$$, options => '{"flush_interval": "1 h"}');
SELECT batch_create_queue('volatile',
	$$INSERT INTO target SELECT 'volatile', (payload->>'n')::int, repeat('x', 1000)
	FROM batch$$, options => '{"flush_interval": "1 h", "durable": false}');
));

sub enqueue
{
	my ($queue, $from, $to) = @_;

	sql($node,
		"SELECT batch_enqueue('$queue', jsonb_build_object('n', i))
		FROM generate_series($from, $to) i");
	return;
}

my $flushed = q(
SELECT queue, count(*), count(DISTINCT n), max(n) FROM target
GROUP BY 1 ORDER BY 1);

fill_disk();
enqueue($_, 1, 100) foreach ('durable', 'volatile');
sql($node, q(SELECT batch_flush(NULL, '0')));
foreach my $queue ('durable', 'volatile')
{
	wait_sql($node,
		"SELECT batches_failed > 0 AND last_error LIKE
			'could not extend file %: No space left on device'
		FROM batcher.stat_queue WHERE queue = '$queue'");
	pass("$queue: the flush fails because the disk is full");
}
is(sql($node, $flushed), '', 'nothing of it is left');
is( sql(
		$node, q(
SELECT queue, count(*), sum(attempts) FROM batcher.pending
GROUP BY 1 ORDER BY 1)),
	"durable|100|0\nvolatile|100|0",
	'the rows wait, charged with nothing');
empty_disk();
wait_drained($node, 'durable', 'volatile');
is( sql($node, $flushed),
	"durable|100|100|100\nvolatile|100|100|100",
	'when there is room again each row is flushed once');

# --- the spool cannot grow ---

my $failures = sql(
	$node, q(
SELECT batches_failed FROM batcher.stat_queue WHERE queue = 'durable'));

# The target lies elsewhere now.
sql(
	$node, q(
TRUNCATE target;
ALTER TABLE target SET TABLESPACE pg_default;
ALTER TABLE batcher.spool SET TABLESPACE small;
CREATE TABLE together (what text);
SELECT batch_alter_queue('durable', '{"max_batch_size": 10}');
));

# What waits already: to be flushed in parts, each of which writes the rest of
# its tuple anew.
sql($node, 'SELECT batch_pause()');
enqueue('durable', 1, 500);
fill_disk();

# In a commit; the rest of the transaction goes too.
my ($rc, $out, $err) = try_sql(
	$node, q(
BEGIN;
INSERT INTO together VALUES ('one row');
SELECT batch_enqueue('volatile', '{"n": -1}');
SELECT batch_enqueue('durable',
	jsonb_build_object('n', -1, 'text', repeat(md5(i::text), 50)))
FROM generate_series(1, 20) i;
\echo the statements are through
COMMIT;));

like($out, qr/the statements are through/, 'rows are staged');
like($err, qr/ERROR:  53100: could not extend file/,
	'the commit fails because the disk is full');

# In the statement, for a transaction that writes before its commit.
($rc, $out, $err) = try_sql(
	$node, q(
BEGIN;
INSERT INTO together VALUES ('many rows');
SELECT count(batch_enqueue('durable',
	jsonb_build_object('n', -2, 'text', repeat('x', 1000))))
FROM generate_series(1, 20000) i;
\echo the statement is through
COMMIT;));
unlike($out, qr/the statement is through/,
	'a large transaction fails in the statement');
like($err, qr/ERROR:  53100: could not extend file/, 'with the same error');

# Who catches that may go on.
sql(
	$node, q(
DO $$
BEGIN
	BEGIN
		PERFORM batch_enqueue('durable',
			jsonb_build_object('n', -3, 'text', repeat('x', 1000)))
		FROM generate_series(1, 20000) i;
	EXCEPTION WHEN disk_full THEN
		INSERT INTO together VALUES ('caught');
	END;
	PERFORM batch_enqueue('volatile', '{"n": 101}');
END $$;
));
is(sql($node, 'SELECT string_agg(what, $$ $$) FROM together'),
	'caught', 'nothing else of these transactions is there');
is( sql(
		$node, q(
SELECT queue, pending FROM batcher.status ORDER BY 1)),
	"durable|500\nvolatile|1",
	'what waits is what had been committed');

# The flush may be in want of a place, too.
sql($node, q(SELECT batch_resume()));
wait_sql(
	$node, qq(
SELECT batches_failed > $failures OR rows_flushed = 600
FROM batcher.stat_queue WHERE queue = 'durable'));
empty_disk();
enqueue('durable', 501, 510);
sql($node, q(SELECT batch_flush()));
wait_drained($node, 'durable', 'volatile');
is( sql($node, $flushed),
	"durable|510|510|510\nvolatile|1|1|101",
	'when there is room again each row is flushed once');
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');
is(sql($node, 'SELECT sum(pending_bytes) FROM batcher.status'),
	'0', 'and nothing is left in memory');

$node->stop;
done_testing();
