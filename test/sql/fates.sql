-- What batch_wait says of tickets that were settled long ago.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS batcher;
RESET client_min_messages;

CREATE TABLE fa_target (n int CHECK (n > 0));
SELECT batch_create_queue('fa', 'INSERT INTO fa_target SELECT payload::int FROM batch',
    options => '{"flush_interval": "1 h", "max_batch_size": 50000, "key_policy": "last", "max_attempts": 1, "durable": false}');
SELECT batch_create_queue('fa other', options => '{"flush_interval": "1 h", "durable": false}');

SELECT batch_enqueue('fa other', '1') AS other \gset
SELECT batch_flush('fa other');
-- One row of each fate.
SELECT batch_enqueue('fa', '1') AS purged \gset
SELECT batch_purge('fa');
SELECT batch_enqueue('fa', '2', 'key') AS superseded \gset
SELECT batch_enqueue('fa', '3', 'key') AS flushed \gset
SELECT batch_enqueue('fa', '-4') AS dead \gset
SELECT batch_flush('fa') IS NOT NULL AS flushed_some;
SELECT batch_enqueue('fa', '5') AS last \gset
SELECT batch_flush('fa');
SELECT batch_wait('fa', :purged), batch_wait('fa', :superseded), batch_wait('fa', :flushed), batch_wait('fa', :dead), batch_wait('fa', :last);

-- 99,999 rows later the last of them is known, whatever the others are.
CREATE PROCEDURE fa_pass(n int) LANGUAGE plpgsql AS $$
BEGIN
    WHILE n > 0 LOOP
        PERFORM batch_enqueue_many('fa', array_fill('1'::jsonb, ARRAY[least(n, 20000)]));
        COMMIT;
        PERFORM batch_flush('fa');
        COMMIT;
        n := n - 20000;
    END LOOP;
END $$;
CALL fa_pass(99999);
SELECT batch_wait('fa', :last, '1 h');
-- Some thousands later nothing is known of them, but where a table knows it.
CALL fa_pass(6000);
SELECT batch_wait('fa', :purged, '1 h'), batch_wait('fa', :superseded, '1 h'), batch_wait('fa', :flushed, '1 h'), batch_wait('fa', :last, '1 h');
SELECT batch_wait('fa', :dead, '1 h');
SELECT batch_purge_dead('fa');
SELECT batch_wait('fa', :dead, '1 h');
-- Each queue remembers its own.
SELECT batch_wait('fa other', :other, '1 h');
-- Unknown is said while other rows wait, too, and not the fate of another row.
SELECT batch_enqueue('fa', '6') AS waits \gset
SELECT batch_wait('fa', :last, '10 ms'), batch_wait('fa', :waits, '10 ms');
SELECT batch_flush('fa');
SELECT batch_wait('fa', :waits);

SELECT rows_flushed, rows_superseded, rows_purged, rows_dead FROM batcher.stat_queue WHERE queue = 'fa';
SELECT batch_drop_queue('fa'), batch_drop_queue('fa other');
DROP TABLE fa_target;
DROP PROCEDURE fa_pass(int);
