"""Torture batcher: see run.sh, which has made ready what this needs.

    torture.py --bin BINDIR --folder FOLDER --minutes N --seed N

FOLDER has the data directory "one" of a server that does not run yet.

Producers commit rows, listeners listen (processes of their own), an injector
makes faults (this process), and after each round of faults the load pauses,
everything is flushed, and a checker compares.  In the end the result is
printed, lines of name=value; the status is 1 if a number is not zero that
should be.
"""

import argparse
import collections
import contextlib
import multiprocessing
import os
import re
import sys
import time

import psycopg

import workload
from checker import Checker, stamp
from faults import Injector
from journal import Findings, Reader, Writer
from listener import Listener
from producer import Producer
from server import Pair, Stuck, wait_for

PRODUCERS = 6
LISTENERS = 2
ROUND = 2.0                 # seconds of faults between two checks

# What can be found; each is a line of the result, and should be zero.
KINDS = ('lost', 'duplicated', 'phantom', 'reordered', 'torn', 'untrue',
         'misinformed', 'out_of_step', 'gaps', 'malformed', 'left_over',
         'stuck', 'crashed', 'internal_errors', 'seldom')

# Lines of the server's log that must not be there, as kinds.  Only we send
# SIGKILL; and the postmaster SIGQUIT, which ends nobody by a signal.
LOG_PATTERNS = {
    'crashed': re.compile(r'PANIC|TRAP:|terminated by signal (?!9\b)'),
    'internal_errors': re.compile(
        r' XX\d{3} (WARNING|ERROR|FATAL|PANIC):  (?!batcher debug point)'),
}

# What to look at when something hangs.
STUCK = (
    'batcher.status WHERE pending + pending_bytes > 0',
    'batcher.worker',
    "pg_stat_activity WHERE state <> 'idle' OR backend_type ~ 'batcher'",
    'pg_locks WHERE pid IN'
    ' (SELECT pid FROM pg_locks WHERE NOT granted UNION'
    ' SELECT unnest(pg_blocking_pids(pid)) FROM pg_locks WHERE NOT granted)',
)


class Control:
    """An actor in a process of its own, which can be told to pause."""

    def __init__(self, make):
        self.go = multiprocessing.Event()
        self.idle = multiprocessing.Event()
        self.stop = multiprocessing.Event()
        self.go.set()
        self.process = multiprocessing.Process(target=self.act, args=(make,),
                                               daemon=True)
        self.process.start()

    # The actor's side.

    def act(self, make):
        with contextlib.suppress(KeyboardInterrupt):
            make().run(self)

    def stopped(self):
        return self.stop.is_set()

    def sleep(self, seconds):
        self.stop.wait(seconds)

    def pause_point(self):
        """Pause if told to; returns whether that was so."""
        if self.go.is_set():
            return False
        self.idle.set()
        self.go.wait()
        return True

    # The other side.

    def check_alive(self):
        if not self.process.is_alive():
            raise RuntimeError('an actor has ended, see above')

    def pause(self):
        self.go.clear()
        wait_for('an actor does not come to the end of what it does',
                 lambda: self.check_alive() or self.idle.wait(0.1))

    def resume(self):
        self.idle.clear()
        self.go.set()


class Torture:
    def __init__(self, options):
        self.options = options
        self.folder = options.folder
        self.findings = Findings(self.folder)
        self.found = collections.Counter()
        self.found_reader = Reader(self.findings.file.name)
        self.log_offsets = collections.Counter()
        self.pair = Pair(options.bin, self.folder, ('one', 'two'))
        self.received = multiprocessing.Value('q', 0)
        self.rounds = 0

    def path(self, name):
        return os.path.join(self.folder, name)

    # Before and after.

    def set_up(self):
        self.pair.primary.start()
        with self.pair.connect() as conn:
            workload.set_up(conn)
            self.poison = workload.has_dead_letters(conn)
        self.pair.configure({})
        self.pair.make_standby()
        # From here on a commit waits for the standby.
        self.pair.configure({'synchronous_standby_names': 'standby'})

    def producer(self, number):
        return Producer(number, self.options.seed,
                        self.pair.client_conninfo(f'producer{number}'),
                        Writer(self.path(f'journal.{number}')),
                        self.findings, self.poison)

    def start_actors(self):
        self.producers = [Control(lambda n=number: self.producer(n))
                          for number in range(1, PRODUCERS + 1)]
        self.listeners = [Control(lambda number=number: Listener(
            self.pair.client_conninfo('listener'), self.findings,
            self.received, Writer(self.path(f'told.{number}'))))
            for number in range(LISTENERS)]
        # The last producer works for the injector.
        self.injector = Injector(
            self.pair, self.options.seed,
            open(self.path('faults'), 'a', encoding='ascii', buffering=1),
            self.producer(0))
        self.checker = Checker(
            [self.path(f'journal.{n}') for n in range(PRODUCERS + 1)],
            [self.path(f'told.{n}') for n in range(LISTENERS)],
            self.findings)

    # A round.

    def round(self):
        self.rounds += 1
        no_crash_since = self.injector.run_round(ROUND)
        for control in self.producers:
            control.pause()
        for control in self.listeners:
            control.check_alive()
        wait_for('rows still wait', self.drain)
        with self.pair.connect() as conn:
            # Statistics begin anew after a crash, of which perhaps nobody
            # was told.
            crash, = conn.execute(
                'SELECT extract(epoch FROM stats_reset)::float8'
                ' FROM pg_stat_wal').fetchone()
            # The servers shall agree about what is looked at.
            conn.execute("INSERT INTO torture.witness (transaction)"
                         " VALUES ('check')")
            self.checker.check(conn, max(no_crash_since, crash))
            self.check_left_over(conn)
        self.scan_logs()
        self.report_findings()
        for control in self.producers:
            control.resume()

    def drain(self):
        """Mend what faults have left, and have everything flushed.

        Returns whether it is.  A process may still die, that was on its way
        to an armed point of the code when that was disarmed.
        """
        try:
            with self.pair.connect() as conn:
                conn.execute('DELETE FROM torture.trouble')
                workload.mend(conn)
                conn.execute("SELECT batch_flush(NULL, '5 s')")
                return conn.execute(
                    'SELECT sum(pending) = 0 AND NOT EXISTS'
                    ' (SELECT FROM batcher.spool)'
                    ' FROM batcher.status').fetchone()[0]
        except psycopg.OperationalError:
            return False

    def check_left_over(self, conn):
        """When nothing waits, no memory is held."""
        try:
            wait_for('', lambda: conn.execute(
                'SELECT sum(pending_bytes) = 0 FROM batcher.status'
                ).fetchone()[0], patience=10)
        except Stuck:
            self.findings.add('left_over', self.rows_as_text(
                conn, 'batcher.status WHERE pending_bytes > 0'))

    @staticmethod
    def rows_as_text(conn, source):
        return '\n'.join(text for text, in conn.execute(
            f'SELECT json_strip_nulls(row_to_json(s))::text FROM'
            f' (SELECT * FROM {source}) s'))

    def scan_logs(self):
        for path in self.pair.logs:
            if not os.path.exists(path):
                continue
            with open(path, encoding='utf-8', errors='replace') as f:
                f.seek(self.log_offsets[path])
                for line in f:
                    for kind, pattern in LOG_PATTERNS.items():
                        if pattern.search(line):
                            self.findings.add(kind, line.strip())
                self.log_offsets[path] = f.tell()

    def report_findings(self):
        """Print what is new, and which faults it may be due to."""
        new = list(self.found_reader.read())
        for finding in new:
            self.found[finding['kind']] += finding['count']
            print(f"{stamp(finding['at'])} {finding['kind']}:"
                  f" {finding['text']}")
        if new:
            print(f'round {self.rounds}, after these faults:')
            for line in self.injector.recent:
                print('   ', line)
            sys.stdout.flush()

    def look_at_stuck(self):
        """What goes on, and whether something is wrong beyond that."""
        for server in (self.pair.primary, self.pair.standby):
            print(f'processes of {server.name}:', *server.processes(),
                  sep='\n    ')
        with self.pair.primary.connect() as conn:
            for source in STUCK:
                print(f'{source}:\n{self.rows_as_text(conn, source)}')
            sys.stdout.flush()
            self.checker.check(conn, time.time())

    # The whole.

    def run(self):
        self.set_up()
        self.start_actors()
        end = time.monotonic() + 60 * self.options.minutes
        try:
            while time.monotonic() < end:
                self.round()
        except Stuck as e:
            self.findings.add('stuck', str(e))
            with contextlib.suppress(psycopg.Error):
                self.look_at_stuck()
            self.scan_logs()
            self.report_findings()
        self.check_gaps()
        for control in self.producers + self.listeners:
            control.stop.set()
        return self.print_result()

    def check_gaps(self):
        """Has each kind of fault come often enough?"""
        injector = self.injector
        if injector.most_between > Injector.MOST_BETWEEN:
            self.findings.add('seldom', 'a kind of fault came only after'
                              f' {injector.most_between} faults')
        if injector.longest_gap > self.options.max_gap > 0:
            self.findings.add('seldom', 'a kind of fault was away for'
                              f' {injector.longest_gap:.1f} s')
        self.report_findings()

    def print_result(self):
        """Returns whether rows were looked at and nothing was wrong."""
        counts = self.checker.counts
        faults = self.injector.counts
        kinds = Injector.CRASHES + Injector.GENTLE
        result = [
            ('seed', self.options.seed),
            ('rounds', self.rounds),
            ('rows', counts['rows']),
            ('dead_letters', counts['dead']),
            ('kept_in_memory', counts['kept_in_memory']),
            ('lost_with_memory', counts['lost_with_memory']),
            ('superseded', counts['superseded']),
            ('to_be_told', counts['to_be_told']),
            ('messages', self.received.value),
            *sorted((name, n) for name, n in counts.items()
                    if name.startswith(('asked_', 'waited_'))),
            ('transactions_acknowledged', counts['acknowledged']),
            ('transactions_aborted', counts['aborted']),
            ('transactions_unknown', counts['unknown']),
            ('faults', sum(faults[kind] for kind in kinds)),
            *sorted((f'fault_{name}', n) for name, n in faults.items()),
            ('longest_gap_of_a_kind', f'{self.injector.longest_gap:.1f}'),
            ('most_faults_to_the_next_of_a_kind', self.injector.most_between),
            *((kind, self.found[kind]) for kind in KINDS)]
        for name, value in result:
            print(f'{name}={value}')
        return counts['rows'] > 0 and not any(self.found.values())


def main():
    parser = argparse.ArgumentParser(description='torture batcher')
    parser.add_argument('--bin', required=True)
    parser.add_argument('--folder', required=True)
    parser.add_argument('--minutes', type=float, default=1)
    parser.add_argument('--seed', required=True)
    parser.add_argument('--max-gap', type=float, default=0)
    torture = Torture(parser.parse_args())
    # Whoever sends SIGTERM wants the servers to be stopped too: run.sh does.
    sys.exit(0 if torture.run() else 1)


if __name__ == '__main__':
    main()
