-- The statement runs as the queue's owner, with the saved search_path, and
-- leaves nothing behind.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE ROLE regress_batcher_owner;
GRANT EXECUTE ON FUNCTION batch_create_queue TO regress_batcher_owner;
CREATE SCHEMA fo_schema AUTHORIZATION regress_batcher_owner;
CREATE TABLE fo_secret (s text);

-- Flushes a queue that fails, and shows why; its rows are thrown away.
CREATE FUNCTION fo_why(q text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    why text;
    before timestamptz := (SELECT last_error_at FROM batcher.stat_queue WHERE queue = q);
BEGIN
    SET LOCAL client_min_messages = error;
    PERFORM batch_flush(q, '0');
    IF wait_until(format('SELECT last_error_at IS DISTINCT FROM %L FROM batcher.stat_queue WHERE queue = %L', before, q)) THEN
        SELECT last_error INTO why FROM batcher.stat_queue WHERE queue = q;
    END IF;
    PERFORM batch_purge(q);
    PERFORM batch_reset_breaker(q);
    RETURN why;
END $$;

-- Identity and search_path are those of when the statement was given.
SET ROLE regress_batcher_owner;
SET search_path = fo_schema, no_such_schema, pg_temp, public;
CREATE TABLE fo_target (n int, usr text, ses boolean, path text);
SELECT batch_create_queue('fo', 'INSERT INTO fo_target SELECT payload::int, current_user, session_user = current_user, current_setting(''search_path'') FROM batch', options => '{"flush_interval": "1 h"}');
RESET search_path;
SELECT search_path FROM batcher.queue WHERE queue = 'fo';
RESET ROLE;
SET search_path = pg_catalog;
SELECT public.batch_enqueue('fo', '1') > 0 AS has_ticket;
SELECT public.batch_flush('fo');
RESET search_path;
SELECT n, usr, path FROM fo_schema.fo_target;

-- The owner's rights, not those of a superuser.
SET ROLE regress_batcher_owner;
SELECT batch_alter_queue('fo', flush_sql => 'INSERT INTO fo_schema.fo_target (usr) SELECT s FROM fo_secret, batch');
RESET ROLE;
SELECT batch_enqueue('fo', '2') > 0 AS has_ticket;
SELECT fo_why('fo');

-- A security-restricted operation: what is refused.
CREATE FUNCTION fo_run(command text) RETURNS text LANGUAGE plpgsql
    AS 'BEGIN EXECUTE command; RETURN ''done''; END';
SET ROLE regress_batcher_owner;
SELECT batch_alter_queue('fo', flush_sql => 'SELECT fo_run(payload #>> ''{}'') FROM batch');
RESET ROLE;
SELECT batch_enqueue('fo', '"SET ROLE NONE"') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT batch_enqueue('fo', '"SET SESSION AUTHORIZATION DEFAULT"') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT batch_enqueue('fo', '"CREATE TEMP TABLE t (a int)"') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT batch_enqueue('fo', '"LISTEN c"') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT batch_enqueue('fo', '"DECLARE c CURSOR WITH HOLD FOR SELECT 1"') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT batch_enqueue('fo', '"PREPARE p AS SELECT 1"') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT batch_enqueue('fo', '"DISCARD ALL"') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT batch_enqueue('fo', '"COMMIT"') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT batch_enqueue('fo', '"VACUUM"') > 0 AS has_ticket;
SELECT fo_why('fo');
-- NOTIFY is one of the effects of a flush.
SELECT batch_enqueue('fo', '"NOTIFY fo_channel"') > 0 AS has_ticket;
SELECT batch_flush('fo');

-- Deferrable constraints are immediate.
CREATE TABLE fo_deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
GRANT ALL ON fo_deferred TO regress_batcher_owner;
SET ROLE regress_batcher_owner;
SELECT batch_alter_queue('fo', flush_sql => 'INSERT INTO fo_deferred SELECT payload::int FROM batch');
RESET ROLE;
SELECT batch_enqueue_many('fo', '{1,2,3}');
SELECT batch_flush('fo');
SELECT batch_enqueue_many('fo', '{4,2}');
SELECT fo_why('fo');
SELECT n FROM fo_deferred ORDER BY n;
-- For rows that memory alone has, too.
SELECT batch_alter_queue('fo', '{"durable": false}');
SELECT batch_enqueue_many('fo', '{5,6}');
SELECT batch_flush('fo');
SELECT batch_enqueue_many('fo', '{7,2}');
SELECT fo_why('fo');
SELECT n FROM fo_deferred ORDER BY n;
SELECT batch_alter_queue('fo', '{"durable": null}');
-- At the end of the statement: a batch may pass through a violation.
SET ROLE regress_batcher_owner;
SELECT batch_alter_queue('fo', flush_sql => 'UPDATE fo_deferred SET n = n + payload::int FROM batch');
RESET ROLE;
SELECT batch_enqueue('fo', '1') > 0 AS has_ticket;
SELECT batch_flush('fo');
SELECT n FROM fo_deferred ORDER BY n;
-- A foreign key, too, of each row alone.
CREATE TABLE fo_parent (n int PRIMARY KEY);
CREATE TABLE fo_child (n int REFERENCES fo_parent DEFERRABLE INITIALLY DEFERRED);
GRANT ALL ON fo_parent, fo_child TO regress_batcher_owner;
INSERT INTO fo_parent VALUES (1), (2);
SET ROLE regress_batcher_owner;
SELECT batch_create_queue('fo child', 'INSERT INTO fo_child SELECT payload::int FROM batch',
    options => '{"flush_interval": "1 h", "max_attempts": 1}');
RESET ROLE;
SELECT batch_enqueue_many('fo child', '{1,3,2}');
SELECT batch_flush('fo child');
SELECT n FROM fo_child ORDER BY n;
SELECT payload, sqlstate, message FROM batcher.dead_letter WHERE queue = 'fo child';
SELECT batch_drop_queue('fo child');
DROP TABLE fo_child, fo_parent;
-- A deferred trigger fires in the flush, as the owner.
CREATE TABLE fo_fired (usr text, path text);
GRANT ALL ON fo_fired TO regress_batcher_owner;
CREATE FUNCTION fo_fire() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN INSERT INTO public.fo_fired VALUES (current_user, current_setting(''search_path'')); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER fo_fire AFTER INSERT ON fo_deferred
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fo_fire();
SET ROLE regress_batcher_owner;
SELECT batch_alter_queue('fo', flush_sql => 'INSERT INTO fo_deferred SELECT payload::int FROM batch');
RESET ROLE;
SELECT batch_enqueue('fo', '100') > 0 AS has_ticket;
SELECT batch_flush('fo');
SELECT * FROM fo_fired;
-- The statement cannot defer them again.
SET ROLE regress_batcher_owner;
SELECT batch_alter_queue('fo', flush_sql => 'WITH d AS MATERIALIZED (SELECT fo_run(''SET CONSTRAINTS ALL DEFERRED'')) INSERT INTO fo_deferred SELECT payload::int FROM batch, d');
RESET ROLE;
SELECT batch_enqueue('fo', '101') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT count(*) FROM fo_fired;

-- What a flush sets does not leak into the next: settings, advisory locks,
-- values of sequences.
CREATE SEQUENCE fo_sequence CACHE 10;
GRANT ALL ON fo_sequence TO regress_batcher_owner;
CREATE TABLE fo_seen (n int, before text, mem text, nth bigint);
GRANT ALL ON fo_seen TO regress_batcher_owner;
SET ROLE regress_batcher_owner;
SELECT batch_alter_queue('fo', flush_sql => 'WITH c AS MATERIALIZED (
        SELECT payload, current_setting(''fo.leak'', true) AS leak, current_setting(''work_mem'') AS mem,
               nextval(''fo_sequence'') AS nth, set_config(''fo.leak'', ''leaked'', false),
               set_config(''work_mem'', ''77MB'', false), pg_advisory_lock(720816)
        FROM batch)
    INSERT INTO fo_seen SELECT payload::int, leak, mem, nth FROM c');
RESET ROLE;
SELECT batch_enqueue('fo', '2') > 0 AS has_ticket;
SELECT batch_flush('fo');
SELECT batch_enqueue('fo', '3') > 0 AS has_ticket;
SELECT batch_flush('fo');
SELECT n, nullif(before, '') AS before, mem = current_setting('work_mem') AS same_mem, nth FROM fo_seen ORDER BY n;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory';
-- Also not when the flush fails.
SET ROLE regress_batcher_owner;
SELECT batch_alter_queue('fo', flush_sql => 'SELECT pg_advisory_lock(720816), set_config(''fo.leak'', ''leaked'', false), 1 / (batch_pos - 1) FROM batch');
RESET ROLE;
SELECT batch_enqueue('fo', '4') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory';

-- When somebody else than the owner changes the queue, the owner's code does not
-- run in his session, where it could take and release advisory locks.
CREATE FUNCTION fo_lock(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM pg_advisory_unlock_all(), pg_advisory_lock(720817);
    RETURN n;
END $$;
ALTER FUNCTION fo_lock OWNER TO regress_batcher_owner;
SELECT pg_advisory_lock(720818);
SELECT batch_alter_queue('fo', flush_sql => 'SELECT fo_lock(1) FROM batch');
SELECT batch_alter_queue('fo', '{"notify_sql": "SELECT fo_lock(1)::text, payload FROM batch"}');
SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SELECT batch_alter_queue('fo', '{"notify_sql": null}');
SELECT pg_advisory_unlock(720818);

-- Settings of the database and the role that would change a flush.
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''serializable''', current_database()); END $$;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = ''1 ms''', current_database()); END $$;
ALTER ROLE regress_batcher_owner SET search_path = pg_catalog;
SET ROLE regress_batcher_owner;
CREATE TABLE fo_schema.fo_settings (isolation text, lock text, role text);
SET search_path = fo_schema, public;
SELECT batch_create_queue('fo settings', 'INSERT INTO fo_settings SELECT current_setting(''transaction_isolation''), current_setting(''lock_timeout''), current_setting(''session_replication_role'') FROM batch, pg_sleep(0.05)', options => '{"flush_interval": "1 h"}');
RESET search_path;
RESET ROLE;
SELECT batch_enqueue('fo settings', '1') > 0 AS has_ticket;
SELECT batch_flush('fo settings');
SELECT * FROM fo_schema.fo_settings;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET ALL', current_database()); END $$;

-- flush_timeout.
SET ROLE regress_batcher_owner;
SELECT batch_alter_queue('fo', '{"flush_timeout": "50 ms"}', 'SELECT pg_sleep(60) FROM batch');
RESET ROLE;
SELECT batch_enqueue('fo', '5') > 0 AS has_ticket;
SELECT fo_why('fo');
SELECT batch_alter_queue('fo', '{"durable": false}');
SELECT batch_enqueue('fo', '6') > 0 AS has_ticket;
SELECT fo_why('fo');

SELECT batch_drop_queue('fo'), batch_drop_queue('fo settings');
DROP TABLE fo_secret, fo_deferred, fo_fired, fo_seen;
DROP SEQUENCE fo_sequence;
DROP FUNCTION fo_why(text), fo_run(text), fo_fire();
DROP SCHEMA fo_schema CASCADE;
DROP OWNED BY regress_batcher_owner;
DROP ROLE regress_batcher_owner;
