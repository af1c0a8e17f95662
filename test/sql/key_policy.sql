-- What becomes of rows with equal key that wait together.
-- M2.4 (marking twice costs one processing)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE kp_target (n bigint GENERATED ALWAYS AS IDENTITY, rows text);
SELECT batch_create_queue('kp', $$INSERT INTO kp_target (rows)
    SELECT string_agg(concat_ws(' ', batch_key, payload, batch_topic, nullif(batch_priority, 0)), '; ' ORDER BY batch_pos) FROM batch$$,
    options => '{"flush_interval": "1 h"}');

-- Without a policy all are kept, in their order.
SELECT batch_enqueue_many('kp', '{1,2,3,4,5}', '{a,b,a,NULL,NULL}');
SELECT batch_flush('kp');
-- The last wins.  Who has no key stands alone.
SELECT batch_alter_queue('kp', '{"key_policy": "last"}');
SELECT batch_enqueue_many('kp', '{1,2,3,4,5}', '{a,b,a,NULL,NULL}', '{t,t,NULL,NULL,t}');
SELECT batch_enqueue('kp', '6', 'b', 'u', priority => 2) AS ticket6 \gset
SELECT batch_enqueue('kp', '7', 'b', 'v') AS ticket7 \gset
SELECT batch_wait('kp', :ticket6, '10 ms') AS while_both_wait;
SELECT batch_flush('kp');
SELECT batch_wait('kp', :ticket6), batch_wait('kp', :ticket7);
-- The first wins.
SELECT batch_alter_queue('kp', '{"key_policy": "first"}');
SELECT batch_enqueue_many('kp', '{1,2,3,4,5}', '{a,b,a,NULL,NULL}');
SELECT batch_flush('kp');
-- Objects are merged.  A merged row has the topic of the newest, and the
-- highest priority.
SELECT batch_alter_queue('kp', '{"key_policy": "merge"}');
SELECT batch_enqueue('kp', '{"n": 1, "keep": [1], "o": {"x": 1, "deep": {"a": 1, "b": null}}}', 'm', 't', 7) > 0 AS has_ticket;
SELECT batch_enqueue('kp', '{"n": null, "o": {"y": 2, "deep": {"b": 2, "c": [3]}}}', 'm', priority => -2) > 0 AS has_ticket;
SELECT batch_enqueue('kp', '{"o": {"x": {"now": "an object"}}, "new": true}', 'm', 'u') > 0 AS has_ticket;
SELECT batch_flush('kp');
-- Anything else is overwritten.
SELECT batch_enqueue_many('kp', '{"{\"a\": 1}", "[1]", "[2]", "{}", "null", "{\"b\": {}}", "{\"b\": 1}", "{\"b\": {\"c\": 2}}"}', '{a,a,b,b,c,c,d,d}');
SELECT batch_flush('kp');
-- Who has no key stands alone, and a policy is fine where nobody has one.
SELECT batch_enqueue_many('kp', '{"{\"a\": 1}", "{\"b\": 1}", "{\"a\": 2}"}');
SELECT batch_flush('kp');
-- A row that was rolled back supersedes nothing.
SELECT batch_enqueue('kp', '{"v": 1}', 'r') > 0 AS has_ticket;
BEGIN;
SELECT batch_enqueue('kp', '{"v": 2}', 'r') > 0 AS has_ticket;
ROLLBACK;
SELECT batch_flush('kp');
-- An immediate row takes its key with it.
SELECT batch_enqueue_many('kp', '{"{\"a\": 1}", "{\"b\": 1}"}', '{i,j}');
SELECT batch_enqueue('kp', '{"c": 1}', 'i', immediate => true) AS ticket \gset
SELECT batch_wait('kp', :ticket);
SELECT key, payload FROM batcher.pending ORDER BY ticket;
SELECT batch_flush('kp');
SELECT n, rows FROM kp_target ORDER BY n;
SELECT rows_enqueued, rows_flushed, rows_superseded FROM batcher.stat_queue WHERE queue = 'kp';

-- More rows than a batch takes, in a transaction and in many.
TRUNCATE kp_target RESTART IDENTITY;
SELECT batch_alter_queue('kp', '{"key_policy": "last", "max_batch_size": 10}');
SELECT batch_pause('kp');
SELECT count(batch_enqueue('kp', to_jsonb(g), 'k' || g % 15)) FROM generate_series(1, 3000) g;
DO $$
BEGIN
    FOR i IN 3001..3100 LOOP
        PERFORM batch_enqueue('kp', to_jsonb(i), 'k' || i % 15);
        COMMIT;
    END LOOP;
END $$;
SELECT batch_resume('kp');
SELECT batch_flush('kp') >= 0 AS is_flushed;
SELECT count(*) AS batches FROM kp_target;
SELECT count(*), min(split_part(r, ' ', 2)::int), max(split_part(r, ' ', 2)::int) FROM kp_target, regexp_split_to_table(rows, '; ') r;
SELECT count(*) FROM batcher.spool;

-- Not durable, and purged.
TRUNCATE kp_target RESTART IDENTITY;
SELECT batch_alter_queue('kp', '{"durable": false}');
SELECT batch_enqueue_many('kp', '{1,2,3}', '{a,b,a}');
SELECT batch_flush('kp');
SELECT batch_enqueue_many('kp', '{4,5,6}', '{a,b,a}');
SELECT batch_purge('kp');
SELECT rows FROM kp_target ORDER BY n;
SELECT batch_drop_queue('kp');
DROP TABLE kp_target;

-- A row that fails does not take others with it.  The last one that passes
-- stands for those before it.
CREATE TABLE kp_target (ticket bigint, key text, v int CHECK (v > 0));
SELECT batch_create_queue('kp', 'INSERT INTO kp_target SELECT batch_ticket, batch_key, (payload->>''v'')::int FROM batch',
    options => '{"flush_interval": "1 h", "key_policy": "last", "max_attempts": 2, "retry_delay": 1}');
SELECT batch_enqueue_many('kp', '{"{\"v\": 1}", "{\"v\": 2}", "{\"v\": -3}", "{\"v\": 4}"}', '{a,a,a,b}');
SELECT batch_flush('kp') >= 0 AS is_flushed;
SELECT key, v FROM kp_target ORDER BY key, v;
SELECT key, payload, attempts FROM batcher.dead_letter ORDER BY ticket;
-- Of merged rows only those that fail die, and the others are flushed as they
-- are.
TRUNCATE kp_target;
SELECT batch_purge_dead('kp');
SELECT batch_alter_queue('kp', '{"key_policy": "merge"}');
SELECT batch_enqueue_many('kp', '{"{\"v\": 1}", "{\"v\": -2}", "{\"w\": 3, \"v\": -4}", "{\"v\": 5}", "{\"v\": \"x\"}", "{\"v\": -1}", "{\"v\": 1}"}', '{a,a,b,b,b,c,c}');
SELECT batch_flush('kp') >= 0 AS is_flushed;
SELECT key, v FROM kp_target ORDER BY key, v;
SELECT key, payload, attempts FROM batcher.dead_letter ORDER BY ticket;

-- What comes later than rows that could not be merged is merged again, though
-- one of these waits still.
SELECT batch_purge_dead('kp');
TRUNCATE kp_target;
SELECT batch_reset_stats('kp');
SELECT batch_alter_queue('kp', '{"max_batch_size": 1, "retry_delay": "1 h", "retry_max_delay": "1 h"}');
SELECT batch_enqueue_many('kp', '{"{\"v\": 1}", "{\"v\": -2}", "{\"w\": 3}"}', '{a,a,a}');
SELECT wait_until($$SELECT attempts = 1 FROM batcher.pending WHERE payload->>'v' = '-2'$$);
SELECT batch_enqueue_many('kp', '{"{\"x\": 4}", "{\"v\": 5}", "{\"y\": 6}"}', '{a,a,a}');
SELECT batch_reset_breaker('kp');
SELECT wait_until($$SELECT count(*) = 1 FROM batcher.dead_letter WHERE payload->>'v' = '-2'$$);
SELECT batch_flush('kp') >= 0 AS is_flushed;
SELECT key, v FROM kp_target ORDER BY ticket;
SELECT rows_flushed, rows_superseded, rows_dead FROM batcher.stat_queue WHERE queue = 'kp';

-- A row that waits to be tried again does so too when the worker has to sort
-- its rows anew, here because many of another key have come.
TRUNCATE kp_target;
SELECT batch_create_queue('kp again', 'INSERT INTO kp_target SELECT batch_ticket, batch_key, (payload->>''v'')::int FROM batch',
    options => '{"durable": false, "key_policy": "last", "flush_interval": "10 ms", "max_attempts": 1000, "retry_delay": "1 h", "retry_max_delay": "1 h"}');
SELECT batch_enqueue_many('kp again', '{"{\"v\": 1}", "{\"v\": -2}"}', '{a,a}');
SELECT wait_until($$SELECT attempts = 1 FROM batcher.pending WHERE payload->>'v' = '-2'$$);
SELECT batch_enqueue_many('kp again', array_agg('{"v": 3}'::jsonb), array_agg('b'::text)) FROM generate_series(1, 50000);
SELECT wait_until($$SELECT count(*) = 2 FROM batcher.pending WHERE queue = 'kp again'$$);
SELECT batch_enqueue('kp again', '{"v": 4}', 'c') AS ticket \gset
SELECT batch_wait('kp again', :ticket);
SELECT payload, attempts FROM batcher.pending WHERE queue = 'kp again' ORDER BY ticket;
SELECT batch_drop_queue('kp again', true);

-- Many rows that each add a member become a few, none of them too expensive.
CREATE TABLE kp_many (payload jsonb);
SELECT batch_create_queue('kp many', 'INSERT INTO kp_many SELECT payload FROM batch ORDER BY batch_pos', options => '{"key_policy": "merge", "flush_interval": "1 h", "flush_size": 100000, "max_batch_size": 100000}');
SELECT batch_enqueue_many('kp many', array_agg(jsonb_build_object('member ' || n, repeat('x', 100))), array_agg('k'::text)) FROM generate_series(1, 2000) AS n;
SELECT batch_flush('kp many', '1 min') BETWEEN 2 AND 20 AS are_few;
SELECT count(DISTINCT member) FROM kp_many, jsonb_object_keys(payload) AS member;
SELECT batch_drop_queue('kp many');
DROP TABLE kp_many;

SELECT batch_create_queue('kp bad', options => '{"key_policy": "newest"}');
-- Rows of a type are not merged.
SELECT batch_create_queue('kp bad', target => 'kp_target', options => '{"key_policy": "merge"}');
SELECT batch_drop_queue('kp', true);
DROP TABLE kp_target;
