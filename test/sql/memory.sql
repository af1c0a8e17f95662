-- When memory is full: spill, wait, or an error.
-- M5.5 (a limit of memory), M5.9 (bounded memory)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE me_target (n int);
-- Enqueues so many rows of a kilobyte, in one transaction each; returns how
-- many went in, and with which error it ended.
CREATE PROCEDURE me_fill(q text, first int, last int) LANGUAGE plpgsql AS $$
DECLARE
    n int := 0;
BEGIN
    FOR i IN first..last LOOP
        BEGIN
            PERFORM batch_enqueue(q, jsonb_build_object('n', i, 'fill', repeat('x', 1000)));
        EXCEPTION WHEN configuration_limit_exceeded THEN
            RAISE INFO 'full %: %', CASE WHEN n > 0 THEN 'after some' ELSE 'at once' END, SQLERRM;
            EXIT;
        END;
        COMMIT;
        n := n + 1;
    END LOOP;
    IF n = last - first + 1 THEN
        RAISE INFO 'all % went in', n;
    END IF;
END $$;

-- A durable queue spills: nothing fails, nothing is lost, order is kept.
SELECT batch_create_queue('me spill', 'INSERT INTO me_target SELECT (payload->>''n'')::int FROM batch ORDER BY batch_pos', options => '{"flush_interval": "1 h", "flush_size": 10000, "max_batch_size": 10000, "memory_limit": "16kB"}');
CALL me_fill('me spill', 1, 200);
SELECT pending, spilled > 150 AS spilled, pending_bytes <= 16384 AS bounded FROM batcher.status WHERE queue = 'me spill';
SELECT rows_enqueued, rows_spilled > 150 AS spilled FROM batcher.stat_queue WHERE queue = 'me spill';
SELECT count(*), min((payload->>'n')::int), max((payload->>'n')::int) FROM batcher.pending WHERE queue = 'me spill';
-- A ticket that was never given, or was rolled back, is told from one that
-- waits in the spool only; what cannot have been given yet, at once.
SELECT batch_wait('me spill', max(ticket), '0'), batch_wait('me spill', min(ticket), '0') FROM batcher.pending WHERE queue = 'me spill';
SELECT batch_enqueue_many('me spill', array_fill('"x"'::jsonb, '{50}'));
SELECT batch_wait('me spill', max(ticket), '0'), batch_wait('me spill', max(ticket) - 10, '0') FROM batcher.pending WHERE queue = 'me spill';
BEGIN;
SELECT batch_enqueue('me spill', '"x"') AS ticket \gset
ROLLBACK;
SELECT batch_wait('me spill', :ticket, '0'), batch_wait('me spill', :ticket, '10 ms');
SELECT batch_wait('me spill', 9223372036854775807, '1 h'), batch_wait('me spill', -1, '1 h');
SELECT batch_purge('me spill') > 0 AS purged;
SELECT batch_wait('me spill', :ticket, '1 h');
CALL me_fill('me spill', 1, 200);
-- One large transaction, of which most is written early; a part rolls back.
BEGIN;
SELECT count(batch_enqueue('me spill', jsonb_build_object('n', g, 'fill', repeat('x', 1000)))) FROM generate_series(201, 300) g;
SAVEPOINT s;
SELECT count(batch_enqueue('me spill', jsonb_build_object('n', g, 'fill', repeat('x', 1000)))) FROM generate_series(301, 400) g;
ROLLBACK TO s;
SELECT count(batch_enqueue('me spill', jsonb_build_object('n', g, 'fill', repeat('x', 1000)))) FROM generate_series(401, 500) g;
COMMIT;
SELECT batch_flush('me spill');
SELECT count(*), count(DISTINCT n), min(n), max(n) FROM me_target;
SELECT count(*) AS out_of_order FROM (SELECT n < lag(n) OVER (ORDER BY ctid) AS back FROM me_target) t WHERE back;
SELECT pending, spilled FROM batcher.status WHERE queue = 'me spill';
SELECT count(*) FROM batcher.spool;
-- Afterwards rows stay in memory again, as soon as the worker has seen that
-- the spool is empty.
DO $$
BEGIN
    FOR i IN 1..3000 LOOP
        PERFORM batch_reset_stats('me spill');
        PERFORM batch_enqueue('me spill', '{"n": 501}');
        COMMIT;
        EXIT WHEN (SELECT rows_spilled = 0 FROM batcher.stat_queue WHERE queue = 'me spill');
        PERFORM batch_purge('me spill');
        COMMIT;
    END LOOP;
END $$;
SELECT rows_enqueued, rows_spilled FROM batcher.stat_queue WHERE queue = 'me spill';
SELECT batch_flush('me spill');
-- Purged and dropped while spilled.
CALL me_fill('me spill', 601, 700);
SELECT batch_purge('me spill');
SELECT pending, spilled, pending_bytes FROM batcher.status WHERE queue = 'me spill';
CALL me_fill('me spill', 701, 800);
SELECT batch_drop_queue('me spill');
SELECT batch_drop_queue('me spill', true);
SELECT count(*) FROM batcher.spool;
-- A large transaction that rolls back leaves nothing that is seen.
SELECT batch_create_queue('me spill', 'SELECT FROM batch', options => '{"flush_interval": "1 h", "memory_limit": "16kB"}');
BEGIN;
SELECT count(batch_enqueue('me spill', to_jsonb(repeat('x', 1000)))) FROM generate_series(1, 200) g;
ROLLBACK;
SELECT pending, spilled, pending_bytes FROM batcher.status WHERE queue = 'me spill';
SELECT batch_flush('me spill');
SELECT count(*) FROM batcher.pending;
SELECT batch_drop_queue('me spill');

-- when_full error.
TRUNCATE me_target;
SELECT batch_create_queue('me error', 'INSERT INTO me_target SELECT (payload->>''n'')::int FROM batch', options => '{"flush_interval": "1 h", "durable": false, "memory_limit": "16kB", "when_full": "error"}');
CALL me_fill('me error', 1, 200);
DO $$
DECLARE
    state text; message text; detail text; hint text;
BEGIN
    PERFORM batch_enqueue('me error', to_jsonb(repeat('x', 8000)));
EXCEPTION WHEN others THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RAISE INFO '% % % %', state, message, detail, hint;
END $$;
-- What is in is flushed, and there is room again.
SELECT batch_flush('me error') > 0 AS flushed;
SELECT batch_enqueue('me error', '{"n": 1000}') > 0 AS has_ticket;
SELECT batch_flush('me error');
SELECT count(*) = max(n) FILTER (WHERE n < 1000) + 1 AS all_there FROM me_target;
-- A durable queue may have that too.
SELECT batch_alter_queue('me error', '{"durable": true}');
CALL me_fill('me error', 1, 200);
SELECT rows_spilled FROM batcher.stat_queue WHERE queue = 'me error';
SELECT batch_drop_queue('me error', true);
-- A row for which there can never be room, whatever is flushed; a queue that
-- spills takes it.
SELECT batch_create_queue('me error', 'SELECT FROM batch', options => '{"durable": false, "memory_limit": "16kB", "when_full": "error"}');
SELECT batch_enqueue('me error', to_jsonb(repeat('x', 17000)));
\echo :SQLSTATE
SELECT batch_alter_queue('me error', '{"when_full": "wait"}');
SELECT batch_enqueue('me error', to_jsonb(repeat('x', 17000)));
\echo :SQLSTATE
SELECT batch_alter_queue('me error', '{"when_full": "spill", "durable": true}');
SELECT batch_enqueue('me error', to_jsonb(repeat('x', 17000))) > 0 AS has_ticket;
SELECT batch_flush('me error');
SELECT batch_drop_queue('me error');

-- when_full wait: after enqueue_timeout.
SELECT batch_create_queue('me wait', 'INSERT INTO me_target SELECT (payload->>''n'')::int FROM batch', options => '{"flush_interval": "1 h", "durable": false, "memory_limit": "16kB"}');
SET batcher.enqueue_timeout = '50 ms';
CALL me_fill('me wait', 1, 200);
SELECT batch_enqueue('me wait', to_jsonb(repeat('x', 8000)));
\echo :SQLSTATE
-- At once where waiting cannot help: the queue is paused.
SET batcher.enqueue_timeout = '1 h';
SELECT batch_pause('me wait');
SELECT batch_enqueue('me wait', to_jsonb(repeat('x', 8000)));
\echo :SQLSTATE
SELECT batch_resume('me wait');
-- Or the own transaction holds the room.
SELECT batch_flush('me wait') > 0 AS flushed;
BEGIN;
SELECT count(batch_enqueue('me wait', to_jsonb(repeat('x', 1000)))) FROM generate_series(1, 100);
\echo :SQLSTATE
ROLLBACK;
-- It waits for the flush, and goes on.
SELECT batch_alter_queue('me wait', '{"flush_interval": "10 ms"}');
CALL me_fill('me wait', 1001, 1200);
SELECT batch_flush('me wait') IS NOT NULL AS flushed;
SELECT count(*), count(DISTINCT n) FROM me_target WHERE n > 1000;
RESET batcher.enqueue_timeout;
SELECT batch_drop_queue('me wait');

DROP TABLE me_target;
DROP PROCEDURE me_fill(text, int, int);
