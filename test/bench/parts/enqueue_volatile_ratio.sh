# enqueue_volatile_ratio: an enqueue, not durable, to an empty C function

bench_enqueue_volatile_ratio()
{
	local clients run

	fresh_server
	perform "CREATE TABLE v (payload jsonb)"
	perform "SELECT batch_create_queue('paused',
		flush_sql => 'INSERT INTO v SELECT payload FROM batch',
		options => '{\"durable\": false}')"
	perform "SELECT batch_create_queue('busy',
		flush_sql => 'INSERT INTO v SELECT payload FROM batch',
		options => '{\"durable\": false}')"
	perform "SELECT batch_pause('paused')"
	script empty <<<"SELECT empty_enqueue('paused', :payload);"
	script paused <<<"SELECT batch_enqueue('paused', :payload);"
	script busy <<<"SELECT batch_enqueue('busy', :payload);"
	for clients in 32 1; do
		for ((run = 1; run <= RUNS; run++)); do
			add_tps empty_tps_$clients empty $clients
			add_tps paused_tps_$clients paused $clients
			perform "SELECT batch_purge('paused')"
			add_tps busy_tps_$clients busy $clients
			perform "SELECT batch_flush('busy', '5 min')"
			perform "TRUNCATE v"
		done
	done
	for clients in 32 1; do
		echo "empty_tps_$clients=$(middle empty_tps_$clients)"
		echo "enqueue_volatile_tps_paused_$clients=$(middle paused_tps_$clients)"
		echo "enqueue_volatile_tps_busy_$clients=$(middle busy_tps_$clients)"
	done
	echo "# at least 0.95 paused, 0.85 busy"
	for clients in 32 1; do
		echo "enqueue_volatile_ratio_paused_$clients=$(ratio \
			"$(middle paused_tps_$clients)" "$(middle empty_tps_$clients)")"
		echo "enqueue_volatile_ratio_busy_$clients=$(ratio \
			"$(middle busy_tps_$clients)" "$(middle empty_tps_$clients)")"
	done
}
