-- A flush that fails: its rows are kept, the error is told, and it is tried
-- again.
-- M3.3 (a failed batch is retried and not lost), M4.4 (retried with back-off)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE ff_target (n int CHECK (n > 0));
CREATE TABLE ff_other (n int);
SELECT batch_create_queue('ff', 'INSERT INTO ff_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_create_queue('ff memory', 'INSERT INTO ff_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 h", "durable": false}');
SELECT batch_create_queue('ff good', 'INSERT INTO ff_other SELECT payload::int FROM batch', options => '{"flush_interval": "5 ms"}');

-- Waits until a queue has failed so many times.
CREATE FUNCTION ff_failed(q text, times int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..3000 LOOP
        IF EXISTS (SELECT FROM batcher.stat_queue WHERE queue = q AND batches_failed >= times) THEN
            RETURN true;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN false;
END $$;

-- One bad row among good ones.
SELECT batch_enqueue_many('ff', '{1,-2,3}') AS rows, batch_enqueue_many('ff memory', '{4,-5,6}') AS others;
SELECT batch_flush('ff', '0'), batch_flush('ff memory', '0');
SELECT ff_failed('ff', 1), ff_failed('ff memory', 1);
SELECT count(*) FROM ff_target;
SELECT queue, payload, attempts FROM batcher.pending ORDER BY ticket;
SELECT queue, pending, is_flushing, consecutive_failures > 0 AS failing,
       retry_at < now() + '2 min' AS retry_at, last_error
    FROM batcher.status WHERE queue <> 'ff good' ORDER BY queue;
SELECT queue, rows_flushed, rows_retried > 0 AS retried, batches, batches_failed > 0 AS failed,
       last_error, last_error_at <= clock_timestamp() AS dated
    FROM batcher.stat_queue WHERE queue <> 'ff good' ORDER BY queue;
-- It is tried again without being asked anew.
SELECT ff_failed('ff', 2), ff_failed('ff memory', 2);
-- Another queue is not disturbed, nor are rows that come meanwhile lost.
SELECT batch_enqueue('ff good', '7') AS ticket \gset
SELECT batch_wait('ff good', :ticket);
SELECT batch_enqueue('ff', '8') > 0 AS has_ticket;
SELECT batch_flush('ff', '100 ms');

-- The table is repaired: the next try takes all, each row once and in order.
ALTER TABLE ff_target DROP CONSTRAINT ff_target_n_check;
SELECT batch_flush('ff') IS NOT NULL AS flushed, batch_flush('ff memory') IS NOT NULL AS other;
SELECT n FROM ff_target WHERE n IN (1, -2, 3, 8) ORDER BY ctid;
SELECT n FROM ff_target WHERE n IN (4, -5, 6) ORDER BY ctid;
SELECT queue, pending, consecutive_failures, retry_at FROM batcher.status ORDER BY queue;
SELECT count(*) FROM batcher.spool;
-- What went wrong last is still known.
SELECT queue, rows_flushed, last_error FROM batcher.stat_queue ORDER BY queue;

-- Who waits for a flush has it although the first try fails: here the second
-- is good, because a sequence has gone on.
CREATE SEQUENCE ff_sequence;
SELECT batch_create_queue('ff twice', 'INSERT INTO ff_other SELECT payload::int FROM batch WHERE 1 / (nextval(''ff_sequence'') - 1) IS NOT NULL', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue('ff twice', '9') > 0 AS has_ticket;
SELECT batch_flush('ff twice');
SELECT n FROM ff_other ORDER BY n;
SELECT batches, batches_failed, rows_flushed, rows_retried, last_error FROM batcher.stat_queue WHERE queue = 'ff twice';
SELECT batch_drop_queue('ff twice');
DROP SEQUENCE ff_sequence;

-- The statement is repaired.
TRUNCATE ff_target;
ALTER TABLE ff_target RENAME TO ff_renamed;
SELECT batch_reset_stats('ff');
SELECT batch_enqueue_many('ff', '{11,12}');
SELECT batch_flush('ff', '0');
SELECT ff_failed('ff', 1);
SELECT last_error FROM batcher.status WHERE queue = 'ff';
SELECT batch_alter_queue('ff', flush_sql => 'INSERT INTO ff_renamed SELECT payload::int FROM batch');
SELECT batch_flush('ff') IS NOT NULL AS flushed;
SELECT n FROM ff_renamed ORDER BY n;

-- The target is changed under a prepared statement: it is prepared anew.
ALTER TABLE ff_renamed ADD COLUMN more text DEFAULT 'more';
ALTER TABLE ff_renamed ALTER n TYPE bigint;
SELECT batch_enqueue('ff', '13') > 0 AS has_ticket;
SELECT batch_flush('ff');
DROP TABLE ff_renamed;
CREATE TABLE ff_renamed (n numeric, again text DEFAULT 'again');
SELECT batch_enqueue('ff', '14') > 0 AS has_ticket;
SELECT batch_flush('ff');
SELECT * FROM ff_renamed;

-- A row that waits is purged, or its queue is dropped, while it is failing.
SELECT batch_alter_queue('ff', flush_sql => 'SELECT 1 / (batch_pos - 1) FROM batch');
SELECT batch_reset_stats('ff');
SELECT batch_enqueue('ff', '15') AS ticket \gset
SELECT batch_flush('ff', '0');
SELECT ff_failed('ff', 1);
SELECT batch_purge('ff');
SELECT batch_wait('ff', :ticket);
SELECT batch_enqueue('ff', '16') AS ticket \gset
SELECT batch_flush('ff', '0');
SELECT ff_failed('ff', 2);
SELECT batch_drop_queue('ff', true);
SELECT count(*) FROM batcher.spool;

-- Errors that are raised at odd places: in a trigger of the target, at the
-- end of the statement, in a function that swallowed one before.
CREATE FUNCTION ff_swallow(n int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN
        NULL;
    END;
    IF n < 0 THEN
        RAISE EXCEPTION 'refused: %', n USING ERRCODE = 'YY001', DETAIL = 'secret', HINT = 'none';
    END IF;
    RETURN n;
END $$;
SELECT batch_create_queue('ff', 'INSERT INTO ff_other SELECT ff_swallow(payload::int) FROM batch', options => '{"flush_interval": "1 h"}');
TRUNCATE ff_other;
SELECT batch_enqueue('ff', '17') > 0 AS has_ticket;
SELECT batch_flush('ff');
SELECT batch_enqueue('ff', '-18') > 0 AS has_ticket;
SELECT batch_flush('ff', '0');
SELECT ff_failed('ff', 1);
SELECT last_error FROM batcher.status WHERE queue = 'ff';
SELECT n FROM ff_other;

SELECT batch_drop_queue('ff', true), batch_drop_queue('ff memory'), batch_drop_queue('ff good');
DROP TABLE ff_renamed, ff_other;
DROP FUNCTION ff_failed(text, int), ff_swallow(int);
