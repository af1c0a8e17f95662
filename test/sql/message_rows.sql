-- Messages with rows, on several channels, in parts; as a listener gets them.
-- M4.1 (grouped by topic, one send for each topic)
-- M4.5 (a consumer can tell a single message from a batch)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

-- What differs from run to run is cut out of what psql shows.
\set listen '\\o |sed -E \'s/"at": "[^"]+", //; s/"epoch": "[0-9a-f]+", //; s/ received from .*//; s/Asynchronous notification/message/; s/ with payload/:/\''

SELECT batch_create_queue('mr', options => '{"flush_interval": "1 h", "notify_channel": "mr_{topic}",
    "notify_format": "rows"}');
LISTEN mr_;
LISTEN mr_jobs;
LISTEN mr_news;
LISTEN mr;

-- One send for each topic, in the order of their first rows; no topic is
-- replaced by nothing.
SELECT batch_enqueue('mr', '{"n": 1}', topic => 'jobs') > 0
    AND batch_enqueue('mr', '{"n": 2}', topic => 'news') > 0
    AND batch_enqueue('mr', '{"n": 3}', topic => 'jobs') > 0
    AND batch_enqueue('mr', '{"n": 4}') > 0 AS enqueued;
:listen
SELECT batch_flush('mr');
\o
-- Payloads are as they were enqueued: all kinds, all escapes, many bytes.
SELECT batch_enqueue_many('mr', ARRAY['null', 'true', '7', '-1.50', '"x"', '[]', '{}', '[1, [2, {"a": null}]]',
    '"\"\\\/\b\f\n\r\t\u001f"', '"ä € 漢 😀"', '{"ключ": "значение"}', '""']::jsonb[]);
:listen
SELECT batch_flush('mr');
\o
-- A channel that is too long gives way to the queue's name, as does none.
SELECT batch_enqueue('mr', '1', topic => repeat('t', 61)) > 0
    AND batch_enqueue('mr', '2', topic => repeat('ä', 31)) > 0 AS enqueued;
:listen
SELECT batch_flush('mr');
\o
SELECT batch_alter_queue('mr', '{"notify_channel": "{key}"}');
LISTEN k1;
SELECT batch_enqueue('mr', '1', key => 'k1') > 0 AND batch_enqueue('mr', '2') > 0
    AND batch_enqueue('mr', '3', key => '') > 0 AND batch_enqueue('mr', '4', key => '{queue}') > 0 AS enqueued;
LISTEN "{queue}";
:listen
SELECT batch_flush('mr');
\o
-- A summary for each channel says how many rows are on it.
SELECT batch_alter_queue('mr', '{"notify_channel": "{queue}_{topic}", "notify_format": "summary"}');
SELECT batch_enqueue('mr', '1', topic => 'jobs') > 0 AND batch_enqueue('mr', '2', topic => 'news') > 0
    AND batch_enqueue('mr', '3', topic => 'jobs') > 0 AS enqueued;
:listen
SELECT batch_flush('mr');
\o
SELECT batch_alter_queue('mr', '{"notify_channel": "{what}"}');
SELECT batch_create_queue('mr 2', options => '{"notify_channel": "{Topic}"}');

-- Parts: none splits a row, and a row that is too large is named by its ticket.
SELECT batch_alter_queue('mr', '{"notify_channel": "mr", "notify_format": "rows"}');
SELECT batch_reset_stats('mr');
SELECT batch_enqueue('mr', to_jsonb(repeat(c, 3500))) > 0 AS enqueued FROM unnest('{x,y,z}'::text[]) c;
SELECT batch_enqueue('mr', to_jsonb(repeat('"', 4000))) AS large \gset
SELECT batch_enqueue('mr', '"small"') > 0 AS enqueued;
\set listen_short :listen ' | sed -E \'s/([xyz])[xyz]{2000,}/\\1.../g; s/"ticket": ':large'/"ticket": LARGE/\''
:listen_short
SELECT batch_flush('mr');
\o
SELECT rows_flushed, messages_sent, messages_saved, message_bytes BETWEEN 11000 AND 12000 AS message_bytes
    FROM batcher.stat_queue WHERE queue = 'mr';

-- Compressed, where that makes fewer parts, and only there.
-- M4.8 (compression)
SELECT batch_alter_queue('mr', '{"notify_encoding": "zlib"}');
SELECT batch_reset_stats('mr');
SELECT batch_enqueue('mr', '"one part"') > 0 AS enqueued;
:listen
SELECT batch_flush('mr');
\o
SELECT count(batch_enqueue('mr', jsonb_build_object('n', n, 'text', repeat('abc', 50)))) FROM generate_series(1, 500) n;
:listen | sed -E 's/"rows": "[A-Za-z0-9+\/=]+"/"rows": "base64"/'
SELECT batch_flush('mr');
\o
SELECT rows_flushed, messages_sent, messages_saved FROM batcher.stat_queue WHERE queue = 'mr';

-- Ten thousand channels.
SELECT batch_alter_queue('mr', '{"notify_channel": "mr_{key}", "notify_encoding": null, "max_batch_size": 20000}');
SELECT batch_reset_stats('mr');
SELECT count(batch_enqueue('mr', to_jsonb(n), key => n::text)) FROM generate_series(1, 10000) n;
LISTEN mr_5000;
:listen
SELECT batch_flush('mr');
\o
SELECT rows_flushed, batches, messages_sent, messages_saved FROM batcher.stat_queue WHERE queue = 'mr';

-- Rows of a type are objects, of the columns that were given.
CREATE TYPE mr_kind AS ENUM ('job', 'news');
CREATE TYPE mr_type AS (n bigint, amount numeric, done bool, since timestamptz, bytes bytea, kind mr_kind, many int[], more jsonb, part mr_kind[]);
SELECT batch_create_queue('mr typed', row_type => 'mr_type', options => '{"flush_interval": "1 h", "notify_channel": "mr", "notify_format": "rows"}');
LISTEN mr;
SELECT batch_enqueue_row('mr typed', ROW(9007199254740993, 1.50, true, '2026-01-31 12:00:00+00', '\x00ff', 'job', '{{1,2},{NULL,4}}', '{"a": [1, null]}', '{news}')::mr_type) > 0
    AND batch_enqueue_row('mr typed', ROW(NULL, 'NaN', NULL, 'infinity', '', NULL, '{}', 'null', NULL)::mr_type) > 0
    AND batch_enqueue('mr typed', '{"n": 3, "kind": "news", "amount": "1e3"}') > 0 AS enqueued;
:listen
SELECT batch_flush('mr typed');
\o
-- A target, with rows that name different columns, are told in their order, and
-- not if the target does not take them.
CREATE TABLE mr_target (id int PRIMARY KEY, word text DEFAULT 'none', kind mr_kind);
SELECT batch_create_queue('mr target', target => 'mr_target', options => '{"flush_interval": "1 h", "notify_channel": "mr", "notify_format": "rows", "max_attempts": 1}');
SELECT batch_enqueue_many('mr target', ARRAY['{"id": 1}', '{"id": 2, "word": "two"}', '{"id": 3, "kind": "none"}', '{"id": 2}', '{"kind": "job", "id": 4}', '{"id": 5}']::jsonb[]);
:listen
SELECT batch_flush('mr target'), wait_sent('mr target', 1);
\o
SELECT * FROM mr_target ORDER BY id;
SELECT payload, sqlstate FROM batcher.dead_letter WHERE queue = 'mr target' ORDER BY ticket;
SELECT batch_drop_queue('mr typed'), batch_drop_queue('mr target');
DROP TABLE mr_target;
DROP TYPE mr_type, mr_kind;

UNLISTEN *;
SELECT batch_drop_queue('mr');
