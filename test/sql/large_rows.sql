-- Rows that are larger than a page, of the spool or of anything.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE lr_target (pos int, n int, md5 text, key_md5 text);
SELECT batch_create_queue('lr', 'INSERT INTO lr_target SELECT batch_pos, (payload->>''n'')::int, md5(payload->>''fill''), md5(batch_key) FROM batch', options => '{"flush_interval": "1 h"}');

-- Incompressible text of so many bytes.
CREATE FUNCTION lr_text(seed int, size int) RETURNS text LANGUAGE sql
    AS 'SELECT left(string_agg(md5(seed || ''/'' || g), ''''), size) FROM generate_series(1, size / 32 + 1) g';
CREATE TABLE lr_row AS
    SELECT n::int, lr_text(n::int, size) AS fill
    FROM unnest(ARRAY[100, 1000, 2000, 4000, 7900, 8000, 8100, 8200, 9000, 20000, 100000, 300000, 1000000]) WITH ORDINALITY s (size, n);

-- Each in a transaction of its own.
DO $$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT * FROM lr_row ORDER BY n LOOP
        PERFORM batch_enqueue('lr', to_jsonb(r));
        COMMIT;
    END LOOP;
END $$;
SELECT batch_flush('lr');
SELECT count(*) FROM lr_target t JOIN lr_row r USING (n) WHERE t.md5 = md5(r.fill);
TRUNCATE lr_target;

-- All in one, with small ones between, and one large key.
SELECT count(batch_enqueue('lr', to_jsonb(r), key => CASE WHEN n = 5 THEN fill END)),
       count(batch_enqueue('lr', '{"n": 0}'))
    FROM (SELECT * FROM lr_row ORDER BY n) r;
SELECT count(*), count(payload->>'fill') FROM batcher.pending;
SELECT batch_flush('lr');
SELECT count(*) FROM lr_target t JOIN lr_row r USING (n) WHERE t.md5 = md5(r.fill);
SELECT count(*) FROM lr_target t JOIN lr_row r USING (n) WHERE t.key_md5 = md5(r.fill);
SELECT array_agg(n ORDER BY pos) FROM lr_target;
TRUNCATE lr_target;

-- As one array, of which each flush takes two rows.  They are more than that,
-- so the flushes begin by themselves.
SELECT batch_alter_queue('lr', '{"max_batch_size": 2}');
SELECT batch_enqueue_many('lr', array_agg(to_jsonb(r) ORDER BY n)) FROM lr_row r;
SELECT batch_flush('lr') >= 0 AS flushed;
SELECT count(*) FROM lr_target t JOIN lr_row r USING (n) WHERE t.md5 = md5(r.fill);
TRUNCATE lr_target;

-- Spilled.
SELECT batch_alter_queue('lr', '{"memory_limit": "4kB", "max_batch_size": 4}');
SELECT batch_enqueue_many('lr', array_agg(to_jsonb(r) ORDER BY n)) FROM lr_row r;
SELECT rows_spilled > 9 AS spilled FROM batcher.stat_queue WHERE queue = 'lr';
SELECT batch_flush('lr') >= 0 AS flushed;
SELECT count(*) FROM lr_target t JOIN lr_row r USING (n) WHERE t.md5 = md5(r.fill);
TRUNCATE lr_target;

-- Not durable.
SELECT batch_alter_queue('lr', '{"durable": false, "memory_limit": null}');
SELECT batch_enqueue_many('lr', array_agg(to_jsonb(r) ORDER BY n)) FROM lr_row r;
SELECT batch_flush('lr') >= 0 AS flushed;
SELECT count(*) FROM lr_target t JOIN lr_row r USING (n) WHERE t.md5 = md5(r.fill);
SELECT count(*) FROM batcher.spool;

-- A payload that came from a table, compressed or out of line.
TRUNCATE lr_target;
CREATE TABLE lr_stored (payload jsonb);
INSERT INTO lr_stored SELECT to_jsonb(r) FROM lr_row r;
INSERT INTO lr_stored VALUES (jsonb_build_object('n', 99, 'fill', repeat('x', 100000)));
SELECT batch_alter_queue('lr', '{"durable": true, "max_batch_size": null}');
SELECT count(batch_enqueue('lr', payload)) FROM lr_stored;
SELECT batch_flush('lr');
SELECT count(*) FROM lr_target t JOIN lr_stored s ON (s.payload->>'n')::int = t.n WHERE t.md5 = md5(s.payload->>'fill');

SELECT batch_drop_queue('lr');
DROP TABLE lr_target, lr_row, lr_stored;
DROP FUNCTION lr_text(int, int);
