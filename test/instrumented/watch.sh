# watch.sh: running things with an instrumented PostgreSQL.  Source it after
# lib.sh; build.sh tells what such a PostgreSQL is.

. "$ROOT/test/instrumented/build.sh"

# What a process needs to tell the sanitizers.  Leaks are not looked for: a
# server's processes free their memory by ending.  PostgreSQL measures the depth
# of its stack, so that has to be in one piece.
watch_with_sanitizers()
{
	export ASAN_OPTIONS="log_path=$BATCHER_REPORTS/asan:detect_leaks=0"
	ASAN_OPTIONS+=":abort_on_error=1:detect_stack_use_after_return=0"
	ASAN_OPTIONS+=":allocator_may_return_null=1:quarantine_size_mb=16"
	export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1
	be_patient 360
}

watch_with_valgrind()
{
	as_pg tee "$WORK/valgrind.supp" >/dev/null \
		<"$ROOT/test/instrumented/valgrind.supp"
	export BATCHER_VALGRIND="--suppressions=$WORK/valgrind.supp ${BATCHER_VALGRIND:-}"
	be_patient 1800
}

# Everything is slower: wait up to so many seconds for what a test waits for.
be_patient()
{
	export PG_TEST_TIMEOUT_DEFAULT=${PG_TEST_TIMEOUT_DEFAULT:-$1}
	export PGCTLTIMEOUT=$PG_TEST_TIMEOUT_DEFAULT
	export FUZZ_PATIENCE=${FUZZ_PATIENCE:-$PG_TEST_TIMEOUT_DEFAULT}
}

# complaints PLACE: the names of the files that tell of something wrong: what
# processes have left, and logs in this file or folder.
complaints()
{
	find "$BATCHER_REPORTS" -type f -size +0
	grep -rlE --include='*.log' 'runtime error: |AddressSanitizer|TRAP: ' "$1" ||
		true
}

# must_see NAME PATTERN: die unless a server in which instrumented/NAME.c does
# something wrong is complained of in words that match PATTERN.
must_see()
{
	if [ ! -d "$WORK/wrong" ]; then
		copy_source wrong
		build_and_install wrong/test/instrumented
		init_server proof <<<"shared_preload_libraries = ''"
	fi
	as_pg rm -f "$WORK/proof.log"
	start_server proof
	query "LOAD '$1'" >/dev/null 2>&1 || true
	as_pg "$PGBIN/pg_ctl" -D "$WORK/proof" -m immediate -w stop \
		</dev/null >/dev/null
	complaints "$WORK/proof.log" | xargs -r grep -qE "$2" ||
		die "what instrumented/$1.c does wrong is not seen"
	find "$BATCHER_REPORTS" -type f -delete
}

# run_watched COMMAND...: run it with the instrumented PostgreSQL; exit with 1
# if it fails, or if anything was complained of.
run_watched()
{
	local status=0 file n=0

	as_pg mkdir "$WORK/run"
	BATCHER_TMP=$WORK/run BATCHER_KEEP=1 "$@" || status=1
	while read -r file; do
		n=$((n + 1))
		[ $n -le 10 ] || continue
		note "---- ${file#"$WORK"/}"
		grep -E -A 60 -m 1 'AddressSanitizer|runtime error: |TRAP: |BEGIN' "$file" ||
			head -n 60 "$file"
	done < <(complaints "$WORK/run")
	note "reports=$n"
	[ $n -eq 0 ] || status=1
	exit $status
}
