-- The breaker: opens when flushes fail in a row, or at once when the statement
-- itself does; rows gather, small batches try whether it may close.
-- M4.8 (circuit breaker), M5.4 (failures in a row, recovery, test batches), M5.5
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE br_target (pos serial, n int, batch int DEFAULT txid_current());
CREATE TABLE br_broken ();
-- Fails while the table br_broken is there.
CREATE FUNCTION br_apply(n int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    IF to_regclass('public.br_broken') IS NOT NULL THEN
        RAISE EXCEPTION 'broken';
    END IF;
    RETURN n;
END $$;
SELECT batch_create_queue('br', 'INSERT INTO br_target (n) SELECT br_apply(payload::int) FROM batch ORDER BY batch_pos',
    options => '{"flush_interval": "5 ms", "breaker_threshold": 3, "breaker_recovery": "1 h", "max_attempts": 1000, "retry_delay": "10 ms"}');
SELECT batch_create_queue('br other', 'INSERT INTO br_target (n) SELECT payload::int FROM batch', options => '{"flush_interval": "5 ms"}');

-- Three failed flushes in a row open it; no row dies of that.
SELECT batch_enqueue('br', '1') AS ticket \gset
SELECT wait_until($$SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'br'$$);
SELECT pending, breaker_reason, consecutive_failures, next_flush_at > now() + '50 min' AS later, oldest_runnable_age
    FROM batcher.status WHERE queue = 'br';
SELECT batches_failed, breaker_opened, rows_dead FROM batcher.stat_queue WHERE queue = 'br';
-- Rows gather, who asks for a flush is told, and other queues go on.
SELECT batch_enqueue_many('br', array(SELECT to_jsonb(n) FROM generate_series(2, 50) n));
SELECT batch_flush('br');
SELECT batch_wait('br', :ticket, '10 ms');
SELECT batch_enqueue('br other', '100') AS other \gset
SELECT batch_wait('br other', :other);
SELECT pending, breaker_state FROM batcher.status WHERE queue = 'br';
-- Who may not manage the queue does not see why.
CREATE ROLE regress_batcher_monitor IN ROLE pg_monitor;
SET ROLE regress_batcher_monitor;
SELECT breaker_state, breaker_reason FROM batcher.status WHERE queue = 'br';
SELECT batch_reset_breaker('br');
SELECT * FROM batcher.dead_letter;
RESET ROLE;

-- Who waits for a flush that opens it is told as soon as it does.
CREATE TABLE br_gone (n int);
SELECT batch_create_queue('br gone', 'INSERT INTO br_gone SELECT payload::int FROM batch', options => '{"flush_interval": "1 h"}');
DROP TABLE br_gone;
SELECT batch_enqueue('br gone', '1') AS gone \gset
SELECT batch_flush('br gone', '1 h');
SELECT batch_drop_queue('br gone', force => true);

-- By hand it closes at once, and opens again if nothing has changed.  A
-- rollback does not undo that.
BEGIN;
SELECT batch_reset_breaker('br');
ROLLBACK;
SELECT wait_until($$SELECT breaker_opened = 2 FROM batcher.stat_queue WHERE queue = 'br'$$);
-- A changed definition is tried at once too.
SELECT batch_alter_queue('br', options => '{"breaker_recovery": "100 ms", "breaker_probes": 2}');
SELECT wait_until($$SELECT breaker_opened >= 4 FROM batcher.stat_queue WHERE queue = 'br'$$);
SELECT count(*) FROM br_target WHERE n < 100;
-- When it is mended, small batches are flushed first, then all.
DROP TABLE br_broken;
SELECT wait_until($$SELECT pending = 0 AND breaker_state = 'closed' FROM batcher.status WHERE queue = 'br'$$);
SELECT count(*), count(DISTINCT n) FROM br_target WHERE n < 100;
SELECT count(*) >= 3 AS batches FROM (SELECT DISTINCT batch FROM br_target WHERE n < 100) s;
SELECT batch_wait('br', :ticket);
SELECT breaker_reason, consecutive_failures FROM batcher.status WHERE queue = 'br';
SELECT rows_flushed, rows_dead FROM batcher.stat_queue WHERE queue = 'br';

-- Rows that memory alone has wait for it to close, too.
CREATE TABLE br_broken ();
SELECT batch_create_queue('br memory', 'INSERT INTO br_target (n) SELECT br_apply(payload::int) FROM batch ORDER BY batch_pos',
    options => '{"flush_interval": "5 ms", "breaker_threshold": 3, "breaker_recovery": "1 h", "breaker_probes": 2, "max_attempts": 1000, "retry_delay": "10 ms", "durable": false}');
SELECT batch_enqueue('br memory', '201') > 0 AS has_ticket;
SELECT wait_until($$SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'br memory'$$);
SELECT batch_enqueue_many('br memory', array(SELECT to_jsonb(n) FROM generate_series(202, 250) n));
SELECT batch_flush('br memory');
SELECT pending, breaker_reason, consecutive_failures FROM batcher.status WHERE queue = 'br memory';
SELECT batches_failed, breaker_opened, rows_dead FROM batcher.stat_queue WHERE queue = 'br memory';
SELECT batch_alter_queue('br memory', options => '{"breaker_recovery": "100 ms"}');
SELECT wait_until($$SELECT breaker_opened >= 3 FROM batcher.stat_queue WHERE queue = 'br memory'$$);
SELECT count(*) FROM br_target WHERE n > 200;
DROP TABLE br_broken;
SELECT wait_until($$SELECT pending = 0 AND breaker_state = 'closed' FROM batcher.status WHERE queue = 'br memory'$$);
SELECT count(*), count(DISTINCT n), count(DISTINCT batch) >= 3 AS batches FROM br_target WHERE n > 200;
SELECT rows_flushed, rows_dead FROM batcher.stat_queue WHERE queue = 'br memory';
SELECT batch_drop_queue('br memory');

-- A statement that cannot work opens it at once, and nothing is charged.
SELECT batch_alter_queue('br', options => '{"breaker_recovery": "1 h", "max_attempts": 1}');
ALTER TABLE br_target RENAME n TO m;
SELECT batch_reset_stats('br');
SELECT batch_enqueue_many('br', '{51,52}');
SELECT wait_until($$SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'br'$$);
SELECT breaker_reason, consecutive_failures FROM batcher.status WHERE queue = 'br';
SELECT payload, attempts FROM batcher.pending ORDER BY ticket;
SELECT batches_failed, breaker_opened, rows_failed, rows_dead FROM batcher.stat_queue WHERE queue = 'br';
ALTER TABLE br_target RENAME m TO n;
SELECT batch_reset_breaker('br');
SELECT wait_until($$SELECT pending = 0 FROM batcher.status WHERE queue = 'br'$$);

-- So does one that lacks a right, wherever it is noticed.
CREATE FUNCTION br_denied() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    RAISE insufficient_privilege;
END $$;
SELECT batch_alter_queue('br', flush_sql => 'INSERT INTO br_target (n) SELECT br_denied() FROM batch');
SELECT batch_enqueue_many('br', '{53,54,55}');
SELECT wait_until($$SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'br'$$);
SELECT payload, attempts FROM batcher.pending ORDER BY ticket;
SELECT count(*) FROM batcher.dead_letter;
-- Purging goes on, dropping too.
SELECT batch_purge('br');
SELECT batch_enqueue('br', '56') > 0 AS has_ticket;
SELECT batch_drop_queue('br');
SELECT batch_drop_queue('br', true);

-- No room, and nothing that could make room: no waiting.
SELECT batch_create_queue('br', 'INSERT INTO br_target (n) SELECT br_denied() FROM batch',
    options => '{"flush_interval": "5 ms", "durable": false, "memory_limit": "64kB", "breaker_recovery": "1 h"}');
SELECT batch_enqueue('br', '57') > 0 AS has_ticket;
SELECT wait_until($$SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'br'$$);
DO $$
BEGIN
    PERFORM batch_enqueue('br', to_jsonb(repeat('x', 1000))) FROM generate_series(1, 1000);
END $$;

-- Bad input.
SELECT batch_reset_breaker('no such');
SELECT batch_reset_breaker(NULL);
SELECT batch_create_queue('br bad', options => '{"breaker_threshold": 0}');
SELECT batch_create_queue('br bad', options => '{"breaker_probes": 1001}');
SELECT batch_create_queue('br bad', options => '{"breaker_recovery": "0"}');
SELECT batch_create_queue('br bad', options => '{"max_attempts": 0}');
SELECT batch_create_queue('br bad', options => '{"retry_backoff": 0.5}');
SELECT batch_create_queue('br bad', options => '{"retry_backoff": "2"}');
SELECT batch_create_queue('br bad', options => '{"retry_delay": "2 s", "retry_max_delay": 1000}');

SELECT batch_drop_queue('br', true), batch_drop_queue('br other');
DROP TABLE br_target;
DROP FUNCTION br_apply(int), br_denied();
DROP ROLE regress_batcher_monitor;
