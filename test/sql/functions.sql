-- Every function and relation of the extension, in the hands of a stranger.
-- Who adds one has to say here what a role without any right gets of it:
-- nothing that is another's to read, to hold up or to fill.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE ROLE regress_batcher_stranger;
SELECT batch_create_queue('fu', 'SELECT FROM batch', options => '{"flush_interval": "1 h"}');
SELECT batch_create_queue('fu memory', 'SELECT FROM batch', options => '{"flush_interval": "1 h", "durable": false}');
-- A worker is there from now on.
SELECT batch_enqueue('fu', '1') > 0 AS has_ticket;
SELECT batch_flush('fu');
SELECT batch_reset_stats('fu');
SELECT batch_enqueue('fu', '"secret"') > 0 AS has_ticket, batch_enqueue('fu memory', '"secret"') > 0 AS has_other;

-- A literal for an argument, by its name or type.  One of another type is to be
-- thought about.
CREATE FUNCTION fu_argument(name text, type regtype, queue text) RETURNS text LANGUAGE sql AS $$
    SELECT CASE
        WHEN name = 'queue' THEN quote_nullable(queue)
        WHEN name IN ('role', 'new_owner') THEN '''regress_batcher_stranger'''
        WHEN name = 'privilege' THEN '''manage'''
        WHEN type = 'text'::regtype THEN '''x'''
        WHEN type = 'jsonb'::regtype THEN '''{}'''
        WHEN type IN ('text[]'::regtype, 'jsonb[]'::regtype, 'bigint[]'::regtype) THEN '''{}'''
        WHEN type IN ('integer'::regtype, 'bigint'::regtype) THEN '1'
        WHEN type = 'boolean'::regtype THEN 'true'
        WHEN type = 'interval'::regtype THEN '''1 s'''
        WHEN type IN ('regclass'::regtype, 'regtype'::regtype) THEN 'NULL'
        WHEN type = 'record'::regtype THEN 'ROW(1)'
        ELSE 'no literal for ' || type END
$$;
-- What the stranger gets: an error, or rows, which is a value where a function
-- returns no set.
CREATE FUNCTION fu_call(f regprocedure, queue text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    command text;
    result text;
BEGIN
    SELECT format('SELECT CASE count(r) WHEN 0 THEN ''no rows'' ELSE ''rows'' END FROM %s(%s) AS r', f::regproc,
                  string_agg(fu_argument(p.proargnames[n], t::regtype, queue), ', ' ORDER BY n))
        INTO command
        FROM pg_proc p LEFT JOIN unnest(p.proargtypes) WITH ORDINALITY AS a (t, n) ON true
        WHERE p.oid = f GROUP BY p.oid;
    SET LOCAL ROLE regress_batcher_stranger;
    BEGIN
        EXECUTE command INTO result;
    EXCEPTION WHEN OTHERS THEN
        result := SQLSTATE || ' ' || SQLERRM;
    END;
    RESET ROLE;
    RETURN result;
END $$;
SELECT p.oid::regproc AS function,
       has_function_privilege('regress_batcher_stranger', p.oid, 'EXECUTE') AS may,
       p.prosecdef AS definer,
       fu_call(p.oid, 'fu') AS gets,
       CASE WHEN 'queue' = ANY (p.proargnames[:p.pronargs]) THEN fu_call(p.oid, NULL) END AS gets_of_null
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'batcher') AND d.deptype = 'e'
ORDER BY p.oid::regprocedure::text COLLATE "C";
-- Those rows are the options there are, and workers of which nothing is told.
SET ROLE regress_batcher_stranger;
SELECT count(*) FROM batcher.worker WHERE queue IS NOT NULL OR rows IS NOT NULL;
RESET ROLE;
-- Nothing has become of the queues.
SELECT queue, paused, grants FROM batcher.queue WHERE queue LIKE 'fu%' ORDER BY 1;
SELECT queue, payload FROM batcher.pending WHERE queue LIKE 'fu%' ORDER BY 1;
SELECT queue, rows_enqueued, rows_flushed, rows_purged FROM batcher.stat_queue WHERE queue LIKE 'fu%' ORDER BY 1;

-- Relations: what he may do with them.
SELECT c.oid::regclass AS relation, c.relkind,
       (SELECT string_agg(privilege, ', ' ORDER BY n)
        FROM unnest(CASE c.relkind WHEN 'S' THEN '{SELECT,USAGE,UPDATE}'::text[]
             ELSE '{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}' END)
             WITH ORDINALITY AS p (privilege, n)
        WHERE CASE c.relkind WHEN 'S' THEN has_sequence_privilege('regress_batcher_stranger', c.oid, privilege)
              ELSE has_table_privilege('regress_batcher_stranger', c.oid, privilege) END) AS may
FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'batcher') AND d.deptype = 'e'
ORDER BY c.oid::regclass::text COLLATE "C";
-- Every kind of object that the extension has (the row types of its tables
-- count since 17).
SELECT d.classid::regclass AS kind, count(*) > 0 AS has
FROM pg_depend d
WHERE d.refclassid = 'pg_extension'::regclass
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'batcher') AND d.deptype = 'e'
  AND d.classid <> 'pg_type'::regclass
GROUP BY d.classid ORDER BY d.classid::regclass::text COLLATE "C";
-- Nothing is made in its schema by others.
SELECT has_schema_privilege('regress_batcher_stranger', 'batcher', 'CREATE') AS may_create;

SELECT batch_drop_queue('fu', true), batch_drop_queue('fu memory', true);
DROP FUNCTION fu_call(regprocedure, text), fu_argument(text, regtype, text);
DROP ROLE regress_batcher_stranger;
