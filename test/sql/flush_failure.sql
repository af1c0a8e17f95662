-- A flush that fails by what may pass: its rows are kept, nobody is charged,
-- the error is told, and it is tried again.
-- M3.3 (a failed batch is retried and not lost), M4.4 (retried with back-off)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE ff_target (n int);
CREATE TABLE ff_other (n int);
-- Fails as if another transaction stood in the way.
CREATE FUNCTION ff_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.n < 0 THEN
        RAISE EXCEPTION 'in the way: %', NEW.n USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER ff_refuse BEFORE INSERT ON ff_target FOR EACH ROW EXECUTE FUNCTION ff_refuse();
SELECT batch_create_queue('ff', 'INSERT INTO ff_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 h", "retry_delay": "20 ms", "breaker_threshold": 100, "max_attempts": 4}');
SELECT batch_create_queue('ff memory', 'INSERT INTO ff_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 h", "durable": false, "retry_delay": "20 ms", "breaker_threshold": 100, "max_attempts": 4}');
SELECT batch_create_queue('ff good', 'INSERT INTO ff_other SELECT payload::int FROM batch', options => '{"flush_interval": "5 ms"}');

-- A worker serves them all.
SELECT wait_until($$SELECT bool_and(worker_pid IS NOT NULL) FROM batcher.status$$);

-- All rows fail: they wait, and are tried again as a whole.
SELECT batch_enqueue_many('ff', '{-1,-2,-3}') AS rows, batch_enqueue_many('ff memory', '{-4,-5,-6}') AS others;
\set VERBOSITY terse
SELECT batch_flush('ff', '0'), batch_flush('ff memory', '0');
\set VERBOSITY default
SELECT wait_until($$SELECT bool_and(batches_failed >= 2) FROM batcher.stat_queue WHERE queue <> 'ff good'$$);
SELECT count(*) FROM ff_target;
SELECT queue, payload, attempts FROM batcher.pending ORDER BY ticket;
SELECT queue, pending, consecutive_failures > 0 AS failing, last_error, breaker_state
    FROM batcher.status WHERE queue <> 'ff good' ORDER BY queue;
SELECT queue, rows_flushed, rows_retried > 0 AS retried, rows_failed, rows_dead, batches, batches_failed > 0 AS failed,
       last_error, last_error_at <= clock_timestamp() AS dated
    FROM batcher.stat_queue WHERE queue <> 'ff good' ORDER BY queue;
-- Another queue is not disturbed, nor are rows that come meanwhile lost.  After
-- max_attempts the batch is cut into smaller ones, so that what can pass does.
SELECT batch_enqueue('ff good', '7') AS ticket \gset
SELECT batch_wait('ff good', :ticket);
SELECT batch_enqueue_many('ff', '{8,9}');
SELECT batch_flush('ff', '0') >= 0 AS asked;
SELECT wait_until('SELECT count(*) = 2 FROM ff_target');
SELECT payload, attempts FROM batcher.pending WHERE queue = 'ff' ORDER BY ticket;
SELECT rows_failed, rows_dead, batches_split > 0 AS split, rows_tried_alone > 0 AS alone FROM batcher.stat_queue WHERE queue = 'ff';

-- Rows that go on failing like this are tried again by themselves, and stand in
-- nobody's way.
SELECT batch_alter_queue('ff', options => '{"breaker_threshold": 2, "flush_interval": "1 ms", "retry_max_delay": "20 ms"}');
DO $$
DECLARE
    tried bigint := (SELECT rows_tried_alone FROM batcher.stat_queue WHERE queue = 'ff');
    ticket bigint;
BEGIN
    FOR n IN 101..110 LOOP
        ticket := batch_enqueue('ff', to_jsonb(n));
        COMMIT;
        IF batch_wait('ff', ticket) <> 'flushed' THEN
            RAISE 'row % is not flushed', n;
        END IF;
        PERFORM wait_until(format('SELECT rows_tried_alone > %s FROM batcher.stat_queue WHERE queue = %L', tried + 3 * (n - 100), 'ff'));
        COMMIT;
    END LOOP;
END $$;
SELECT breaker_state FROM batcher.status WHERE queue = 'ff';
SELECT count(*), count(DISTINCT n) FROM ff_target WHERE n > 100;
DELETE FROM ff_target WHERE n > 100;
SELECT batch_alter_queue('ff', options => '{"breaker_threshold": 100, "flush_interval": "1 h", "retry_max_delay": null}');

-- What stood in the way is gone: the next tries take all, each row once.
DROP TRIGGER ff_refuse ON ff_target;
SELECT batch_flush('ff') IS NOT NULL AS flushed, batch_flush('ff memory') IS NOT NULL AS other;
SELECT n FROM ff_target ORDER BY n;
SELECT queue, pending, consecutive_failures, retry_at FROM batcher.status ORDER BY queue;
SELECT count(*) FROM batcher.spool;
-- What went wrong last is still known.
SELECT queue, rows_flushed, rows_failed, rows_dead, last_error FROM batcher.stat_queue ORDER BY queue;

-- Who waits for a flush has it although the first try fails: here the second
-- is good, because a sequence has gone on.
CREATE SEQUENCE ff_sequence;
SELECT batch_create_queue('ff twice', 'INSERT INTO ff_other SELECT payload::int FROM batch WHERE 1 / (nextval(''ff_sequence'') - 1) IS NOT NULL', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue('ff twice', '9') > 0 AS has_ticket;
SELECT batch_flush('ff twice');
SELECT n FROM ff_other ORDER BY n;
SELECT batches, batches_failed, rows_flushed, rows_failed, rows_retried, last_error FROM batcher.stat_queue WHERE queue = 'ff twice';
SELECT batch_drop_queue('ff twice');
DROP SEQUENCE ff_sequence;

-- A statement that cannot work any more is repaired; no row has died.
TRUNCATE ff_target;
ALTER TABLE ff_target RENAME TO ff_renamed;
SELECT batch_enqueue_many('ff', '{11,12}');
SET client_min_messages = error;
SELECT batch_flush('ff', '0') >= 0 AS asked;
RESET client_min_messages;
SELECT wait_until($$SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'ff'$$);
SELECT last_error, breaker_reason FROM batcher.status WHERE queue = 'ff';
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
SELECT batch_alter_queue('ff', flush_sql => 'SELECT 1 / (batch_pos - 1) FROM batch', options => '{"max_attempts": 1000, "retry_delay": "1 h", "retry_max_delay": "1 h"}');
SELECT batch_enqueue('ff', '15') AS ticket \gset
SELECT batch_flush('ff', '0') >= 0 AS asked;
SELECT wait_until($$SELECT attempts = 1 FROM batcher.pending WHERE queue = 'ff'$$);
SELECT batch_purge('ff');
SELECT batch_wait('ff', :ticket);
SELECT batch_enqueue('ff', '16') > 0 AS has_ticket;
SELECT batch_flush('ff', '0') >= 0 AS asked;
SELECT wait_until($$SELECT attempts = 1 FROM batcher.pending WHERE queue = 'ff'$$);
SELECT batch_drop_queue('ff', true);
SELECT count(*) FROM batcher.spool;

-- Nobody cancels this flush: it is the row that says so.
CREATE FUNCTION ff_cancel(n int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    IF n < 0 THEN
        RAISE EXCEPTION 'the other server took too long' USING ERRCODE = 'query_canceled';
    END IF;
    RETURN n;
END $$;
SELECT batch_create_queue('ff cancel', 'INSERT INTO ff_other SELECT ff_cancel(payload::int) FROM batch',
	options => '{"flush_interval": "1 h", "max_attempts": 2, "retry_delay": "1 ms"}');
SELECT batch_enqueue_many('ff cancel', '{21,-22,23}', '{a,b,c}') IS NOT NULL AS enqueued;
SELECT batch_flush('ff cancel');
SELECT payload, sqlstate, message, attempts FROM batcher.dead_letter WHERE queue = 'ff cancel';
SELECT n FROM ff_other WHERE n > 20 ORDER BY n;
SELECT batch_drop_queue('ff cancel');
DROP FUNCTION ff_cancel(int);

SELECT batch_drop_queue('ff memory'), batch_drop_queue('ff good');
DROP TABLE ff_renamed, ff_other;
DROP FUNCTION ff_refuse();
