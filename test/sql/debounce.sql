-- A key leaves when nothing new has come for it, or has waited long enough.
-- M2.1 (a timer for each key), M2.2 (a sweeper), M2.3 (nobody waits longer),
-- M2.5 (one path), M2.6 (options, by force), M2.7 (statistics)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE de_target (n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT clock_timestamp(), key text, v int, enqueued_at timestamptz);
SELECT batch_create_queue('de', 'INSERT INTO de_target (key, v, enqueued_at) SELECT batch_key, payload::int, batch_enqueued_at FROM batch ORDER BY batch_pos',
    options => '{"key_policy": "last", "debounce": "1 h", "max_wait": "2 h", "flush_size": 1, "flush_interval": 1}');

-- Neither size nor window count; force does, and so do immediate rows.
SELECT batch_enqueue_many('de', '{1,2,3,4}', '{a,b,a,NULL}');
SELECT wait_until($$SELECT timers = 3 AND pending = 4 FROM batcher.status WHERE queue = 'de'$$);
SELECT batch_enqueue('de', '5', 'b', immediate => true) AS ticket \gset
SELECT batch_wait('de', :ticket);
SELECT key, v FROM de_target ORDER BY n;
SELECT wait_until($$SELECT timers = 2 AND pending = 3 FROM batcher.status WHERE queue = 'de'$$);
SELECT batch_flush('de');
SELECT key, v FROM de_target ORDER BY n;
SELECT timers, pending FROM batcher.status WHERE queue = 'de';
SELECT batches_forced, batches_immediate, batches_debounced, batches_swept, rows_superseded FROM batcher.stat_queue WHERE queue = 'de';

-- Nothing new comes: after the time of debounce, and not before.
TRUNCATE de_target RESTART IDENTITY;
SELECT batch_alter_queue('de', '{"debounce": "50 ms"}');
SELECT batch_enqueue_many('de', '{1,2,3}', '{a,b,a}');
SELECT wait_until($$SELECT count(*) = 2 FROM de_target$$);
SELECT key, v, at - enqueued_at >= '50 ms' AS has_waited FROM de_target ORDER BY n;
SELECT batches_debounced, batches_swept FROM batcher.stat_queue WHERE queue = 'de';
-- So does each row without key.
TRUNCATE de_target RESTART IDENTITY;
SELECT batch_enqueue_many('de', '{1,2}');
SELECT wait_until($$SELECT count(*) = 2 FROM de_target$$);
SELECT key, v, at - enqueued_at >= '50 ms' AS has_waited FROM de_target ORDER BY n;

-- Something new comes all the time: after max_wait.  A key that is quiet does
-- not wait for one that is not.
TRUNCATE de_target RESTART IDENTITY;
SELECT batch_alter_queue('de', '{"debounce": "1 h", "max_wait": "1 h"}');
SELECT batch_alter_queue('de', '{"max_wait": "200 ms", "debounce": "200 ms"}');
SELECT batch_reset_stats('de');
DO $$
DECLARE
    began timestamptz := clock_timestamp();
    i int := 0;
BEGIN
    PERFORM batch_enqueue('de', '0', 'quiet');
    COMMIT;
    WHILE (SELECT count(*) < 2 FROM de_target WHERE key = 'noisy') AND clock_timestamp() < began + interval '20 s' LOOP
        i := i + 1;
        PERFORM batch_enqueue('de', to_jsonb(i), 'noisy');
        COMMIT;
    END LOOP;
END $$;
SELECT wait_until($$SELECT pending = 0 FROM batcher.status WHERE queue = 'de'$$);
SELECT count(*) FROM de_target WHERE key = 'quiet';
SELECT count(*) >= 2 AS swept FROM de_target WHERE key = 'noisy';
SELECT batches_swept >= 1 AS swept, rows_superseded + rows_flushed = rows_enqueued AS adds_up FROM batcher.stat_queue WHERE queue = 'de';

-- Keys that are due together leave together, so many at a time.
TRUNCATE de_target RESTART IDENTITY;
SELECT batch_pause('de');
SELECT batch_alter_queue('de', '{"preset": "debounced", "max_batch_size": null, "debounce": 10, "flush_size": null, "flush_interval": null}');
SELECT count(batch_enqueue('de', to_jsonb(g), 'k' || g % 250)) FROM generate_series(1, 1000) g;
SELECT wait_until($$SELECT bool_and(clock_timestamp() > enqueued_at + interval '20 ms') FROM batcher.pending WHERE queue = 'de'$$);
SELECT batch_reset_stats('de');
SELECT batch_resume('de');
SELECT wait_until($$SELECT pending = 0 FROM batcher.status WHERE queue = 'de'$$);
SELECT count(*), count(DISTINCT key), min(v) FROM de_target;
SELECT batches, batches_debounced + batches_swept AS by_timer FROM batcher.stat_queue WHERE queue = 'de';

-- What cannot be.
SELECT batch_create_queue('de bad', options => '{"debounce": "1 s"}');
\echo :SQLSTATE
SELECT batch_create_queue('de bad', options => '{"debounce": "1 s", "key_policy": "all"}');
SELECT batch_create_queue('de bad', options => '{"debounce": "2 s", "key_policy": "last", "max_wait": "1 s"}');
SELECT batch_alter_queue('de', '{"key_policy": "all"}');
-- A default gives way.
SELECT batch_alter_queue('de', '{"debounce": "10 s", "max_wait": null}');
SELECT batch_stats('de') #> '{config,max_wait}';
SELECT batch_drop_queue('de', true);
DROP TABLE de_target;
