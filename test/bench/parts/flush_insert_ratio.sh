# flush_insert_ratio: flushing waiting rows to one INSERT ... SELECT
#
# BENCH_FLUSH_ROWS: rows that a measured flush finds waiting.

FLUSH_ROWS=${BENCH_FLUSH_ROWS:-200000}

# The target is a table as people have them: columns and a primary key.
FLUSH_COLUMNS="SELECT (payload->>'id')::int, payload->>'user', payload->>'note'"

# measure_flush NAME QUEUE PER WANTED: one kind.  By the clock, and, because
# that is noisy where the disk or the processors are shared, by the time on a
# CPU too.
measure_flush()
{
	local name=$1 queue=$2 per=$3 run rows pid

	for ((run = 1; run <= RUNS; run++)); do
		perform "TRUNCATE f, g"
		# Here, and not between enqueuing and flushing: rows wait for moments as
		# a rule, so the flush seldom is the first to change a page of the spool.
		perform "CHECKPOINT"
		perform "SELECT batch_pause('$queue')"
		enqueue_rows "$queue" "$FLUSH_ROWS" "$per"
		rows=$(query "SELECT pending FROM batcher.status WHERE queue = '$queue'")
		pid=$(query "SELECT pid FROM batcher.worker WHERE database = 'postgres'
			ORDER BY worker.queue = '$queue' DESC NULLS LAST LIMIT 1")
		measure "$pid" "SELECT batch_resume('$queue');
			SELECT batch_flush('$queue', '10 min');"
		[ "$(query "SELECT count(*) FROM f")" -eq "$rows" ] ||
			die "$name: $rows rows waited, but table f has another number"
		add "${name}_flush" "$(ratio "$rows" "$WALL")"
		add "${name}_flush_cpu" "$(ratio "$rows" "$CPU")"
		measure "" "INSERT INTO g (id, person, note) $FLUSH_COLUMNS FROM source;"
		add "${name}_insert" "$(ratio "$FLUSH_ROWS" "$WALL")"
		add "${name}_insert_cpu" "$(ratio "$FLUSH_ROWS" "$CPU")"
	done
	echo "flush_rows_per_s_$name=$(middle "${name}_flush")"
	echo "insert_rows_per_s_$name=$(middle "${name}_insert")"
	echo "flush_rows_spilled_$name=$(query "SELECT rows_spilled
		FROM batcher.stat_queue WHERE queue = '$queue'")"
	echo "# at least $4"
	echo "flush_insert_ratio_$name=$(ratio \
		"$(middle "${name}_flush")" "$(middle "${name}_insert")")"
	echo "flush_insert_cpu_ratio_$name=$(ratio \
		"$(middle "${name}_flush_cpu")" "$(middle "${name}_insert_cpu")")"
}

bench_flush_insert_ratio()
{
	fresh_server
	sql >/dev/null <<-SQL
		CREATE TABLE f (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
			id int, person text, note text);
		CREATE TABLE g (LIKE f INCLUDING ALL);
		CREATE TABLE source AS SELECT '$PAYLOAD'::jsonb AS payload
		FROM generate_series(1, $FLUSH_ROWS);
		VACUUM ANALYZE source;
		SELECT batch_create_queue('durable',
			flush_sql => \$\$INSERT INTO f (id, person, note) $FLUSH_COLUMNS FROM batch\$\$,
			options => '{"max_batch_size": 1000}');
		SELECT batch_create_queue('volatile',
			flush_sql => \$\$INSERT INTO f (id, person, note) $FLUSH_COLUMNS FROM batch\$\$,
			options => '{"max_batch_size": 1000, "durable": false}');
	SQL
	measure_flush durable_1000 durable 1000 0.9
	measure_flush volatile_1 volatile 1 0.9
	measure_flush durable_1 durable 1 0.5
}
