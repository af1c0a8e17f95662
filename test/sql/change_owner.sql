-- Giving a queue to another role, and what becomes of one whose owner is gone.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE ROLE regress_batcher_team;
CREATE ROLE regress_batcher_owner;
CREATE ROLE regress_batcher_member IN ROLE regress_batcher_owner, regress_batcher_team;
CREATE ROLE regress_batcher_other;
GRANT EXECUTE ON FUNCTION batch_create_queue TO regress_batcher_owner;
CREATE TABLE co_target (n int, flushed_by text);
GRANT ALL ON co_target TO regress_batcher_team, regress_batcher_owner;
SET ROLE regress_batcher_owner;
SELECT batch_create_queue('co', 'INSERT INTO co_target SELECT payload::int, current_user FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_grant('co', 'regress_batcher_other', 'manage');

-- What is wrong with a call.
SELECT batch_change_owner('co', 'regress_batcher_nobody');
\echo :SQLSTATE
SELECT batch_change_owner('co', 'public');
\echo :SQLSTATE
SELECT batch_change_owner('co none', 'regress_batcher_owner');
\echo :SQLSTATE
SELECT batch_change_owner(NULL, 'regress_batcher_owner');
\echo :SQLSTATE
SELECT batch_change_owner('co', NULL);
\echo :SQLSTATE
-- He is not a member of the role: its rights are not his to use.  (The message
-- is the server's, and of each major another.)
\set VERBOSITY sqlstate
SELECT batch_change_owner('co', 'regress_batcher_team');
\set VERBOSITY default
-- A manager is not the owner, even to make it his.
SET ROLE regress_batcher_other;
SELECT batch_change_owner('co', 'regress_batcher_other');
\echo :SQLSTATE
-- To whom it belongs already.
SET ROLE regress_batcher_owner;
SELECT batch_change_owner('co', 'regress_batcher_owner');

-- A member of both may.  It is undone with its transaction.
SET ROLE regress_batcher_member;
BEGIN;
SELECT batch_change_owner('co', 'regress_batcher_team');
SELECT queue, owner FROM batcher.queue WHERE queue = 'co';
ROLLBACK;
SELECT queue, owner FROM batcher.queue WHERE queue = 'co';
SELECT batch_enqueue('co', '1') > 0 AS has_ticket;
SELECT batch_flush('co');
SELECT batch_change_owner('co', 'regress_batcher_team');
SELECT queue, owner, grants FROM batcher.queue WHERE queue = 'co';
SELECT batch_enqueue('co', '2') > 0 AS has_ticket;
SELECT batch_flush('co');
RESET ROLE;
SELECT * FROM co_target ORDER BY n;
-- The old owner has no rights any more; grants are still there.
SET ROLE regress_batcher_owner;
SELECT batch_enqueue('co', '3');
\echo :SQLSTATE
SELECT count(*) FROM batcher.queue;
SET ROLE regress_batcher_other;
SELECT batch_enqueue('co', '3') > 0 AS has_ticket;
RESET ROLE;
SELECT batch_flush('co');
SELECT * FROM co_target WHERE n > 2;

-- A manager may change options, though not what is checked as the owner.
SET ROLE regress_batcher_other;
SELECT batch_alter_queue('co', '{"flush_size": 5}');
RESET ROLE;

-- Gone: it is held, and grants hold.
DROP OWNED BY regress_batcher_team;
DROP ROLE regress_batcher_team;
SET ROLE regress_batcher_other;
SELECT batch_enqueue('co', '4') > 0 AS has_ticket;
SELECT batch_flush('co');
SELECT queue, owner, paused, pause_reason FROM batcher.queue WHERE queue = 'co';
-- Nothing brings the owner back but another owner: not a role of that name,
-- for those who could make one or may resume.
RESET ROLE;
CREATE ROLE regress_batcher_team;
GRANT ALL ON co_target TO regress_batcher_team;
SET ROLE regress_batcher_team;
SELECT batch_enqueue('co', '5');
\echo :SQLSTATE
SELECT count(*) FROM batcher.queue;
SET ROLE regress_batcher_other;
SELECT batch_resume('co');
\echo :SQLSTATE
SELECT batch_resume();
RESET ROLE;
SELECT batch_resume('co');
\echo :SQLSTATE
SELECT batch_alter_queue('co', flush_sql => 'SELECT FROM batch');
\echo :SQLSTATE
-- Not even by way of another change, which stores what is there.
SET ROLE regress_batcher_other;
SELECT batch_alter_queue('co', '{"flush_size": 6}');
RESET ROLE;
SELECT batch_resume('co');
SELECT queue, owner, paused, pause_reason FROM batcher.queue WHERE queue = 'co';
SELECT count(*) FROM co_target WHERE n = 4;
SELECT batch_change_owner('co', 'regress_batcher_owner');
SELECT queue, owner, paused, pause_reason FROM batcher.queue WHERE queue = 'co';
SELECT batch_flush('co');
SELECT * FROM co_target WHERE n > 3;

-- One that was paused besides stays paused.
SELECT batch_change_owner('co', 'regress_batcher_team');
DROP OWNED BY regress_batcher_team;
DROP ROLE regress_batcher_team;
SELECT pause_reason FROM batcher.queue WHERE queue = 'co';
SELECT batch_pause();
SELECT pause_reason FROM batcher.queue WHERE queue = 'co';
SELECT batch_resume('co');
SELECT batch_change_owner('co', 'regress_batcher_owner');
SELECT queue, owner, paused, pause_reason FROM batcher.queue WHERE queue = 'co';
SET ROLE regress_batcher_owner;
SELECT batch_resume('co');
SELECT queue, owner, paused, pause_reason FROM batcher.queue WHERE queue = 'co';
RESET ROLE;

SELECT batch_drop_queue('co');
DROP TABLE co_target;
DROP OWNED BY regress_batcher_owner;
DROP ROLE regress_batcher_owner, regress_batcher_member, regress_batcher_other;
