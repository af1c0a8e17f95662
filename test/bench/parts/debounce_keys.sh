# debounce_keys: the worker's CPU for a row, with few and with 100,000 timers
#
# BENCH_DEBOUNCE_ROWS: rows of a run.

DEBOUNCE_ROWS=${BENCH_DEBOUNCE_ROWS:-400000}

# CPU time of the process with this pid, in microseconds.
cpu_us()
{
	awk -v hz="$(getconf CLK_TCK)" '{ print int(($14 + $15) * 1000000 / hz) }' "/proc/$1/stat"
}

# Rows of so many keys, none of which is due before they have all come; sets
# CPU_ARRIVE and CPU_LEAVE, microseconds of the worker for a row: while rows
# come, and while their keys leave.
debounce_run()
{
	local keys=$1 pid before between after i

	perform "SELECT batch_create_queue('keys$keys', 'SELECT count(*) FROM batch',
		options => '{\"durable\": false, \"key_policy\": \"last\",
			\"debounce\": \"1 h\", \"max_wait\": \"1 h\"}')"
	perform "SELECT batch_enqueue('keys$keys', '1', 'k')"
	perform "SELECT batch_flush('keys$keys')"
	pid=$(query "SELECT worker_pid FROM batcher.status WHERE queue = 'keys$keys'")
	before=$(cpu_us "$pid")
	for ((i = 0; i < DEBOUNCE_ROWS; i += 10000)); do
		perform "SELECT batch_enqueue_many('keys$keys', array_agg(to_jsonb(g)),
			array_agg('key ' || (g::bigint * 7919) % $keys))
			FROM generate_series($i + 1, $i + 10000) g"
		# the worker looks at what has come
		perform "SELECT batch_enqueue('keys$keys', '1', 'k', immediate => true)"
	done
	while [ "$(query "SELECT timers FROM batcher.status WHERE queue = 'keys$keys'")" -lt "$keys" ]; do
		sleep 0.1
	done
	between=$(cpu_us "$pid")
	perform "SELECT batch_flush('keys$keys', '10 min')"
	after=$(cpu_us "$pid")
	CPU_ARRIVE=$(ratio "$((between - before))" "$DEBOUNCE_ROWS")
	CPU_LEAVE=$(ratio "$((after - between))" "$DEBOUNCE_ROWS")
	perform "SELECT batch_drop_queue('keys$keys', true)"
}

bench_debounce_keys()
{
	local few

	fresh_server
	debounce_run 1000
	few=$CPU_ARRIVE
	echo "debounce_arrive_us_1000_keys=$CPU_ARRIVE"
	echo "debounce_leave_us_1000_keys=$CPU_LEAVE"
	debounce_run 100000
	echo "debounce_arrive_us_100000_keys=$CPU_ARRIVE"
	echo "debounce_leave_us_100000_keys=$CPU_LEAVE"
	echo "# small: no look goes through all keys"
	echo "debounce_arrive_ratio=$(ratio "$CPU_ARRIVE" "$few")"
}
