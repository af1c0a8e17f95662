/*
 * index.c
 *	  The waiting rows of a lane, in the order in which they may leave.
 *
 * The rows of the chunks that the owner of a lane has taken, and of those that
 * it has read back from the spool, are put into units as they come: those of a
 * key into one, in the order in which they came; those without key into one
 * for each priority, in the order in which their transactions were seen to be
 * committed.  Heaps tell which unit has waited longest, which has the highest
 * priority, and which is to be tried again first.  So choosing a row takes
 * time that grows with the logarithm of the number of units, and a look at
 * which nothing is due takes next to none.
 *
 * A row of a key whose transaction has not ended yet is there to hold back the
 * later rows of its key; one without key is not there before its transaction
 * has committed.  A row that is tried again by itself holds back its key too;
 * without key it is a unit of its own, and passed by the others.
 *
 * What a batch takes is taken out of here, and put back if it is not settled.
 * Nothing is copied: a unit has pointers into chunks.  So whoever lets go of a
 * chunk that is not settled, or settles rows that are not of a batch, resets
 * the index.  It is private memory, linear in the rows that wait, and nothing
 * here is the truth: it is built anew from the chunks when it is needed.  The
 * worker.
 */
#include "postgres.h"

#include "batch/index.h"
#include "common/hashfn.h"
#include "utils/memutils.h"

/* An index that is empty gives its memory back if it had so many rows. */
#define LARGE_INDEX		10000

/* Keys are thinned if there are so many rows, and so many for each of them. */
#define THIN_ROWS		10000
#define THIN_SHARE		4

static uint32
unit_hash(const void *key, Size keysize)
{
	const BatcherUnitId *id = key;

	if (id->key)
		return hash_bytes((const unsigned char *) VARDATA(id->key),
						  VARSIZE(id->key) - VARHDRSZ);
	return murmurhash32((uint32) id->number ^ (uint32) (id->number >> 32)) +
		id->class;
}

static int
unit_match(const void *a, const void *b, Size keysize)
{
	const BatcherUnitId *ia = a;
	const BatcherUnitId *ib = b;

	if (ia->class != ib->class)
		return 1;
	if (ia->class != BATCHER_UNIT_KEY)
		return ia->number != ib->number;
	if (VARSIZE(ia->key) != VARSIZE(ib->key))
		return 1;
	return memcmp(VARDATA(ia->key), VARDATA(ib->key),
				  VARSIZE(ia->key) - VARHDRSZ);
}

static int
compare_by_priority(const pairingheap_node *a, const pairingheap_node *b,
					void *arg)
{
	return batcher_unit_compare(pairingheap_const_container(BatcherUnit,
															by_priority, a),
								pairingheap_const_container(BatcherUnit,
															by_priority, b));
}

static int
compare_by_time(const pairingheap_node *a, const pairingheap_node *b,
				void *arg)
{
	return batcher_unit_compare_age(pairingheap_const_container(BatcherUnit,
																by_time, a),
									pairingheap_const_container(BatcherUnit,
																by_time, b));
}

static void
init_heap(pairingheap *heap, pairingheap_comparator compare)
{
	heap->ph_compare = compare;
	heap->ph_arg = NULL;
	heap->ph_root = NULL;
}

/* A new, empty index. */
static BatcherIndex *
make_index(void)
{
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext,
											  "batcher index",
											  ALLOCSET_DEFAULT_SIZES);
	BatcherIndex *index = MemoryContextAllocZero(cxt, sizeof(BatcherIndex));
	HASHCTL		ctl;

	index->cxt = cxt;
	index->ref_cxt = SlabContextCreate(cxt, "batcher rows",
									   SLAB_DEFAULT_BLOCK_SIZE,
									   sizeof(BatcherRef));
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(BatcherUnitId);
	ctl.entrysize = sizeof(BatcherUnit);
	ctl.hash = unit_hash;
	ctl.match = unit_match;
	ctl.hcxt = cxt;
	index->units = hash_create("batcher units", 64, &ctl,
							   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
							   HASH_CONTEXT);
	init_heap(&index->ages, compare_by_time);
	init_heap(&index->ready, compare_by_priority);
	init_heap(&index->retries, compare_by_time);
	init_heap(&index->timers, compare_by_time);
	init_heap(&index->urgent, compare_by_priority);
	dlist_init(&index->held);
	return index;
}

/*
 * Forget the index: it is built anew at the next look.
 */
void
batcher_index_reset(BatcherLaneView *view)
{
	if (view->index == NULL)
		return;
	MemoryContextDelete(view->index->cxt);
	view->index = NULL;
}

/* Add the rows of a chunk that has just come and is committed. */
static void
add_chunk(BatcherLaneView *view, BatcherChunk *chunk)
{
	BatcherRow *row = batcher_chunk_first(chunk);
	int			i;

	chunk->flags |= BATCHER_CHUNK_SEEN;
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		if (!(row->flags & BATCHER_ROW_DONE))
			(void) batcher_unit_append(view, chunk, row);
	}
}

/* Add the rows of an undecided chunk that has just come. */
static void
add_undecided(BatcherLaneView *view, BatcherUndecided *undecided)
{
	BatcherChunk *chunk = undecided->chunk;
	BatcherRow *row = batcher_chunk_first(chunk);
	int			i;

	undecided->nrefs = 0;
	if (!(chunk->flags & BATCHER_CHUNK_KEYED))
		return;
	undecided->refs = MemoryContextAlloc(view->index->cxt,
										 chunk->nrows * sizeof(BatcherRef *));
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		if (row->flags & BATCHER_ROW_KEY)
			undecided->refs[undecided->nrefs++] =
				batcher_unit_append(view, chunk, row);
	}
}

/*
 * A chunk whose rows with a key are here as undecided is decided.  If it was
 * rolled back they go.
 */
static void
decide_chunk(BatcherLaneView *view, BatcherUndecided *undecided)
{
	BatcherChunk *chunk = undecided->chunk;
	BatcherRow *row = batcher_chunk_first(chunk);
	bool		committed = undecided->state == BATCHER_CHUNK_COMMITTED;
	int			nkeyed = 0;
	int			i;

	if (committed)
		chunk->flags |= BATCHER_CHUNK_SEEN;
	else
	{
		for (i = 0; i < undecided->nrefs; i++)
			undecided->refs[i]->chunk = NULL;
	}
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		if (row->flags & BATCHER_ROW_KEY)
			batcher_unit_decide(view, chunk, row, undecided->refs[nkeyed++]);
		else if (committed)
			(void) batcher_unit_append(view, chunk, row);
	}
	if (undecided->refs)
		pfree(undecided->refs);
}

/* Note the chunks from 'p' on, which have come. */
static void
note_chunks(BatcherIndex *index, dsa_pointer p)
{
	while (DsaPointerIsValid(p))
	{
		BatcherChunk *chunk = batcher_area_address(p);
		BatcherUndecided *undecided;

		if (index->nundecided == index->max_undecided)
		{
			index->max_undecided = Max(2 * index->max_undecided, 64);
			if (index->undecided == NULL)
				index->undecided = MemoryContextAlloc(index->cxt,
													  index->max_undecided *
													  sizeof(BatcherUndecided));
			else
				index->undecided = repalloc_huge(index->undecided,
												 index->max_undecided *
												 sizeof(BatcherUndecided));
		}
		undecided = &index->undecided[index->nundecided++];
		undecided->chunk = chunk;
		undecided->nrefs = -1;
		undecided->refs = NULL;
		p = chunk->next;
	}
}

/*
 * Look which of the undecided chunks are decided.  Those of one transaction
 * are decided from the first to the last; looked at from the last to the first
 * one cannot seem to be decided before the one that came before it.
 */
static void
decide_chunks(BatcherLaneView *view)
{
	BatcherIndex *index = view->index;
	BatcherChunk **voids = NULL;
	int			nvoids = 0;
	int			n = index->nundecided;
	int			i;

	for (i = n - 1; i >= 0; i--)
	{
		index->undecided[i].state =
			pg_atomic_read_u32(&index->undecided[i].chunk->state);
		pg_read_barrier();		/* the time was stored before the state */
		if (index->undecided[i].state == BATCHER_CHUNK_VOID)
			nvoids++;
	}
	if (nvoids > 0)
		voids = MemoryContextAllocHuge(CurrentMemoryContext,
									   nvoids * sizeof(BatcherChunk *));
	nvoids = 0;
	index->nundecided = 0;
	for (i = 0; i < n; i++)
	{
		BatcherUndecided *undecided = &index->undecided[i];
		bool		fresh = undecided->nrefs < 0;

		if (undecided->state == BATCHER_CHUNK_COMMITTING)
		{
			if (fresh)
				add_undecided(view, undecided);
			index->undecided[index->nundecided++] = *undecided;
			continue;
		}
		if (!fresh)
			decide_chunk(view, undecided);
		else if (undecided->state == BATCHER_CHUNK_COMMITTED)
			add_chunk(view, undecided->chunk);
		if (undecided->state == BATCHER_CHUNK_VOID)
		{
			undecided->chunk->nlive = 0;
			voids[nvoids++] = undecided->chunk;
		}
	}
	batcher_lane_release(view->queue, voids, nvoids);
	if (voids)
		pfree(voids);
}

/* Bring the index up to date. */
static void
update(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	dsa_pointer p = batcher_lane_take(lane);
	BatcherChunk *chunk;

	if (view->index && view->index->nrefs == 0 &&
		view->index->nundecided == 0 && view->index->peak >= LARGE_INDEX)
		batcher_index_reset(view);
	if (view->index == NULL)
	{
		view->index = make_index();
		p = lane->taken_head;
		batcher_readback_rewind(view);
	}
	note_chunks(view->index, p);
	decide_chunks(view);
	while ((chunk = batcher_readback_take(view)) != NULL)
		add_chunk(view, chunk);
	view->index->peak = Max(view->index->peak, view->index->nrefs);
}

/*
 * Are hot keys to be thinned (see queue/thin.c)?  Not while the rows are few,
 * nor before as many have come as could not be given up the last time.
 */
static bool
is_thinning_due(BatcherLaneView *view)
{
	BatcherIndex *index = view->index;

	if (!batcher_options_thin(&view->def->options))
		return false;
	/* what has come may be under a newer definition than ours */
	pg_memory_barrier();
	if (pg_atomic_read_u64(&view->db->generation) != view->generation)
		return false;
	view->thin_at = Max(THIN_ROWS, Min(view->thin_at, 2 * index->nrefs));
	return index->nrefs >= view->thin_at &&
		index->nrefs / THIN_SHARE >= hash_get_num_entries(index->units);
}

/*
 * Bring the index up to date: with what is in the inbox, what was read back,
 * and what was decided since the last look.
 */
void
batcher_index_update(BatcherLaneView *view)
{
	update(view);
	if (!is_thinning_due(view))
		return;
	batcher_index_reset(view);
	batcher_lane_thin_taken(view->queue);
	update(view);
	view->thin_at = 2 * view->index->nrefs;
}
