/*
 * launcher.c
 *	  The process that sees to it that whoever needs a worker has one.
 *
 * One static background worker, connected to no database.  Only it reserves
 * slots and starts workers, so that the limit holds for all databases
 * together, and because it has no transaction in whose middle it could be
 * stopped.  It does nothing until its latch is set, or until a time that it
 * set itself because something is to be tried again; then it takes a turn:
 * it looks which workers have ended, which databases came or went and who
 * needs a worker (demand.c), all from shared memory, so that a lost or
 * spurious wake-up does no harm.
 *
 * A turn that fails is logged and tried again after a second.  If the
 * launcher itself ends, the postmaster starts another after some seconds,
 * which takes over the workers as it finds them; they do not depend on it.
 *
 * When the server stops, the launcher has all workers flush what waits, and
 * stays until they are gone.  The postmaster waits without a limit and sends
 * its SIGTERM only once, so it is the launcher that repeats it when
 * batcher.shutdown_timeout is over.  The same signal means something else
 * when the server is not being stopped; the status in postmaster.pid, which
 * is written before the signals are sent, tells which.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "queue/chunk.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pidfile.h"
#include "utils/timeout.h"
#include "worker/launcher.h"

/* Seconds after which the postmaster starts a new launcher. */
#define RESTART_SECONDS		5

/* How long to wait after a turn that failed. */
#define ERROR_PAUSE_MS		1000

/* A worker that an earlier launcher started and that has not come. */
#define LOST_WORKER_MS		60000

/*
 * A worker was told to end while the server stops, and we were not: so long
 * we wait for our own signal, which comes right after its.
 */
#define OWN_SIGNAL_MS		1000

/* How long the workers have to end once batcher.shutdown_timeout is over. */
#define LAST_WAIT_MS		1000

BatcherTurn batcher_turn;
BatcherLaunch batcher_launches[BATCHER_MAX_WORKERS];

/* Lives as long as the process; the other is reset after each turn. */
MemoryContext batcher_launcher_context = NULL;
static MemoryContext turn_context = NULL;

/* What scan_wanted said and has not been done yet. */
static uint32 scan_pending = BATCHER_SCAN_ALL;

static volatile sig_atomic_t got_sigterm = false;

/*
 * Register the launcher.  From _PG_init, while shared_preload_libraries is
 * processed.
 */
void
batcher_launcher_register(void)
{
	BackgroundWorker worker;

	if (IsBinaryUpgrade)
		return;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RESTART_SECONDS;
	strlcpy(worker.bgw_library_name, "batcher", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "batcher_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "batcher launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "batcher launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	got_sigterm = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/*
 * Nobody is to wake this process any more.  A worker that was told to end and
 * still counted on us to repeat it is told now: if the server stops, no other
 * launcher comes.
 */
static void
withdraw_launcher(int code, Datum arg)
{
	int			i;

	pg_atomic_write_u32(&batcher_shared->launcher_proc, 0);
	pg_memory_barrier();
	batcher_slot_copy(batcher_turn.slots);
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSlotCopy *copy = &batcher_turn.slots[i];

		if (copy->state == BATCHER_WORKER_RUNNING && copy->terminated)
			batcher_slot_signal(i, copy->generation, SIGTERM);
	}
}

/*
 * Is the server being stopped?  The postmaster says so in a line of its lock
 * file, in the data directory, which is our working directory.  If the file
 * cannot be read, the answer is no.
 */
static bool
server_is_stopping(void)
{
	char		buffer[4096];
	char	   *line = buffer;
	ssize_t		len;
	int			fd;
	int			i;

	fd = BasicOpenFile("postmaster.pid", O_RDONLY | PG_BINARY);
	if (fd < 0)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", "postmaster.pid")));
		return false;
	}
	len = read(fd, buffer, sizeof(buffer) - 1);
	close(fd);
	if (len < 0)
		len = 0;
	buffer[len] = '\0';

	for (i = 1; i < LOCK_FILE_LINE_PM_STATUS && line; i++)
	{
		line = strchr(line, '\n');
		if (line)
			line++;
	}
	return line && strncmp(line, PM_STATUS_STOPPING,
						   strlen(PM_STATUS_STOPPING)) == 0;
}

/*
 * The next turn is to come at 't' at the latest.
 */
void
batcher_turn_look_at(TimestampTz t)
{
	batcher_turn.look_at = Min(batcher_turn.look_at, t);
}

/* How well the worker of a slot can take a lane: 0, not at all, to 4. */
static int
readiness(int slot, BatcherSharedQueue *lane)
{
	const BatcherSlotCopy *copy = &batcher_turn.slots[slot];

	if (copy->leave)
		return 0;
	if (lane && !batcher_lane_may_own(lane, slot))
		return 1;
	if (copy->busy_since != 0)
		return 2;
	return copy->queue_id != 0 ? 3 : 4;
}

/*
 * A slot whose worker serves a database, and with 'identity' that role's
 * queues; -1 if there is none.  Of several it is one that does nothing, else
 * one that is not busy for long and may own 'lane', unless that is NULL, else
 * one that does not leave.  A worker that
 * has not looked yet counts, and with extoid InvalidOid the extension does not
 * matter.
 */
int
batcher_turn_find_worker(BatcherDatabaseKey db, const Oid *identity,
						 BatcherSharedQueue *lane)
{
	int			best = -1;
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSlotCopy *copy = &batcher_turn.slots[i];

		if (copy->state == BATCHER_WORKER_FREE ||
			copy->db.dboid != db.dboid ||
			(identity && copy->identity != *identity) ||
			(OidIsValid(db.extoid) && OidIsValid(copy->db.extoid) &&
			 copy->db.extoid != db.extoid))
			continue;
		if (best < 0 || readiness(i, lane) > readiness(best, lane))
			best = i;
	}
	return best;
}

/*
 * Ask the worker of a slot to leave.
 */
void
batcher_turn_ask_to_leave(int slot)
{
	BatcherSlotCopy *copy = &batcher_turn.slots[slot];

	copy->leave = true;
	batcher_slot_ask_to_leave(slot, copy->generation);
}

/* Has the worker that has not attached to its slot yet ended? */
static bool
worker_has_stopped(int slot)
{
	BatcherLaunch *launch = &batcher_launches[slot];
	TimestampTz lost_at;
	pid_t		pid;

	if (launch->handle)
		return GetBackgroundWorkerPid(launch->handle, &pid) == BGWH_STOPPED;

	lost_at = batcher_clock_add_ms(launch->started_at, LOST_WORKER_MS);
	if (batcher_turn.now >= lost_at)
		return true;
	batcher_turn_look_at(lost_at);
	return false;
}

/*
 * Read the slots, see which workers have ended, and learn of those that an
 * earlier launcher started.  The postmaster is asked before the slots are
 * read: a worker that had stopped then and has not attached never will.
 */
static void
read_slots(void)
{
	bool		stopped[BATCHER_MAX_WORKERS] = {false};
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		if (batcher_launches[i].generation != 0 &&
			batcher_turn.slots[i].state == BATCHER_WORKER_STARTING)
			stopped[i] = worker_has_stopped(i);
	}
	batcher_slot_copy(batcher_turn.slots);

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSlotCopy *copy = &batcher_turn.slots[i];
		BatcherLaunch *launch = &batcher_launches[i];
		bool		attached = true;

		if (launch->generation == 0)
		{
			if (copy->state == BATCHER_WORKER_FREE)
				continue;
			memset(launch, 0, sizeof(*launch));
			launch->generation = copy->generation;
			launch->started_at = copy->registered_at;
			if (copy->state == BATCHER_WORKER_STARTING)
				batcher_turn_look_at(batcher_turn.now);
		}
		if (copy->state == BATCHER_WORKER_STARTING && stopped[i])
		{
			batcher_slot_release(i, copy->generation);
			copy->state = BATCHER_WORKER_FREE;
			attached = false;
		}
		if (copy->state != BATCHER_WORKER_FREE)
			continue;

		batcher_demand_worker_ended(i, attached);

		/* it saw nothing: perhaps its database cannot be connected to */
		if (!OidIsValid(copy->db.extoid) && !copy->leave)
			scan_pending |= BATCHER_SCAN_LIST;
		if (launch->handle)
			pfree(launch->handle);
		memset(launch, 0, sizeof(*launch));
	}
}

/*
 * A worker that gets SIGTERM waits for us to say what it means.  If the server
 * does not stop, somebody wants this worker to end: a second signal says that
 * to it.  If it does, our own signal is about to come.
 */
static void
check_terminated(void)
{
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSlotCopy *copy = &batcher_turn.slots[i];
		BatcherLaunch *launch = &batcher_launches[i];
		TimestampTz decided_at;

		if (copy->state != BATCHER_WORKER_RUNNING || !copy->terminated ||
			launch->signalled)
			continue;
		if (launch->terminated_at == 0)
			launch->terminated_at = batcher_turn.now;
		decided_at = batcher_clock_add_ms(launch->terminated_at,
										  OWN_SIGNAL_MS);
		if (batcher_turn.now >= decided_at || !server_is_stopping())
		{
			batcher_slot_signal(i, copy->generation, SIGTERM);
			launch->signalled = true;
		}
		else
			batcher_turn_look_at(decided_at);
	}
}

/* Is one of the databases with the extension new to us? */
static bool
some_key_is_unknown(void)
{
	int			i;

	for (i = 0; i < batcher_turn.nkeys; i++)
	{
		if (batcher_database_list_find(batcher_turn.keys[i].dboid) == NULL)
			return true;
	}
	return false;
}

/*
 * Bring what is known of databases up to date, and forget those that are
 * gone, unless a worker is still in one: it is asked to leave, and wakes us
 * then.  The entries are listed before the catalog is read, so what is in the
 * list and not in the catalog was dropped.
 */
static void
check_databases(void)
{
	int			nlive = 0;
	int			i;

	batcher_turn.nkeys = batcher_shmem_database_list(batcher_turn.keys,
													 batcher_max_queues);
	scan_pending |= pg_atomic_exchange_u32(&batcher_shared->scan_wanted, 0);
	if (scan_pending || some_key_is_unknown())
	{
		batcher_database_list_refresh((scan_pending & BATCHER_SCAN_ALL) != 0);
		scan_pending = 0;

		/* had it to wait for a lock, that has taken wake-ups from us */
		batcher_turn_look_at(batcher_turn.now);
	}

	for (i = 0; i < batcher_turn.nkeys; i++)
	{
		BatcherDatabaseKey key = batcher_turn.keys[i];
		BatcherSharedDatabase *db = batcher_shmem_database(key, false);
		int			slot;

		if (db && pg_atomic_read_u32(&db->uncommitted))
			continue;
		pg_read_barrier();
		if (db && !pg_atomic_read_u32(&db->gone) &&
			batcher_database_list_find(key.dboid))
		{
			batcher_turn.keys[nlive++] = key;
			continue;
		}
		slot = batcher_turn_find_worker(key, NULL, NULL);
		if (slot < 0)
		{
			BatcherQueueKey all = {.db = key};

			batcher_lane_discard_database(key);
			batcher_probation_forget(&all);
		}
		else if (batcher_turn.slots[slot].db.extoid == key.extoid &&
				 !batcher_turn.slots[slot].leave)
			batcher_turn_ask_to_leave(slot);
	}
	batcher_turn.nkeys = nlive;
}

static void
begin_turn(void)
{
	batcher_turn.now = batcher_clock_now();
	batcher_turn.look_at = BATCHER_NEVER;
	read_slots();
}

/*
 * One turn.  The marks of databases set aside are read before scan_wanted is:
 * see aside_xact_callback.
 */
static void
take_turn(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}

	batcher_turn.nasides = batcher_aside_list(batcher_turn.asides);
	begin_turn();
	check_terminated();
	check_databases();
	batcher_demand_collect();
	batcher_demand_serve();
}

/* A turn failed: log it and leave nothing of it behind. */
static void
recover_from_error(void)
{
	HOLD_INTERRUPTS();
	disable_all_timeouts(false);
	QueryCancelPending = false;
	EmitErrorReport();
	AbortOutOfAnyTransaction();
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	MemoryContextSwitchTo(turn_context);
	FlushErrorState();
	RESUME_INTERRUPTS();
}

/* One turn; false if it failed. */
static bool
try_turn(void)
{
	volatile bool done = false;

	MemoryContextSwitchTo(turn_context);
	PG_TRY();
	{
		CHECK_FOR_INTERRUPTS();
		take_turn();
		done = true;
	}
	PG_CATCH();
	{
		recover_from_error();
	}
	PG_END_TRY();
	MemoryContextReset(turn_context);
	return done;
}

/* Wait for the latch, or until 't'. */
static void
wait_until(TimestampTz t)
{
	static uint32 wait_event = 0;
	long		ms = batcher_clock_ms_until(t, batcher_clock_now());
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

	if (wait_event == 0)
		wait_event = batcher_wait_event("BatcherLauncherMain");
	if (ms >= 0)
		events |= WL_TIMEOUT;
	(void) WaitLatch(MyLatch, events, ms, wait_event);
}

/* How many slots are in use; with 'signo', signal the workers in them. */
static int
count_workers(int signo)
{
	int			n = 0;
	int			i;

	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSlotCopy *copy = &batcher_turn.slots[i];

		if (copy->state == BATCHER_WORKER_FREE)
			continue;
		n++;
		if (signo != 0)
			batcher_slot_signal(i, copy->generation, signo);
	}
	return n;
}

/*
 * The server stops: see to it that the workers end in time.
 */
static void
see_workers_off(void)
{
	TimestampTz deadline = batcher_clock_add_ms(batcher_clock_now(),
												batcher_shutdown_timeout);
	bool		told = false;
	int			nleft;
	int			i;

	pg_atomic_write_u32(&batcher_shared->stopping, 1);
	begin_turn();
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
		batcher_shmem_wake_proc(batcher_turn.slots[i].proc);

	while ((nleft = count_workers(0)) > 0)
	{
		if (batcher_turn.now >= deadline)
		{
			if (told)
				break;
			ereport(LOG,
					(errmsg("ending batcher workers before they have flushed all rows"),
					 errdetail_plural("%d worker is still running after %d ms.",
									  "%d workers are still running after %d ms.",
									  nleft, nleft,
									  batcher_shutdown_timeout)));
			(void) count_workers(SIGTERM);
			told = true;
			deadline = batcher_clock_add_ms(batcher_turn.now, LAST_WAIT_MS);
		}
		wait_until(Min(deadline, batcher_turn.look_at));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		begin_turn();
	}
}

/*
 * The launcher.
 */
void
batcher_launcher_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, handle_sigterm);
	pqsignal(SIGINT, SIG_IGN);
	BackgroundWorkerUnblockSignals();

	before_shmem_exit(withdraw_launcher, (Datum) 0);
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	batcher_settings_override();

	batcher_launcher_context = AllocSetContextCreate(TopMemoryContext,
													 "batcher launcher",
													 ALLOCSET_DEFAULT_SIZES);
	turn_context = AllocSetContextCreate(batcher_launcher_context,
										 "batcher launcher turn",
										 ALLOCSET_DEFAULT_SIZES);
	batcher_turn.keys =
		MemoryContextAlloc(batcher_launcher_context,
						   mul_size(batcher_max_queues,
									sizeof(BatcherDatabaseKey)));
	batcher_turn.queues =
		MemoryContextAlloc(batcher_launcher_context,
						   mul_size(batcher_max_queues,
									sizeof(BatcherSharedQueue *)));

	/* first tell where we are, then look: who comes in between wakes us */
	pg_atomic_write_u32(&batcher_shared->launcher_proc,
						batcher_my_proc_number() + 1);
	pg_memory_barrier();
	ereport(DEBUG1, (errmsg_internal("batcher launcher started")));

	for (;;)
	{
		ResetLatch(MyLatch);
		if (got_sigterm)
		{
			/* exit code 1: the postmaster is to start another launcher */
			if (!server_is_stopping())
			{
				batcher_debug_point("launcher-leaves");
				proc_exit(1);
			}
			see_workers_off();
			proc_exit(0);
		}
		if (try_turn())
			wait_until(batcher_turn.look_at);
		else
			(void) WaitLatch(NULL, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 ERROR_PAUSE_MS,
							 batcher_wait_event("BatcherLauncherError"));
	}
}
