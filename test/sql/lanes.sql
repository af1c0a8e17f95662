-- Lanes: the rows of a queue are split by key, and what counts for the queue
-- counts for all of them (M1.12, processing is spread).
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;

CREATE TABLE la_target (pos serial, key text, n int);
SELECT batch_create_queue('la', 'INSERT INTO la_target (key, n) SELECT batch_key, (payload->>''n'')::int FROM batch ORDER BY batch_pos', options => '{"lanes": 4, "flush_interval": "1 h"}');
SELECT queue, lanes, pending FROM batcher.status WHERE queue = 'la';

-- rows of many keys, and without a key
SELECT count(batch_enqueue('la', jsonb_build_object('n', i), 'k' || i % 20)) FROM generate_series(1, 200) i;
SELECT count(batch_enqueue('la', jsonb_build_object('n', i))) FROM generate_series(1, 10) i;
SELECT pending FROM batcher.status WHERE queue = 'la';
SELECT count(*), count(DISTINCT key) FROM batcher.pending WHERE queue = 'la';

-- a key has one lane, and there are keys in each
SELECT count(DISTINCT lane) AS lanes, count(DISTINCT k) AS keys, count(DISTINCT (k, lane)) AS keys_and_lanes
FROM batcher.spool, unnest(coalesce(keys, ARRAY[key])) AS k
WHERE queue_id = (SELECT id FROM batcher.queue_definition WHERE name = 'la') AND k IS NOT NULL;
-- that lane is the same wherever the rows are read
SELECT DISTINCT lane FROM batcher.spool WHERE key = 'k7' OR 'k7' = ANY (keys);

-- one call flushes all lanes, each in order
SELECT batch_flush('la');
SELECT count(*) FROM la_target;
SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY pos) AS before FROM la_target WHERE key IS NOT NULL) s WHERE n <= before;
SELECT rows_enqueued, rows_flushed, batches FROM batcher.stat_queue WHERE queue = 'la';
SELECT pending, pending_bytes FROM batcher.status WHERE queue = 'la';

-- so does a purge; tickets of all lanes are known
SELECT batch_enqueue('la', '{"n": 1}', 'k1') AS t1, batch_enqueue('la', '{"n": 1}', 'k2') AS t2, batch_enqueue('la', '{"n": 1}', 'k3') AS t3, batch_enqueue('la', '{"n": 1}', 'k4') AS t4 \gset
SELECT batch_wait('la', :t1, '0 s'), batch_wait('la', :t2, '0 s'), batch_wait('la', :t3, '0 s'), batch_wait('la', :t4, '0 s');
SELECT batch_purge('la');
SELECT batch_wait('la', :t1), batch_wait('la', :t2), batch_wait('la', :t3), batch_wait('la', :t4);
SELECT rows_purged FROM batcher.stat_queue WHERE queue = 'la';

-- batches have one count, and immediate rows pass the others of their lane
SELECT batch_enqueue('la', '{"n": 2}', 'k1'), batch_enqueue('la', '{"n": 3}', 'k2', immediate => true) AS t2 \gset
SELECT batch_wait('la', :t2);
SELECT pending FROM batcher.status WHERE queue = 'la';

-- the breaker is that of the queue
ALTER TABLE la_target RENAME TO la_gone;
SELECT batch_enqueue('la', '{"n": 4}', 'k3') > 0, batch_enqueue('la', '{"n": 5}', 'k4') > 0;
SELECT batch_flush('la');
SELECT breaker_state, pending FROM batcher.status WHERE queue = 'la';
ALTER TABLE la_gone RENAME TO la_target;
SELECT batch_reset_breaker('la');
SELECT batch_flush('la') BETWEEN 0 AND 3;
SELECT breaker_state, pending FROM batcher.status WHERE queue = 'la';
SELECT batch_reset_stats('la');
SELECT rows_flushed, rows_purged, last_error FROM batcher.stat_queue WHERE queue = 'la';

-- other lanes: rows that wait are flushed first
TRUNCATE la_target;
SELECT count(batch_enqueue('la', jsonb_build_object('n', i), 'k' || i % 20)) FROM generate_series(1, 100) i;
SELECT batch_alter_queue('la', '{"lanes": 2}');
SELECT count(*) FROM la_target;
SELECT lanes, pending FROM batcher.status WHERE queue = 'la';
SELECT count(batch_enqueue('la', jsonb_build_object('n', i), 'k' || i % 20)) FROM generate_series(101, 200) i;
SELECT count(DISTINCT lane) FROM batcher.spool WHERE queue_id = (SELECT id FROM batcher.queue_definition WHERE name = 'la');
SELECT batch_flush('la');
SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY pos) AS before FROM la_target) s WHERE n <= before;

-- in one transaction with rows for the new lanes, and undone
BEGIN;
SELECT batch_alter_queue('la', '{"lanes": 3}');
SELECT batch_enqueue('la', '{"n": 201}', 'k1') > 0;
ROLLBACK;
BEGIN;
SELECT batch_alter_queue('la', '{"lanes": 8}');
SELECT batch_enqueue('la', '{"n": 201}', 'k1') > 0;
COMMIT;
SELECT batch_flush('la');
SELECT lanes FROM batcher.status WHERE queue = 'la';

-- what cannot be flushed stands in the way, as do rows of the transaction
BEGIN;
SELECT batch_enqueue('la', '{"n": 202}', 'k1') > 0;
SELECT batch_alter_queue('la', '{"lanes": 1}');
ROLLBACK;
SELECT batch_pause('la');
SELECT batch_enqueue('la', '{"n": 203}', 'k1') > 0;
SELECT batch_alter_queue('la', '{"lanes": 1}');
SELECT batch_alter_queue('la', '{"lanes": 8, "flush_size": 10}');
SELECT batch_resume('la');
SELECT batch_alter_queue('la', '{"lanes": null, "flush_size": null}');
SELECT lanes, pending FROM batcher.status WHERE queue = 'la';

-- dead letters that were flushed in lanes that came and went
CREATE TABLE la_bad (n int);
INSERT INTO la_bad VALUES (0);
SELECT batch_create_queue('ld', 'SELECT 1 / n FROM la_bad, batch', options => '{"flush_interval": "10 ms", "max_attempts": 1}');
CREATE TABLE la_tickets AS SELECT batch_enqueue('ld', '1', 'k' || i) AS ticket FROM generate_series(1, 20) i;
SELECT DISTINCT batch_wait('ld', ticket, '1 min') FROM la_tickets;
UPDATE la_bad SET n = 1;
SELECT batch_alter_queue('ld', '{"lanes": 2}');
SELECT batch_retry_dead('ld');
SELECT batch_flush('ld') BETWEEN 0 AND 20;
SELECT batch_alter_queue('ld', '{"lanes": 1}');
SELECT batch_enqueue('ld', '1') > 0;
SELECT batch_flush('ld') BETWEEN 0 AND 1;
SELECT DISTINCT batch_wait('ld', ticket, '1 min') FROM la_tickets;
SELECT batch_drop_queue('ld');
DROP TABLE la_bad, la_tickets;

-- dropped as a whole
SELECT batch_alter_queue('la', '{"lanes": 4}');
SELECT count(batch_enqueue('la', jsonb_build_object('n', i), 'k' || i)) FROM generate_series(1, 20) i;
SELECT batch_drop_queue('la');
SELECT batch_drop_queue('la', force => true);
SELECT batch_create_queue('la', 'SELECT FROM batch', options => '{"lanes": 65}');
SELECT batch_create_queue('la', 'SELECT FROM batch', options => '{"lanes": 0}');

-- rows in memory only, and the limit of memory, which is the queue's
SELECT batch_create_queue('la', 'INSERT INTO la_target (key, n) SELECT batch_key, (payload->>''n'')::int FROM batch', options => '{"lanes": 4, "durable": false, "flush_interval": "1 h", "memory_limit": "4kB", "when_full": "error"}');
SELECT count(batch_enqueue('la', jsonb_build_object('n', i), 'k' || i)) FROM generate_series(1, 100) i;
SELECT pending, pending_bytes FROM batcher.status WHERE queue = 'la';
SELECT count(batch_enqueue('la', jsonb_build_object('n', i), 'k' || i)) FROM generate_series(1, 10) i;
SELECT pending FROM batcher.status WHERE queue = 'la';
SELECT count(*) FROM batcher.pending WHERE queue = 'la';
SELECT batch_flush('la');
SELECT batch_drop_queue('la');
DROP TABLE la_target;
