-- batch_stats: all that is known of a queue, as one object.
-- M1.9 (batches and rows processed, average size, last batch, pending,
-- processing now, configuration), M4.6 (pending, configured size, timeout and
-- maximum, whether a flush is scheduled)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE ROLE regress_batcher_owner;
CREATE ROLE regress_batcher_manager;
CREATE ROLE regress_batcher_enqueuer;
CREATE ROLE regress_batcher_monitor IN ROLE pg_monitor;
GRANT EXECUTE ON FUNCTION batch_create_queue(text, text, regclass, regtype, jsonb, boolean) TO regress_batcher_owner;
SET ROLE regress_batcher_owner;
SELECT batch_create_queue('sj', 'SELECT FROM batch',
    options => '{"preset": "small", "flush_interval": "1 h", "memory_limit": "3MB", "notify_channel": "c", "retry_delay": 1500.25}');
SELECT batch_create_queue('sj other');
SELECT batch_grant('sj', 'regress_batcher_manager', 'manage'), batch_grant('sj', 'regress_batcher_enqueuer', 'enqueue');

SELECT batch_enqueue_many('sj', '{1,2,3}');
SELECT batch_flush('sj');
SELECT batch_enqueue('sj', '4') > 0 AS has_ticket;
SELECT wait_until($$SELECT batch_stats('sj')->>'next_flush_at' IS NOT NULL$$);
-- What a team would want to see at a glance.
SELECT s->'batches' AS batches, s->'rows_flushed' AS rows_flushed, s->'avg_batch_size' AS avg_batch_size,
       (s->>'last_flush_at')::timestamptz <= clock_timestamp() AS last_flush_at,
       s->'pending' AS pending, s->'is_flushing' AS is_flushing,
       (s->>'next_flush_at')::timestamptz > now() AS scheduled,
       s->'config'->'flush_size'->'value' AS size, s->'config'->'flush_interval'->'value' AS timeout,
       s->'config'->'max_batch_size'->'value' AS maximum
    FROM batch_stats('sj') AS s;
-- Nothing of the views is missing, and it says what they say.
SELECT to_jsonb(v) - '{oldest_age,oldest_runnable_age}'::text[] <@ batch_stats('sj') AS status
    FROM batcher.status AS v WHERE queue = 'sj';
SELECT to_jsonb(v) <@ batch_stats('sj') AS counters FROM batcher.stat_queue AS v WHERE queue = 'sj';
SELECT (s->'worker'->>'pid')::int = (s->>'worker_pid')::int AS same_worker,
       s->'worker' ?& '{database,state,queue,rows,since}' AS all_of_it
    FROM batch_stats('sj') AS s;
-- A value is shown in a form in which it can be given.
SELECT key, value->'value' AS value, value->>'source' AS source
    FROM jsonb_each(batch_stats('sj')->'config')
    WHERE value->>'source' <> 'default' ORDER BY key COLLATE "C";
SELECT batch_create_queue('sj copy', options =>
    (SELECT jsonb_object_agg(key, value->'value') FROM jsonb_each(batch_stats('sj')->'config')));
SELECT count(*) AS differ
    FROM jsonb_each(batch_stats('sj')->'config') a JOIN jsonb_each(batch_stats('sj copy')->'config') b USING (key)
    WHERE a.value->'value' IS DISTINCT FROM b.value->'value';
SELECT batch_drop_queue('sj copy');
-- Each option is there.
SELECT count(*) AS differ
    FROM batcher.option o FULL JOIN jsonb_object_keys(batch_stats('sj')->'config') AS k ON k = o.name
    WHERE o.name IS NULL OR k IS NULL;

-- All that one sees, by name.
SELECT jsonb_object_keys(batch_stats());
SELECT (batch_stats()->'sj other') - 'worker' = batch_stats('sj other') - 'worker' AS same;
-- Who may manage sees as much, who may enqueue nothing, who monitors no options.
SET ROLE regress_batcher_manager;
SELECT jsonb_object_keys(batch_stats());
SELECT batch_stats('sj')->'config'->'flush_size' AS flush_size;
SELECT batch_stats('sj other');
\echo :SQLSTATE
SET ROLE regress_batcher_enqueuer;
SELECT batch_stats();
SELECT batch_stats('sj');
\echo :SQLSTATE
SET ROLE regress_batcher_monitor;
SELECT name, stats->'config' AS config, stats->'rows_flushed' AS rows_flushed
    FROM jsonb_each(batch_stats()) AS s (name, stats) WHERE name LIKE 'sj%' ORDER BY name;
SELECT batch_stats('sj')->'config' AS config, batch_stats('sj')->'pending' AS pending;
SELECT batch_stats('no such');
\echo :SQLSTATE
RESET ROLE;
SELECT batch_stats(NULL) ?& '{sj,sj other}' AS all;

SELECT batch_drop_queue('sj', force => true), batch_drop_queue('sj other');
REVOKE EXECUTE ON FUNCTION batch_create_queue(text, text, regclass, regtype, jsonb, boolean) FROM regress_batcher_owner;
DROP ROLE regress_batcher_owner, regress_batcher_manager, regress_batcher_enqueuer, regress_batcher_monitor;
