# notify_end_to_end: rows and events arriving at 20 listeners, batched or not
#
# M4.7: the throughput of events, batched and one at a time.
#
# 32 sessions have a row and an event in each transaction, which waits for the
# disk: as INSERT and NOTIFY, or as one enqueue into a queue that inserts and
# sends the rows, with a window of 10 ms, durable or not.  What counts is how
# many events a second arrive at the slowest listener.
#
# BENCH_LISTENERS  sessions that listen (20)

# build_listener: make the client of the benchmarks of messages.
build_listener()
{
	as_pg gcc -O2 -Wall -I"$("$PGBIN/pg_config" --includedir)" \
		-o "$WORK/listener" "$WORK/bench/test/bench/listener/listener.c" \
		-L"$("$PGBIN/pg_config" --libdir)" -lpq ||
		die "the listener could not be built"
}

# end_to_end NAME SCRIPT: one run.
end_to_end()
{
	local listener i

	PGUSER=postgres PGDATABASE=postgres as_pg "$WORK/listener" count e \
		"${BENCH_LISTENERS:-20}" '"user":' </dev/null >"$WORK/heard" 2>&1 &
	listener=$!
	for ((i = 0; i < 600; i++)); do
		! grep -q ready "$WORK/heard" 2>/dev/null || break
		sleep 0.1
	done
	pgbench_must "$2" -c 32 -j 2 -T "$RUN_SECONDS"
	perform "SELECT batch_flush()"
	perform 'NOTIFY "end"'
	wait $listener || die "$(cat "$WORK/heard")"
	add "$1" "$(awk 'END { printf "%.1f", ($2 > 0 ? $1 / $2 : 0) }' "$WORK/heard")"
	perform "TRUNCATE n"
}

bench_notify_end_to_end()
{
	local run kind

	fresh_server "batcher.max_batch_size = 5000"
	build_listener
	sql >/dev/null <<-SQL
		CREATE TABLE n (payload jsonb);
		SELECT batch_create_queue(q, options => jsonb_build_object(
				'flush_interval', '10 ms', 'durable', q = 'durable',
				'notify_channel', 'e', 'notify_format', 'rows'),
			flush_sql => 'INSERT INTO n SELECT payload FROM batch')
		FROM unnest('{durable,volatile}'::text[]) q;
	SQL
	script single <<-'SQL'
		BEGIN;
		INSERT INTO n VALUES (:payload);
		SELECT pg_notify('e', :payload || :client_id || random()::text);
		COMMIT;
	SQL
	for kind in durable volatile; do
		script $kind <<<"SELECT batch_enqueue('$kind', :payload);"
	done
	for ((run = 1; run <= RUNS; run++)); do
		for kind in single durable volatile; do
			end_to_end "end_to_end_$kind" $kind
		done
	done
	for kind in single durable volatile; do
		echo "notify_rows_per_s_$kind=$(middle end_to_end_$kind)"
	done
	echo "# at least 5 durable, 12 not durable"
	for kind in durable volatile; do
		echo "notify_end_to_end_ratio_$kind=$(ratio \
			"$(middle end_to_end_$kind)" "$(middle end_to_end_single)")"
	done
}
