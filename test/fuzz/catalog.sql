-- What there is to be called, one line for each: functions with their
-- arguments, views and tables, their columns, settings, options.
SELECT 'function', quote_ident(n.nspname) || '.' || quote_ident(p.proname),
        p.prorettype::regtype, p.pronargdefaults,
        array_to_string(p.proargnames[1:p.pronargs], ' '),
        (SELECT string_agg(format_type(t, NULL), ',' ORDER BY i)
         FROM unnest(p.proargtypes) WITH ORDINALITY AS a(t, i))
    FROM pg_proc p
    JOIN pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
    JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass
        AND d.refobjid = e.oid AND d.deptype = 'e' AND e.extname = 'batcher'
    ORDER BY p.oid::regprocedure::text COLLATE "C";
SELECT 'relation', 'batcher.' || quote_ident(relname)
    FROM pg_class
    WHERE relnamespace = 'batcher'::regnamespace AND relkind IN ('r', 'v')
    ORDER BY relname COLLATE "C";
SELECT 'column', c.oid::regclass, a.attname, format_type(a.atttypid, NULL),
        a.attnotnull
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'batcher'::regnamespace AND c.relkind = 'r'
        AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY c.relname COLLATE "C", a.attnum;
SELECT 'setting', name
    FROM pg_settings
    WHERE name LIKE 'batcher.%' AND context IN ('user', 'superuser')
        AND name <> 'batcher.debug_points'
    ORDER BY name COLLATE "C";
SELECT 'option', name, type, coalesce("default", ''), coalesce(min, ''),
        coalesce(max, ''), description
    FROM batcher.option
    ORDER BY name COLLATE "C";
