-- Typed queues: "batch" has the columns of a composite type.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
SET timezone = 'UTC';

CREATE TYPE ty_pair AS (x int, y text);
CREATE TYPE ty_color AS ENUM ('red', 'green');
CREATE DOMAIN ty_positive AS int CHECK (VALUE > 0);
CREATE TYPE ty_row AS (id int, name varchar(5), tags text[], seen timestamptz, color ty_color, pair ty_pair, doc jsonb, amount numeric(6,2), n ty_positive);
CREATE TABLE ty_out (pos int, key text, id int, name text, tags text[], seen timestamptz, color ty_color, pair ty_pair, doc jsonb, amount numeric, n int);
SELECT batch_create_queue('ty', 'INSERT INTO ty_out SELECT batch_pos, batch_key, id, name, tags, seen, color, pair, doc, amount, n FROM batch',
    row_type => 'ty_row', options => '{"flush_interval": "1 h", "retry_delay": "20 ms", "max_attempts": 1}');
SELECT queue, target, row_type FROM batcher.queue WHERE queue = 'ty';

-- A payload names columns, those that it does not name are null; values are
-- converted as jsonb_populate_record does.
SELECT batch_enqueue('ty', '{"id": 1, "name": "one", "tags": ["a", null], "seen": "2024-01-01 12:00+00", "color": "red",
    "pair": {"y": "why"}, "doc": {"a": [1]}, "amount": 3.14159, "n": 1}', key => 'k') > 0 AS has_ticket;
SELECT batch_enqueue('ty', '{"id": "2", "tags": "{x,y}", "pair": "(2,two)", "doc": "text"}') > 0 AS has_ticket;
SELECT batch_enqueue_many('ty', ARRAY['{"id": 3}', '{}', '{"id": null}']::jsonb[]);
SELECT batch_flush('ty');
SELECT * FROM ty_out ORDER BY pos;
TRUNCATE ty_out;

-- Names and values of built-in types are checked at once, also under a domain
-- and in an array; what a user may have written code for is not.
\set VERBOSITY sqlstate
SELECT batch_enqueue('ty', '{"id": "x"}');
SELECT batch_enqueue('ty', '{"id": 1.5}');
SELECT batch_enqueue('ty', '{"id": 10000000000}');
SELECT batch_enqueue('ty', '{"name": "too long"}');
SELECT batch_enqueue('ty', '{"seen": "never"}');
SELECT batch_enqueue('ty', '{"tags": {"a": 1}}');
SELECT batch_enqueue('ty', '{"n": "x"}');
SELECT batch_enqueue_many('ty', ARRAY['{"id": 1}', '{"id": "x"}']::jsonb[]);
SELECT batch_enqueue('ty', '5');
\set VERBOSITY default
SELECT batch_enqueue('ty', '{"ID": 1}');
-- These fail in the flush, each for itself.
SELECT batch_enqueue('ty', '{"id": 10, "color": "blue"}') > 0 AS has_ticket, batch_enqueue('ty', '{"id": 11, "n": -1}') > 0 AS has_ticket,
       batch_enqueue('ty', '{"id": 12, "pair": {"x": "no"}}') > 0 AS has_ticket, batch_enqueue('ty', '{"id": 13}') > 0 AS has_ticket;
SELECT batch_flush('ty');
SELECT id FROM ty_out;
SELECT payload, sqlstate, message, context FROM batcher.dead_letter WHERE queue = 'ty' ORDER BY ticket;
SELECT batch_purge_dead('ty');
TRUNCATE ty_out;

-- A domain that is not null wants a value, named or not.
CREATE DOMAIN ty_given AS int NOT NULL;
CREATE TYPE ty_strict AS (id int, given ty_given);
SELECT batch_create_queue('ty strict', 'INSERT INTO ty_out (id, n) SELECT id, given FROM batch',
    row_type => 'ty_strict', options => '{"flush_interval": "1 h", "max_attempts": 1}');
SELECT batch_enqueue('ty strict', '{"id": 1}') > 0 AS has_ticket, batch_enqueue('ty strict', '{"id": 2, "given": null}') > 0 AS has_ticket,
       batch_enqueue('ty strict', '{"id": 3, "given": 3}') > 0 AS has_ticket;
SELECT batch_flush('ty strict');
SELECT id, n FROM ty_out;
SELECT payload, sqlstate, message, context FROM batcher.dead_letter WHERE queue = 'ty strict' ORDER BY ticket;
SELECT batch_drop_queue('ty strict', true);
DROP TYPE ty_strict;
DROP DOMAIN ty_given;
TRUNCATE ty_out;

-- A date means what the session says that enqueues.
SET datestyle = 'SQL, DMY';
SET timezone = 'Etc/GMT-3';
SELECT batch_enqueue('ty', '{"id": 20, "seen": "02/01/2024 12:00"}') > 0 AS has_ticket;
SET timezone = 'UTC';
RESET datestyle;
SELECT payload FROM batcher.pending WHERE queue = 'ty';

-- So it does in a composite value, however that is given, and what else is in
-- it stays as it was.
CREATE DOMAIN ty_day AS date CHECK (VALUE > '2000-01-01');
CREATE TYPE ty_span AS (since date, until timestamptz, days date[], note text);
CREATE TYPE ty_outer AS (day ty_day, span ty_span, n ty_positive);
CREATE TYPE ty_dated AS (id int, span ty_span, spans ty_span[], nested ty_outer, grid ty_span[]);
CREATE TABLE ty_dates (id int, span ty_span, spans ty_span[], nested ty_outer, grid ty_span[]);
SELECT batch_create_queue('ty dated', 'INSERT INTO ty_dates SELECT id, span, spans, nested, grid FROM batch', row_type => 'ty_dated',
    options => '{"flush_interval": "1 h", "max_attempts": 1}');
SET datestyle = 'German';
SET timezone = 'Etc/GMT-3';
SELECT batch_enqueue_many('ty dated', ARRAY[
    '{"id": 1, "span": {"since": "02.01.2024", "until": "02.01.2024 12:00", "days": ["03.01.2024", null], "note": "as it was", "unknown": [1]}}',
    '{"id": 2, "span": "(02.01.2024,\"02.01.2024 12:00\",{03.01.2024},text)"}',
    '{"id": 3, "spans": [{"since": "02.01.2024"}, "(03.01.2024,,,)", null], "grid": [[{"since": "04.01.2024"}], ["(05.01.2024,,,)"]]}',
    '{"id": 4, "spans": "{\"(02.01.2024,,,)\"}", "nested": {"day": "02.01.2024", "span": {"since": "03.01.2024"}, "n": -1}}',
    '{"id": 5, "nested": {"day": "02.01.2024", "span": {"since": "03.01.2024"}, "n": 1}}',
    '{"id": 6, "span": {"note": {"since": "02.01.2024"}}, "nested": null}']::jsonb[]);
SELECT batch_enqueue('ty dated', '{"id": 7, "span": {"since": "no date"}}');
SET timezone = 'UTC';
RESET datestyle;
SELECT payload FROM batcher.pending WHERE queue = 'ty dated' ORDER BY ticket;
SELECT batch_flush('ty dated');
SELECT * FROM ty_dates ORDER BY id;
SELECT payload, sqlstate FROM batcher.dead_letter WHERE queue = 'ty dated';
-- A type in the type changes.
DROP TABLE ty_dates;
ALTER TYPE ty_span ALTER ATTRIBUTE note TYPE date;
SET datestyle = 'German';
SELECT batch_enqueue('ty dated', '{"id": 8, "span": {"note": "02.01.2024"}}') > 0 AS has_ticket;
RESET datestyle;
SELECT payload FROM batcher.pending WHERE queue = 'ty dated' ORDER BY ticket;
SELECT batch_drop_queue('ty dated', true);
DROP TYPE ty_dated, ty_outer, ty_span;
DROP DOMAIN ty_day;

-- Rows are matched to the type as it is when they are flushed.
SELECT batch_enqueue('ty', '{"id": 21, "name": "abc", "amount": 1.5}') > 0 AS has_ticket, batch_enqueue('ty', '{"id": 22, "name": "7"}') > 0 AS has_ticket;
ALTER TYPE ty_row DROP ATTRIBUTE seen;
ALTER TYPE ty_row ADD ATTRIBUTE added int;
ALTER TYPE ty_row ALTER ATTRIBUTE amount TYPE text;
ALTER TYPE ty_row ALTER ATTRIBUTE name TYPE int;
SELECT batch_alter_queue('ty', flush_sql => 'INSERT INTO ty_out (pos, id, name, key) SELECT batch_pos, id, name, amount || added IS NULL FROM batch');
SELECT batch_flush('ty');
SELECT pos, id, name, key FROM ty_out ORDER BY pos;
SELECT payload, sqlstate, message FROM batcher.dead_letter WHERE queue = 'ty' ORDER BY ticket;
SELECT batch_purge_dead('ty');
-- The same statement goes on with another type of the same name of column.
TRUNCATE ty_out;
SELECT batch_enqueue('ty', '{"id": 23, "name": 5}') > 0 AS has_ticket;
ALTER TYPE ty_row ALTER ATTRIBUTE name TYPE text;
SELECT batch_flush('ty');
SELECT id, name FROM ty_out;

-- The statement is prepared anew for the columns that there are, in whatever
-- place.
CREATE TYPE ty_moved AS (a text, b text);
CREATE TABLE ty_seen (a text, b text, topic text, key text);
CREATE FUNCTION ty_tell(a text) RETURNS text LANGUAGE sql AS $$
    INSERT INTO ty_seen VALUES (a, 'told') RETURNING 'channel'
$$;
SELECT batch_create_queue('ty moved', 'INSERT INTO ty_seen SELECT a, b, batch_topic, batch_key FROM batch', row_type => 'ty_moved',
    options => '{"flush_interval": "1 h", "notify_sql": "SELECT ty_tell(a), b FROM batch"}');
SELECT batch_enqueue('ty moved', '{"a": "A1", "b": "B1"}', 'key', topic => 'topic') > 0 AS has_ticket;
SELECT batch_flush('ty moved');
ALTER TYPE ty_moved DROP ATTRIBUTE a;
ALTER TYPE ty_moved ADD ATTRIBUTE a text;
SELECT batch_enqueue('ty moved', '{"a": "A2", "b": "B2"}', 'key', topic => 'topic') > 0 AS has_ticket;
SELECT batch_flush('ty moved');
ALTER TYPE ty_moved ADD ATTRIBUTE c text;
SELECT batch_enqueue('ty moved', '{"a": "A3", "b": "B3"}', 'key', topic => 'topic') > 0 AS has_ticket;
SELECT batch_flush('ty moved');
ALTER TYPE ty_moved DROP ATTRIBUTE a;
SELECT batch_enqueue('ty moved', '{"b": "B4", "c": "C4"}', 'key', topic => 'topic') > 0 AS has_ticket;
SELECT batch_flush('ty moved') >= 0 AS done;
SELECT breaker_state, breaker_reason FROM batcher.status WHERE queue = 'ty moved';
SELECT * FROM ty_seen ORDER BY b, a;
SELECT batch_drop_queue('ty moved', true);
DROP TABLE ty_seen;
DROP FUNCTION ty_tell(text);
DROP TYPE ty_moved;

-- The type goes: the breaker opens and says why; rows wait unchecked until
-- there is another one.
SELECT batch_enqueue('ty', '{"id": 30}') > 0 AS has_ticket;
DROP TYPE ty_row;
SELECT batch_enqueue('ty', '{"whatever": 1}') > 0 AS has_ticket;
SELECT batch_flush('ty');
SELECT breaker_state, breaker_reason FROM batcher.status WHERE queue = 'ty';
CREATE TYPE ty_other AS (id bigint);
TRUNCATE ty_out;
SELECT batch_alter_queue('ty', flush_sql => 'INSERT INTO ty_out (id) SELECT id FROM batch', row_type => 'ty_other');
SELECT batch_flush('ty') >= 0 AS done;
SELECT id FROM ty_out ORDER BY id;

-- An untyped queue may become a typed one; what is no object cannot.
SELECT batch_create_queue('ty late', 'SELECT FROM batch', options => '{"flush_interval": "1 h", "max_attempts": 1}');
SELECT batch_enqueue('ty late', '"text"') > 0 AS has_ticket, batch_enqueue('ty late', '{"id": 1}') > 0 AS has_ticket;
SELECT batch_alter_queue('ty late', flush_sql => 'INSERT INTO ty_out (id, name) SELECT id, ''late'' FROM batch', row_type => 'ty_other');
SELECT batch_flush('ty late');
SELECT id FROM ty_out WHERE name = 'late';
SELECT sqlstate, message FROM batcher.dead_letter WHERE queue = 'ty late';
SELECT batch_drop_queue('ty late', true);

-- What cannot be a row type.
SELECT batch_create_queue('ty bad', row_type => 'int');
SELECT batch_create_queue('ty bad', row_type => 'ty_positive');
SELECT batch_create_queue('ty bad', row_type => '4294967295');
CREATE TYPE ty_bad AS (batch_pos int);
SELECT batch_create_queue('ty bad', row_type => 'ty_bad');
CREATE TEMP TABLE ty_temp (id int);
SELECT batch_create_queue('ty bad', row_type => 'ty_temp');
SELECT batch_create_queue('ty bad', 'SELECT payload FROM batch', row_type => 'ty_other');

SELECT batch_drop_queue('ty', true);
DROP TABLE ty_out, ty_temp;
DROP TYPE ty_other, ty_bad, ty_color, ty_pair;
DROP DOMAIN ty_positive;
