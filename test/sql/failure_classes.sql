-- Which SQLSTATE is whose fault: what may pass, what is the statement's if no
-- row passes, and what is a row's.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE fc_target (payload text);
CREATE TABLE fc_mended (state text);
-- Fails with the SQLSTATE that it is given, unless that is mended.
CREATE FUNCTION fc_apply(state text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF state <> 'good' AND NOT EXISTS (SELECT FROM public.fc_mended m WHERE m.state = fc_apply.state) THEN
        RAISE EXCEPTION 'as asked: %', state USING ERRCODE = state;
    END IF;
    RETURN state;
END $$;
-- Failed flushes do not open the breaker by their number.
SELECT batch_create_queue('fc', 'INSERT INTO fc_target SELECT fc_apply(payload #>> ''{}'') FROM batch ORDER BY batch_pos',
    options => '{"flush_interval": "1 ms", "max_attempts": 2, "retry_delay": "5 ms", "retry_max_delay": "5 ms", "breaker_threshold": 1000, "breaker_recovery": "1 h"}');

CREATE FUNCTION fc_shows() RETURNS text LANGUAGE sql AS $$
    SELECT concat_ws(', ',
        CASE WHEN rows_retried >= 3 THEN 'tried again' END,
        CASE WHEN t.breaker_state <> 'closed' THEN 'breaker ' || t.breaker_state || ' (' || t.breaker_reason || ')' END,
        (SELECT 'waits with attempts: ' || string_agg(attempts::text, ' ') FROM batcher.pending WHERE queue = 'fc'),
        CASE WHEN rows_failed > 0 THEN 'charged: ' || rows_failed END,
        (SELECT 'dead of ' || string_agg(sqlstate || ' after ' || attempts, ' ') FROM batcher.dead_letter WHERE queue = 'fc'),
        CASE WHEN rows_flushed > 0 THEN 'flushed: ' || rows_flushed END)
    FROM batcher.stat_queue s JOIN batcher.status t USING (queue) WHERE queue = 'fc'
$$;
-- Enqueues rows, waits for what is to come of them, and says what it is, before
-- all is mended.
CREATE PROCEDURE fc_try(rows jsonb, becomes text, INOUT shows text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM batch_reset_stats('fc'), batch_enqueue_many('fc', array(SELECT jsonb_array_elements(rows)));
    COMMIT;
    PERFORM wait_until('SELECT ' || becomes || ' FROM batcher.stat_queue s JOIN batcher.status t USING (queue) WHERE queue = ''fc''');
    shows := fc_shows();
    INSERT INTO fc_mended VALUES (rows ->> 0);
    COMMIT;
    PERFORM batch_reset_breaker('fc'), batch_purge_dead('fc');
    COMMIT;
    PERFORM wait_until('SELECT pending = 0 AND NOT is_flushing FROM batcher.status WHERE queue = ''fc''');
    DELETE FROM fc_mended;
    COMMIT;
END $$;

-- Classes as README.md lists them, and some of those that it does not.
CREATE TABLE fc_class (n serial, fault text, state text, alone text, beside text);
INSERT INTO fc_class (fault, state)
    SELECT 'passing', unnest('{40001,40P01,55P03,08000,08006,53000,53100,53200,53400,57P01}'::text[]);
INSERT INTO fc_class (fault, state)
    SELECT 'statement', unnest('{0A000,25000,25006,28000,3D000,3F000,42000,42501,42P01,55000,55006,57014,58000,58030,XX000,XX001}'::text[]);
INSERT INTO fc_class (fault, state)
    SELECT 'row', unnest('{09000,21000,22012,23505,24000,2F000,38000,40000,40002,44000,54001,P0001,YY001}'::text[]);
-- Each alone, and before a good row.
DO $$
DECLARE
    c fc_class;
BEGIN
    FOR c IN SELECT * FROM fc_class ORDER BY n LOOP
        CALL fc_try(jsonb_build_array(c.state), CASE c.fault
            WHEN 'passing' THEN 'rows_retried >= 3'
            WHEN 'statement' THEN 'breaker_state = ''open'''
            ELSE 'rows_dead = 1' END, c.alone);
        CALL fc_try(jsonb_build_array(c.state, 'good'), 'rows_flushed = 1 AND ' || CASE c.fault
            WHEN 'passing' THEN 'rows_retried >= 3'
            ELSE 'rows_dead = 1' END, c.beside);
        UPDATE fc_class SET alone = c.alone, beside = c.beside WHERE n = c.n;
        COMMIT;
    END LOOP;
END $$;
SELECT fault, state, alone FROM fc_class ORDER BY n;
SELECT fault, state, beside FROM fc_class ORDER BY n;
-- What was not dead was flushed when it was mended, each row once.
SELECT coalesce(fault, 'good') AS fault, count(*), count(DISTINCT payload)
    FROM fc_target LEFT JOIN fc_class ON state = payload GROUP BY 1 ORDER BY 1;

SELECT batch_drop_queue('fc');
DROP TABLE fc_target, fc_mended, fc_class;
DROP PROCEDURE fc_try(jsonb, text, text);
DROP FUNCTION fc_apply(text), fc_shows();
