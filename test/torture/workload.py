"""The queues under torture, what their flushes do, and what both need.

The target of a queue has no unique constraint: a row that is flushed twice
shall be seen, not refused.  'pos' is the order of flushing, because flushes
of one lane run one after the other.

Each statement also writes how many rows it had into 'flushed', and in which
transaction: a listener knows from that whether the data of a message was there
before the message.  And each asks stumble() whether it is to fail, which the
table 'trouble' decides.
"""

import json
from typing import NamedTuple

SCHEMA = """
CREATE ROLE alice;
CREATE ROLE bob;
CREATE EXTENSION batcher;
GRANT EXECUTE ON FUNCTION
    batch_create_queue(text, text, regclass, regtype, jsonb, boolean)
    TO alice, bob;

CREATE SCHEMA torture;
SET search_path = torture, public;

-- Transactions that were committed, by their own word.
CREATE TABLE witness (
    pos bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction text NOT NULL);

CREATE TABLE flushed (
    queue text,
    pos bigint GENERATED ALWAYS AS IDENTITY,
    rows bigint,
    transaction xid8 DEFAULT pg_current_xact_id(),
    PRIMARY KEY (queue, pos));

CREATE TABLE tally (key text PRIMARY KEY, total bigint, rows bigint);
CREATE TABLE blend (LIKE tally INCLUDING ALL);

-- Rows of the typed queue.
CREATE TYPE shape AS (id bigint, key text, n bigint);

-- A queue is to fail with this SQLSTATE until then.
CREATE TABLE trouble (
    queue text PRIMARY KEY,
    sqlstate text NOT NULL,
    until timestamptz NOT NULL);

CREATE FUNCTION stumble(q text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    state text;
BEGIN
    SELECT sqlstate INTO state FROM torture.trouble
        WHERE queue = q AND until > clock_timestamp();
    IF state = 'sleep' THEN
        PERFORM pg_sleep(2);
    ELSIF state IS NOT NULL THEN
        RAISE EXCEPTION 'the flush of queue "%" stumbles', q
            USING errcode = state;
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION create_target(name text, owner regrole) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format($f$
        CREATE TABLE torture.%1$I (
            pos bigint GENERATED ALWAYS AS IDENTITY,
            id bigint, key text, n bigint);
        CREATE INDEX ON torture.%1$I (pos);
        CREATE INDEX ON torture.%1$I (id);
        CREATE INDEX ON torture.%1$I (key);
        ALTER TABLE torture.%1$I OWNER TO %2$s$f$, name, owner);
END $$;

-- Where batcher itself inserts into the target, that does what the statements
-- do elsewhere.
CREATE FUNCTION note_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_WHEN = 'BEFORE' THEN
        PERFORM torture.stumble(TG_TABLE_NAME);
    ELSE
        INSERT INTO torture.flushed (queue, rows)
            SELECT TG_TABLE_NAME, count(*) FROM stored;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION note_inserts(name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format($f$
        CREATE TRIGGER stumble BEFORE INSERT ON torture.%1$I
            FOR EACH STATEMENT EXECUTE FUNCTION torture.note_insert();
        CREATE TRIGGER note AFTER INSERT ON torture.%1$I
            REFERENCING NEW TABLE AS stored
            FOR EACH STATEMENT EXECUTE FUNCTION torture.note_insert()$f$, name);
END $$;

GRANT USAGE ON SCHEMA torture TO alice, bob;
GRANT SELECT, INSERT, UPDATE ON flushed, tally, blend TO alice, bob;
GRANT SELECT ON trouble TO alice, bob;
"""

# A divisor of zero is what makes a row of "guarded" one that never can be
# flushed.
COLLECT = """
WITH stored AS (
    INSERT INTO torture.{name} (id, key, n)
    SELECT (payload->>'id')::bigint, batch_key,
        (payload->>'n')::bigint
            + 0 / coalesce((payload->>'divisor')::int, 1)
    FROM batch, torture.stumble('{name}')
    ORDER BY batch_pos
    RETURNING 1)
INSERT INTO torture.flushed (queue, rows) SELECT '{name}', count(*) FROM stored
"""

# What is flushed here is enqueued there, by the flush.
PASS_ON = """
WITH passed AS (
    SELECT batch_enqueue('echo', jsonb_build_object(
        'id', -(payload->>'id')::bigint, 'n', payload->'n'), batch_key)
    FROM (SELECT * FROM batch ORDER BY batch_pos) b),
""" + COLLECT.replace('WITH', '', 1).replace(
    'FROM batch,', 'FROM (SELECT count(*) FROM passed) p, batch,', 1)

ADD_UP = """
WITH added AS (
    INSERT INTO torture.tally AS t (key, total, rows)
    SELECT batch_key, sum((payload->>'n')::bigint), count(*)
    FROM batch, torture.stumble('{name}')
    GROUP BY batch_key
    ON CONFLICT (key) DO UPDATE
        SET total = t.total + excluded.total, rows = t.rows + excluded.rows)
INSERT INTO torture.flushed (queue, rows) SELECT '{name}', count(*) FROM batch
"""

# Rows of one key become one, in which the parts of all of them are.
BLEND = """
WITH added AS (
    INSERT INTO torture.blend AS t (key, total, rows)
    SELECT batch_key, sum(part.value::bigint), count(*)
    FROM batch, jsonb_each_text(payload->'parts') part,
        torture.stumble('{name}')
    GROUP BY batch_key
    ON CONFLICT (key) DO UPDATE
        SET total = t.total + excluded.total, rows = t.rows + excluded.rows)
INSERT INTO torture.flushed (queue, rows) SELECT '{name}', count(*) FROM batch
"""


class Queue(NamedTuple):
    """A queue.  What may be lost is checked for everything else."""
    name: str
    options: dict
    owner: str = 'postgres'
    statement: str = COLLECT
    durable: bool = True
    purged: bool = False        # the torturer throws rows of it away
    weight: int = 2             # how often producers choose it; 0: never
    row_type: str = None        # the target is batcher's to insert into

    @property
    def has_target(self):
        return self.statement in (COLLECT, PASS_ON) or self.row_type is not None

    @property
    def has_statement(self):
        return self.statement is not None or self.row_type is not None

    @property
    def has_sums(self):
        """Which rows were flushed is not known, but their sum for each key."""
        return self.statement in (ADD_UP, BLEND)

    @property
    def is_plain(self):
        """Whether a row may hold anything else too."""
        return self.has_target and self.row_type is None

    @property
    def supersedes(self):
        """Whether a row stands for those of its key that it came upon."""
        return self.options.get('key_policy') == 'last'

    def create(self):
        """(statement, parameters) that make it."""
        options = dict(self.options, durable=self.durable)
        return ('SELECT batch_create_queue(%s, %s, %s::regclass, %s::regtype,'
                ' %s::jsonb)',
                (self.name, self.statement and
                 self.statement.format(name=self.name),
                 self.row_type and f'torture.{self.name}', self.row_type,
                 json.dumps(options)))


QUEUES = {q.name: q for q in (
    # Small and quick.
    Queue('swift', dict(flush_interval='10 ms', max_batch_size=20,
                        notify_channel='swift'), weight=4),
    # Hardly anything fits into its memory.
    Queue('bulky', dict(flush_interval='200 ms', max_batch_size=200,
                        memory_limit='64kB', notify_channel='shared')),
    # Waits; other people's; goes on into another queue.
    Queue('paced', dict(flush_interval='1 s', flush_size=50,
                        notify_channel='shared'),
          owner='alice', statement=PASS_ON),
    Queue('echo', dict(flush_interval='100 ms'), owner='alice', weight=0),
    # With rows that cannot be flushed, where there are dead letters.
    Queue('guarded', dict(flush_interval='30 ms', flush_timeout='1500 ms'),
          owner='bob'),
    # Flushed in parallel, so that nothing but the keys is in order.
    Queue('spread', dict(flush_interval='20 ms', max_batch_size=30, lanes=3,
                         adaptive=True, min_batch_size=5), weight=3),
    # Sums into few rows.
    Queue('tally', dict(flush_interval='50 ms', notify_channel='tally',
                        rate_limit=2000), statement=ADD_UP),
    # Of the rows of a key that wait the last one is flushed, when nothing has
    # come for a while.
    Queue('latest', dict(key_policy='last', debounce='100 ms',
                         max_wait='500 ms', notify_channel='latest',
                         notify_format='rows'), weight=6),
    # Rows of a key that wait become one.
    Queue('blend', dict(flush_interval='150 ms', key_policy='merge',
                        notify_channel='shared'), statement=BLEND),
    # Typed rows, which batcher inserts.
    Queue('typed', dict(flush_interval='50 ms', notify_channel='typed',
                        notify_format='groups', notify_group_by='key'),
          statement=None, row_type='torture.shape'),
    # Is announced only: a listener learns of each row.
    Queue('herald', dict(flush_interval='20 ms', notify_channel='herald',
                         notify_format='rows'), statement=None),
    # In memory only.
    Queue('fleet', dict(flush_interval='20 ms', notify_channel='shared'),
          durable=False),
    Queue('hoard', dict(flush_interval='500 ms', flush_timeout='1500 ms'),
          durable=False, owner='alice'),
    # Dropped when empty, and made again; dropped and purged with rows in it.
    # its dead letters would go with it when it is dropped
    Queue('fickle', dict(flush_interval='100 ms', max_attempts=1000),
          weight=1),
    Queue('doomed', dict(flush_interval='300 ms'), weight=1, purged=True),
)}


def set_up(conn):
    """Make everything, in a new server."""
    conn.execute(SCHEMA)
    known = {name for name, in conn.execute('SELECT name FROM batcher.option')}
    for q in QUEUES.values():
        # What fails a flush for a moment here shall not stop it for long.
        for option, value in (('max_attempts', 2), ('retry_delay', '50 ms'),
                              ('breaker_recovery', '1 s')):
            if option in known:
                q.options.setdefault(option, value)
        if q.has_target:
            conn.execute('SELECT torture.create_target(%s, %s::regrole)',
                         (q.name, q.owner))
        if q.row_type:
            conn.execute('SELECT torture.note_inserts(%s)', (q.name,))
        with conn.transaction():
            conn.execute(f'SET LOCAL ROLE {q.owner}')
            conn.execute(*q.create())


def has_dead_letters(conn):
    return conn.execute("SELECT to_regclass('batcher.dead_letter')"
                        ' IS NOT NULL').fetchone()[0]


def mend(conn):
    """Have all queues there, and none of them paused or held up."""
    there = {name for name, in conn.execute('SELECT queue FROM batcher.queue')}
    for name in QUEUES.keys() - there:
        conn.execute(*QUEUES[name].create())
    conn.execute('SELECT batch_resume()')
    if conn.execute("SELECT to_regproc('batch_reset_breaker')"
                    ' IS NOT NULL').fetchone()[0]:
        for name in QUEUES:
            conn.execute('SELECT batch_reset_breaker(%s)', (name,))
