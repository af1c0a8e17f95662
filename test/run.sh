#!/bin/bash
#
# run.sh [check|unit|regress|isolation|tap][:NAME,...]... [torture[:MINUTES]]: build
# the extension and test it.
#
# Without arguments all parts are run; names after a colon choose among the
# tests of a part:
#   check      no warning by gcc and clang; includes point one way
#   unit       test/unit: functions of the source, without a server
#   regress    test/sql against expected/, by pg_regress
#   isolation  test/specs against expected/, by pg_isolation_regress
#   tap        test/t, by PostgreSQL::Test::Cluster
#   torture    test/torture/run.sh, which counts as one test
# The last line is "N passed, N failed", before it "N skipped" if there are
# such; the exit status is 1 if anything failed.  See test/lib.sh for where the work is done and what is installed.
#
# The verdicts come from exit statuses.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

PASSED=0
FAILED=0
SKIPPED=0

# A test that waits longer than this for something fails, and so do tests that
# take some times as long together.
export PG_TEST_TIMEOUT_DEFAULT=${PG_TEST_TIMEOUT_DEFAULT:-90}

at_exit()
{
	# Left early: that is a failure, whatever was counted so far.
	if [ "$1" -ne 0 ] && [ "$FAILED" -eq 0 ]; then
		FAILED=1
	fi
	[ "$SKIPPED" -eq 0 ] || note "$SKIPPED skipped"
	printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
	[ "$FAILED" -eq 0 ] || exit 1
	exit 0
}

count() { PASSED=$((PASSED + $1)); FAILED=$((FAILED + $2)); }

# verdict NAME STATUS [LOG]: count one check, and show why it failed.
verdict()
{
	if [ "$2" -eq 0 ]; then
		note "ok      $1"
		count 1 0
	else
		note "FAILED  $1"
		[ -z "${3:-}" ] || tail -n 60 "$3"
		count 0 1
	fi
}

# The first lines of a file that is there, with a title.
show()
{
	[ -s "$1" ] || return 0
	note "---- ${1#"$WORK"/}"
	head -n "$2" "$1"
}

compile_with()
{
	local name=$1 status=0

	shift
	copy_source "$name"
	build "$name" "$@" || status=$?
	verdict "$name: no warnings" $status "$WORK/$name.log"
}

run_check()
{
	local status=0 clang

	compile_with compile_gcc CC=gcc COPT=-Werror
	# The flags that PostgreSQL was built with are gcc's; clang does not know
	# all of them.
	clang=$(command -v clang || compgen -c clang- | grep -E '^clang-[0-9]+$' |
		sort -V | tail -n 1) || true
	if [ -n "$clang" ]; then
		compile_with compile_clang CC="$clang" COPT="-Werror \
			-Wno-unknown-warning-option -Wno-ignored-optimization-argument \
			-Wno-ignored-attributes"
	else
		verdict "compile_clang: there is no clang" 1
	fi
	PG_CONFIG=$PGBIN/pg_config "$ROOT/test/check_includes.sh" >"$WORK/includes.log" || status=$?
	verdict "includes point one way" $status "$WORK/includes.log"
}

# A program in test/unit is compiled with the file of src/ that it names by
# "Runs the functions of", and counts as one test.
run_unit()
{
	local name file status includes

	includes="-I$ROOT/src -I$("$PGBIN/pg_config" --includedir-server)"
	as_pg mkdir "$WORK/unit"
	for name in $(names unit c "$1"); do
		status=0
		file=$(sed -n 's/.*Runs the functions of \([^ ]*\.c\).*/\1/p' \
			"$ROOT/test/unit/$name.c")
		# shellcheck disable=SC2086
		{
			cc -O2 -Wall -Werror $includes -o "$WORK/unit/$name" \
				"$ROOT/test/unit/$name.c" "$ROOT/$file" -lm &&
				"$WORK/unit/$name"
		} </dev/null >"$WORK/unit_$name.log" 2>&1 || status=$?
		verdict "$name" $status "$WORK/unit_$name.log"
	done
}

# run_pg_regress PART PROGRAM TEST...: the two programs take the same options.
run_pg_regress()
{
	local part=$1 program=$2 status=0 bad out

	shift 2
	[ $# -gt 0 ] || { note "no tests: $part"; return 0; }
	out=$WORK/$part
	as_pg mkdir "$out"
	as_pg timeout -k 20 $((PG_TEST_TIMEOUT_DEFAULT * 5)) "$program" --bindir="$PGBIN" --dlpath="$out" \
		--inputdir="$WORK/tested/test" --outputdir="$out" \
		--temp-instance="$out/instance" \
		--temp-config="$WORK/tested/test/extra.conf" \
		--encoding=UTF8 --no-locale "$@" \
		</dev/null >"$out.log" 2>&1 || status=$?
	grep -E '(^test |^ +[a-z].*\.\.\. |^(not )?ok )' "$out.log" || true
	if [ $status -eq 0 ]; then
		count $# 0
		return 0
	fi
	bad=$(grep -cE '\.\.\. FAILED|^not ok' "$out.log") || true
	[ "$bad" -gt 0 ] && [ "$bad" -le $# ] || bad=$#
	count $(($# - bad)) "$bad"
	note "FAILED  $part (exit status $status)"
	[ -s "$out/regression.diffs" ] || tail -n 20 "$out.log"
	show "$out/regression.diffs" 400
	grep -E 'PANIC|FATAL|TRAP|terminated by signal' \
		"$out/log/postmaster.log" 2>/dev/null | tail -n 20 || true
}

# names FOLDER SUFFIX [NAME,...]: the tests there, or those that were chosen.
names()
{
	if [ -n "$3" ]; then
		tr , '\n' <<<"$3"
	else
		(cd "$ROOT/test" && find "$1" -maxdepth 1 -name "*.$2" -printf '%f\n') |
			sed "s/\.$2\$//" | LC_ALL=C sort
	fi
}

run_regress()
{
	run_pg_regress regress "$PGREGRESS" $(names sql sql "$1")
}

run_isolation()
{
	run_pg_regress isolation \
		"${PGREGRESS%/regress/pg_regress}/isolation/pg_isolation_regress" \
		$(names specs spec "$1")
}

# with_small_disk COMMAND...: as as_pg does, with BATCHER_SMALL_DISK naming a
# folder on a small disk.  It is mounted where only the command and what that
# starts can see it, and is gone when they are.  Who may not mount one has to
# do without, unless the variable is set.
with_small_disk()
{
	local mount=(unshare --mount --propagation private sh -c \
		'mount -t tmpfs -o size=16m,mode=700,uid="$1" tmpfs small_disk &&
		shift && exec "$@"' sh "$(id -u postgres 2>/dev/null)")

	if [ -n "${BATCHER_SMALL_DISK:-}" ] || [ "$(id -u)" -ne 0 ]; then
		as_pg "$@"
		return
	fi
	mkdir "$WORK/small_disk"
	if ! (cd "$WORK" && "${mount[@]}" true) 2>/dev/null; then
		as_pg "$@"
		return
	fi
	(cd "$WORK" && "${mount[@]}" runuser -u postgres -- env HOME="$WORK" \
		BATCHER_SMALL_DISK="$WORK/small_disk" "$@")
}

run_tap()
{
	local files status=0 line

	files=$(names t pl "$1")
	[ -n "$files" ] || { note "no tests: tap"; return 0; }
	cat >"$WORK/harness.pl" <<'PERL'
# Runs TAP tests, and says at the end how many assertions passed and failed,
# and how many files were skipped, wholly or in part.  A file that ended badly
# without one that failed counts as one.
use strict;
use warnings;
use TAP::Harness;
my ($lib, $counts, @files) = @ARGV;
my $harness = TAP::Harness->new(
	{ jobs => 2, lib => [$lib], timer => 1, failures => 1 });
my $sum = $harness->runtests(map { [ "t/$_.pl", $_ ] } @files);
my ($passed, $failed, $skipped, @bad) = (0, 0, 0);
for my $name (sort @files)
{
	my ($p) = $sum->parsers($name);
	$passed += $p->actual_passed;
	$skipped++ if $p->skip_all || $p->skipped;
	my $n = $p->actual_failed;
	$n = 1 if !$n && $p->has_problems;
	$failed += $n;
	push @bad, $name if $n;
}
open my $out, '>', $counts or die "$counts: $!";
print $out "$passed $failed $skipped @bad\n";
close $out or die "$counts: $!";
exit($sum->all_passed ? 0 : 1);
PERL
	with_small_disk env -C "$WORK/tested/test" PATH="$PGBIN:$PATH" \
		TESTDIR="$WORK/tested/test" PG_REGRESS="$PGREGRESS" \
		TESTDATADIR="$WORK/tested/test/tmp_check" \
		TESTLOGDIR="$WORK/tested/test/tmp_check/log" \
		timeout -k 20 $((PG_TEST_TIMEOUT_DEFAULT * 12)) perl "$WORK/harness.pl" \
		"${PGREGRESS%/regress/pg_regress}/perl" "$WORK/tap_counts" $files \
		</dev/null 2>&1 || status=$?
	line=$(cat "$WORK/tap_counts" 2>/dev/null) || line="0 1 0"
	set -- $line
	count "$1" "$2"
	SKIPPED=$((SKIPPED + $3))
	[ $status -eq 0 ] || [ "$2" -gt 0 ] || count 0 1
	shift 3
	for line in "$@"; do
		note "---- log of t/$line.pl"
		grep -vE -e '^\[[^]]*\]\([0-9.]+s\) ok ' \
			-e '^#+ (Running|Starting|Stopping|(No p|P)ostmaster PID)' \
			-e '^(waiting for )?server (started|stopped|to )' \
			-e ' \.\.\. ok$|^(Success|Sync|performing|syncing)|pg_ctl -D|^$' \
			"$WORK/tested/test/tmp_check/log/regress_log_$line" 2>/dev/null |
			tail -n 60 || true
		grep -hE 'PANIC|TRAP|terminated by signal|could not|ERROR' \
			"$WORK/tested/test/tmp_check/log/${line}_"*.log 2>/dev/null |
			tail -n 20 || true
	done
	[ $status -eq 0 ] || note "FAILED  tap (exit status $status)"
}

# It has a private folder of its own, and tells there what it finds.
run_torture()
{
	local status=0

	"$ROOT/test/torture/run.sh" "${1:-1}" || status=$?
	verdict torture $status
}

[ $# -gt 0 ] || set -- check unit regress isolation tap torture
for part; do
	case ${part%%:*} in
		check|unit|regress|isolation|tap|torture) ;;
		*) die "unknown part \"$part\"" ;;
	esac
done

ensure_packages libipc-run-perl clang python3 python3-psycopg
prepare_work
prepare_postgres
for part; do
	if [[ ${part%%:*} != @(check|unit|torture) ]]; then
		copy_source tested
		build_and_install tested COPT="$TESTED_FLAGS"
		break
	fi
done
for part; do
	note "== $part"
	chosen=${part#"${part%%:*}"}
	"run_${part%%:*}" "${chosen#:}"
done
