-- Not gathering: each row is flushed by itself, with its commit.
-- M1.8 (off: at once, with the same calls), M3.5 (off for one producer)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE ea_target (batch bigint GENERATED ALWAYS AS IDENTITY, rows text);
SELECT batch_create_queue('ea', $$INSERT INTO ea_target (rows)
    SELECT string_agg(concat(batch_key, payload), ',' ORDER BY batch_pos) FROM batch$$,
    options => '{"flush_interval": "1 h"}');

-- One producer: its rows only, and what waits of their keys before them.
SELECT batch_enqueue_many('ea', '{1,2,3}', '{a,b,a}');
SELECT batch_enqueue('ea', '4') > 0 AS has_ticket;
SET batcher.enabled = off;
SELECT batch_enqueue('ea', '5') AS ticket \gset
SELECT batch_wait('ea', :ticket);
SELECT batch_enqueue('ea', '6', 'a') AS ticket \gset
SELECT batch_wait('ea', :ticket);
SELECT batch_enqueue_many('ea', '{7,8,9}', '{c,c,d}');
SELECT batch_enqueue('ea', '10', 'd') AS ticket \gset
SELECT batch_wait('ea', :ticket);
RESET batcher.enabled;
SELECT batch_enqueue('ea', '11', 'd') > 0 AS has_ticket;
SELECT rows FROM ea_target ORDER BY batch;
SELECT key, payload FROM batcher.pending ORDER BY ticket;
SELECT batch_flush('ea');

-- The queue: also what waits when it is switched off.  Neither policy, nor
-- size, nor limit counts.
TRUNCATE ea_target;
SELECT batch_alter_queue('ea', '{"key_policy": "last", "debounce": "1 h", "max_wait": "1 h", "rate_limit": 0.001}');
SELECT batch_enqueue_many('ea', '{1,2,3,4}', '{a,a,NULL,NULL}');
SELECT batch_alter_queue('ea', '{"enabled": false}');
SELECT batch_enqueue('ea', '5', 'a') AS ticket \gset
SELECT batch_wait('ea', :ticket);
SELECT batch_enqueue('ea', '6') AS ticket \gset
SELECT batch_wait('ea', :ticket);
SELECT rows FROM ea_target WHERE rows LIKE 'a%' ORDER BY batch;
SELECT rows FROM ea_target WHERE rows NOT LIKE 'a%' ORDER BY batch;
SELECT enabled, pending FROM batcher.status WHERE queue = 'ea';
-- And on again.
SELECT batch_alter_queue('ea', '{"enabled": true, "rate_limit": null}');
SELECT batch_enqueue_many('ea', '{7,8}', '{a,a}');
SELECT key, payload FROM batcher.pending ORDER BY ticket;
SELECT batch_flush('ea');
SELECT rows FROM ea_target ORDER BY batch DESC LIMIT 1;

-- Not durable, and a savepoint that is rolled back.
SELECT batch_alter_queue('ea', '{"durable": false, "enabled": false, "debounce": null, "key_policy": null}');
TRUNCATE ea_target;
BEGIN;
SELECT batch_enqueue('ea', '1') > 0 AS has_ticket;
SAVEPOINT s;
SELECT batch_enqueue('ea', '2') > 0 AS has_ticket;
ROLLBACK TO s;
SELECT batch_enqueue('ea', '3') AS ticket \gset
COMMIT;
SELECT batch_wait('ea', :ticket);
SELECT rows FROM ea_target ORDER BY batch;
SELECT batch_drop_queue('ea');
DROP TABLE ea_target;
