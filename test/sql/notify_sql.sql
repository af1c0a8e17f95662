-- Messages that a queue's own SQL makes.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

\set listen '\\o |sed -E \'s/"at": "[^"]+", //; s/"epoch": "[0-9a-f]+"/"epoch": E/; s/ received from .*//; s/Asynchronous notification/message/; s/ with payload/:/; s/x{2000,}/x.../\''

CREATE SCHEMA ns;
CREATE TABLE ns_score (player text PRIMARY KEY, score int CHECK (score < 1000));
LISTEN ns;
LISTEN ns_a;
LISTEN ns_b;

-- A queue that only announces: "batch" is there, "result" is not.
SELECT batch_create_queue('ns', options => '{"flush_interval": "1 h",
    "notify_sql": "SELECT ''ns_'' || batch_topic, jsonb_build_object(''n'', count(*), ''seq'', ''mine'') FROM batch GROUP BY batch_topic ORDER BY 1"}');
SELECT batch_enqueue('ns', '1', topic => 'b') > 0 AND batch_enqueue('ns', '2', topic => 'a') > 0
    AND batch_enqueue('ns', '3', topic => 'b') > 0 AND batch_enqueue('ns', '4') > 0 AS enqueued;
:listen
SELECT batch_flush('ns');
\o
SELECT rows_flushed, messages_sent, messages_saved FROM batcher.stat_queue WHERE queue = 'ns';
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''ns'', to_jsonb(count(*)) FROM result"}');

-- Texts, and JSON that is no object, are sent as they are, without a number;
-- equal ones of a flush are one.  Nulls send nothing.
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''ns'', payload->>''t'' FROM batch ORDER BY batch_pos"}');
SELECT batch_enqueue_many('ns', ARRAY['{"t": "a"}', '{"t": "b ''\" ä"}', '{"t": "a"}', '{"t": ""}', '{}']::jsonb[]);
:listen
SELECT batch_flush('ns');
\o
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT payload->>''c'', payload->''p'' FROM batch ORDER BY batch_pos"}');
SELECT batch_enqueue_many('ns', ARRAY['{"c": "ns", "p": [1, "x"]}', '{"c": "ns", "p": {"a": {"epoch": 1}}}', '{"c": "ns", "p": 5}',
    '{"c": null, "p": 6}', '{"c": "ns"}', '{"c": "ns", "p": {}}']::jsonb[]);
:listen
SELECT batch_flush('ns');
\o

-- The statement's result.
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''ns'', jsonb_object_agg(player, score ORDER BY player) FROM result HAVING count(*) > 0"}',
    flush_sql => 'INSERT INTO ns_score SELECT payload->>0, (payload->>1)::int FROM batch
        ON CONFLICT (player) DO UPDATE SET score = ns_score.score + excluded.score WHERE excluded.score <> 0 RETURNING player, score');
SELECT batch_reset_stats('ns');
SELECT batch_enqueue_many('ns', ARRAY['["ann", 1]', '["bob", 2]']::jsonb[]);
:listen
SELECT batch_flush('ns'), wait_sent('ns', 1);
\o
SELECT batch_reset_stats('ns');
SELECT batch_enqueue_many('ns', ARRAY['["ann", 0]', '["bob", 5]', '["cid", 7]']::jsonb[]);
:listen
SELECT batch_flush('ns'), wait_sent('ns', 1);
\o
SELECT batch_reset_stats('ns');
-- An empty result has its columns; the SELECT sees what the statement did.
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''ns'', jsonb_build_object(''changed'', (SELECT count(player) FROM result), ''rows'', (SELECT count(*) FROM batch), ''sum'', (SELECT sum(score) FROM ns_score))"}');
SELECT batch_enqueue_many('ns', ARRAY['["ann", 0]', '["bob", 0]']::jsonb[]);
:listen
SELECT batch_flush('ns'), wait_sent('ns', 1);
\o
SELECT batch_reset_stats('ns');
SELECT batch_enqueue_many('ns', ARRAY['["dan", 10]']::jsonb[]);
:listen
SELECT batch_flush('ns'), wait_sent('ns', 1);
\o
SELECT batch_reset_stats('ns');
-- A SELECT has a result too, a statement without RETURNING has none.
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''ns'', max(a)::text FROM result"}', flush_sql => 'SELECT payload::text AS a FROM batch');
SELECT batch_enqueue_many('ns', '{3,7}');
:listen
SELECT batch_flush('ns'), wait_sent('ns', 1);
\o
SELECT batch_reset_stats('ns');
SELECT batch_alter_queue('ns', flush_sql => 'DELETE FROM ns_score WHERE false');

-- It is checked when it is given, with the statement that it belongs to.
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT 1"}');
\echo :SQLSTATE
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT 1, 2, 3"}');
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT 1, ''x''"}');
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''x'', 1"}');
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''x'', ''{}''::json"}');
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''x'', b FROM result"}');
SELECT batch_alter_queue('ns', '{"notify_sql": "SELEC 1, 2"}');
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT 1, 2; SELECT 3, 4"}');
SELECT batch_alter_queue('ns', '{"notify_sql": " "}');
SELECT batch_alter_queue('ns', '{"notify_sql": ""}');
SELECT batch_alter_queue('ns', '{"notify_sql": "DELETE FROM ns_score RETURNING player, player"}');
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''a'', ''b'' INTO x"}');
SELECT batch_alter_queue('ns', '{"notify_sql": "(SELECT ''a''::text, ''b''::text INTO x) UNION SELECT ''c'', ''d''"}');
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''a''::text, ''b''::text INTO x UNION SELECT ''c'', ''d'' EXCEPT SELECT ''e'', ''f''"}');
SELECT batch_alter_queue('ns', '{"notify_sql": 5}');
-- The messages of a flush take no more than so much.
SELECT batch_create_queue('ns much', options => '{"flush_interval": "1 h", "max_attempts": 1,
    "notify_sql": "SELECT ''ns_nobody'', repeat(''x'', 7000) FROM batch, generate_series(1, payload::int)"}');
SELECT batch_enqueue_many('ns much', '{1,10000,2}') AS n;
SELECT batch_flush('ns much');
SELECT payload, sqlstate, message FROM batcher.dead_letter WHERE queue = 'ns much';
SELECT batch_drop_queue('ns much');
CREATE TEMP TABLE ns_temp (a text);
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT a, a FROM ns_temp"}');
SELECT options->'notify_sql' AS notify_sql FROM batcher.queue WHERE queue = 'ns';

-- It has a search_path of its own.
CREATE FUNCTION ns.word() RETURNS text LANGUAGE sql AS $$SELECT 'of ns'$$;
CREATE FUNCTION ns_word() RETURNS text LANGUAGE sql AS $$SELECT 'of public'$$;
SET search_path = ns, public;
SELECT batch_alter_queue('ns', '{"notify_sql": "SELECT ''ns'', word() || a FROM result"}');
RESET search_path;
SELECT batch_alter_queue('ns', flush_sql => 'SELECT payload::text || ns_word() AS a FROM batch');
SELECT batch_enqueue('ns', '1') > 0 AS enqueued;
:listen
SELECT batch_flush('ns'), wait_sent('ns', 1);
\o
SELECT batch_reset_stats('ns');

-- What NOTIFY would refuse is an error of the flush, which finds the row; the
-- messages of the others go out, and none of what has failed.
SELECT batch_alter_queue('ns', '{"max_attempts": 1, "notify_sql": "SELECT player, to_jsonb(player) FROM result ORDER BY player"}',
    flush_sql => 'INSERT INTO ns_score SELECT payload->>''k'', (payload->>''s'')::int FROM batch RETURNING player');
SELECT batch_enqueue_many('ns', ARRAY['{"k": "ns_a", "s": 1}', '{"k": "", "s": 1}', '{"k": "ns_b", "s": 1}',
    '{"k": "ns", "s": 1000}', '{"k": "0123456789012345678901234567890123456789012345678901234567890123", "s": 1}']::jsonb[]);
:listen
SELECT batch_flush('ns'), wait_sent('ns', 2);
\o
SELECT payload->>'k' AS k, sqlstate, message FROM batcher.dead_letter WHERE queue = 'ns' ORDER BY ticket;
SELECT player FROM ns_score WHERE score = 1 ORDER BY 1;
SELECT rows_flushed, rows_dead, messages_sent FROM batcher.stat_queue WHERE queue = 'ns';
-- The same where the messages go out with the flush.
SELECT batch_drop_queue('ns');
SELECT batch_create_queue('ns', options => '{"flush_interval": "1 h", "max_attempts": 1,
    "notify_sql": "SELECT ''ns'', payload FROM batch ORDER BY batch_pos"}');
SELECT batch_enqueue('ns', jsonb_build_object('x', repeat('x', n))) > 0 AS enqueued
    FROM unnest('{10,7800,7926,7927,8000,20}'::int[]) n;
SELECT batch_enqueue('ns', to_jsonb(repeat('x', n))) > 0 AS enqueued FROM unnest('{7997,7998}'::int[]) n;
:listen
SELECT batch_flush('ns');
\o
SELECT sqlstate, message, detail FROM batcher.dead_letter WHERE queue = 'ns' ORDER BY ticket;

-- SQL is the owner's to change, also to reset.
CREATE ROLE ns_owner;
CREATE ROLE ns_manager;
GRANT EXECUTE ON FUNCTION batch_create_queue(text, text, regclass, regtype, jsonb, boolean) TO ns_owner;
SET ROLE ns_owner;
SELECT batch_create_queue('ns owned', options => '{"flush_interval": "1 h", "notify_sql": "SELECT ''ns'', current_user::text FROM batch"}');
SELECT batch_grant('ns owned', 'ns_manager', 'manage');
SELECT batch_grant('ns owned', 'public', 'enqueue');
SET ROLE ns_manager;
SELECT batch_alter_queue('ns owned', '{"notify_sql": "SELECT ''ns'', ''other''"}');
SELECT batch_alter_queue('ns owned', '{"notify_sql": null}');
SELECT batch_alter_queue('ns owned', '{"notify_channel": "x"}');
SELECT batch_enqueue('ns owned', '1') > 0 AS enqueued;
:listen
SELECT batch_flush('ns owned');
\o
RESET ROLE;
-- It cannot do what a restricted operation cannot, and is planned as the owner.
SELECT has_table_privilege('ns_owner', 'ns_score', 'SELECT') AS may_read;
SET ROLE ns_owner;
SELECT batch_alter_queue('ns owned', '{"notify_sql": "SELECT player, player FROM ns_score"}');
-- (says that it was not in time, or that the breaker is open already)
SET client_min_messages = error;
SELECT batch_enqueue('ns owned', '1') > 0 AS enqueued;
SELECT batch_flush('ns owned', '0');
RESET ROLE;
RESET client_min_messages;
SELECT wait_until($$SELECT breaker_state = 'open' FROM batcher.status WHERE queue = 'ns owned'$$);
SELECT breaker_state, breaker_reason FROM batcher.status WHERE queue = 'ns owned';

-- Of a typed queue "batch" has the columns, with their types.
CREATE TYPE ns.game AS (player text, score int, tags text[]);
SELECT batch_create_queue('ns typed', 'INSERT INTO ns_score SELECT player, score FROM batch ORDER BY batch_pos RETURNING player, score AS points',
    row_type => 'ns.game', options => jsonb_build_object('flush_interval', '1 h', 'notify_sql',
    $$SELECT 'ns', jsonb_build_object('rows', (SELECT jsonb_agg(jsonb_build_array(player, score, tags[1], batch_key) ORDER BY batch_pos) FROM batch),
        'result', (SELECT jsonb_agg(r ORDER BY points) FROM result r))$$));
SELECT batch_enqueue_row('ns typed', ROW('eve', 1, '{"x y",z}')::ns.game, 'k') > 0 AND batch_enqueue('ns typed', '{"score": 2, "player": "fay"}') > 0 AS enqueued;
:listen
SELECT batch_flush('ns typed'), wait_sent('ns typed', 1);
\o
SELECT batch_alter_queue('ns typed', '{"notify_sql": "SELECT ''ns'', payload FROM batch"}');
-- Rows of a type that has changed while they wait.
SELECT batch_alter_queue('ns typed', flush_sql => 'SELECT FROM batch', options => '{"notify_sql": "SELECT ''ns'', to_jsonb(b) - ''{batch_ticket,batch_enqueued_at,batch_enqueued_by}''::text[] FROM batch b ORDER BY batch_pos"}');
SELECT batch_enqueue_row('ns typed', ROW('gil', 3, NULL)::ns.game) > 0 AS enqueued;
ALTER TYPE ns.game DROP ATTRIBUTE tags, ADD ATTRIBUTE level int, ALTER ATTRIBUTE score TYPE text;
:listen
SELECT batch_flush('ns typed'), wait_sent('ns typed', 2);
\o
-- A target, whose insert returns nothing.  A column that a row does not name is
-- null here, whatever its default.
CREATE TABLE ns.log (id int GENERATED ALWAYS AS IDENTITY, word text NOT NULL, level int DEFAULT 7 CHECK (level < 10));
SELECT batch_create_queue('ns target', target => 'ns.log', options => '{"notify_sql": "SELECT ''ns'', word FROM result"}');
SELECT batch_create_queue('ns target', target => 'ns.log', options => '{"flush_interval": "1 h", "max_attempts": 1,
    "notify_sql": "SELECT ''ns'', jsonb_build_object(''word'', word, ''level'', level, ''pos'', batch_pos, ''in target'', (SELECT count(*) FROM ns.log)) FROM batch ORDER BY batch_pos"}');
SELECT batch_enqueue_many('ns target', ARRAY['{"word": "one"}', '{"word": "two", "level": 2}', '{"level": 3, "word": "three"}']::jsonb[]);
:listen
SELECT batch_flush('ns target'), wait_sent('ns target', 3);
\o
SELECT * FROM ns.log ORDER BY id;
-- A row that the target does not take is not told of.
SELECT batch_enqueue_many('ns target', ARRAY['{"word": "four"}', '{"word": "five", "level": 10}', '{"word": "six"}']::jsonb[]);
:listen
SELECT batch_flush('ns target'), wait_sent('ns target', 5);
\o
SELECT payload, sqlstate FROM batcher.dead_letter WHERE queue = 'ns target';
-- The target is another one now.
ALTER TABLE ns.log RENAME TO book;
ALTER TABLE ns.book RENAME level TO height;
SELECT batch_alter_queue('ns target', '{"notify_sql": "SELECT ''ns'', word || height FROM batch"}');
SELECT batch_enqueue('ns target', '{"word": "seven", "height": 1}') > 0 AS enqueued;
:listen
SELECT batch_flush('ns target'), wait_sent('ns target', 6);
\o
SELECT batch_drop_queue('ns typed'), batch_drop_queue('ns target');
DROP TABLE ns.book;
DROP TYPE ns.game;

UNLISTEN *;
SELECT batch_drop_queue('ns'), batch_drop_queue('ns owned', force => true);
REVOKE EXECUTE ON FUNCTION batch_create_queue(text, text, regclass, regtype, jsonb, boolean) FROM ns_owner;
DROP ROLE ns_owner, ns_manager;
DROP TABLE ns_score;
DROP FUNCTION ns_word();
DROP SCHEMA ns CASCADE;
