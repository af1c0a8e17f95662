-- Messages with events: rows that say the same of several things are one.
-- M3.2 (three JOB_STARTED become one JOBS_BATCH_STARTED)
-- M3.4 (66 % fewer messages)
-- M3.6 (events saved, that is messages that were not sent)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

\set listen '\\o |sed -E \'s/.*"events": (.*)\\}" received from .*/\\1/\''

SELECT batch_create_queue('mg', options => '{"flush_interval": "1 h", "notify_channel": "mg",
    "notify_format": "groups", "notify_names": {"JOB_STARTED": "JOBS_BATCH_STARTED"}}');
LISTEN mg;

SELECT batch_enqueue_many('mg', ARRAY['{"event": "JOB_STARTED", "job_id": 123}',
    '{"event": "JOB_STARTED", "job_id": 124}', '{"event": "JOB_STARTED", "job_id": 125}']::jsonb[]);
:listen
SELECT batch_flush('mg');
\o
SELECT rows_flushed, messages_sent, messages_saved, round(100.0 * messages_saved / rows_flushed) AS percent
    FROM batcher.stat_queue WHERE queue = 'mg';

-- Groups in the order of their first rows; a group of one is as it was; what
-- is no object, or has no such field, or no scalar in it, stands alone.
SELECT batch_enqueue_many('mg', ARRAY['{"event": "B", "n": 1, "by": "x"}', '{"event": "A", "n": 2}', '7',
    '{"n": 3}', '{"event": "B", "n": 4, "by": "x"}', '{"n": 3}', '{"event": null}', '{"event": null}',
    '{"event": ["B"]}', '[{"event": "B"}]', '{"event": "B", "n": 5, "by": "x"}']::jsonb[]);
:listen
SELECT batch_flush('mg');
\o
-- A field that is not in all of them has null there, also if it is equal
-- where it is; numbers are equal by value, objects too.
SELECT batch_enqueue_many('mg', ARRAY['{"event": "A", "a": 1, "o": {"x": [1, 2]}, "m": 1, "d": {"x": 1}}',
    '{"event": "A", "b": null, "o": {"x": [1, 2]}, "m": 1, "d": {"x": 2}}',
    '{"event": "A", "a": 1, "b": true, "o": {"x": [1, 2]}, "m": 1.0, "d": [3]}']::jsonb[]);
:listen
SELECT batch_flush('mg');
\o
-- Plurals, and names that are taken.
SELECT batch_enqueue_many('mg', ARRAY['{"event": "A", "status": 1, "box": 1, "batch": 1, "dish": 1, "city": 1, "key": 1, "id": 1, "ID": 1, "y": 1, "größe": 1}',
    '{"event": "A", "status": 2, "box": 2, "batch": 2, "dish": 2, "city": 2, "key": 2, "id": 2, "ID": 2, "y": 2, "größe": 2}']::jsonb[]);
:listen
SELECT batch_flush('mg');
\o
SELECT batch_enqueue_many('mg', ARRAY['{"event": "A", "id": 1, "ids": 5, "x": 1, "xes": 2, "x_list": 3, "batch_count": 9}',
    '{"event": "A", "id": 2, "ids": 5, "x": 2, "xes": 3, "x_list": 3, "batch_count": 9}']::jsonb[]);
:listen
SELECT batch_flush('mg');
\o
-- Another field; one that is no text.
SELECT batch_alter_queue('mg', '{"notify_group_by": "user"}');
SELECT batch_enqueue_many('mg', ARRAY['{"user": 7, "n": 1}', '{"user": 8, "n": 2}', '{"user": "7", "n": 3}',
    '{"user": 7, "n": 4}', '{"user": true, "n": 5}', '{"user": true, "n": 5}']::jsonb[]);
:listen
SELECT batch_flush('mg');
\o
SELECT batch_alter_queue('mg', '{"notify_group_by": "batch_count"}');
SELECT batch_alter_queue('mg', '{"notify_names": "x"}');
SELECT batch_alter_queue('mg', '{"notify_names": ["x"]}');
SELECT batch_alter_queue('mg', '{"notify_names": {"x": 1}}');
SELECT batch_alter_queue('mg', '{"notify_format": "group"}');
SELECT options->'notify_names' AS notify_names FROM batcher.queue WHERE queue = 'mg';

-- A group that is too large for a message is several events, a row that is too
-- large is named.
SELECT batch_alter_queue('mg', '{"notify_group_by": null}');
SELECT batch_enqueue('mg', jsonb_build_object('event', 'A', 'text', repeat(c, 2500))) > 0 FROM unnest('{a,b,c,d,e}'::text[]) c;
SELECT batch_enqueue('mg', jsonb_build_object('event', 'A', 'text', repeat('f', 9000))) AS ticket \gset
\set listen_short :listen ' | sed -E \'s/([a-f])[a-f]{2000,}/\\1.../g; s/"ticket": ':ticket'/"ticket": LARGE/\''
:listen_short
SELECT batch_flush('mg');
\o
-- What is equal in all of them is there once, however many they are.
SELECT count(batch_enqueue('mg', jsonb_build_object('event', 'A', 'text', repeat('a', 100)))) FROM generate_series(1, 900);
:listen | sed -E 's/a{100}/aaa.../'
SELECT batch_flush('mg');
\o
-- Rows of a type are grouped by a column.
CREATE TYPE mg_type AS (event text, job_id int, state text, stops timestamptz);
SELECT batch_create_queue('mg typed', row_type => 'mg_type', options => '{"flush_interval": "1 h", "notify_channel": "mg", "notify_format": "groups",
    "notify_names": {"DONE": "ALL_DONE"}}');
SELECT batch_enqueue_row('mg typed', v) > 0 AS enqueued FROM (VALUES
    (ROW('DONE', 1, 'good', '2026-01-31 12:00:00+00')::mg_type), (ROW('BEGUN', 2, NULL, NULL)::mg_type), (ROW(NULL, 3, 'alone', NULL)::mg_type),
    (ROW('DONE', 4, 'good', NULL)::mg_type)) t(v);
SELECT batch_enqueue('mg typed', '{"job_id": 5, "event": "DONE"}') > 0 AS enqueued;
:listen
SELECT batch_flush('mg typed');
\o
SELECT batch_alter_queue('mg typed', '{"notify_group_by": "job_id"}');
SELECT batch_enqueue_row('mg typed', ROW('A', 1, 'x', NULL)::mg_type) > 0 AND batch_enqueue_row('mg typed', ROW('B', 1, 'y', NULL)::mg_type) > 0 AS enqueued;
:listen
SELECT batch_flush('mg typed');
\o
SELECT batch_drop_queue('mg typed');
DROP TYPE mg_type;
UNLISTEN *;
SELECT batch_drop_queue('mg');
