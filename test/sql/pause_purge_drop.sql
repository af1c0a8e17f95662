-- Holding a queue, emptying it, and dropping it.
-- M5.1 (start, stop)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE pp_target (n int);
SELECT batch_create_queue('pp', 'INSERT INTO pp_target SELECT payload::int FROM batch', options => '{"flush_interval": "5 ms"}');
SELECT batch_create_queue('pp other', 'INSERT INTO pp_target SELECT payload::int FROM batch', options => '{"flush_interval": "5 ms", "durable": false}');

-- While a queue is paused rows gather, whatever its window.
SELECT batch_pause('pp');
SELECT paused, pause_reason FROM batcher.queue WHERE queue = 'pp';
SELECT batch_enqueue('pp', '1') AS first \gset
SELECT batch_enqueue('pp', '2', immediate => true) AS ticket \gset
SELECT batch_flush('pp');
SELECT batch_wait('pp', :ticket, '100 ms');
SELECT pending, spilled, is_flushing, paused, pause_reason, oldest_runnable_age
    FROM batcher.status WHERE queue = 'pp';
SELECT count(*) FROM pp_target;
-- The other goes on.
SELECT batch_enqueue('pp other', '3') AS other \gset
SELECT batch_wait('pp other', :other);
-- Twice is once.
SELECT batch_pause('pp');
SELECT batch_resume('pp');
SELECT batch_resume('pp');
SELECT batch_wait('pp', :ticket), batch_wait('pp', :first);
SELECT n FROM pp_target ORDER BY n;
SELECT paused, pause_reason FROM batcher.queue WHERE queue = 'pp';

-- All of them.
SELECT batch_pause();
SELECT queue, paused FROM batcher.queue ORDER BY queue;
SELECT batch_enqueue('pp', '4') AS ticket, batch_enqueue('pp other', '5') AS other \gset
SELECT batch_flush();
SELECT batch_resume(NULL);
SELECT batch_wait('pp', :ticket), batch_wait('pp other', :other);

-- A pause that is rolled back has held nothing.
BEGIN;
SELECT batch_pause('pp');
SELECT batch_flush('pp');
ROLLBACK;
SELECT batch_enqueue('pp', '6') AS ticket \gset
SELECT batch_wait('pp', :ticket);

-- Nobody waits for what only his own commit can bring.
SELECT batch_pause('pp');
SELECT batch_enqueue('pp', '7') AS ticket \gset
BEGIN;
SELECT batch_resume('pp');
SELECT batch_flush('pp', '1 h');
COMMIT;
SELECT batch_wait('pp', :ticket);

-- Purge: what waits is thrown away, also while the queue is paused, and what
-- the own transaction has enqueued is not.
SELECT batch_pause();
SELECT batch_purge('pp');
SELECT batch_enqueue_many('pp', '{10,11,12}') AS rows, batch_enqueue_many('pp other', '{13,14}') AS others;
BEGIN;
SELECT batch_enqueue('pp', '15') AS own \gset
SELECT batch_purge('pp');
COMMIT;
SELECT queue, payload FROM batcher.pending ORDER BY ticket;
-- It acts at once and is not undone.
BEGIN;
SELECT batch_purge('pp other');
ROLLBACK;
SELECT queue, payload FROM batcher.pending ORDER BY ticket;
SELECT batch_purge('pp');
SELECT batch_wait('pp', :own);
SELECT queue, pending, pending_bytes FROM batcher.status ORDER BY queue;
SELECT queue, rows_purged FROM batcher.stat_queue ORDER BY queue;
SELECT count(*) FROM batcher.spool;
SELECT batch_resume();

-- Drop: refused while rows wait.
SELECT batch_pause('pp');
SELECT batch_enqueue('pp', '20') > 0 AS has_ticket;
SELECT batch_drop_queue('pp');
\echo :SQLSTATE
SELECT batch_enqueue('pp', '21') > 0 AS has_ticket;
SELECT batch_drop_queue('pp', false);
-- It goes on as if nothing had been.
SELECT batch_resume('pp');
SELECT batch_flush('pp') IS NOT NULL AS flushed;
SELECT n FROM pp_target WHERE n >= 20 ORDER BY n;
-- Force throws the rows away; a rollback brings both back.
SELECT batch_pause();
SELECT batch_enqueue('pp', '22') > 0 AS has_ticket, batch_enqueue('pp other', '23') > 0 AS has_other;
BEGIN;
SELECT batch_drop_queue('pp', true), batch_drop_queue('pp other', force => true);
SELECT count(*) FROM batcher.queue;
SELECT batch_enqueue('pp', '24');
ROLLBACK;
SELECT queue, payload FROM batcher.pending ORDER BY ticket;
BEGIN;
SAVEPOINT s;
SELECT batch_drop_queue('pp', true), batch_drop_queue('pp other', true);
ROLLBACK TO s;
SELECT batch_enqueue('pp', '24') > 0 AS has_ticket, batch_enqueue('pp other', '25') > 0 AS has_other;
COMMIT;
SELECT queue, payload FROM batcher.pending ORDER BY ticket;
SELECT batch_resume();
SELECT batch_flush() IS NOT NULL AS flushed;
SELECT n FROM pp_target WHERE n >= 22 ORDER BY n;

-- Not with rows of the own transaction.
BEGIN;
SELECT batch_enqueue('pp', '30') > 0 AS has_ticket;
SELECT batch_drop_queue('pp', true);
\echo :SQLSTATE
ROLLBACK;
-- In a savepoint that is gone they do not count.
BEGIN;
SAVEPOINT s;
SELECT batch_enqueue('pp', '31') > 0 AS has_ticket;
ROLLBACK TO s;
SELECT batch_drop_queue('pp');
COMMIT;
SELECT batch_enqueue('pp', '32');
SELECT queue FROM batcher.queue;
-- Dropped and nothing left, also of rows that waited.
SELECT batch_pause('pp other');
SELECT batch_enqueue('pp other', '33') > 0 AS has_ticket;
SELECT batch_drop_queue('pp other', true);
SELECT count(*) FROM batcher.pending;
SELECT count(*) FROM batcher.spool;
SELECT count(*) FROM batcher.queue;

-- Who is not there.
SELECT batch_drop_queue('nobody');
\echo :SQLSTATE
SELECT batch_drop_queue(NULL);
\echo :SQLSTATE
SELECT batch_pause('nobody');
\echo :SQLSTATE
SELECT batch_resume('nobody');
\echo :SQLSTATE
SELECT batch_purge('nobody');
\echo :SQLSTATE
SELECT batch_purge(NULL);
\echo :SQLSTATE
SELECT batch_reset_stats('nobody');
\echo :SQLSTATE
-- Nothing is all of nothing.
SELECT batch_pause(), batch_resume(), batch_reset_stats(), batch_flush();

DROP TABLE pp_target;
