-- Changing queues.
-- M4.3, M2.6 (options are changed at run time)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE aq_target (how text, n int);
SELECT batch_create_queue('aq', 'INSERT INTO aq_target SELECT ''first'', (payload->>''n'')::int FROM batch', options => '{"flush_interval": "1 h", "flush_size": 1000}');

-- Rows are flushed under the definition in force when they are flushed.
SELECT batch_enqueue('aq', '{"n": 1}') > 0 AS has_ticket;
SELECT batch_alter_queue('aq', flush_sql => 'INSERT INTO aq_target SELECT ''second'', (payload->>''n'')::int FROM batch');
SELECT batch_flush('aq');
SELECT * FROM aq_target;

-- A null argument leaves what is, and so does an empty object.
SELECT flush_sql, options FROM batcher.queue WHERE queue = 'aq';
SELECT batch_alter_queue('aq');
SELECT flush_sql, options FROM batcher.queue WHERE queue = 'aq';
SELECT batch_alter_queue('aq', '{"flush_size": null}');
SELECT batch_alter_queue('aq', '{"max_batch_size": 2}', NULL, NULL, NULL);
SELECT flush_sql, options FROM batcher.queue WHERE queue = 'aq';

-- The new size holds at once: six rows leave two by two.
SELECT batch_pause('aq');
SELECT batch_enqueue_many('aq', ARRAY['{"n": 2}', '{"n": 3}', '{"n": 4}', '{"n": 5}', '{"n": 6}', '{"n": 7}']::jsonb[]);
SELECT batch_reset_stats('aq');
SELECT batch_resume('aq');
SELECT batch_flush('aq') BETWEEN 0 AND 6 AS flushed;
SELECT rows_flushed, batches, avg_batch_size FROM batcher.stat_queue WHERE queue = 'aq';

-- Broken statements and options, and who is not there.
SELECT batch_alter_queue('aq', flush_sql => 'INSERT INTO aq_target SELECT nothing FROM batch');
\echo :SQLSTATE
SELECT batch_alter_queue('aq', flush_sql => 'INSERT INTO aq_target SELECT; SELECT');
SELECT batch_alter_queue('aq', flush_sql => 'TRUNCATE aq_target');
SELECT batch_alter_queue('aq', '{"max_batch_size": 0}', 'SELECT FROM batch');
SELECT batch_alter_queue('nobody', '{}');
\echo :SQLSTATE
SELECT batch_alter_queue(NULL, '{}');
\echo :SQLSTATE
SELECT flush_sql, options FROM batcher.queue WHERE queue = 'aq';

-- A statement that is not given is not checked: options can be changed while it
-- is broken.
ALTER TABLE aq_target RENAME TO aq_renamed;
SELECT batch_alter_queue('aq', '{"max_batch_size": 30}');
SELECT batch_alter_queue('aq', '{"max_batch_size": 40}', 'INSERT INTO aq_target SELECT ''third'', 3 FROM batch');
ALTER TABLE aq_renamed RENAME TO aq_target;

-- It is transactional.
BEGIN;
SELECT batch_alter_queue('aq', '{"max_batch_size": 4}', 'SELECT FROM batch');
SELECT flush_sql, options FROM batcher.queue WHERE queue = 'aq';
ROLLBACK;
SELECT flush_sql, options FROM batcher.queue WHERE queue = 'aq';
BEGIN;
SAVEPOINT s;
SELECT batch_alter_queue('aq', '{"max_batch_size": 5}');
ROLLBACK TO s;
SELECT batch_alter_queue('aq', '{"flush_interval": "2 h"}');
COMMIT;
SELECT options FROM batcher.queue WHERE queue = 'aq';

-- Rows enqueued before and after the change within one transaction.
BEGIN;
SELECT batch_enqueue('aq', '{"n": 10}') > 0 AS has_ticket;
SELECT batch_alter_queue('aq', flush_sql => 'INSERT INTO aq_target SELECT ''third'', (payload->>''n'')::int FROM batch');
SELECT batch_enqueue('aq', '{"n": 11}') > 0 AS has_ticket;
COMMIT;
SELECT batch_flush('aq');
SELECT * FROM aq_target ORDER BY n;

-- Durable rows become rows of a queue that is not, and the other way.
SELECT batch_enqueue('aq', '{"n": 12}') > 0 AS has_ticket;
SELECT batch_alter_queue('aq', '{"durable": false}');
SELECT batch_enqueue('aq', '{"n": 13}') > 0 AS has_ticket;
SELECT payload, durable FROM batcher.pending WHERE queue = 'aq' ORDER BY ticket;
SELECT batch_alter_queue('aq', '{"durable": true}');
SELECT batch_enqueue('aq', '{"n": 14}') > 0 AS has_ticket;
SELECT payload, durable FROM batcher.pending WHERE queue = 'aq' ORDER BY ticket;
SELECT batch_flush('aq');
SELECT * FROM aq_target WHERE n >= 12 ORDER BY n;

-- The search_path comes with the statement, and stays without one.
CREATE SCHEMA aq_schema;
SET search_path = aq_schema, public;
SELECT batch_alter_queue('aq', '{"max_batch_size": 6}');
SELECT search_path FROM batcher.queue WHERE queue = 'aq';
SELECT batch_alter_queue('aq', flush_sql => 'SELECT FROM batch');
SELECT search_path FROM batcher.queue WHERE queue = 'aq';
RESET search_path;

SELECT batch_drop_queue('aq');
DROP SCHEMA aq_schema;
DROP TABLE aq_target;
