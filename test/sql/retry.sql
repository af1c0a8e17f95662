-- A row that waits to be tried again.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
\getenv abs_srcdir PG_ABS_SRCDIR
\i :abs_srcdir/lib.sql
CREATE TABLE re_factor (n int);
INSERT INTO re_factor VALUES (0);
CREATE TABLE re_done (n int);
SELECT batch_create_queue('re',
	'INSERT INTO re_done SELECT payload::int / CASE WHEN payload::int < 0 THEN f.n ELSE 1 END FROM batch, re_factor f',
	options => '{"flush_interval": "1 h", "retry_delay": "1 h", "max_attempts": 1000}');
SELECT batch_enqueue('re', '-1') AS bad \gset
SELECT batch_enqueue('re', '1') AS good \gset
-- it is tried once more for who asks
SELECT batch_flush('re', '1 s');
SELECT batch_wait('re', :good), batch_wait('re', :bad, '0');
SELECT pending, oldest_age IS NULL AS none, oldest_runnable_age IS NULL AS none_runnable
FROM batcher.status WHERE queue = 're';
-- rows that come later have their window, though one that was asked for waits
SELECT batch_enqueue('re', '2') AS later \gset
SELECT batch_wait('re', :later, '300 ms');
SELECT batch_enqueue('re', '3', immediate => true) AS now \gset
SELECT batch_wait('re', :now);
SELECT pending, oldest_runnable_age < oldest_age AS younger FROM batcher.status WHERE queue = 're';
-- it does not wait for its delay when its cause is mended
UPDATE re_factor SET n = 1;
SELECT batch_reset_breaker('re');
SELECT batch_wait('re', :bad);
SELECT n FROM re_done ORDER BY n;
-- nor when the queue is changed
UPDATE re_factor SET n = 0;
SELECT batch_enqueue('re', '-2') AS bad \gset
SELECT batch_enqueue('re', '4') AS good \gset
SELECT batch_flush('re', '1 s');
SELECT batch_wait('re', :bad, '0');
UPDATE re_factor SET n = 1;
SELECT batch_alter_queue('re', '{"flush_interval": "2 h"}');
SELECT batch_wait('re', :bad);
SELECT n FROM re_done ORDER BY n;
SELECT batch_drop_queue('re');
DROP TABLE re_done, re_factor;
-- rows that were in the spool only pass those that it holds back, however many
CREATE TABLE re_done (n int);
SELECT batch_create_queue('re',
	'INSERT INTO re_done SELECT 1 / (payload->>''n'')::int FROM batch',
	options => '{"flush_interval": "10 ms", "retry_delay": "1 h", "max_attempts": 1000, "memory_limit": "200kB"}');
SELECT batch_pause('re');
SELECT count(batch_enqueue('re', jsonb_build_object('n', i - 1, 'long', repeat('x', 100000)), 'bad')) FROM generate_series(1, 400) i;
SELECT batch_enqueue('re', '{"n": 1}', 'other') AS other \gset
SELECT batch_resume('re');
-- (nothing wakes the worker)
SELECT wait_until($$SELECT EXISTS (SELECT FROM re_done)$$);
SELECT batch_wait('re', :other, '0');
SELECT n FROM re_done;
SELECT batch_drop_queue('re', true);
DROP TABLE re_done;
-- what it holds back is not looked at for each batch of the others, though
-- somebody has asked for it
CREATE TABLE re_done (n int);
SELECT batch_create_queue('re', 'INSERT INTO re_done SELECT 1 / payload::int FROM batch',
	options => '{"flush_interval": "1 ms", "retry_delay": "1 h", "max_attempts": 1000, "durable": false}');
SELECT batch_enqueue_many('re', array_agg(to_jsonb(i / 400000)), array_agg('bad'::text)) FROM generate_series(1, 400000) i;
SELECT batch_flush('re', '0');
CREATE PROCEDURE re_many(how_many int) LANGUAGE plpgsql AS $$
DECLARE
	ticket bigint;
BEGIN
	FOR i IN 1 .. how_many LOOP
		ticket := batch_enqueue('re', '1', i::text);
		COMMIT;
		PERFORM batch_wait('re', ticket);
		COMMIT;
	END LOOP;
END $$;
SET statement_timeout = '10 s';
CALL re_many(500);
RESET statement_timeout;
SELECT count(*) FROM re_done;
SELECT batch_drop_queue('re', true);
DROP PROCEDURE re_many(int);
DROP TABLE re_done;
