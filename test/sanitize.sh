#!/bin/bash
#
# sanitize.sh [PART[:NAME,...]]... | fuzz[:INPUTS]: test the extension with
# sanitizers.
#
# Builds, once, a PostgreSQL with assertions, AddressSanitizer and
# UndefinedBehaviorSanitizer (see instrumented/build.sh), proves that it sees a
# read of memory that was given back and a shift too far, and runs test/run.sh
# with it and these arguments, or test/fuzz/run.sh.  The tests take a few times
# as long as otherwise.
#
# What the sanitizers and assertions complain of is shown at the end; the last
# line is reports=N.  The exit status is 1 if N is not 0 or a test failed.

set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/instrumented/watch.sh"

ensure_packages bzip2 libipc-run-perl
prepare_work
instrumented_postgres sanitize
watch_with_sanitizers
prepare_postgres
must_see freed 'heap-use-after-free|use-after-poison'
must_see shift 'runtime error: shift exponent'
# A parser that checks its memory takes long for long lists.
export FUZZ_HUGE=${FUZZ_HUGE:-100000}
case ${1:-} in
	fuzz) run_watched "$ROOT/test/fuzz/run.sh" ;;
	fuzz:*) run_watched "$ROOT/test/fuzz/run.sh" "${1#fuzz:}" ;;
	*) run_watched "$ROOT/test/run.sh" "$@" ;;
esac
