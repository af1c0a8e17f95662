-- Option on_conflict: what an insert into the target does with a row that is
-- there.
-- M3.4 (bulk upsert of settings as one statement)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE oc_statement (n serial, rows bigint);
CREATE FUNCTION oc_count() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
    INSERT INTO oc_statement (rows) SELECT count(*) FROM written;
    RETURN NULL;
END $$;
CREATE TABLE oc_setting (key text PRIMARY KEY, value jsonb, changed_at timestamptz, note text DEFAULT 'none');
CREATE TRIGGER counted AFTER INSERT ON oc_setting REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION oc_count();
SELECT batch_create_queue('oc', target => 'oc_setting', options => '{"flush_interval": "1 h", "on_conflict": "update", "max_attempts": 1}');

-- 300 settings, each of 100 keys three times: one statement, the last of each
-- key wins.
SELECT count(batch_enqueue('oc', jsonb_build_object('key', 'k' || n % 100, 'value', n, 'changed_at', now()))) FROM generate_series(1, 300) n;
SELECT batch_flush('oc');
SELECT count(*), min((value)::int), max((value)::int), count(DISTINCT changed_at) FROM oc_setting;
SELECT count(*) FROM oc_statement;
-- Only the columns named are updated; the key may be all that is named.
UPDATE oc_setting SET note = 'kept';
TRUNCATE oc_statement;
SELECT batch_enqueue('oc', '{"key": "k1", "value": "new"}') > 0 AS has_ticket, batch_enqueue('oc', '{"key": "k2"}') > 0 AS has_ticket,
       batch_enqueue('oc', '{"key": "k100"}') > 0 AS has_ticket;
SELECT batch_flush('oc');
SELECT key, value, changed_at IS NULL AS unset, note FROM oc_setting WHERE key IN ('k1', 'k2', 'k100') ORDER BY key;
SELECT count(*) FROM oc_statement;
-- Rows of one key that name different columns have the effect of one after the
-- other; the others do not cost a statement.
TRUNCATE oc_statement;
SELECT batch_enqueue('oc', '{"key": "a", "value": 1}') > 0 AS has_ticket, batch_enqueue('oc', '{"key": "a", "value": 2, "note": "x"}') > 0 AS has_ticket,
       batch_enqueue('oc', '{"key": "a", "value": 3}') > 0 AS has_ticket, batch_enqueue('oc', '{"key": "b", "value": 4, "note": "y"}') > 0 AS has_ticket,
       batch_enqueue('oc', '{"key": "c", "value": 5}') > 0 AS has_ticket;
SELECT batch_flush('oc');
SELECT key, value, note FROM oc_setting WHERE key IN ('a', 'b', 'c') ORDER BY key;
SELECT rows FROM oc_statement ORDER BY n;
-- A row that fails does not take the others with it.
ALTER TABLE oc_setting ADD CHECK (value <> '13');
SELECT batch_enqueue('oc', '{"key": "a", "value": 13}') > 0 AS has_ticket, batch_enqueue('oc', '{"key": "b", "value": 14}') > 0 AS has_ticket;
SELECT batch_flush('oc');
SELECT key, value FROM oc_setting WHERE key IN ('a', 'b') ORDER BY key;
SELECT payload, sqlstate FROM batcher.dead_letter WHERE queue = 'oc';

-- nothing: what is there stays, and the first of a key wins.
SELECT batch_alter_queue('oc', '{"on_conflict": "nothing"}');
SELECT batch_enqueue('oc', '{"key": "a", "value": 20}') > 0 AS has_ticket, batch_enqueue('oc', '{"key": "d", "value": 21, "note": "first"}') > 0 AS has_ticket,
       batch_enqueue('oc', '{"key": "e", "value": 22}') > 0 AS has_ticket, batch_enqueue('oc', '{"key": "d", "value": 23}') > 0 AS has_ticket;
SELECT batch_flush('oc');
SELECT key, value, note FROM oc_setting WHERE key IN ('a', 'd', 'e') ORDER BY key;
-- error: that row fails.
SELECT batch_alter_queue('oc', '{"on_conflict": null}');
SELECT batch_enqueue('oc', '{"key": "a", "value": 30}') > 0 AS has_ticket, batch_enqueue('oc', '{"key": "f", "value": 31}') > 0 AS has_ticket;
SELECT batch_flush('oc');
SELECT key, value FROM oc_setting WHERE key IN ('a', 'f') ORDER BY key;
SELECT payload, sqlstate FROM batcher.dead_letter WHERE queue = 'oc' AND sqlstate = '23505';

-- Keys of several columns, and of types that are written in several ways.
CREATE TABLE oc_wide (day date, amount numeric, value int, other int DEFAULT 0, PRIMARY KEY (amount, day));
SELECT batch_create_queue('oc wide', target => 'oc_wide', options => '{"flush_interval": "1 h", "on_conflict": "update"}');
SELECT batch_enqueue('oc wide', '{"day": "2024-01-01", "amount": 1.0, "value": 1}') > 0 AS has_ticket,
       batch_enqueue('oc wide', '{"day": "2024-01-01", "amount": "1.00", "value": 2, "other": 2}') > 0 AS has_ticket,
       batch_enqueue('oc wide', '{"day": "January 1, 2024", "amount": 1, "value": 3}') > 0 AS has_ticket,
       batch_enqueue('oc wide', '{"day": "2024-01-02", "amount": 1, "value": 4}') > 0 AS has_ticket;
SELECT batch_flush('oc wide');
SELECT * FROM oc_wide ORDER BY day;
-- The key gone, the breaker opens and says so.
ALTER TABLE oc_wide DROP CONSTRAINT oc_wide_pkey;
SELECT batch_enqueue('oc wide', '{"day": "2024-01-02", "amount": 2}') > 0 AS has_ticket;
SELECT batch_flush('oc wide');
SELECT breaker_state, breaker_reason FROM batcher.status WHERE queue = 'oc wide';

-- Refused.
CREATE TABLE oc_none (id int);
CREATE TABLE oc_deferrable (id int PRIMARY KEY DEFERRABLE);
CREATE VIEW oc_view AS SELECT * FROM oc_setting;
SELECT batch_create_queue('oc bad', target => 'oc_none', options => '{"on_conflict": "update"}');
SELECT batch_create_queue('oc bad', target => 'oc_deferrable', options => '{"on_conflict": "update"}');
SELECT batch_create_queue('oc bad', target => 'oc_view', options => '{"on_conflict": "update"}');
SELECT batch_create_queue('oc bad', 'SELECT FROM batch', options => '{"on_conflict": "update"}');
SELECT batch_create_queue('oc bad', target => 'oc_setting', options => '{"on_conflict": "replace"}');
SELECT batch_create_queue('oc none', target => 'oc_none', options => '{"on_conflict": "nothing", "flush_interval": "1 h"}');
SELECT batch_alter_queue('oc none', '{"on_conflict": "update"}');
SELECT batch_alter_queue('oc none', flush_sql => 'SELECT FROM batch');
SELECT batch_alter_queue('oc none', '{"on_conflict": null}', flush_sql => 'SELECT FROM batch');

SELECT batch_drop_queue(queue, true) FROM batcher.queue WHERE queue LIKE 'oc%';
SET client_min_messages = warning;
DROP TABLE oc_setting, oc_statement, oc_wide, oc_none, oc_deferrable CASCADE;
DROP FUNCTION oc_count;
