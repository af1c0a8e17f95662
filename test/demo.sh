#!/bin/bash
#
# demo.sh: what batcher is for, shown in about a minute.
#
# Runs pgbench's TPC-B-like transaction on a private server, as it is and with
# the updates of the hot rows enqueued, in turn; prints both throughputs; then
# checks that no cent was lost, and shows the messages that went out.  The
# exit status is 1 if a balance is wrong.  DEMO_SECONDS is the length of a run
# (10), DEMO_RUNS the number of runs of each kind (3).

set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/bench/tpcb.sh"

SECONDS_EACH=${DEMO_SECONDS:-10}
RUNS=${DEMO_RUNS:-3}
DB=demo

# A psql session that listens, and asks often what has come.
start_listener()
{
	as_pg touch "$WORK/listen"
	{
		echo 'LISTEN deltas;'
		while [ -e "$WORK/listen" ]; do
			sleep 0.2
			echo 'DO $$ BEGIN END $$;'
		done
	} | sql >"$WORK/messages" 2>&1 &
	LISTENER=$!
}

stop_listener()
{
	rm -f "$WORK/listen"
	wait "$LISTENER" || true
}

# The messages alone: psql says also who sent each.
messages()
{
	sed -n 's/^Asynchronous notification "deltas" with payload "\(.*\)" received from server process with PID [0-9]*\.$/\1/p' \
		"$WORK/messages"
}

# How many rows the messages speak of.
rows_announced()
{
	messages | sed -n 's/.*"count": *\([0-9]*\).*/\1/p' |
		awk '{ n += $1 } END { print n + 0 }'
}

note "batcher: many small writes in, few statements and messages out"
note
ensure_packages
note "Building the extension, and starting a private server with it ..."
prepare_work
prepare_postgres
copy_source demo
build_and_install demo
init_server data <<-CONF
	max_wal_size = 4GB
	checkpoint_timeout = 30min
CONF
start_server data
DB=postgres perform "CREATE DATABASE demo"
tpcb_set_up
start_listener

cat <<-TEXT

	The workload is that of pgbench, PostgreSQL's own benchmark: $TPCB_CLIENTS clients, each
	transaction changes the balance of an account, of a teller and of a branch,
	and writes a line of history.  There is one branch and ten tellers, so all
	clients queue for the same rows.

	plain    the transaction as it is
	batched  the changes of teller and branch are enqueued instead, with

	    $TPCB_ENQUEUE

	         which commits or rolls back with the transaction.  A background worker
	         takes what was committed, and applies the sums in one statement:
	$TPCB_FLUSH_SQL;

	Runs of $SECONDS_EACH s, in turn (the time of the last flush is counted in):

TEXT
plain=
batched=
for ((run = 1; run <= RUNS; run++)); do
	tpcb_run plain "$SECONDS_EACH"
	plain+=$TPCB_TPS$'\n'
	printf '    run %d   plain %6d transactions/s' "$run" "$TPCB_TPS"
	tpcb_run batched "$SECONDS_EACH"
	batched+=$TPCB_TPS$'\n'
	printf '   batched %6d transactions/s\n' "$TPCB_TPS"
done
plain=$(printf %s "$plain" | median)
batched=$(printf %s "$batched" | median)
printf '    median  plain %6.0f transactions/s   batched %6.0f transactions/s\n' \
	"$plain" "$batched"
note
note "    batched / plain = $(ratio "$batched" "$plain")"
note

# Each run ended with a flush; this one finds nothing, if that was right.
perform "SELECT batch_flush('deltas', '5 min')"
left=$(query "SELECT count(*) FROM batcher.pending")
flushed=$(query "SELECT rows_flushed FROM batcher.stat_queue WHERE queue = 'deltas'")
batches=$(query "SELECT batches FROM batcher.stat_queue WHERE queue = 'deltas'")

note "Is every balance what the history says?"
note
wrong=0
balances=$(tpcb_balances)
while IFS='|' read -r table sum history differing; do
	if [ "$sum" = "$history" ] && [ "$differing" -eq 0 ]; then
		verdict=exact
	else
		verdict="WRONG ($differing differ)"
		wrong=1
	fi
	printf '    %-9s sum of balances %12s   sum of history %12s   %s\n' \
		"$table" "$sum" "$history" "$verdict"
done <<<"$balances"
[ "$left" -eq 0 ] || { note "    $left rows were not flushed"; wrong=1; }
note

# A message follows the commit of its batch by a moment.
for ((i = 0; i < 50; i++)); do
	[ "$(rows_announced)" -lt "$flushed" ] || break
	sleep 0.2
done
stop_listener
note "A psql session that had said LISTEN received $(messages | wc -l) messages about $(rows_announced) rows"
note "($flushed rows were flushed, in $batches batches).  The first of them:"
note
messages | sed -n '1,3s/^/    /p'
note
if [ "$wrong" -eq 0 ] && [ "$(rows_announced)" -ne "$flushed" ]; then
	note "The messages do not speak of every row: that is an error."
	wrong=1
elif [ "$wrong" -eq 0 ]; then
	note "Nothing lost, nothing applied twice."
else
	note "Balances are wrong: that is an error."
fi
exit $wrong
