-- Priorities: higher first, rows of a key in their order, nobody for ever.
-- M1.12 (priorities), M4.8 (a priority for each kind of event)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE pr_target (n bigint GENERATED ALWAYS AS IDENTITY, rows text);
SELECT batch_create_queue('pr', $$INSERT INTO pr_target (rows)
    SELECT string_agg(payload #>> '{}', ' ' ORDER BY batch_pos) FROM batch$$,
    options => '{"flush_interval": "1 h", "max_batch_size": 4}');

-- Without key: by priority, and within one as they were enqueued.  A key has
-- the highest priority of its rows, which stay in their order.
SELECT batch_pause('pr');
DO $$
BEGIN
    PERFORM batch_enqueue('pr', '"a0"');
    PERFORM batch_enqueue('pr', '"b-5"', priority => -5);
    PERFORM batch_enqueue('pr', '"c7"', priority => 7);
    PERFORM batch_enqueue('pr', '"k1"', 'k', priority => -7);
    PERFORM batch_enqueue('pr', '"d0"');
    PERFORM batch_enqueue('pr', '"k2"', 'k', priority => 5);
    PERFORM batch_enqueue('pr', '"l1"', 'l');
    PERFORM batch_enqueue('pr', '"k3"', 'k', priority => -7);
    PERFORM batch_enqueue('pr', '"e7"', priority => 7);
    PERFORM batch_enqueue('pr', '"max"', priority => 2147483647);
    PERFORM batch_enqueue('pr', '"min"', priority => (-2147483648)::int);
    PERFORM batch_enqueue('pr', '"f0"');
END $$;
SELECT batch_resume('pr');
SELECT batch_flush('pr') >= 0 AS is_flushed;
SELECT rows FROM pr_target ORDER BY n;

-- In one transaction or several, it is the same.
TRUNCATE pr_target RESTART IDENTITY;
SELECT batch_pause('pr');
SELECT count(batch_enqueue('pr', to_jsonb('a' || g), priority => g % 3)) FROM generate_series(1, 6) g;
SELECT batch_enqueue('pr', '"b"', priority => 2) > 0 AS has_ticket;
SELECT batch_enqueue('pr', '"c"', priority => 1) > 0 AS has_ticket;
SELECT batch_resume('pr');
SELECT batch_flush('pr') >= 0 AS is_flushed;
SELECT rows FROM pr_target ORDER BY n;

-- A row that has waited for ten windows comes before those that have not,
-- whatever their priority.
TRUNCATE pr_target RESTART IDENTITY;
SELECT batch_pause('pr');
SELECT batch_alter_queue('pr', '{"flush_interval": "1 min", "max_batch_size": 1}');
SELECT batch_enqueue('pr', '"old"', priority => -1) > 0 AS has_ticket;
SELECT wait_until($$SELECT clock_timestamp() - enqueued_at >= interval '100 ms' FROM batcher.pending WHERE queue = 'pr'$$);
SELECT batch_alter_queue('pr', '{"flush_interval": "5 ms"}');
BEGIN;
SELECT batch_enqueue('pr', '"young"', priority => 9) > 0 AS has_ticket;
SELECT batch_resume('pr');
COMMIT;
SELECT batch_flush('pr') >= 0 AS is_flushed;
SELECT rows FROM pr_target ORDER BY n;

-- Not durable.
TRUNCATE pr_target RESTART IDENTITY;
SELECT batch_pause('pr');
SELECT batch_alter_queue('pr', '{"durable": false, "flush_interval": "1 h", "max_batch_size": 3}');
SELECT batch_enqueue_many('pr', '{"\"a\"", "\"b\""}', priority => -1);
SELECT batch_enqueue_many('pr', '{"\"c\"", "\"d\""}', '{k,l}', priority => 1);
SELECT batch_enqueue_many('pr', '{"\"e\"", "\"f\""}', '{l,k}', priority => -1);
SELECT batch_resume('pr');
SELECT batch_flush('pr') >= 0 AS is_flushed;
SELECT rows FROM pr_target ORDER BY n;

-- Many rows of two keys, each of a lower priority than the one before.
CREATE TABLE pr_many (pos serial, n int);
SELECT batch_create_queue('pr many', 'INSERT INTO pr_many (n) SELECT payload::int FROM batch ORDER BY batch_pos',
    options => '{"durable": false, "flush_interval": "1 h", "max_batch_size": 200000}');
SELECT count(batch_enqueue('pr many', to_jsonb(n), 'k' || n % 2, priority => -n)) FROM generate_series(1, 100000) n;
SELECT batch_flush('pr many', '2 min') AS flushed_in_time;
SELECT count(*), count(*) FILTER (WHERE pos <> n) AS out_of_order FROM pr_many;
SELECT batch_drop_queue('pr many', true);
DROP TABLE pr_many;

SELECT batch_drop_queue('pr');
DROP TABLE pr_target;
