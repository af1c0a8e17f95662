-- Composite values into typed queues: they come out as they went in.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TYPE er_pair AS (x int, y text);
CREATE DOMAIN er_code AS text CHECK (VALUE ~ '^[A-Z]+$');
CREATE TABLE er_source (
    b boolean, i2 smallint, i4 int, i8 bigint, n numeric, f4 float4, f8 float8, t text, v varchar(10), c char(4), by bytea,
    d date, ts timestamp, tz timestamptz, tm time, iv interval, u uuid, m money, net inet, j json, jb jsonb, r int4range, tr tstzrange,
    ia int[], ta text[], ja jsonb[], za timestamptz[], p er_pair, pa er_pair[], code er_code, oid regclass, bits varbit);
CREATE TABLE er_out (LIKE er_source);
SELECT batch_create_queue('er', 'INSERT INTO er_out SELECT b, i2, i4, i8, n, f4, f8, t, v, c, by, d, ts, tz, tm, iv, u, m, net, j, jb, r, tr,
        ia, ta, ja, za, p, pa, code, oid, bits FROM batch ORDER BY batch_pos',
    row_type => 'er_source', options => '{"flush_interval": "1 h", "max_attempts": 1}');
-- Settings of the session do not change what a value is.
SET datestyle = 'German';
SET timezone = 'America/New_York';
SET intervalstyle = 'sql_standard';
SET extra_float_digits = -3;
SET bytea_output = 'escape';
INSERT INTO er_source VALUES
    (true, 1, -2, 9223372036854775807, 123456789.1234567890, 0.1, 0.1, 'text "quoted" \ é', 'v', 'c', '\x00ff41', '2024-02-29',
     '2024-02-29 12:34:56.789', '2024-02-29 12:34:56.789+05', '12:34:56', '-1 day -02:03:04', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '12.34',
     '10.0.0.1/8', '{"a": 1}', '{"b": [1, {"c": null}]}', '[1,5)', '[2024-01-01 00:00+00,infinity)', '{1,NULL,3}', '{{a,b},{"c,d",NULL}}',
     '{"[1, 2]","3"}', '{"2024-01-01 00:00+00"}', '(1,"a b")', '{"(2,x)",NULL}', 'ABC', 'pg_class', '1011'),
    (false, 0, 0, 0, 'NaN', '-0', 'Infinity', '', '', '', '', 'infinity', '-infinity', '0044-03-15 00:00:00+00 BC', '24:00', '1 mon', NULL, '-1',
     '::1', 'null', '"text"', 'empty', NULL, '[0:1]={5,6}', '{}', '{}', '{}', '(,)', '{}', NULL, '0', ''),
    (NULL, NULL, NULL, NULL, 'Infinity', 1e-30, 1.7976931348623157e308, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
SELECT count(batch_enqueue_row('er', s)) FROM er_source s;
RESET datestyle;
RESET timezone;
RESET intervalstyle;
RESET extra_float_digits;
RESET bytea_output;
SELECT batch_flush('er');
SELECT * FROM batcher.dead_letter WHERE queue = 'er';
-- But for a JSON null, which is an SQL null.
SELECT count(*) FROM er_source s JOIN er_out o ON (s.i4, s.f8) IS NOT DISTINCT FROM (o.i4, o.f8)
WHERE (to_jsonb(s) || '{"j": 0}')::text = (to_jsonb(o) || '{"j": 0}')::text AND s.iv IS NOT DISTINCT FROM o.iv;
SELECT s.j, o.j FROM er_source s JOIN er_out o USING (f8) ORDER BY s.i4;
SELECT s::text = o::text AS same FROM er_source s JOIN er_out o USING (f8) WHERE s.b;
-- Numbers, truth values and JSON are what they are in the payload too.
SELECT batch_enqueue_row('er', s) > 0 AS has_ticket FROM er_source s WHERE b;
SELECT payload FROM batcher.pending WHERE queue = 'er';
SELECT batch_purge('er');

-- By the names of the columns, whatever record it is; an anonymous row goes by
-- their order.
CREATE TYPE er_small AS (id int, name text, doc jsonb, p er_pair);
SELECT batch_create_queue('er small', row_type => 'er_small', options => '{"flush_interval": "1 h"}');
SELECT batch_enqueue_row('er small', s) > 0 AS has_ticket FROM (SELECT 'by name' AS name, 1::bigint AS id) s;
SELECT batch_enqueue_row('er small', ROW(2, 'cast', '{"a": 1}', ROW(1, 'x'))::er_small, 'key', 'topic', 5) > 0 AS has_ticket;
SELECT batch_enqueue_row('er small', ROW(3, 'bare', '{"a": 2}', ROW(1, 'x'))) > 0 AS has_ticket;
SELECT key, topic, priority, payload FROM batcher.pending WHERE queue = 'er small' ORDER BY ticket;
SELECT batch_enqueue_row('er small', ROW(3, 'bare'));
SELECT batch_enqueue_row('er small', s) FROM (SELECT 1 AS id, 2 AS other) s;
SELECT batch_enqueue_row('er small', s) FROM (SELECT 'x' AS id) s;
SELECT batch_enqueue_row('er small', s) FROM (SELECT 1 AS id, 'x' AS name, 2 AS id) s;
SELECT batch_enqueue_row('er small', NULL);
SELECT batch_enqueue_row(NULL, ROW(1));
SELECT batch_enqueue_row('er none', ROW(1));
SELECT batch_create_queue('er plain');
SELECT batch_enqueue_row('er plain', ROW(1));

-- A cast to json that a user wrote is not called.
CREATE FUNCTION er_cast(er_pair) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$;
CREATE CAST (er_pair AS json) WITH FUNCTION er_cast;
SELECT batch_enqueue_row('er small', ROW(4, 'cast', NULL, ROW(1, 'x'))::er_small) > 0 AS has_ticket;

-- Without a statement rows are announced only.
SELECT batch_flush('er small');
SELECT batch_drop_queue('er small'), batch_drop_queue('er plain'), batch_drop_queue('er');
DROP TABLE er_source, er_out;
DROP CAST (er_pair AS json);
DROP FUNCTION er_cast;
DROP TYPE er_small, er_pair;
DROP DOMAIN er_code;
