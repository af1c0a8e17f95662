/*
 * spill.c
 *	  Staged rows on their way to the spool.
 *
 * At PRE_COMMIT the chunks of durable lanes are written as tuples.  A lane
 * that has spilled rows, or of which the transaction has rows that are not in
 * the area, gets no chunk then: all its durable rows spill, so that order is
 * kept.  A large transaction writes ("seals") full chunks before, in the
 * statement and in the subtransaction that made them.  Client backends, and
 * workers for rows that a flush enqueues.
 */
#include "postgres.h"

#include "access/table.h"
#include "enqueue/enqueue.h"
#include "enqueue/staged.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/* The name of the user that enqueued last, for the spool, and as of when. */
static Oid	named_user = InvalidOid;
static uint64 named_roles = 0;
static char user_name[NAMEDATALEN];

/*
 * Give back the room of a chunk that was not pushed.  Also in commit and abort
 * callbacks.
 */
void
batcher_staged_release(StagedLane *lanes, StagedChunk *staged)
{
	StagedLane *lane = &lanes[staged->lane];
	Size		bytes;

	if (staged->chunk == NULL || staged->pushed)
		return;
	if (!(staged->chunk->flags & BATCHER_CHUNK_PRIVATE))
	{
		bytes = batcher_chunk_bytes(staged->chunk);
		lane->bytes -= bytes;
		(void) pg_atomic_fetch_sub_u64(&lane->queue->main->lane.nbytes,
									   bytes);
		batcher_slab_unref(staged->chunk);
	}
	/* private memory goes with the transaction's */
	staged->chunk = NULL;
}

static const char *
enqueuer_name(Oid role)
{
	if (named_user != role || named_roles != batcher_roles_changed)
	{
		char	   *name = GetUserNameFromId(role, true);

		strlcpy(user_name, name ? name : "", sizeof(user_name));
		named_user = role;
		named_roles = batcher_roles_changed;
		if (name)
			pfree(name);
	}
	return user_name;
}

/*
 * The home of tuples that a lane spills: nowhere, or, where the transaction
 * has sealed chunks, its group of tuples, which are read back together at the
 * place of the last of them: the one that PRE_COMMIT numbers.
 */
static uint64
spilled_home(const StagedLane *lane)
{
	return (uint64) -(int64) lane->group;
}

/* Number the chunks of a lane before 'end' that have no number yet. */
static void
number_chunks(StagedLane *lanes, StagedChunk *chunks, int lane_index, int end)
{
	BatcherSharedDatabase *db = batcher_catalog_database();
	StagedLane *lane = &lanes[lane_index];
	int			i;

	for (i = lane->nnumbered; i < end; i++)
	{
		BatcherChunk *chunk = chunks[i].chunk;

		if (chunks[i].lane == lane_index && chunk && chunk->number == 0)
			chunk->number = batcher_number_take(db);
	}
	lane->nnumbered = end;
}

/*
 * Write the chunk at 'index' to the spool now and let go of its memory.  Its
 * rows are read back after the commit.  The spool is locked.
 */
void
batcher_staged_seal(StagedLane *lanes, StagedChunk *chunks, int index,
					Oid spool_oid)
{
	StagedChunk *staged = &chunks[index];
	StagedLane *lane = &lanes[staged->lane];
	BatcherChunk *chunk = staged->chunk;
	Relation	spool = table_open(spool_oid, NoLock);
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "batcher seal",
											  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	ItemPointerData tid;

	/* what was enqueued before comes before, even if it is not sealed */
	number_chunks(lanes, chunks, staged->lane, index + 1);
	if (lane->group == 0)
		lane->group = chunk->number;
	batcher_spool_write(spool, &lane->queue->key, chunk, chunk->number, NULL, 0,
						spilled_home(lane),
						enqueuer_name(chunk->enqueued_by), &tid);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
	table_close(spool, NoLock);

	lane->has_private = true;
	staged->nrows = chunk->nrows;
	staged->first_ticket = chunk->first_ticket;
	staged->last_ticket = chunk->first_ticket + staged->last->ticket;
	if (chunk->flags & BATCHER_CHUNK_PRIVATE)
		pfree(batcher_private_chunk(chunk));
	else
		batcher_staged_release(lanes, staged);
	staged->chunk = NULL;
}

/*
 * Number the staged chunks, at PRE_COMMIT.  One may have got a number in the
 * statement, because a later one was sealed; it keeps that only if such a one
 * is still there, and was not rolled back.  For the last number of a group is
 * the place of all of it, and has to be one of now.
 */
void
batcher_staged_number(StagedLane *lanes, int nlanes, StagedChunk *chunks,
					  int nchunks)
{
	BatcherSharedDatabase *db = batcher_catalog_database();
	int			i;

	for (i = 0; i < nlanes; i++)
		lanes[i].nnumbered = 0;
	for (i = 0; i < nchunks; i++)
	{
		if (chunks[i].chunk == NULL)
			lanes[chunks[i].lane].nnumbered = i;
	}
	for (i = 0; i < nchunks; i++)
	{
		if (chunks[i].chunk && i >= lanes[chunks[i].lane].nnumbered)
			chunks[i].chunk->number = batcher_number_take(db);
	}
}

/*
 * Store the staged chunks of durable lanes in the spool, at PRE_COMMIT.  The
 * spool is locked, and the chunks are numbered.
 */
void
batcher_staged_write(StagedLane *lanes, StagedChunk *chunks, int nchunks,
					 Oid spool_oid)
{
	Relation	spool = table_open(spool_oid, NoLock);
	uint32		version;
	bool		known = batcher_spool_version(batcher_catalog_database(), spool,
										  &version);
	int			i;

	for (i = 0; i < nchunks; i++)
	{
		StagedLane *lane = &lanes[chunks[i].lane];
		BatcherChunk *chunk = chunks[i].chunk;

		if (!lane->durable)
			continue;
		if (!lane->spilling && (!known || lane->has_private ||
								batcher_lane_spilled(&lane->queue->lane)))
		{
			batcher_lane_spill_begin(&lane->queue->lane);
			lane->spilling = true;
		}
		if (chunk == NULL)
		{
			lane->nspilled += chunks[i].nrows;
			continue;
		}
		batcher_spool_write(spool, &lane->queue->key, chunk, chunk->number,
							NULL, 0, lane->spilling ? spilled_home(lane) :
							batcher_spool_home(version),
							enqueuer_name(chunk->enqueued_by), &chunk->tid);
		chunk->flags |= BATCHER_CHUNK_DURABLE;
		chunk->spool_version = version;
		if (lane->spilling)
		{
			lane->nspilled += chunk->nrows;
			batcher_staged_release(lanes, &chunks[i]);
		}
		else if (pg_atomic_read_u32(&lane->queue->lane.stored) == 0)
			pg_atomic_write_u32(&lane->queue->lane.stored, 1);
	}
	table_close(spool, NoLock);
}
