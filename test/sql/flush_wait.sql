-- batch_flush and batch_wait.
-- M1.3, M2.6 (a batch can be forced now), M4.2 (a publisher waits until its
-- event is out)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE fw_target (n int);
SELECT batch_create_queue('fw', 'INSERT INTO fw_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_create_queue('fw other', 'INSERT INTO fw_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 h", "durable": false}');

-- Nothing waits.
SELECT batch_flush('fw');
SELECT batch_flush();

-- One queue, then all of them.
SELECT batch_enqueue_many('fw', '{1,2,3}'), batch_enqueue_many('fw other', '{4,5}');
SELECT batch_flush('fw');
SELECT * FROM fw_target ORDER BY n;
SELECT batch_enqueue_many('fw', '{6,7}');
SELECT batch_flush();
SELECT * FROM fw_target ORDER BY n;

-- Rows of an open transaction of one's own do not count.
BEGIN;
SELECT batch_enqueue('fw', '8') AS own \gset
SELECT batch_flush('fw');
SELECT batch_wait('fw', :own, '1 h');
COMMIT;
SELECT count(*) FROM fw_target WHERE n = 8;
SELECT batch_flush('fw');
SELECT batch_wait('fw', :own);

-- What became of a row.
SELECT batch_enqueue('fw', '9') AS ticket \gset
SELECT batch_wait('fw', :ticket, '0');
SELECT batch_wait('fw', :ticket, '20 ms');
SELECT batch_wait('fw', :ticket, '-1 day');
SELECT batch_flush('fw');
SELECT batch_wait('fw', :ticket);
SELECT batch_enqueue('fw', '10') AS ticket \gset
SELECT batch_purge('fw');
SELECT batch_wait('fw', :ticket);
BEGIN;
SELECT batch_enqueue('fw', '11') AS ticket \gset
ROLLBACK;
SELECT batch_wait('fw', :ticket);
SELECT batch_wait('fw', 0), batch_wait('fw', -1), batch_wait('fw', 9223372036854775807);
-- Also while other rows wait.
SELECT batch_enqueue('fw', '11') > 0 AS has_ticket;
SELECT batch_wait('fw', :ticket, '0'), batch_wait('fw', 0, '10 ms'), batch_wait('fw', :ticket, '1 h');
-- What cannot have been given yet, without any waiting.
SET statement_timeout = '1 min';
SET deadlock_timeout = '1 h';
SELECT batch_wait('fw', 9223372036854775807, '1 h'), batch_wait('fw', -1, NULL);
RESET deadlock_timeout;
RESET statement_timeout;
SELECT batch_purge('fw');
-- A ticket of another queue is none of this one.
SELECT batch_wait('fw other', :own);
-- For a queue of which each row is flushed soon, without any flush by force.
SELECT batch_create_queue('fw soon', 'INSERT INTO fw_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 ms"}');
SELECT batch_enqueue('fw soon', '12') AS ticket \gset
SELECT batch_wait('fw soon', :ticket, NULL);
SELECT count(*) FROM fw_target WHERE n = 12;
SELECT batch_drop_queue('fw soon');

-- The timeout: a flush that takes too long for its caller is not stopped.
SELECT batch_create_queue('fw slow', 'INSERT INTO fw_target SELECT payload::int FROM batch, pg_sleep(0.5)', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue('fw slow', '13') AS ticket \gset
SELECT batch_flush('fw slow', '10 ms');
SELECT batch_wait('fw slow', :ticket);
SELECT count(*) FROM fw_target WHERE n = 13;
-- Zero does not wait at all, but the flush comes.
SELECT batch_enqueue('fw slow', '14') AS ticket \gset
SELECT batch_flush('fw slow', '0');
SELECT batch_wait('fw slow', :ticket);
SELECT batch_flush('fw slow', '-5 s');
SELECT batch_drop_queue('fw slow');

-- A canceled wait, by the caller's own statement_timeout.
SELECT batch_create_queue('fw held', 'SELECT FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue('fw held', '15') AS ticket \gset
SET statement_timeout = '50 ms';
SELECT batch_wait('fw held', :ticket, '1 h');
\echo :SQLSTATE
RESET statement_timeout;
SELECT batch_wait('fw held', :ticket, '0');
SELECT batch_drop_queue('fw held', true);

-- Both are refused inside a flush.
CREATE FUNCTION fw_inside(what text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    CASE what
        WHEN 'flush' THEN PERFORM batch_flush('fw');
        WHEN 'wait' THEN PERFORM batch_wait('fw', 1);
        WHEN 'purge' THEN PERFORM batch_purge('fw');
    END CASE;
    RETURN 'done';
EXCEPTION WHEN feature_not_supported THEN
    RETURN SQLSTATE || ': ' || SQLERRM;
END $$;
CREATE TABLE fw_said (said text);
SELECT batch_create_queue('fw inside', 'INSERT INTO fw_said SELECT fw_inside(payload #>> ''{}'') FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue_many('fw inside', '{"\"flush\"","\"wait\"","\"purge\""}');
SELECT batch_flush('fw inside');
SELECT * FROM fw_said ORDER BY said;
-- Enqueuing is not refused there, into another queue or its own.
SELECT batch_alter_queue('fw inside', flush_sql => 'SELECT batch_enqueue(''fw'', payload), CASE WHEN payload::int < 3 THEN batch_enqueue(''fw inside'', to_jsonb(payload::int + 1)) END FROM batch');
SELECT batch_enqueue('fw inside', '1') > 0 AS has_ticket;
SELECT batch_flush('fw inside') > 0 AS flushed;
SELECT batch_flush('fw inside') > 0 AS flushed;
SELECT batch_flush('fw inside') > 0 AS flushed;
SELECT payload FROM batcher.pending WHERE queue = 'fw inside';
SELECT payload FROM batcher.pending WHERE queue = 'fw' ORDER BY payload;
SELECT batch_flush('fw');

-- Errors.
SELECT batch_flush('nobody');
\echo :SQLSTATE
SELECT batch_wait('nobody', 1);
\echo :SQLSTATE
SELECT batch_wait(NULL, 1);
\echo :SQLSTATE
SELECT batch_wait('fw', NULL);
\echo :SQLSTATE

SELECT batch_drop_queue('fw'), batch_drop_queue('fw other'), batch_drop_queue('fw inside');
DROP TABLE fw_target, fw_said;
DROP FUNCTION fw_inside(text);
