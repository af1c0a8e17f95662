-- Tuples that a restore may bring into our tables, whatever they hold: a worker
-- reads the rows that can be read, and of the rest makes dead letters.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE rr_target (n int, key text, priority int, attempts int);
SELECT batch_create_queue('rr',
    'INSERT INTO rr_target (n, key, priority, attempts)
     SELECT payload::int, batch_key, batch_priority, batch_attempts FROM batch ORDER BY batch_pos',
    options => '{"flush_interval": "20 ms", "max_batch_size": 20000}');
-- What every tuple has to have, for a queue.
CREATE FUNCTION rr_fixed(at bigint) RETURNS batcher.spool LANGUAGE sql AS $$
    SELECT jsonb_populate_record(NULL::batcher.spool, jsonb_build_object('number', at, 'home', 7, 'enqueued_at', now(),
        'queue_id', (SELECT id FROM batcher.queue_definition WHERE name = 'rr'), 'lane', 0, 'enqueuer', 10, 'enqueued_by', 'somebody'))
$$;
-- A tuple with these columns, at a number.
CREATE FUNCTION rr_restore(at bigint, more jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO batcher.spool SELECT (jsonb_populate_record(rr_fixed(at), more)).*
$$;

-- Those that cannot be read.
BEGIN;
SELECT rr_restore(100, '{}');
SELECT rr_restore(110, '{"ticket": 111}');
SELECT rr_restore(120, '{"payload": 1}');
SELECT rr_restore(130, '{"ticket": 0, "payload": 1}');
SELECT rr_restore(140, '{"tickets": [], "payloads": []}');
SELECT rr_restore(150, '{"tickets": [151, 152], "payloads": [1]}');
SELECT rr_restore(160, '{"tickets": [161], "payloads": [1], "keys": []}');
SELECT rr_restore(170, '{"tickets": [171, null], "payloads": [1, 2]}');
SELECT rr_restore(180, '{"tickets": [181, 182]}');
SELECT rr_restore(190, '{"tickets": [192, 191], "payloads": [1, 2]}');
SELECT rr_restore(200, '{"tickets": [201, 8589934592], "payloads": [1, 2]}');
SELECT rr_restore(210, '{"tickets": [[211, 212], [213, 214]], "payloads": [1, 2, 3, 4]}');
SELECT rr_restore(220, jsonb_build_object('tickets', array_agg(i), 'payloads', array_agg(i))) FROM generate_series(221, 221 + 65535) i;
-- Odd ones that can.
SELECT rr_restore(70000, '{"ticket": 70001, "payload": 1, "lane": 1000000000, "enqueued_at": "-infinity"}');
SELECT rr_restore(70010, '{"ticket": 70011, "payload": 2, "lane": -1, "home": -70010, "enqueued_at": "infinity"}');
SELECT rr_restore(70020, '{"ticket": 70021, "payload": 3, "lane": -2147483648, "home": -9223372036854775808, "enqueued_at": "4713-01-01 BC"}');
SELECT rr_restore(70030, '{"tickets": [70031, 70032], "payloads": [4, 5], "keys": [null, "k"], "enqueued_at": "2999-01-01"}');
SELECT rr_restore(70040, '{"tickets": "[-5:-4]={70041,70042}", "payloads": "[0:1]={6,7}", "priorities": "[3:4]={-2147483648,NULL}"}');
SELECT rr_restore(70050, '{"ticket": 70051, "payload": 8, "attempts": 2147483647}');
SELECT rr_restore(70060, '{"ticket": 70061, "payload": 9, "attempts": -5}');
-- Of a queue that is not there.
SELECT rr_restore(140000, '{"ticket": 140001, "payload": 1, "queue_id": -1}');
COMMIT;

-- They hide nothing, and nobody who looks for a ticket stumbles over them.
SELECT paused, pause_reason FROM batcher.queue;
SET client_min_messages = error;
SELECT count(*), min(ticket), max(ticket) FROM batcher.pending;
RESET client_min_messages;
SELECT batch_wait('rr', 214, '0'), batch_wait('rr', 139999, '0');
SELECT rr_restore(140010, '{"number": -1}');
SELECT rr_restore(140010, '{"ticket": 9223372036854775807, "payload": 1}');

-- The others are flushed, in their time, whatever they say of that.
SELECT batch_resume();
SELECT wait_until($$SELECT count(*) = 9 FROM rr_target$$);
SELECT n, key, priority, attempts FROM rr_target ORDER BY n;
-- As many as a tuple may have.
SELECT rr_restore(70070, jsonb_build_object('tickets', array_agg(70000 + i), 'payloads', array_agg(i))) FROM generate_series(71, 71 + 65534) i;
SELECT batch_resume();
SELECT wait_until($$SELECT count(*) = 65544 FROM rr_target$$);
SELECT count(*), count(DISTINCT n), min(n), max(n) FROM rr_target WHERE n >= 71;
SELECT wait_until($$SELECT pending = 0 AND spilled = 0 FROM batcher.status WHERE queue = 'rr'$$);
SELECT ticket, payload, sqlstate, message, attempts FROM batcher.dead_letter ORDER BY ticket;
-- What belongs to no queue can be thrown away, and nothing else.
INSERT INTO batcher.dead_row (queue_id, ticket, priority, sqlstate, attempts, died_at) VALUES (-1, 1, 0, '22012', 1, now());
INSERT INTO batcher.queue_grant (queue_id, role, role_name, privilege) VALUES (-1, 0, 'public', 'enqueue');
SELECT batch_resume();
SELECT batch_create_queue('rr held', options => '{"flush_interval": "1 h"}');
SELECT batch_grant('rr held', 'public', 'enqueue');
SELECT rr_restore(140020, jsonb_build_object('ticket', 140021, 'payload', 1, 'queue_id', (SELECT id FROM batcher.queue_definition WHERE name = 'rr held')));
DELETE FROM batcher.spool;
DELETE FROM batcher.dead_row;
DELETE FROM batcher.queue_grant;
CREATE ROLE regress_batcher_rr IN ROLE pg_read_all_data, pg_write_all_data;
SET ROLE regress_batcher_rr;
DELETE FROM batcher.spool WHERE queue_id NOT IN (SELECT id FROM batcher.queue_definition);
RESET ROLE;
DROP ROLE regress_batcher_rr;
DELETE FROM batcher.spool WHERE queue_id NOT IN (SELECT id FROM batcher.queue_definition);
DELETE FROM batcher.dead_row WHERE queue_id NOT IN (SELECT id FROM batcher.queue_definition);
DELETE FROM batcher.queue_grant WHERE queue_id NOT IN (SELECT id FROM batcher.queue_definition);
SELECT number FROM batcher.spool;
SELECT batch_drop_queue('rr held', true), batch_resume();
SELECT count(*) FROM batcher.spool;

-- However many they are, they do not cost a look through the spool each.  A worker
-- that is idle has told the statistics.
CREATE FUNCTION rr_scans() RETURNS bigint LANGUAGE sql AS $$
    SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'batcher.spool'::regclass
$$;
SELECT rr_scans() AS before \gset
BEGIN;
INSERT INTO batcher.spool SELECT r.* FROM generate_series(150000, 152499) i,
    LATERAL jsonb_populate_record(rr_fixed(10 * i), CASE WHEN i % 2 = 1 THEN '{}' ELSE jsonb_build_object('ticket', 10 * i + 1, 'payload', i) END) r;
COMMIT;
SELECT batch_resume();
SELECT wait_until($$SELECT count(*) = 1250 FROM rr_target WHERE n >= 150000$$);
SELECT wait_until($$SELECT pending = 0 AND spilled = 0 FROM batcher.status WHERE queue = 'rr'$$);
SELECT wait_until($$SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'batcher worker' AND state <> 'idle'$$);
SELECT rr_scans() - :before BETWEEN 1 AND 50 AS few;
SELECT count(*), count(DISTINCT ticket), count(*) FILTER (WHERE payload IS NULL AND ticket % 20 = 10) AS unreadable
    FROM batcher.dead_letter WHERE ticket >= 1500000;
SELECT count(*), count(DISTINCT n), count(*) FILTER (WHERE n % 2 = 0) AS readable FROM rr_target WHERE n >= 150000;
SELECT rows_dead, batches_failed FROM batcher.stat_queue WHERE queue = 'rr';

-- Not even the queue of number 0 waits for such a tuple.
INSERT INTO batcher.queue_definition (id, name, owner, owner_name, search_path, options, paused, database, created_at)
    VALUES (0, 'rr zero', 0, current_user, 'public', '[]', false, 0, now());
SELECT rr_restore(200000, '{"queue_id": 0}');
\set VERBOSITY terse
SELECT count(*) FROM batcher.pending;
\set VERBOSITY default
SELECT batch_resume('rr zero');
SELECT wait_until($$SELECT count(*) = 1 FROM batcher.dead_letter WHERE queue = 'rr zero'$$);

-- Queues whose statement nobody has checked open their breaker, and say why.
CREATE FUNCTION rr_queue(id int, flush_sql text, options jsonb DEFAULT '{}', target text DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
    INSERT INTO batcher.queue_definition (id, name, owner, owner_name, flush_sql, target_name, search_path, options, paused, database, created_at)
        VALUES (id, 'rr' || id, 0, current_user, flush_sql, target, 'public', '{"breaker_recovery": "1 h"}' || options, false, 0, now());
    INSERT INTO batcher.spool SELECT (jsonb_populate_record(rr_fixed(300000 + 10 * id),
        jsonb_build_object('queue_id', id, 'ticket', 300001 + 10 * id, 'payload', 1))).*
$$;
BEGIN;
SELECT rr_queue(10001, '-- nothing');
SELECT rr_queue(10002, 'SELECT FROM batch; SELECT FROM batch');
SELECT rr_queue(10003, 'COMMIT');
SELECT rr_queue(10004, 'CREATE TABLE rr_made (a int)');
SELECT rr_queue(10005, 'SELECT FROM batch', '{"notify_sql": "-- nothing"}');
SELECT rr_queue(10006, 'SELECT FROM batch', '{"notify_sql": "DELETE FROM batcher.dead_row RETURNING $$c$$, $$t$$"}');
SELECT rr_queue(10007, 'SELECT payload INTO rr_made FROM batch UNION SELECT payload FROM batch');
SELECT rr_queue(10008, 'SELECT FROM batch', '{}', 'rr_target');
COMMIT;
SELECT batch_resume();
SELECT wait_until($$SELECT count(*) = 8 FROM batcher.status WHERE breaker_state = 'open'$$);
SELECT queue, breaker_reason FROM batcher.status WHERE breaker_state = 'open' ORDER BY queue;
SELECT queue, ticket, payload FROM batcher.pending ORDER BY ticket;
SELECT count(batch_drop_queue(queue, true)) FROM batcher.queue WHERE queue ~ '^rr1';

-- A ticket that was given before: no dead letter takes the place of another.
SELECT batch_create_queue('rr dead', 'SELECT 1 / (payload::int - payload::int) FROM batch', options => '{"flush_interval": "1 h", "max_attempts": 1}');
SELECT batch_enqueue('rr dead', '1') AS ticket \gset
SELECT batch_flush('rr dead') >= 0 AS done;
BEGIN;
SELECT rr_restore(500000, jsonb_build_object('ticket', :ticket, 'payload', 2,
    'queue_id', (SELECT id FROM batcher.queue_definition WHERE name = 'rr dead')));
COMMIT;
SELECT batch_resume();
SELECT batch_flush('rr dead') >= 0 AS done;
SELECT ticket = :ticket AS same_ticket, payload FROM batcher.dead_letter WHERE queue = 'rr dead' ORDER BY payload;
SELECT batch_create_queue('rr other');
-- Grants that come alone are those of the roles of their names after batch_resume.
CREATE ROLE regress_batcher_rr;
SELECT batch_grant('rr other', 'regress_batcher_rr', 'enqueue');
INSERT INTO batcher.queue_grant (queue_id, role, role_name, privilege)
    SELECT id, 0, 'regress_batcher_rr', unnest('{enqueue,manage}'::text[]) FROM batcher.queue_definition WHERE name = 'rr other';
SELECT paused, pause_reason FROM batcher.queue WHERE queue = 'rr other';
SELECT batch_resume();
SELECT paused, grants FROM batcher.queue WHERE queue = 'rr other';
SELECT count(*) FILTER (WHERE role = 0) AS unresolved, count(*) FROM batcher.queue_grant;
SELECT batch_drop_queue('rr other'), batch_drop_queue('rr dead');
DROP ROLE regress_batcher_rr;

SELECT batch_drop_queue('rr', true), batch_drop_queue('rr zero');
DROP FUNCTION rr_scans(), rr_restore(bigint, jsonb), rr_fixed(bigint), rr_queue(int, text, jsonb, text);
DROP TABLE rr_target;
