#!/bin/bash
#
# majors.sh [MAJOR...]: build the extension for other majors of PostgreSQL,
# test it there, and upgrade to them.
#
# For each major (17 and 18 without arguments) the packages of the Debian suite
# that has it are unpacked into a folder, from the mirror that this machine
# uses, and run.sh is run there, as in a machine of its own; the test of
# pg_upgrade upgrades from PG_MAJOR.  Nothing is installed here but what run.sh
# needs, too.  A major whose packages cannot be had is skipped, and counted as
# skipped.  Needs root.
#
# BATCHER_PARTS: arguments for run.sh, if not "regress isolation tap".
# The last line is "N passed, N failed", before it "N skipped" if there are such.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

PASSED=0
FAILED=0
SKIPPED=0
PARTS=${BATCHER_PARTS:-regress isolation tap}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# What run.sh needs, and what makes a machine of a folder.  No script of a
# package is run, so there is no user, no alternative, no cache of libraries.
PACKAGES="base-files base-passwd bash coreutils dash debianutils diffutils
	findutils gawk gcc grep gzip hostname libc-bin libc6-dev libipc-run-perl
	libpam-modules make mount perl procps sed tar tzdata util-linux
	zlib1g-dev"

at_exit()
{
	if [ "$1" -ne 0 ] && [ "$FAILED" -eq 0 ]; then
		FAILED=1
	fi
	[ "$SKIPPED" -eq 0 ] || note "$SKIPPED skipped"
	printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
	[ "$FAILED" -eq 0 ] || exit 1
	exit 0
}

skip() { note "skipped: $1"; SKIPPED=$((SKIPPED + 1)); }

# The suites that may have a major, the likeliest first.
suites_of()
{
	case $1 in
		15) echo bookworm ;;
		17) echo trixie ;;
		18) echo forky sid ;;
		*) echo sid experimental ;;
	esac
}

# write_sources SUITE: lines for apt, with the mirrors that it uses here.  Of a
# released suite the security updates too: what an update of the old major has
# written may need that of the new one.
write_sources()
{
	local suite=$1

	apt-get indextargets --format '$(LABEL) $(SITE)' 'Created-By: Packages' |
		sort -u |
		while read -r label site; do
			case $label/$suite in
				Debian/*) echo "$site $suite main" ;;
				Debian-Security/bookworm|Debian-Security/trixie)
					echo "$site $suite-security main" ;;
			esac
		done | sed "s|^|deb [signed-by=$KEYRING] |"
}

# apt_for FOLDER ARGUMENT...: apt-get, with all its state in a folder.
apt_for()
{
	local folder=$1

	shift
	apt-get -qq -o Dir::Etc::sourcelist="$folder/sources.list" \
		-o Dir::Etc::sourceparts=/dev/null \
		-o Dir::Etc::preferences=/dev/null \
		-o Dir::Etc::preferencesparts=/dev/null \
		-o Dir::State::lists="$folder/lists" \
		-o Dir::State::status=/dev/null -o Dir::Cache="$folder/cache" \
		-o APT::Install-Recommends=false -o APT::Sandbox::User=root \
		-o APT::Default-Release= "$@" </dev/null >>"$folder/log" 2>&1
}

# make_tree MAJOR SUITE TREE: unpack the packages; fails if they cannot be had.
make_tree()
{
	local major=$1 suite=$2 tree=$3 apt=$3.apt deb

	rm -rf --one-file-system "$tree" "$apt"
	mkdir -p "$tree" "$apt/lists/partial" "$apt/cache/archives/partial"
	write_sources "$suite" >"$apt/sources.list"
	apt_for "$apt" update || return 1
	# The headers alone: what they depend on is a compiler that is not used.
	apt_for "$apt" -y --download-only install "postgresql-$major" $PACKAGES &&
		(cd "$apt/cache/archives" &&
			apt_for "$apt" download "postgresql-server-dev-$major") || return 1
	# This one first: it has the links from /bin to /usr/bin and the like.
	for deb in "$apt"/cache/archives/base-files_*.deb \
		"$apt"/cache/archives/*.deb; do
		dpkg-deb -x "$deb" "$tree" || return 1
	done
	rm -rf "$apt"
	mkdir -p "$tree/tmp" "$tree/proc" "$tree/dev" "$tree/var/tmp"
	chmod 1777 "$tree/tmp" "$tree/var/tmp"
	printf '%s\n' root:x:0:0:root:/root:/bin/bash \
		postgres:x:101:104::/tmp:/bin/bash >"$tree/etc/passwd"
	printf '%s\n' root:x:0: postgres:x:104: >"$tree/etc/group"
	printf '%s required pam_permit.so\n' auth account session |
		tee "$tree/etc/pam.d/runuser" >"$tree/etc/pam.d/other"
	ln -sf gawk "$tree/usr/bin/awk"
	chroot "$tree" ldconfig
}

# in_tree TREE COMMAND...: run it in the folder as in a machine.  What is
# mounted for it is seen by nobody else, and gone with it.
in_tree()
{
	unshare --mount --pid --fork --propagation private bash -euc '
		tree=$1
		shift
		# its root is to be a mount point, too
		mount --bind "$tree" "$tree"
		cd "$tree"
		mount -t proc proc "$tree/proc"
		mount -t tmpfs -o mode=755 tmpfs "$tree/dev"
		for node in null:3 zero:5 random:8 urandom:9; do
			mknod -m 666 "$tree/dev/${node%:*}" c 1 "${node#*:}"
		done
		ln -s /proc/self/fd "$tree/dev/fd"
		mkdir -m 1777 "$tree/dev/shm"
		# not by exec: a shell reaps what its children leave behind
		chroot . /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 \
			PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"' - "$@"
}

# Put the installation of this machine's major into a folder, with the
# libraries that are not there.
add_old_installation()
{
	local tree=$1 lib

	mkdir "$tree/old"
	cp -r "$WORK/usr" "$tree/old/"
	# ldd fails for what is no program.
	{ find "$PGBIN" "${PGBIN%/bin}/lib" -type f \
		\( -perm -u+x -o -name '*.so' \) ! -name 'llvmjit*' \
		-exec ldd {} + 2>/dev/null || true; } |
		sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u |
		while read -r lib; do
			[ -e "$tree/$lib" ] || cp -L "$lib" "$tree/usr/${lib#/usr/}"
		done
	chroot "$tree" ldconfig
}

test_major()
{
	local major=$1 tree=$WORK/$1 suite found= status=0 line

	for suite in $(suites_of "$major"); do
		if make_tree "$major" "$suite" "$tree"; then
			found=$suite
			break
		fi
		tail -n 3 "$tree.apt/log" 2>/dev/null || true
	done
	if [ -z "$found" ]; then
		skip "PostgreSQL $major cannot be had today"
		return 0
	fi
	add_old_installation "$tree"
	mkdir "$tree/build"
	tar -C "$ROOT" --exclude=./.git -cf - . | tar -C "$tree/build" -xf -
	in_tree "$tree" BATCHER_PG_MAJOR="$major" BATCHER_NO_INSTALL=1 \
		BATCHER_OLD_PREFIX="/old/${PGBIN#"$WORK"/}/.." \
		/build/test/run.sh $PARTS 2>&1 | tee "$WORK/$major.out" || status=$?
	line=$(tail -n 1 "$WORK/$major.out")
	if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
		PASSED=$((PASSED + BASH_REMATCH[1]))
		FAILED=$((FAILED + BASH_REMATCH[2]))
	else
		status=1
	fi
	[ $status -eq 0 ] || [ "$FAILED" -gt 0 ] || FAILED=1
	line=$(grep -E '^[0-9]+ skipped$' "$WORK/$major.out") || line=0
	SKIPPED=$((SKIPPED + ${line% skipped}))
	rm -rf --one-file-system "$tree"
}

[ $# -gt 0 ] || set -- 17 18
if [ "$(id -u)" -ne 0 ]; then
	skip "needs root"
	exit 0
fi
ensure_packages libipc-run-perl
prepare_work
prepare_postgres
copy_source old
build_and_install old
for major; do
	note "== PostgreSQL $major"
	test_major "$major"
done
