/*
 * room.c
 *	  Making room for a row, and waiting until there is some.
 *
 * Who waits for room waits for a flush, so it must not wait when no flush can
 * make room: when the queue is paused, when only open transactions hold the
 * room, or when the flush waits for a lock of the waiting session itself.
 * Client backends only: a worker never waits for room.
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/compat.h"
#include "enqueue/enqueue.h"
#include "miscadmin.h"
#include "storage/proc.h"

/*
 * Thinning that freed less than half of what waits took its time in vain: the
 * next one comes after so many times that time, a second at most.
 */
#define THIN_PAUSE		50

/*
 * There is no room: give up rows of the queue's hot keys, if it is one where
 * that can be done (see queue/thin.c).  True if some were given up, perhaps by
 * another session.  Not while definitions are changed that may be rolled back.
 */
bool
batcher_room_make(BatcherTarget *target)
{
	BatcherSharedLane *lane = &target->queue->lane;
	BatcherSharedDatabase *db;
	TimestampTz begin;
	TimestampTz end;
	int64		ngiven = 0;
	int64		npending = 0;
	int			i;

	if (!target->thins || batcher_change_is_open())
		return false;
	begin = batcher_clock_now();
	if (begin < (TimestampTz) pg_atomic_read_u64(&lane->thin_after))
		return false;
	db = batcher_catalog_database();
	for (i = 0; i < target->nlanes; i++)
	{
		BatcherSharedQueue *entry = target->queue->lanes[i];
		int64		n = batcher_lane_thin_inbox(entry, &db->generation,
												target->generation);

		if (n < 0)
			return true;		/* somebody else was at it */
		ngiven += n;
		npending += pg_atomic_read_u64(&entry->lane.npending);
	}
	end = batcher_clock_now();
	if (ngiven < npending)
		pg_atomic_write_u64(&lane->thin_after, end +
							Min(THIN_PAUSE * (end - begin), USECS_PER_SEC));
	return ngiven > 0;
}

/* An ERROR that says why there is no room, and, before "or", what to do. */
static void
raise_full(BatcherTarget *target, const char *detail, const char *hint)
{
	ConditionVariableCancelSleep();
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("queue \"%s\" is full", target->name),
			 errdetail_internal("%s", detail),
			 errhint("%s, or increase \"%s\" or the option \"%s\".", hint,
					 "batcher.shared_memory_size", "memory_limit")));
}

/* The same where waiting cannot help. */
static void
raise_full_for_long(BatcherTarget *target)
{
	if (pg_atomic_read_u32(&target->queue->paused))
		raise_full(target, "The queue is paused.", "Use batch_resume()");
	if (batcher_queue_breaker_open(target->queue))
		raise_full(target, "The breaker of the queue is open.",
				   "Mend its cause and use batch_reset_breaker()");
	raise_full(target, "No waiting row that could be flushed holds the memory.",
			   "Enqueue fewer rows in one transaction");
}

/* Does the queue have committed rows that are going to be flushed? */
static bool
has_rows_to_flush(BatcherSharedQueue *queue)
{
	BatcherSharedQueue *entry;
	int			i;

	if (pg_atomic_read_u32(&queue->paused) || batcher_queue_breaker_open(queue))
		return false;
	batcher_foreach_lane(entry, i, queue)
	{
		if (pg_atomic_read_u64(&entry->lane.npending) > 0)
			return true;
	}
	return false;
}

/* Are there committed rows whose flush would make room for 'size' bytes? */
static bool
flush_may_help(BatcherTarget *target, Size size)
{
	BatcherSharedQueue **list;
	bool		may = false;
	int			n;

	if (has_rows_to_flush(target->queue))
		return true;
	if (target->memory_limit > 0 &&
		pg_atomic_read_u64(&target->queue->lane.nbytes) + size >
		target->memory_limit)
		return false;
	list = palloc_array(BatcherSharedQueue *, batcher_max_queues);
	n = batcher_shmem_queue_list(InvalidOid, list, batcher_max_queues);
	while (n-- > 0 && !may)
		may = list[n]->key.lane == 0 && has_rows_to_flush(list[n]);
	pfree(list);
	return may;
}

/*
 * Wait until it is worth asking for 'size' bytes again.  '*end' is when the
 * waiting of this enqueue is over, or 0 at first.  An ERROR (53400) if the
 * queue is not to wait, or not that long, or if waiting cannot help; 40P01 if
 * the flush waits for this session.
 */
void
batcher_room_wait(BatcherTarget *target, Size size, TimestampTz *end)
{
	static uint32 wait_event = 0;
	const char *hint = "Wait for the flush to catch up";
	uint64		used = pg_atomic_read_u64(&batcher_shared->area_used);
	uint64		bytes = pg_atomic_read_u64(&target->queue->lane.nbytes);

	if (wait_event == 0)
		wait_event = batcher_wait_event("BatcherRoom");
	if (target->when_full == BATCHER_FULL_ERROR)
		raise_full(target, "The option \"when_full\" is \"error\".", hint);
	if (batcher_in_flush)
		raise_full(target, "A flush does not wait for room.", hint);
	if (*end == 0)
		*end = batcher_clock_add_ms(batcher_clock_now(),
									batcher_enqueue_timeout);

	ConditionVariablePrepareToSleep(&batcher_shared->room_cv);
	for (;;)
	{
		TimestampTz now = batcher_clock_now();
		long		ms = batcher_clock_ms_until(*end, now);

		if (pg_atomic_read_u64(&batcher_shared->area_used) < used ||
			pg_atomic_read_u64(&target->queue->lane.nbytes) < bytes)
			break;
		if (!flush_may_help(target, size))
			raise_full_for_long(target);
		if (ms == 0)
			raise_full(target,
					   "No room came within \"batcher.enqueue_timeout\".", hint);
		batcher_queue_wake(target->queue);
		if (ConditionVariableTimedSleep(&batcher_shared->room_cv,
										Min(ms, DeadlockTimeout), wait_event) &&
			batcher_wait_is_blocked_by_us(target->queue->key))
		{
			ConditionVariableCancelSleep();
			ereport(ERROR,
					(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
					 errmsg("deadlock detected"),
					 errdetail("The flush of queue \"%s\" waits for this session, which waits for its room.",
							   target->name)));
		}
	}
	ConditionVariableCancelSleep();
}
