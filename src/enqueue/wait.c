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

/* The worker that owns a lane, or 0. */
static int
owner_pid(BatcherSharedQueue *queue)
{
	uint32		owner;
	int			pid = 0;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	owner = pg_atomic_read_u32(&queue->lane.owner);
	if (owner != 0)
		pid = batcher_shared->workers[owner - 1].pid;
	LWLockRelease(&batcher_shared->lock);
	return pid;
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
batcher_wait_is_blocked_by_us(BatcherSharedQueue *queue)
{
	int			pids[MAX_BLOCKERS];
	int			n = 1;
	int			i;

	/* who is about to drop the queue waits for the lock that we hold */
	if (pg_atomic_read_u32(&queue->lane.frozen) != 0 &&
		batcher_staging_active())
		return true;
	pids[0] = owner_pid(queue);
	if (pids[0] == 0)
		return false;
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

/* Raise an atomic to at least 'value'. */
static void
raise_to(pg_atomic_uint64 *atomic, uint64 value)
{
	uint64		seen = pg_atomic_read_u64(atomic);

	while (seen < value &&
		   !pg_atomic_compare_exchange_u64(atomic, &seen, value))
		;
}

typedef enum WaitResult
{
	WAIT_SETTLED,
	WAIT_TIMEOUT
} WaitResult;

/* Is everything below 'upto' settled, or the queue gone? */
static bool
is_settled(BatcherQueueKey key, uint64 upto)
{
	BatcherSharedQueue *queue = batcher_shmem_queue(key);

	return queue == NULL || batcher_lane_empty(&queue->lane) ||
		pg_atomic_read_u64(&queue->lane.settled) >= upto;
}

/*
 * One sleep of a waiting client; true if it was not woken.  40P01 if the
 * flush waits for it.
 */
static bool
sleep_for_worker(BatcherQueueKey key, long ms)
{
	static uint32 wait_event = 0;
	BatcherSharedQueue *queue;

	if (wait_event == 0)
		wait_event = batcher_wait_event("BatcherSettled");
	if (ms < 0 || ms > DeadlockTimeout)
		ms = DeadlockTimeout;
	if (!ConditionVariableTimedSleep(batcher_settled_cv(key.queue_id), ms,
									 wait_event))
		return false;
	queue = batcher_shmem_queue(key);
	if (queue && batcher_wait_is_blocked_by_us(queue))
	{
		char		name[NAMEDATALEN];

		ConditionVariableCancelSleep();
		strlcpy(name, queue->name, sizeof(name));
		ereport(ERROR,
				(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
				 errmsg("deadlock detected"),
				 errdetail("The flush of queue \"%s\" waits for this session, which waits for the flush.",
						   name)));
	}
	return true;
}

/* Wait until everything below 'upto' is settled. */
static WaitResult
wait_until_settled(BatcherQueueKey key, uint64 upto, TimestampTz end)
{
	WaitResult	result = WAIT_TIMEOUT;

	ConditionVariablePrepareToSleep(batcher_settled_cv(key.queue_id));
	for (;;)
	{
		long		ms;

		if (is_settled(key, upto))
		{
			result = WAIT_SETTLED;
			break;
		}
		ms = batcher_clock_ms_until(end, batcher_clock_now());
		if (ms == 0)
			break;
		(void) sleep_for_worker(key, ms);
	}
	ConditionVariableCancelSleep();
	return result;
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
	uint64		before;			/* lane.nflushed when the call began */
} FlushRequest;

/* Rows flushed since the request was made. */
static int64
flushed_since(const FlushRequest *request)
{
	BatcherSharedQueue *queue = batcher_shmem_queue(request->key);

	if (queue == NULL)
		return 0;
	return pg_atomic_read_u64(&queue->lane.nflushed) - request->before;
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
		BatcherSharedQueue *queue;
		FlushRequest *request = &requests[nrequests];

		if (!batcher_definition_may(def, BATCHER_MANAGE))
			continue;
		if (def->paused)
		{
			ereport(NOTICE,
					(errmsg("queue \"%s\" is paused", def->name),
					 def->pause_reason && strcmp(def->pause_reason, "paused") != 0 ?
					 errdetail("Reason: %s.", def->pause_reason) : 0));
			continue;
		}
		queue = batcher_definition_shared(def);
		if (batcher_lane_breaker_open(&queue->lane))
		{
			ereport(NOTICE,
					(errmsg("breaker of queue \"%s\" is open", def->name),
					 errhint("Use batch_reset_breaker() when its cause is mended; the view batcher.status tells it.")));
			continue;
		}
		request->key = queue->key;
		request->name = def->name;
		request->before = pg_atomic_read_u64(&queue->lane.nflushed);
		if (batcher_lane_empty(&queue->lane))
			continue;
		raise_to(&queue->lane.flush_upto, upto);
		batcher_lane_wake(queue);
		nrequests++;
	}
	for (i = 0; i < nrequests; i++)
	{
		if (wait_until_settled(requests[i].key, upto, end) == WAIT_TIMEOUT)
		{
			BatcherSharedQueue *queue = batcher_shmem_queue(requests[i].key);

			ereport(WARNING,
					(errmsg("queue \"%s\" was not flushed in time",
							requests[i].name),
					 queue && owner_pid(queue) == 0 ?
					 errdetail("No worker serves the queue; the server's log may tell why.") : 0));
		}
		flushed += flushed_since(&requests[i]);
	}
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
	BatcherSharedQueue *queue;
	BatcherQueueKey key;
	uint64		before;
	uint64		upto;

	batcher_shmem_require();
	PreventCommandDuringRecovery("batch_purge()");
	refuse_in_flush("batch_purge()");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("queue must not be null")));
	queue = batcher_definition_shared(managed_queue(fcinfo));
	key = queue->key;
	before = pg_atomic_read_u64(&queue->lane.npurged);
	if (batcher_lane_empty(&queue->lane))
		PG_RETURN_INT64(0);
	upto = batcher_number_take(batcher_catalog_database());
	raise_to(&queue->lane.purge_upto, upto);
	batcher_lane_wake(queue);
	(void) wait_until_settled(key, upto, BATCHER_NEVER);
	queue = batcher_shmem_queue(key);
	PG_RETURN_INT64(queue ? pg_atomic_read_u64(&queue->lane.npurged) - before : 0);
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
		case BATCHER_FATE_UNKNOWN:
			break;
	}
	return CStringGetTextDatum("unknown");
}

/*
 * How the row with this ticket has ended, as far as it is known.  'queue': NULL
 * if it is gone; 'settled': what was visible at the call does not wait any
 * more.  A dead letter may have been put back into the queue, and is known to
 * its table where memory has forgotten it.
 */
static BatcherFate
find_fate(BatcherSharedQueue *queue, int32 queue_id, uint64 ticket,
		  bool settled)
{
	BatcherFate fate = queue ? batcher_fate_find(queue, ticket) :
		BATCHER_FATE_UNKNOWN;

	if (fate == BATCHER_FATE_DEAD && !batcher_dead_exists(queue_id, ticket) &&
		batcher_lane_may_have_ticket(&queue->lane, ticket))
		return BATCHER_FATE_UNKNOWN;
	if (fate == BATCHER_FATE_UNKNOWN && settled &&
		batcher_dead_exists(queue_id, ticket))
		return BATCHER_FATE_DEAD;
	return fate;
}

PG_FUNCTION_INFO_V1(batcher_wait);

/*
 * batch_wait(queue, ticket, timeout): wait until the row with this ticket is
 * settled, and say how it ended.
 */
Datum
batcher_wait(PG_FUNCTION_ARGS)
{
	TimestampTz end = timeout_end(fcinfo, 2);
	BatcherTarget *target;
	BatcherQueueKey key;
	text	   *name;
	uint64		ticket;
	uint64		upto;
	BatcherFate fate = BATCHER_FATE_UNKNOWN;
	bool		look = false;

	batcher_shmem_require();
	PreventCommandDuringRecovery("batch_wait()");
	refuse_in_flush("batch_wait()");
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("queue and ticket must not be null")));
	name = PG_GETARG_TEXT_PP(0);
	ticket = PG_GETARG_INT64(1);
	target = batcher_target_find(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	key = target->queue->key;
	if (batcher_staging_has_ticket(target->queue, ticket))
		PG_RETURN_TEXT_P(cstring_to_text("pending"));

	upto = batcher_number_take(batcher_catalog_database());
	raise_to(&target->queue->lane.watch_upto, upto);
	batcher_lane_wake(target->queue);
	ConditionVariablePrepareToSleep(batcher_settled_cv(key.queue_id));
	for (;;)
	{
		BatcherSharedQueue *queue = batcher_shmem_queue(key);
		bool		settled = is_settled(key, upto);
		long		ms = batcher_clock_ms_until(end, batcher_clock_now());

		/*
		 * Now and then look whether there is such a row at all, before its
		 * fate, which is recorded before it leaves the lane.
		 */
		if (queue && (look || ms == 0) &&
			!batcher_lane_may_have_ticket(&queue->lane, ticket))
			settled = true;
		fate = find_fate(queue, key.queue_id, ticket, settled);
		if (fate != BATCHER_FATE_UNKNOWN || settled)
			break;
		if (ms == 0)
		{
			ConditionVariableCancelSleep();
			PG_RETURN_TEXT_P(cstring_to_text("pending"));
		}
		look = sleep_for_worker(key, ms);
	}
	ConditionVariableCancelSleep();
	PG_RETURN_DATUM(fate_datum(fate));
}
