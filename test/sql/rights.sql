-- Who may do what, and who sees what.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE ROLE regress_batcher_owner;
CREATE ROLE regress_batcher_member IN ROLE regress_batcher_owner;
CREATE ROLE regress_batcher_other;
CREATE ROLE regress_batcher_monitor IN ROLE pg_monitor;
CREATE TABLE ri_target (n int, enqueued_by text, flushed_by text);
GRANT ALL ON ri_target TO regress_batcher_owner;

-- Nobody may make a queue whom a DBA has not allowed to.
SET ROLE regress_batcher_owner;
SELECT batch_create_queue('ri', 'SELECT FROM batch');
\echo :SQLSTATE
RESET ROLE;
GRANT EXECUTE ON FUNCTION batch_create_queue TO regress_batcher_owner;
SET ROLE regress_batcher_owner;
SELECT batch_create_queue('ri', 'INSERT INTO ri_target SELECT payload::int, batch_enqueued_by, current_user FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_create_queue('ri memory', 'INSERT INTO ri_target SELECT payload::int, batch_enqueued_by, current_user FROM batch', options => '{"flush_interval": "1 h", "durable": false}');
SELECT queue, owner FROM batcher.queue ORDER BY queue;
SELECT batch_enqueue('ri', '1') > 0 AS has_ticket, batch_enqueue('ri memory', '2') > 0 AS has_other;

-- Members of the owner may do all, and bear their own name.
SET ROLE regress_batcher_member;
SELECT batch_enqueue('ri', '3') > 0 AS has_ticket, batch_enqueue('ri memory', '4') > 0 AS has_other;
SELECT queue, payload, enqueued_by FROM batcher.pending ORDER BY payload;
SELECT batch_alter_queue('ri', '{"flush_size": 5}');
SELECT batch_pause(), batch_resume();
SELECT batch_reset_stats();
SELECT batch_flush();
RESET ROLE;
-- Superusers too.
SELECT batch_enqueue('ri', '5') > 0 AS has_ticket;
SELECT batch_flush('ri');
SELECT n, enqueued_by = current_user AS by_superuser, flushed_by FROM ri_target WHERE n = 5;
SELECT * FROM ri_target WHERE n < 5 ORDER BY n;

-- Others may nothing.
SELECT batch_enqueue('ri', '6') > 0 AS has_ticket, batch_enqueue('ri memory', '7') > 0 AS has_other;
SET ROLE regress_batcher_other;
SELECT batch_enqueue('ri', '8');
\echo :SQLSTATE
SELECT batch_enqueue_many('ri', '{8}');
SELECT batch_flush('ri');
\echo :SQLSTATE
SELECT batch_wait('ri', 1);
\echo :SQLSTATE
SELECT batch_purge('ri');
\echo :SQLSTATE
SELECT batch_pause('ri');
\echo :SQLSTATE
SELECT batch_resume('ri');
SELECT batch_alter_queue('ri', '{"flush_size": 6}');
\echo :SQLSTATE
SELECT batch_drop_queue('ri');
\echo :SQLSTATE
SELECT batch_reset_stats('ri');
\echo :SQLSTATE
-- All that they may manage is nothing.
SELECT batch_flush(), batch_pause(), batch_resume(), batch_reset_stats();
-- They see nothing but the options.
SELECT count(*) FROM batcher.queue;
SELECT count(*) FROM batcher.status;
SELECT count(*) FROM batcher.stat_queue;
SELECT count(*) FROM batcher.pending;
SELECT count(*) FROM batcher.worker WHERE queue IS NOT NULL;
SELECT count(*) > 0 AS sees FROM batcher.option;
-- Not by way of a function that is cheaper than the view.
CREATE FUNCTION pg_temp.peep(anyelement) RETURNS boolean COST 0.0001 LANGUAGE plpgsql
    AS 'BEGIN RAISE INFO ''seen: %'', $1; RETURN true; END';
SELECT * FROM batcher.pending p WHERE pg_temp.peep(p.payload);
SELECT queue FROM batcher.queue q WHERE pg_temp.peep(q.flush_sql);
DROP FUNCTION pg_temp.peep(anyelement);
-- Nor from the tables.
SELECT * FROM batcher.queue_definition;
SELECT * FROM batcher.spool;
INSERT INTO batcher.spool DEFAULT VALUES;
SELECT nextval('batcher.number');
INSERT INTO batcher.number_bound VALUES (1);
CREATE TABLE batcher.mine (a int);
-- Nor may they call what is for triggers.
SELECT batcher.changed();
SELECT batcher.arrived();

-- Nor may those who can write every table: what they insert would look restored.
RESET ROLE;
SELECT batch_grant('ri', 'regress_batcher_owner', 'enqueue');
CREATE ROLE regress_batcher_writer IN ROLE pg_write_all_data;
SET ROLE regress_batcher_writer;
INSERT INTO batcher.queue_definition VALUES (0, 'ri evil', 10, 'postgres', 'SELECT FROM batch', '', '{}', false, NULL, 0, now());
\echo :SQLSTATE
INSERT INTO batcher.queue_grant VALUES (0, 0, 'public', 'manage');
INSERT INTO batcher.spool DEFAULT VALUES;
DELETE FROM batcher.queue_grant;
UPDATE batcher.queue_grant SET role_name = 'public';
UPDATE batcher.queue_definition SET owner_name = 'postgres';
-- Or would be lost, or flushed again.
UPDATE batcher.spool SET home = 0;
\echo :SQLSTATE
DELETE FROM batcher.spool;
RESET ROLE;
SELECT grants FROM batcher.queue WHERE queue = 'ri';
SELECT batch_revoke('ri', 'regress_batcher_owner', 'enqueue');

-- pg_monitor sees names and counters, no statement, payload, or error.
SET ROLE regress_batcher_monitor;
SELECT queue, owner, flush_sql, search_path, options FROM batcher.queue ORDER BY queue;
SELECT queue, pending, last_error FROM batcher.status ORDER BY queue;
SELECT queue, rows_enqueued, last_error FROM batcher.stat_queue ORDER BY queue;
SELECT count(*) FROM batcher.pending;
SELECT batch_enqueue('ri', '8');
SELECT batch_flush('ri');
SELECT batch_flush();
RESET ROLE;

-- An error's text is for who may manage the queue.
REVOKE ALL ON ri_target FROM regress_batcher_owner;
-- It says that there was no time, or that the breaker has opened already.
SET client_min_messages = error;
SELECT batch_flush('ri', '0');
RESET client_min_messages;
SELECT wait_until($$SELECT consecutive_failures > 0 FROM batcher.status WHERE queue = 'ri'$$);
SET ROLE regress_batcher_monitor;
SELECT consecutive_failures > 0 AS failed, last_error FROM batcher.status WHERE queue = 'ri';
SELECT batches_failed > 0 AS failed, last_error, last_error_at IS NOT NULL AS dated FROM batcher.stat_queue WHERE queue = 'ri';
SET ROLE regress_batcher_member;
SELECT consecutive_failures > 0 AS failed, last_error FROM batcher.status WHERE queue = 'ri';
RESET ROLE;
GRANT ALL ON ri_target TO regress_batcher_owner;
SELECT batch_reset_breaker('ri');
SELECT batch_flush() IS NOT NULL AS flushed;
SELECT n FROM ri_target WHERE n > 5 ORDER BY n;

-- The right goes with the membership, also for a session that had it.
SET ROLE regress_batcher_member;
SELECT batch_enqueue('ri', '9') > 0 AS has_ticket;
RESET ROLE;
REVOKE regress_batcher_owner FROM regress_batcher_member;
SET ROLE regress_batcher_member;
SELECT batch_enqueue('ri', '10');
RESET ROLE;
GRANT regress_batcher_owner TO regress_batcher_member;
SET ROLE regress_batcher_member;
SELECT batch_enqueue('ri', '11') > 0 AS has_ticket;
RESET ROLE;
SELECT batch_flush('ri');

-- It is current_user's: a function of the owner lets others enqueue.
CREATE FUNCTION ri_put(n int) RETURNS boolean SECURITY DEFINER LANGUAGE sql
    AS 'SELECT batch_enqueue(''ri'', to_jsonb(n)) > 0';
ALTER FUNCTION ri_put(int) OWNER TO regress_batcher_owner;
SET ROLE regress_batcher_other;
SELECT ri_put(12);
RESET ROLE;
SELECT batch_flush('ri');
SELECT enqueued_by FROM ri_target WHERE n = 12;

-- A role that is renamed is followed, also by a session that has used its old
-- name; one that is gone holds its queues.
SET ROLE regress_batcher_owner;
SELECT batch_enqueue('ri', '130') > 0 AS has_ticket;
RESET ROLE;
ALTER ROLE regress_batcher_owner RENAME TO regress_batcher_renamed;
SELECT queue, owner, paused FROM batcher.queue ORDER BY queue;
SET ROLE regress_batcher_renamed;
SELECT batch_enqueue('ri', '131') > 0 AS has_ticket;
RESET ROLE;
SELECT payload, enqueued_by FROM batcher.pending WHERE queue = 'ri' ORDER BY ticket;
SELECT batch_enqueue('ri', '13') > 0 AS has_ticket;
SELECT batch_flush('ri');
SELECT flushed_by FROM ri_target WHERE n = 13;
DROP OWNED BY regress_batcher_renamed;
DROP ROLE regress_batcher_renamed;
SELECT queue, owner, paused, pause_reason FROM batcher.queue ORDER BY queue;
SELECT batch_enqueue('ri', '14') > 0 AS has_ticket;
SELECT batch_flush('ri');
SELECT batch_resume('ri');
\echo :SQLSTATE
-- Nobody could check a statement as the owner.
SELECT batch_alter_queue('ri', flush_sql => 'SELECT FROM batch');
\echo :SQLSTATE
-- It does not keep the others from going on.
SELECT batch_create_queue('ri held', 'SELECT FROM batch');
SELECT batch_pause('ri held');
SELECT batch_resume();
SELECT queue, paused FROM batcher.queue ORDER BY queue;
SELECT batch_drop_queue('ri held');
SET ROLE regress_batcher_member;
SELECT batch_enqueue('ri', '15');
RESET ROLE;

SELECT batch_drop_queue('ri', true), batch_drop_queue('ri memory', true);
DROP TABLE ri_target;
DROP ROLE regress_batcher_member, regress_batcher_other, regress_batcher_monitor, regress_batcher_writer;
