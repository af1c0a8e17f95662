-- What each role sees of a queue, while it is being flushed and when it fails.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE ROLE regress_batcher_owner;
CREATE ROLE regress_batcher_manager;
CREATE ROLE regress_batcher_enqueuer;
CREATE ROLE regress_batcher_listener;
CREATE ROLE regress_batcher_other;
CREATE ROLE regress_batcher_monitor IN ROLE pg_monitor;
GRANT EXECUTE ON FUNCTION batch_create_queue TO regress_batcher_owner;
CREATE TABLE si_target (n int CHECK (n > 0));
GRANT ALL ON si_target TO regress_batcher_owner;

-- What a query shows to a role.
CREATE FUNCTION si_as(who name, query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    shown text;
BEGIN
    EXECUTE format('SET LOCAL ROLE %I', who);
    BEGIN
        EXECUTE format('SELECT string_agg(q::text, '' '') FROM (%s) AS q', query) INTO shown;
    EXCEPTION WHEN insufficient_privilege THEN
        shown := SQLSTATE;
    END;
    RESET ROLE;
    RETURN coalesce(shown, 'nothing');
END $$;
CREATE TABLE si_role (n serial, who name);
INSERT INTO si_role (who) VALUES ('regress_batcher_owner'), ('regress_batcher_manager'), ('regress_batcher_enqueuer'),
    ('regress_batcher_listener'), ('regress_batcher_other'), ('regress_batcher_monitor');

SET ROLE regress_batcher_owner;
SELECT batch_create_queue('si', 'INSERT INTO si_target SELECT payload::int FROM batch, (SELECT pg_advisory_xact_lock(720821)) l',
    options => '{"flush_interval": "1 ms", "max_attempts": 1, "breaker_threshold": 1, "breaker_recovery": "1 h"}');
SELECT batch_grant('si', 'regress_batcher_manager', 'manage');
SELECT batch_grant('si', 'regress_batcher_enqueuer', 'enqueue');
SELECT batch_grant('si', 'regress_batcher_listener', 'listen');
RESET ROLE;

-- While a flush is held the worker is seen by everybody, and its queue only by
-- those who may know of it.
SELECT pg_advisory_lock(720821);
SELECT batch_enqueue('si', '1') AS ticket \gset
SELECT wait_until($$SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 720821 AND NOT granted$$);
SELECT who, si_as(who, $$SELECT queue, rows FROM batcher.worker WHERE state = 'flushing'$$) AS worker,
       si_as(who, $$SELECT is_flushing, pending FROM batcher.status$$) AS status,
       si_as(who, $$SELECT payload FROM batcher.pending$$) AS pending
    FROM si_role ORDER BY n;
-- The server's own view shows the statement to superusers and pg_read_all_stats.
SELECT who, si_as(who, $$SELECT query, wait_event FROM pg_stat_activity WHERE pid = (SELECT pid FROM batcher.worker WHERE state = 'flushing')$$) AS activity
    FROM si_role ORDER BY n;
SELECT pg_advisory_unlock(720821);
SELECT batch_wait('si', :ticket);

-- A flush that fails: the text of the error, the reason of the breaker and the
-- statement are for those who may manage the queue, the numbers for pg_monitor
-- too, and a dead letter for who enqueued the row.
SET ROLE regress_batcher_enqueuer;
SELECT batch_enqueue('si', '-720') > 0 AS has_ticket;
RESET ROLE;
SELECT wait_until($$SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'si'$$);
SELECT who, si_as(who, $$SELECT breaker_state, breaker_reason, last_error, consecutive_failures FROM batcher.status$$) AS status
    FROM si_role ORDER BY n;
SELECT who, si_as(who, $$SELECT last_error, last_error_at IS NOT NULL, rows_dead, batches_failed, breaker_opened FROM batcher.stat_queue$$) AS stat_queue
    FROM si_role ORDER BY n;
SELECT who, si_as(who, $$SELECT queue, owner, flush_sql, search_path, options->>'max_attempts', grants->>'manage' FROM batcher.queue$$) AS queue
    FROM si_role ORDER BY n;
SELECT who, si_as(who, $$SELECT payload, sqlstate, message FROM batcher.dead_letter$$) AS dead_letter
    FROM si_role ORDER BY n;
SELECT who, si_as(who, $$SELECT (s ->> 'last_error') || ' ' || (s ->> 'breaker_reason') FROM batch_stats('si') AS s$$) AS stats
    FROM si_role ORDER BY n;
SELECT who, si_as(who, $$SELECT strpos(batch_stats()::text, 'si_target') > 0 AS tells, strpos(batch_stats()::text, '"si"') > 0 AS names$$) AS stats
    FROM si_role ORDER BY n;

SELECT batch_drop_queue('si');
DROP TABLE si_target, si_role;
DROP FUNCTION si_as(name, text);
DROP OWNED BY regress_batcher_owner;
DROP ROLE regress_batcher_owner, regress_batcher_manager, regress_batcher_enqueuer, regress_batcher_listener, regress_batcher_other, regress_batcher_monitor;
