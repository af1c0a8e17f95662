-- Immediate rows: flushed with the commit, the others go on waiting.
-- M1.6 (what bypasses the batch is delivered at once)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE im_target (batch bigint GENERATED ALWAYS AS IDENTITY, rows text);
SELECT batch_create_queue('im', 'INSERT INTO im_target (rows) SELECT string_agg(concat(batch_key, payload), '','' ORDER BY batch_pos) FROM batch', options => '{"flush_interval": "1 h"}');

-- Alone.
SELECT batch_enqueue('im', '1') > 0 AS has_ticket;
SELECT batch_enqueue('im', '2', 'a') > 0 AS has_ticket;
SELECT batch_enqueue('im', '3', immediate => true) AS ticket \gset
SELECT batch_wait('im', :ticket);
SELECT rows FROM im_target ORDER BY batch;
SELECT payload FROM batcher.pending ORDER BY ticket;

-- With what waits of its key, and nothing else.
SELECT batch_enqueue('im', '4', 'b') > 0 AS has_ticket;
SELECT batch_enqueue('im', '5', 'a') > 0 AS has_ticket;
SELECT batch_enqueue('im', '6', 'a', immediate => true) AS ticket \gset
SELECT batch_wait('im', :ticket);
SELECT rows FROM im_target ORDER BY batch;
SELECT key, payload FROM batcher.pending ORDER BY ticket;

-- Not before its commit, and not at all after a rollback.
BEGIN;
SELECT batch_enqueue('im', '7', 'b') > 0 AS has_ticket;
SELECT batch_enqueue('im', '8', 'b', immediate => true) AS ticket \gset
SELECT batch_wait('im', :ticket);
SAVEPOINT s;
SELECT batch_enqueue('im', '9', 'c', immediate => true) > 0 AS has_ticket;
ROLLBACK TO s;
COMMIT;
SELECT batch_wait('im', :ticket);
SELECT rows FROM im_target ORDER BY batch;
BEGIN;
SELECT batch_enqueue('im', '10', immediate => true) > 0 AS has_ticket;
ROLLBACK;

-- Many.
TRUNCATE im_target;
SELECT batch_enqueue_many('im', '{11,12,13}', immediate => true);
SELECT wait_until($$SELECT rows_flushed = 10 FROM batcher.stat_queue WHERE queue = 'im'$$);
SELECT rows FROM im_target ORDER BY batch;
SELECT key, payload FROM batcher.pending ORDER BY ticket;
SELECT rows_flushed, batches_immediate, batches FROM batcher.stat_queue WHERE queue = 'im';

-- A paused queue holds them too.
SELECT batch_pause('im');
SELECT batch_enqueue('im', '14', immediate => true) AS ticket \gset
SELECT batch_wait('im', :ticket, '50 ms');
SELECT batch_resume('im');
SELECT batch_wait('im', :ticket);
SELECT key, payload FROM batcher.pending ORDER BY ticket;

-- Not durable.
SELECT batch_flush('im');
SELECT batch_alter_queue('im', '{"durable": false}');
SELECT batch_enqueue('im', '15', 'a') > 0 AS has_ticket;
SELECT batch_enqueue('im', '16', 'b') > 0 AS has_ticket;
SELECT batch_enqueue('im', '17', 'a', immediate => true) AS ticket \gset
SELECT batch_wait('im', :ticket);
SELECT key, payload FROM batcher.pending ORDER BY ticket;
SELECT rows FROM im_target WHERE rows LIKE '%17';

SELECT batch_drop_queue('im', true);
DROP TABLE im_target;
