#!/bin/bash
#
# check_includes.sh [SRC]: do the rooms of src/ depend on each other only as
# src/README.md says?  Prints what does not, and exits with 1 if anything.
#
# Dependencies point one way:
#   batcher.c -> worker, monitor (-> enqueue), enqueue -> feed -> batch
#             -> catalog -> queue -> shmem -> base
# where enqueue and batch never meet.  Some server headers are for certain
# rooms only.

set -euo pipefail
SRC=${1:-$(dirname "$0")/../src}
cd "$SRC"
BAD=0

complain() { printf '%s\n' "$*"; BAD=1; }

# What a room may include besides itself.
allowed()
{
	case $1 in
		base) ;;
		shmem) echo base ;;
		queue) echo shmem base ;;
		catalog) echo queue shmem base ;;
		batch) echo catalog queue shmem base ;;
		feed) echo batch catalog queue shmem base ;;
		enqueue) echo feed catalog queue shmem base ;;
		monitor) echo enqueue feed batch catalog queue shmem base ;;
		worker) echo feed batch catalog queue shmem base ;;
		.) echo worker monitor enqueue feed batch catalog queue shmem base ;;
		batchctl) ;;
		*) return 1 ;;
	esac
}

# only WHAT PATTERN FILES: lines that match an extended regular expression may
# stand in files whose path matches the glob FILES only.
only()
{
	local what=$1 pattern=$2 glob=$3 hit

	while IFS= read -r hit; do
		# shellcheck disable=SC2053
		[[ ${hit%%:*} == $glob ]] || complain "$hit: $what"
	done < <(grep -rnE --include='*.[ch]' "$pattern" . | sed 's,^\./,,')
}

while IFS=: read -r file line text; do
	file=${file#./}
	path=$(sed -E 's/^[^"]*"([^"]*)".*/\1/' <<<"$text")
	room=$(dirname "$file")
	case $path in
		*..*)
			complain "$file:$line: an include goes upwards: \"$path\""
			continue ;;
	esac
	if [ ! -f "$path" ]; then
		# Ours by the bare name?
		if [ "$room" != . ] && [ -f "$room/$path" ]; then
			complain "$file:$line: write \"$room/$path\", not \"$path\""
		fi
		continue				# the server's
	fi
	target=$(dirname "$path")
	[ "$room" != "$target" ] || continue
	if ! may=$(allowed "$room"); then
		complain "$file:$line: nobody knows the room \"$room\""
		continue
	fi
	[[ " $may " == *" $target "* ]] ||
		complain "$file:$line: $room must not include $target"
done < <(grep -rnE --include='*.[ch]' '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' .)

only "only shmem lays out shared memory" \
	'\<(ShmemInitStruct|ShmemInitHash)[[:space:]]*\(' 'shmem/*'
only "only catalog and batch/statement.h use SPI" \
	'#[[:space:]]*include[[:space:]]*"executor/spi(_priv)?\.h"' \
	'@(catalog/*|batch/statement.h)'
only "only worker touches background workers" \
	'#[[:space:]]*include[[:space:]]*"postmaster/bgworker(_internals)?\.h"' \
	'worker/*'
only "only base/compat.h tests the server's version" \
	'\<PG_VERSION_NUM\>|\<PG_MAJORVERSION_NUM\>' 'base/compat.h'

# A server header that includes a name which we use too would get ours.
if server=$(${PG_CONFIG:-pg_config} --includedir-server 2>/dev/null); then
	while IFS= read -r path; do
		path=${path#./}
		[ -f "$server/$path" ] || continue
		if grep -rqF "#include \"$path\"" "$server"; then
			complain "$path: a server header that others include has this name"
		fi
	done < <(find . -mindepth 2 -name '*.h')
fi
exit $BAD
