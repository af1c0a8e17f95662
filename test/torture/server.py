"""The servers under torture: a primary and its synchronous standby.

Both are private data directories of one installation, told apart by their
ports.  What differs between them is given on the command line, because a
base backup copies configuration files.

How the guarantee stays testable across a failover: the servers run with
synchronous_standby_names set, from the moment on that the first standby is
there.  So the primary acknowledges a commit, and makes it visible to others,
only after the standby has it, and the standby may be promoted at any moment,
however the primary ended.  While there is no standby, commits wait.

Processes are found as children of our own postmaster, never by name; names
are looked at only to tell which of the children is what.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import psycopg

PATIENCE = 60.0             # seconds after which the server counts as hung


class Stuck(Exception):
    """Something did not come to its end in PATIENCE seconds."""


def wait_for(what, condition, patience=PATIENCE, pause=0.02):
    """Wait until the condition is true, and return what it returned."""
    end = time.monotonic() + patience
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise Stuck(what)
        time.sleep(pause)


class Server:
    """A data directory, and the server that may run on it."""

    def __init__(self, bindir, folder, name, port):
        self.bindir = bindir
        self.folder = folder
        self.name = name
        self.port = port
        self.data = os.path.join(folder, name)
        self.log = os.path.join(folder, name + '.log')

    def run(self, program, *arguments, check=True):
        """Run a program of PostgreSQL, its output into a log."""
        with open(os.path.join(self.folder, 'programs.log'), 'ab') as log:
            return subprocess.run(
                [os.path.join(self.bindir, program), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                check=check, timeout=2 * PATIENCE).returncode

    def conninfo(self, **more):
        words = dict(host=os.environ['PGHOST'], port=self.port,
                     user='postgres', **more)
        return ' '.join(f'{k}={v}' for k, v in words.items())

    def connect(self, **more):
        """One try to get a session."""
        return psycopg.connect(self.conninfo(dbname='postgres', **more),
                               autocommit=True, prepare_threshold=None)

    # Its life.

    def start(self, upstream=None):
        """Start it, as a standby of 'upstream' if that is given.

        A postmaster that was killed leaves children, which see that and end;
        until then a new one refuses to start.
        """
        options = f'-p {self.port}'
        if upstream:
            # The name is that in synchronous_standby_names.
            source = upstream.conninfo(application_name='standby')
            options += f' -c "primary_conninfo={source}"'
        wait_for(f'{self.name} does not start', lambda: self.run(
            'pg_ctl', '-D', self.data, '-l', self.log, '-o', options,
            '-w', '-t', str(int(PATIENCE)), 'start', check=False) == 0)

    def stop(self, mode):
        if self.run('pg_ctl', '-D', self.data, '-m', mode, '-w',
                    '-t', str(int(PATIENCE)), 'stop', check=False) != 0 \
                and self.postmaster():
            raise Stuck(f'{self.name} does not stop ({mode})')

    def reload(self):
        pid = self.postmaster()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    def promote(self):
        self.run('pg_ctl', '-D', self.data, '-w',
                 '-t', str(int(PATIENCE)), 'promote')

    # Its processes.

    def postmaster(self):
        """The pid of its postmaster, or None if that does not run."""
        try:
            with open(os.path.join(self.data, 'postmaster.pid'),
                      encoding='ascii') as f:
                pid = int(f.readline())
            # A pid may have been given to somebody else meanwhile.
            if os.readlink(f'/proc/{pid}/cwd') == os.path.realpath(self.data):
                return pid
        except (OSError, ValueError):
            pass
        return None

    def processes(self):
        """[(pid, what it calls itself)] of the postmaster's children."""
        parent = self.postmaster()
        found = []
        for entry in os.listdir('/proc') if parent else []:
            if not entry.isdigit():
                continue
            try:
                with open(f'/proc/{entry}/stat', encoding='utf-8') as f:
                    # "pid (name) state ppid ...": a name may hold anything.
                    ppid = int(f.read().rpartition(')')[2].split()[1])
                if ppid != parent:
                    continue
                with open(f'/proc/{entry}/cmdline', encoding='utf-8',
                          errors='replace') as f:
                    title = f.read().rstrip('\0 ')
            except OSError:
                continue
            found.append((int(entry), title.removeprefix('postgres: ')))
        return found

    def kill_all(self):
        """Kill -9 the postmaster and all its children."""
        parent = self.postmaster()
        children = self.processes()
        pids = [parent] * bool(parent) + [pid for pid, _ in children]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # What is dead and not yet reaped has no working directory.
        wait_for(f'{self.name} outlives kill -9',
                 lambda: not any(os.path.exists(f'/proc/{pid}/cwd')
                                 for pid in pids))


class Pair:
    """A primary and a standby, which change places."""

    def __init__(self, bindir, folder, names):
        self.primary, self.standby = (
            Server(bindir, folder, name, port)
            for port, name in enumerate(names, start=1))
        self.logs = [self.primary.log, self.standby.log]
        self.settings = {}

    # Settings that change while the server runs are in a file of their own:
    # it can be written while nobody can log in.

    def configure(self, changes):
        """Change settings (None takes one away) and have them reloaded."""
        self.settings.update(changes)
        path = os.path.join(self.primary.data, 'torture.conf')
        with open(path + '.new', 'w', encoding='ascii') as f:
            for name, value in self.settings.items():
                if value is not None:
                    f.write(f"{name} = '{value}'\n")
        os.replace(path + '.new', path)
        self.primary.reload()

    def client_conninfo(self, name):
        """For clients, who find out by themselves who is the primary."""
        servers = (self.primary, self.standby)
        return (f"host={','.join(os.environ['PGHOST'] for _ in servers)}"
                f" port={','.join(str(s.port) for s in servers)}"
                f' dbname=postgres user=postgres connect_timeout=10'
                f' target_session_attrs=read-write application_name={name}')

    # The rest is for one thread only: two would bring up two primaries.

    def connect(self, patience=PATIENCE):
        """A session on the primary, as soon as there can be one."""
        def attempt():
            self.ensure_primary()
            with contextlib.suppress(psycopg.Error):
                return self.primary.connect()
        return wait_for('nobody can connect', attempt, patience)

    def ensure_primary(self):
        """Start the primary if its postmaster is gone.

        That can happen where nobody killed it: it ends when the process that
        does crash recovery is killed.
        """
        if not self.primary.postmaster():
            self.primary.start()

    def wait_up(self):
        self.connect().close()

    def stop_fast(self):
        """Stop the primary as usual.

        Not while it recovers from a crash: if a fast stop is asked for
        between the end of recovery and the moment at which the postmaster
        notices that, PostgreSQL 15's waits for its checkpointer, and tells
        it nothing.
        """
        self.wait_up()
        self.primary.stop('fast')

    def make_standby(self):
        """Make the standby anew, from a copy of the primary."""
        new, primary = self.standby, self.primary
        shutil.rmtree(new.data, ignore_errors=True)
        self.ensure_primary()
        new.run('pg_basebackup', '-D', new.data, '-c', 'fast', '-X', 'stream',
                '--no-sync', '-d', primary.conninfo(dbname='postgres'))
        with open(os.path.join(new.data, 'standby.signal'), 'wb'):
            pass
        new.start(upstream=primary)

    def fail_over(self, how):
        """End the primary, promote the standby, and make a new standby.

        'how' is "kill", "immediate" or "fast".
        """
        if how == 'kill':
            self.primary.kill_all()
        elif how == 'immediate':
            self.primary.stop('immediate')
        else:
            self.stop_fast()
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        self.configure({})
        self.make_standby()
