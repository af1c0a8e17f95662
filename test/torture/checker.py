"""The checker: compares what was acknowledged with what is there.

It is asked when producers pause and everything was flushed:

lost        a row that must be there is in no target and no dead letter
duplicated  a row is there more than once
phantom     a row is there that no committed transaction enqueued
reordered   a row was flushed before one of its key that came earlier
torn        of a transaction whose fate its client does not know, some rows
            are there and others are not

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
from producer import is_poison
from workload import QUEUES, has_dead_letters

SHOWN = 20                  # findings of a kind that are written one by one


class Checker:
    def __init__(self, journals, findings):
        self.readers = [Reader(path) for path in journals]
        self.findings = findings
        self.seen = set()               # ids that were flushed or died
        self.retried = {}               # dead letters that were let go and
                                        # have not come: their queues
        self.let_go = set()             # all that were let go
        self.pos = dict.fromkeys(QUEUES, 0)
        self.witness_pos = 0
        self.last_n = {}                # of (queue, key)
        self.tally = collections.Counter()
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
        self.check_order(arrivals, again)
        self.check_tally(conn, transactions, dead)
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
                if 'rows' in line:
                    transactions[line['t']] = line
                    for row in line['gone']:
                        self.fate[row] = 'of a savepoint that was rolled back'
                    continue
                t = transactions.setdefault(
                    line['t'], dict(rows=[], witness=False, begun=line['at']))
                t['ended'] = line['at']
                t['end'] = line['end']
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
        """[(queue, ticket, id, key, n), ...]"""
        if not has_dead_letters(conn):
            return []
        return conn.execute(
            "SELECT queue, ticket, (payload->>'id')::bigint, key,"
            " (payload->>'n')::bigint FROM batcher.dead_letter").fetchall()

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
        for row, queue in self.retried.items():
            q = QUEUES[queue]
            if q.has_target and q.durable and not q.purged:
                self.find('lost', f'row {row} of queue "{queue}", a dead'
                          ' letter that was let go')
        return again

    def check_transaction(self, name, t, no_crash_since):
        """Is what must be there of one that may have committed?"""
        present = 0
        missing = []
        for queue, row, _, _ in t['rows']:
            q = QUEUES[queue]
            if not q.has_target or q.purged:
                continue
            must = q.durable or (t['begun'] > no_crash_since
                                 and t['end'] == ACKNOWLEDGED)
            if row in self.seen or row in self.waiting:
                present += q.durable
                self.counts['kept_in_memory'] += must and not q.durable
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

    def check_tally(self, conn, transactions, dead):
        """The sums say which rows there must have been, not which are."""
        for t in transactions.values():
            if t['end'] == ACKNOWLEDGED:
                for queue, _, key, n in t['rows']:
                    if queue == 'tally':
                        self.tally[key] += n
        for queue, _, _, key, n in dead:
            if queue == 'tally':
                self.tally[key] -= n
        there = collections.Counter(dict(conn.execute(
            'SELECT key, total FROM torture.tally')))
        for key in self.tally | there:
            differ = there[key] - self.tally[key]
            if differ:
                self.find('duplicated' if differ > 0 else 'lost',
                          f'the sum of key {key} is {there[key]}, it should'
                          f' be {self.tally[key]}')
        self.tally = there

    def settle_dead(self, conn, dead):
        """Purge those that cannot be flushed, let the others go."""
        self.let_go = set()
        for queue, ticket, row, key, n in dead:
            purge = queue == 'guarded' and is_poison((queue, row))
            conn.execute(
                f"SELECT batch_{'purge' if purge else 'retry'}_dead(%s, %s)",
                (queue, [ticket]))
            if not purge:
                self.retried[row] = queue
                if queue == 'tally':
                    self.tally[key] += n
        # and what their flushes pass on
        self.let_go = {sign * row for row in self.retried for sign in (1, -1)}


def stamp(seconds):
    """A time as in the log of the server."""
    return (time.strftime('%H:%M:%S', time.localtime(seconds))
            + f'.{seconds % 1:.3f}'[2:])
