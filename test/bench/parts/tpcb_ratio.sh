# tpcb_ratio: pgbench's transaction with and without a queue

bench_tpcb_ratio()
{
	local run bad

	fresh_server "batcher.shared_memory_size = 64MB"
	DB=tpcb
	DB=postgres perform "CREATE DATABASE tpcb"
	tpcb_set_up
	for ((run = 1; run <= RUNS; run++)); do
		tpcb_run plain "$RUN_SECONDS"
		add tpcb_plain "$TPCB_TPS"
		tpcb_run batched "$RUN_SECONDS"
		add tpcb_batched "$TPCB_TPS"
	done
	bad=$(tpcb_balances | awk -F'|' '$2 != $3 || $4 != 0' | wc -l)
	echo "tpcb_plain_tps=$(middle tpcb_plain)"
	echo "tpcb_batched_tps=$(middle tpcb_batched)"
	echo "tpcb_wrong_tables=$bad"
	echo "# at least 3"
	echo "tpcb_ratio=$(ratio "$(middle tpcb_batched)" "$(middle tpcb_plain)")"
}
