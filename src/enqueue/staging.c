/*
 * staging.c
 *	  Rows between their enqueuing and the end of their transaction.
 *
 * The life of a staged row:
 *
 * 1. Enqueuing puts it into a chunk in the shared area at once, so that what
 *	  can fail for lack of memory fails in the statement.  A chunk belongs to
 *	  one lane and one nesting level; nobody else can see it yet.  A durable row
 *	  for which the area has no room goes into a chunk in private memory.
 *
 * 2. A savepoint that is rolled back takes the chunks of its level with it; one
 *	  that is released leaves them to its parent.
 *
 * 3. Large transactions do not gather everything until the end: durable chunks
 *	  that are full, and for which there is no room or which are too many, are
 *	  written to the spool in the statement ("sealed"), in the subtransaction
 *	  that made them, and leave memory.
 *
 * 4. PRE_COMMIT writes the spool tuples and pushes the chunks to their lanes'
 *	  inboxes.  It may fail, hardly.  A lane that has spilled rows, or of
 *	  which this transaction has rows that are not in the area, gets no chunk:
 *	  all durable rows spill then, so that order is kept.
 *
 * 5. COMMIT or ABORT decides the chunks by one store each and wakes the worker
 *	  if that is worth it.  It cannot fail and allocates nothing.
 *
 * PREPARE is refused, as for NOTIFY.  Client backends, and workers for rows
 * that a flush enqueues.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/debug.h"
#include "enqueue/enqueue.h"
#include "enqueue/staged.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define INLINE_LANES	4
#define INLINE_CHUNKS	8

static StagedLane inline_lanes[INLINE_LANES];
static StagedChunk inline_chunks[INLINE_CHUNKS];

/* Of the current transaction; larger arrays are in TopTransactionContext. */
static StagedLane *lanes = inline_lanes;
static StagedChunk *chunks = inline_chunks;
static int	nlanes = 0;
static int	nchunks = 0;
static int	max_lanes = INLINE_LANES;
static int	max_chunks = INLINE_CHUNKS;
static bool active = false;		/* the spool is locked, and needed */
static int	locked_level;		/* nesting level that needs the lock */
static Oid	held_spool = InvalidOid;	/* locked until the end of the transaction,
										 * needed or not */
static uint64 held_number;		/* the next number, right after that */

/* Bytes of one lane that a transaction keeps in the area before it seals. */
static Size
seal_limit(void)
{
	return batcher_shared->area_size / 64;
}

/*
 * Whether this transaction has locked the spool for enqueuing.
 */
bool
batcher_staging_active(void)
{
	return active;
}

/*
 * Lock, or unlock, the spool for the transaction, as inv_api.c does with the
 * relations of large objects.  A savepoint to which it rolls back does not take
 * the lock: who waits for a transaction that had enqueued waits for its end.
 */
static void
set_lock(Oid spool, bool lock)
{
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = TopTransactionResourceOwner;
	if (lock)
		LockRelationOid(spool, RowExclusiveLock);
	else
		UnlockRelationOid(spool, RowExclusiveLock);
	CurrentResourceOwner = owner;	/* whoever catches an error sets it, too */
}

/*
 * Lock the spool until the end of the transaction; returns its OID.  It costs
 * nothing after the first call of a transaction.
 */
Oid
batcher_staging_lock_spool(void)
{
	if (active)
		return held_spool;
	for (;;)
	{
		Oid			spool = batcher_catalog_find(false)->spool;

		if (spool == held_spool)
			break;
		set_lock(spool, true);
		/* the lock brought news: is it still the one? */
		if (batcher_catalog_find(false)->spool == spool)
		{
			held_number = batcher_spool_held_since != 0 ?
				batcher_spool_held_since :
				pg_atomic_read_u64(&batcher_catalog_database()->next_number);
			held_spool = spool;
			break;
		}
		set_lock(spool, false);
	}
	locked_level = GetCurrentTransactionNestLevel();
	active = true;
	return held_spool;
}

/*
 * Whether the spool was locked before 'number' was drawn.
 */
bool
batcher_staging_locked_before(uint64 number)
{
	return active && held_number <= number;
}

/*
 * Give up the lock that batcher_staging_lock_spool has just taken, before
 * anything was staged.
 */
void
batcher_staging_unlock_spool(void)
{
	Assert(active && nlanes == 0);
	set_lock(held_spool, false);
	held_spool = InvalidOid;
	active = false;
}

/* The lane of a queue for a row with this key, or none, in the array. */
static int
find_lane(BatcherTarget *target, const text *key)
{
	BatcherSharedQueue *queue =
		target->queue->lanes[batcher_lane_choose(key, target->nlanes)];
	StagedLane *lane;
	int			i;

	Assert(queue != NULL);
	for (i = nlanes - 1; i >= 0; i--)
	{
		if (lanes[i].queue == queue)
			return i;
	}
	if (nlanes == max_lanes)
	{
		StagedLane *larger;

		larger = MemoryContextAlloc(TopTransactionContext,
									2 * max_lanes * sizeof(StagedLane));
		memcpy(larger, lanes, nlanes * sizeof(StagedLane));
		lanes = larger;
		max_lanes *= 2;
	}
	lane = &lanes[nlanes];
	memset(lane, 0, sizeof(*lane));
	lane->queue = queue;
	lane->level = GetCurrentTransactionNestLevel();
	lane->open = -1;
	return nlanes++;
}

/* Make room for one more chunk in the array. */
static void
reserve_chunk(void)
{
	StagedChunk *larger;

	if (nchunks < max_chunks)
		return;
	larger = MemoryContextAllocHuge(TopTransactionContext,
									2 * max_chunks * sizeof(StagedChunk));
	memcpy(larger, chunks, nchunks * sizeof(StagedChunk));
	chunks = larger;
	max_chunks *= 2;
}

/* Does this row have to be, or go on, outside of the area? */
static bool
area_refuses(BatcherTarget *target, Size size)
{
	uint64		bytes = pg_atomic_read_u64(&target->queue->lane.nbytes);

	if (target->memory_limit > 0 && bytes + size > target->memory_limit)
		return true;
	return batcher_slab_refuses(bytes, size);
}

/* Begin a chunk for a row of 'size' bytes; returns its index. */
static int
begin_chunk(BatcherTarget *target, int lane_index, Size size, Oid by)
{
	StagedLane *lane = &lanes[lane_index];
	StagedChunk *staged;
	BatcherChunk *chunk = NULL;
	bool		in_area = !lane->has_private;
	TimestampTz end = 0;
	MemoryContext old;

	reserve_chunk();
	while (in_area)
	{
		if (!area_refuses(target, size))
			chunk = batcher_chunk_new(size, false);
		if (chunk != NULL)
			break;
		if (batcher_room_make(target))
			continue;
		if (target->when_full == BATCHER_FULL_SPILL)
			in_area = false;
		else
			batcher_room_wait(target, size, &end);
	}
	if (chunk == NULL)
	{
		old = MemoryContextSwitchTo(TopTransactionContext);
		chunk = batcher_chunk_new(size, true);
		MemoryContextSwitchTo(old);
		lane->has_private = true;
	}
	else
	{
		lane->bytes += BATCHER_CHUNK_HEADER;
		(void) pg_atomic_fetch_add_u64(&target->queue->lane.nbytes,
									   BATCHER_CHUNK_HEADER);
	}
	chunk->enqueued_by = by;
	chunk->enqueued_at = GetCurrentTransactionStartTimestamp();

	staged = &chunks[nchunks];
	staged->chunk = chunk;
	staged->last = NULL;
	staged->lane = lane_index;
	staged->level = GetCurrentTransactionNestLevel();
	staged->nrows = 0;
	staged->pushed = false;
	lane->open = nchunks;
	return nchunks++;
}

/* An ERROR for a row for which there can never be room. */
static void
check_size(BatcherTarget *target, Size size)
{
	if (size > batcher_shared->area_size / 8)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("row of %zu bytes is too large for queue \"%s\"",
						size, target->name),
				 errdetail("A row may take an eighth of \"%s\", which is %zu bytes.",
						   "batcher.shared_memory_size",
						   batcher_shared->area_size / 8)));
	if (target->memory_limit > 0 && size > target->memory_limit &&
		target->when_full != BATCHER_FULL_SPILL)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("row of %zu bytes is too large for queue \"%s\"",
						size, target->name),
				 errdetail("The option \"%s\" lets the queue have %lld bytes of memory.",
						   "memory_limit", (long long) target->memory_limit),
				 errhint("Increase the option \"%s\".", "memory_limit")));
}

/*
 * Stage a row, enqueued by the role 'by'.  Errors: 54000 if it is too large,
 * 53400 if there is no room.
 */
void
batcher_staging_add(BatcherTarget *target, const BatcherRowParts *parts,
					Oid by)
{
	Size		size = batcher_row_size(parts);
	int			index = find_lane(target, parts->key);
	StagedLane *lane = &lanes[index];
	StagedChunk *staged = NULL;
	BatcherRow *row = NULL;

	check_size(target, size);
	(void) batcher_shmem_area();
	lane->durable |= target->durable;

	if (lane->open >= 0)
	{
		staged = &chunks[lane->open];
		if (staged->level == GetCurrentTransactionNestLevel() &&
			staged->chunk->enqueued_by == by &&
			!(area_refuses(target, size) &&
			  !(staged->chunk->flags & BATCHER_CHUNK_PRIVATE)))
			row = batcher_chunk_add(staged->chunk, staged->last, parts, size);
		if (row == NULL)
		{
			lane->open = -1;
			if (lane->durable &&
				staged->level == GetCurrentTransactionNestLevel() &&
				((staged->chunk->flags & BATCHER_CHUNK_PRIVATE) ||
				 lane->bytes > seal_limit()))
				batcher_staged_seal(lanes, chunks, staged - chunks,
									held_spool);
		}
	}
	if (row == NULL)
	{
		int			chunk_index = begin_chunk(target, index, size, by);

		/* the arrays may have moved */
		staged = &chunks[chunk_index];
		lane = &lanes[index];
		row = batcher_chunk_add(staged->chunk, NULL, parts, size);
	}
	staged->last = row;
	if (!(staged->chunk->flags & BATCHER_CHUNK_PRIVATE))
	{
		lane->bytes += size;
		(void) pg_atomic_fetch_add_u64(&target->queue->lane.nbytes, size);
	}
	lane->urgent |= parts->immediate || parts->alone || !target->enabled;
}

/*
 * Whether the transaction has enqueued into this queue.
 */
bool
batcher_staging_has_queue(BatcherSharedQueue *queue)
{
	int			i;

	for (i = 0; i < nchunks; i++)
	{
		if (lanes[chunks[i].lane].queue->main == queue)
			return true;
	}
	return false;
}

/*
 * Whether a ticket is of a row of the transaction.  (Within a sealed chunk a
 * ticket that another session was given counts too: that is not settled
 * either, or its session knows better.)
 */
bool
batcher_staging_has_ticket(BatcherQueueKey key, uint64 ticket)
{
	int			i;

	for (i = 0; i < nchunks; i++)
	{
		StagedChunk *staged = &chunks[i];

		if (memcmp(&lanes[staged->lane].queue->main->key, &key, sizeof(key)) != 0)
			continue;
		if (staged->chunk ? batcher_chunk_has_ticket(staged->chunk, ticket) :
			(ticket >= staged->first_ticket && ticket <= staged->last_ticket))
			return true;
	}
	return false;
}

/*
 * Rows cannot be stored when their transaction has dropped the extension,
 * even if it has made it anew.
 */
static void
check_spool_is_there(void)
{
	const BatcherCatalog *catalog = batcher_catalog_find(true);

	if (catalog == NULL || catalog->spool != held_spool)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot drop extension \"%s\" in a transaction that has enqueued rows",
						"batcher")));
}

/*
 * Everything of the commit that may fail.  Not in the current context, which a
 * procedure that commits in a loop keeps.
 */
static void
prepare_commit(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	bool		durable = false;
	int			i;

	for (i = 0; i < nlanes; i++)
	{
		StagedLane *lane = &lanes[i];

		/* while a lane has spilled rows, every row of it goes that way */
		if (!lane->durable && !XactReadOnly &&
			(pg_atomic_read_u64(&lane->queue->lane.spill) &
			 (BATCHER_SPILL_SPILLED | BATCHER_SPILL_UNKNOWN)) ==
			BATCHER_SPILL_SPILLED)
			lane->durable = true;
		durable |= lane->durable;
	}
	batcher_staged_number(lanes, nlanes, chunks, nchunks);
	if (durable)
		batcher_staged_write(lanes, chunks, nchunks, held_spool);
	batcher_debug_point("spool-written");

	for (i = 0; i < nchunks; i++)
	{
		StagedLane *lane = &lanes[chunks[i].lane];

		if (chunks[i].chunk == NULL)
			continue;
		lane->nmemory += chunks[i].chunk->nrows;
		batcher_lane_push(&lane->queue->lane, chunks[i].chunk);
		chunks[i].pushed = true;
	}
	MemoryContextSwitchTo(old);
	batcher_debug_point("pre-commit");
}

/* Nothing is staged any more, and the spool need not be locked. */
static void
reset_staging(void)
{
	batcher_slab_end_transaction();
	lanes = inline_lanes;
	chunks = inline_chunks;
	max_lanes = INLINE_LANES;
	max_chunks = INLINE_CHUNKS;
	nlanes = nchunks = 0;
	active = false;
}

/* The transaction has ended, either way.  Nothing here may fail. */
static void
end_transaction(bool commit)
{
	TimestampTz now = commit ? GetCurrentTransactionStopTimestamp() : 0;
	int			i;

	if (commit)
		batcher_debug_point("commit");
	for (i = 0; commit && i < nlanes; i++)
		lanes[i].before = batcher_lane_arriving(lanes[i].queue,
												lanes[i].nmemory);
	for (i = 0; i < nchunks; i++)
	{
		if (chunks[i].pushed)
			batcher_lane_decide(chunks[i].chunk, commit, now);
		else
			batcher_staged_release(lanes, &chunks[i]);
	}
	for (i = 0; i < nlanes; i++)
	{
		StagedLane *lane = &lanes[i];
		BatcherSharedQueue *queue = lane->queue;

		if (lane->spilling && commit)
		{
			(void) pg_atomic_fetch_add_u64(&queue->lane.nspilled,
										   lane->nspilled);
			batcher_count(queue, BATCHER_ROWS_SPILLED, lane->nspilled);
		}
		if (lane->spilling)
			batcher_lane_spill_end(&queue->lane);
		if (commit && !lane->durable)
			batcher_shmem_add_volatile(lane->nmemory);
		if (commit)
			batcher_count(queue, BATCHER_ROWS_ENQUEUED,
						  lane->nmemory + lane->nspilled);
		if (lane->nmemory > 0 || lane->spilling)
			batcher_lane_arrived(queue, lane->before,
								 commit ? lane->nmemory : 0,
								 commit && lane->urgent);
	}
	reset_staging();
}

static void
staging_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		held_spool = InvalidOid;
	if (!active)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (nchunks > 0)
			{
				check_spool_is_there();
				prepare_commit();
			}
			break;
		case XACT_EVENT_COMMIT:
			end_transaction(true);
			break;
		case XACT_EVENT_ABORT:
			end_transaction(false);
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (nchunks > 0)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has enqueued rows")));
			break;
		case XACT_EVENT_PREPARE:
			end_transaction(false);
			break;
		default:
			break;
	}
}

static void
staging_subxact_callback(SubXactEvent event, SubTransactionId my_id,
						 SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();
	int			i;

	if (!active)
		return;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (i = nchunks - 1; i >= 0 && chunks[i].level >= level; i--)
			chunks[i].level = level - 1;
		for (i = nlanes - 1; i >= 0 && lanes[i].level >= level; i--)
			lanes[i].level = level - 1;
		locked_level = Min(locked_level, level - 1);
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (nchunks > 0 && chunks[nchunks - 1].level >= level)
			batcher_staged_release(lanes, &chunks[--nchunks]);

		/* the queue may have been made at this level, and be gone with it */
		while (nlanes > 0 && lanes[nlanes - 1].level >= level)
			nlanes--;
		for (i = 0; i < nlanes; i++)
		{
			lanes[i].open = -1;
			lanes[i].nnumbered = Min(lanes[i].nnumbered, nchunks);
		}
		if (locked_level >= level)
		{
			/* nothing is left for which the lock was taken */
			Assert(nchunks == 0);
			reset_staging();
		}
	}
}

/*
 * Register the callbacks.  From _PG_init, after batcher_change_install(): what
 * is registered later is called first, and a lane must outlive its chunks.
 */
void
batcher_staging_install(void)
{
	RegisterXactCallback(staging_xact_callback, NULL);
	RegisterSubXactCallback(staging_subxact_callback, NULL);
}
