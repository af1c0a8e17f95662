"""The checker: compares what was acknowledged with what is there.

It is asked when producers pause and everything was flushed:

lost        a row that must be there is in no target and no dead letter
duplicated  a row is there more than once
phantom     a row is there that no committed transaction enqueued
reordered   a row was flushed before one of its key that came earlier
torn        of a transaction whose fate its client does not know, some rows
            are there and others are not

A row is there too if a later one of its key is, where the queue keeps the last
only: so the last one must be there itself.  Where rows are summed up, the sum
of each key must be that of the rows that were committed.  Of the queue that is
announced only each row must have been told to a listener who was connected
when its transaction began and is so still; and to none twice in an epoch.

A row must be there if its COMMIT was acknowledged, or if its transaction has
left its name in the table "witness".  Rows of queues that are not durable
must be there if the server has not crashed since their transaction began;
rows of queues that the torturer purges need not.  If a COMMIT was
interrupted, all durable rows of the transaction are there, or none.

Targets grow only, and are read from where the last check ended: a row that
is flushed again much later is duplicated too.
"""

import collections
import time

from journal import ABORTED, ACKNOWLEDGED, UNKNOWN, Reader
from listener import MARK
from producer import is_poison
from server import wait_for
from workload import QUEUES, has_dead_letters

SHOWN = 20                  # findings of a kind that are written one by one


class Told:
    """What a listener was told of the queue that is announced only."""

    def __init__(self, path):
        self.reader = Reader(path)
        self.connected_at = 0.0
        self.since = set()              # ids, on this connection
        self.of_epoch = collections.defaultdict(set)
        self.new = []                   # (epoch, id) not yet looked at
        self.mark = 0

    def read(self):
        for line in self.reader.read():
            if 'connected' in line:
                self.connected_at = line['at']
                self.since = set()
            elif 'mark' in line:
                self.mark = line['mark']
            else:
                self.since.update(line['told'])
                self.new += [(line['epoch'], row) for row in line['told']]


class Checker:
    def __init__(self, journals, told, findings):
        self.readers = [Reader(path) for path in journals]
        self.told = [Told(path) for path in told]
        self.mark = 0
        self.heralds = set()            # ids that may be told
        self.findings = findings
        self.seen = set()               # ids that were flushed or died
        self.retried = {}               # dead letters that were let go and
                                        # have not come: (queue, key, n)
        self.let_go = set()             # all that were let go
        self.pos = dict.fromkeys(QUEUES, 0)
        self.witness_pos = 0
        self.last_n = {}                # of (queue, key)
        self.newest = {}                # of (queue, key), also dead letters
        self.sums = {q.name: collections.Counter()
                     for q in QUEUES.values() if q.has_sums}
        self.fate = {}                  # of ids that must not be there: why
        self.counts = collections.Counter()
        self.shown = collections.Counter()      # findings of this check

    def check(self, conn, no_crash_since):
        """One look at everything that is new.

        A crash before 'no_crash_since' excuses the loss of a row that was
        in memory only.
        """
        self.shown.clear()
        transactions = self.read_journals(self.read_witness(conn))
        arrivals = self.read_targets(conn)
        dead = self.read_dead(conn)
        # What the flushes of "paced" enqueue commits with them.
        transactions['of the flushes'] = dict(
            end=ACKNOWLEDGED, begun=0, ended=0, rows=[
                ['echo', -row, key, n]
                for _, row, key, n in arrivals['paced']])
        again = self.check_rows(transactions, arrivals, dead)
        # There are none, unless a queue is stuck.
        self.waiting = {row for row, in conn.execute(
            "SELECT (payload->>'id')::bigint FROM batcher.pending")}
        for name, t in transactions.items():
            if t['end'] != ABORTED:
                self.check_transaction(name, t, no_crash_since)
        self.check_fates(conn, transactions, arrivals, dead)
        self.check_order(arrivals, again)
        for queue in self.sums:
            self.check_sums(conn, queue, transactions, dead)
        self.check_told(conn, transactions, dead)
        self.retried.clear()
        if dead:
            self.settle_dead(conn, dead)
        for kind, n in self.shown.items():
            if n > SHOWN:
                self.findings.add(kind, f'and {n - SHOWN} more', n - SHOWN)

    def find(self, kind, text):
        self.shown[kind] += 1
        if self.shown[kind] <= SHOWN:
            self.findings.add(kind, text)

    # Reading.

    def read_witness(self, conn):
        rows = conn.execute(
            'SELECT transaction, pos FROM torture.witness WHERE pos > %s'
            ' ORDER BY pos', (self.witness_pos,)).fetchall()
        self.witness_pos = rows[-1][1] if rows else self.witness_pos
        return {name for name, _ in rows}

    def read_journals(self, witnesses):
        """The transactions that could have committed, with their ends."""
        transactions = {}
        for reader in self.readers:
            for line in reader.read():
                if 'said' in line:
                    self.counts[f"waited_{line['said']}"] += 1
                    continue
                if 'rows' in line:
                    transactions[line['t']] = line
                    for row in line['gone']:
                        self.fate[row] = 'of a savepoint that was rolled back'
                    continue
                t = transactions.setdefault(
                    line['t'], dict(rows=[], witness=False, begun=line['at']))
                t['ended'] = line['at']
                t['end'] = line['end']
                t['ticket'] = line.get('ticket')
                for row in line.get('gone', ()):
                    self.fate[row] = 'of a transaction that was rolled back'
        for name, t in transactions.items():
            self.counts[t['end']] += 1
            if not t['witness']:
                continue
            there = name in witnesses
            if there != (t['end'] == ACKNOWLEDGED) and t['end'] != UNKNOWN:
                self.find('untrue', f'transaction {name} was {t["end"]}, but'
                          f' what it wrote into a table is'
                          f' {"" if there else "not "}there')
            t['end'] = ACKNOWLEDGED if there else ABORTED
        return transactions

    def read_targets(self, conn):
        """{queue: [(pos, id, key, n), ...]} in the order of flushing."""
        arrivals = {}
        for queue in QUEUES.values():
            if not queue.has_target:
                continue
            arrivals[queue.name] = rows = conn.execute(
                f'SELECT pos, id, key, n FROM torture.{queue.name}'
                ' WHERE pos > %s ORDER BY pos',
                (self.pos[queue.name],)).fetchall()
            if rows:
                self.pos[queue.name] = rows[-1][0]
        return arrivals

    def read_dead(self, conn):
        """[(queue, ticket, id, key, n), ...], n of all that has become one"""
        if not has_dead_letters(conn):
            return []
        return conn.execute(
            "SELECT queue, ticket, (payload->>'id')::bigint, key,"
            " coalesce((SELECT sum(value::bigint)::bigint"
            " FROM jsonb_each_text(payload->'parts')),"
            " (payload->>'n')::bigint) FROM batcher.dead_letter").fetchall()

    # Checking.

    def check_rows(self, transactions, arrivals, dead):
        """May what is there be there?  Returns rows that came again."""
        there = [(row, f'queue "{queue}", pos {pos}')
                 for queue, rows in arrivals.items()
                 for pos, row, _, _ in rows]
        there += [(row, f'dead letter {ticket} of queue "{queue}"')
                  for queue, ticket, row, _, _ in dead]
        self.counts['rows'] += len(there)
        self.counts['dead'] += len(dead)

        may_come = set(self.retried)
        for t in transactions.values():
            ids = [row[1] for row in t['rows']]
            if t['end'] != ABORTED:
                may_come.update(ids)
            else:
                self.fate.update(dict.fromkeys(ids, 'that was rolled back'))
        self.newest = dict(self.last_n)
        for queue, rows in arrivals.items():
            self.note_newest((queue, key, n) for _, _, key, n in rows)
        self.note_newest((queue, key, n) for queue, _, _, key, n in dead)
        again = set()
        for row, where in there:
            if row in self.retried:
                del self.retried[row]
            elif row in self.seen:
                again.add(row)
                self.find('duplicated', f'row {row}: {where}')
            elif row not in may_come:
                self.find('phantom', f'row {row},'
                          f' {self.fate.get(row, "of nobody")}: {where}')
            self.seen.add(row)
        for row, (queue, key, n) in self.retried.items():
            q = QUEUES[queue]
            if q.has_target and q.durable and not q.purged \
                    and not self.is_superseded(queue, key, n):
                self.find('lost', f'row {row} of queue "{queue}", a dead'
                          ' letter that was let go')
        return again

    def note_newest(self, rows):
        """The last of each key that is there, flushed or dead."""
        for queue, key, n in rows:
            if QUEUES[queue].supersedes and key is not None:
                self.newest[queue, key] = max(
                    n, self.newest.get((queue, key), 0))

    def is_superseded(self, queue, key, n):
        """Whether a later row may stand for this one."""
        return QUEUES[queue].supersedes and key is not None \
            and n < self.newest.get((queue, key), 0)

    def check_transaction(self, name, t, no_crash_since):
        """Is what must be there of one that may have committed?"""
        present = 0
        missing = []
        for queue, row, key, n in t['rows']:
            q = QUEUES[queue]
            if not q.has_target or q.purged:
                continue
            must = q.durable or (t['begun'] > no_crash_since
                                 and t['end'] == ACKNOWLEDGED)
            if row in self.seen or row in self.waiting:
                present += q.durable
                self.counts['kept_in_memory'] += must and not q.durable
            elif self.is_superseded(queue, key, n):
                self.counts['superseded'] += 1
            elif must:
                missing.append(f'row {row} of queue "{queue}"')
            else:
                self.counts['lost_with_memory'] += 1
        if t['end'] == UNKNOWN and not present:
            return
        for text in missing:
            self.find('lost' if t['end'] == ACKNOWLEDGED else 'torn',
                      f'{text}: transaction {name}, {t["end"]}, from'
                      f' {stamp(t["begun"])} to {stamp(t["ended"])}')

    def check_fates(self, conn, transactions, arrivals, dead):
        """Of what was enqueued alone batch_wait says what became of it.

        Where a server has stopped since, it may know nothing any more.
        """
        flushed = {row for rows in arrivals.values() for _, row, _, _ in rows}
        died = {row for _, _, row, _, _ in dead}
        for t in transactions.values():
            if not t.get('ticket') or t['end'] == ABORTED:
                continue
            queue, row, key, n = t['rows'][-1]
            q = QUEUES[queue]
            if not q.has_target:
                continue
            said, = conn.execute("SELECT batch_wait(%s, %s, '0')",
                                 (queue, t['ticket'])).fetchone()
            self.counts[f'asked_{said}'] += 1
            true = {'flushed': row in flushed,
                    # dead letters go with their queue
                    'dead': row in died or q.purged and row not in flushed,
                    'superseded': row not in flushed
                    and self.is_superseded(queue, key, n),
                    'purged': q.purged and row not in flushed,
                    'pending': row in self.waiting}
            if not true.get(said, True):
                self.find('misinformed', 'at the end batch_wait says that row'
                          f' {row} of queue "{queue}" is {said}')

    def check_order(self, arrivals, again):
        for queue, rows in arrivals.items():
            for pos, row, key, n in rows:
                if key is None or row in again or row in self.let_go:
                    continue
                before = self.last_n.get((queue, key), 0)
                if n < before:
                    self.find('reordered', f'row {row} of queue "{queue}",'
                              f' pos {pos}: number {n} of key {key} comes'
                              f' after {before}')
                self.last_n[queue, key] = max(n, before)

    def check_sums(self, conn, queue, transactions, dead):
        """The sums say which rows there must have been, not which are."""
        sums = self.sums[queue]
        for t in transactions.values():
            if t['end'] == ACKNOWLEDGED:
                for name, _, key, n in t['rows']:
                    if name == queue:
                        sums[key] += n
        for name, _, _, key, n in dead:
            if name == queue:
                sums[key] -= n
        there = collections.Counter(dict(conn.execute(
            f'SELECT key, total FROM torture.{queue}')))
        for key in sums | there:
            differ = there[key] - sums[key]
            if differ:
                self.find('duplicated' if differ > 0 else 'lost',
                          f'the sum of key {key} of queue "{queue}" is'
                          f' {there[key]}, it should be {sums[key]}')
        self.sums[queue] = there

    def hear_listeners(self, conn):
        """Wait until the listeners have heard everything."""
        self.mark += 1

        def all_heard():
            conn.execute('SELECT pg_notify(%s, %s)', (MARK, str(self.mark)))
            for told in self.told:
                told.read()
            return all(told.mark == self.mark for told in self.told)
        # who loses its connection now hears it on the next one
        wait_for('a listener hears nothing', all_heard, pause=0.1)

    def check_told(self, conn, transactions, dead):
        self.hear_listeners(conn)
        rows = [(row, t) for t in transactions.values() if t['end'] != ABORTED
                for queue, row, _, _ in t['rows'] if queue == 'herald']
        self.heralds.update(row for row, _ in rows)
        excused = {row for queue, _, row, _, _ in dead} | self.waiting
        for told in self.told:
            for epoch, row in told.new:
                if row not in self.heralds:
                    self.find('phantom', f'row {row},'
                              f' {self.fate.get(row, "of nobody")}: a listener'
                              ' was told of it')
                elif row in told.of_epoch[epoch]:
                    self.find('duplicated', f'row {row}: a listener was told'
                              f' of it twice in epoch {epoch}')
                told.of_epoch[epoch].add(row)
            told.new.clear()
            for row, t in rows:
                if t['end'] != ACKNOWLEDGED or row in excused \
                        or t['begun'] < told.connected_at:
                    continue
                self.counts['to_be_told'] += 1
                if row not in told.since:
                    self.find('lost', f'row {row} of queue "herald": a'
                              ' listener that is connected since'
                              f' {stamp(told.connected_at)} was not told of'
                              f' it, transaction from {stamp(t["begun"])} to'
                              f' {stamp(t["ended"])}')

    def settle_dead(self, conn, dead):
        """Purge those that cannot be flushed, let the others go."""
        self.let_go = set()
        for queue, ticket, row, key, n in dead:
            purge = queue == 'guarded' and is_poison((queue, row))
            conn.execute(
                f"SELECT batch_{'purge' if purge else 'retry'}_dead(%s, %s)",
                (queue, [ticket]))
            if not purge:
                self.retried[row] = queue, key, n
                if queue in self.sums:
                    self.sums[queue][key] += n
        # and what their flushes pass on
        self.let_go = {sign * row for row in self.retried for sign in (1, -1)}


def stamp(seconds):
    """A time as in the log of the server."""
    return (time.strftime('%H:%M:%S', time.localtime(seconds))
            + f'.{seconds % 1:.3f}'[2:])
