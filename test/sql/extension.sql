-- Making and dropping the extension.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS batcher CASCADE;
RESET client_min_messages;

-- It never takes over a schema, and the functions cannot go into its own.
CREATE EXTENSION batcher SCHEMA batcher;
CREATE SCHEMA batcher;
\set VERBOSITY terse
CREATE EXTENSION batcher;
CREATE EXTENSION batcher SCHEMA batcher;
\set VERBOSITY default
DROP SCHEMA batcher;

-- A creation that rolls back.
BEGIN;
CREATE EXTENSION batcher;
SELECT batch_create_queue('ex', 'SELECT FROM batch');
SELECT batch_enqueue('ex', '1') > 0 AS has_ticket;
ROLLBACK;
SELECT count(*) FROM pg_extension WHERE extname = 'batcher';
SELECT count(*) FROM pg_namespace WHERE nspname = 'batcher';
BEGIN;
SAVEPOINT s;
CREATE EXTENSION batcher;
SELECT batch_create_queue('ex', 'SELECT FROM batch');
ROLLBACK TO s;
CREATE EXTENSION batcher;
SELECT batch_create_queue('ex', 'SELECT FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue('ex', '1') > 0 AS has_ticket;
COMMIT;
SELECT batch_flush();
SELECT rows_flushed FROM batcher.stat_queue;

-- Every function has a comment, and its default rights.
SELECT p.oid::regprocedure FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
    WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'batcher')
      AND obj_description(p.oid, 'pg_proc') IS NULL ORDER BY 1;
SELECT p.oid::regprocedure FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
    WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'batcher')
      AND p.proacl IS NOT NULL ORDER BY 1;

-- A drop that rolls back leaves the rows that wait.
SELECT batch_enqueue('ex', '2') > 0 AS has_ticket;
BEGIN;
DROP EXTENSION batcher;
SELECT count(*) FROM pg_namespace WHERE nspname = 'batcher';
ROLLBACK;
SELECT queue, payload FROM batcher.pending;
BEGIN;
SAVEPOINT s;
DROP EXTENSION batcher CASCADE;
ROLLBACK TO s;
SELECT batch_enqueue('ex', '3') > 0 AS has_ticket;
COMMIT;
SELECT queue, payload FROM batcher.pending ORDER BY ticket;
SELECT batch_flush('ex');

-- A drop with rows that wait, durable or not, and with what depends on it.
SELECT batch_create_queue('ex memory', 'SELECT FROM batch', options => '{"flush_interval": "1 h", "durable": false}');
SELECT batch_enqueue('ex', '4') > 0 AS has_ticket, batch_enqueue('ex memory', '5') > 0 AS has_other;
CREATE VIEW ex_view AS SELECT queue FROM batcher.queue;
DROP EXTENSION batcher;
SELECT queue, payload FROM batcher.pending ORDER BY ticket;
DROP EXTENSION batcher CASCADE;
SELECT count(*) FROM pg_namespace WHERE nspname = 'batcher';
SELECT count(*) FROM pg_proc WHERE proname LIKE 'batch\_%';
-- In the transaction that enqueued.
CREATE EXTENSION batcher;
SELECT batch_create_queue('ex', 'SELECT FROM batch', options => '{"flush_interval": "1 h"}');
BEGIN;
SELECT batch_enqueue('ex', '6') > 0 AS has_ticket;
DROP EXTENSION batcher;
COMMIT;
\echo :SQLSTATE
BEGIN;
SELECT batch_enqueue('ex', '6') > 0 AS has_ticket;
DROP EXTENSION batcher;
CREATE EXTENSION batcher;
COMMIT;
SELECT queue FROM batcher.queue;
DROP EXTENSION batcher;
SELECT count(*) FROM pg_namespace WHERE nspname = 'batcher';

-- Again, into another schema: nothing of before is there.
CREATE SCHEMA ex_schema;
CREATE EXTENSION batcher SCHEMA ex_schema;
SELECT count(*) FROM batcher.queue;
SELECT count(*) FROM batcher.pending;
SELECT ex_schema.batch_flush();
CREATE TABLE ex_target (n int);
SELECT ex_schema.batch_create_queue('ex', 'INSERT INTO ex_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 h"}');
SELECT rows_enqueued FROM batcher.stat_queue;
SELECT ex_schema.batch_enqueue('ex', '7') > 0 AS has_ticket;
SELECT ex_schema.batch_flush('ex');
SELECT * FROM ex_target;
SELECT n.nspname, count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE proname LIKE 'batch\_%' GROUP BY 1;
ALTER EXTENSION batcher SET SCHEMA public;
DROP SCHEMA batcher;
DROP TABLE batcher.spool;
DROP EXTENSION batcher;
DROP SCHEMA ex_schema;

-- A session that has used one goes on with the next.
CREATE EXTENSION batcher;
SELECT batch_create_queue('ex', 'INSERT INTO ex_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue('ex', '8') > 0 AS has_ticket;
DROP EXTENSION batcher;
CREATE EXTENSION batcher;
SELECT batch_enqueue('ex', '9');
SELECT batch_create_queue('ex', 'INSERT INTO ex_target SELECT payload::int FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue('ex', '10') > 0 AS has_ticket;
SELECT batch_flush('ex');
SELECT * FROM ex_target ORDER BY n;
SELECT batch_drop_queue('ex');
DROP TABLE ex_target;

-- What guards our tables guards no other, whatever its columns.
CREATE TABLE ex_other (owner text, paused text, pause_reason text);
CREATE TRIGGER arrived BEFORE INSERT ON ex_other
    FOR EACH ROW EXECUTE FUNCTION batcher.arrived();
INSERT INTO ex_other VALUES ('a', 'b', 'c');
\echo :SQLSTATE
DROP TABLE ex_other;
