"""What the actors write down, outside the database.

A producer writes a line before it commits, and a line when it knows how that
ended.  A line is JSON: which transaction ("t"), when ("at"), and

    "begun"                             when the transaction began
    "rows": [[queue, id, key, n], ...]  what a commit will make visible
    "gone": [id, ...]                   rows that savepoints have taken back
    "witness": true                     the transaction says in the database
                                        that it was committed

or "end", one of ACKNOWLEDGED, ABORTED (an error or a rollback, whatever rows
there were have ids in "gone"), and UNKNOWN: the connection broke in the
commit; with the "ticket" of its only row, if known.  "said" is what batch_wait said of a row, which is counted.  The lines
survive their writer, but not the machine; nor need they.

A listener writes what it is told: "connected": true when it listens on a new
connection, "told": [id, ...] and "epoch" for a message of the queue that is
announced only, and "mark", a number that the checker has sent to it.

Findings of all actors go into one file: a kind, which becomes a number in
the result, a sentence, and how many of them it stands for.
"""

import json
import os
import time

ACKNOWLEDGED = 'acknowledged'
ABORTED = 'aborted'
UNKNOWN = 'unknown'


class Writer:
    """Appends lines to a file; complete lines only can be read."""

    def __init__(self, path):
        self.file = open(path, 'a', encoding='utf-8', buffering=1)

    def write(self, **line):
        self.file.write(json.dumps(dict(line, at=time.time())) + '\n')


class Reader:
    """Reads the lines that were appended since the last time."""

    def __init__(self, path):
        self.path = path
        self.offset = 0

    def read(self):
        with open(self.path, 'rb') as f:
            f.seek(self.offset)
            for line in f:
                if not line.endswith(b'\n'):
                    break
                self.offset += len(line)
                yield json.loads(line)


class Findings(Writer):
    """What is wrong.  Any process, any thread."""

    def __init__(self, folder):
        super().__init__(os.path.join(folder, 'findings'))

    def add(self, kind, text, count=1):
        self.write(kind=kind, text=text, count=count)
