-- Presets: named sets of values, which give way to what is given.
-- M4.3 (presets for production, development and test), M5.8 (small, medium and
-- large load), M3.1 (500 ms or 10 events, grouped), M4.1 (50 messages or 500 ms,
-- a hard limit of 200)
-- M1.3 and M1.7 (every fifteen minutes or 1,000 rows; changed at run time)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

-- What each preset sets, and where the value of an option comes from.
CREATE FUNCTION pr_config(queue text) RETURNS TABLE (option text, value jsonb, source text)
LANGUAGE sql AS $$
    SELECT key, c.value->'value', c.value->>'source'
        FROM jsonb_each(batch_stats($1)->'config') AS c ORDER BY key COLLATE "C"
$$;
CREATE FUNCTION pr_set_by_preset(preset text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    PERFORM batch_create_queue('pr ' || preset, options => jsonb_build_object('preset', preset));
    SELECT string_agg(option || ' ' || (value #>> '{}'), ', ') INTO result
        FROM pr_config('pr ' || preset) WHERE source = 'preset';
    PERFORM batch_drop_queue('pr ' || preset);
    RETURN result;
END $$;
SELECT p AS preset, pr_set_by_preset(p)
    FROM unnest('{production,development,test,small,medium,large,realtime,periodic}'::text[]) AS p;

-- A name that no preset has.
SELECT batch_create_queue('pr', options => '{"preset": "huge"}');
\echo :SQLSTATE
SELECT batch_create_queue('pr', options => '{"preset": 1}');

-- Without a preset: defaults and settings.
SELECT batch_create_queue('pr', 'SELECT FROM batch');
SELECT * FROM pr_config('pr') WHERE option IN ('flush_size', 'max_batch_size', 'flush_interval', 'preset', 'retry_delay');
-- With one.
SELECT batch_alter_queue('pr', '{"preset": "production"}');
SELECT * FROM pr_config('pr') WHERE option IN ('flush_size', 'max_batch_size', 'flush_interval', 'preset', 'retry_delay');
SELECT current_batch_size, current_window FROM batcher.status WHERE queue = 'pr';
-- What is given goes before it, whichever came first.
SELECT batch_alter_queue('pr', '{"flush_size": 7}');
SELECT current_batch_size, current_window FROM batcher.status WHERE queue = 'pr';
SELECT batch_alter_queue('pr', '{"preset": "development"}');
SELECT * FROM pr_config('pr') WHERE option IN ('flush_size', 'flush_interval', 'preset');
SELECT options FROM batcher.queue WHERE queue = 'pr';
SELECT batch_alter_queue('pr', '{"flush_size": null}');
SELECT current_batch_size, current_window FROM batcher.status WHERE queue = 'pr';

-- A preset gives way where it contradicts what is given.
SELECT batch_alter_queue('pr', '{"max_batch_size": 20}');
SELECT * FROM pr_config('pr') WHERE option IN ('flush_size', 'max_batch_size');
SELECT batch_alter_queue('pr', '{"max_batch_size": null}');
-- What was given is refused nevertheless.
SELECT batch_alter_queue('pr', '{"preset": "production", "flush_size": 100, "max_batch_size": 99}');
\echo :SQLSTATE

-- The worker goes by the preset: five rows leave at once, and one after a while.
SELECT batch_alter_queue('pr', '{"preset": "test", "flush_interval": "1 h"}');
SELECT batch_reset_stats('pr');
SELECT max(batch_enqueue('pr', to_jsonb(g))) AS ticket FROM generate_series(1, 5) AS g \gset
SELECT batch_wait('pr', :ticket);
SELECT batches_by_size, rows_flushed FROM batcher.stat_queue WHERE queue = 'pr';
SELECT batch_alter_queue('pr', '{"flush_interval": null}');
SELECT batch_enqueue('pr', '6') AS ticket \gset
SELECT batch_wait('pr', :ticket);
SELECT batches_by_time, rows_flushed FROM batcher.stat_queue WHERE queue = 'pr';

-- M5.1: a flush at 857 rows or after 10 ms, whichever comes first.
SELECT batch_alter_queue('pr', '{"preset": "large", "adaptive": false, "flush_interval": "1 h"}');
SELECT batch_reset_stats('pr');
SELECT max(batch_enqueue('pr', to_jsonb(g))) AS ticket FROM generate_series(1, 856) AS g \gset
SELECT batch_wait('pr', :ticket, '300 ms');
SELECT batch_enqueue('pr', '857') AS ticket \gset
SELECT batch_wait('pr', :ticket);
SELECT batches_by_size, batches_by_time, rows_flushed FROM batcher.stat_queue WHERE queue = 'pr';
SELECT batch_alter_queue('pr', '{"flush_interval": null}');
SELECT batch_enqueue('pr', '1') AS ticket \gset
SELECT batch_wait('pr', :ticket);
SELECT batches_by_size, batches_by_time, rows_flushed FROM batcher.stat_queue WHERE queue = 'pr';

-- A flush at so many rows, after so long, and never of more than so many.
CREATE TABLE pr_batch (n bigint GENERATED ALWAYS AS IDENTITY, rows bigint);
SELECT batch_create_queue('pr size', 'INSERT INTO pr_batch (rows) SELECT count(*) FROM batch');
-- M3.1: 10 rows or 500 ms.
SELECT batch_alter_queue('pr size', '{"preset": "realtime", "flush_interval": "1 h"}');
SELECT max(batch_enqueue('pr size', to_jsonb(g))) AS ticket FROM generate_series(1, 9) AS g \gset
SELECT batch_wait('pr size', :ticket, '100 ms');
SELECT batch_enqueue('pr size', '10') AS ticket \gset
SELECT batch_wait('pr size', :ticket);
SELECT batch_alter_queue('pr size', '{"flush_interval": null}');
SELECT current_window FROM batcher.status WHERE queue = 'pr size';
SELECT batch_enqueue('pr size', '11') AS ticket \gset
SELECT batch_wait('pr size', :ticket);
SELECT rows FROM pr_batch ORDER BY n;
TRUNCATE pr_batch;
-- M4.1: 50 rows or 500 ms, and at most 200 rows.
SELECT batch_alter_queue('pr size', '{"preset": "development", "max_batch_size": 200, "flush_interval": "1 h"}');
SELECT max(batch_enqueue('pr size', to_jsonb(g))) AS ticket FROM generate_series(1, 49) AS g \gset
SELECT batch_wait('pr size', :ticket, '100 ms');
SELECT batch_enqueue('pr size', '50') AS ticket \gset
SELECT batch_wait('pr size', :ticket);
SELECT max(batch_enqueue('pr size', to_jsonb(g))) AS ticket FROM generate_series(1, 500) AS g \gset
SELECT batch_wait('pr size', :ticket);
SELECT batch_alter_queue('pr size', '{"flush_interval": null}');
SELECT current_window FROM batcher.status WHERE queue = 'pr size';
SELECT batch_enqueue('pr size', '551') AS ticket \gset
SELECT batch_wait('pr size', :ticket);
SELECT rows FROM pr_batch ORDER BY n;

SELECT batch_drop_queue('pr'), batch_drop_queue('pr size');
DROP TABLE pr_batch;
DROP FUNCTION pr_set_by_preset(text), pr_config(text);
