-- Making queues: names, statements, and that all of it is transactional.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE cq_target (pos int, n int);

-- The plainest queue of each kind.
SELECT batch_create_queue('cq', 'INSERT INTO cq_target SELECT batch_pos, (payload->>''n'')::int FROM batch');
SELECT batch_create_queue('cq announced', options => '{"notify_channel": "cq"}');
SELECT queue, owner = current_user AS mine, flush_sql, search_path, options,
       paused, pause_reason, created_at <= now() AS dated
    FROM batcher.queue ORDER BY queue;

-- Names.
SELECT batch_create_queue(NULL, 'SELECT FROM batch');
\echo :SQLSTATE
SELECT batch_create_queue('', 'SELECT FROM batch');
\echo :SQLSTATE
SELECT batch_create_queue(repeat('q', 63), 'SELECT FROM batch');
SELECT batch_create_queue(repeat('q', 64), 'SELECT FROM batch');
\echo :SQLSTATE
-- The limit is one of bytes.
SELECT batch_create_queue(repeat('ü', 32), 'SELECT FROM batch');
SELECT batch_create_queue(repeat('ü', 31), 'SELECT FROM batch');
SELECT batch_create_queue('cq', 'SELECT FROM batch');
\echo :SQLSTATE
SELECT batch_create_queue('cq', 'SELECT FROM batch', if_not_exists => true);
-- Names are not folded, and anything but a zero byte may be in them.
SELECT batch_create_queue('CQ', 'SELECT FROM batch');
SELECT batch_create_queue(E' "a" \'b\'\n.c', 'SELECT FROM batch');
SELECT queue FROM batcher.queue ORDER BY queue COLLATE "C";

-- if_not_exists leaves what is there.
SELECT flush_sql FROM batcher.queue WHERE queue = 'cq';

-- A statement that is broken is refused with its own error.
SELECT batch_create_queue('bad', '');
\echo :SQLSTATE
SELECT batch_create_queue('bad', '  -- nothing');
SELECT batch_create_queue('bad', 'INSERT INTO');
\echo :SQLSTATE
SELECT batch_create_queue('bad', 'SELEC 1');
SELECT batch_create_queue('bad', 'SELECT 1 FROM batch; SELECT 2 FROM batch');
\echo :SQLSTATE
SELECT batch_create_queue('bad', 'INSERT INTO cq_none SELECT FROM batch');
\echo :SQLSTATE
-- (what comes with the message depends on the major)
\set VERBOSITY terse
SELECT batch_create_queue('bad', 'INSERT INTO cq_target (pos) SELECT pos FROM batch');
\set VERBOSITY default
\echo :SQLSTATE
SELECT batch_create_queue('bad', 'INSERT INTO cq_target (pos) SELECT batch_topic FROM batch');
\echo :SQLSTATE
SELECT batch_create_queue('bad', 'INSERT INTO cq_target (pos) SELECT $1 FROM batch');
\echo :SQLSTATE
SELECT batch_create_queue('bad', 'SELECT 1 / 0 FROM batch');
\echo :SQLSTATE

-- It is one that reads and writes rows.
SELECT batch_create_queue('bad', 'VACUUM cq_target');
\echo :SQLSTATE
SELECT batch_create_queue('bad', 'CREATE TABLE cq_new (a int)');
SELECT batch_create_queue('bad', 'CREATE TABLE cq_new AS SELECT * FROM batch');
SELECT batch_create_queue('bad', 'SELECT * INTO cq_new FROM batch');
\echo :SQLSTATE
SELECT batch_create_queue('bad', 'SELECT payload INTO cq_new FROM batch UNION ALL SELECT payload FROM batch');
SELECT batch_create_queue('bad', 'COPY cq_target TO STDOUT');
SELECT batch_create_queue('bad', 'NOTIFY cq');
SELECT batch_create_queue('bad', 'LISTEN cq');
SELECT batch_create_queue('bad', 'PREPARE p AS SELECT 1');
SELECT batch_create_queue('bad', 'SET work_mem = 64');
SELECT batch_create_queue('bad', 'BEGIN');
SELECT batch_create_queue('bad', 'COMMIT');
SELECT batch_create_queue('bad', 'EXPLAIN SELECT * FROM batch');
SELECT batch_create_queue('bad', 'DO ''BEGIN END''');
SELECT batch_create_queue('bad', 'CALL nothing()');

-- Longer than may be, and a message shows no more of a name than one reads.
SELECT batch_create_queue('bad', 'SELECT FROM batch' || repeat(' ', 16777200));
\echo :SQLSTATE
SELECT batch_create_queue(repeat('q', 100000));
SELECT batch_pause(repeat('q', 100000));
SELECT batch_enqueue(repeat('q', 100000), '1');

-- Temporary tables are those of one session.
CREATE TEMP TABLE cq_temp (n int);
SELECT batch_create_queue('bad', 'INSERT INTO cq_temp SELECT 1 FROM batch');
\echo :SQLSTATE
DROP TABLE cq_temp;

-- All that may be a statement.
SELECT batch_create_queue('cq insert', 'INSERT INTO cq_target SELECT batch_pos FROM batch RETURNING *');
SELECT batch_create_queue('cq update', 'UPDATE cq_target SET n = b.batch_pos FROM batch b WHERE b.batch_pos = pos;');
SELECT batch_create_queue('cq delete', 'DELETE FROM cq_target USING batch WHERE batch_pos = pos');
SELECT batch_create_queue('cq merge', 'MERGE INTO cq_target USING batch ON batch_pos = pos
    WHEN NOT MATCHED THEN INSERT VALUES (batch_pos, 0) WHEN MATCHED THEN DELETE');
SELECT batch_create_queue('cq select', 'SELECT count(*) FROM batch');
SELECT batch_create_queue('cq values', 'VALUES (1)');
SELECT batch_create_queue('cq with', 'WITH b AS (SELECT * FROM batch), d AS (DELETE FROM cq_target RETURNING *)
    INSERT INTO cq_target SELECT batch_pos FROM b');
SELECT batch_create_queue('cq nothing', 'INSERT INTO cq_target VALUES (1)');

-- Not one of those that were refused is there.
SELECT queue FROM batcher.queue WHERE queue IN ('bad', repeat('q', 64));

-- A rollback takes the queue, and its name is free at once.
BEGIN;
SELECT batch_create_queue('cq rolled back', 'SELECT FROM batch');
SELECT batch_enqueue('cq rolled back', '1') > 0 AS has_ticket;
SELECT count(*) FROM batcher.queue WHERE queue = 'cq rolled back';
ROLLBACK;
SELECT count(*) FROM batcher.queue WHERE queue = 'cq rolled back';
SELECT batch_enqueue('cq rolled back', '1');
BEGIN;
SAVEPOINT s;
SELECT batch_create_queue('cq rolled back', 'SELECT FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue('cq rolled back', '1') > 0 AS has_ticket;
ROLLBACK TO s;
SELECT batch_enqueue('cq rolled back', '1');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT batch_create_queue('cq rolled back', 'SELECT FROM batch', options => '{"flush_interval": "1 h"}');
RELEASE s;
SELECT batch_enqueue('cq rolled back', '1') > 0 AS has_ticket;
COMMIT;
SELECT batch_flush('cq rolled back');

-- A queue made and used in one transaction is flushed like any.
BEGIN;
SELECT batch_create_queue('cq at once', 'INSERT INTO cq_target SELECT batch_pos, (payload->>''n'')::int FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue('cq at once', '{"n": 7}') > 0 AS has_ticket;
COMMIT;
SELECT batch_flush('cq at once');
SELECT * FROM cq_target;

-- A dropped queue's name can be used again, for a queue that knows nothing
-- of the one before.
SELECT batch_drop_queue('cq at once');
SELECT batch_create_queue('cq at once', 'SELECT FROM batch', options => '{"flush_interval": "1 h"}');
SELECT rows_enqueued, rows_flushed, batches FROM batcher.stat_queue WHERE queue = 'cq at once';
BEGIN;
SELECT batch_drop_queue('cq at once');
SELECT batch_create_queue('cq at once', 'SELECT 2 FROM batch');
COMMIT;
SELECT flush_sql FROM batcher.queue WHERE queue = 'cq at once';

SELECT count(batch_drop_queue(queue, true)) > 10 AS dropped FROM batcher.queue;
SELECT count(*) FROM batcher.queue;
DROP TABLE cq_target;

-- Nobody changes the definitions by hand.
SELECT batch_create_queue('cq by hand');
UPDATE batcher.queue_definition SET paused = true WHERE name = 'cq by hand';
DELETE FROM batcher.queue_definition WHERE name = 'cq by hand';
TRUNCATE batcher.queue_definition;
SELECT batch_drop_queue('cq by hand');
