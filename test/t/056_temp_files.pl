# A batch that is larger than work_mem goes through a temporary file, which is
# gone after the flush, whatever becomes of that.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('tempfiles', q(
work_mem = '64kB'
batcher.flush_interval = '20ms'
));

sql(
	$node, q(
CREATE TABLE done (n int);
CREATE FUNCTION refuse(n int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	IF n < 0 THEN
		RAISE EXCEPTION 'refused' USING ERRCODE = 'YY001';
	END IF;
	RETURN n;
END $$;
SELECT batch_create_queue('q',
	'INSERT INTO done SELECT refuse((payload->>''n'')::int) FROM batch',
	options => '{"max_batch_size": 5000, "flush_interval": "1 h", "max_attempts": 1}');
));

sub enqueue
{
	my ($first, $last) = @_;

	sql(
		$node, qq(
SELECT batch_enqueue_many('q', array_agg(jsonb_build_object('n', n,
	'text', repeat(md5(n::text), 5))))
FROM generate_series($first, $last) n));
	return;
}

# The files that there are, and whether the worker has made some since the last
# call.
my $made = 0;

sub check_files
{
	my ($what) = @_;
	my $before = $made;

	wait_sql(
		$node, qq(
SELECT temp_files > $before FROM pg_stat_database WHERE datname = 'postgres'));
	$made = sql($node,
		q(SELECT temp_files FROM pg_stat_database WHERE datname = 'postgres'));
	is(sql($node, q(SELECT count(*) FROM pg_ls_tmpdir())),
		'0', "$what: no temporary file is left");
	return;
}

# A flush that goes well, in batches.
enqueue(1, 20000);
sql($node, q(SELECT batch_flush('q')));
is(sql($node, q(SELECT count(*) FROM done)), '20000', 'a flush in batches');
check_files('after a flush');

# One of which rows fail: they are searched for in ever smaller batches.
enqueue(-2, 5000);
sql($node, q(SELECT batch_flush('q')));
wait_drained($node, 'q');
is( sql($node, q(SELECT count(*) || ' ' || (SELECT count(*) FROM batcher.dead_letter) FROM done)),
	'25001 2',
	'rows fail');
check_files('after failures of rows');

# A statement that is cancelled by its timeout, in the middle.
sql(
	$node, q(
SELECT batch_alter_queue('q', '{"flush_timeout": "50 ms"}',
	flush_sql => 'INSERT INTO done SELECT (payload->>''n'')::int FROM batch, pg_sleep(batch_pos)')));
enqueue(1, 5000);
sql($node, q(SELECT batch_flush('q', '0')));
wait_sql($node,
	q(SELECT batches_failed > 0 FROM batcher.stat_queue WHERE queue = 'q' AND last_error ~ 'timeout'));
check_files('after a timeout');

# A worker that is ended in the middle.  The rows that wait are not to be flushed
# again, for an hour, before they are thrown away.
sql(
	$node, q(
SELECT batch_pause('q');
SELECT batch_alter_queue('q', '{"flush_timeout": "1 h"}');
SELECT batch_purge('q');
SELECT batch_reset_breaker('q');
SELECT batch_resume('q')));
enqueue(1, 5000);
sql($node, q(SELECT batch_flush('q', '0')));
wait_sql($node, q(
SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'));
isnt(sql($node, q(SELECT count(*) FROM pg_ls_tmpdir())),
	'0', 'there is a file during the flush');
sql($node, q(SELECT batch_pause('q')));	# the next one is not to go on
my $pid = worker_pid($node);
sql($node, "SELECT pg_terminate_backend($pid)");
wait_sql($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
check_files('after the end of a worker');
sql($node, q(SELECT batch_purge('q')));

$node->stop;
done_testing();
