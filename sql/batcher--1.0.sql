/* sql/batcher--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION batcher" to load this file. \quit

-- Never IF NOT EXISTS: a schema that somebody else made is not taken over.
CREATE SCHEMA batcher;
COMMENT ON SCHEMA batcher IS 'tables and views of the extension batcher';
GRANT USAGE ON SCHEMA batcher TO PUBLIC;

--
-- Tables.  Nobody is granted anything on them: the functions and views below
-- decide who sees what.
--

-- The bound below which tickets and chunk numbers are given from memory.
CREATE SEQUENCE batcher.number INCREMENT BY 1048576;
COMMENT ON SEQUENCE batcher.number IS
'upper bound of the tickets given so far';

-- A dump carries that bound as a row of this table, which its trigger takes for
-- the sequence.  The sequence itself would be set back where it is above.
CREATE TABLE batcher.number_bound (
    bound bigint
);
COMMENT ON TABLE batcher.number_bound IS
'always empty; carries the bound of tickets from a dump to batcher.number';

-- 'id' is random, so that what a restore brings for a queue is never taken as
-- that of another one that was here before.
CREATE TABLE batcher.queue_definition (
    id integer PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    owner oid NOT NULL,
    owner_name text COLLATE "C" NOT NULL,
    flush_sql text,
    search_path text NOT NULL,
    options jsonb NOT NULL,
    paused boolean NOT NULL,
    pause_reason text,
    database oid NOT NULL,
    created_at timestamptz NOT NULL,
    notify_search_path text,
    target oid,
    target_name text COLLATE "C",
    row_type oid,
    row_type_name text COLLATE "C"
);
COMMENT ON TABLE batcher.queue_definition IS
'the queues; change them by the functions batch_*_queue only';
COMMENT ON COLUMN batcher.queue_definition.notify_search_path IS
'search_path of the option notify_sql';
COMMENT ON COLUMN batcher.queue_definition.database IS
'where the queue is served: in a copy of the database it is held';

-- A role is its OID; 0 is everybody (then the name is public), or, with another
-- name, a role that is to be found again after a restore.
CREATE TABLE batcher.queue_grant (
    queue_id integer,
    role oid,
    role_name text COLLATE "C",
    privilege text COLLATE "C",
    PRIMARY KEY (queue_id, privilege, role, role_name)
);
COMMENT ON TABLE batcher.queue_grant IS
'who may use a queue; change it by batch_grant and batch_revoke only';

-- One tuple holds rows of one transaction for one queue: a single row in the
-- first columns, several in arrays.  There is no index: the worker knows where
-- its tuples are.  A tuple fills at most one page, unless a single row is
-- larger; then its payload is stored out of line, uncompressed.  The order of
-- the columns leaves no gaps in a tuple with a single row.  'enqueuer' is the
-- role that bore the name 'enqueued_by'; 0: the tuple has come from another
-- server, and the name counts.
CREATE TABLE batcher.spool (
    number bigint NOT NULL,
    home bigint NOT NULL,
    enqueued_at timestamptz NOT NULL,
    queue_id integer NOT NULL,
    lane integer NOT NULL,
    ticket bigint,
    priority integer,
    attempts integer,
    immediate boolean,
    enqueuer oid NOT NULL,
    enqueued_by text NOT NULL,
    payload jsonb,
    key text,
    topic text,
    tickets bigint[],
    payloads jsonb[],
    keys text[],
    topics text[],
    priorities integer[],
    attempts_each integer[],
    immediate_each boolean[],
    alone boolean,
    alone_each boolean[]
) WITH (toast_tuple_target = 8160);
ALTER TABLE batcher.spool
    ALTER enqueued_by SET STORAGE MAIN,
    ALTER payload SET STORAGE EXTERNAL,
    ALTER key SET STORAGE EXTERNAL,
    ALTER topic SET STORAGE EXTERNAL,
    ALTER tickets SET STORAGE EXTERNAL,
    ALTER payloads SET STORAGE EXTERNAL,
    ALTER keys SET STORAGE EXTERNAL,
    ALTER topics SET STORAGE EXTERNAL,
    ALTER priorities SET STORAGE EXTERNAL,
    ALTER attempts_each SET STORAGE EXTERNAL,
    ALTER immediate_each SET STORAGE EXTERNAL,
    ALTER alone_each SET STORAGE EXTERNAL,
    REPLICA IDENTITY NOTHING;
COMMENT ON TABLE batcher.spool IS
'rows of durable queues that wait to be flushed; see the view batcher.pending';

-- Rows that failed too often.  'enqueuer' is the role of 'enqueued_by'; 0: it
-- was gone, or the row has come from another server.
CREATE TABLE batcher.dead_row (
    queue_id integer,
    ticket bigint,
    key text,
    topic text,
    priority integer NOT NULL,
    payload jsonb,
    sqlstate text NOT NULL,
    message text,
    detail text,
    context text,
    attempts integer NOT NULL,
    enqueued_at timestamptz,
    enqueued_by text,
    enqueuer oid,
    died_at timestamptz NOT NULL,
    PRIMARY KEY (queue_id, ticket)
);
COMMENT ON TABLE batcher.dead_row IS
'rows that failed too often; see the view batcher.dead_letter';

SELECT pg_catalog.pg_extension_config_dump('batcher.number_bound',
    'AS b (stored) RIGHT JOIN (SELECT s.last_value FROM batcher.number AS s)
         AS s (bound) ON true');
-- A role, a relation and a type are restored by their names, so a dump has to
-- carry the names of today, which the tables do not: ALTER ROLE tells us
-- nothing.  What follows the name of the table in the query of pg_dump is ours;
-- a column of this join takes the place of the stored name.  Of an owner that
-- is gone nobody is to be found again; its grants are left out.
SELECT pg_catalog.pg_extension_config_dump('batcher.queue_definition',
    'AS d (id, name, owner, stored_name, flush_sql, search_path, options,
           paused, pause_reason, database, created_at, notify_search_path,
           target, stored_target, row_type, stored_row_type)
     CROSS JOIN LATERAL (SELECT
         CASE WHEN d.owner OPERATOR(pg_catalog.=) 0 THEN d.stored_name
              ELSE pg_catalog.pg_get_userbyid(d.owner) END,
         COALESCE((SELECT pg_catalog.format(''%I.%I'', n.nspname, c.relname)
                   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
                       ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
                   WHERE c.oid OPERATOR(pg_catalog.=) d.target),
                  d.stored_target),
         COALESCE((SELECT pg_catalog.format(''%I.%I'', n.nspname, t.typname)
                   FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n
                       ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
                   WHERE t.oid OPERATOR(pg_catalog.=) d.row_type),
                  d.stored_row_type))
         AS r (owner_name, target_name, row_type_name)');
SELECT pg_catalog.pg_extension_config_dump('batcher.queue_grant',
    'AS g (queue_id, role, stored_name)
     CROSS JOIN LATERAL (SELECT g.stored_name
         WHERE g.role OPERATOR(pg_catalog.=) 0
         UNION ALL SELECT r.rolname FROM pg_catalog.pg_roles r
         WHERE r.oid OPERATOR(pg_catalog.=) g.role) AS r (role_name)');
SELECT pg_catalog.pg_extension_config_dump('batcher.spool', '');
SELECT pg_catalog.pg_extension_config_dump('batcher.dead_row', '');

-- These triggers let pass what our own functions write.  Anything else that is
-- inserted comes from elsewhere: a restore, or logical replication.  Nobody
-- changes or removes by hand what memory knows the place of; the spool is
-- written by calls of the heap itself, which fire no trigger.
CREATE FUNCTION batcher.arrived()
RETURNS trigger
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_arrived';
REVOKE ALL ON FUNCTION batcher.arrived() FROM PUBLIC;
COMMENT ON FUNCTION batcher.arrived() IS
'trigger: hold what a restore brings, skip what logical replication brings, refuse changes by hand';

CREATE TRIGGER arrived
    BEFORE INSERT OR UPDATE OR DELETE ON batcher.number_bound
    FOR EACH ROW EXECUTE FUNCTION batcher.arrived();
ALTER TABLE batcher.number_bound ENABLE ALWAYS TRIGGER arrived;
CREATE TRIGGER arrived
    BEFORE INSERT OR UPDATE OR DELETE ON batcher.queue_definition
    FOR EACH ROW EXECUTE FUNCTION batcher.arrived();
ALTER TABLE batcher.queue_definition ENABLE ALWAYS TRIGGER arrived;
CREATE TRIGGER arrived
    BEFORE INSERT OR UPDATE OR DELETE ON batcher.queue_grant
    FOR EACH ROW EXECUTE FUNCTION batcher.arrived();
ALTER TABLE batcher.queue_grant ENABLE ALWAYS TRIGGER arrived;
CREATE TRIGGER arrived
    BEFORE INSERT OR UPDATE OR DELETE ON batcher.spool
    FOR EACH ROW EXECUTE FUNCTION batcher.arrived();
ALTER TABLE batcher.spool ENABLE ALWAYS TRIGGER arrived;
CREATE TRIGGER truncated BEFORE TRUNCATE ON batcher.spool
    FOR EACH STATEMENT EXECUTE FUNCTION batcher.arrived();
ALTER TABLE batcher.spool ENABLE ALWAYS TRIGGER truncated;
CREATE TRIGGER arrived
    BEFORE INSERT OR UPDATE OR DELETE ON batcher.dead_row
    FOR EACH ROW EXECUTE FUNCTION batcher.arrived();
ALTER TABLE batcher.dead_row ENABLE ALWAYS TRIGGER arrived;
CREATE TRIGGER truncated BEFORE TRUNCATE ON batcher.dead_row
    FOR EACH STATEMENT EXECUTE FUNCTION batcher.arrived();
ALTER TABLE batcher.dead_row ENABLE ALWAYS TRIGGER truncated;

CREATE FUNCTION batcher.changed()
RETURNS trigger
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_changed';
REVOKE ALL ON FUNCTION batcher.changed() FROM PUBLIC;
COMMENT ON FUNCTION batcher.changed() IS
'trigger: tell all sessions and the worker, at commit, that definitions changed';

CREATE TRIGGER changed
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON batcher.queue_definition
    FOR EACH STATEMENT EXECUTE FUNCTION batcher.changed();
ALTER TABLE batcher.queue_definition ENABLE ALWAYS TRIGGER changed;
CREATE TRIGGER changed
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON batcher.queue_grant
    FOR EACH STATEMENT EXECUTE FUNCTION batcher.changed();
ALTER TABLE batcher.queue_grant ENABLE ALWAYS TRIGGER changed;

--
-- Queues
--

CREATE FUNCTION batch_create_queue(
    queue text,
    flush_sql text DEFAULT NULL,
    target regclass DEFAULT NULL,
    row_type regtype DEFAULT NULL,
    options jsonb DEFAULT '{}',
    if_not_exists boolean DEFAULT false)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_create_queue';
-- A queue takes memory and workers of the server: a DBA says who may make one.
REVOKE ALL ON FUNCTION
    batch_create_queue(text, text, regclass, regtype, jsonb, boolean)
    FROM PUBLIC;
COMMENT ON FUNCTION
    batch_create_queue(text, text, regclass, regtype, jsonb, boolean) IS
'make a queue';

CREATE FUNCTION batch_alter_queue(
    queue text,
    options jsonb DEFAULT '{}',
    flush_sql text DEFAULT NULL,
    target regclass DEFAULT NULL,
    row_type regtype DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_alter_queue';
COMMENT ON FUNCTION
    batch_alter_queue(text, jsonb, text, regclass, regtype) IS
'change options or the statement of a queue';

CREATE FUNCTION batch_drop_queue(queue text, force boolean DEFAULT false)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_drop_queue';
COMMENT ON FUNCTION batch_drop_queue(text, boolean) IS
'drop a queue; refused while rows wait, unless forced';

CREATE FUNCTION batch_grant(queue text, role text, privilege text)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_grant';
COMMENT ON FUNCTION batch_grant(text, text, text) IS
'let a role enqueue into a queue, manage it, or listen';

CREATE FUNCTION batch_revoke(queue text, role text, privilege text)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_revoke';
COMMENT ON FUNCTION batch_revoke(text, text, text) IS
'undo batch_grant';

CREATE FUNCTION batch_change_owner(queue text, new_owner text)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_change_owner';
COMMENT ON FUNCTION batch_change_owner(text, text) IS
'give a queue another owner, with whose rights its statement runs';

CREATE FUNCTION batch_pause(queue text DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_pause';
COMMENT ON FUNCTION batch_pause(text) IS
'let rows gather without flushing them';

CREATE FUNCTION batch_resume(queue text DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_resume';
COMMENT ON FUNCTION batch_resume(text) IS
'flush again what batch_pause or a restore holds';

CREATE FUNCTION batch_purge(queue text)
RETURNS bigint
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_purge';
COMMENT ON FUNCTION batch_purge(text) IS
'throw away the waiting rows of a queue, and say how many there were';

--
-- Rows in, flush, wait
--

CREATE FUNCTION batch_enqueue(
    queue text,
    payload jsonb,
    key text DEFAULT NULL,
    topic text DEFAULT NULL,
    priority integer DEFAULT 0,
    immediate boolean DEFAULT false)
RETURNS bigint
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_enqueue';
COMMENT ON FUNCTION
    batch_enqueue(text, jsonb, text, text, integer, boolean) IS
'put a row into a queue, with the transaction, and return its ticket';

CREATE FUNCTION batch_enqueue_many(
    queue text,
    payloads jsonb[],
    keys text[] DEFAULT NULL,
    topics text[] DEFAULT NULL,
    priority integer DEFAULT 0,
    immediate boolean DEFAULT false)
RETURNS bigint
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_enqueue_many';
COMMENT ON FUNCTION
    batch_enqueue_many(text, jsonb[], text[], text[], integer, boolean) IS
'put many rows into a queue, with the transaction, and return how many';

CREATE FUNCTION batch_enqueue_row(
    queue text,
    value record,
    key text DEFAULT NULL,
    topic text DEFAULT NULL,
    priority integer DEFAULT 0,
    immediate boolean DEFAULT false)
RETURNS bigint
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_enqueue_row';
COMMENT ON FUNCTION
    batch_enqueue_row(text, record, text, text, integer, boolean) IS
'put a composite value into a typed queue, and return its ticket';

CREATE FUNCTION batch_enqueue_trigger()
RETURNS trigger
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_enqueue_trigger';
COMMENT ON FUNCTION batch_enqueue_trigger() IS
'trigger: put each changed row of a table into a queue';

CREATE FUNCTION batch_flush(
    queue text DEFAULT NULL,
    timeout interval DEFAULT '30 s')
RETURNS bigint
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_flush';
COMMENT ON FUNCTION batch_flush(text, interval) IS
'flush now what waits, and return how many rows were flushed';

CREATE FUNCTION batch_wait(
    queue text,
    ticket bigint,
    timeout interval DEFAULT '30 s')
RETURNS text
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_wait';
COMMENT ON FUNCTION batch_wait(text, bigint, interval) IS
'wait until a row is settled, and say how';

CREATE FUNCTION batch_retry_dead(queue text, tickets bigint[] DEFAULT NULL)
RETURNS bigint
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_retry_dead';
COMMENT ON FUNCTION batch_retry_dead(text, bigint[]) IS
'put dead letters back into their queue, and return how many';

CREATE FUNCTION batch_purge_dead(queue text, tickets bigint[] DEFAULT NULL)
RETURNS bigint
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_purge_dead';
COMMENT ON FUNCTION batch_purge_dead(text, bigint[]) IS
'throw dead letters away, and return how many';

CREATE FUNCTION batch_reset_breaker(queue text)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_reset_breaker';
COMMENT ON FUNCTION batch_reset_breaker(text) IS
'close the breaker of a queue, and flush again';

CREATE FUNCTION batch_reset_stats(queue text DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'batcher_reset_stats';
COMMENT ON FUNCTION batch_reset_stats(text) IS
'set the counters of a queue to zero';

--
-- Views.  Each is all of a function in C, which decides by the rights of
-- current_user what to return: a WHERE in a view could be preceded by a
-- function that its user wrote.
--

CREATE FUNCTION batcher.get_queue(
    OUT queue text, OUT owner text, OUT grants jsonb, OUT flush_sql text,
    OUT target text, OUT row_type text, OUT search_path text, OUT options jsonb, OUT paused boolean,
    OUT pause_reason text, OUT created_at timestamptz)
RETURNS SETOF record
LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'batcher_get_queue';
COMMENT ON FUNCTION batcher.get_queue() IS 'what batcher.queue shows';

CREATE VIEW batcher.queue AS SELECT * FROM batcher.get_queue();
COMMENT ON VIEW batcher.queue IS 'the queues and their definitions';

CREATE FUNCTION batcher.get_option(
    OUT name text, OUT type text, OUT "default" text, OUT min text,
    OUT max text, OUT description text)
RETURNS SETOF record
LANGUAGE C STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'batcher_get_option';
COMMENT ON FUNCTION batcher.get_option() IS 'what batcher.option shows';

CREATE VIEW batcher.option AS SELECT * FROM batcher.get_option();
COMMENT ON VIEW batcher.option IS 'the options that a queue can have';

CREATE FUNCTION batcher.get_status(
    OUT queue text, OUT pending bigint, OUT pending_bytes bigint,
    OUT spilled bigint, OUT timers integer,
    OUT oldest_at timestamptz, OUT oldest_age interval,
    OUT oldest_runnable_age interval, OUT next_flush_at timestamptz,
    OUT is_flushing boolean, OUT paused boolean, OUT pause_reason text,
    OUT enabled boolean, OUT breaker_state text, OUT breaker_reason text,
    OUT consecutive_failures integer, OUT retry_at timestamptz,
    OUT last_error text, OUT current_batch_size integer,
    OUT current_window interval, OUT size_reason text,
    OUT arrival_rate double precision, OUT lanes integer,
    OUT worker_pid integer)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'batcher_get_status';
COMMENT ON FUNCTION batcher.get_status() IS 'what batcher.status shows';

CREATE VIEW batcher.status AS SELECT * FROM batcher.get_status();
COMMENT ON VIEW batcher.status IS 'what each queue is doing now';

CREATE FUNCTION batcher.get_stat_queue(
    OUT queue text, OUT rows_enqueued bigint, OUT rows_flushed bigint,
    OUT rows_superseded bigint, OUT rows_retried bigint, OUT rows_failed bigint, OUT rows_dead bigint,
    OUT rows_purged bigint, OUT rows_spilled bigint,
    OUT batches bigint, OUT batches_by_size bigint,
    OUT batches_by_time bigint, OUT batches_forced bigint,
    OUT batches_immediate bigint, OUT batches_debounced bigint,
    OUT batches_swept bigint, OUT batches_failed bigint,
    OUT batches_split bigint, OUT rows_tried_alone bigint,
    OUT breaker_opened bigint,
    OUT messages_sent bigint, OUT messages_saved bigint,
    OUT messages_dropped bigint, OUT message_bytes bigint,
    OUT flush_time interval, OUT avg_batch_size double precision,
    OUT last_flush_at timestamptz, OUT last_error text,
    OUT last_error_at timestamptz, OUT deadline_missed bigint,
    OUT stats_reset timestamptz)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'batcher_get_stat_queue';
COMMENT ON FUNCTION batcher.get_stat_queue() IS
'what batcher.stat_queue shows';

CREATE VIEW batcher.stat_queue AS SELECT * FROM batcher.get_stat_queue();
COMMENT ON VIEW batcher.stat_queue IS 'counters of each queue';

CREATE FUNCTION batcher.get_config(
    queue text, OUT name text, OUT config jsonb)
RETURNS SETOF record
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'batcher_get_config';
COMMENT ON FUNCTION batcher.get_config(text) IS
'effective options of a queue, or of all, and where they come from';

CREATE FUNCTION batcher.get_worker(
    OUT pid integer, OUT database text, OUT state text, OUT queue text,
    OUT rows integer, OUT since timestamptz)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'batcher_get_worker';
COMMENT ON FUNCTION batcher.get_worker() IS 'what batcher.worker shows';

CREATE VIEW batcher.worker AS SELECT * FROM batcher.get_worker();
COMMENT ON VIEW batcher.worker IS 'the background workers';

CREATE FUNCTION batcher.get_pending(
    OUT queue text, OUT ticket bigint, OUT key text, OUT topic text,
    OUT priority integer, OUT payload jsonb, OUT attempts integer,
    OUT durable boolean, OUT enqueued_at timestamptz, OUT enqueued_by text)
RETURNS SETOF record
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'batcher_get_pending';
COMMENT ON FUNCTION batcher.get_pending() IS 'what batcher.pending shows';

CREATE VIEW batcher.pending AS SELECT * FROM batcher.get_pending();
COMMENT ON VIEW batcher.pending IS
'the waiting rows of the queues that one may manage';

CREATE FUNCTION batcher.get_dead_letter(
    OUT queue text, OUT ticket bigint, OUT key text, OUT topic text,
    OUT payload jsonb, OUT sqlstate text, OUT message text, OUT detail text,
    OUT context text, OUT attempts integer, OUT enqueued_at timestamptz,
    OUT enqueued_by text, OUT died_at timestamptz)
RETURNS SETOF record
LANGUAGE C STABLE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'batcher_get_dead_letter';
COMMENT ON FUNCTION batcher.get_dead_letter() IS
'what batcher.dead_letter shows';

CREATE VIEW batcher.dead_letter AS SELECT * FROM batcher.get_dead_letter();
COMMENT ON VIEW batcher.dead_letter IS
'rows that failed too often, of the queues that one may manage';

-- What no view has is config; it also says whether the queue may be seen.
CREATE FUNCTION batch_stats(queue text DEFAULT NULL)
RETURNS jsonb
LANGUAGE sql VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
    WITH one AS (
        SELECT c.name, to_jsonb(s) || to_jsonb(t)
            || jsonb_build_object('worker', to_jsonb(w), 'config', c.config)
            AS stats
        FROM batcher.get_config($1) AS c
            JOIN batcher.status AS s ON s.queue = c.name
            JOIN batcher.stat_queue AS t ON t.queue = c.name
            LEFT JOIN batcher.worker AS w ON w.pid = s.worker_pid
    )
    SELECT CASE WHEN $1 IS NULL
        THEN coalesce(jsonb_object_agg(name, stats), '{}')
        ELSE jsonb_agg(stats) -> 0 END
    FROM one
$$;
COMMENT ON FUNCTION batch_stats(text) IS
'all that is known of a queue, or of all queues, as one object';

GRANT SELECT ON batcher.queue, batcher.option, batcher.status,
    batcher.stat_queue, batcher.worker, batcher.pending, batcher.dead_letter
    TO PUBLIC;

-- Fires the trigger of above, which tells the launcher at commit that this
-- database has the extension.
UPDATE batcher.queue_definition SET paused = paused WHERE false;
