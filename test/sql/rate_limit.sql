-- The most rows that are flushed in a second, whatever brings them.
-- M5.9 (bounded use of what the flush needs)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql

CREATE TABLE rl_target (n int, flushed_at timestamptz);
-- Begin a count, and how often since then more rows had left than may: what
-- comes in the time, and what a second brings.
CREATE TABLE rl_begun (at timestamptz);
CREATE FUNCTION rl_begin() RETURNS void LANGUAGE sql AS $$
    DELETE FROM rl_target;
    DELETE FROM rl_begun;
    INSERT INTO rl_begun VALUES (clock_timestamp());
$$;
CREATE FUNCTION rl_exceeded(rate float8) RETURNS bigint LANGUAGE sql AS $$
    SELECT count(*) FROM rl_target t, rl_begun b
        WHERE (SELECT count(*) FROM rl_target u WHERE u.flushed_at <= t.flushed_at)
            > greatest($1, 1) + $1 * extract(epoch FROM t.flushed_at - b.at)
$$;

-- Values that it takes.
SELECT batch_create_queue('rl', options => '{"rate_limit": 0}');
\echo :SQLSTATE
SELECT batch_create_queue('rl', options => '{"rate_limit": "10"}');
SELECT batch_create_queue('rl', options => '{"rate_limit": 1e9}');
SELECT batch_create_queue('rl', options => '{"rate_limit": -1}');
SELECT batch_create_queue('rl', 'INSERT INTO rl_target SELECT payload::int, statement_timestamp() FROM batch',
    options => '{"rate_limit": 20, "flush_interval": "10 ms", "durable": false}');
SELECT batch_stats('rl')->'config'->'rate_limit' AS rate_limit;
SELECT rl_begin();

-- A second's worth leaves at once, the rest bit by bit, in its order.
SELECT batch_enqueue_many('rl', (SELECT array_agg(to_jsonb(g) ORDER BY g) FROM generate_series(1, 40) g));
SELECT wait_until($$SELECT rows_flushed >= 40 FROM batcher.stat_queue WHERE queue = 'rl'$$);
SELECT count(*), count(DISTINCT n), rl_exceeded(20) AS exceeded FROM rl_target;
SELECT max(flushed_at) >= min(b.at) + interval '1 s' AS took_a_second FROM rl_target, rl_begun b;
SELECT count(*) AS out_of_order FROM (SELECT n < lag(n) OVER (ORDER BY flushed_at, ctid) AS wrong FROM rl_target) s WHERE wrong;
-- Those that had to wait beyond their window are counted.
SELECT deadline_missed > 0 AS missed FROM batcher.stat_queue WHERE queue = 'rl';

-- It makes nothing leave earlier.
SELECT batch_alter_queue('rl', '{"flush_interval": "1 h"}');
SELECT batch_enqueue_many('rl', array_fill('0'::jsonb, '{40}'));
SELECT wait_until($$SELECT next_flush_at > now() + interval '10 min' FROM batcher.status WHERE queue = 'rl'$$);
SELECT pending FROM batcher.status WHERE queue = 'rl';
SELECT batch_purge('rl');

-- It holds for who asks for a flush, for immediate rows and for rows that are tried again.
SELECT rl_begin();
SELECT batch_alter_queue('rl', '{"rate_limit": 4}');
SELECT batch_enqueue_many('rl', '{1,2,3,4}');
SELECT batch_flush('rl');
SELECT batch_enqueue_many('rl', '{5,6}', immediate => true);
SELECT batch_enqueue_many('rl', '{7,8}');
SELECT batch_flush('rl', '1 min') > 0 AS flushed;
SELECT count(*), rl_exceeded(4) AS exceeded FROM rl_target;
SELECT rl_begin();
SELECT batch_alter_queue('rl', '{"rate_limit": 10, "retry_delay": 1}',
    'INSERT INTO rl_target SELECT CASE WHEN batch_attempts = 0 THEN payload::text::int / 0 ELSE payload::int END, statement_timestamp() FROM batch');
SELECT batch_enqueue_many('rl', (SELECT array_agg(to_jsonb(g)) FROM generate_series(1, 10) g)) \g /dev/null
SELECT batch_flush('rl', '1 min') > 0 AS flushed;
SELECT wait_until($$SELECT rows_flushed >= 40 + 8 + 10 FROM batcher.stat_queue WHERE queue = 'rl'$$);
SELECT count(*), rl_exceeded(10) AS exceeded FROM rl_target;

-- A slow queue: one row, then none for long.  Without the limit all leave.
SELECT rl_begin();
SELECT batch_alter_queue('rl', '{"rate_limit": 0.001, "flush_interval": "10 ms"}',
    'INSERT INTO rl_target SELECT payload::int, statement_timestamp() FROM batch');
SELECT batch_enqueue_many('rl', '{1,2,3}');
SELECT wait_until($$SELECT next_flush_at > now() + interval '10 min' FROM batcher.status WHERE queue = 'rl'$$);
SELECT pending >= 2 AS waits, next_flush_at > now() + interval '10 min' AS later FROM batcher.status WHERE queue = 'rl';
-- Who purges does not wait for it.
SELECT batch_enqueue('rl', '4') > 0 AS has_ticket;
SELECT batch_purge('rl') >= 3 AS purged;
SELECT batch_enqueue_many('rl', '{5,6}');
SELECT batch_alter_queue('rl', '{"rate_limit": null}');
SELECT batch_flush('rl') >= 0 AS flushed;
SELECT array_agg(n ORDER BY n) FROM rl_target WHERE n > 4;

-- Rows that are in the spool only are limited, too.
SELECT batch_create_queue('rl spilled', 'INSERT INTO rl_target SELECT payload::int, statement_timestamp() FROM batch',
    options => '{"rate_limit": 30, "flush_interval": "10 ms", "memory_limit": 1}');
SELECT rl_begin();
SELECT batch_enqueue_many('rl spilled', (SELECT array_agg(to_jsonb(g)) FROM generate_series(1, 60) g));
SELECT wait_until($$SELECT rows_flushed >= 60 FROM batcher.stat_queue WHERE queue = 'rl spilled'$$);
SELECT rows_spilled FROM batcher.stat_queue WHERE queue = 'rl spilled';
SELECT count(*), rl_exceeded(30) AS exceeded FROM rl_target;

SELECT batch_drop_queue('rl'), batch_drop_queue('rl spilled');
DROP FUNCTION rl_begin(), rl_exceeded(float8);
DROP TABLE rl_target, rl_begun;
