/*
 * wait.c
 *	  Clients that wait for the worker: batch_flush, batch_wait, batch_purge.
 *
 * What was visible when the call began has chunk numbers below a number that
 * is drawn then, because a chunk is numbered and pushed before its
 * transaction becomes visible.  The worker tells, for each lane, the number
 * below which everything visible is settled.  So a client asks by raising
 * flush_upto or purge_upto to its number and sleeps until 'settled' reaches
 * it.  Nobody waits for himself: whether the flush waits for a lock of the
 * waiting session is looked for at every deadlock_timeout.
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/compat.h"
#include "catalog/pg_type.h"
#include "enqueue/enqueue.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

/* How far a chain of blockers is followed. */
#define MAX_BLOCKERS	256

/*
 * What can be seen of a queue, of all its lanes together, copied while it
 * cannot go.
 */
typedef struct QueueNow
{
	bool		there;			/* or the queue is gone, and all is zero */
	bool		empty;
	bool		spilled;
	bool		frozen;
	bool		flushing;
	bool		paused;			/* for the worker, which knows no uncommitted
								 * change */
	bool		breaker_open;
	uint64		settled;		/* in each lane that is not empty */
	uint64		nflushed;
	uint64		npurged;
	int			nowners;
	int			owner_pids[BATCHER_MAX_LANES];
} QueueNow;

/* Have the workers read the definitions as they are committed now? */
static bool
definitions_are_read(BatcherDatabaseKey key)
{
	BatcherSharedDatabase *db = batcher_shmem_database(key, false);

	return db && pg_atomic_read_u64(&db->loaded) ==
		pg_atomic_read_u64(&db->generation);
}

/* Add a process that owns lanes, once. */
static void
add_owner(int pid, QueueNow *now)
{
	int			i;

	for (i = 0; i < now->nowners; i++)
	{
		if (now->owner_pids[i] == pid)
			return;
	}
	now->owner_pids[now->nowners++] = pid;
}

/* Add what can be seen of one lane; the control lock is held. */
static void
look_at_lane(BatcherSharedLane *lane, QueueNow *now)
{
	int			owner = batcher_lane_owner(lane);

	if (!batcher_lane_empty(lane))
	{
		now->empty = false;
		now->settled = Min(now->settled, pg_atomic_read_u64(&lane->settled));
	}
	now->spilled |= batcher_lane_spilled(lane);
	now->flushing |= pg_atomic_read_u32(&lane->flushing) != 0;
	now->nflushed += pg_atomic_read_u64(&lane->nflushed);
	now->npurged += pg_atomic_read_u64(&lane->npurged);
	if (owner >= 0 && batcher_shared->workers[owner].pid != 0)
		add_owner(batcher_shared->workers[owner].pid, now);
}

static QueueNow
look_at_queue(BatcherQueueKey key)
{
	QueueNow	now = {0};
	bool		read = definitions_are_read(key.db);
	BatcherSharedQueue *queue;
	BatcherSharedQueue *entry;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	queue = batcher_shmem_queue_locked(key);
	if (queue)
	{
		now.there = true;
		now.empty = true;
		now.settled = PG_UINT64_MAX;
		now.frozen = pg_atomic_read_u32(&queue->lane.frozen) != 0;
		now.paused = read && pg_atomic_read_u32(&queue->paused) != 0;
		now.breaker_open = batcher_queue_breaker_open(queue);
		batcher_foreach_lane(entry, i, queue)
			look_at_lane(&entry->lane, &now);
	}
	LWLockRelease(&batcher_shared->lock);
	return now;
}

/* The processes that block 'pid', added to 'pids'; returns how many there are. */
static int
add_blockers(int pid, int *pids, int n)
{
	ArrayType  *array;
	int32	   *blockers;
	int			nblockers;
	int			i;
	int			j;

	array = DatumGetArrayTypeP(DirectFunctionCall1(pg_blocking_pids,
												   Int32GetDatum(pid)));
	nblockers = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	blockers = (int32 *) ARR_DATA_PTR(array);
	for (i = 0; i < nblockers && n < MAX_BLOCKERS; i++)
	{
		for (j = 0; j < n && pids[j] != blockers[i]; j++)
			;
		if (j == n)
			pids[n++] = blockers[i];
	}
	pfree(array);
	return n;
}

/*
 * Whether the flush of a queue waits, perhaps through others, for a lock that
 * this session holds.
 */
bool
batcher_wait_is_blocked_by_us(BatcherQueueKey key)
{
	QueueNow	now = look_at_queue(key);
	int			pids[MAX_BLOCKERS];
	int			n = now.nowners;
	int			i;

	/* who is about to drop the queue waits for the lock that we hold */
	if (now.frozen && batcher_staging_active())
		return true;
	memcpy(pids, now.owner_pids, n * sizeof(int));
	for (i = 0; i < n; i++)
	{
		if (pids[i] == MyProcPid)
			return true;
		n = add_blockers(pids[i], pids, n);
	}
	return false;
}

static void
refuse_in_flush(const char *function)
{
	if (batcher_in_flush)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s cannot be used inside a flush", function)));
}

/* The end of a timeout argument; one that is null or negative is over. */
static TimestampTz
timeout_end(FunctionCallInfo fcinfo, int arg)
{
	Interval   *interval;
	double		ms;

	if (PG_ARGISNULL(arg))
		return BATCHER_NEVER;
	interval = PG_GETARG_INTERVAL_P(arg);
	ms = interval->time / 1000.0 +
		(interval->day + interval->month * (double) DAYS_PER_MONTH) *
		(SECS_PER_DAY * 1000.0);
	return batcher_clock_add_ms(batcher_clock_now(), Max(ms, 0));
}

/* What a client asks of the lanes of a queue. */
typedef enum Wish
{
	WISH_FLUSH,
	WISH_PURGE,
	WISH_WATCH
} Wish;

/*
 * Ask for something about what has a number below 'upto', in all lanes of a
 * queue, and wake who does it.  False if the queue is gone.
 */
static bool
ask_lanes(BatcherQueueKey key, Wish wish, uint64 upto)
{
	BatcherSharedQueue *queue;
	BatcherSharedQueue *entry;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	queue = batcher_shmem_queue_locked(key);
	if (queue)
	{
		batcher_foreach_lane(entry, i, queue)
			batcher_raise_to(wish == WISH_FLUSH ? &entry->lane.flush_upto :
							 wish == WISH_PURGE ? &entry->lane.purge_upto :
							 &entry->lane.watch_upto, upto);
	}
	LWLockRelease(&batcher_shared->lock);
	if (queue)
		batcher_queue_wake(queue);	/* at worst that of another one */
	return queue != NULL;
}

/*
 * Ask for a flush, or a purge, of what has a number below 'upto', unless the
 * queue is gone or holds no row.  False if so; otherwise 'before' is how the
 * lane was.
 */
static bool
ask_worker(BatcherQueueKey key, bool purge, uint64 upto, QueueNow *before)
{
	*before = look_at_queue(key);
	return before->there && !before->empty &&
		ask_lanes(key, purge ? WISH_PURGE : WISH_FLUSH, upto);
}

/* Is everything below 'upto' settled, or the queue gone? */
static bool
is_settled(const QueueNow *now, uint64 upto)
{
	return !now->there || now->empty || now->settled >= upto;
}

/*
 * One sleep of a waiting client; true if it was not woken.  40P01 if the
 * flush waits for it.
 */
static bool
sleep_for_worker(BatcherQueueKey key, const char *name, long ms)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = batcher_wait_event("BatcherSettled");
	if (ms < 0 || ms > DeadlockTimeout)
		ms = DeadlockTimeout;
	if (!ConditionVariableTimedSleep(batcher_settled_cv(key.queue_id), ms,
									 wait_event))
		return false;
	if (batcher_wait_is_blocked_by_us(key))
	{
		ConditionVariableCancelSleep();
		ereport(ERROR,
				(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
				 errmsg("deadlock detected"),
				 errdetail("The flush of queue \"%s\" waits for this session, which waits for the flush.",
						   name)));
	}
	return true;
}

/*
 * Wait until everything below 'upto' is settled; false if 'end' came before,
 * or if a flush is waited for (not a purge) and nothing is flushed any more.
 * 'now' is how the lane is then.
 */
static bool
wait_until_settled(BatcherQueueKey key, const char *name, bool purge,
				   uint64 upto, TimestampTz end, QueueNow *now)
{
	bool		settled;

	ConditionVariablePrepareToSleep(batcher_settled_cv(key.queue_id));
	for (;;)
	{
		long		ms;

		*now = look_at_queue(key);
		settled = is_settled(now, upto);
		ms = batcher_clock_ms_until(end, batcher_clock_now());
		if (settled || ms == 0 ||
			(!purge && (now->paused || now->breaker_open)))
			break;
		(void) sleep_for_worker(key, name, ms);
	}
	ConditionVariableCancelSleep();
	return settled;
}

/*
 * Have everything flushed that waits in a queue, of which the caller knows that
 * nothing comes into it.  False if it was not until 'end', or cannot be.
 */
bool
batcher_wait_flushed(BatcherQueueKey key, const char *name, TimestampTz end)
{
	uint64		upto = batcher_number_take(batcher_catalog_database());
	QueueNow	now;

	return !ask_worker(key, false, upto, &now) ||
		wait_until_settled(key, name, false, upto, end, &now);
}

/* The queue of argument 0, which the current user may manage. */
static BatcherQueueDef *
managed_queue(FunctionCallInfo fcinfo)
{
	return batcher_definition_allowed(text_to_cstring(PG_GETARG_TEXT_PP(0)),
									  BATCHER_MANAGE);
}

/* One queue that a call flushes. */
typedef struct FlushRequest
{
	BatcherQueueKey key;
	const char *name;
	QueueNow	before;			/* how it was when the call began */
} FlushRequest;

static void
notice_paused(const char *name, const char *detail)
{
	ereport(NOTICE,
			(errmsg("queue \"%s\" is paused", name),
			 detail ? errdetail("%s", detail) : 0));
}

static void
notice_breaker(const char *name)
{
	ereport(NOTICE,
			(errmsg("breaker of queue \"%s\" is open", name),
			 errhint("Use batch_reset_breaker() when its cause is mended; the view batcher.status tells it.")));
}

static void
warn_unserved(const char *name)
{
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("queue \"%s\" is not served, because there are too many queues",
					name),
			 errhint("Increase \"%s\" and restart the server, or drop a queue.",
					 "batcher.max_queues")));
}

/* Wait for a flush that was asked for; returns how many rows were flushed. */
static int64
wait_for_flush(const FlushRequest *request, uint64 upto, TimestampTz end)
{
	QueueNow	now;

	if (!wait_until_settled(request->key, request->name, false, upto, end,
							&now))
	{
		if (now.paused)
			notice_paused(request->name, batcher_change_is_open() ?
						  "What this transaction has changed takes effect when it commits." :
						  NULL);
		else if (now.breaker_open)
			notice_breaker(request->name);
		else
			ereport(WARNING,
					(errmsg("queue \"%s\" was not flushed in time",
							request->name),
					 now.nowners == 0 ?
					 errdetail("No worker serves the queue; the server's log may tell why.") : 0));
	}
	return now.there ? now.nflushed - request->before.nflushed : 0;
}

PG_FUNCTION_INFO_V1(batcher_flush);

/*
 * batch_flush(queue, timeout): have everything flushed that the caller can
 * see, and return how many rows were flushed meanwhile.
 */
Datum
batcher_flush(PG_FUNCTION_ARGS)
{
	TimestampTz end = timeout_end(fcinfo, 1);
	List	   *defs;
	ListCell   *lc;
	FlushRequest *requests;
	int			nrequests = 0;
	uint64		upto;
	int64		flushed = 0;
	int			i;

	batcher_shmem_require();
	PreventCommandDuringRecovery("batch_flush()");
	refuse_in_flush("batch_flush()");
	defs = PG_ARGISNULL(0) ? batcher_definition_list() :
		list_make1(managed_queue(fcinfo));
	requests = palloc(list_length(defs) * sizeof(FlushRequest));
	upto = batcher_number_take(batcher_catalog_database());

	foreach(lc, defs)
	{
		BatcherQueueDef *def = lfirst(lc);
		FlushRequest *request = &requests[nrequests];
		bool		unserved = false;

		if (!batcher_definition_may(def, BATCHER_MANAGE))
			continue;
		if (def->paused)
		{
			notice_paused(def->name,
						  def->pause_reason && strcmp(def->pause_reason, "paused") != 0 ?
						  psprintf("Reason: %s.", def->pause_reason) : NULL);
			continue;
		}
		/* one that is not served does not keep the others from it */
		if (!batcher_entry_ensure(def, &request->key,
								  PG_ARGISNULL(0) ? &unserved : NULL))
		{
			if (unserved)
				warn_unserved(def->name);
			continue;
		}
		if (look_at_queue(request->key).breaker_open)
		{
			notice_breaker(def->name);
			continue;
		}
		request->name = def->name;
		if (ask_worker(request->key, false, upto, &request->before))
			nrequests++;
	}
	for (i = 0; i < nrequests; i++)
		flushed += wait_for_flush(&requests[i], upto, end);
	PG_RETURN_INT64(flushed);
}

PG_FUNCTION_INFO_V1(batcher_purge);

/*
 * batch_purge(queue): have everything thrown away that the caller can see,
 * and return how many rows were.
 */
Datum
batcher_purge(PG_FUNCTION_ARGS)
{
	BatcherQueueDef *def;
	BatcherQueueKey key;
	QueueNow	before;
	QueueNow	now;
	uint64		upto;

	batcher_shmem_require();
	PreventCommandDuringRecovery("batch_purge()");
	refuse_in_flush("batch_purge()");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("queue must not be null")));
	def = managed_queue(fcinfo);
	upto = batcher_number_take(batcher_catalog_database());
	if (!batcher_entry_ensure(def, &key, NULL) ||
		!ask_worker(key, true, upto, &before))
		PG_RETURN_INT64(0);
	(void) wait_until_settled(key, def->name, true, upto, BATCHER_NEVER, &now);
	PG_RETURN_INT64(now.there ? now.npurged - before.npurged : 0);
}

static Datum
fate_datum(BatcherFate fate)
{
	switch (fate)
	{
		case BATCHER_FATE_FLUSHED:
			return CStringGetTextDatum("flushed");
		case BATCHER_FATE_PURGED:
			return CStringGetTextDatum("purged");
		case BATCHER_FATE_DEAD:
			return CStringGetTextDatum("dead");
		case BATCHER_FATE_SUPERSEDED:
			return CStringGetTextDatum("superseded");
		case BATCHER_FATE_UNKNOWN:
			break;
	}
	return CStringGetTextDatum("unknown");
}

/* Whether a row with this ticket is in the memory of some lane of a queue. */
static bool
has_ticket(BatcherQueueKey key, uint64 ticket)
{
	BatcherSharedQueue *queue;
	BatcherSharedQueue *entry;
	bool		has = false;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	queue = batcher_shmem_queue_locked(key);
	if (queue)
	{
		batcher_foreach_lane(entry, i, queue)
			has = has || batcher_lane_has_ticket(&entry->lane, ticket);
	}
	LWLockRelease(&batcher_shared->lock);
	return has;
}

/*
 * Whether the row with this ticket waits, when all that was waited for is not
 * settled.  If not, its fate is known, or the ticket is unknown.
 */
static bool
row_waits(BatcherQueueKey key, uint64 ticket)
{
	QueueNow	now;

	/* what leaves memory unsettled goes to the spool, and not back */
	if (has_ticket(key, ticket))
		return true;
	now = look_at_queue(key);
	if (!now.spilled)
		return false;
	if (batcher_spool_find_ticket(key.queue_id, ticket))
		return true;
	/* its flush may have committed, and its fate not be recorded yet */
	return look_at_queue(key).flushing;
}

/*
 * How the row with this ticket has ended, as far as memory knows.  A dead letter
 * may have been put back into the queue, and waits again.
 */
static BatcherFate
find_fate(BatcherQueueKey key, uint64 ticket)
{
	BatcherFate fate = batcher_fate_find(key, ticket);

	if (fate == BATCHER_FATE_DEAD &&
		!batcher_dead_exists(key.queue_id, ticket) && row_waits(key, ticket))
		return BATCHER_FATE_UNKNOWN;
	return fate;
}

/*
 * Wait until the row with this ticket is settled, as everything below 'upto' is
 * then, or until 'end'; returns how it ended.  '*waits': it has not.
 */
static BatcherFate
wait_for_row(BatcherQueueKey key, const char *name, uint64 ticket,
			 uint64 upto, TimestampTz end, bool *waits)
{
	BatcherFate fate;
	bool		look = false;

	*waits = false;
	ConditionVariablePrepareToSleep(batcher_settled_cv(key.queue_id));
	for (;;)
	{
		QueueNow	now = look_at_queue(key);
		bool		settled = is_settled(&now, upto);
		long		ms = batcher_clock_ms_until(end, batcher_clock_now());

		/*
		 * Now and then look whether there is such a row at all, before its
		 * fate, which is recorded before it leaves the lane.
		 */
		if (look && !now.spilled && !has_ticket(key, ticket))
			settled = true;
		fate = find_fate(key, ticket);
		if (fate != BATCHER_FATE_UNKNOWN || settled)
			break;
		if (ms == 0)
		{
			ConditionVariableCancelSleep();
			*waits = row_waits(key, ticket);
			return *waits ? fate : find_fate(key, ticket);
		}
		look = sleep_for_worker(key, name, ms);
	}
	ConditionVariableCancelSleep();
	return fate;
}

PG_FUNCTION_INFO_V1(batcher_wait);

/*
 * batch_wait(queue, ticket, timeout): wait until the row with this ticket is
 * settled, and say how it ended.  Nobody is kept from dropping the queue.
 */
Datum
batcher_wait(PG_FUNCTION_ARGS)
{
	TimestampTz end = timeout_end(fcinfo, 2);
	BatcherQueueDef *def;
	BatcherQueueKey key;
	uint64		ticket;
	uint64		upto;
	BatcherFate fate;
	bool		waits;

	batcher_shmem_require();
	PreventCommandDuringRecovery("batch_wait()");
	refuse_in_flush("batch_wait()");
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("queue and ticket must not be null")));
	ticket = PG_GETARG_INT64(1);
	def = batcher_definition_allowed(text_to_cstring(PG_GETARG_TEXT_PP(0)),
									 BATCHER_ENQUEUE);
	upto = batcher_number_take(batcher_catalog_database());
	if (ticket >= upto || !batcher_entry_ensure(def, &key, NULL))
		PG_RETURN_DATUM(fate_datum(BATCHER_FATE_UNKNOWN));
	if (batcher_staging_has_ticket(key, ticket))
		PG_RETURN_TEXT_P(cstring_to_text("pending"));
	(void) ask_lanes(key, WISH_WATCH, upto);
	fate = wait_for_row(key, def->name, ticket, upto, end, &waits);
	if (waits)
		PG_RETURN_TEXT_P(cstring_to_text("pending"));
	/* the table remembers longer than memory does */
	if (fate == BATCHER_FATE_UNKNOWN &&
		batcher_dead_exists(def->id, ticket))
		fate = BATCHER_FATE_DEAD;
	PG_RETURN_DATUM(fate_datum(fate));
}
