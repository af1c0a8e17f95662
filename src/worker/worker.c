/*
 * worker.c
 *	  The worker: owns lanes of one database and flushes them.
 *
 * A worker serves one database and one identity: the queues of one role, or
 * those of all superusers, so that code of one owner never meets what code of
 * another has left in the process.  It takes every lane of its identity that
 * nobody owns, and gives it back when it ends; what it knows of a lane beyond
 * shared memory and the spool can be lost at any moment.
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
 * server stops or repeats the signal, which ends the worker.
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
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "worker/worker.h"

/* Idle for so long, a worker is willing to give its place up. */
#define IDLE_LONG_MS	60000

bool		batcher_in_worker = false;

static int	my_slot = -1;
static BatcherSharedWorker *my_worker = NULL;
static BatcherSharedDatabase *my_db = NULL;
static List *views = NIL;		/* of BatcherLaneView, one per owned lane */
static MemoryContext defs_cxt = NULL;	/* the definitions of the last load */
static MemoryContext turn_cxt = NULL;	/* reset at each turn */
static uint64 loaded_generation = 0;
static bool roles_changed = false;	/* since the last load began */
static volatile sig_atomic_t got_sigterm = false;

static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	/* not by counting: the postmaster signals a process and its group */
	got_sigterm = true;
	if (my_worker && pg_atomic_read_u32(&my_worker->must_end))
	{
		InterruptPending = true;
		ProcDiePending = true;
	}
	else if (my_worker)
	{
		pg_atomic_write_u32(&my_worker->terminated, 1);
		batcher_shmem_wake_launcher();
	}
	SetLatch(MyLatch);
	errno = save_errno;
}

/*
 * A role was changed or dropped.  Whether it is an owner, still there and a
 * superuser is in the definitions, so none of them holds any more: a flush
 * that has just begun its transaction does nothing then.
 */
static void
forget_roles(Datum arg, int cacheid, uint32 hashvalue)
{
	ListCell   *lc;

	roles_changed = true;
	loaded_generation = 0;
	foreach(lc, views)
		((BatcherLaneView *) lfirst(lc))->generation = 0;
}

/* What a setting of the database or a role must not change in a flush. */
static void
override_settings(void)
{
	static const char *const settings[][2] = {
		{"search_path", ""},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"row_security", "on"},
		{"zero_damaged_pages", "off"},
		{"max_parallel_workers_per_gather", "0"},
		{"application_name", "batcher worker"},
	};
	int			i;

	for (i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
						PGC_S_OVERRIDE);
}

/* Stop owning a lane. */
static void
drop_view(BatcherLaneView *view)
{
	batcher_executor_reset(view);
	batcher_readback_reset(view);
	batcher_slot_disown_lane(my_slot, view->queue);
	pfree(view);
}

static BatcherLaneView *
find_view(BatcherSharedQueue *queue)
{
	ListCell   *lc;

	foreach(lc, views)
	{
		BatcherLaneView *view = lfirst(lc);

		if (view->queue == queue)
			return view;
	}
	return NULL;
}

/* Say what is flushed now. */
static void
report_flush(BatcherSharedQueue *queue, int rows)
{
	batcher_slot_report(my_slot, queue, rows);
}

/* Own the lane of a queue, if it is ours to own; NULL if not. */
static BatcherLaneView *
take_lane(BatcherSharedQueue *queue)
{
	BatcherLaneView *view;
	MemoryContext old;

	if (!batcher_slot_own_lane(my_slot, queue))
		return NULL;
	old = MemoryContextSwitchTo(TopMemoryContext);
	view = palloc0(sizeof(BatcherLaneView));
	view->db = my_db;
	view->queue = queue;
	view->report = report_flush;
	view->nimmediate = -1;		/* not counted yet */
	view->deadline = BATCHER_NEVER;
	views = lappend(views, view);
	MemoryContextSwitchTo(old);

	/* what the last owner may have left undone after its last commit */
	batcher_lane_sweep(queue, PG_INT32_MAX);
	return view;
}

/*
 * Take away the entries of queues whose drop has committed, and hold those of
 * which there is no definition (not yet, or not any more): nobody is to come
 * for their rows.
 */
static void
remove_dropped(uint64 generation)
{
	BatcherSharedQueue **list;
	int			n;

	list = palloc_array(BatcherSharedQueue *, batcher_max_queues);
	n = batcher_shmem_queue_list(MyDatabaseId, list, batcher_max_queues);
	while (n-- > 0)
	{
		BatcherSharedQueue *queue = list[n];
		BatcherLaneView *view;

		if (pg_atomic_read_u32(&queue->dropped) == 0)
		{
			if (pg_atomic_read_u64(&queue->defined_at) < generation)
				pg_atomic_write_u32(&queue->paused, 1);
			continue;
		}
		view = find_view(queue);
		if (view == NULL)
		{
			if (!batcher_slot_own_lane(my_slot, queue))
				continue;
			/* meanwhile another worker may have taken it away */
			if (pg_atomic_read_u32(&queue->dropped) == 0)
			{
				batcher_slot_disown_lane(my_slot, queue);
				continue;
			}
		}
		if (view)
		{
			views = list_delete_ptr(views, view);
			batcher_executor_reset(view);
			batcher_readback_reset(view);
			pfree(view);
		}
		batcher_lane_discard(queue);
		batcher_shmem_queue_remove(queue->key);
	}
}

/* Use a definition; if it is a changed one, a failing queue is tried anew. */
static void
adopt_definition(BatcherLaneView *view, BatcherQueueDef *def)
{
	BatcherQueueDef *old = view->def;

	batcher_executor_reset(view);
	view->def = def;
	if (old == NULL)
		batcher_message_recover(view);
	else if (strcmp(old->search_path, def->search_path) != 0 ||
			 (old->flush_sql == NULL) != (def->flush_sql == NULL) ||
			 (def->flush_sql && strcmp(old->flush_sql, def->flush_sql) != 0) ||
			 VARSIZE(old->given) != VARSIZE(def->given) ||
			 memcmp(old->given, def->given, VARSIZE(def->given)) != 0)
	{
		pg_atomic_write_u64(&view->queue->lane.retry_at, 0);
		view->forced_upto = 0;
	}
}

/*
 * Use the definitions of 'list'.  Returns how many cannot be served, because
 * there are more queues than entries.
 */
static int
adopt_definitions(List *list, uint64 generation)
{
	int			unserved = 0;
	ListCell   *lc;

	foreach(lc, list)
	{
		BatcherQueueDef *def = lfirst(lc);
		BatcherQueueKey key = {my_db->key, def->id, 0};
		BatcherSharedQueue *queue = batcher_shmem_queue_create(key, false);
		BatcherLaneView *view;

		if (queue == NULL)
		{
			unserved++;
			continue;
		}
		view = find_view(queue);
		batcher_definition_publish(def, queue);
		pg_atomic_write_u64(&queue->defined_at, generation);
		if (queue->identity != my_worker->identity)
		{
			/* another owner now: another worker's */
			if (view)
			{
				views = list_delete_ptr(views, view);
				drop_view(view);
			}
			continue;
		}
		if (view == NULL)
			view = take_lane(queue);
		if (view == NULL)
			continue;
		adopt_definition(view, def);
		view->generation = generation;
	}
	return unserved;
}

/* Say, once for each number, that some queues are not served. */
static void
report_unserved(int unserved)
{
	static int	reported = 0;

	if (unserved > 0 && unserved != reported)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg_plural("too many queues: %d is not served",
							   "too many queues: %d are not served",
							   unserved, unserved),
				 errhint("Increase \"%s\" and restart the server.",
						 "batcher.max_queues")));
	reported = unserved;
}

/*
 * Lanes of which 'cxt', which holds the definitions, has none are not served
 * any more.  Their queues are dropped, as a rule, and we may see that before
 * the entry says so; without this we would go on with what is about to be
 * freed.
 */
static void
forget_undefined(MemoryContext cxt)
{
	ListCell   *lc;

	foreach(lc, views)
	{
		BatcherLaneView *view = lfirst(lc);

		if (view->def == NULL || GetMemoryChunkContext(view->def) == cxt)
			continue;
		batcher_executor_reset(view);
		batcher_readback_reset(view);
		view->def = NULL;
	}
}

/*
 * Load the definitions, if they have changed or lanes may have become free.
 * False if the extension is gone.
 */
static bool
load_definitions(void)
{
	uint64		generation = pg_atomic_read_u64(&my_db->generation);
	MemoryContext cxt;
	List	   *list;
	int			unserved;

	if (pg_atomic_read_u32(&my_db->gone))
	{
		/* the launcher need not wonder about a short life */
		pg_atomic_write_u32(&my_worker->leave, 1);
		return false;
	}
	if (generation == loaded_generation)
		return true;

	cxt = AllocSetContextCreate(TopMemoryContext, "batcher definitions",
								ALLOCSET_DEFAULT_SIZES);
	roles_changed = false;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (batcher_catalog_find(true) == NULL)
	{
		CommitTransactionCommand();
		return false;
	}
	MemoryContextSwitchTo(cxt);
	list = batcher_definition_list();
	MemoryContextSwitchTo(turn_cxt);
	unserved = adopt_definitions(list, generation);
	remove_dropped(generation);
	if (unserved > 0)			/* there may be room now */
		unserved = adopt_definitions(list, generation);
	report_unserved(unserved);
	if (pg_atomic_read_u32(&my_db->surveyed) == 0)
		batcher_readback_survey(my_db);
	batcher_number_refill_early(my_db);
	CommitTransactionCommand();
	MemoryContextSwitchTo(turn_cxt);

	forget_undefined(cxt);
	if (defs_cxt)
		MemoryContextDelete(defs_cxt);
	defs_cxt = cxt;
	loaded_generation = generation;
	if (roles_changed)			/* maybe after we had looked */
		forget_roles((Datum) 0, AUTHOID, 0);
	batcher_shmem_wake_launcher();	/* other identities may have work */
	return true;
}

/* Flush a batch of one lane; true if there may be more. */
static bool
serve_lane(BatcherLaneView *view, bool draining)
{
	bool		more;

	batcher_in_flush = true;
	more = batcher_flush_lane(view, draining);
	batcher_in_flush = false;
	MemoryContextSwitchTo(turn_cxt);
	return more;
}

/*
 * Say how committers are to wake us for a lane that has nothing due: by
 * itself we look at its deadline; without one the next commit wakes us.  True
 * if the lane turns out to have something to do after all.
 */
static bool
arm_lane(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	bool		held = view->def->paused ||
		pg_atomic_read_u32(&lane->frozen) != 0;

	pg_atomic_write_u64(&lane->wake_at, held ? PG_UINT64_MAX :
						view->def->options.flush_size);
	if (held || view->deadline != BATCHER_NEVER)
	{
		pg_atomic_write_u32(&lane->armed, 1);
		return false;
	}
	(void) pg_atomic_exchange_u32(&lane->armed, 0);
	if (serve_lane(view, false))
		return true;
	if (view->deadline != BATCHER_NEVER)
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
	foreach(lc, views)
	{
		BatcherLaneView *view = lfirst(lc);

		CHECK_FOR_INTERRUPTS();
		if (view->def && serve_lane(view, draining))
			more = true;
	}
	batcher_message_send();
	if (more || draining)
		return more;
	foreach(lc, views)
	{
		BatcherLaneView *view = lfirst(lc);

		if (view->def == NULL)
			continue;
		if (arm_lane(view))
			more = true;
		*deadline = Min(*deadline, view->deadline);
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

	while (load_definitions() && serve_lanes(true, &deadline) &&
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

/* Sleep until there is something to do. */
static void
sleep_until(TimestampTz deadline)
{
	static uint32 wait_event = 0;
	TimestampTz now = batcher_clock_now();
	bool		idle = deadline == BATCHER_NEVER && !my_worker->idle_long;
	long		ms = batcher_clock_ms_until(deadline, now);
	int			events;

	if (wait_event == 0)
		wait_event = batcher_wait_event("BatcherWorkerMain");
	batcher_slot_report(my_slot, NULL, 0);
	if (idle)
	{
		batcher_maintain_spool(true);
		ms = IDLE_LONG_MS;
	}
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	events = WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
					   (ms >= 0 ? WL_TIMEOUT : 0), ms, wait_event);
	if (idle && (events & WL_TIMEOUT))
	{
		batcher_slot_set_idle_long(my_slot);
		if (batcher_slot_retire(my_slot))
			proc_exit(0);
	}
}

/* Connect, and find the extension; does not return if there is none. */
static void
start_worker(void)
{
	const BatcherCatalog *catalog;

	BackgroundWorkerInitializeConnectionByOid(my_worker->db.dboid, InvalidOid,
											  0);
	override_settings();
	batcher_in_worker = true;
	batcher_flush_install();
	batcher_executor_install();
	batcher_settle_install();
	batcher_message_install();
	CacheRegisterSyscacheCallback(AUTHOID, forget_roles, (Datum) 0);
	(void) batcher_shmem_area();

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	catalog = batcher_catalog_find(true);
	if (catalog)
		my_db = batcher_catalog_database();
	CommitTransactionCommand();
	batcher_slot_set_extension(my_slot, my_db ? my_db->key.extoid : InvalidOid);
	if (my_db == NULL)
		proc_exit(0);
	turn_cxt = AllocSetContextCreate(TopMemoryContext, "batcher turn",
									 ALLOCSET_DEFAULT_SIZES);
}

/*
 * Take lanes that have become free since the definitions were loaded, and take
 * dropped queues away whose drop was not yet complete then.
 */
static void
take_free_lanes(bool busy)
{
	BatcherSharedQueue **list;
	int			n;
	bool		found = false;
	static TimestampTz look_at = 0;
	TimestampTz now = batcher_clock_now();

	/* the launcher wakes us for them; a busy worker need not look each turn */
	if (busy && now < look_at)
		return;
	look_at = batcher_clock_add_ms(now, 1000);
	list = palloc_array(BatcherSharedQueue *, batcher_max_queues);
	n = batcher_shmem_queue_list(MyDatabaseId, list, batcher_max_queues);
	while (n-- > 0)
	{
		BatcherSharedQueue *queue = list[n];

		if (pg_atomic_read_u32(&queue->lane.owner) == 0 &&
			queue->identity == my_worker->identity &&
			batcher_lane_wants_worker(queue))
			found = true;
		if (pg_atomic_read_u32(&queue->dropped) != 0 &&
			(pg_atomic_read_u32(&queue->lane.owner) == 0 || find_view(queue)))
			found = true;
	}
	if (found)
		loaded_generation = 0;	/* load anew, which does that */
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
	pqsignal(SIGINT, StatementCancelHandler);
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

		ResetLatch(MyLatch);
		QueryCancelPending = false; /* meant for a flush that has ended */
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			loaded_generation = 0;	/* options may depend on settings */
		}
		MemoryContextSwitchTo(turn_cxt);
		MemoryContextReset(turn_cxt);
		if (got_sigterm)
			handle_termination();
		if (pg_atomic_read_u32(&my_worker->leave))
			proc_exit(0);
		take_free_lanes(busy);
		if (!load_definitions())
			proc_exit(0);

		busy = serve_lanes(false, &deadline);
		if (busy)
		{
			batcher_maintain_spool(false);
			(void) pgstat_report_stat(false);
		}
		else
			sleep_until(deadline);
	}
}
