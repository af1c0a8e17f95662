/*
 * owner.c
 *	  Who flushes a lane, and when somebody else may take it over.
 *
 * A lane has one owner at a time, a worker, which keeps it.  What the owner
 * does with the lane it does while it holds it, which is a bit of the word
 * that names the owner.  A lane that is not held can be taken over by another
 * worker, if its owner is busy with other lanes and rows wait in it that are
 * due.  Both are one compare-and-swap of that word: so the former owner finds
 * out before it touches the lane again, and whoever takes it over never meets
 * him in it.  The word counts how often the lane was held: who takes it over
 * has looked whether he may, and the owner may have held it once more since,
 * and have left what forbids it.  Nothing has to be handed over, because what an
 * owner knows of a lane beyond shared memory and the spool can be lost at any
 * moment.
 *
 * Messages that the owner has not sent yet keep the lane with him, because
 * they have to go out before those of later batches.
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/settings.h"
#include "queue/chunk.h"

/*
 * The slot of the worker that owns a lane, -1: none.
 */
int
batcher_lane_owner(BatcherSharedLane *lane)
{
	return (int) (pg_atomic_read_u32(&lane->owner) & BATCHER_OWNER_SLOT) - 1;
}

/*
 * Hold a lane that the worker of 'slot' owns and does not hold.  False if it
 * has been taken over.
 */
bool
batcher_lane_hold(BatcherSharedLane *lane, int slot)
{
	uint32		word = pg_atomic_read_u32(&lane->owner);

	while (!(word & BATCHER_OWNER_HOLDS) &&
		   (word & BATCHER_OWNER_SLOT) == slot + 1)
	{
		/* where the count overflows it runs into the bit that is set anyway */
		if (pg_atomic_compare_exchange_u32(&lane->owner, &word,
										   (word + BATCHER_OWNER_COUNT) |
										   BATCHER_OWNER_HOLDS))
			return true;
	}
	return false;
}

/*
 * Let go of a lane that this process holds.  It stays its owner.
 */
void
batcher_lane_let_go(BatcherSharedLane *lane)
{
	Assert(pg_atomic_read_u32(&lane->owner) & BATCHER_OWNER_HOLDS);
	(void) pg_atomic_fetch_and_u32(&lane->owner, ~BATCHER_OWNER_HOLDS);
}

/*
 * Whether the worker of 'slot' may own the lane too: the lanes of one queue
 * have at most half of the workers, and always one.  -1: whether a new one may.
 * Without the control lock the answer is a guess.
 */
bool
batcher_lane_may_own(BatcherSharedQueue *queue, int slot)
{
	bool		owns[BATCHER_MAX_WORKERS] = {false};
	int			nowners = 0;
	BatcherSharedQueue *entry;
	int			i;

	batcher_foreach_lane(entry, i, queue->main)
	{
		int			owner = batcher_lane_owner(&entry->lane);

		if (entry == queue || owner < 0 || owns[owner])
			continue;
		owns[owner] = true;
		nowners++;
	}
	return (slot >= 0 && owns[slot]) || nowners < Max(batcher_max_workers / 2, 1);
}

/*
 * Whether there is something that a worker should do for the lane.
 */
bool
batcher_lane_wants_worker(BatcherSharedQueue *queue)
{
	BatcherSharedLane *lane = &queue->lane;
	uint64		spill = pg_atomic_read_u64(&lane->spill);
	uint64		settled = pg_atomic_read_u64(&lane->settled);

	if (pg_atomic_read_u64(&lane->purge_upto) > settled)
		return true;
	if (pg_atomic_read_u32(&queue->paused) || batcher_queue_breaker_open(queue))
		return false;
	return pg_atomic_read_u64(&lane->npending) > 0 ||
		pg_atomic_read_u64(&lane->flush_upto) > settled ||
		((spill & BATCHER_SPILL_SPILLED) && !(spill & BATCHER_SPILL_UNKNOWN));
}

/*
 * When a worker should look at the lane, about, at which nobody has looked
 * since 'since'; BATCHER_NEVER if there is nothing to do.
 */
TimestampTz
batcher_lane_due(BatcherSharedQueue *queue, TimestampTz since)
{
	BatcherSharedLane *lane = &queue->lane;
	uint64		settled = pg_atomic_read_u64(&lane->settled);
	TimestampTz next = pg_atomic_read_u64(&lane->next_flush_at);

	if (!batcher_lane_wants_worker(queue))
		return BATCHER_NEVER;
	if (pg_atomic_read_u64(&lane->purge_upto) > settled ||
		pg_atomic_read_u64(&lane->flush_upto) > settled ||
		pg_atomic_read_u64(&lane->npending) >=
		pg_atomic_read_u64(&lane->wake_at))
		return since;
	if (next != 0)
		return Max(next, since);
	/* rows have come after the last look */
	return batcher_clock_add_ms(since, pg_atomic_read_u32(&queue->window));
}

/*
 * Since when rows of a lane wait that should have been flushed, as far as the
 * last look tells.  'due' is when the next look is, at which they may be.
 */
TimestampTz
batcher_lane_late(BatcherSharedQueue *queue, TimestampTz due)
{
	TimestampTz next = pg_atomic_read_u64(&queue->lane.next_flush_at);

	return next != 0 ? Min(next, due) : due;
}

/*
 * From when on another worker may take the lane over, if nothing changes;
 * BATCHER_NEVER if none may.
 */
TimestampTz
batcher_lane_stuck_at(BatcherSharedQueue *queue)
{
	BatcherSharedLane *lane = &queue->lane;
	int			owner = batcher_lane_owner(lane);
	TimestampTz since;

	if (owner < 0)
		return BATCHER_NEVER;
	since = pg_atomic_read_u64(&batcher_shared->workers[owner].busy_since);
	if (since == 0 || pg_atomic_read_u32(&lane->unsent) > 0 ||
		(pg_atomic_read_u32(&lane->owner) & BATCHER_OWNER_HOLDS))
		return BATCHER_NEVER;
	return batcher_lane_due(queue, since);
}

/*
 * Own a lane, as the worker of 'slot', and hold it, if nobody has it, or its
 * owner is too busy for it.  The control lock is held exclusively, so that
 * nobody else takes it over, or gives it up.
 */
bool
batcher_lane_own(BatcherSharedQueue *queue, int slot)
{
	uint32		word = pg_atomic_read_u32(&queue->lane.owner);

	Assert(LWLockHeldByMeInMode(&batcher_shared->lock, LW_EXCLUSIVE));

	/* what is seen from here on holds while the word stays as it is */
	pg_read_barrier();
	if (word != 0 && batcher_lane_stuck_at(queue) > batcher_clock_now())
		return false;
	return batcher_lane_may_own(queue, slot) &&
		pg_atomic_compare_exchange_u32(&queue->lane.owner, &word,
									   (uint32) (slot + 1) |
									   BATCHER_OWNER_HOLDS);
}

/*
 * Rows have come to a lane at which its owner would look now, if he could:
 * where he is busy, store by when somebody else should.  In commit callbacks.
 */
void
batcher_lane_note_due(BatcherSharedQueue *queue, bool urgent)
{
	BatcherSharedLane *lane = &queue->lane;
	int			owner = batcher_lane_owner(lane);
	TimestampTz now;
	uint64		none = 0;

	if (owner < 0 ||
		pg_atomic_read_u64(&batcher_shared->workers[owner].busy_since) == 0)
		return;
	now = batcher_clock_now();
	if (urgent)
		pg_atomic_write_u64(&lane->next_flush_at, now);
	else
		(void) pg_atomic_compare_exchange_u64(&lane->next_flush_at, &none,
											  batcher_clock_add_ms(now,
																   pg_atomic_read_u32(&queue->window)));
}

/*
 * Wake who flushes the lane: its owner, or, where there is none or he is
 * busy, the launcher, which finds one.
 */
void
batcher_lane_wake(BatcherSharedQueue *queue)
{
	int			owner = batcher_lane_owner(&queue->lane);

	if (owner >= 0)
	{
		BatcherSharedWorker *worker = &batcher_shared->workers[owner];
		uint32		proc = pg_atomic_read_u32(&worker->proc);

		/* first wake, then look: see worker/patience.c */
		batcher_shmem_wake_proc(proc);
		if (proc != 0 && pg_atomic_read_u64(&worker->busy_since) == 0)
			return;
	}
	batcher_shmem_wake_launcher();
}

/*
 * Wake who flushes the lanes of a queue, which is given by its main entry.
 */
void
batcher_queue_wake(BatcherSharedQueue *queue)
{
	BatcherSharedQueue *entry;
	int			i;

	batcher_foreach_lane(entry, i, queue)
		batcher_lane_wake(entry);
}
