/*
 * slow_sync.c
 *	  Makes every fsync and fdatasync take SLOW_SYNC_US microseconds more.
 *
 * Preloaded into a server (LD_PRELOAD), it shows what waits for the disk on a
 * machine whose disk hardly makes anybody wait.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

typedef int (*sync_function) (int);

static int
slowly(const char *name, int fd)
{
	const char *us = getenv("SLOW_SYNC_US");
	sync_function sync = (sync_function) dlsym(RTLD_NEXT, name);

	if (us)
		usleep(atoi(us));
	return sync(fd);
}

int
fsync(int fd)
{
	return slowly("fsync", fd);
}

int
fdatasync(int fd)
{
	return slowly("fdatasync", fd);
}
