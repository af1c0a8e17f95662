/*
 * lane.c
 *	  Chunks on their way from many producers to one worker.
 *
 * A producer pushes a chunk to the inbox before its commit record is written,
 * in state COMMITTING, so that the order of the inbox is one that visibility
 * respects: a transaction that sees another's effects pushes after it.  After
 * the transaction has become visible, one store decides the chunk.  The owner
 * takes the inbox whole and keeps what it took on a list in shared memory, so
 * that a worker that dies by an error loses nothing.
 *
 * Waking the owner: 'armed' says that the owner will look at the lane by
 * itself within the window, so a committer that finds it set does nothing.
 * The owner clears it only before it goes to sleep without a timer for the
 * lane, or while an undecided chunk holds back rows that are due, and looks
 * once more then.  Both sides use full barriers, so that not both can miss the
 * other.
 */
#include "postgres.h"

#include "base/clock.h"
#include "common/hashfn.h"
#include "port/pg_crc32c.h"
#include "queue/chunk.h"

/*
 * The number of the lane, of 'nlanes', into which this session puts a row with
 * this key; NULL: it has none.  Rows of a key stay in one lane wherever they
 * are read back, so the number is the same on all platforms.
 */
int
batcher_lane_choose(const text *key, int nlanes)
{
	pg_crc32c	crc;

	if (nlanes <= 1)
		return 0;
	if (key == NULL)
		return batcher_shmem_place() % nlanes;
	INIT_CRC32C(crc);
	COMP_CRC32C(crc, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
	FIN_CRC32C(crc);
	/* keys that are much alike differ in few bits of it only */
	return murmurhash32(crc) % nlanes;
}

/*
 * Whether rows of the lane are, or may be, in the spool only.
 */
bool
batcher_lane_spilled(BatcherSharedLane *lane)
{
	return (pg_atomic_read_u64(&lane->spill) & BATCHER_SPILL_SPILLED) != 0;
}

/*
 * The caller's transaction is about to commit rows that are in the spool
 * only.  From now on the lane counts as spilled.
 */
void
batcher_lane_spill_begin(BatcherSharedLane *lane)
{
	batcher_spill_change(lane, BATCHER_SPILL_SPILLED, 1);
}

/*
 * The transaction of batcher_lane_spill_begin has become visible, or has
 * rolled back.
 */
void
batcher_lane_spill_end(BatcherSharedLane *lane)
{
	batcher_spill_change(lane, 0, -1);
}

/*
 * Rows of the lane are in the spool that memory does not know.
 */
void
batcher_lane_spill_mark(BatcherSharedLane *lane)
{
	batcher_spill_change(lane, BATCHER_SPILL_SPILLED, 0);
}

/*
 * Somebody has looked through the spool of 'db' for rows of the lane.
 * 'restores' is db.restores before the snapshot of that look was taken: what
 * came since is still unknown.  Takes the control lock.
 */
void
batcher_lane_spill_known(BatcherSharedLane *lane, BatcherSharedDatabase *db,
						 uint32 restores)
{
	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	if (pg_atomic_read_u32(&db->restores) == restores)
		(void) pg_atomic_fetch_and_u64(&lane->spill, ~BATCHER_SPILL_UNKNOWN);
	LWLockRelease(&batcher_shared->lock);
}

/*
 * Return the lane to memory, after a scan of the spool found no row of it.
 * 'seen' is the spill word as it was before the snapshot of that scan was
 * taken.  False if somebody has spilled since, or was about to.
 */
bool
batcher_lane_spill_clear(BatcherSharedLane *lane, uint64 seen)
{
	uint64		want = (seen + 1) & BATCHER_SPILL_VERSION;

	if (seen & BATCHER_SPILL_COMMITTING)
		return false;
	return pg_atomic_compare_exchange_u64(&lane->spill, &seen, want);
}

/*
 * Put a filled chunk into the inbox.
 */
void
batcher_lane_push(BatcherSharedLane *lane, BatcherChunk *chunk)
{
	uint64		head = pg_atomic_read_u64(&lane->inbox);
	dsa_pointer p = batcher_area_pointer(chunk);

	do
	{
		chunk->next = head;
	} while (!pg_atomic_compare_exchange_u64(&lane->inbox, &head, p));
}

/*
 * Decide a pushed chunk: its transaction has committed at 'now', or rolled
 * back.  In commit and abort callbacks.  The chunk belongs to the lane's owner
 * afterwards.
 */
void
batcher_lane_decide(BatcherChunk *chunk, bool committed, TimestampTz now)
{
	chunk->committed_at = now;
	pg_write_barrier();
	pg_atomic_write_u32(&chunk->state, committed ? BATCHER_CHUNK_COMMITTED :
						BATCHER_CHUNK_VOID);
}

/*
 * 'nrows' rows of the lane are about to be decided as committed.  Returns how
 * many waited before, for batcher_lane_arrived.  It comes before the decision,
 * because the owner may settle a chunk as soon as that is decided.  In commit
 * callbacks.
 */
uint64
batcher_lane_arriving(BatcherSharedQueue *queue, int nrows)
{
	return pg_atomic_fetch_add_u64(&queue->lane.npending, nrows);
}

/*
 * The chunks of batcher_lane_arriving, or void ones (nrows 0), are decided:
 * wake the owner if it is worth it.  'before' is what batcher_lane_arriving
 * returned.  'urgent': an immediate row is among them.  In commit and abort
 * callbacks.
 */
void
batcher_lane_arrived(BatcherSharedQueue *queue, uint64 before, int nrows,
					 bool urgent)
{
	BatcherSharedLane *lane = &queue->lane;
	uint64		wake_at = pg_atomic_read_u64(&lane->wake_at);

	/* between the decision and the look at what the owner is up to */
	pg_memory_barrier();
	if (urgent || (before < wake_at && before + nrows >= wake_at) ||
		(pg_atomic_read_u32(&lane->armed) == 0 &&
		 pg_atomic_exchange_u32(&lane->armed, 1) == 0))
	{
		batcher_lane_note_due(queue, urgent);
		batcher_lane_wake(queue);
	}
}

/*
 * Move what is in the inbox to the end of the taken list; returns the oldest
 * chunk that came, from which the list goes on, or an invalid pointer.  The
 * owner of the lane only.
 */
dsa_pointer
batcher_lane_take(BatcherSharedLane *lane)
{
	dsa_pointer newest;
	dsa_pointer p;
	dsa_pointer oldest = InvalidDsaPointer;

	if (pg_atomic_read_u64(&lane->inbox) == 0)
		return InvalidDsaPointer;

	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	newest = pg_atomic_exchange_u64(&lane->inbox, 0);
	for (p = newest; DsaPointerIsValid(p);)
	{
		BatcherChunk *chunk = batcher_area_address(p);
		dsa_pointer older = chunk->next;

		chunk->next = oldest;
		chunk->previous = DsaPointerIsValid(older) ? older : lane->taken_tail;
		oldest = p;
		p = older;
	}
	if (DsaPointerIsValid(lane->taken_tail))
		((BatcherChunk *) batcher_area_address(lane->taken_tail))->next = oldest;
	else
		lane->taken_head = oldest;
	lane->taken_tail = newest;
	LWLockRelease(&lane->lock);
	return oldest;
}

/*
 * Is nothing left to do with this chunk?  Not with one that was rolled back
 * before its owner has taken note of that by setting 'nlive'.
 */
static bool
chunk_is_settled(BatcherChunk *chunk)
{
	return chunk->nlive == 0 &&
		pg_atomic_read_u32(&chunk->state) != BATCHER_CHUNK_COMMITTING;
}

/* Remember how the rows of a settled chunk ended; lane.lock is held. */
static void
record_fates(BatcherSharedQueue *queue, BatcherChunk *chunk)
{
	BatcherRow *row = batcher_chunk_first(chunk);
	int			i;

	if (pg_atomic_read_u32(&chunk->state) == BATCHER_CHUNK_VOID)
		return;
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		if (row->flags & BATCHER_ROW_RECORDED)
			continue;
		row->flags |= BATCHER_ROW_RECORDED;
		batcher_fate_record(queue, chunk->first_ticket + row->ticket,
							row->flags & BATCHER_ROW_PURGED ? BATCHER_FATE_PURGED :
							row->flags & BATCHER_ROW_DEAD ? BATCHER_FATE_DEAD :
							row->flags & BATCHER_ROW_SUPERSEDED ?
							BATCHER_FATE_SUPERSEDED :
							BATCHER_FATE_FLUSHED);
	}
}

/* Take a settled chunk off the taken list; lane.lock is held. */
static void
unlink_chunk(BatcherSharedQueue *queue, BatcherChunk *chunk)
{
	BatcherSharedLane *lane = &queue->lane;

	Assert(chunk_is_settled(chunk));
	record_fates(queue, chunk);
	if (DsaPointerIsValid(chunk->previous))
		((BatcherChunk *) batcher_area_address(chunk->previous))->next =
			chunk->next;
	else
		lane->taken_head = chunk->next;
	if (DsaPointerIsValid(chunk->next))
		((BatcherChunk *) batcher_area_address(chunk->next))->previous =
			chunk->previous;
	else
		lane->taken_tail = chunk->previous;
}

/* Give the room of a chunk back that no list has any more. */
static void
free_chunk(BatcherSharedQueue *queue, BatcherChunk *chunk)
{
	(void) pg_atomic_fetch_sub_u64(&queue->main->lane.nbytes,
								   batcher_chunk_bytes(chunk));
	batcher_slab_unref(chunk);
}

/*
 * Take these chunks, which are settled, off the taken list and give their room
 * back.  The owner of the lane only.
 */
void
batcher_lane_release(BatcherSharedQueue *queue, BatcherChunk **chunks, int n)
{
	BatcherSharedLane *lane = &queue->lane;
	int			i;

	if (n == 0)
		return;
	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	for (i = 0; i < n; i++)
		unlink_chunk(queue, chunks[i]);
	LWLockRelease(&lane->lock);
	for (i = 0; i < n; i++)
		free_chunk(queue, chunks[i]);
	ConditionVariableBroadcast(&batcher_shared->room_cv);
}

/*
 * Give the room of chunks back that were taken off their list, and are linked
 * by 'next'.
 */
void
batcher_lane_free(BatcherSharedQueue *queue, dsa_pointer released)
{
	if (!DsaPointerIsValid(released))
		return;
	while (DsaPointerIsValid(released))
	{
		BatcherChunk *chunk = batcher_area_address(released);

		released = chunk->next;
		free_chunk(queue, chunk);
	}
	ConditionVariableBroadcast(&batcher_shared->room_cv);
}

/*
 * Take settled chunks off the inbox, for batcher_lane_free.  The newest stays:
 * a producer may be about to push upon it.  lane.lock is held exclusively.
 */
dsa_pointer
batcher_lane_unlink_settled(BatcherSharedQueue *queue)
{
	dsa_pointer p = pg_atomic_read_u64(&queue->lane.inbox);
	dsa_pointer released = InvalidDsaPointer;
	BatcherChunk *newer;

	if (!DsaPointerIsValid(p))
		return released;
	newer = batcher_area_address(p);
	while (DsaPointerIsValid(p = newer->next))
	{
		BatcherChunk *chunk = batcher_area_address(p);

		if (!chunk_is_settled(chunk))
		{
			newer = chunk;
			continue;
		}
		record_fates(queue, chunk);
		newer->next = chunk->next;
		chunk->next = released;
		released = p;
	}
	return released;
}

/*
 * The same for all settled chunks of the taken list.  Works from the marks in the
 * chunks alone, so it does what a worker that died right after a commit has
 * left undone.  The owner of the lane only, who must not hold on to one.
 */
void
batcher_lane_sweep(BatcherSharedQueue *queue)
{
	BatcherSharedLane *lane = &queue->lane;
	dsa_pointer p;
	dsa_pointer released = InvalidDsaPointer;

	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	for (p = lane->taken_head; DsaPointerIsValid(p);)
	{
		BatcherChunk *chunk = batcher_area_address(p);
		dsa_pointer next = chunk->next;

		if (chunk_is_settled(chunk))
		{
			unlink_chunk(queue, chunk);
			chunk->next = released;
			released = p;
		}
		p = next;
	}
	LWLockRelease(&lane->lock);
	batcher_lane_free(queue, released);
}

/*
 * Whether no row of the lane waits, in memory or, as far as it is known, in
 * the spool.
 */
bool
batcher_lane_empty(BatcherSharedLane *lane)
{
	bool		empty;

	LWLockAcquire(&lane->lock, LW_SHARED);
	empty = pg_atomic_read_u64(&lane->inbox) == 0 &&
		!DsaPointerIsValid(lane->taken_head) && !batcher_lane_spilled(lane);
	LWLockRelease(&lane->lock);
	return empty;
}

/*
 * Does a chunk of the list that begins at 'p' have a row with this ticket?  A
 * settled one counts, because the fates of its rows may not be recorded yet.
 */
static bool
list_has_ticket(dsa_pointer p, uint64 ticket)
{
	while (DsaPointerIsValid(p))
	{
		BatcherChunk *chunk = batcher_area_address(p);

		if (pg_atomic_read_u32(&chunk->state) != BATCHER_CHUNK_VOID &&
			batcher_chunk_has_ticket(chunk, ticket))
			return true;
		p = chunk->next;
	}
	return false;
}

/*
 * Whether a row with this ticket is in the memory of the lane.
 */
bool
batcher_lane_has_ticket(BatcherSharedLane *lane, uint64 ticket)
{
	bool		has;

	LWLockAcquire(&lane->lock, LW_SHARED);
	has = list_has_ticket(lane->taken_head, ticket) ||
		list_has_ticket(pg_atomic_read_u64(&lane->inbox), ticket);
	LWLockRelease(&lane->lock);
	return has;
}

/*
 * Close the breaker of a queue and forget its failures, so that it, and each
 * row that has failed, is tried again at once.  Also in commit callbacks.
 */
void
batcher_queue_reset_breaker(BatcherSharedQueue *queue)
{
	BatcherSharedQueue *main = queue->main;
	BatcherSharedQueue *entry;
	int			i;

	pg_atomic_write_u32(&main->lane.breaker, BATCHER_BREAKER_CLOSED);
	pg_atomic_write_u32(&main->lane.failures, 0);
	batcher_foreach_lane(entry, i, main)
	{
		pg_atomic_write_u32(&entry->lane.put_offs, 0);
		pg_atomic_write_u64(&entry->lane.retry_at, 0);
	}
	(void) pg_atomic_fetch_add_u32(&main->lane.resets, 1);
}

/*
 * Whether the breaker of a queue keeps it from being flushed now.
 */
bool
batcher_queue_breaker_open(BatcherSharedQueue *queue)
{
	BatcherSharedLane *lane = &queue->main->lane;

	return pg_atomic_read_u32(&lane->breaker) == BATCHER_BREAKER_OPEN &&
		(TimestampTz) pg_atomic_read_u64(&lane->breaker_until) >
		batcher_clock_now();
}

/*
 * Throw all chunks of a lane away.  Only when nobody else can use the lane:
 * its queue, or the whole database, has been dropped.
 */
void
batcher_lane_discard(BatcherSharedQueue *queue)
{
	BatcherSharedLane *lane = &queue->lane;
	dsa_pointer p;

	(void) batcher_lane_take(lane);
	/* whoever walks the lists has the lock, and sees all of them or nothing */
	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	p = lane->taken_head;
	lane->taken_head = lane->taken_tail = InvalidDsaPointer;
	batcher_fate_discard(queue);
	LWLockRelease(&lane->lock);
	while (DsaPointerIsValid(p))
	{
		BatcherChunk *chunk = batcher_area_address(p);

		p = chunk->next;
		if (pg_atomic_read_u32(&chunk->state) == BATCHER_CHUNK_COMMITTED &&
			!(chunk->flags & BATCHER_CHUNK_DURABLE))
			batcher_shmem_add_volatile(-(int64) chunk->nlive);
		free_chunk(queue, chunk);
	}
	pg_atomic_write_u64(&lane->npending, 0);
	ConditionVariableBroadcast(&batcher_shared->room_cv);
	ConditionVariableBroadcast(batcher_settled_cv(queue->key.queue_id));
}

/* What a lane has counted is the main entry's from now on. */
static void
hand_over_counts(BatcherSharedQueue *queue)
{
	BatcherSharedQueue *main = queue->main;
	int			i;

	for (i = 0; i < BATCHER_NUM_COUNTERS; i++)
	{
		uint64		n = batcher_counter(queue, i);

		if (i != BATCHER_LAST_FLUSH_AT && i != BATCHER_STATS_RESET_AT)
			batcher_count(main, i, n);
		else if (n > batcher_counter(main, i))
			pg_atomic_write_u64(&main->counters[i], n);
	}
	(void) pg_atomic_fetch_add_u64(&main->lane.nflushed,
								   pg_atomic_read_u64(&queue->lane.nflushed));
	(void) pg_atomic_fetch_add_u64(&main->lane.npurged,
								   pg_atomic_read_u64(&queue->lane.npurged));
}

/*
 * May a lane go that, by the definitions of 'expected', its queue has no more?
 * Not if it may get it again, because '*generation' is another one by now, or
 * the queue is closed; nor if something waits in it.
 */
bool
batcher_lane_may_retire(BatcherSharedQueue *queue,
						pg_atomic_uint64 *generation, uint64 expected)
{
	BatcherSharedLane *lane = &queue->lane;

	if (pg_atomic_read_u32(&queue->main->closed) != 0)
		return false;
	pg_read_barrier();
	return pg_atomic_read_u64(generation) == expected &&
		batcher_lane_empty(lane) && pg_atomic_read_u64(&lane->npending) == 0 &&
		pg_atomic_read_u32(&lane->unsent) == 0;
}

/*
 * Take away a lane, not the first, that its queue has no more; the main entry
 * gets what is known of its rows.  The lane has no owner, or the worker of 'slot'
 * owns and holds it: if not, or if it may not go, nothing is done, and the result
 * is false.  Who wants the lane closes the queue before it sees under the control
 * lock that there is one, and opens it after there is a new generation.
 */
bool
batcher_lane_retire(BatcherQueueKey key, int slot,
					pg_atomic_uint64 *generation, uint64 expected)
{
	BatcherSharedQueue *queue;
	int			owner;
	bool		retires = false;

	Assert(key.lane > 0);
	(void) batcher_shmem_area();
	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	queue = batcher_shmem_queue_locked(key);
	if (queue)
	{
		owner = batcher_lane_owner(&queue->lane);
		retires = (owner < 0 || owner == slot) &&
			batcher_lane_may_retire(queue, generation, expected);
	}
	if (retires)
	{
		Assert(owner < 0 ||
			   pg_atomic_read_u32(&queue->lane.owner) & BATCHER_OWNER_HOLDS);
		batcher_fate_hand_over(queue);
		hand_over_counts(queue);
		(void) batcher_shmem_queue_remove_locked(key);
	}
	LWLockRelease(&batcher_shared->lock);
	if (retires)
		batcher_shmem_queue_removed();
	return retires;
}

/*
 * Throw a queue away, given by its main entry, with all its lanes.
 */
void
batcher_queue_discard(BatcherSharedQueue *queue)
{
	int			i;

	/* lane 0 last */
	for (i = BATCHER_MAX_LANES - 1; i >= 0; i--)
	{
		BatcherSharedQueue *entry = queue->lanes[i];

		if (entry == NULL)
			continue;
		batcher_lane_discard(entry);
		(void) batcher_shmem_queue_remove(entry->key);
	}
}

/*
 * Throw away all that memory holds of a database whose extension, or which
 * itself, is gone.  No worker is attached to it.  The launcher.
 */
void
batcher_lane_discard_database(BatcherDatabaseKey key)
{
	BatcherSharedQueue **list;
	int			n;

	list = palloc_array(BatcherSharedQueue *, batcher_max_queues);
	n = batcher_shmem_queue_list(key.dboid, list, batcher_max_queues);
	while (n-- > 0)
	{
		if (list[n]->key.db.extoid == key.extoid && list[n]->key.lane == 0)
			batcher_queue_discard(list[n]);
	}
	pfree(list);
	batcher_shmem_database_remove(key);
}
