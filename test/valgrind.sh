#!/bin/bash
#
# valgrind.sh [PART[:NAME,...]]...: test the extension with valgrind.
#
# Builds, once, a PostgreSQL with assertions that tells valgrind what its
# memory contexts do (see instrumented/build.sh), proves that it sees a read of
# memory that was given back and one of memory never written, and runs
# test/run.sh with it and these arguments, "regress" if there are none.  Each
# process of the server runs under valgrind; the tests take some thirty times as
# long as otherwise.
#
# BATCHER_VALGRIND  further options of valgrind, such as --track-origins=yes
#
# What valgrind and assertions complain of is shown at the end; the last line
# is reports=N.  The exit status is 1 if N is not 0 or a test failed.

set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/instrumented/watch.sh"

[ $# -gt 0 ] || set -- regress

ensure_packages bzip2 libipc-run-perl valgrind
prepare_work
instrumented_postgres valgrind
watch_with_valgrind
prepare_postgres
must_see freed 'Invalid read'
must_see unset 'depends on uninitialised value'
run_watched "$ROOT/test/run.sh" "$@"
