-- What the views show.
-- M4.6 (pending, configured size and timeout, whether a flush is scheduled),
-- M5.7 (flushes by size and by time, rows and batches, failed ones)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE vi_target (n int);
SELECT batch_create_queue('vi', 'INSERT INTO vi_target SELECT payload::int FROM batch',
    options => '{"flush_interval": "1 h", "flush_size": 50, "max_batch_size": 100, "notify_channel": "vi"}');
SELECT batch_create_queue('vi idle', 'SELECT FROM batch', options => '{"durable": false}');

-- Waiting rows.
SELECT * FROM batcher.pending;
SELECT batch_enqueue('vi', '1', 'k', 't', 3) > 0 AS has_ticket;
SELECT batch_enqueue_many('vi', '{2,3}');
SELECT queue, key, topic, priority, payload, attempts, durable,
       enqueued_at <= clock_timestamp() AS dated, enqueued_by = current_user AS by_me
    FROM batcher.pending ORDER BY ticket;
-- Not those of a transaction that is open.
BEGIN;
SELECT batch_enqueue('vi', '4') > 0 AS has_ticket;
SELECT batch_enqueue('vi idle', '5') > 0 AS has_ticket;
SELECT count(*) FROM batcher.pending;
ROLLBACK;
SELECT count(*) FROM batcher.pending;

SELECT queue, pending, pending_bytes > 0 AS has_bytes, spilled,
       oldest_at <= clock_timestamp() AS oldest_at, oldest_age >= '0' AS oldest_age,
       oldest_runnable_age >= '0' AS runnable_age, next_flush_at > now() AS scheduled
    FROM batcher.status WHERE queue = 'vi idle';
SELECT queue, pending, pending_bytes > 0 AS has_bytes, spilled FROM batcher.status WHERE queue = 'vi';
SELECT queue, is_flushing, paused, pause_reason, consecutive_failures, retry_at,
       last_error, current_batch_size, current_window, lanes
    FROM batcher.status ORDER BY queue;

-- The worker has looked at the rows, sooner or later.
SELECT wait_until($$SELECT next_flush_at IS NOT NULL FROM batcher.status WHERE queue = 'vi'$$);
SELECT oldest_at <= clock_timestamp() AS oldest_at, oldest_age BETWEEN '0' AND '1 h' AS oldest_age,
       oldest_runnable_age BETWEEN '0' AND '1 h' AS runnable_age,
       next_flush_at - oldest_at AS window
    FROM batcher.status WHERE queue = 'vi';

-- Counters.
SELECT batch_flush('vi');
SELECT batch_enqueue_many('vi', '{11,12,13,14,15}');
SELECT batch_flush('vi');
SELECT batch_enqueue('vi', '16') > 0 AS has_ticket;
SELECT batch_purge('vi');
SELECT rows_enqueued, rows_flushed, rows_retried, rows_purged, rows_spilled
    FROM batcher.stat_queue WHERE queue = 'vi';
SELECT batches, batches_by_size, batches_by_time, batches_forced,
       batches_immediate, batches_failed, avg_batch_size
    FROM batcher.stat_queue WHERE queue = 'vi';
SELECT flush_time > '0' AS flush_time, last_flush_at <= clock_timestamp() AS last_flush_at,
       last_error, last_error_at, deadline_missed, stats_reset
    FROM batcher.stat_queue WHERE queue = 'vi';
-- The messages go out after the data.
SELECT wait_until($$SELECT messages_sent = 2 FROM batcher.stat_queue WHERE queue = 'vi'$$);
SELECT messages_sent, messages_saved, messages_dropped, message_bytes > 0 AS message_bytes
    FROM batcher.stat_queue WHERE queue = 'vi';
-- What was never used has nothing.
SELECT rows_enqueued, batches, avg_batch_size, last_flush_at, last_error
    FROM batcher.stat_queue WHERE queue = 'vi idle';
SELECT pending, pending_bytes, oldest_at, oldest_age FROM batcher.status WHERE queue = 'vi';

-- Reset: one, then all.  A rollback does not undo that.
BEGIN;
SELECT batch_reset_stats('vi');
ROLLBACK;
SELECT queue, rows_enqueued, rows_flushed, batches, stats_reset IS NOT NULL AS was_reset
    FROM batcher.stat_queue ORDER BY queue;
SELECT batch_reset_stats();
SELECT queue, stats_reset IS NOT NULL AS was_reset FROM batcher.stat_queue ORDER BY queue;

-- By size, by time.
SELECT max(batch_enqueue('vi', to_jsonb(g))) AS ticket FROM generate_series(101, 150) g \gset
SELECT batch_wait('vi', :ticket);
SELECT batch_alter_queue('vi', '{"flush_interval": "1 ms"}');
SELECT batch_enqueue('vi', '17') AS ticket \gset
SELECT batch_wait('vi', :ticket);
SELECT batches, batches_by_size, batches_by_time, rows_flushed FROM batcher.stat_queue WHERE queue = 'vi';

-- Workers.
SELECT count(*) > 0 AS there, bool_and(pid IS NOT NULL) AS pids, bool_and(since <= clock_timestamp()) AS since
    FROM batcher.worker WHERE database = current_database();
SELECT worker_pid IN (SELECT pid FROM batcher.worker) AS known FROM batcher.status WHERE queue = 'vi';
-- What the server says of them.
SELECT DISTINCT backend_type, datname = current_database() AS here
    FROM pg_stat_activity WHERE pid IN (SELECT pid FROM batcher.worker WHERE database = current_database());

-- A flush that is under way is seen in all places.
SELECT batch_alter_queue('vi', flush_sql => 'SELECT pg_advisory_xact_lock(720815) FROM batch');
SELECT pg_advisory_lock(720815);
SELECT batch_enqueue('vi', '18') AS ticket \gset
SELECT batch_flush('vi', '0');
SELECT wait_until($$SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)$$);
SELECT is_flushing, pending FROM batcher.status WHERE queue = 'vi';
SELECT w.state, w.queue, w.rows, a.state, a.query, a.wait_event, a.application_name
    FROM batcher.worker w JOIN pg_stat_activity a USING (pid) WHERE w.queue = 'vi';
SELECT pg_advisory_unlock(720815);
SELECT batch_wait('vi', :ticket);

SELECT batch_drop_queue('vi'), batch_drop_queue('vi idle');
SELECT count(*) FROM batcher.status;
SELECT count(*) FROM batcher.stat_queue;
DROP TABLE vi_target;
