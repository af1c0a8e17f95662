-- Messages: what can be seen without a listener; what a listener gets is
-- tested where one can be had.
-- M4.1 (one send for a batch)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE nq_target (n int);

-- A queue that only announces.
SELECT batch_create_queue('nq', options => '{"flush_interval": "1 h", "notify_channel": "nq_channel"}');
SELECT batch_enqueue_many('nq', '{1,2,3}');
SELECT batch_flush('nq');
SELECT rows_flushed, batches, messages_sent, messages_saved, message_bytes > 100 AS message_bytes
    FROM batcher.stat_queue WHERE queue = 'nq';
SELECT count(*) FROM batcher.spool;

-- Without a channel, and with the format none, nothing is sent; the rows are
-- flushed all the same.
SELECT batch_alter_queue('nq', '{"notify_channel": null}');
SELECT batch_reset_stats('nq');
SELECT batch_enqueue_many('nq', '{1,2,3}');
SELECT batch_flush('nq');
SELECT batch_alter_queue('nq', '{"notify_channel": "nq_channel", "notify_format": "none"}');
SELECT batch_enqueue_many('nq', '{1,2,3}');
SELECT batch_flush('nq');
SELECT rows_flushed, batches, messages_sent, messages_saved, message_bytes
    FROM batcher.stat_queue WHERE queue = 'nq';

-- Not durable.
SELECT batch_alter_queue('nq', '{"durable": false, "notify_format": null}');
SELECT batch_reset_stats('nq');
SELECT batch_enqueue_many('nq', '{1,2,3,4}');
SELECT batch_flush('nq');
SELECT rows_flushed, messages_sent, messages_saved FROM batcher.stat_queue WHERE queue = 'nq';

-- An announcing queue becomes one with a statement.
SELECT batch_alter_queue('nq', flush_sql => 'INSERT INTO nq_target SELECT payload::int FROM batch');
SELECT batch_enqueue('nq', '7') > 0 AS has_ticket;
SELECT batch_flush('nq');
SELECT * FROM nq_target;
-- Its messages are sent after the data, so they are waited for.
SELECT wait_until($$SELECT messages_sent = 2 FROM batcher.stat_queue WHERE queue = 'nq'$$);
SELECT messages_sent, messages_saved FROM batcher.stat_queue WHERE queue = 'nq';

-- A flush that fails sends nothing.
SELECT batch_alter_queue('nq', flush_sql => 'SELECT 1 / (payload::int - 1) FROM batch');
SELECT batch_reset_stats('nq');
SELECT batch_enqueue('nq', '1') > 0 AS has_ticket;
SELECT batch_flush('nq', '0');
SELECT wait_until($$SELECT batches_failed > 0 FROM batcher.stat_queue WHERE queue = 'nq'$$);
SELECT batch_purge('nq');
SELECT batches, messages_sent FROM batcher.stat_queue WHERE queue = 'nq';

SELECT batch_drop_queue('nq');
DROP TABLE nq_target;
