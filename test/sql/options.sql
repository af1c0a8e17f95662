-- Options: the view, and each way in which a value can be wrong.
-- M4.3 (contradictory settings are refused)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

SELECT name, type, "default", min, max FROM batcher.option ORDER BY name COLLATE "C";
SELECT count(*) FROM batcher.option WHERE description IS NULL OR description = '';

-- Every option, and both ways of giving what has units.
SELECT batch_create_queue('op', 'SELECT FROM batch', options => '{
    "durable": true, "flush_size": 10, "max_batch_size": 20,
    "flush_interval": "2 min", "flush_timeout": 1500,
    "memory_limit": "16MB", "when_full": "spill",
    "notify_channel": "c_{queue}_{topic}_{key}", "notify_format": "summary",
    "notify_group_by": "event", "notify_names": {"a": "b"}, "notify_encoding": "zlib"}');
SELECT batch_alter_queue('op', '{"memory_limit": 65536, "flush_interval": 0.5e3, "flush_timeout": "PT1M30S"}');
SELECT jsonb_pretty(options) FROM batcher.queue WHERE queue = 'op';

-- Shows the error of options, with all its parts but the context.
CREATE FUNCTION op_try(given jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    state text; message text; detail text; hint text;
BEGIN
    PERFORM batch_alter_queue('op', given);
    RAISE INFO 'accepted: %', given;
EXCEPTION WHEN others THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE,
        message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
        hint = PG_EXCEPTION_HINT;
    RAISE INFO '%: %', state, message;
    IF detail <> '' THEN RAISE INFO '       detail: %', detail; END IF;
    IF hint <> '' THEN RAISE INFO '       hint: %', hint; END IF;
END $$;

-- No object.
SELECT op_try('[]');
SELECT op_try('"flush_size"');
SELECT op_try('null');
-- Unknown names.
SELECT op_try('{"flush_sise": 10}');
SELECT op_try('{"Durable": true}');
SELECT op_try('{"channel": "x"}');
SELECT op_try('{"": 1}');
SELECT op_try(jsonb_build_object(repeat('x', 300), 1));
-- Another type.
SELECT op_try('{"durable": "yes"}');
SELECT op_try('{"durable": 1}');
SELECT op_try('{"flush_size": "10"}');
SELECT op_try('{"flush_size": 1.5}');
SELECT op_try('{"flush_size": true}');
SELECT op_try('{"flush_size": [10]}');
SELECT op_try('{"flush_interval": "soon"}');
SELECT op_try('{"flush_interval": ""}');
SELECT op_try('{"flush_interval": {"ms": 5}}');
SELECT op_try('{"memory_limit": "16 MBit"}');
SELECT op_try('{"memory_limit": false}');
SELECT op_try('{"when_full": "overflow"}');
SELECT op_try('{"when_full": 1}');
SELECT op_try('{"notify_format": "Summary"}');
SELECT op_try('{"notify_channel": 7}');
SELECT op_try('{"notify_names": "{}"}');
SELECT op_try('{"notify_names": []}');
SELECT op_try('{"notify_names": {"a": null}}');
-- Out of range.
SELECT op_try('{"flush_size": 0}');
SELECT op_try('{"flush_size": -1}');
SELECT op_try('{"max_batch_size": 1000001}');
SELECT op_try('{"max_batch_size": 1e400}');
SELECT op_try('{"flush_interval": 0}');
SELECT op_try('{"flush_interval": "-1 s"}');
SELECT op_try('{"flush_interval": "25 h"}');
SELECT op_try('{"flush_interval": "300000 years"}');
SELECT op_try('{"flush_timeout": 0.1}');
SELECT op_try('{"flush_timeout": "61 min"}');
SELECT op_try('{"memory_limit": -1}');
SELECT op_try('{"memory_limit": "2TB"}');
SELECT op_try('{"notify_channel": ""}');
SELECT op_try(jsonb_build_object('notify_channel', repeat('x', 1025)));
-- Placeholders.
SELECT op_try('{"notify_channel": "x_{quueue}"}');
SELECT op_try('{"notify_channel": "x_{queue"}');
SELECT op_try('{"notify_group_by": "batch_count"}');
-- Contradictions, also with what was given before.
SELECT op_try('{"flush_size": 21}');
SELECT op_try('{"max_batch_size": 9}');
SELECT op_try('{"durable": false}');
SELECT op_try('{"durable": false, "when_full": "spill"}');
-- Nothing of all that has changed anything.
SELECT jsonb_pretty(options) FROM batcher.queue WHERE queue = 'op';

-- A null resets, and with that contradictions end.
SELECT op_try('{"flush_size": 21, "max_batch_size": null}');
SELECT op_try('{"durable": false, "when_full": null}');
SELECT options->'flush_size' AS flush_size, options->'max_batch_size' AS max_batch_size,
       options->'durable' AS durable, options->'when_full' AS when_full
    FROM batcher.queue WHERE queue = 'op';
-- The effective values follow.
SELECT current_batch_size, current_window FROM batcher.status WHERE queue = 'op';
SELECT batch_alter_queue('op', '{"flush_size": null, "max_batch_size": 50, "flush_interval": "1 min 1.5 s"}');
SELECT current_batch_size, current_window FROM batcher.status WHERE queue = 'op';
-- Null for the whole is none.
SELECT batch_alter_queue('op', NULL);
SELECT batch_create_queue('op null', 'SELECT FROM batch', options => NULL);
SELECT options FROM batcher.queue WHERE queue = 'op null';

-- The same checks when a queue is made.
SELECT batch_create_queue('op bad', 'SELECT FROM batch', options => '{"flush_sice": 10}');
\echo :SQLSTATE
SELECT batch_create_queue('op bad', 'SELECT FROM batch', options => '{"flush_size": 5000000}');
\echo :SQLSTATE
SELECT batch_create_queue('op bad', 'SELECT FROM batch', options => '{"when_full": "spill", "durable": false}');
\echo :SQLSTATE
SELECT count(*) FROM batcher.queue WHERE queue = 'op bad';

-- The server settings.
SELECT name, boot_val, unit, context, vartype, min_val, max_val
    FROM pg_settings WHERE name LIKE 'batcher.%' AND name <> 'batcher.debug_points'
    ORDER BY name COLLATE "C";
\set VERBOSITY sqlstate
SET batcher.enqueue_timeout = '-1';
\set VERBOSITY default
SET batcher.flush_interval = '1s';
SET batcher.no_such_setting = 1;

SELECT batch_drop_queue('op'), batch_drop_queue('op null');
DROP FUNCTION op_try(jsonb);
