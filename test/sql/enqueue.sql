-- Enqueuing: what a row is, and what the statement sees of it.
-- M1.1 (changes are queued with metadata), M4.1 (topic)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE en_target (pos int, key text, topic text, priority int,
    attempts int, by_me boolean, dated boolean, payload jsonb);
SELECT batch_create_queue('en', 'INSERT INTO en_target
    SELECT batch_pos, batch_key, batch_topic, batch_priority, batch_attempts,
           batch_enqueued_by = current_user,
           batch_enqueued_at BETWEEN now() - interval ''1 h'' AND now(), payload
    FROM batch', options => '{"flush_interval": "1 h"}');

SELECT batch_enqueue('en', '{"plain": true}') > 0 AS has_ticket;
SELECT batch_enqueue('en', '{"all": [1, 2.50, "x", null]}', 'k', 't', 7) > 0 AS has_ticket;
SELECT batch_enqueue('en', '"a text"', key => '', topic => '', priority => -3) > 0 AS has_ticket;
SELECT batch_enqueue('en', 'null', key => NULL, topic => NULL, priority => NULL, immediate => NULL) > 0 AS has_ticket;
SELECT batch_enqueue('en', '17', priority => 2147483647) > 0 AS has_ticket;
SELECT batch_enqueue('en', '[]', key => repeat('ä', 300), priority => (-2147483648)::int) > 0 AS has_ticket;
SELECT batch_flush('en');
SELECT pos, left(key, 8) AS key, topic, priority, attempts, by_me, dated, payload
    FROM en_target ORDER BY payload::text COLLATE "C";
SELECT array_agg(pos ORDER BY pos) AS positions FROM en_target;
SELECT length(key) FROM en_target WHERE payload = '[]';
TRUNCATE en_target;

-- Tickets grow.
SELECT batch_enqueue('en', '1') < batch_enqueue('en', '2') AS grows;
SELECT batch_flush('en');
TRUNCATE en_target;

-- Many at once.
SELECT batch_enqueue_many('en', ARRAY['{"n": 1}', '{"n": 2}', '{"n": 3}']::jsonb[],
                          ARRAY['a', NULL, 'c'], ARRAY[NULL, 'u', 'v'], 5);
SELECT batch_enqueue_many('en', ARRAY['{"n": 4}']::jsonb[]);
SELECT batch_enqueue_many('en', '{}');
SELECT batch_enqueue_many('en', ARRAY[]::jsonb[], '{}', '{}');
-- Arrays with two dimensions, and bounds that do not begin with 1.
SELECT batch_enqueue_many('en', '{{"5","6"},{"7","8"}}'::jsonb[], '{{p,q},{r,s}}'::text[]);
SELECT batch_enqueue_many('en', '[0:1]={9,10}'::jsonb[]);
SELECT batch_flush('en');
SELECT key, topic, priority, payload FROM en_target ORDER BY pos;
SELECT batch_enqueue_many('en', (SELECT array_agg(to_jsonb(g)) FROM generate_series(1, 3000) g));
SELECT batch_flush('en') IS NOT NULL AS flushed;
SELECT count(*), count(DISTINCT payload) FROM en_target WHERE key IS NULL AND jsonb_typeof(payload) = 'number';

-- Errors.
SELECT batch_enqueue('en', NULL);
\echo :SQLSTATE
SELECT batch_enqueue(NULL, '1');
\echo :SQLSTATE
SELECT batch_enqueue('no such queue', '1');
\echo :SQLSTATE
SELECT batch_enqueue('', '1');
\echo :SQLSTATE
SELECT batch_enqueue(repeat('q', 64), '1');
\echo :SQLSTATE
SELECT batch_enqueue('EN', '1');
SELECT batch_enqueue_many('en', NULL);
\echo :SQLSTATE
SELECT batch_enqueue_many(NULL, '{}');
SELECT batch_enqueue_many('no such queue', '{}');
\echo :SQLSTATE
SELECT batch_enqueue_many('en', ARRAY['1', NULL, '3']::jsonb[]);
\echo :SQLSTATE
SELECT batch_enqueue_many('en', ARRAY['1', '2']::jsonb[], ARRAY['a']);
\echo :SQLSTATE
SELECT batch_enqueue_many('en', ARRAY['1', '2']::jsonb[], NULL, ARRAY['a', 'b', 'c']);
\echo :SQLSTATE
SELECT batch_enqueue_many('en', ARRAY['1', '2']::jsonb[], '{}');
-- Nothing of that waits.
SELECT count(*) FROM batcher.pending WHERE queue = 'en';

-- A row that is larger than an eighth of the memory.
DO $$
DECLARE
    largest bigint := pg_size_bytes(current_setting('batcher.shared_memory_size')) / 8;
BEGIN
    PERFORM batch_enqueue('en', to_jsonb(repeat('x', largest::int + 1000)));
EXCEPTION WHEN program_limit_exceeded THEN
    RAISE INFO '%: %', SQLSTATE, regexp_replace(SQLERRM, '\d+', 'N');
END $$;
SELECT count(*) FROM batcher.pending WHERE queue = 'en';
-- The session goes on.
SELECT batch_enqueue('en', '{"after": true}') > 0 AS has_ticket;
SELECT batch_flush('en');

-- From a trigger, a function, and a statement over many rows.
TRUNCATE en_target;
CREATE TABLE en_source (id int PRIMARY KEY, v text);
CREATE FUNCTION en_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM batch_enqueue('en', to_jsonb(new), key => new.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER en_changed AFTER INSERT OR UPDATE ON en_source
    FOR EACH ROW EXECUTE FUNCTION en_changed();
INSERT INTO en_source SELECT g, 'v' || g FROM generate_series(1, 5) g;
UPDATE en_source SET v = 'w' WHERE id = 3;
SELECT count(batch_enqueue('en', to_jsonb(g), priority => g)) FROM generate_series(1, 4) g;
SELECT batch_flush('en');
SELECT key, priority, payload FROM en_target ORDER BY pos;

-- Rows that a restore brings may bear any ticket; those given later are above.
BEGIN;
INSERT INTO batcher.spool (number, home, enqueued_at, queue_id, lane, enqueued_by, tickets, payloads) VALUES (5000000000000000, 0, now(), 1, 0, 'nobody', '{4999999999999999}', '{1}');
ROLLBACK;
SELECT batch_enqueue('en', '1') > 5000000000000000 AS above;
SELECT batch_flush('en');
INSERT INTO batcher.spool (number, home, enqueued_at, queue_id, lane, enqueued_by, tickets, payloads) VALUES (1, 0, now(), 1, 0, 'nobody', '{9223372036854775807}', '{1}');
\echo :SQLSTATE
INSERT INTO batcher.spool (number, home, enqueued_at, queue_id, lane, enqueued_by, tickets, payloads) VALUES (-1, 0, now(), 1, 0, 'nobody', '{1}', '{1}');
-- They are at home nowhere, but for what belongs together.
BEGIN;
INSERT INTO batcher.spool (number, home, enqueued_at, queue_id, lane, enqueuer, enqueued_by, ticket, payload)
    VALUES (1, 17, now(), 1, 0, 10, 'nobody', 1, '1'), (1, -17, now(), 1, 0, 10, 'nobody', 1, '1')
    RETURNING home, enqueuer;
ROLLBACK;
-- Dead letters bear tickets, too.
BEGIN;
INSERT INTO batcher.dead_row (queue_id, ticket, priority, sqlstate, attempts, died_at) VALUES (1, 6000000000000000, 0, '22012', 1, now());
ROLLBACK;
SELECT batch_enqueue('en', '1') > 6000000000000000 AS above;
SELECT batch_flush('en');
INSERT INTO batcher.dead_row (queue_id, ticket, priority, sqlstate, attempts, died_at) VALUES (1, 9223372036854775807, 0, '22012', 1, now());
-- And a dump carries the bound of those that were given; lower than here, it
-- says nothing.
BEGIN;
INSERT INTO batcher.number_bound VALUES (7000000000000000), (1), (0), (NULL);
ROLLBACK;
SELECT batch_enqueue('en', '1') > 7000000000000000 + 1048576 AS above;
SELECT batch_flush('en');
INSERT INTO batcher.number_bound VALUES (9223372036854775807);
INSERT INTO batcher.number_bound VALUES (-1);
SELECT * FROM batcher.number_bound;

SELECT batch_drop_queue('en');
DROP TABLE en_source, en_target;
DROP FUNCTION en_changed();
