#!/bin/bash
#
# run.sh [INPUTS]: call everything that the extension has with careless and
# hostile values, 20,000 if not told.
#
# Whatever is given, a call must succeed or raise an error that has a proper
# SQLSTATE, and return; the server must not crash, and a row that is enqueued
# must be flushed.  Functions, options, settings and views are read from the
# server.  Two clients work in databases of different encodings.
#
# FUZZ_SEED       the same seed gives the same inputs; the time if not set
# FUZZ_HUGE       size of the largest values in bytes (2000000; at most 1000000000)
# FUZZ_PATIENCE   a call that waits for nothing returns in so many seconds (30)
# BATCHER_PREFIX  see test/README.md: assertions are worth having here
#
# Prints the findings, and then name=value: inputs, those that succeeded, the
# others by SQLSTATE, and how many findings of each kind there are.  The exit
# status is 1 if there is any.

set -euo pipefail
. "$(dirname "$0")/../lib.sh"

INPUTS=${1:-20000}
SEED=${FUZZ_SEED:-$(date +%s)}
PATIENCE=${FUZZ_PATIENCE:-30}
STATUS=0

# What the server's log must not have.  Our own errors bear a SQLSTATE.
WRONG=' (XX[0-9A-Z]{3}|58[0-9A-Z]{3}) (WARNING|ERROR|FATAL|LOG): | PANIC: |TRAP: '
WRONG+='|terminated by (signal|exception)|exited with exit code ([2-9]|1[0-9])'
WRONG+='| leak|problem in alloc set|detected write past chunk end'

ensure_packages
prepare_work
prepare_postgres
copy_source fuzz
build_and_install fuzz COPT=-Werror
init_server data <<-CONF
	max_worker_processes = 16
	max_prepared_transactions = 4
	fsync = off
	max_wal_size = 4GB
	deadlock_timeout = 100ms
	restart_after_crash = on
	log_line_prefix = '%m [%p] %b %e '
	log_error_verbosity = terse
	log_min_error_statement = panic
	batcher.shared_memory_size = 8MB
	batcher.max_queues = 256
	batcher.max_workers = 8
	batcher.enqueue_timeout = 20ms
	batcher.flush_interval = 10ms
CONF
start_server data
DB=postgres perform "CREATE ROLE fuzz_a; CREATE ROLE fuzz_b; CREATE ROLE fuzz_c"
for encoding in UTF8 SQL_ASCII; do
	DB=postgres perform "CREATE DATABASE ${encoding,,} ENCODING $encoding TEMPLATE template0"
	DB=${encoding,,} sql >/dev/null <<-SQL
		CREATE EXTENSION batcher;
		CREATE TYPE pair AS (a int, b int);
		GRANT CREATE ON SCHEMA public TO PUBLIC;
		GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC;
	SQL
done

note "seed=$SEED"
as_pg perl "$WORK/fuzz/test/fuzz/fuzz.pl" "$PGBIN/psql" "$SEED" "$INPUTS" \
	"${FUZZ_HUGE:-2000000}" utf8 sql_ascii </dev/null || STATUS=1
stop_server data || STATUS=1
# What cannot be read of what a restore has brought is a dead letter, and said:
# once for many, in the log.  If it never is, nobody has tried.
UNREADABLE=' XX001 (WARNING|LOG):  (queue .*: )?[0-9]+ tuples? of the spool cannot be read'
if grep -aE "$WRONG" "$WORK/data.log" |
	grep -avE "$UNREADABLE" >"$WORK/wrong"; then
	note "In the server's log:"
	cut -c 1-1000 "$WORK/wrong" | head -n 20
	STATUS=1
fi
note "wrong_log_lines=$(wc -l <"$WORK/wrong")"
unreadable=$(grep -acE ' batcher worker XX001 LOG:  queue .*: [0-9]+ tuples? of the spool ' \
	"$WORK/data.log") || true
note "unreadable_tuples=$unreadable"
if [ "$INPUTS" -ge 5000 ] && [ "$unreadable" -eq 0 ]; then
	note "No worker has read a tuple that a restore brought."
	STATUS=1
fi
exit $STATUS
