-- batch_enqueue_trigger(): each changed row of a table goes into a queue.
-- M1.1 (changes are queued with what belongs to them)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;
SET timezone = 'UTC';

CREATE TABLE et (id int PRIMARY KEY, name text, seen timestamptz, doc json, double int GENERATED ALWAYS AS (id * 2) STORED);
SELECT batch_create_queue('et', options => '{"flush_interval": "1 h"}');
CREATE TRIGGER queued AFTER INSERT OR UPDATE OR DELETE ON et FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et', 'id', 'topic');
INSERT INTO et (id, name, seen, doc) VALUES (1, 'one', '2024-01-01 00:00+00', '{"a": [1]}'), (2, NULL, NULL, NULL);
UPDATE et SET id = 3, name = 'three' WHERE id = 1;
DELETE FROM et WHERE id = 2;
BEGIN;
INSERT INTO et (id) VALUES (4);
ROLLBACK;
COPY et (id, name) FROM stdin;
5	copied
\.
SELECT key, topic, payload, enqueued_by = current_user AS by_me FROM batcher.pending WHERE queue = 'et' ORDER BY ticket;
SELECT batch_purge('et');
DROP TRIGGER queued ON et;

-- With the queue alone; a deferred one fires at the end of the transaction; a
-- key that is null is none.
CREATE CONSTRAINT TRIGGER queued AFTER INSERT OR UPDATE ON et DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et');
CREATE TRIGGER named AFTER UPDATE ON et FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et', 'name');
BEGIN;
INSERT INTO et (id) VALUES (6);
UPDATE et SET name = NULL WHERE id = 3;
COMMIT;
SELECT key, topic, payload->>'op' AS op, payload->'new'->>'id' AS id FROM batcher.pending WHERE queue = 'et' ORDER BY ticket;
SELECT batch_purge('et');
DROP TRIGGER queued ON et;
DROP TRIGGER named ON et;

-- Partitions: the table is the one that has the row.
CREATE SCHEMA "et Schema";
CREATE TABLE "et Schema".part (id int, v text) PARTITION BY LIST (id);
CREATE TABLE "et Schema".part_1 PARTITION OF "et Schema".part FOR VALUES IN (1);
CREATE TABLE "et Schema".part_2 PARTITION OF "et Schema".part FOR VALUES IN (2);
CREATE TRIGGER queued AFTER INSERT OR UPDATE OR DELETE ON "et Schema".part FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et', 'id');
INSERT INTO "et Schema".part VALUES (1, 'a');
UPDATE "et Schema".part SET id = 2;
SELECT key, payload FROM batcher.pending WHERE queue = 'et' ORDER BY ticket;
SELECT batch_purge('et');

-- Into a target: the payload's keys are its columns.
CREATE TABLE et_audit (op text, "table" text, old jsonb, new jsonb, at timestamptz DEFAULT now());
SELECT batch_create_queue('et audit', target => 'et_audit', options => '{"flush_interval": "1 h"}');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON et FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et audit', 'id');
UPDATE et SET name = 'audited' WHERE id = 3;
SELECT batch_flush('et audit');
SELECT op, "table", old->'name' AS old, new->'name' AS new, at IS NOT NULL AS has_time FROM et_audit;
DROP TRIGGER audited ON et;

-- The right to enqueue is that of the table's owner, at each firing; who
-- changes a row needs none, and who has one gives none.
CREATE ROLE regress_batcher_table_owner;
CREATE ROLE regress_batcher_writer;
ALTER TABLE et OWNER TO regress_batcher_table_owner;
GRANT ALL ON et TO regress_batcher_writer;
CREATE TRIGGER queued AFTER INSERT ON et FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et');
SELECT batch_grant('et', 'regress_batcher_writer', 'enqueue');
SET ROLE regress_batcher_writer;
INSERT INTO et (id) VALUES (7);
RESET ROLE;
SELECT batch_revoke('et', 'regress_batcher_writer', 'enqueue');
SELECT batch_grant('et', 'regress_batcher_table_owner', 'enqueue');
SET ROLE regress_batcher_writer;
INSERT INTO et (id) VALUES (7);
SELECT current_user;
SELECT batch_enqueue('et', '1');
RESET ROLE;
SELECT payload->'new'->'id' AS id, enqueued_by FROM batcher.pending WHERE queue = 'et';
SELECT batch_revoke('et', 'regress_batcher_table_owner', 'enqueue');
INSERT INTO et (id) VALUES (8);
SELECT id FROM et WHERE id > 6;
DROP TRIGGER queued ON et;

-- Triggers that cannot be.
CREATE TRIGGER bad BEFORE INSERT ON et FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et');
INSERT INTO et (id) VALUES (9);
DROP TRIGGER bad ON et;
CREATE TRIGGER bad AFTER INSERT ON et FOR EACH STATEMENT EXECUTE FUNCTION batch_enqueue_trigger('et');
INSERT INTO et (id) VALUES (9);
DROP TRIGGER bad ON et;
CREATE TRIGGER bad AFTER TRUNCATE ON et FOR EACH STATEMENT EXECUTE FUNCTION batch_enqueue_trigger('et');
TRUNCATE et;
DROP TRIGGER bad ON et;
CREATE TRIGGER bad AFTER INSERT ON et FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger();
INSERT INTO et (id) VALUES (9);
DROP TRIGGER bad ON et;
CREATE TRIGGER bad AFTER INSERT ON et FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et', 'id', 'topic', 'more');
INSERT INTO et (id) VALUES (9);
DROP TRIGGER bad ON et;
CREATE TRIGGER bad AFTER INSERT ON et FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et', 'missing');
INSERT INTO et (id) VALUES (9);
DROP TRIGGER bad ON et;
CREATE TRIGGER bad AFTER INSERT ON et FOR EACH ROW EXECUTE FUNCTION batch_enqueue_trigger('et none');
INSERT INTO et (id) VALUES (9);
DROP TRIGGER bad ON et;
SELECT batch_enqueue_trigger();

SELECT batch_drop_queue('et', true), batch_drop_queue('et audit');
DROP TABLE et, et_audit, "et Schema".part;
DROP SCHEMA "et Schema";
DROP ROLE regress_batcher_table_owner, regress_batcher_writer;
