# build.sh: a PostgreSQL that sees wrong uses of memory, made once.  Sourced by
# watch.sh.
#
# It is built from the upstream tarball of Debian's source package, which is
# found by the machine's own configuration of apt.  Debian's patches are left
# out: they would have it installed over the server's package.  What was built
# is kept in a folder, and built anew when the server's package, the compiler
# or the recipe has changed:
#
# BATCHER_CACHE   that folder (${XDG_CACHE_HOME:-/var/tmp}/batcher-cache)
#
# Two kinds, both with assertions:
#   sanitize   AddressSanitizer and UndefinedBehaviorSanitizer; what palloc has
#              not given out is poisoned (valgrind/memcheck.h)
#   valgrind   tells valgrind what palloc does; bin/postgres runs itself under
#              valgrind if BATCHER_REPORTS is set
#
# A process of either leaves a file in the folder BATCHER_REPORTS when it does
# something wrong.

# The folder into which the PostgreSQL of this kind belongs.
instrumented_prefix()
{
	local key cache=${BATCHER_CACHE:-${XDG_CACHE_HOME:-/var/tmp}/batcher-cache}

	key=$({ dpkg-query -W -f '${Version}\n' "postgresql-$PG_MAJOR"
			gcc --version | head -n 1
			cd "$ROOT/test/instrumented"
			cat build.sh postgres valgrind/*; } | sha256sum)
	printf '%s/%s-%s-%.12s\n' "$cache" "$1" "$PG_MAJOR" "$key"
}

# Fetch the source, and unpack it as $WORK/source.
fetch_source()
{
	local dir=$WORK/apt file from version apt

	as_pg mkdir -p "$dir/parts" "$dir/lists/partial" "$dir/archives/partial" \
		"$WORK/source"
	# The machine's sources, as sources of source packages.
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
		case $file in
			*.sources) from='s/^Types:.*/Types: deb-src/p;t;p' ;;
			*.list) from='s/^[[:space:]]*deb([[:space:]])/deb-src\1/p' ;;
			*) continue ;;
		esac
		[ ! -r "$file" ] || sed -nE "$from" "$file" |
			as_pg tee "$dir/parts/${file##*/}" >/dev/null
	done
	apt="-qq -o Dir::Etc::sourcelist=/dev/null
		-o Dir::Etc::sourceparts=$dir/parts -o Dir::State::lists=$dir/lists
		-o Dir::Cache=$dir -o Dir::Cache::archives=$dir/archives
		-o Acquire::Retries=3"
	# A source that has no source packages, or is away, need not be ours.
	as_pg apt-get $apt update </dev/null >"$WORK/apt.log" 2>&1 || true
	# What the newest list names is not always to be had.
	for version in $(as_pg apt-cache $apt showsrc "postgresql-$PG_MAJOR" \
		2>>"$WORK/apt.log" | sed -n 's/^Version: //p' | sort -rVu); do
		if as_pg env -C "$dir" apt-get $apt source --download-only \
			"postgresql-$PG_MAJOR=$version" </dev/null >>"$WORK/apt.log" 2>&1; then
			note "... from the source of $version"
			as_pg tar -C "$WORK/source" --strip-components=1 -xf \
				"$dir/postgresql-${PG_MAJOR}_${version%-*}.orig.tar.bz2"
			return 0
		fi
	done
	tail -n 20 "$WORK/apt.log" >&2
	die "could not get the source of postgresql-$PG_MAJOR"
}

# run_logged COMMAND...: as the owner of the private folder, in
# $WORK/build; die with the end of what it said if it fails.
run_logged()
{
	as_pg env -C "$WORK/build" "$@" </dev/null >>"$WORK/build.log" 2>&1 ||
		{ tail -n 40 "$WORK/build.log" >&2; die "PostgreSQL could not be built"; }
}

# Build a kind in $WORK/build, and install it below $WORK/stage.  The extension
# is built with the flags that configure gets, and without the others.
compile_postgres()
{
	local kind=$1 prefix=$2 flags="-O1 -g -fno-omit-frame-pointer" link= extra

	extra=-DUSE_VALGRIND
	if [ "$kind" = sanitize ]; then
		link="-fsanitize=address,undefined,float-cast-overflow"
		link+=" -fno-sanitize-recover=all"
		flags+=" $link"
		extra+=" -I$WORK/recipe/test/instrumented"
	fi
	copy_source recipe
	as_pg mkdir "$WORK/build"
	# What configure runs would be blamed for its leaks, and fail.
	export ASAN_OPTIONS=detect_leaks=0
	run_logged "$WORK/source/configure" -q --prefix="$prefix" \
		--enable-cassert --enable-debug --enable-tap-tests \
		--without-readline --without-zlib CFLAGS="$flags" LDFLAGS="$link"
	run_logged make -s -j"$(nproc)" COPT="$extra" world-bin
	run_logged make -s COPT="$extra" DESTDIR="$WORK/stage" install-world-bin
	as_pg cp "$WORK/source/src/tools/valgrind.supp" "$WORK/stage$prefix/share/"
	if [ "$kind" = valgrind ]; then
		as_pg mv "$WORK/stage$prefix/bin/postgres" \
			"$WORK/stage$prefix/bin/postgres.bin"
		as_pg cp "$WORK/recipe/test/instrumented/postgres" \
			"$WORK/stage$prefix/bin/postgres"
	fi
}

# instrumented_postgres KIND: set BATCHER_PREFIX to the PostgreSQL of this
# kind, which is built if it is not there.  After prepare_work.
instrumented_postgres()
{
	local kind=$1 prefix

	prefix=$(instrumented_prefix "$kind")
	mkdir -p "${prefix%/*}"
	[ -O "${prefix%/*}" ] ||
		die "\"${prefix%/*}\" is another user's: set BATCHER_CACHE"
	exec {lock}>"${prefix%/*}/lock"
	flock "$lock"
	if [ ! -d "$prefix" ]; then
		note "Building PostgreSQL to run with $kind, which takes some minutes ..."
		fetch_source
		compile_postgres "$kind" "$prefix"
		rm -rf --one-file-system "${prefix%/*}/$kind-$PG_MAJOR"-*
		(umask 022 && cp -r "$WORK/stage$prefix" "$prefix.new")
		mv "$prefix.new" "$prefix"
		rm -rf --one-file-system "$WORK/source" "$WORK/build" "$WORK/stage"
	fi
	exec {lock}>&-
	as_pg test -x "$prefix/bin/postgres" ||
		die "the user postgres cannot get at \"$prefix\": set BATCHER_CACHE"
	export BATCHER_PREFIX=$prefix BATCHER_REPORTS=$WORK/reports
	as_pg mkdir "$BATCHER_REPORTS"
}
