-- Enqueuing is part of the transaction.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE tx_target (n int);
SELECT batch_create_queue('tx', 'INSERT INTO tx_target SELECT payload::int FROM batch ORDER BY batch_pos', options => '{"flush_interval": "1 h"}');
SELECT batch_create_queue('tx memory', 'INSERT INTO tx_target SELECT payload::int FROM batch ORDER BY batch_pos', options => '{"flush_interval": "1 h", "durable": false}');

-- Puts a number into both queues.
CREATE FUNCTION tx_put(n int) RETURNS void LANGUAGE sql
    AS 'SELECT batch_enqueue(''tx'', to_jsonb(n)), batch_enqueue(''tx memory'', to_jsonb(-n))';
-- Flushes both, and shows what came.  The two must agree.
CREATE PROCEDURE tx_show() LANGUAGE plpgsql AS $$
DECLARE
    positive int[]; negative int[];
BEGIN
    PERFORM batch_flush('tx'), batch_flush('tx memory');
    COMMIT;
    SELECT array_agg(n ORDER BY ctid) FILTER (WHERE n > 0),
           array_agg(-n ORDER BY ctid) FILTER (WHERE n < 0)
        INTO positive, negative FROM tx_target;
    DELETE FROM tx_target;
    IF positive IS DISTINCT FROM negative THEN
        RAISE INFO 'durable %, not durable %', positive, negative;
    ELSE
        RAISE INFO 'flushed: %', coalesce(positive::text, 'nothing');
    END IF;
END $$;

-- Rollback.
BEGIN;
SELECT tx_put(1);
ROLLBACK;
CALL tx_show();
BEGIN;
SELECT tx_put(2);
SELECT 1 / 0;
COMMIT;
CALL tx_show();
SELECT tx_put(3), 1 / 0;
CALL tx_show();

-- Savepoints.
BEGIN;
SELECT tx_put(10);
SAVEPOINT a;
SELECT tx_put(11);
SAVEPOINT b;
SELECT tx_put(12);
ROLLBACK TO b;
SELECT tx_put(13);
RELEASE b;
SELECT tx_put(14);
COMMIT;
CALL tx_show();
BEGIN;
SAVEPOINT a;
SELECT tx_put(20);
SAVEPOINT b;
SELECT tx_put(21);
RELEASE b;
ROLLBACK TO a;
SELECT tx_put(22);
COMMIT;
CALL tx_show();
-- All rows in savepoints that are gone.
BEGIN;
SAVEPOINT a;
SELECT tx_put(30);
SAVEPOINT b;
SELECT tx_put(31);
ROLLBACK TO a;
COMMIT;
CALL tx_show();
-- The same savepoint again and again, with an error in it.
BEGIN;
SAVEPOINT a;
SELECT tx_put(40);
ROLLBACK TO a;
SELECT tx_put(41);
SELECT batch_enqueue('nobody', '1');
ROLLBACK TO a;
SELECT tx_put(42);
SAVEPOINT a;
SELECT tx_put(43);
ROLLBACK TO a;
SELECT tx_put(44);
COMMIT;
CALL tx_show();

-- At any depth: each level enqueues on its way down and on its way up, and
-- those that 9 divides roll back.
CREATE FUNCTION tx_dive(level int, bottom int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tx_put(level);
    IF level < bottom THEN
        BEGIN
            PERFORM tx_dive(level + 1, bottom);
            IF level % 9 = 0 THEN
                RAISE division_by_zero;
            END IF;
        EXCEPTION WHEN division_by_zero THEN
            PERFORM tx_put(1000 + level);
        END;
    END IF;
    PERFORM tx_put(100 + level);
END $$;
SELECT tx_dive(1, 12);
CALL tx_show();
SELECT tx_dive(10, 80);
CALL tx_show();

-- Exceptions that plpgsql catches.
DO $$
BEGIN
    PERFORM tx_put(50);
    BEGIN
        PERFORM tx_put(51);
        PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN
        PERFORM tx_put(52);
    END;
    BEGIN
        PERFORM tx_put(53);
    EXCEPTION WHEN division_by_zero THEN
        PERFORM tx_put(54);
    END;
    BEGIN
        PERFORM batch_enqueue('tx', NULL);
    EXCEPTION WHEN null_value_not_allowed THEN
        PERFORM tx_put(55);
    END;
END $$;
CALL tx_show();

-- A procedure that commits and rolls back.
CREATE PROCEDURE tx_loop() LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 60..69 LOOP
        PERFORM tx_put(i);
        IF i % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
    END LOOP;
END $$;
CALL tx_loop();
CALL tx_show();

-- AND CHAIN.
BEGIN;
SELECT tx_put(70);
COMMIT AND CHAIN;
SELECT tx_put(71);
ROLLBACK AND CHAIN;
SELECT tx_put(72);
COMMIT;
CALL tx_show();

-- Another isolation level.
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT tx_put(80);
SELECT tx_put(81);
COMMIT;
CALL tx_show();

-- Deferred work that enqueues at the commit.
CREATE TABLE tx_deferred (n int);
CREATE FUNCTION tx_deferred() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM tx_put(new.n), 1 / new.n; RETURN NULL; END';
CREATE CONSTRAINT TRIGGER tx_deferred AFTER INSERT ON tx_deferred
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tx_deferred();
BEGIN;
INSERT INTO tx_deferred VALUES (90), (91);
SELECT tx_put(89);
COMMIT;
CALL tx_show();
BEGIN;
INSERT INTO tx_deferred VALUES (92), (0), (93);
COMMIT;
CALL tx_show();

-- A cursor that is held enqueues at the commit.
BEGIN;
DECLARE c CURSOR WITH HOLD FOR SELECT tx_put(n) FROM generate_series(94, 96) n;
FETCH 1 FROM c;
COMMIT;
CLOSE c;
CALL tx_show();

-- Prepared transactions are refused, and the session goes on.
BEGIN;
SELECT batch_enqueue('tx', '100') > 0 AS has_ticket;
PREPARE TRANSACTION 'regress_batcher';
\echo :SQLSTATE
BEGIN;
SELECT batch_enqueue('tx memory', '-100') > 0 AS has_ticket;
PREPARE TRANSACTION 'regress_batcher';
SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'regress_batcher';
CALL tx_show();

-- Read-only transactions may enqueue what is not durable.
BEGIN READ ONLY;
SELECT batch_enqueue('tx', '110');
\echo :SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT batch_enqueue_many('tx', '{110}');
ROLLBACK;
BEGIN READ ONLY;
SELECT batch_enqueue('tx memory', '-111') > 0 AS has_ticket;
COMMIT;
BEGIN;
SELECT batch_enqueue('tx', '111') > 0 AS has_ticket;
SET TRANSACTION READ ONLY;
COMMIT;
CALL tx_show();

-- Parallel workers: a function that is wrongly marked.
CREATE FUNCTION tx_wrong(n int) RETURNS bigint PARALLEL SAFE LANGUAGE plpgsql
    AS 'BEGIN RETURN batch_enqueue(''tx'', to_jsonb(n)); END';
-- (16 has given the setting another name)
SELECT name AS parallel_setting FROM pg_settings
    WHERE name IN ('force_parallel_mode', 'debug_parallel_query') \gset
BEGIN;
SELECT set_config(:'parallel_setting', 'regress', true);
SELECT tx_wrong(120);
\echo :SQLSTATE
ROLLBACK;
-- It is not asked to run in one when it is rightly marked.
BEGIN;
SELECT set_config(:'parallel_setting', 'regress', true);
SELECT batch_enqueue('tx', '121') > 0 AS has_ticket;
SELECT batch_enqueue('tx memory', '-121') > 0 AS has_ticket;
COMMIT;
CALL tx_show();

-- A queue that is made in a savepoint and rolled back leaves nothing to the
-- next one: the spool has its rows under its own number.
BEGIN;
SELECT batch_enqueue('tx', '130') > 0 AS has_ticket;
SAVEPOINT s;
SELECT batch_create_queue('tx undone'), batch_enqueue('tx undone', '1') > 0;
ROLLBACK TO s;
SELECT batch_create_queue('tx next'), batch_pause('tx next');
SELECT batch_enqueue('tx next', '2') > 0 AS has_ticket;
COMMIT;
SELECT queue, payload, durable FROM batcher.pending WHERE queue = 'tx next';
SELECT batch_drop_queue('tx next', true);
CALL tx_show();

SELECT count(*) FROM batcher.pending;
SELECT batch_drop_queue('tx'), batch_drop_queue('tx memory');
DROP TABLE tx_target, tx_deferred;
DROP PROCEDURE tx_show(), tx_loop();
DROP FUNCTION tx_put(int), tx_dive(int, int), tx_deferred(), tx_wrong(int);
