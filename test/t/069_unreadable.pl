# Tuples of the spool that cannot be read are buried together: each becomes a
# dead letter in the transaction that removes it, whatever happens to the
# worker, and they do not cost a look through the spool each.  Those that cannot
# be removed either are passed over.
#
# Failure table: "a tuple of the spool cannot be read", "... nor deleted".

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'unreadable', q(
batcher.flush_interval = '20ms'
batcher.max_workers = 1
));

sql(
	$node, q(
CREATE TABLE done (pos bigserial, n int);
SELECT batch_create_queue('q',
	$$INSERT INTO done (n)
	SELECT (payload->>'n')::int FROM batch ORDER BY batch_pos$$,
	options => '{"retry_delay": "10 ms", "retry_max_delay": "10 ms"}');
));

# Put 20 tuples that cannot be read and 20 that can into the spool, in turn, as a
# restore does; two of those of one number.
sub restore
{
	sql(
		$node, q(
TRUNCATE done;
SELECT batch_purge_dead('q');
INSERT INTO batcher.spool SELECT r.* FROM generate_series(1, 40) i,
	LATERAL jsonb_populate_record(NULL::batcher.spool, jsonb_build_object(
		'number', 1000 * greatest(i, 3), 'home', 7, 'enqueued_at', now(),
		'queue_id', (SELECT id FROM batcher.queue_definition),
		'lane', 0, 'enqueuer', 10, 'enqueued_by', 'somebody') ||
		CASE WHEN i % 2 = 1 THEN '{}' ELSE jsonb_build_object(
			'ticket', 1000 * i + 1,
			'payload', jsonb_build_object('n', i)) END) r;
));
	return;
}

sub check_restored
{
	my ($message) = @_;

	wait_drained($node, 'q');
	is( sql(
			$node, q(
SELECT count(*), count(DISTINCT ticket), count(*) FILTER (WHERE payload IS NULL)
FROM batcher.dead_letter)),
		'20|20|20',
		"$message: each tuple that cannot be read is one dead letter");
	is( sql(
			$node, q(
SELECT string_agg(n::text, ' ' ORDER BY pos) FROM done)),
		join(' ', map { 2 * $_ } 1 .. 20),
		"$message: the others are flushed once, in order");
	is(sql($node, 'SELECT count(*) FROM batcher.spool'),
		'0', "$message: the spool is empty");
	return;
}

# Few of them are noted at a time, so that some are buried and others are not.
my $few = 'most-noted=7';

foreach my $action ('kill', 'fatal', 'error')
{
	my $position;

	# a worker that has just come and ends is started again after a while
	my $pid = wait_worker($node);
	wait_sql(
		$node, qq(
SELECT backend_start < clock_timestamp() - interval '1.1 s'
FROM pg_stat_activity WHERE pid = $pid));
	restore();
	arm($node, $action eq 'kill' ? "$few,buried=wait" : "$few,buried=$action");
	$position = log_position($node);
	sql($node, q(SELECT batch_resume()));
	if ($action eq 'kill')
	{
		wait_point($node, 'buried');
		release_point($node, 'buried');
		wait_point($node, 'buried');
	}
	else
	{
		my $level = $action eq 'fatal' ? 'FATAL' : 'ERROR';

		$node->wait_for_log(qr/$level: .*debug point "buried"/, $position);
	}
	is( sql($node, q(SELECT count(*) FROM batcher.dead_letter)) . '|'
		  . sql($node,
			q(SELECT count(*) FROM batcher.spool WHERE ticket IS NULL)),
		$action eq 'kill' ? '7|13' : '0|20',
		"$action: what is not committed is neither dead nor gone");
	if ($action eq 'kill')
	{
		is( sql(
				$node, q(
SELECT spilled - (SELECT count(*) FROM batcher.spool) FROM batcher.status)),
			'0',
			'who is dead does not count as waiting');
	}
	disarm($node);
	kill_process($node, $pid) if $action eq 'kill';
	check_restored($action);
}

# The spool is rewritten when they are noted: their places are others then, and
# the blocks that they were in are gone, as there was room before them.
sub change_spool
{
	my ($statement) = @_;

	sql(
		$node, qq(
ALTER TABLE batcher.spool DISABLE TRIGGER arrived;
$statement;
ALTER TABLE batcher.spool ENABLE ALWAYS TRIGGER arrived));
	return;
}

change_spool(
	q(
INSERT INTO batcher.spool SELECT r.* FROM generate_series(1, 500) i,
	LATERAL jsonb_populate_record(NULL::batcher.spool, jsonb_build_object(
		'number', i, 'home', 0, 'enqueued_at', now(), 'queue_id', -1,
		'lane', 0, 'enqueuer', 10, 'enqueued_by', 'somebody')) r));
restore();
change_spool(q(DELETE FROM batcher.spool WHERE queue_id = -1));
arm($node, "$few,noted=wait");
sql($node, q(SELECT batch_reset_stats('q'); SELECT batch_resume()));
wait_point($node, 'noted');
is( sql($node, 'SELECT min((ctid::text::point)[0]) > 2 FROM batcher.spool'),
	't', 'VACUUM FULL: there is room before the tuples');
sql($node, q(VACUUM FULL batcher.spool));
disarm($node);
release_point($node, 'noted');
check_restored('VACUUM FULL');
is(sql($node, 'SELECT batches_failed FROM batcher.stat_queue'),
	'0', 'VACUUM FULL: nothing has failed');

# Tuples whose payload is damaged on disk, among others that cannot be read.
sub scans
{
	return sql(
		$node, q(
SELECT seq_scan FROM pg_stat_user_tables
WHERE relid = 'batcher.spool'::regclass));
}

# Make such tuples, of so many, and write this character over their payloads.
# The queue is paused.
sub damage
{
	my ($n, $character) = @_;

	foreach my $i (1 .. $n)
	{
		sql(
			$node, qq(
SELECT batch_enqueue('q', jsonb_build_object('n', 1000 + $i, 'big',
	(SELECT string_agg(md5($i || ' ' || j), '') FROM generate_series(1, 300) j)))));
	}
	my $toast = $node->data_dir . '/' . sql(
		$node, q(
SELECT pg_relation_filepath(reltoastrelid) FROM pg_class
WHERE oid = 'batcher.spool'::regclass));
	$node->stop;
	my $size = -s $toast;
	ok($size >= $n * 8192, 'payloads are stored out of line');
	open(my $file, '+<:raw', $toast) or die "could not open $toast: $!";
	print $file $character x $size;
	close($file) or die "could not write $toast: $!";
	$node->start;
	return;
}

sql($node, q(SELECT batch_pause('q')));
restore();
damage(60, "\0");
my $before = scans();
sql($node, q(SELECT batch_resume()));
wait_drained($node, 'q');
is( sql(
		$node, q(
SELECT string_agg(d.n || ' ' || d.message, ', ' ORDER BY d.n) FROM (
	SELECT count(*) AS n, regexp_replace(message, '\d+.*', '') AS message
	FROM batcher.dead_letter GROUP BY 2) d)),
	'20 a tuple of the spool has a row without ticket or payload, '
	  . '60 missing chunk number ',
	'damaged tuples and others that cannot be read are dead letters');
is(sql($node, 'SELECT count(*), count(DISTINCT n) FROM done'),
	'20|20', 'the others are flushed once');
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');
# a worker that is idle has told the statistics
wait_sql(
	$node, q(
SELECT count(*) = 0 FROM pg_stat_activity
WHERE application_name = 'batcher worker' AND state <> 'idle'));
my $scans = scans() - $before;
ok($scans > 0 && $scans < 40, "they took $scans looks through the spool");

# Where the server finds garbage the tuples can be deleted no more than read.
# They stay, are told of once, and hold up nobody.
my $places = q(
SELECT string_agg(ctid::text, ' ' ORDER BY ctid::text COLLATE "C")
FROM batcher.spool WHERE pg_column_size(payload) > 8160);

sub passed_over
{
	my ($position) = @_;

	return join ' ', sort(
		slurp_file($node->logfile, $position) =~
		  /neither read nor deleted.*\n.*DETAIL:  It is at (\S+) of/g);
}

sub wait_passed
{
	wait_sql(
		$node, q(
SELECT pending = 0 AND spilled = 0 AND NOT is_flushing
	AND (SELECT count(*) = 12 FROM batcher.spool)
FROM batcher.status WHERE queue = 'q'));
	return;
}

sql($node, q(SELECT batch_pause('q'); SELECT batch_purge_dead('q')));
restore();
damage(12, "\x7f");
my $stuck = sql($node, $places);
my $position = log_position($node);
sql($node, q(SELECT batch_resume('q')));
wait_passed();
is( sql(
		$node, q(
SELECT count(*), count(DISTINCT n), (SELECT count(*) FROM batcher.dead_letter)
FROM done)),
	'20|20|20',
	'garbage: what can be read is flushed, and what can be deleted is buried');
is(sql($node, $places), $stuck, 'garbage: the others, and only they, stay');

# Rows that are read back later: the spool is looked through again.
sql($node, q(SELECT batch_pause('q'); SELECT batch_purge_dead('q')));
restore();
sql($node, q(SELECT batch_resume('q'); SELECT batch_flush('q')));
wait_passed();
is(sql($node, 'SELECT count(*) FROM done'),
	'20', 'garbage: rows that come later are flushed');
is(passed_over($position), $stuck, 'garbage: each is told of once');

# Who begins anew with the queue meets them anew.
sql($node, q(SELECT batch_pause('q')));
$node->restart;
$position = log_position($node);
sql($node, q(SELECT batch_purge('q')));
is(passed_over($position), $stuck, 'garbage: a purge passes over them');

# What a superuser can do.
my ($place) = $stuck =~ /^(\S+)/;
my $delete = "DELETE FROM batcher.spool WHERE ctid = '$place'";
my ($rc, $out, $err) = try_sql(
	$node, qq(
SET zero_damaged_pages = on;
BEGIN;
ALTER TABLE batcher.spool DISABLE TRIGGER arrived;
$delete;
ALTER TABLE batcher.spool ENABLE ALWAYS TRIGGER arrived;
COMMIT));
is($rc, 0, 'garbage: a superuser can delete one') or diag($err);
($rc, $out, $err) = try_sql($node, q(SELECT batch_drop_queue('q')));
like($err, qr/11 rows wait/, 'garbage: they are rows that wait');
($rc, $out, $err) = try_sql($node, q(SELECT batch_drop_queue('q', true)));
is($rc, 0, 'garbage: the queue can be dropped');
like($err, qr/WARNING: .* 11 damaged tuples /, 'garbage: with a warning');
my ($id) = $err =~ /HINT: .* queue_id (\d+) /;
is(sql($node, 'SELECT count(*) FROM batcher.spool'),
	'11', 'garbage: they are left');
sql(
	$node, qq(
SET zero_damaged_pages = on;
DELETE FROM batcher.spool WHERE queue_id = $id;
VACUUM FULL batcher.spool));
is(sql($node, 'SELECT count(*) FROM batcher.spool'),
	'0', 'garbage: a superuser can delete what is left');

$node->stop;
done_testing();
