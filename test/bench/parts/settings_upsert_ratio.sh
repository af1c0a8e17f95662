# settings_upsert_ratio: 1,000 settings as one batch to as many single upserts
#
# M3.4, M5.10: settings (key, value, timestamp) that are written again and again.  One
# client in both cases: with a transaction for each setting, or with one that
# enqueues 1,000 and waits until they are in the table.

bench_settings_upsert_ratio()
{
	local run

	fresh_server
	sql >/dev/null <<-SQL
		CREATE TABLE settings (key text PRIMARY KEY, value text NOT NULL,
			at timestamptz NOT NULL);
		CREATE TABLE single (LIKE settings INCLUDING ALL);
		SELECT batch_create_queue('settings', target => 'settings', options =>
			'{"on_conflict": "update", "flush_interval": "10 ms", "max_batch_size": 1000}');
	SQL
	script single <<-'SQL'
		\set n random(1, 1000)
		INSERT INTO single VALUES ('setting ' || :n, 'value ' || random(), now())
		ON CONFLICT (key) DO UPDATE
			SET value = excluded.value, at = excluded.at;
	SQL
	script batched <<-'SQL'
		SELECT batch_enqueue_many('settings', array_agg(jsonb_build_object(
			'key', 'setting ' || n, 'value', 'value ' || random(),
			'at', now()))) FROM generate_series(1, 1000) AS n;
		SELECT batch_flush('settings');
	SQL
	for ((run = 1; run <= RUNS; run++)); do
		add_tps single_tps single 1
		add_tps batched_tps batched 1
		[ "$(query "SELECT count(*) FROM settings")" -eq 1000 ] ||
			die "a thousand settings were wanted"
		perform "VACUUM settings, single"
	done
	echo "upserts_per_s_single=$(middle single_tps)"
	echo "upserts_per_s_batched=$(awk -v t="$(middle batched_tps)" \
		'BEGIN { printf "%.0f", t * 1000 }')"
	echo "# at least 5"
	echo "settings_upsert_ratio=$(ratio "$(awk -v t="$(middle batched_tps)" \
		'BEGIN { print t * 1000 }')" "$(middle single_tps)")"
}
