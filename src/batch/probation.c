/*
 * probation.c
 *	  Statements that crash the server.
 *
 * A statement that crashes the server would crash it again after each
 * recovery, since its rows are still there.  What tells it is a marker, a file
 * of the data directory that is named for the lane and holds a number:
 *
 * - A worker that gets a signal which the statement has caused (SIGSEGV and
 *	  its like) writes one that convicts the queue: its breaker is open until
 *	  batch_reset_breaker().
 *
 * - Other ends cannot be told from those that somebody else has caused, as
 *	  SIGKILL by an administrator or for lack of memory.  After a crash the
 *	  first flushes of each queue leave a marker while they run, with a number
 *	  that grows from crash to crash.  From the third on the queue is suspect:
 *	  its breaker is open for breaker_recovery, and twice as long after each
 *	  further crash.  The signal by which the postmaster ends the others when
 *	  one process has crashed, or at an immediate stop, takes the marker away.
 *
 * Markers are not flushed to disk: what matters here is that processes end.
 * Who takes a dropped queue away removes its marker.  The worker; the launcher
 * for dropped databases.
 */
#include "postgres.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <unistd.h>

#include "batch/batch.h"
#include "common/file_perm.h"
#include "miscadmin.h"
#include "storage/fd.h"

/* Flushes of a queue that leave a marker, after a crash. */
#define PROBATION_FLUSHES	10

/* Crashes in a row, with a flush of the queue at work, that make it suspect. */
#define SUSPECT				3

/* The number in the marker of a queue that is convicted; others are smaller. */
#define CONVICTED			127

/* The longest that the breaker of a suspect queue is open, in ms. */
#define SUSPECT_MAX			(24 * 60 * 60 * 1000.0)

/* The folder of the markers. */
#define MARKERS				"pg_stat"

/* The marker of the flush that runs, or an empty string. */
static char marker[MAXPGPATH] = "";

/* Where the marker of a queue is, below MARKERS. */
static void
marker_path(const BatcherQueueKey *key, char *path)
{
	snprintf(path, MAXPGPATH, MARKERS "/batcher.flushing.%u.%u.%d.%d",
			 key->db.dboid, key->db.extoid, key->queue_id, key->lane);
}

/* Write a marker.  Also in a signal handler. */
static void
write_marker(char number)
{
	int			fd = open(marker, O_WRONLY | O_CREAT | O_TRUNC,
						  pg_file_create_mode);

	if (fd < 0)
		return;
	if (write(fd, &number, 1) != 1)
		(void) unlink(marker);
	(void) close(fd);
}

/* The number in a marker; 0 if there is none. */
static int
read_marker(const char *path)
{
	char		number = 0;
	int			fd = OpenTransientFile(path, O_RDONLY);

	if (fd < 0)
		return 0;
	if (read(fd, &number, 1) != 1)
		number = 1;
	(void) CloseTransientFile(fd);
	return number;
}

/*
 * The statement has crashed this process.  The handler is gone by now, so the
 * signal ends the process when it comes again.
 */
static void
handle_crash(SIGNAL_ARGS)
{
	if (marker[0] != '\0' && batcher_executor_phase != BATCHER_PHASE_OUTSIDE)
		write_marker(CONVICTED);
	(void) raise(postgres_signal_arg);
}

/* Another process has crashed, or the server is stopped immediately. */
static void
handle_quit(SIGNAL_ARGS)
{
	if (marker[0] != '\0')
		(void) unlink(marker);
	_exit(2);
}

/*
 * Register the handlers.  A worker, once, before it unblocks signals.
 */
void
batcher_probation_install(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
	struct sigaction action;
	int			i;

	memset(&action, 0, sizeof(action));
	sigemptyset(&action.sa_mask);
	action.sa_flags = SA_RESETHAND | SA_NODEFER;
	action.sa_handler = handle_crash;
	for (i = 0; i < lengthof(signals); i++)
		(void) sigaction(signals[i], &action, NULL);
	pqsignal(SIGQUIT, handle_quit);
}

/*
 * The worker serves a queue: has it crashed the server?  Looked at once after
 * each start of the server.
 */
void
batcher_probation_look(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	char		path[MAXPGPATH];
	int			number;

	if (pg_atomic_read_u32(&lane->probation) != BATCHER_PROBATION_UNKNOWN)
		return;
	marker_path(&view->queue->key, path);
	number = read_marker(path);
	pg_atomic_write_u32(&lane->crashes, number);
	pg_atomic_write_u32(&lane->probation,
						number > 0 || batcher_shared->after_crash ?
						PROBATION_FLUSHES : 0);
	if (number == CONVICTED)
		batcher_breaker_open(view, "its statement crashed the server", -1);
	else if (number >= SUSPECT)
	{
		char	   *reason = psprintf("the server crashed %d times in a row while it was flushed",
									  number);
		double		recovery = view->def->options.breaker_recovery;

		batcher_breaker_open(view, reason,
							 Min(ldexp(recovery, number - SUSPECT), SUSPECT_MAX));
		pfree(reason);
	}
}

/*
 * A flush begins.
 */
void
batcher_probation_begin(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;

	marker_path(&view->queue->key, marker);
	if (pg_atomic_read_u32(&lane->probation) > 0)
		write_marker(Min(pg_atomic_read_u32(&lane->crashes) + 1,
						 CONVICTED - 1));
}

/*
 * The flush has ended, well or not, and nothing has crashed.
 */
void
batcher_probation_end(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;

	if (pg_atomic_read_u32(&lane->probation) > 0)
	{
		(void) unlink(marker);
		pg_atomic_write_u32(&lane->crashes, 0);
		(void) pg_atomic_fetch_sub_u32(&lane->probation, 1);
	}
	marker[0] = '\0';
}

/*
 * A queue is dropped; with queue_id 0 all of an extension in a database are.
 */
void
batcher_probation_forget(const BatcherQueueKey *key)
{
	char		path[MAXPGPATH];
	char		prefix[MAXPGPATH];
	DIR		   *dir;
	struct dirent *entry;

	if (key->queue_id != 0)
	{
		marker_path(key, path);
		(void) unlink(path);
		return;
	}
	snprintf(prefix, sizeof(prefix), "batcher.flushing.%u.%u.",
			 key->db.dboid, key->db.extoid);
	dir = AllocateDir(MARKERS);
	while ((entry = ReadDirExtended(dir, MARKERS, LOG)) != NULL)
	{
		if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0)
			continue;
		snprintf(path, sizeof(path), MARKERS "/%s", entry->d_name);
		(void) unlink(path);
	}
	FreeDir(dir);
}
