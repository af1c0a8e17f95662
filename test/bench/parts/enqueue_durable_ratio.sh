# enqueue_durable_ratio: an enqueue, durable, to the least durable writes

bench_enqueue_durable_ratio()
{
	local run pid before rows

	fresh_server
	perform "CREATE TABLE d (payload jsonb)"
	perform "CREATE TABLE plain (payload jsonb)"
	perform "SELECT batch_create_queue('durable',
		flush_sql => 'INSERT INTO d SELECT payload FROM batch')"
	script message <<<"SELECT pg_logical_emit_message(true, 'p', :payload::text);"
	script insert <<<"INSERT INTO plain VALUES (:payload);"
	script durable <<<"SELECT batch_enqueue('durable', :payload);"
	for ((run = 1; run <= RUNS; run++)); do
		add_tps_cpu message message 32
		add_tps_cpu insert insert 32
		pid=$(query "SELECT pid FROM batcher.worker WHERE database = 'postgres'
			LIMIT 1")
		before=$(cpu_seconds "$pid")
		add_tps_cpu durable durable 32
		perform "SELECT batch_flush('durable', '5 min')"
		rows=$(query "SELECT count(*) FROM d")
		add worker_cpu "$(awk -v b="$before" -v a="$(cpu_seconds "$pid")" \
			-v n="$rows" 'BEGIN { printf "%.2f", (a - b) * 1e6 / n }')"
		perform "TRUNCATE d, plain"
	done
	echo "message_tps=$(middle message_tps)"
	echo "insert_tps=$(middle insert_tps)"
	echo "enqueue_durable_tps=$(middle durable_tps)"
	echo "# at least 0.95 to a message, 1.0 to an insert"
	echo "enqueue_durable_ratio_message=$(ratio \
		"$(middle durable_tps)" "$(middle message_tps)")"
	echo "enqueue_durable_ratio_insert=$(ratio \
		"$(middle durable_tps)" "$(middle insert_tps)")"
	echo "message_cpu_us=$(middle message_cpu)"
	echo "insert_cpu_us=$(middle insert_cpu)"
	echo "enqueue_durable_cpu_us=$(middle durable_cpu)"
	echo "enqueue_durable_worker_cpu_us=$(middle worker_cpu)"
}
