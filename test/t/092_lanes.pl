# A queue with lanes: they are flushed in parallel, by no more than half of the
# workers; each key keeps its order, also when the number of lanes changes under
# load, and whatever dies (M1.12, M3.3).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use BatcherLoad;
use BatcherTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'lanes', q(
batcher.flush_interval = '10ms'
batcher.max_workers = 4
));

# A flush lasts as long as somebody holds this lock.
sql(
	$node, q(
CREATE TABLE done (n int);
SELECT batch_create_queue('hot', $$WITH l AS MATERIALIZED
	(SELECT pg_advisory_xact_lock_shared(1))
	INSERT INTO done SELECT (payload->>'n')::int FROM batch, l$$,
	options => '{"flush_timeout": "10 min", "lanes": 4}');
SELECT batch_create_queue('quick', 'INSERT INTO done SELECT 0 FROM batch')));
wait_worker($node);
my $blocker = $node->background_psql('postgres');
$blocker->query_safe('SELECT pg_advisory_lock(1)');
sql(
	$node, q(
SELECT count(batch_enqueue('hot', jsonb_build_object('n', i), 'k' || i))
FROM generate_series(1, 40) i));
wait_sql($node,
	q(SELECT count(*) = 2 FROM batcher.worker WHERE queue = 'hot'));
pass('two lanes are flushed at the same time');

# there is another place, but not for this queue
is( sql(
		$node, q(
SELECT batch_enqueue('quick', '{}') AS ticket \gset
SELECT batch_wait('quick', :ticket, '1 min'))),
	'flushed',
	'another queue is flushed by a third worker');
is( sql(
		$node,
		q(SELECT count(*) FROM batcher.worker WHERE queue = 'hot')),
	'2',
	'the lanes of one queue have half of the workers');
$blocker->query_safe('SELECT pg_advisory_unlock(1)');
wait_drained($node, 'hot');
is( sql(
		$node, 'SELECT count(*), count(DISTINCT n) FROM done WHERE n > 0'),
	'40|40',
	'each row was flushed once');
$blocker->quit;

# Clients have a key each, and change it now and then; the numbers of a key's
# rows grow.  Now and then a flush takes its time.
create_checker($node);
sql(
	$node, q(
CREATE SEQUENCE serial;
SELECT batch_create_queue(q, $$
	WITH s AS MATERIALIZED
		(SELECT pg_sleep(CASE WHEN random() < 0.1 THEN 0.05 ELSE 0 END))
	INSERT INTO collected (queue, id, key, n)
	SELECT payload->>'q', (payload->>'id')::uuid, batch_key,
		(payload->>'n')::bigint
	FROM batch, s ORDER BY batch_pos$$,
	options => '{"lanes": 2, "max_batch_size": 20}')
FROM unnest('{d, v}'::text[]) q;
SELECT batch_alter_queue('v', '{"durable": false}')));
my $script = q(
\set k random(1, 5)
\set many random(1, 10)
BEGIN;
SELECT produce('d', :many, 'c' || :client_id || :k, nextval('serial'));
SELECT produce('d', 2, NULL, nextval('serial'));
%s
COMMIT;
);
my $volatile =
  q(SELECT produce('v', 2, 'c' || :client_id || :k, nextval('serial')););

sub wait_progress
{
	my $now = sql($node, q(SELECT count(*) FROM collected WHERE queue = 'd'));

	wait_sql(
		$node, qq(
SELECT count(*) > $now + 200 FROM collected WHERE queue = 'd'));
	return;
}

# An order by pos is that of the flushes of a key only if those follow each
# other, which they do: a key has one lane.
my $load = start_load($node, sprintf($script, $volatile), 4, 200);
foreach my $lanes (4, 1, 3, 8)
{
	wait_progress();
	sql($node, qq(SELECT batch_alter_queue('$_', '{"lanes": $lanes}')))
	  foreach 'd', 'v';
	sql(
		$node, q(
SELECT count(pg_terminate_backend(pid)) FROM
	(SELECT pid FROM batcher.worker ORDER BY random() LIMIT 1) s));
}
sql($node, 'VACUUM FULL batcher.spool');
wait_progress();
stop_load($load);
$node->restart;
wait_drained($node, 'd', 'v');
check_rows($node, 'the lanes were changed under load, all queues');
check_order($node, 'rows of a key were flushed in order', 'key IS NOT NULL');
unlike(slurp_file($node->basedir . '/load.log'),
	qr/ERROR: (?!.*terminating)/, 'no client has had an error');

$load = start_load($node, sprintf($script, ''), 4, 200);
foreach my $lanes (2, 5)
{
	wait_progress();
	sql($node, qq(SELECT batch_alter_queue('d', '{"lanes": $lanes}')));
	kill_process($node, sub { return worker_pid($node) });
}
wait_progress();
stop_load($load);
wait_drained($node, 'd');
check_rows($node, 'server processes were killed', "queue = 'd'");
check_order($node, 'rows of a key were flushed in order, crashes or not', 'key IS NOT NULL');
is(sql($node, 'SELECT count(*) FROM batcher.spool'), '0', 'the spool is empty');
is(sql($node, 'SELECT sum(pending_bytes) FROM batcher.status'),
	'0', 'all memory was given back');

# memory that is full, and lanes that spill
sql(
	$node, q(
SELECT batch_alter_queue('d', '{"memory_limit": "16kB", "lanes": 4}')));
$load = start_load($node, sprintf($script, ''), 4, 400);
wait_progress();
wait_sql($node,
	q(SELECT rows_spilled > 100 FROM batcher.stat_queue WHERE queue = 'd'));
sql($node, q(SELECT batch_alter_queue('d', '{"lanes": 2}')));
wait_progress();
stop_load($load);
wait_drained($node, 'd');
check_rows($node, 'lanes have spilled', "queue = 'd'");
check_order($node, 'rows of a key were flushed in order, spilled or not', 'key IS NOT NULL');

# dropped while rows wait in several lanes
sql(
	$node, q(
SELECT batch_pause('d');
SELECT count(batch_enqueue('d', '{}', i::text)) FROM generate_series(1, 50) i;
SELECT batch_drop_queue('d', force => true)));
sql(
	$node, q(
SELECT batch_create_queue('d', 'SELECT FROM batch', options => '{"lanes": 4}');
SELECT count(batch_enqueue('d', '{}', i::text)) FROM generate_series(1, 50) i));
wait_drained($node, 'd');
is( sql(
		$node,
		q(SELECT rows_flushed FROM batcher.stat_queue WHERE queue = 'd')),
	'50',
	'a dropped queue is made again');

$node->stop;
done_testing();
