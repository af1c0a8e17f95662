#!/bin/bash
#
# run.sh [MINUTES]: torture batcher, for a minute if nothing else is said.
#
# Producers commit rows into several queues and roll others back, while server
# processes are killed, servers stopped and failed over, workers ended, locks
# held and statements made to fail, each kind once in a round of about six
# seconds.  After each round a checker compares what was acknowledged to the producers
# with what was flushed.  At the end numbers are printed as name=value: rows,
# faults by kind, and lost=, duplicated=, phantom=, reordered= and others that
# should be zero.  The exit status is 1 if one is not; then the folder stays.
#
# TORTURE_SEED makes a run repeatable: what the producers and the injector do
# is the same with the same seed, each on its own; how that falls together is
# up to the machine.  Without it a seed is made up, and printed.
#
# TORTURE_MAX_GAP, in seconds, makes a run fail in which a kind of fault was
# away for longer: on a machine that does nothing else, 10 can be kept.
#
# Processes are killed, not the machine, so fsync is off.

set -euo pipefail
. "$(dirname "$0")/../lib.sh"

MINUTES=${1:-1}
SEED=${TORTURE_SEED:-$RANDOM$RANDOM}

ensure_packages python3 python3-psycopg
prepare_work
prepare_postgres
copy_source tested
build_and_install tested COPT="$TESTED_FLAGS"
init_server one <<-CONF
	fsync = off
	max_connections = 60
	max_worker_processes = 16
	max_wal_senders = 10
	wal_keep_size = 256MB
	wal_retrieve_retry_interval = 100ms
	checkpoint_timeout = 30s
	checkpoint_completion_target = 0
	deadlock_timeout = 300ms
	log_line_prefix = '%m [%p] %b %e '
	batcher.shared_memory_size = 8MB
	batcher.shutdown_timeout = 700ms
	batcher.enqueue_timeout = 1s
	include_if_exists = 'torture.conf'
CONF
note "Torturing for $MINUTES min, TORTURE_SEED=$SEED, in $WORK ..."
status=0
as_pg /usr/bin/python3 -B "$WORK/tested/test/torture/torture.py" \
	--bin "$PGBIN" --folder "$WORK" --minutes "$MINUTES" --seed "$SEED" \
	--max-gap "${TORTURE_MAX_GAP:-0}" \
	</dev/null || status=$?
[ $status -eq 0 ] || BATCHER_KEEP=1
exit $status
