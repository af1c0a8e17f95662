-- Rows that fail by their own fault: found among the others, tried again by
-- themselves, and dead letters in the end.
-- M4.2 (a failure of one event alone), M4.4 (partial failure does not fail the
-- batch), M5.5 (smaller batches, single rows), M5.6 (a failing row does not
-- affect the others, dead letters)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE dl_target (pos serial, n int CHECK (n > 0), attempts int, UNIQUE (n));
SELECT batch_create_queue('dl', 'INSERT INTO dl_target (n, attempts) SELECT payload::int, batch_attempts FROM batch ORDER BY batch_pos',
    options => '{"flush_interval": "1 h", "flush_size": 2000, "max_batch_size": 2000, "retry_delay": "20 ms", "notify_channel": "dl"}');
SELECT batch_create_queue('dl memory', 'INSERT INTO dl_target (n, attempts) SELECT payload::int, batch_attempts FROM batch ORDER BY batch_pos',
    options => '{"flush_interval": "1 h", "retry_delay": "20 ms", "durable": false}');

-- Some bad rows among a thousand: the good ones pass with the first flush.
SELECT min(t) AS ticket FROM (SELECT batch_enqueue('dl', to_jsonb(CASE WHEN n % 300 = 0 THEN -n ELSE n END), topic => 'topic') AS t FROM generate_series(1, 1000) n) s \gset
SELECT batch_wait('dl', :ticket, '0');
SELECT batch_flush('dl') AS flushed;
SELECT count(*), min(attempts), max(attempts) FROM dl_target;
SELECT count(*) AS out_of_order FROM (SELECT n, lag(n) OVER (ORDER BY pos) AS before FROM dl_target) s WHERE n <= before;
SELECT queue, ticket - :ticket AS ticket, key, topic, payload, sqlstate, message, detail, context, attempts,
       enqueued_at < died_at AS later, enqueued_by = current_user AS by_me
    FROM batcher.dead_letter ORDER BY ticket;
SELECT rows_flushed, rows_failed, rows_dead, rows_retried, batches, batches_failed, batches_split, breaker_opened, messages_sent, messages_saved
    FROM batcher.stat_queue WHERE queue = 'dl';
SELECT count(*) FROM batcher.spool;
SELECT pending, breaker_state, consecutive_failures FROM batcher.status WHERE queue = 'dl';
-- Each row has a fate of its own.
SELECT batch_wait('dl', :ticket), batch_wait('dl', :ticket + 299), batch_wait('dl', :ticket + 300);

-- They are repaired and tried again, some by their tickets, in the order in
-- which they were enqueued, and with their tickets.
ALTER TABLE dl_target DROP CONSTRAINT dl_target_n_check;
SELECT batch_retry_dead('dl', ARRAY[:ticket + 599, 0]);
SELECT batch_wait('dl', :ticket + 599, '10 ms');
SELECT batch_flush('dl');
SELECT batch_wait('dl', :ticket + 599);
SELECT ticket - :ticket AS ticket FROM batcher.dead_letter ORDER BY ticket;
BEGIN;
SELECT batch_retry_dead('dl');
ROLLBACK;
SELECT count(*) FROM batcher.dead_letter;
SELECT batch_retry_dead('dl');
SELECT batch_flush('dl');
SELECT n, attempts FROM dl_target WHERE n < 0 ORDER BY pos;
SELECT batch_wait('dl', :ticket + 299);
SELECT batch_retry_dead('dl');

-- Rows of two queues that fail together with rows of their own batch: of two
-- that cannot both be, the first is good.
SELECT batch_enqueue_many('dl', '{2001,2002,2001,2003}'), batch_enqueue_many('dl memory', '{3001,3001,3002}');
SELECT batch_flush('dl'), batch_flush('dl memory');
SELECT n FROM dl_target WHERE n > 2000 ORDER BY n;
SELECT queue, payload, sqlstate, attempts FROM batcher.dead_letter ORDER BY queue;
-- They can be thrown away.
BEGIN;
SELECT batch_purge_dead('dl memory');
ROLLBACK;
SELECT batch_purge_dead('dl', '{1}');
SELECT batch_purge_dead('dl'), batch_purge_dead('dl memory');
SELECT count(*) FROM batcher.dead_letter;

-- A row that waits to be tried again holds back the later rows of its key, and
-- nothing else; a dead one does not.
CREATE FUNCTION dl_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.n = 4002 AND EXISTS (SELECT FROM dl_target WHERE n = 4000) THEN
        RAISE EXCEPTION 'not yet' USING DETAIL = 'Wait.', HINT = 'None.';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER dl_refuse BEFORE INSERT ON dl_target FOR EACH ROW EXECUTE FUNCTION dl_refuse();
INSERT INTO dl_target (n) VALUES (4000);
SELECT batch_alter_queue('dl', options => '{"max_attempts": 1000, "retry_max_delay": "20 ms"}');
SELECT batch_enqueue_many('dl', '{4001,4002,4003,4004,4005}', ARRAY['a', 'a', 'b', 'a', NULL]);
SELECT batch_flush('dl', '0') >= 0 AS asked;
SELECT wait_until('SELECT count(*) = 3 FROM dl_target WHERE n > 4000');
SELECT wait_until($$SELECT attempts > 2 FROM batcher.pending WHERE payload = '4002'$$);
SELECT batch_enqueue_many('dl', '{4006,4007}', '{a,b}');
SELECT batch_flush('dl', '0') >= 0 AS asked;
SELECT wait_until('SELECT count(*) = 4 FROM dl_target WHERE n > 4000');
SELECT payload, key, attempts > 2 AS tried FROM batcher.pending ORDER BY ticket;
SELECT oldest_at IS NOT NULL AS known, pending, breaker_state FROM batcher.status WHERE queue = 'dl';
-- An immediate row of the key waits too.
SELECT batch_enqueue('dl', '4008', 'a', immediate => true) > 0 AS has_ticket;
SELECT batch_enqueue('dl', '4009', 'c', immediate => true) AS ticket \gset
SELECT batch_wait('dl', :ticket);
DELETE FROM dl_target WHERE n = 4000;
SELECT batch_flush('dl') IS NOT NULL AS flushed;
SELECT string_agg(n::text, ' ' ORDER BY pos) FROM dl_target WHERE n IN (4001, 4002, 4004, 4006, 4008);
SELECT n, attempts > 2 AS tried FROM dl_target WHERE n > 4000 AND attempts > 0;
DROP TRIGGER dl_refuse ON dl_target;
DROP FUNCTION dl_refuse();
SELECT pending FROM batcher.status WHERE queue = 'dl';

-- Many bad rows: never more than some pieces in one transaction, but all of
-- the good ones pass in the end, in order.
ALTER TABLE dl_target ADD CHECK (n >= 0) NOT VALID;
TRUNCATE dl_target;
ALTER TABLE dl_target ADD tx bigint DEFAULT txid_current();
SELECT batch_alter_queue('dl', options => '{"max_attempts": 1}');
SELECT batch_enqueue_many('dl', array(SELECT to_jsonb(CASE WHEN n % 2 = 0 THEN -n ELSE n END) FROM generate_series(1, 400) n));
SELECT batch_flush('dl');
SELECT sum(n), count(*) BETWEEN 4 AND 20 AS transactions, max(pieces) BETWEEN 3 AND 64 AS pieces
    FROM (SELECT count(*) AS n, count(DISTINCT xmin::text) AS pieces FROM dl_target GROUP BY tx) s;
SELECT count(*) AS out_of_order FROM (SELECT n, lag(n) OVER (ORDER BY pos) AS before FROM dl_target) s WHERE n <= before;
SELECT count(*), min(attempts), max(attempts) FROM batcher.dead_letter;
SELECT batch_purge_dead('dl');

-- Errors that look like the statement's, but of some rows only, are the rows'.
CREATE FUNCTION dl_denied() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    RAISE insufficient_privilege;
END $$;
SELECT batch_alter_queue('dl', flush_sql => 'INSERT INTO dl_target (n, attempts) SELECT CASE WHEN payload::int = 13 THEN dl_denied() ELSE payload::int END, batch_attempts FROM batch', options => '{"max_attempts": 2}');
TRUNCATE dl_target;
SELECT batch_enqueue_many('dl', '{11,12,13,14}');
SELECT batch_flush('dl');
SELECT n FROM dl_target ORDER BY n;
SELECT payload, sqlstate, attempts FROM batcher.dead_letter;
SELECT breaker_state FROM batcher.status WHERE queue = 'dl';

-- Errors that are raised at odd places: in a trigger of the target, at the
-- end of the statement, in a function that swallowed one before.
CREATE FUNCTION dl_swallow(n int) RETURNS int LANGUAGE plpgsql AS $$
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
SELECT batch_alter_queue('dl', flush_sql => 'INSERT INTO dl_target (n) SELECT dl_swallow(payload::int) FROM batch');
SELECT batch_enqueue_many('dl', '{17,-18}');
SELECT batch_flush('dl');
SELECT payload, sqlstate, message, detail, context FROM batcher.dead_letter WHERE payload = '-18';

-- A tuple of the spool that cannot be read is a dead letter too.  Nobody makes
-- one by hand, unless the trigger is out of the way.
SELECT batch_pause('dl');
SELECT batch_enqueue('dl', '21') > 0 AS has_ticket;
SELECT batch_enqueue('dl', '22') > 0 AS has_ticket;
SELECT batch_enqueue_many('dl', '{23,24}');
DELETE FROM batcher.spool;
\echo :SQLSTATE
TRUNCATE batcher.spool;
\echo :SQLSTATE
ALTER TABLE batcher.spool DISABLE TRIGGER arrived;
UPDATE batcher.spool SET home = 0, ticket = CASE WHEN payload = '21' THEN NULL ELSE ticket END;
UPDATE batcher.spool SET tickets = '{}' WHERE payloads = '{23,24}';
ALTER TABLE batcher.spool ENABLE ALWAYS TRIGGER arrived;
SELECT batch_resume('dl');
VACUUM FULL batcher.spool;
SELECT batch_flush('dl', '10 s') IS NOT NULL AS flushed;
SELECT n FROM dl_target WHERE n BETWEEN 21 AND 24;
SELECT payload, sqlstate, message, detail ~ '^The tuple was at \(\d+,\d+\) of the table batcher.spool.$' AS detail, attempts
    FROM batcher.dead_letter WHERE payload IS NULL ORDER BY message;
SELECT wait_until($$SELECT pending = 0 AND spilled = 0 FROM batcher.status WHERE queue = 'dl'$$);
SELECT batch_retry_dead('dl') AS readable_ones;

-- Bad input.
SELECT batch_retry_dead('no such');
SELECT batch_purge_dead(NULL);
SELECT batch_retry_dead(NULL);
DELETE FROM batcher.dead_row;
UPDATE batcher.dead_row SET attempts = 1;
TRUNCATE batcher.dead_row;

-- Dead letters go with their queue.
SELECT batch_flush('dl', '0') IS NOT NULL AS flushed;
SELECT wait_until($$SELECT count(*) = 2 FROM batcher.dead_letter$$);
SELECT batch_drop_queue('dl', true), batch_drop_queue('dl memory');
SELECT count(*) FROM batcher.dead_row;
DROP TABLE dl_target;
DROP FUNCTION dl_swallow(int), dl_denied();
