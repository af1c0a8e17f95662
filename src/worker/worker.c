/*
 * worker.c
 *	  The worker: owns lanes of one database and flushes them.
 *
 * A worker serves one database and one identity: the queues of one role, or
 * those of all superusers, so that code of one owner never meets what code of
 * another has left in the process.  It takes every lane of its identity that
 * nobody owns, or whose owner is too busy for it, and gives it back when it
 * ends; what it knows of a lane beyond shared memory and the spool can be lost
 * at any moment.
 *
 * One turn: look for news (settings, definitions, a wish that it leave), give
 * each lane one batch, send the messages, and sleep until the earliest
 * deadline.  A lane without deadline is disarmed before the sleep and looked
 * at once more, so that a commit between the two looks is not missed; see
 * queue/lane.c.
 *
 * At a server's stop the first SIGTERM means to flush what waits, for at most
 * batcher.shutdown_timeout; otherwise a worker leaves at once.  The signal
 * alone does not tell which: the launcher finds out and either says that the
 * server stops or repeats the signal, which ends the worker.  Without a launcher
 * a worker ends at the first.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "worker/lanes.h"
#include "worker/worker.h"

static int	my_slot = -1;
static BatcherSharedWorker *my_worker = NULL;
static MemoryContext turn_cxt = NULL;	/* reset at each turn */
static uint32 wakeups_seen = 0;	/* batcher_shmem_wakeups at the last turn */
static volatile sig_atomic_t got_sigterm = false;
static TimeoutId alarm_timeout = MAX_TIMEOUTS;

/* Sleeps up to this long end at the microsecond. */
#define PRECISE_SLEEP_MS	1000

static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	/* not by counting: the postmaster signals a process and its group */
	got_sigterm = true;
	if (my_worker && !proc_exit_inprogress) /* then the slot is another's */
	{
		pg_atomic_write_u32(&my_worker->terminated, 1);
		pg_memory_barrier();	/* see withdraw_launcher */
		if (pg_atomic_read_u32(&my_worker->must_end) ||
			pg_atomic_read_u32(&batcher_shared->launcher_proc) == 0)
		{
			InterruptPending = true;
			ProcDiePending = true;
		}
		else
			batcher_shmem_wake_launcher();
	}
	SetLatch(MyLatch);
	errno = save_errno;
}

/* Also the end of a statement's time is signalled like this. */
static void
handle_sigint(SIGNAL_ARGS)
{
	batcher_executor_cancelled = true;
	StatementCancelHandler(postgres_signal_arg);
}

/* Flush a batch of a lane that is held; true if there may be more. */
static bool
serve_held_lane(BatcherLaneView *view, bool draining)
{
	bool		more;

	batcher_in_flush = true;
	more = batcher_flush_lane(view, draining);
	batcher_in_flush = false;
	MemoryContextSwitchTo(turn_cxt);
	return more;
}

/*
 * The same for a lane that we may have lost to another worker: then nothing is
 * done.  Messages do not wait for a flush that may take long.
 */
static bool
serve_lane(BatcherLaneView *view, bool draining)
{
	BatcherSharedLane *lane = &view->queue->lane;
	bool		more;

	if (view->flush_ms >= BATCHER_PATIENCE_MS)
		batcher_message_send();
	if (!batcher_lane_hold(lane, my_slot))
		return false;
	more = serve_held_lane(view, draining);
	batcher_lane_let_go(lane);
	return more;
}

/* Will we look at the lane by ourselves, soon enough for all that can come? */
static bool
looks_by_itself(BatcherLaneView *view)
{
	return view->deadline != BATCHER_NEVER && !view->wants_news;
}

/*
 * Say how committers are to wake us for a lane that has nothing due: by
 * itself we look at its deadline; without one the next commit wakes us.  True
 * if the lane turns out to have something to do after all.  The lane is held.
 */
static bool
arm_lane(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	bool		held = view->def->paused ||
		pg_atomic_read_u32(&view->queue->main->lane.frozen) != 0;

	pg_atomic_write_u64(&lane->wake_at, held ? PG_UINT64_MAX :
						view->limits.size);
	if (held || looks_by_itself(view))
	{
		pg_atomic_write_u32(&lane->armed, 1);
		return false;
	}
	(void) pg_atomic_exchange_u32(&lane->armed, 0);
	if (serve_held_lane(view, false))
		return true;
	if (looks_by_itself(view))
		pg_atomic_write_u32(&lane->armed, 1);
	return false;
}

/*
 * Give each lane one batch; true if some lane has more to do.  Otherwise
 * 'deadline' is when to look again.
 */
static bool
serve_lanes(bool draining, TimestampTz *deadline)
{
	ListCell   *lc;
	bool		more = false;

	*deadline = BATCHER_NEVER;
	foreach(lc, batcher_lane_views)
	{
		BatcherLaneView *view = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		if (view->def && serve_lane(view, draining))
			more = true;
	}
	batcher_message_send();
	if (more || draining)
		return more;
	foreach(lc, batcher_lane_views)
	{
		BatcherLaneView *view = lfirst(lc);
		BatcherSharedLane *lane = &view->queue->lane;

		if (view->def == NULL || !batcher_lane_hold(lane, my_slot))
			continue;
		if (arm_lane(view))
			more = true;
		batcher_lane_let_go(lane);
		*deadline = Min(*deadline, view->deadline);
		/* see before long whether a lane that the queue has no more may go */
		if (view->key.lane >= view->def->options.lanes)
			*deadline = Min(*deadline,
							batcher_clock_add_ms(batcher_clock_now(), 1000));
	}
	if (more)
		batcher_message_send();
	return more;
}

/* Flush what waits, because the server is being stopped. */
static void
drain(void)
{
	TimestampTz end = batcher_clock_add_ms(batcher_clock_now(),
										   batcher_shutdown_timeout);
	TimestampTz deadline;

	while (batcher_lanes_load() && serve_lanes(true, &deadline) &&
		   batcher_clock_now() < end)
	{
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(turn_cxt);
	}
	proc_exit(0);
}

/* The first SIGTERM has come: is the server being stopped? */
static void
handle_termination(void)
{
	TimestampTz end = batcher_clock_add_ms(batcher_clock_now(), 2000);

	while (batcher_clock_now() < end)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (pg_atomic_read_u32(&batcher_shared->stopping))
			drain();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, 10, PG_WAIT_EXTENSION);
	}
	proc_exit(0);				/* the launcher is away */
}

/* Has something come up since the turn began? */
static bool
has_news(void)
{
	return got_sigterm || InterruptPending || ConfigReloadPending ||
		batcher_shmem_wakeups() != wakeups_seen;
}

/* Whoever handles SIGALRM has set the latch. */
static void
end_sleep(void)
{
}

/*
 * Wait for the latch, for 'ms' at most (-1: without limit), until 'deadline' if
 * that is soon: WaitLatch knows whole milliseconds only, which is much of a
 * window.  Who is woken before is woken once more at that time, for nothing,
 * because the server does not take the timer back.
 */
static int
wait_for_latch(long ms, TimestampTz deadline, uint32 wait_event)
{
	int			events;

	if (ms > 0 && ms <= PRECISE_SLEEP_MS)
		enable_timeout_at(alarm_timeout, deadline);
	events = WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
					   (ms >= 0 ? WL_TIMEOUT : 0), ms, wait_event);
	disable_timeout(alarm_timeout, false);
	return events;
}

/* Sleep until there is something to do. */
static void
sleep_until(TimestampTz deadline)
{
	static uint32 wait_event = 0;
	static bool retire_later = false;
	TimestampTz now = batcher_clock_now();
	bool		idle = deadline == BATCHER_NEVER &&
		(!my_worker->idle_long || retire_later);
	long		ms = batcher_clock_ms_until(deadline, now);
	int			events;

	if (wait_event == 0)
		wait_event = batcher_wait_event("BatcherWorkerMain");
	batcher_slot_report(my_slot, NULL, 0);
	if (idle)
	{
		if (batcher_maintain_spool(true))
			return;				/* somebody may have come meanwhile */
		ms = BATCHER_IDLE_LONG_MS;
	}
	batcher_patience_end();
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	if (has_news())				/* the latch may have been reset since */
		return;
	events = wait_for_latch(ms, deadline, wait_event);
	if (idle && (events & WL_TIMEOUT))
	{
		batcher_slot_set_idle_long(my_slot);
		if (batcher_slot_retire(my_slot, batcher_lane_views != NIL,
								&retire_later))
			proc_exit(0);
	}
}

/* Connect, and find the extension; does not return if there is none. */
static void
start_worker(void)
{
	BatcherSharedDatabase *db = NULL;

	BackgroundWorkerInitializeConnectionByOid(my_worker->db.dboid, InvalidOid,
											  0);
	batcher_settings_override();
	SetConfigOption("application_name", "batcher worker", PGC_SUSET,
					PGC_S_OVERRIDE);
	batcher_flush_install();
	batcher_executor_install();
	batcher_settle_install();
	batcher_message_install();
	batcher_patience_install(my_slot);
	alarm_timeout = RegisterTimeout(USER_TIMEOUT, end_sleep);
	(void) batcher_shmem_area();

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (batcher_catalog_find(true))
		db = batcher_catalog_database();
	CommitTransactionCommand();
	batcher_slot_set_extension(my_slot, db ? db->key.extoid : InvalidOid);
	if (db == NULL)
		proc_exit(0);
	batcher_lanes_start(my_slot, db);
	turn_cxt = AllocSetContextCreate(TopMemoryContext, "batcher turn",
									 ALLOCSET_DEFAULT_SIZES);
}

/*
 * The main function of a worker; 'arg' is its slot.
 */
void
batcher_worker_main(Datum arg)
{
	uint64		generation;
	bool		busy = false;

	pqsignal(SIGTERM, handle_sigterm);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, handle_sigint);
	batcher_probation_install();
	BackgroundWorkerUnblockSignals();

	my_slot = DatumGetInt32(arg);
	memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));
	my_worker = &batcher_shared->workers[my_slot];
	if (!batcher_slot_attach(my_slot, generation))
		proc_exit(0);
	start_worker();

	for (;;)
	{
		TimestampTz deadline;
		int			nwaiting;

		ResetLatch(MyLatch);
		wakeups_seen = batcher_shmem_wakeups();
		QueryCancelPending = false; /* meant for a flush that has ended */
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			batcher_lanes_reload(); /* options may depend on settings */
		}
		MemoryContextSwitchTo(turn_cxt);
		MemoryContextReset(turn_cxt);
		if (got_sigterm)
			handle_termination();
		if (pg_atomic_read_u32(&my_worker->leave))
			proc_exit(0);
		nwaiting = batcher_lanes_forget_lost();
		batcher_patience_begin(list_length(batcher_lane_views), nwaiting,
							   wakeups_seen);
		batcher_lanes_look_for_free(busy);
		if (!batcher_lanes_load())
			proc_exit(0);

		busy = serve_lanes(false, &deadline);
		if (busy)
		{
			(void) batcher_maintain_spool(false);
			(void) pgstat_report_stat(false);
		}
		else
			sleep_until(deadline);
	}
}
