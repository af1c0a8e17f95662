"""A listener: LISTENs to all channels, and believes no message.

A message must be valid JSON.  On one connection the numbers of a channel
grow by one as long as the epoch is the same.  A number of an epoch is never
used again, on any connection.

When a message arrives, the data of its batch must be there; and who gets the
next number of the same epoch must have missed nothing.  So the messages of a
queue must be, one by one, about the flushes that the table "flushed" shows
right after they arrived, in its order.  A message does not say which flush
it is about, but how many rows that had.  The listener begins with all places
that the first message may have in the list of flushes, and drops those that
do not go with what comes; after some messages one is left.  If none is, then
a message has come too early, or one was lost without a new epoch.
"""

import collections
import contextlib
import json
import select
import time

import psycopg

from workload import QUEUES

MARK = 'checker'            # the channel of the checker's numbers
CHANNELS = sorted({q.options['notify_channel'] for q in QUEUES.values()
                   if 'notify_channel' in q.options})

# So many flushes may have had their messages outstanding: where all have few
# rows, a listener is soon far behind.
OUTSTANDING = 1000
SHOWN = 20


class Course:
    """Where in the list of flushes the messages of a queue may be."""

    def __init__(self):
        self.flushes = []       # their rows
        self.pos = 0            # of the last one
        self.places = None      # of what the next message is about; None: any

    def anywhere(self):
        """The next message may be about any of the last flushes."""
        del self.flushes[:-OUTSTANDING]
        self.places = None

    def advance(self, count):
        """A message has come; returns whether that is possible."""
        before = self.places
        if before is None:
            before = range(len(self.flushes))
        self.places = {place + 1 for place in before
                       if self.flushes[place:place + 1] == [count]}
        return bool(self.places)


class Listener:
    def __init__(self, conninfo, findings, received, journal):
        self.conninfo = conninfo
        self.journal = journal
        self.findings = findings
        self.received = received        # number of messages, shared
        self.conn = None
        self.last = {}                  # of a channel: (epoch, seq)
        self.highest = {}               # of (channel, epoch): seq
        self.inbox = []                 # (queue, rows, text) to be followed
        self.courses = None             # of queues

    def run(self, control):
        while not control.stopped():
            try:
                if self.conn is None:
                    self.connect()
                if select.select([self.conn.fileno()], [], [], 0.1)[0]:
                    self.receive()
                    self.follow()
            except psycopg.Error:
                if self.conn is not None:
                    with contextlib.suppress(psycopg.Error):
                        self.conn.close()
                self.conn = None
                control.sleep(0.1)

    def connect(self):
        self.last = {}
        self.inbox = []
        self.courses = collections.defaultdict(Course)
        self.conn = psycopg.connect(self.conninfo, autocommit=True,
                                    prepare_threshold=None)
        self.conn.add_notify_handler(
            lambda notify: self.take(notify.channel, notify.payload))
        for channel in (*CHANNELS, MARK):
            self.conn.execute(f'LISTEN {channel}')
        # What was committed before need not be told.
        self.journal.write(connected=True)

    def receive(self):
        """What comes while no statement runs; else the handler is called."""
        self.conn.pgconn.consume_input()
        while (notify := self.conn.pgconn.notifies()) is not None:
            self.take(notify.relname.decode(), notify.extra.decode())

    def take(self, channel, text):
        if channel == MARK:
            self.journal.write(mark=int(text))
            return
        with self.received.get_lock():
            self.received.value += 1
        try:
            message = json.loads(text)
            epoch, seq = message['epoch'], message['seq']
            queue, count = message['queue'], message['count']
            part = message.get('part', 1)
            if queue == 'herald':
                self.journal.write(epoch=epoch, told=[
                    row['id'] for row in message['rows']])
            if QUEUES[queue].options['notify_channel'] != channel:
                raise ValueError('it is not of this channel')
        except (ValueError, KeyError, TypeError) as e:
            self.findings.add('malformed', f'channel "{channel}": {text}: {e}')
            return
        before = self.last.get(channel)
        if before and before[0] == epoch and seq != before[1] + 1:
            self.findings.add('gaps', f'channel "{channel}": after {before[1]}'
                              f' of its epoch comes {text}')
        elif seq <= self.highest.get((channel, epoch), 0):
            self.findings.add('gaps', f'channel "{channel}": a number comes'
                              f' again in {text}')
        if before and before[0] != epoch:
            self.inbox += [(q.name, None, None) for q in QUEUES.values()
                           if q.options.get('notify_channel') == channel]
        self.last[channel] = epoch, seq
        self.highest[channel, epoch] = seq
        # The parts of a message say the same of the flush.
        if part == 1:
            self.inbox.append((queue, count, text))

    def follow(self):
        """Do the messages that came go with the flushes that one can see?"""
        inbox, self.inbox = self.inbox, []
        for queue in {queue for queue, _, _ in inbox}:
            if not QUEUES[queue].has_statement:
                continue
            course = self.courses[queue]
            # Where rows fail, one flush executes its statement several times.
            rows = self.conn.execute(
                'SELECT max(pos), sum(rows)::bigint FROM torture.flushed'
                ' WHERE queue = %s AND pos > %s'
                ' GROUP BY transaction ORDER BY max(pos) DESC'
                + f' LIMIT {OUTSTANDING}' * (course.pos == 0),
                (queue, course.pos)).fetchall()
            course.flushes += [n for _, n in reversed(rows)]
            course.pos = rows[0][0] if rows else course.pos
            for count, text in (m[1:] for m in inbox if m[0] == queue):
                if count is None:
                    course.anywhere()
                elif not course.advance(count):
                    self.findings.add(
                        'out_of_step', f'{text} is not about the flush that'
                        ' comes next: the last ones had'
                        f' {course.flushes[-SHOWN:]} rows')
                    course.anywhere()
