"""A producer: transactions of all shapes, with rows of unique ids.

What it does in a transaction is decided by a generator that is seeded with
its number and that of the transaction: the same in each run with the same
seed, as far as the transaction gets.

Each producer has keys of its own, so it knows the order that rows of a key
must have: the numbers "n" of a key grow.  In the queue of sums "n" is what
is added.
"""

import collections
import contextlib
import json
import random
import threading
import time

import psycopg

from journal import ABORTED, ACKNOWLEDGED, UNKNOWN
from workload import QUEUES

ID_BITS = 32                # an id is the producer's number and a counter
KEYS = 5
PAUSE = 0.04                # mean time between two transactions, in seconds


class Transaction:
    """Rows that a commit will make visible, and those taken back."""

    def __init__(self, name):
        self.name = name
        self.begun = time.time()
        self.rows = []
        self.gone = []
        self.witness = False
        self.lazy = False       # it may be lost although it is acknowledged
        self.ticket = None      # of its last row, if that came alone

    def take_back(self, mark=0):
        self.gone += [row[1] for row in self.rows[mark:]]
        del self.rows[mark:]


class Producer:
    def __init__(self, number, seed, conninfo, journal, findings, poison):
        self.number = number
        self.seed = seed
        self.rng = None                 # of this transaction
        self.conninfo = conninfo
        self.journal = journal
        self.findings = findings
        self.poison = poison
        self.lock = threading.Lock()    # of who makes it press
        self.conn = None
        self.ids = 0
        self.transactions = 0
        self.past = collections.deque(maxlen=20)    # (row, ticket)

    def run(self, control):
        """Until it is told to stop; pauses when told to."""
        while not control.stopped():
            if control.pause_point():
                # The checker has let dead letters go.
                self.past.clear()
            if not self.connect():
                control.sleep(0.1)
                continue
            self.transact(lambda t: self.rng.choices(
                (self.single, self.mixed, self.volatile, self.large),
                (30, 55, 10, 5))[0](t))
            control.sleep(self.rng.expovariate(1 / PAUSE))

    def press(self, queue, rows):
        """One transaction that takes much memory; any thread."""
        with self.lock:
            if self.connect():
                self.transact(lambda t: self.huge(t, queue, rows))

    def connect(self):
        if self.conn is None:
            with contextlib.suppress(psycopg.Error):
                self.conn = psycopg.connect(self.conninfo, autocommit=True,
                                            prepare_threshold=None)
        return self.conn is not None

    def transact(self, shape):
        """One transaction of that shape, with what the journal is to say."""
        self.transactions += 1
        self.rng = random.Random(
            f'{self.seed}/producer {self.number}/{self.transactions}')
        t = Transaction(f'p{self.number}.{self.transactions}')
        try:
            how, finish = shape(t)
        except psycopg.Error:
            how = 'rollback'
        if how != 'commit':
            if how == 'disconnect' or not self.attempt('ROLLBACK'):
                self.disconnect()
            t.take_back()
            self.journal.write(end=ABORTED, t=t.name, gone=t.gone)
            return
        self.journal.write(t=t.name, begun=t.begun, rows=t.rows, gone=t.gone,
                           witness=t.witness)
        end = self.commit(t, finish)
        self.journal.write(end=end, t=t.name, ticket=t.ticket)
        if end == ACKNOWLEDGED and t.ticket:
            self.past.append((t.rows[-1], t.ticket))
        if end == ACKNOWLEDGED and t.ticket and self.rng.random() < 0.3:
            self.ask_of(*self.past[-1], '300 ms')
        elif self.past and self.rng.random() < 0.1:
            self.ask_of(*self.rng.choice(self.past), '0')
        elif end == ACKNOWLEDGED and self.rng.random() < 0.02:
            self.attempt("SELECT batch_flush(NULL, '200 ms')")

    def attempt(self, statement):
        with contextlib.suppress(psycopg.Error):
            self.conn.execute(statement)
            return True
        return False

    def commit(self, t, finish):
        """Returns how it ended."""
        try:
            t.ticket = finish()
            return UNKNOWN if t.lazy else ACKNOWLEDGED
        except psycopg.Error:
            # While the session lives, an error at the commit undoes it all.
            # Who loses the session there cannot know.
            with contextlib.suppress(psycopg.Error):
                if not self.conn.broken:
                    self.conn.execute('ROLLBACK')
                    return ABORTED
            self.disconnect()
            return UNKNOWN

    def disconnect(self):
        with contextlib.suppress(psycopg.Error):
            self.conn.close()
        self.conn = None

    # Shapes: each leaves a transaction open and says how it is to end; for
    # a commit also by which function, which may return a ticket.

    def single(self, t):
        """One statement is the transaction."""
        row = self.new_row(t, self.choose(lambda q: not q.has_sums))
        return 'commit', lambda: self.enqueue(row)

    def mixed(self, t):
        self.begin()
        if self.rng.random() < 0.1:
            t.lazy = True
            self.conn.execute('SET LOCAL synchronous_commit = off')
        self.fill(t, 0)
        return self.ending(t)

    def begin(self):
        self.conn.execute('BEGIN ISOLATION LEVEL ' + self.rng.choice(
            ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')))

    def volatile(self, t):
        """Without a durable row, so perhaps without a transaction id."""
        self.begin()
        for _ in range(self.rng.randint(1, 8)):
            self.enqueue(self.new_row(
                t, self.choose(lambda q: not q.durable)))
        if self.rng.random() < 0.2:
            return 'rollback', None
        return 'commit', self.plain_commit

    def large(self, t):
        """As large as to be written to the spool before it commits."""
        self.begin()
        queue = self.choose()
        for _ in range(self.rng.randint(1, 3)):
            self.enqueue_many(
                [self.new_row(t, queue)
                 for _ in range(self.rng.randint(50, 250))])
        self.fill(t, 1)
        return self.ending(t)

    def huge(self, t, queue, rows):
        """Rows of about a kilobyte, which the server makes."""
        self.begin()
        rows = [self.new_row(t, queue) for _ in range(rows)]
        self.conn.execute(
            'SELECT batch_enqueue_many(%s, array_agg(jsonb_build_object('
            " 'id', id, 'n', n, 'fill', repeat('x', 1000)) ORDER BY id),"
            ' array_agg(key ORDER BY id))'
            ' FROM unnest(%s::bigint[], %s::text[], %s::bigint[])'
            ' AS r (id, key, n)',
            (queue, *map(list, list(zip(*rows))[1:])))
        time.sleep(self.rng.uniform(0.1, 0.8))
        if self.rng.random() < 0.4:
            return 'rollback', None
        return self.ending(t)

    def ending(self, t):
        """How a transaction ends that may end in any way."""
        dice = self.rng.random()
        if dice < 0.1:
            return 'rollback', None
        if dice < 0.14:
            return 'disconnect', None
        if dice < 0.2:
            self.attempt('SELECT 1/0')
            return 'rollback', None
        if dice < 0.23:
            time.sleep(self.rng.uniform(0.2, 1))
        # For the sums one has to know exactly what was committed.
        if any(QUEUES[row[0]].has_sums for row in t.rows) \
                or self.rng.random() < 0.5:
            t.witness = True
            self.conn.execute(
                'INSERT INTO torture.witness (transaction) VALUES (%s)',
                (t.name,))
        return 'commit', self.plain_commit

    def plain_commit(self):
        self.conn.execute('COMMIT')

    def fill(self, t, depth):
        """Some rows, some of them in savepoints."""
        for _ in range(self.rng.randint(1, 4)):
            dice = self.rng.random()
            if dice < 0.3 and depth < 3:
                self.savepoint(t, depth)
            elif dice < 0.6:
                queue = self.choose()
                self.enqueue_many([self.new_row(t, queue) for _ in
                                   range(self.rng.randint(1, 8))])
            else:
                self.enqueue(self.new_row(t, self.choose()))

    def savepoint(self, t, depth):
        mark = len(t.rows)
        self.conn.execute(f'SAVEPOINT s{depth}')
        self.fill(t, depth + 1)
        dice = self.rng.random()
        if dice < 0.4:
            self.conn.execute(f'RELEASE s{depth}')
            return
        if dice < 0.6:
            self.attempt('SELECT 1/0')
        self.conn.execute(f'ROLLBACK TO s{depth}')
        t.take_back(mark)

    # Rows.

    def choose(self, suitable=lambda q: True):
        queues = [q for q in QUEUES.values() if q.weight and suitable(q)]
        return self.rng.choices(queues, [q.weight for q in queues])[0].name

    def new_row(self, t, queue):
        """[queue, id, key, n]"""
        self.ids += 1
        key = f'{self.number}.{self.rng.randrange(KEYS)}'
        if QUEUES[queue].supersedes:
            # of few keys, so that some row always comes upon another one
            key = f'{self.number}.0'
        if QUEUES[queue].has_sums:
            n = self.rng.randint(1, 1000)
        else:
            # Half of the rows have no key, as a rule; numbers grow all the same.
            n = self.ids
            keyed = 0.9 if QUEUES[queue].supersedes else 0.5
            key = key if self.rng.random() < keyed else None
        row = [queue, (self.number << ID_BITS) + self.ids, key, n]
        t.rows.append(row)
        return row

    def payload(self, row):
        body = {'id': row[1], 'n': row[3]}
        if QUEUES[row[0]].row_type:
            body['key'] = row[2]
        if row[0] == 'guarded' and self.poison:
            body['divisor'] = 0 if is_poison(row) else 1
        if row[0] == 'blend':
            body['parts'] = {row[1]: row[3]}
        if self.rng.random() < 0.01 and QUEUES[row[0]].is_plain:
            # More than a page, which compresses well or badly.
            body['fill'] = self.rng.choice((
                'x' * 100_000, f'{self.rng.getrandbits(100_000):x}'))
        return json.dumps(body)

    def enqueue(self, row):
        if QUEUES[row[0]].row_type and self.rng.random() < 0.5:
            return self.conn.execute(
                'SELECT batch_enqueue_row(%s,'
                f' ROW(%s, %s, %s)::{QUEUES[row[0]].row_type}, %s)',
                (row[0], row[1], row[2], row[3], row[2])).fetchone()[0]
        return self.conn.execute(
            'SELECT batch_enqueue(%s, %s::jsonb, %s, %s, %s, %s)',
            (row[0], self.payload(row), row[2],
             self.rng.choice(('up', 'down', None)),
             self.rng.randint(-2, 2),
             self.rng.random() < 0.1)).fetchone()[0]

    def enqueue_many(self, rows):
        self.conn.execute(
            'SELECT batch_enqueue_many(%s, %s::jsonb[], %s::text[])',
            (rows[0][0], [self.payload(row) for row in rows],
             [row[2] for row in rows]))

    def ask_of(self, row, ticket, timeout):
        """What batch_wait says of a row is what one can see."""
        queue, row_id, key, n = row
        q = QUEUES[queue]
        if not q.has_target or self.conn is None:
            return
        try:
            said, = self.conn.execute(
                'SELECT batch_wait(%s, %s, %s)',
                (queue, ticket, timeout)).fetchone()
            seen, later = self.conn.execute(
                'SELECT count(*) FILTER (WHERE id = %s),'
                ' count(*) FILTER (WHERE key = %s AND n > %s)'
                f' FROM torture.{queue} WHERE id = %s OR key = %s',
                (row_id, key, n, row_id, key)).fetchone()
            dead, dead_later = self.conn.execute(
                'SELECT count(*) FILTER (WHERE ticket = %s),'
                " count(*) FILTER (WHERE (payload->>'n')::bigint > %s)"
                ' FROM batcher.dead_letter WHERE queue = %s'
                ' AND (ticket = %s OR key = %s)',
                (ticket, n, queue, ticket, key)).fetchone()
        except psycopg.Error:
            return
        self.journal.write(said=said, queue=queue)
        true = {'flushed': seen == 1,
                # dead letters go with their queue
                'dead': seen == 0 and (dead == 1 or q.purged),
                'superseded': q.supersedes and seen == 0
                and later + dead_later > 0,
                'purged': q.purged and seen == 0}
        if not true.get(said, True):
            self.findings.add(
                'misinformed', f'batch_wait says that row {row_id} of queue'
                f' "{queue}" is {said}, and it is there {seen} times, {dead}'
                f' times as a dead letter, with {later} later rows of its key'
                f' and {dead_later} dead ones')


def is_poison(row):
    """Whether a row of "guarded" is one that cannot be flushed."""
    return row[1] % 40 == 0
