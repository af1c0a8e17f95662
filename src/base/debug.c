/*
 * debug.c
 *	  Named points at which a test makes a process wait, fail or die.
 *
 * The setting batcher.debug_points is a comma-separated list of name=action.
 * Actions: 'wait' (until the file batcher_debug_NAME.go appears in the data
 * directory, which it takes away; batcher_debug_NAME.waiting is there while
 * it waits; nobody begins to wait while the file batcher_debug.off is there,
 * because a process may meet a point once more before it rereads its settings),
 * 'kill' (SIGKILL to this process), 'crash' (SIGSEGV), 'error' (an
 * ERROR, SQLSTATE XX000), 'fatal' (a FATAL).  Critical places cannot take an
 * ERROR: a test names only those that can.  Files rather than locks, because
 * several points lie where no lock may be taken.  For a limit the action is a
 * number.  Any process.
 */
#include "postgres.h"

#ifdef BATCHER_DEBUG_POINTS

#include <signal.h>
#include <unistd.h>

#include "base/debug.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/guc.h"

static char *debug_points = NULL;

void
batcher_debug_define(void)
{
	DefineCustomStringVariable("batcher.debug_points",
							   "Arms named points of the code, for tests.",
							   NULL, &debug_points, "", PGC_SUSET,
							   GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
}

/* Wait until the test lets this point go; the next one waits again. */
static void
wait_for_go(const char *name)
{
	char		waiting[MAXPGPATH];
	char		go[MAXPGPATH];
	FILE	   *f;

	if (access("batcher_debug.off", F_OK) == 0)
		return;
	snprintf(waiting, sizeof(waiting), "batcher_debug_%s.waiting", name);
	snprintf(go, sizeof(go), "batcher_debug_%s.go", name);
	f = fopen(waiting, "w");
	if (f)
		fclose(f);
	while (unlink(go) != 0)		/* of several, one goes */
		usleep(2000);
	(void) unlink(waiting);
}

/* What the setting says of a name, or NULL. */
static const char *
find_action(const char *name)
{
	size_t		len = strlen(name);
	const char *p = debug_points;

	while (p && *p)
	{
		if (strncmp(p, name, len) == 0 && p[len] == '=')
			return p + len + 1;
		p = strchr(p, ',');
		if (p)
			p++;
	}
	return NULL;
}

/*
 * A point of the code that a test may arm by name.
 */
void
batcher_debug_point(const char *name)
{
	const char *action = find_action(name);

	if (action == NULL)
		return;
	if (strncmp(action, "wait", 4) == 0)
		wait_for_go(name);
	else if (strncmp(action, "kill", 4) == 0)
		(void) kill(MyProcPid, SIGKILL);
	else if (strncmp(action, "crash", 5) == 0)
		(void) raise(SIGSEGV);
	else if (strncmp(action, "error", 5) == 0)
		elog(ERROR, "batcher debug point \"%s\"", name);
	else if (strncmp(action, "fatal", 5) == 0)
		elog(FATAL, "batcher debug point \"%s\"", name);
}

/*
 * A limit that is too high for a test to reach, unless the test gives another.
 */
int
batcher_debug_limit(const char *name, int limit)
{
	const char *action = find_action(name);

	return action ? atoi(action) : limit;
}

#endif							/* BATCHER_DEBUG_POINTS */
