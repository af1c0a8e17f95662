-- Adaptive queues: the size of batches and the window follow what happens.
-- M5.3 (between a least and a largest size, by a factor, on errors, latency and
-- throughput), M1.12 (adaptive intervals by a forecast of arrivals), M4.8
-- (dynamic batch size), M5.8
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE ad_batch (id int GENERATED ALWAYS AS IDENTITY, rows int);
CREATE FUNCTION ad_note(rows bigint, seconds float8) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(seconds);
    INSERT INTO ad_batch (rows) VALUES (rows);
    RETURN 1;
END $$;
-- What the worker says of the size, without numbers that are another each time.
CREATE FUNCTION ad_reason(queue text) RETURNS text LANGUAGE sql AS $$
    SELECT regexp_replace(regexp_replace(size_reason, '(took|and) \d+', '\1 N'), '[\d.]+ %', 'N %')
        FROM batcher.status s WHERE s.queue = $1
$$;
-- Have rows wait and then flushed; the sizes of their batches.
CREATE PROCEDURE ad_run(payloads jsonb[]) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM batch_pause('ad');
    COMMIT;
    PERFORM batch_enqueue_many('ad', payloads);
    COMMIT;
    PERFORM batch_resume('ad');
    COMMIT;
    PERFORM batch_flush('ad', '1 min');
END $$;

-- Options: ranges, contradictions, and defaults that give way.
SELECT name, type, "default", min, max FROM batcher.option
    WHERE name IN ('adaptive', 'min_batch_size', 'adjust_factor', 'latency_target', 'error_target', 'throughput_target');
SELECT batch_create_queue('ad', options => '{"adaptive": "yes"}');
SELECT batch_create_queue('ad', options => '{"adjust_factor": 0}');
SELECT batch_create_queue('ad', options => '{"adjust_factor": 1.5}');
SELECT batch_create_queue('ad', options => '{"error_target": 2}');
SELECT batch_create_queue('ad', options => '{"min_batch_size": 0}');
SELECT batch_create_queue('ad', options => '{"throughput_target": 0}');
SELECT batch_create_queue('ad', options => '{"min_batch_size": 100, "max_batch_size": 99}');
\echo :SQLSTATE
SELECT batch_create_queue('ad', options => '{"min_batch_size": 100, "flush_size": 99}');
\echo :SQLSTATE
SELECT batch_create_queue('ad', options => '{"adaptive": true}');
SELECT key, value FROM jsonb_each(batch_stats('ad')->'config') WHERE key ~ 'size$' ORDER BY key;
SELECT batch_alter_queue('ad', '{"max_batch_size": 20}');
SELECT key, value FROM jsonb_each(batch_stats('ad')->'config') WHERE key ~ 'size$' ORDER BY key;
SELECT batch_alter_queue('ad', '{"max_batch_size": null, "min_batch_size": 2000}');
SELECT key, value FROM jsonb_each(batch_stats('ad')->'config') WHERE key ~ 'size$' ORDER BY key;
SELECT batch_drop_queue('ad');

-- While whole batches wait and nothing is wrong, they grow, up to the largest.
SELECT batch_create_queue('ad', 'SELECT ad_note(count(*), 0) FROM batch', options =>
    '{"adaptive": true, "flush_size": 10, "min_batch_size": 5, "max_batch_size": 40, "latency_target": "1 h", "flush_interval": "50 ms"}');
CALL ad_run(array_fill('1'::jsonb, '{300}'));
SELECT array_agg(rows ORDER BY id) FROM ad_batch;
SELECT current_batch_size, ad_reason('ad') FROM batcher.status WHERE queue = 'ad';
-- A batch that is not full is no reason.
CALL ad_run(array_fill('1'::jsonb, '{30}'));
SELECT current_batch_size, ad_reason('ad') FROM batcher.status WHERE queue = 'ad';

-- Where flushes take too long, down to the least.
TRUNCATE ad_batch RESTART IDENTITY;
SELECT batch_alter_queue('ad', '{"latency_target": "1 ms"}', 'SELECT ad_note(count(*), 0.005) FROM batch');
CALL ad_run(array_fill('1'::jsonb, '{300}'));
SELECT bool_and(rows <= before) AS never_larger, min(rows) AS least, max(rows) AS largest
    FROM (SELECT rows, lag(rows) OVER (ORDER BY id) AS before FROM ad_batch) s;
SELECT current_batch_size, ad_reason('ad') FROM batcher.status WHERE queue = 'ad';

-- The next worker goes on from there.
SELECT worker_pid AS pid FROM batcher.status WHERE queue = 'ad' \gset
SELECT pg_terminate_backend(:pid, 60000);
SELECT batch_enqueue('ad', '1') AS ticket \gset
SELECT batch_wait('ad', :ticket, '1 min');
SELECT current_batch_size, ad_reason('ad') FROM batcher.status WHERE queue = 'ad';

-- Where too many rows fail.
TRUNCATE ad_batch RESTART IDENTITY;
SELECT batch_alter_queue('ad', '{"latency_target": "1 h", "flush_size": 20, "max_attempts": 1}',
    'SELECT ad_note(count(*), 0) / (min(payload::int)) FROM batch');
SELECT array_agg(to_jsonb((g % 4 > 0)::int)) AS payloads FROM generate_series(1, 200) AS g \gset
CALL ad_run(:'payloads');
SELECT current_batch_size, ad_reason('ad') FROM batcher.status WHERE queue = 'ad';
SELECT rows_dead FROM batcher.stat_queue WHERE queue = 'ad';
SELECT batch_purge_dead('ad');

-- Where larger batches flush fewer rows a second, and more are wanted.
TRUNCATE ad_batch RESTART IDENTITY;
SELECT batch_alter_queue('ad', '{"flush_size": 10, "min_batch_size": 10, "max_batch_size": 20, "adjust_factor": 1, "throughput_target": 1000000}',
    'SELECT ad_note(count(*), count(*) * count(*) * 0.0005) FROM batch');
CALL ad_run(array_fill('1'::jsonb, '{200}'));
SELECT array_agg(rows ORDER BY id) FROM ad_batch;
SELECT current_batch_size, ad_reason('ad') FROM batcher.status WHERE queue = 'ad';

-- The window: none for a row that comes alone, and never beyond flush_interval.
SELECT batch_alter_queue('ad', '{"throughput_target": null}', 'SELECT ad_note(count(*), 0) FROM batch');
CREATE PROCEDURE ad_alone(INOUT short boolean) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..300 LOOP
        PERFORM batch_enqueue('ad', '1');
        COMMIT;
        PERFORM pg_sleep(0.1);
        SELECT current_window < '5 ms' AND arrival_rate < 100 INTO short FROM batcher.status WHERE queue = 'ad';
        EXIT WHEN short;
    END LOOP;
END $$;
CALL ad_alone(NULL);
-- Many rows: a longer one.
CREATE PROCEDURE ad_many(INOUT longer boolean, INOUT in_bounds boolean) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..10000 LOOP
        PERFORM batch_enqueue('ad', '1');
        COMMIT;
        SELECT current_window > '10 ms', current_window <= '50 ms' INTO longer, in_bounds
            FROM batcher.status WHERE queue = 'ad';
        EXIT WHEN longer;
    END LOOP;
END $$;
CALL ad_many(NULL, NULL);

-- Not adaptive any more: as the options say.
SELECT batch_alter_queue('ad', '{"adaptive": null}');
SELECT current_batch_size, current_window, size_reason, arrival_rate FROM batcher.status WHERE queue = 'ad';
SELECT batch_flush('ad') >= 0 AS flushed;
SELECT batch_drop_queue('ad');
DROP PROCEDURE ad_run(jsonb[]), ad_alone(boolean), ad_many(boolean, boolean);
DROP FUNCTION ad_note(bigint, float8), ad_reason(text);
DROP TABLE ad_batch;
