# notify_latency: milliseconds from a commit to the message in a client
#
# With a window of 10 ms, and for an immediate row, when little else is going
# on: one session enqueues, another waits for the message, then there is a
# pause of up to 20 ms.
#
# BENCH_SAMPLES  how often (500)

# latency NAME STATEMENT: measure it once.
latency()
{
	local out

	out=$(PGUSER=postgres PGDATABASE=postgres as_pg "$WORK/listener" wait l \
		"${BENCH_SAMPLES:-500}" "$2" </dev/null) || die "the listener failed"
	read -r p50 p99 <<<"${out#*$'\n'}"
	add "latency_p50_$1" "$p50"
	add "latency_p99_$1" "$p99"
}

bench_notify_latency()
{
	local run kind p50 p99

	. "$PARTS/notify_end_to_end.sh"
	fresh_server
	build_listener
	sql >/dev/null <<-SQL
		CREATE TABLE n (payload jsonb);
		SELECT batch_create_queue('l', options => '{"flush_interval": "10 ms",
				"notify_channel": "l", "notify_format": "rows"}',
			flush_sql => 'INSERT INTO n SELECT payload FROM batch');
	SQL
	for ((run = 1; run <= RUNS; run++)); do
		latency window "SELECT batch_enqueue('l', '$PAYLOAD')"
		latency immediate "SELECT batch_enqueue('l', '$PAYLOAD', immediate => true)"
	done
	echo "# at most 11 and 15"
	echo "notify_latency_p50_ms_window=$(middle latency_p50_window)"
	echo "notify_latency_p99_ms_window=$(middle latency_p99_window)"
	echo "# p99 at most 3"
	echo "notify_latency_p50_ms_immediate=$(middle latency_p50_immediate)"
	echo "notify_latency_p99_ms_immediate=$(middle latency_p99_immediate)"
}
