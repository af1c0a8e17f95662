/*
 * thin.c
 *	  Giving up rows of keys that come again and again.
 *
 * Where the rows of a key that wait together become one, because key_policy is
 * "last" or "first", all of them wait as a rule until that one is flushed, and
 * are settled with it.  If memory is all that has them, a key that is hot
 * while nothing can be flushed would fill it.  So the rows between the oldest
 * and the newest of a key are given up then: the former is what "first"
 * flushes, and what max_wait counts from, the latter what "last" flushes, and
 * what debounce counts from.
 *
 * Nothing is given up that would leave in another way than the newest: what is
 * immediate, a batch of its own, or of a higher priority, and what has failed by
 * its own fault; and nothing for a newer row that an undecided one holds back.
 * It is not certain that a key is thinned: what is known of a key is lost if
 * another one has the same place in a table of fixed size, which needs no
 * memory under the lock.
 *
 * The inbox is thinned by producers that find memory full, while the owner of
 * the lane is in a flush; what it has taken by the owner.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "port/pg_bitutils.h"
#include "queue/chunk.h"
#include "storage/condition_variable.h"

/* Places in the table of keys: a quarter of the rows, at least and at most. */
#define MIN_PLACES		1024
#define MAX_PLACES		65536

/* What was met last of a key.  The lists are walked from the newest on. */
typedef struct KeyPlace
{
	text	   *key;			/* in the chunk of the newest row */
	int32		priority;		/* of the newest row */
	BatcherRow *older;			/* the oldest so far, NULL: only one was met */
	BatcherChunk *older_chunk;
} KeyPlace;

typedef struct Thinning
{
	KeyPlace   *places;
	uint32		mask;			/* their number, a power of two, less one */
	int64		ngiven;			/* rows given up */
} Thinning;

static void
thinning_begin(Thinning *thinning, BatcherSharedQueue *queue)
{
	uint64		nrows = pg_atomic_read_u64(&queue->lane.npending);
	uint32		n = pg_nextpower2_32(Min(Max(nrows / 4, MIN_PLACES),
										 MAX_PLACES));

	thinning->places = palloc0(n * sizeof(KeyPlace));
	thinning->mask = n - 1;
	thinning->ngiven = 0;
}

/* Look at a row that is older than those before. */
static void
thin_row(Thinning *thinning, BatcherChunk *chunk, BatcherRow *row)
{
	text	   *key;
	KeyPlace   *place;

	if ((row->flags & (BATCHER_ROW_DONE | BATCHER_ROW_IMMEDIATE |
					   BATCHER_ROW_ALONE)) || row->attempts > 0)
		return;
	key = batcher_row_key(chunk, row);
	if (key == NULL)
		return;
	place = &thinning->places[hash_bytes((unsigned char *) VARDATA(key),
										 VARSIZE(key) - VARHDRSZ) &
							  thinning->mask];
	if (place->key == NULL || VARSIZE(place->key) != VARSIZE(key) ||
		memcmp(place->key, key, VARSIZE(key)) != 0)
	{
		place->key = key;
		place->priority = batcher_row_priority(row);
		place->older = NULL;
		return;
	}
	if (batcher_row_priority(row) > place->priority)
		return;
	if (place->older)
	{
		place->older->flags |= BATCHER_ROW_DONE | BATCHER_ROW_SUPERSEDED;
		place->older_chunk->nlive--;
		thinning->ngiven++;
	}
	place->older = row;
	place->older_chunk = chunk;
}

/* Look at the rows of a chunk, from the last to the first. */
static void
thin_chunk(Thinning *thinning, BatcherChunk *chunk)
{
	BatcherRow *rows[BATCHER_CHUNK_SIZE / sizeof(BatcherRow)];
	BatcherRow *row = batcher_chunk_first(chunk);
	uint32		state = pg_atomic_read_u32(&chunk->state);
	int			i;

	if (!(chunk->flags & BATCHER_CHUNK_KEYED) ||
		(chunk->flags & BATCHER_CHUNK_DURABLE) ||
		state == BATCHER_CHUNK_VOID)
		return;
	if (state == BATCHER_CHUNK_COMMITTING)
	{
		/* what is newer is held back by it: what is older may leave before */
		memset(thinning->places, 0, (thinning->mask + 1) * sizeof(KeyPlace));
		return;
	}
	Assert(chunk->nrows <= lengthof(rows));
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
		rows[i] = row;
	while (i-- > 0)
		thin_row(thinning, chunk, rows[i]);
}

/* Publish how many rows are gone; returns that. */
static int64
thinning_end(Thinning *thinning, BatcherSharedQueue *queue)
{
	int64		n = thinning->ngiven;

	pfree(thinning->places);
	if (n > 0)
	{
		(void) pg_atomic_fetch_sub_u64(&queue->lane.npending, n);
		batcher_count(queue, BATCHER_ROWS_SUPERSEDED, n);
		batcher_shmem_add_volatile(-n);
		ConditionVariableBroadcast(batcher_settled_cv(queue->key.queue_id));
	}
	return n;
}

/*
 * Thin the keys of what is in the inbox of a queue whose key_policy is "last"
 * or "first" as long as '*generation' of the definitions is the one that is
 * 'expected': else nothing is done, because what is there by then may be under
 * another policy.  Returns how many rows were given up, or -1 if the lock was
 * not free: then who had it may have done it.  Takes time that grows with the
 * inbox, under lane.lock.  A producer.
 */
int64
batcher_lane_thin_inbox(BatcherSharedQueue *queue,
						pg_atomic_uint64 *generation, uint64 expected)
{
	BatcherSharedLane *lane = &queue->lane;
	dsa_pointer p;
	dsa_pointer released;
	Thinning	thinning;

	thinning_begin(&thinning, queue);
	if (!LWLockAcquireOrWait(&lane->lock, LW_EXCLUSIVE))
	{
		pfree(thinning.places);
		return -1;
	}
	p = pg_atomic_read_u64(&lane->inbox);
	/* what was pushed before it changes was enqueued under that policy */
	pg_memory_barrier();
	if (pg_atomic_read_u64(generation) != expected)
		p = InvalidDsaPointer;
	while (DsaPointerIsValid(p))
	{
		BatcherChunk *chunk = batcher_area_address(p);

		thin_chunk(&thinning, chunk);
		p = chunk->next;
	}
	released = batcher_lane_unlink_settled(queue);
	LWLockRelease(&lane->lock);
	batcher_lane_free(queue, released);
	return thinning_end(&thinning, queue);
}

/*
 * The same for what was taken.  The owner of the lane, who must not hold on to
 * a chunk.
 */
void
batcher_lane_thin_taken(BatcherSharedQueue *queue)
{
	BatcherSharedLane *lane = &queue->lane;
	dsa_pointer p;
	Thinning	thinning;

	thinning_begin(&thinning, queue);
	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	for (p = lane->taken_tail; DsaPointerIsValid(p);)
	{
		BatcherChunk *chunk = batcher_area_address(p);

		thin_chunk(&thinning, chunk);
		p = chunk->previous;
	}
	LWLockRelease(&lane->lock);
	batcher_lane_sweep(queue);
	(void) thinning_end(&thinning, queue);
}
