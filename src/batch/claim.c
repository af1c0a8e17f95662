/*
 * claim.c
 *	  Making a batch ours.
 *
 * The claim is the first thing that a flush does: it deletes the tuples of the
 * batch from the spool, in the transaction of the flush.  A tuple that is not
 * where memory has it was settled another way, and its rows leave the batch:
 * so a durable row cannot be flushed twice, whatever else goes wrong.  Where it
 * was read back from the spool, the spool is read anew instead.
 *
 * The tuples that one large transaction sealed come at the place of the largest
 * number among them (see readback.c).  When the one that has it is settled
 * before others, because these wait for a row of their key, the last of them
 * inherits the number, so that they keep their place.
 *
 * The worker.
 */
#include "postgres.h"

#include "base/debug.h"
#include "batch/batch.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/* Tuples that this process has deleted from the spool. */
static uint64 ndeleted = 0;

/*
 * How many tuples this process has deleted from the spool since the last call
 * with 'reset'.
 */
uint64
batcher_claim_deleted(bool reset)
{
	uint64		n = ndeleted;

	if (reset)
		ndeleted = 0;
	return n;
}

/* A row of a batch, by its chunk. */
typedef struct ChunkRow
{
	BatcherChunk *chunk;
	BatcherRow *row;
	int			index;
} ChunkRow;

#define ST_SORT sort_chunk_rows
#define ST_ELEMENT_TYPE ChunkRow
#define ST_COMPARE(a, b) \
	((a)->chunk != (b)->chunk ? ((a)->chunk < (b)->chunk ? -1 : 1) : \
	 (a)->row < (b)->row ? -1 : (a)->row > (b)->row)
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/*
 * Add a claim to those of a batch; 'first' is the first row of the chunk, -1 if
 * the batch has none.
 */
static void
add_claim(BatcherBatch *batch, BatcherChunk *chunk, int first)
{
	BatcherClaim *claim = &batch->claims[batch->nclaims++];

	memset(claim, 0, sizeof(BatcherClaim));
	claim->chunk = chunk;
	claim->first = first;
	claim->nrows = first < 0 ? 0 : 1;
	ItemPointerSetInvalid(&claim->new_tid);
}

static BatcherClaim *
find_claim(BatcherBatch *batch, const BatcherChunk *chunk)
{
	int			i;

	for (i = 0; i < batch->nclaims; i++)
	{
		if (batch->claims[i].chunk == chunk)
			return &batch->claims[i];
	}
	return NULL;
}

/* Is this the chunk by whose number others are in their place? */
static bool
gives_place(const BatcherChunk *chunk)
{
	return (chunk->flags & BATCHER_CHUNK_PRIVATE) &&
		batcher_private_chunk(chunk)->home < 0 &&
		batcher_private_chunk(chunk)->place == chunk->number;
}

/*
 * If the batch may settle a chunk that gives others their place, claim the last
 * of those of which it leaves rows, too.
 */
static void
claim_heirs(BatcherLaneView *view, BatcherBatch *batch)
{
	int			nclaims = batch->nclaims;
	int			i;

	for (i = 0; i < nclaims; i++)
	{
		BatcherChunk *giver = batch->claims[i].chunk;
		BatcherChunk *heir = NULL;
		BatcherChunk *chunk;

		if (!gives_place(giver) || batch->claims[i].nrows < giver->nlive)
			continue;
		for (chunk = batcher_readback_first(view); chunk;
			 chunk = batcher_readback_next(chunk))
		{
			BatcherClaim *claim;

			if (chunk == giver || chunk->nlive == 0 ||
				batcher_private_chunk(chunk)->home !=
				batcher_private_chunk(giver)->home)
				continue;
			claim = find_claim(batch, chunk);
			if (claim == NULL || claim->nrows < chunk->nlive)
				heir = chunk;
		}
		if (heir == NULL || find_claim(batch, heir) != NULL)
			continue;
		batch->claims = repalloc_huge(batch->claims, (batch->nclaims + 1) *
									  sizeof(BatcherClaim));
		add_claim(batch, heir, -1);
	}
}

/*
 * The claim that inherits the number of one that is settled whole, or NULL.  It
 * is known by now how many rows of each are settled.
 */
BatcherClaim *
batcher_claim_heir(BatcherBatch *batch, BatcherClaim *giver)
{
	BatcherClaim *heir = NULL;
	int			i;

	if (!gives_place(giver->chunk) || giver->nsettled < giver->chunk->nlive)
		return NULL;
	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherClaim *claim = &batch->claims[i];

		if ((claim->chunk->flags & BATCHER_CHUNK_PRIVATE) &&
			batcher_private_chunk(claim->chunk)->home ==
			batcher_private_chunk(giver->chunk)->home &&
			claim->nsettled < claim->chunk->nlive &&
			(heir == NULL || claim->chunk->number > heir->chunk->number))
			heir = claim;
	}
	return heir;
}

/*
 * Group the rows of a batch by chunk, those of each in their order there; what
 * is made outlives the transaction.
 */
static void
make_claims(BatcherLaneView *view, BatcherBatch *batch)
{
	ChunkRow   *sorted;
	int			i;

	batch->claims = MemoryContextAllocHuge(GetMemoryChunkContext(batch),
										   batch->nall * sizeof(BatcherClaim));
	batch->nclaims = 0;
	batch->ncharged = 0;
	sorted = palloc_extended(batch->nall * sizeof(ChunkRow), MCXT_ALLOC_HUGE);
	for (i = 0; i < batch->nall; i++)
	{
		sorted[i].chunk = batch->rows[i].chunk;
		sorted[i].row = batch->rows[i].row;
		sorted[i].index = i;
	}
	sort_chunk_rows(sorted, batch->nall);
	for (i = 0; i < batch->nall; i++)
	{
		batch->rows[sorted[i].index].next = -1;
		if (i > 0 && sorted[i - 1].chunk == sorted[i].chunk)
		{
			batch->rows[sorted[i - 1].index].next = sorted[i].index;
			batch->claims[batch->nclaims - 1].nrows++;
		}
		else
			add_claim(batch, sorted[i].chunk, sorted[i].index);
	}
	pfree(sorted);
	claim_heirs(view, batch);
}

/* A claim with its tuple's place, block and offset, as one number. */
typedef struct Place
{
	uint64		place;
	BatcherClaim *claim;
} Place;

#define ST_SORT sort_places
#define ST_ELEMENT_TYPE Place
#define ST_COMPARE(a, b) ((a)->place < (b)->place ? -1 : (a)->place > (b)->place)
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/*
 * Take the rows of chunks that are gone out of the batch.  Where one of several
 * that became one is gone, the others stay.
 */
static void
drop_gone(BatcherBatch *batch)
{
	int			n = batch->nall;
	BatcherBatchRow *rows = palloc_extended(n * sizeof(BatcherBatchRow),
											MCXT_ALLOC_HUGE);
	bool	   *gone = palloc_extended(n, MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	bool	   *stays = palloc_extended(n, MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	int		   *places = palloc_extended(n * sizeof(int), MCXT_ALLOC_HUGE);
	int			nrows = 0;
	int			nall = 0;
	int			i;

	memcpy(rows, batch->rows, n * sizeof(BatcherBatchRow));
	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherClaim *claim = &batch->claims[i];
		int			j;

		for (j = claim->first; claim->gone && j >= 0; j = rows[j].next)
			gone[j] = true;
		if (claim->gone)
			claim->first = -1;
	}
	for (i = batch->nrows; i < n; i++)
		stays[rows[i].by] |= gone[i];
	for (i = batch->nrows; i < n; i++)
		stays[i] = stays[rows[i].by] || gone[rows[i].by];

	/* first the rows of the statement, then those that give way or stay */
	for (i = 0; i < n; i++)
	{
		if (i < batch->nrows && !gone[i] && !stays[i])
			places[i] = nrows++;
	}
	nall = nrows;
	for (i = 0; i < n; i++)
	{
		if (!gone[i] && (i >= batch->nrows || stays[i]))
			places[i] = nall++;
	}
	for (i = 0; i < n; i++)
	{
		BatcherBatchRow *r = &batch->rows[places[i]];

		if (gone[i])
			continue;
		*r = rows[i];
		if (r->next >= 0)
			r->next = places[r->next];
		if (stays[i])
		{
			r->outcome = BATCHER_OUTCOME_STAYS;
			r->by = -1;
		}
		else if (r->by >= 0)
			r->by = places[r->by];
	}
	for (i = 0; i < batch->nclaims; i++)
	{
		if (batch->claims[i].first >= 0)
			batch->claims[i].first = places[batch->claims[i].first];
	}
	batch->nrows = nrows;
	batch->nall = nall;
	pfree(rows);
	pfree(gone);
	pfree(stays);
	pfree(places);
}

/*
 * Claim the rows of a batch, in the transaction of the flush, with the spool
 * open and locked.  False if the places that memory has are void, because the
 * table was rewritten, or if something is not where it was read: then the
 * transaction is to be given up, and the spool read anew.
 */
bool
batcher_claim(BatcherLaneView *view, BatcherBatch *batch, Relation spool)
{
	Place	   *durable;
	Buffer		pin = InvalidBuffer;
	BlockNumber nblocks = InvalidBlockNumber;
	bool		some_gone = false;
	bool		lost_place = false;
	bool		known;
	uint32		version;
	int			n = 0;
	int			i;

	make_claims(view, batch);
	known = batcher_spool_version(view->db, spool, &version);
	durable = palloc_extended(batch->nclaims * sizeof(Place),
							  MCXT_ALLOC_HUGE);
	for (i = 0; i < batch->nclaims; i++)
	{
		BatcherChunk *chunk = batch->claims[i].chunk;

		if (!(chunk->flags & BATCHER_CHUNK_DURABLE))
			continue;
		if (!known || chunk->spool_version != (uint16) version)
			return false;
		durable[n].claim = &batch->claims[i];
		durable[n++].place =
			(uint64) ItemPointerGetBlockNumberNoCheck(&chunk->tid) << 16 |
			ItemPointerGetOffsetNumberNoCheck(&chunk->tid);
	}

	/* by place: one page after the other, and locks always in one order */
	sort_places(durable, n);
	if (n > 0)
		nblocks = RelationGetNumberOfBlocks(spool);
	for (i = 0; i < n; i++)
	{
		BatcherClaim *claim = durable[i].claim;
		BatcherChunk *chunk = claim->chunk;

		if (ItemPointerGetBlockNumber(&chunk->tid) >= nblocks ||
			!batcher_spool_delete(spool, &chunk->tid, chunk->number, &pin))
		{
			claim->gone = some_gone = true;
			lost_place |= (chunk->flags & BATCHER_CHUNK_PRIVATE) != 0;
			elog(DEBUG1, "tuple (%u,%u) of chunk " UINT64_FORMAT " is not there",
				 ItemPointerGetBlockNumberNoCheck(&chunk->tid),
				 ItemPointerGetOffsetNumberNoCheck(&chunk->tid),
				 chunk->number);
		}
	}
	if (BufferIsValid(pin))
		ReleaseBuffer(pin);
	if (lost_place)
		return false;
	ndeleted += n;
	if (some_gone)
		drop_gone(batch);
	batcher_debug_point("claimed");
	return true;
}
