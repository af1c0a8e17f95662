
# Without shared_preload_libraries the extension can be created and dropped,
# and says what is missing; nothing that waits is lost when it is preloaded
# again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('preload');
$node->init;
$node->append_conf('postgresql.conf',
	"max_worker_processes = 16\nbatcher.flush_interval = '10ms'\n");
$node->start;

# The function raises 55000, and the hint names the setting.
sub not_preloaded
{
	my ($what) = @_;
	my ($rc, $out, $err) = try_sql($node, "SELECT $what");

	like($err,
		qr/ERROR:  55000: .*HINT:  [^\n]*shared_preload_libraries/s,
		"not preloaded: $what");
	return;
}

my @calls = (
	"batch_enqueue('q', '{}')",
	"batch_enqueue_many('q', ARRAY['{}'::jsonb])",
	"batch_flush('q')",
	"batch_flush()",
	"batch_wait('q', 1)",
	"batch_purge('q')",
	"batch_reset_stats('q')",
	"batch_drop_queue('q', true)",
	"count(*) FROM batcher.status",
	"count(*) FROM batcher.stat_queue",
	"count(*) FROM batcher.worker");

my ($rc, $out, $err) = try_sql($node, 'CREATE EXTENSION batcher');
is($rc, 0, 'CREATE EXTENSION works');
is($err, '', 'without a word');
not_preloaded($_) foreach ("batch_create_queue('q')", @calls);
is(sql($node, 'SELECT count(*) > 0 FROM batcher.option'), 't',
	'batcher.option works');
is(sql($node, 'SELECT count(*) FROM batcher.queue'), '0',
	'batcher.queue works');
is( sql(
		$node, "SELECT count(*) FROM pg_stat_activity
		WHERE backend_type LIKE 'batcher%'"),
	'0', 'no process');
sql($node, 'DROP EXTENSION batcher; CREATE EXTENSION batcher');
sql($node, "LOAD 'batcher'");

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'batcher'");
$node->restart;
ok(wait_worker($node), 'preloaded by a restart: a worker comes by itself');
sql(
	$node, q(
CREATE TABLE done (id int);
SELECT batch_create_queue('q',
	'INSERT INTO done SELECT (payload->>''id'')::int FROM batch');
SELECT batch_create_queue('volatile',
	'INSERT INTO done SELECT (payload->>''id'')::int FROM batch',
	options => '{"durable": false, "flush_interval": "1 h"}');
SELECT batch_enqueue('q', '{"id": 1}');
));
wait_sql($node, 'SELECT count(*) = 1 FROM done');
sql(
	$node, q(
SELECT batch_alter_queue('q', '{"flush_interval": "1 h"}');
SELECT batch_pause('q'), batch_pause('volatile');
SELECT batch_enqueue('q', jsonb_build_object('id', i))
FROM generate_series(2, 10) i;
SELECT batch_enqueue('volatile', jsonb_build_object('id', i))
FROM generate_series(101, 105) i;
));

# And back, with rows that wait.
my $saved = $node->data_dir . '/pg_stat/batcher.saved';
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->stop;
ok(-s $saved, 'rows in memory only are saved by the stop');
$node->start;
not_preloaded($_) foreach @calls;
ok(-s $saved, 'the saved file stays unread');
is(sql($node, 'SELECT queue, paused FROM batcher.queue ORDER BY 1'),
	"q|t\nvolatile|t", 'the definitions are there');
($rc, $out, $err) = try_sql($node, "SELECT batch_resume('q')");
is($rc, 0, 'what only changes the definition works');

my $position = log_position($node);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'batcher'");
$node->restart;
is(sql($node, "SELECT batch_flush('q')"), '9', 'the rows have waited');
sql($node, "SELECT batch_resume('volatile')");
is(sql($node, "SELECT batch_flush('volatile')"), '0',
	'those in memory only are lost: the server has run without the file');
like(slurp_file($node->logfile, $position),
	qr/batcher\.saved" held 5 rows, and does not belong to the last stop/,
	'the log has the number');
ok(!-e $saved, 'and the file is gone');
is(sql($node, 'SELECT count(*), count(DISTINCT id) FROM done'), '10|10',
	'each is flushed once');

$node->stop;
done_testing();
