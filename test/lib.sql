\set ECHO none
-- What the regression tests share; a test that needs it includes it itself, so
-- that it can be run alone.

-- Wait until a query returns true; false if that takes too long.
CREATE OR REPLACE FUNCTION wait_until(query text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
BEGIN
    FOR i IN 1..3000 LOOP
        PERFORM pg_stat_clear_snapshot();
        EXECUTE query INTO done;
        IF done THEN
            RETURN true;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN false;
END $$;
-- Messages of a queue with a target are sent after the data: wait until the
-- workers have sent so many since the statistics began, and are done.
CREATE OR REPLACE FUNCTION wait_sent(queue text, messages int) RETURNS boolean LANGUAGE sql AS $$
    SELECT wait_until(format($query$
        SELECT messages_sent >= %s AND NOT EXISTS (SELECT FROM pg_stat_activity
                WHERE backend_type = 'batcher worker' AND datname = current_database() AND state = 'active')
            FROM batcher.stat_queue WHERE queue = %L $query$, messages, queue))
$$;
\set ECHO all
