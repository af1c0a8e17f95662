-- Rights that an owner grants: the table of the privileges, line by line.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE ROLE regress_batcher_owner;
CREATE ROLE regress_batcher_manager;
CREATE ROLE regress_batcher_enqueuer;
CREATE ROLE regress_batcher_listener;
CREATE ROLE regress_batcher_other;
GRANT EXECUTE ON FUNCTION batch_create_queue TO regress_batcher_owner;
CREATE TABLE gr_target (n int, enqueued_by text, flushed_by text);
GRANT ALL ON gr_target TO regress_batcher_owner;

SET ROLE regress_batcher_owner;
SELECT batch_create_queue('gr', 'INSERT INTO gr_target SELECT payload::int, batch_enqueued_by, current_user FROM batch', options => '{"flush_interval": "1 h"}');
SELECT queue, owner, grants FROM batcher.queue WHERE queue = 'gr';
SELECT batch_grant('gr', 'regress_batcher_manager', 'manage');
SELECT batch_grant('gr', 'regress_batcher_enqueuer', 'enqueue');
SELECT batch_grant('gr', 'regress_batcher_listener', 'LISTEN');
SELECT queue, owner, grants FROM batcher.queue WHERE queue = 'gr';
-- Twice is once.
SELECT batch_grant('gr', 'regress_batcher_enqueuer', 'enqueue');
SELECT grants FROM batcher.queue WHERE queue = 'gr';
-- Taking away what was not given is nothing.
SELECT batch_revoke('gr', 'regress_batcher_other', 'enqueue'), batch_revoke('gr', 'public', 'manage');
SELECT grants FROM batcher.queue WHERE queue = 'gr';

-- What is wrong with a call.
SELECT batch_grant('gr', 'regress_batcher_nobody', 'enqueue');
\echo :SQLSTATE
SELECT batch_revoke('gr', 'regress_batcher_nobody', 'enqueue');
\echo :SQLSTATE
SELECT batch_grant('gr', 'regress_batcher_other', 'own');
\echo :SQLSTATE
SELECT batch_grant('gr', 'regress_batcher_other', '');
SELECT batch_grant('gr none', 'regress_batcher_other', 'enqueue');
\echo :SQLSTATE
SELECT batch_grant(NULL, 'regress_batcher_other', 'enqueue');
\echo :SQLSTATE
SELECT batch_grant('gr', NULL, 'enqueue');
\echo :SQLSTATE
SELECT batch_revoke('gr', 'regress_batcher_other', NULL);
\echo :SQLSTATE
RESET ROLE;

-- What each of them may do.  'yes' is what the function did not refuse.
CREATE FUNCTION gr_try(who name, command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    what text := 'yes';
BEGIN
    EXECUTE format('SET ROLE %I', who);
    BEGIN
        EXECUTE 'SELECT ' || command;
        RAISE EXCEPTION 'undo' USING ERRCODE = 'ZZ999';
    EXCEPTION
        WHEN SQLSTATE 'ZZ999' THEN NULL;
        WHEN insufficient_privilege THEN what := SQLERRM;
    END;
    RESET ROLE;
    RETURN what;
END $$;
SELECT command,
       gr_try('regress_batcher_owner', command) AS owner,
       gr_try('regress_batcher_manager', command) AS manage,
       gr_try('regress_batcher_enqueuer', command) AS enqueue,
       gr_try('regress_batcher_listener', command) AS listen,
       gr_try('regress_batcher_other', command) AS other
FROM unnest(ARRAY[
    'batch_alter_queue(''gr'', flush_sql => ''SELECT FROM batch'')',
    'batch_grant(''gr'', ''public'', ''enqueue'')',
    'batch_revoke(''gr'', ''regress_batcher_enqueuer'', ''enqueue'')',
    'batch_drop_queue(''gr'')',
    'batch_alter_queue(''gr'', ''{"flush_size": 7}'')',
    'batch_pause(''gr'')',
    'batch_resume(''gr'')',
    'batch_flush(''gr'')',
    'batch_purge(''gr'')',
    'batch_reset_stats(''gr'')',
    'batch_retry_dead(''gr'')',
    'batch_purge_dead(''gr'')',
    'batch_reset_breaker(''gr'')',
    'batch_enqueue(''gr'', ''1'')',
    'batch_enqueue_many(''gr'', ''{1}'')',
    'batch_wait(''gr'', 1, ''0'')']) WITH ORDINALITY AS c (command, n)
ORDER BY n;
-- A target and a row type are SQL too.
SELECT gr_try('regress_batcher_manager', 'batch_alter_queue(''gr'', target => ''gr_target'')');
SELECT gr_try('regress_batcher_manager', 'batch_alter_queue(''gr'', row_type => ''gr_target'')');

-- What each of them sees.
CREATE FUNCTION gr_sees(who name, what text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    EXECUTE format('SET ROLE %I', who);
    EXECUTE 'SELECT count(*) FROM ' || what INTO n;
    RESET ROLE;
    RETURN n;
END $$;
SELECT batch_enqueue('gr', '1') > 0 AS has_ticket;
SELECT what,
       gr_sees('regress_batcher_owner', what) AS owner,
       gr_sees('regress_batcher_manager', what) AS manage,
       gr_sees('regress_batcher_enqueuer', what) AS enqueue,
       gr_sees('regress_batcher_listener', what) AS listen,
       gr_sees('regress_batcher_other', what) AS other
FROM unnest(ARRAY['batcher.queue', 'batcher.status', 'batcher.stat_queue',
    'batcher.pending']) WITH ORDINALITY AS c (what, n)
ORDER BY n;

-- Rows of an enqueuer bear his name and are flushed as the owner.
SET ROLE regress_batcher_enqueuer;
SELECT batch_enqueue('gr', '2') > 0 AS has_ticket;
SET ROLE regress_batcher_manager;
SELECT batch_flush('gr');
-- All that he may manage is this one.
SELECT batch_enqueue('gr', '3') > 0 AS has_ticket;
SELECT batch_flush();
RESET ROLE;
SELECT n, enqueued_by = current_user AS by_superuser, enqueued_by, flushed_by FROM gr_target WHERE n > 1 ORDER BY n;

-- Dead letters: an enqueuer sees those of his own rows.
SET ROLE regress_batcher_manager;
SELECT batch_alter_queue('gr', '{"max_attempts": 1}');
SELECT batch_enqueue('gr', '"of the manager"') > 0 AS has_ticket;
SET ROLE regress_batcher_enqueuer;
SELECT batch_enqueue('gr', '"of the enqueuer"') > 0 AS has_ticket;
RESET ROLE;
SELECT batch_flush('gr') IS NOT NULL AS flushed;
SELECT gr_sees('regress_batcher_owner', 'batcher.dead_letter') AS owner,
       gr_sees('regress_batcher_manager', 'batcher.dead_letter') AS manage,
       gr_sees('regress_batcher_enqueuer', 'batcher.dead_letter') AS enqueue,
       gr_sees('regress_batcher_listener', 'batcher.dead_letter') AS listen,
       gr_sees('regress_batcher_other', 'batcher.dead_letter') AS other;
SET ROLE regress_batcher_enqueuer;
SELECT payload, enqueued_by FROM batcher.dead_letter;
-- What is tried again bears his name still.
SET ROLE regress_batcher_manager;
SELECT batch_pause('gr');
SELECT batch_retry_dead('gr');
SELECT payload, enqueued_by FROM batcher.pending WHERE queue = 'gr' ORDER BY ticket;
SELECT batch_resume('gr');
SELECT batch_flush('gr') IS NOT NULL AS flushed;
SET ROLE regress_batcher_enqueuer;
SELECT payload, enqueued_by FROM batcher.dead_letter;
RESET ROLE;

-- Of a row that is read back from the spool the role is known, not only its
-- name: one that bears the name later sees nothing.
CREATE ROLE regress_batcher_gone;
SET ROLE regress_batcher_owner;
SELECT batch_grant('gr', 'regress_batcher_gone', 'enqueue');
SET ROLE regress_batcher_gone;
SELECT batch_enqueue('gr', '"of one that is gone"') > 0 AS has_ticket;
SET ROLE regress_batcher_enqueuer;
SELECT batch_enqueue('gr', '"of one with another name"') > 0 AS has_ticket;
RESET ROLE;
VACUUM FULL batcher.spool;
SELECT batch_revoke('gr', 'regress_batcher_gone', 'enqueue');
DROP ROLE regress_batcher_gone;
CREATE ROLE regress_batcher_gone;
ALTER ROLE regress_batcher_enqueuer RENAME TO regress_batcher_renamed;
SELECT batch_grant('gr', 'regress_batcher_gone', 'enqueue');
SELECT payload, enqueued_by FROM batcher.pending WHERE queue = 'gr' ORDER BY ticket;
SELECT batch_flush('gr') IS NOT NULL AS flushed;
SELECT payload, enqueued_by FROM batcher.dead_letter WHERE payload::text ~ 'of one' ORDER BY ticket;
SET ROLE regress_batcher_gone;
SELECT payload, enqueued_by FROM batcher.dead_letter WHERE payload::text ~ 'of one';
SET ROLE regress_batcher_renamed;
SELECT payload, enqueued_by FROM batcher.dead_letter WHERE payload::text ~ 'of one';
RESET ROLE;
ALTER ROLE regress_batcher_renamed RENAME TO regress_batcher_enqueuer;
SELECT batch_revoke('gr', 'regress_batcher_gone', 'enqueue');
DROP ROLE regress_batcher_gone;

-- A revoked right is gone at the commit, also for a session that used it.
SET ROLE regress_batcher_owner;
SELECT batch_revoke('gr', 'regress_batcher_enqueuer', 'enqueue');
SET ROLE regress_batcher_enqueuer;
SELECT batch_enqueue('gr', '4');
\echo :SQLSTATE
SELECT count(*) FROM batcher.dead_letter;
-- It comes and goes with its transaction, and with a savepoint.
RESET ROLE;
BEGIN;
SELECT batch_grant('gr', 'regress_batcher_enqueuer', 'enqueue');
SAVEPOINT s;
SET LOCAL ROLE regress_batcher_enqueuer;
SELECT batch_enqueue('gr', '5') > 0 AS has_ticket;
RESET ROLE;
SELECT batch_revoke('gr', 'regress_batcher_enqueuer', 'enqueue');
SELECT gr_try('regress_batcher_enqueuer', 'batch_enqueue(''gr'', ''6'')');
ROLLBACK TO s;
SELECT gr_try('regress_batcher_enqueuer', 'batch_enqueue(''gr'', ''6'')');
ROLLBACK;
SELECT gr_try('regress_batcher_enqueuer', 'batch_enqueue(''gr'', ''6'')');

-- A role that has another's privileges has its grants.
GRANT regress_batcher_manager TO regress_batcher_enqueuer;
SELECT gr_try('regress_batcher_enqueuer', 'batch_enqueue(''gr'', ''6'')');
REVOKE regress_batcher_manager FROM regress_batcher_enqueuer;
SELECT gr_try('regress_batcher_enqueuer', 'batch_enqueue(''gr'', ''6'')');

-- One that does not inherit them has not, before it becomes that role.
CREATE ROLE regress_batcher_plain NOINHERIT;
GRANT regress_batcher_owner, regress_batcher_manager TO regress_batcher_plain;
SELECT command, gr_try('regress_batcher_plain', command)
FROM unnest(ARRAY['batch_enqueue(''gr'', ''6'')', 'batch_flush(''gr'')', 'batch_drop_queue(''gr'')']) AS c (command);
SELECT gr_sees('regress_batcher_plain', 'batcher.queue');
SET SESSION AUTHORIZATION regress_batcher_plain;
SELECT batch_purge('gr');
\echo :SQLSTATE
SET ROLE regress_batcher_manager;
SELECT batch_purge('gr') IS NOT NULL AS may;
RESET SESSION AUTHORIZATION;
DROP ROLE regress_batcher_plain;

-- Everybody, a role that comes later included.
SELECT batch_grant('gr', 'public', 'enqueue');
CREATE ROLE regress_batcher_later;
SELECT gr_try('regress_batcher_later', 'batch_enqueue(''gr'', ''6'')');
SELECT gr_try('regress_batcher_later', 'batch_flush(''gr'')');
SELECT grants FROM batcher.queue WHERE queue = 'gr';
SELECT batch_revoke('gr', 'public', 'enqueue');
SELECT gr_try('regress_batcher_later', 'batch_enqueue(''gr'', ''6'')');

-- Names and OIDs: a role that is renamed keeps its grant, a new one of its old
-- name has none.
ALTER ROLE regress_batcher_manager RENAME TO regress_batcher_renamed;
CREATE ROLE regress_batcher_manager;
SELECT grants FROM batcher.queue WHERE queue = 'gr';
SELECT gr_try('regress_batcher_manager', 'batch_flush(''gr'')'), gr_try('regress_batcher_renamed', 'batch_flush(''gr'')');
-- Both can have one, and lose it.
SELECT batch_grant('gr', 'regress_batcher_manager', 'manage');
SELECT grants FROM batcher.queue WHERE queue = 'gr';
SELECT batch_revoke('gr', 'regress_batcher_renamed', 'manage');
SELECT grants FROM batcher.queue WHERE queue = 'gr';
-- One that is gone gives nothing, nor does one that is made again.
DROP ROLE regress_batcher_manager;
SELECT grants FROM batcher.queue WHERE queue = 'gr';
CREATE ROLE regress_batcher_manager;
SELECT grants FROM batcher.queue WHERE queue = 'gr';
SELECT gr_try('regress_batcher_manager', 'batch_flush(''gr'')');
SELECT batch_grant('gr', 'regress_batcher_manager', 'manage');
SELECT gr_try('regress_batcher_manager', 'batch_flush(''gr'')');

-- What a manager is granted, he cannot grant.
SET ROLE regress_batcher_manager;
SELECT batch_grant('gr', 'regress_batcher_other', 'enqueue');
\echo :SQLSTATE
RESET ROLE;

-- Nobody writes the table by hand: what is inserted comes from a restore, and
-- gives nothing.
INSERT INTO batcher.queue_grant SELECT id, 'regress_batcher_other'::regrole, 'regress_batcher_other', 'manage' FROM batcher.queue_definition WHERE name = 'gr';
SELECT gr_try('regress_batcher_other', 'batch_flush(''gr'')');
UPDATE batcher.queue_grant SET privilege = 'manage';
DELETE FROM batcher.queue_grant;
TRUNCATE batcher.queue_grant;

SELECT count(*) FROM batcher.queue_grant;
-- Grants go with their queue.
SELECT batch_resume('gr'), batch_purge('gr') IS NOT NULL AS purged;
SELECT batch_drop_queue('gr');
SELECT count(*) FROM batcher.queue_grant;
DROP FUNCTION gr_try(name, text), gr_sees(name, text);
DROP TABLE gr_target;
DROP OWNED BY regress_batcher_owner;
DROP ROLE regress_batcher_owner, regress_batcher_manager, regress_batcher_renamed, regress_batcher_enqueuer, regress_batcher_listener, regress_batcher_other, regress_batcher_later;
