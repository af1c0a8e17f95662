// listen.js MODULES CHANNEL...: a client that listens, in node-postgres, which
// is in the folder MODULES.  See listen.py; JavaScript measures lengths in
// UTF-8.

'use strict';

const path = require('path');
const zlib = require('zlib');

const CLIENT = 'node-postgres';
const [modules, ...channels] = process.argv.slice(2);
const { Client } = require(path.join(modules, 'pg'));

// The rows or events of a part.
function itemsOf(message) {
  for (const name of ['rows', 'events']) {
    if (name in message) {
      if (message.encoding === 'zlib') {
        const text = zlib.inflateSync(Buffer.from(message[name], 'base64'));
        return JSON.parse(text.toString('utf8'));
      }
      return message[name];
    }
  }
  return undefined;
}

async function main() {
  const last = new Map();
  const parts = new Map();
  const found = { compressed: 0, gaps: 0, incomplete: 0, longest: 0, singles: 0 };
  const received = [];
  const client = new Client({ host: process.env.PGHOST });

  await client.connect();
  const end = new Promise((resolve) => {
    client.on('notification', ({ channel, payload }) => {
      if (channel === 'the end') {
        resolve();
        return;
      }
      const message = JSON.parse(payload);
      const before = last.get(channel);
      if (before && (before.epoch !== message.epoch || before.seq !== message.seq - 1)) {
        found.gaps++;
      }
      last.set(channel, message);
      found.longest = Math.max(found.longest, Buffer.byteLength(payload));
      found.singles += message.count === 1;
      found.compressed += message.encoding === 'zlib';
      const batch = JSON.stringify([channel, message.queue, message.batch]);
      if (!parts.has(batch)) parts.set(batch, []);
      parts.get(batch)[message.part - 1] = itemsOf(message);
      if (parts.get(batch).filter(Boolean).length === message.parts) {
        for (const items of parts.get(batch)) {
          for (const item of items) received.push([channel, message.queue, item]);
        }
        parts.delete(batch);
      }
    });
  });
  for (const channel of [...channels, 'the end']) {
    await client.query(`LISTEN ${client.escapeIdentifier(channel)}`);
  }
  console.log('ready');
  await end;
  found.incomplete = parts.size;
  const pos = new Map();
  for (const [channel, queue, item] of received) {
    const list = JSON.stringify([queue, channel]);
    pos.set(list, (pos.get(list) || 0) + 1);
    await client.query('INSERT INTO received VALUES ($1, $2, $3, $4, $5)',
      [CLIENT, channel, queue, pos.get(list), JSON.stringify(item)]);
  }
  await client.end();
  console.log(Object.keys(found).sort().map((k) => `${k}=${found[k]}`).join(' '));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
