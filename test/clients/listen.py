#!/usr/bin/python3
"""listen.py ENCODING CHANNEL...: a client that listens, in psycopg 3.

Takes messages until one comes on the channel "the end", puts parts together,
and writes what it has got into the table received.  ENCODING is Python's name
of the server's encoding, in which lengths are measured.  Connects by libpq's
environment, tells that it listens with the line "ready", and at the end what
it has noticed.  listen.js does the same in node-postgres.
"""

import base64
import json
import sys
import zlib

import psycopg
from psycopg import sql

CLIENT = "psycopg"


def items_of(message):
    """The rows or events of a part; None: it has no such list."""
    for name in ("rows", "events"):
        if name in message:
            if message.get("encoding") == "zlib":
                text = zlib.decompress(base64.b64decode(message[name]))
                return json.loads(text.decode("utf-8"))
            return message[name]
    return None


def main():
    encoding, channels = sys.argv[1], sys.argv[2:]
    last = {}
    parts = {}
    found = {"gaps": 0, "longest": 0, "singles": 0, "compressed": 0}
    received = []

    with psycopg.connect(autocommit=True) as conn:
        for channel in channels + ["the end"]:
            conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        print("ready", flush=True)
        for notify in conn.notifies():
            if notify.channel == "the end":
                break
            message = json.loads(notify.payload)
            before = last.get(notify.channel)
            if before and before != (message["epoch"], message["seq"] - 1):
                found["gaps"] += 1
            last[notify.channel] = (message["epoch"], message["seq"])
            length = len(notify.payload.encode(encoding))
            found["longest"] = max(found["longest"], length)
            found["singles"] += message["count"] == 1
            found["compressed"] += message.get("encoding") == "zlib"
            batch = (notify.channel, message["queue"], message["batch"])
            parts.setdefault(batch, {})[message["part"]] = items_of(message)
            if len(parts[batch]) == message["parts"]:
                for part in range(1, message["parts"] + 1):
                    for item in parts[batch][part]:
                        received.append((batch[0], batch[1], item))
                del parts[batch]
    found["incomplete"] = len(parts)
    with psycopg.connect(autocommit=True) as conn:
        pos = {}
        for channel, queue, item in received:
            pos[queue, channel] = pos.get((queue, channel), 0) + 1
            conn.execute("INSERT INTO received VALUES (%s, %s, %s, %s, %s)",
                         (CLIENT, channel, queue, pos[queue, channel],
                          json.dumps(item, ensure_ascii=False)))
    print(" ".join(f"{k}={found[k]}" for k in sorted(found)), flush=True)


main()
