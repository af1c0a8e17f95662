"""The injector: what is done to the server, and when.

Time is divided into rounds.  A round has a rough part, in which each kind of
fault comes at least once; and a gentle part with those after which nothing
may be missing, not even of the queues that are in memory only: always a fast
stop among them.  Then the load pauses, and the checker looks.

The order is random, but a kind that did not come for long comes sooner, and
waits for one other at most, so that none is away for much longer than a round
takes: less than ten seconds, where the machine has nothing else to do.
Each fault has a generator of random numbers of its own, because how many it
needs depends on what it finds.

Faults that last (locks, trouble, memory) have threads of their own, so that
others fall into them.  Nobody else may touch the servers (see server.py), so
everything that restarts one is done by the thread of the injector itself.
"""

import collections
import contextlib
import json
import os
import random
import signal
import threading
import time

import psycopg

from checker import stamp
from server import wait_for
from workload import QUEUES

# Points of the code (src/base/debug.c) and what may happen there.
POINTS = {
    'spool-written': ('kill', 'error', 'fatal'),
    'pre-commit': ('kill', 'error', 'fatal'),
    'commit': ('kill',),
    'immediate': ('kill', 'fatal'),
    'claimed': ('kill', 'error', 'fatal'),
    'statement': ('kill', 'error', 'fatal'),
    'executing': ('kill', 'error', 'fatal'),
    'settle': ('kill', 'error', 'fatal'),
    'committed': ('kill', 'fatal'),
    'notify': ('kill', 'error', 'fatal'),
    'taken-over': ('kill', 'error', 'fatal'),
    'definitions-read': ('kill', 'error', 'fatal'),
    'vacuum': ('kill', 'error', 'fatal'),
}

# SQLSTATEs of statements that fail.  The last three are taken for the fault of
# rows, which then may die.
TROUBLE = ('40001', '40P01', '53200', '55P03', '42P01', 'sleep',
           '22012', '23514', 'P0001')

VICTIMS = ('client', 'worker', 'launcher', 'helper', 'postmaster')


class Injector:
    CRASHES = ('kill', 'point', 'stop_immediate', 'stop_killed', 'fail_over')
    GENTLE = ('stop_fast', 'terminate', 'lock_storm', 'statement_failure',
              'memory_pressure', 'drop_create', 'reload', 'rewrite')
    PICKED = 3                  # of the gentle ones, besides a stop
    # A round later, or one fault more if it has to wait.
    MOST_BETWEEN = len(CRASHES) + len(GENTLE) + 1 + PICKED + 1

    def __init__(self, pair, seed, log, pressure):
        self.pair = pair
        self.seed = seed
        self.order = random.Random(f'{seed}/injector')  # of the faults
        self.rng = None                 # of this fault
        self.number = 0                 # of this fault
        self.last_number = {}           # of a kind of fault
        self.log_file = log
        self.pressure = pressure        # a producer
        self.counts = collections.Counter()
        self.threads = []
        self.recent = collections.deque(maxlen=60)
        self.last_crash = 0.0           # when the server was up again
        self.last_time = {}             # of a kind of fault
        self.longest_gap = 0.0          # between two faults of one kind
        self.most_between = 0           # faults from one to the next of a kind
        self.paused_at = 0.0            # when the last round ended
        self.victims = self.endless(VICTIMS)
        self.points = self.endless(sorted(POINTS))
        self.ends = self.endless(('kill', 'immediate', 'fast'))

    def endless(self, things):
        """All of them in random order, again and again."""
        while True:
            yield from self.order.sample(things, len(things))

    def deal(self, kinds):
        """All of them, more or less in the order of their last time."""
        kinds = sorted(kinds, key=lambda k: self.last_number.get(k, 0))
        passed = 0              # the first one had to wait for another
        while kinds:
            passed = self.order.randrange(2 - passed) if kinds[1:] else 0
            yield kinds.pop(passed)

    def log(self, text):
        line = f'{stamp(time.time())} {text}'
        self.recent.append(line)
        self.log_file.write(line + '\n')

    # Rounds.

    def run_round(self, seconds):
        """Returns the time since which there was no crash."""
        self.forget_pause()
        rough = self.CRASHES + self.GENTLE
        gentle = ('stop_fast', *self.order.sample(self.GENTLE[1:],
                                                 self.PICKED))
        end = time.monotonic() + seconds
        left = len(rough) + len(gentle)
        for deck in (rough, gentle):
            for kind in self.deal(deck):
                self.inject(kind)
                left -= 1
                # What is left of the time, for what is left of the faults.
                time.sleep(self.order.uniform(0, 2) * min(
                    0.8, max(0, end - time.monotonic()) / (left + 1)))
            if deck is rough:
                self.pair.wait_up()
                self.last_crash = time.time()
        for thread in self.threads:
            wait_for('a session of the injector does not end',
                     lambda t=thread: t.join(0.1) or not t.is_alive())
        self.threads.clear()
        self.paused_at = time.monotonic()
        return self.last_crash

    def forget_pause(self):
        """While the checker looks there is nothing to torture."""
        pause = time.monotonic() - self.paused_at
        for kind in self.last_time:
            self.last_time[kind] += pause

    def inject(self, kind):
        now = time.monotonic()
        self.longest_gap = max(self.longest_gap,
                               now - self.last_time.get(kind, now))
        self.last_time[kind] = now
        self.number += 1
        self.most_between = max(
            self.most_between,
            self.number - self.last_number.get(kind, self.number))
        self.last_number[kind] = self.number
        self.counts[kind] += 1
        self.rng = random.Random(f'{self.seed}/fault {self.number}')
        self.pair.ensure_primary()
        getattr(self, kind)()

    def in_background(self, work, *arguments):
        """Do it in a thread, with a session that may break any time."""
        def run():
            with contextlib.suppress(psycopg.Error):
                with self.session() as conn:
                    work(conn, *arguments)
        self.start_thread(run)

    def start_thread(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        self.threads.append(thread)

    def session(self):
        return psycopg.connect(self.pair.client_conninfo('injector'),
                               autocommit=True, prepare_threshold=None)

    def some_queues(self, most=3, suitable=lambda q: True):
        names = [q.name for q in QUEUES.values() if suitable(q)]
        return self.rng.sample(names, self.rng.randint(1, most))

    def some_targets(self, most=3):
        return self.some_queues(most, lambda q: q.has_statement)

    # Crashes.

    def victim(self, who):
        """A process of that sort, or None."""
        server = self.pair.primary
        if who == 'postmaster':
            return server.postmaster()
        sorts = collections.defaultdict(list)
        for pid, title in server.processes():
            if title.startswith('batcher '):
                sorts[title.split()[1]].append(pid)
            elif title.startswith('postgres '):
                sorts['client'].append(pid)
            else:
                sorts['helper'].append(pid)
        return self.rng.choice(sorts[who]) if sorts[who] else None

    def kill(self):
        """Kill -9 some process of the server, which restarts all others."""
        who = next(self.victims)
        pid = self.victim(who) or self.victim('client')
        if pid is None:
            return
        self.log(f'kill -9 {who} {pid}')
        self.counts['kill_' + who] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        # At times the next fault meets a server that recovers.
        if self.rng.random() < 0.8:
            self.wait_gone(pid)
            self.pair.wait_up()

    def wait_gone(self, pid):
        wait_for(f'process {pid} does not die',
                 lambda: not os.path.exists(f'/proc/{pid}/cwd'))

    def point(self):
        """Arm a point of the code until somebody has come there."""
        name = next(self.points)
        action = self.rng.choice(POINTS[name])
        self.log(f'point {name}={action}')
        self.pair.configure({'batcher.debug_points': f'{name}={action}'})
        time.sleep(self.rng.uniform(0.2, 0.8))
        self.pair.configure({'batcher.debug_points': None})
        self.pair.wait_up()

    def stop_immediate(self):
        self.log('immediate stop')
        self.pair.primary.stop('immediate')
        self.pair.primary.start()

    def stop_killed(self):
        """A fast stop, in which somebody is killed."""
        who = next(self.victims)
        self.log(f'fast stop, and kill -9 {who} in it')
        self.pair.wait_up()             # see Pair.stop_fast
        postmaster = self.pair.primary.postmaster()
        if postmaster is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(postmaster, signal.SIGINT)
                time.sleep(self.rng.uniform(0, 0.3))
                os.kill(self.victim(who) or postmaster, signal.SIGKILL)
            self.wait_gone(postmaster)
        self.pair.primary.start()

    def fail_over(self):
        how = next(self.ends)
        self.log(f'fail over from {self.pair.primary.name}, ended by {how}')
        self.pair.fail_over(how)

    # What must not cost anything.

    def stop_fast(self):
        mode = 'fast' if self.rng.random() < 0.8 else 'fast, twice'
        self.log(f'{mode} stop')
        self.pair.stop_fast()
        self.pair.primary.start()
        if 'twice' in mode:
            self.pair.stop_fast()
            self.pair.primary.start()

    def terminate(self):
        """End a worker, at times a client or the launcher.

        Some workers are only cancelled, or do not come to their work for a
        while.
        """
        who = self.rng.choice(('worker',) * 4 + ('launcher', 'client'))
        sign = signal.SIGTERM
        if who == 'worker':
            sign = self.rng.choice((signal.SIGTERM, signal.SIGTERM,
                                    signal.SIGINT, signal.SIGSTOP))
        pid = self.victim(who)
        if pid is None:
            return
        self.log(f'{sign.name} to {who} {pid}')
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
        if sign == signal.SIGSTOP:
            self.start_thread(self.let_go_on, pid, self.rng.uniform(0.1, 1.5))

    @staticmethod
    def let_go_on(pid, seconds):
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def lock_storm(self):
        """Several sessions lock some targets, in any order."""
        for _ in range(self.rng.randint(1, 3)):
            targets = self.some_targets()
            mode = self.rng.choice(('SHARE', 'EXCLUSIVE', 'ACCESS EXCLUSIVE'))
            seconds = self.rng.uniform(0.1, 1)
            # Who holds a lock and waits for the flush waits for himself.
            flush = self.rng.random() < 0.3
            self.log(f'lock {", ".join(targets)} in {mode} mode'
                     f' for {seconds:.1f} s' + ' and flush' * flush)
            self.in_background(self.hold_locks, targets, mode, seconds, flush)

    @staticmethod
    def hold_locks(conn, targets, mode, seconds, flush):
        conn.execute('BEGIN')
        for target in targets:
            conn.execute(f'LOCK TABLE torture.{target} IN {mode} MODE')
        if flush:
            conn.execute("SELECT batch_flush(%s, '2 s')", (targets[0],))
        conn.execute('SELECT pg_sleep(%s)', (seconds,))
        conn.execute('COMMIT')

    def statement_failure(self):
        state = self.rng.choice(TROUBLE)
        queues = self.some_queues()
        seconds = self.rng.uniform(0.2, 2)
        self.log(f'{", ".join(queues)} fail for {seconds:.1f} s: {state}')
        self.in_background(self.make_trouble, queues, state, seconds)

    @staticmethod
    def make_trouble(conn, queues, state, seconds):
        for queue in queues:
            conn.execute(
                "INSERT INTO torture.trouble VALUES"
                " (%s, %s, clock_timestamp() + %s * interval '1 s')"
                ' ON CONFLICT (queue) DO UPDATE'
                ' SET sqlstate = excluded.sqlstate, until = excluded.until',
                (queue, state, seconds))

    def memory_pressure(self):
        """A large transaction holds most of the memory for a while."""
        queue = self.some_queues(1, lambda q: q.is_plain)[0]
        rows = self.rng.randint(500, 3000)
        self.log(f'{rows} large rows into {queue}')
        self.start_thread(self.pressure.press, queue, rows)

    def drop_create(self):
        what = self.rng.choice((self.remake_fickle, self.remake_doomed,
                                self.drop_and_think_again, self.brief_queue,
                                self.brief_database))
        queue = self.some_queues(1)[0]
        number = self.rng.randrange(10 ** 9)
        self.log(f'{what.__name__.replace("_", " ")} ({queue}, {number})')
        self.in_background(what, queue, number)

    @staticmethod
    def remake_fickle(conn, _queue, _number):
        """Drop a queue in use, which is refused while rows wait."""
        for _ in range(30):
            try:
                conn.execute("SELECT batch_drop_queue('fickle')")
                break
            except psycopg.errors.ObjectInUse:
                conn.execute("SELECT batch_flush('fickle', '200 ms')")
        else:
            return
        conn.execute(*QUEUES['fickle'].create())

    @staticmethod
    def remake_doomed(conn, _queue, number):
        """Throw rows away, with their queue or without it."""
        if number % 2:
            conn.execute("SELECT batch_purge('doomed')")
            return
        conn.execute("SELECT batch_drop_queue('doomed', force => true)")
        conn.execute(*QUEUES['doomed'].create())

    @staticmethod
    def drop_and_think_again(conn, queue, _number):
        conn.execute('BEGIN')
        conn.execute('SELECT batch_drop_queue(%s, force => true)', (queue,))
        conn.execute('SELECT pg_sleep(0.1)')
        conn.execute('ROLLBACK')

    @staticmethod
    def brief_queue(conn, _queue, number):
        conn.execute("SELECT batch_create_queue('brief', 'SELECT FROM batch')")
        conn.execute("SELECT batch_enqueue('brief', to_jsonb(i))"
                     ' FROM generate_series(1, %s) i', (number % 500,))
        conn.execute("SELECT batch_drop_queue('brief', force => true)")

    def brief_database(self, conn, _queue, number):
        conn.execute('DROP DATABASE IF EXISTS brief WITH (FORCE)')
        conn.execute('CREATE DATABASE brief')
        with psycopg.connect(self.pair.client_conninfo('injector'),
                             dbname='brief', autocommit=True) as other:
            other.execute('CREATE EXTENSION batcher')
            self.brief_queue(other, None, number)
        conn.execute('DROP DATABASE brief'
                     + ' WITH (FORCE)' * (number % 2))

    def reload(self):
        """Change settings of the server, and options of a queue."""
        rng = self.rng
        changes = {
            'batcher.flush_interval': f'{rng.randint(1, 300)}ms',
            'batcher.max_batch_size': rng.choice((10, 100, 1000)),
            'batcher.max_workers': rng.randint(1, 4),
            'batcher.shutdown_timeout': f'{rng.randint(0, 700)}ms',
            'batcher.enqueue_timeout': f'{rng.randint(0, 2000)}ms',
            'batcher.log_min_duration': rng.choice((-1, 500)),
            'work_mem': f'{rng.randint(64, 4096)}kB',
        }
        changes = {name: changes[name] for name in
                   rng.sample(sorted(changes), rng.randint(1, len(changes)))}
        self.pair.configure(changes)
        queue = self.some_queues(1)[0]
        pause = rng.random() < 0.3
        options = {
            'flush_interval': rng.randint(5, 500),
            'max_batch_size': rng.choice((5, 50, 500, None))}
        if 'lanes' in QUEUES[queue].options:
            options['lanes'] = rng.randint(1, 4)
        options = json.dumps(options)
        self.log(f'reload {changes}; '
                 + (f'pause {queue}' if pause else f'alter {queue} {options}'))
        self.in_background(self.change_queue, queue, pause, options)

    @staticmethod
    def change_queue(conn, queue, pause, options):
        if not pause:
            conn.execute('SELECT batch_alter_queue(%s, %s::jsonb)',
                         (queue, options))
            return
        conn.execute('SELECT batch_pause(%s)', (queue,))
        conn.execute('SELECT pg_sleep(0.3)')
        conn.execute('SELECT batch_resume(%s)', (queue,))

    def rewrite(self):
        """Tables get other files, or other plans."""
        target = f'torture.{self.some_targets(1)[0]}'
        statement = self.rng.choice((
            'VACUUM FULL batcher.spool', 'VACUUM FULL batcher.spool',
            'VACUUM batcher.spool', f'VACUUM FULL {target}',
            f'REINDEX TABLE {target}', f'ANALYZE {target}'))
        self.log(statement)
        self.in_background(lambda conn: conn.execute(statement))
