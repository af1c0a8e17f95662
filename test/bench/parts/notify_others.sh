# notify_others: how long the NOTIFY of other sessions waits while batches flush
#
# A transaction that notifies holds a lock of the whole server until its commit
# is on disk, and here each write to disk takes a millisecond more.  So what
# others wait for their turn says who holds that lock while he waits for the
# disk.  Measured by sessions that notify without waiting for the disk
# themselves, beside the same load: one that enqueues into a queue without
# messages, one into a queue with a message for each batch, and one that
# notifies in each of its transactions.

# others_while NAME SCRIPT: measure beside a load of 500 transactions a second
# by this script.
others_while()
{
	local load out

	pgbench_run "$2" -c 8 -j 1 -R 500 -T $((RUN_SECONDS + 1)) &
	load=$!
	as_pg mkdir -p "$WORK/latency"
	out=$(PGOPTIONS="-c synchronous_commit=off" as_pg "$PGBIN/pgbench" -n \
		-c 2 -j 1 -R 200 -T "$RUN_SECONDS" -l --log-prefix="$WORK/latency/log" \
		-f "$WORK/others.sql" -U postgres postgres </dev/null 2>&1) ||
		die "pgbench failed: $out"
	wait $load || { tail -n 20 "$WORK/pgbench.log" >&2; die "pgbench failed"; }
	# microseconds of each transaction, without what it was behind its schedule
	awk '{ print ($3 - $7) / 1000 }' "$WORK"/latency/log.* | sort -g |
		awk '{ v[NR] = $1 } END { print v[int(NR * 0.5) + 1], v[int(NR * 0.99) + 1] }' \
			>"$WORK/others"
	rm -rf "${WORK:?}/latency"
	read -r p50 p99 <"$WORK/others"
	add "p50_$1" "$p50"
	add "p99_$1" "$p99"
}

bench_notify_others()
{
	local run kind p50 p99

	as_pg gcc -shared -fPIC -O2 -Wall -o "$WORK/slow_sync.so" \
		"$WORK/bench/test/bench/slow_sync/slow_sync.c" -ldl
	LD_PRELOAD=$WORK/slow_sync.so SLOW_SYNC_US=1000 fresh_server
	sql >/dev/null <<-SQL
		CREATE TABLE n (payload jsonb);
		SELECT batch_create_queue('silent', options =>
			'{"flush_interval": "10 ms"}',
			flush_sql => 'INSERT INTO n SELECT payload FROM batch');
		SELECT batch_create_queue('telling', options =>
			'{"flush_interval": "10 ms", "notify_channel": "n"}',
			flush_sql => 'INSERT INTO n SELECT payload FROM batch');
	SQL
	script others <<<"NOTIFY others;"
	script silent <<<"SELECT batch_enqueue('silent', :payload);"
	script telling <<<"SELECT batch_enqueue('telling', :payload);"
	script notifying <<-'SQL'
		BEGIN;
		INSERT INTO n VALUES (:payload);
		NOTIFY n;
		COMMIT;
	SQL
	for ((run = 1; run <= RUNS; run++)); do
		for kind in silent telling notifying; do
			others_while $kind $kind
		done
	done
	for kind in silent telling notifying; do
		echo "notify_others_p50_ms_$kind=$(middle p50_$kind)"
		echo "notify_others_p99_ms_$kind=$(middle p99_$kind)"
	done
	echo "# about 1: messages of batches keep nobody waiting for the disk"
	echo "notify_others_ratio=$(ratio "$(middle p99_telling)" \
		"$(middle p99_silent)")"
}
