/*
 * take.c
 *	  Taking rows out of the index into a batch, and putting them back.
 *
 * Here the rows of a key that wait together become one, as key_policy says: the
 * others give way to it, and are settled with it if it is flushed.  The worker.
 */
#include "postgres.h"

#include "base/merge.h"
#include "batch/index.h"
#include "utils/memutils.h"

/*
 * Rows of one key that become one in a batch, at most: so many times
 * max_batch_size, or so many if that is more; and so many bytes.  The rest
 * becomes one in the next batch, so that no transaction grows without bounds.
 */
#define FOLD_BATCHES	10
#define FOLD_ROWS		10000
#define FOLD_BYTES		(64 * 1024 * 1024)

/*
 * Merging makes the whole value anew for each row, so it ends where so many
 * bytes have been made: else many rows that each add a member would take time
 * that grows with their square.
 */
#define MERGE_BYTES		(64 * 1024 * 1024)

/*
 * A new batch, in the current context.
 */
BatcherBatch *
batcher_batch_make(BatcherReason reason)
{
	BatcherBatch *batch = palloc0(sizeof(BatcherBatch));

	batch->reason = reason;
	batch->oldest_at = BATCHER_NEVER;
	batch->allocated = 64;
	batch->rows = palloc(batch->allocated * sizeof(BatcherBatchRow));
	batch->refs_allocated = 64;
	batch->refs = palloc(batch->refs_allocated * sizeof(BatcherRef *));
	batch->by = palloc(batch->refs_allocated * sizeof(int));
	return batch;
}

/*
 * Add a row to those that the statement gets; returns its index.
 */
int
batcher_batch_add(BatcherBatch *batch, BatcherChunk *chunk, BatcherRow *row)
{
	BatcherBatchRow *r;

	if (batch->nrows == batch->allocated)
	{
		batch->allocated *= 2;
		batch->rows = repalloc_huge(batch->rows, batch->allocated *
									sizeof(BatcherBatchRow));
	}
	r = &batch->rows[batch->nrows];
	memset(r, 0, sizeof(*r));
	r->chunk = chunk;
	r->row = row;
	r->outcome = BATCHER_OUTCOME_FLUSHED;
	r->by = -1;
	return batch->nrows++;
}

/* Take the first row of a unit that was taken off out of the index. */
static BatcherRef *
take_ref(BatcherLaneView *view, BatcherBatch *batch, BatcherUnit *unit)
{
	BatcherRef *ref = batcher_unit_pop(view, unit);

	if (batch->nrefs == batch->refs_allocated)
	{
		batch->refs_allocated *= 2;
		batch->refs = repalloc_huge(batch->refs, batch->refs_allocated *
									sizeof(BatcherRef *));
		batch->by = repalloc_huge(batch->by, batch->refs_allocated *
								  sizeof(int));
	}
	batch->by[batch->nrefs] = -1;
	batch->refs[batch->nrefs++] = ref;
	batch->oldest_at = Min(batch->oldest_at, ref->chunk->committed_at);
	return ref;
}

/* Say that rows of a key cannot become one. */
static void
report_unmerged(BatcherLaneView *view, int n)
{
	ErrorData  *error = CopyErrorData();

	FlushErrorState();
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("queue \"%s\": a row could not be merged with %d others of its key, and is flushed after them",
					view->def->name, n),
			 errdetail("%s.", error->message)));
	FreeErrorData(error);
}

/*
 * Merge the payloads of refs of a batch, from 'first' on, into that of row
 * 'r'.  Returns how many could be merged, at least one: a value can become too
 * large or too deep, and so many large ones are not made.  Each step makes the
 * whole value anew, from the one in the other of two contexts.
 */
static int
merge_payloads(BatcherLaneView *view, BatcherBatch *batch, int first,
			   BatcherBatchRow *r)
{
	MemoryContext cxt = CurrentMemoryContext;
	MemoryContext steps[2];
	Jsonb	   *volatile merged = NULL;
	volatile int n = 0;
	volatile Size work = 0;

	steps[0] = AllocSetContextCreate(cxt, "batcher merge",
									 ALLOCSET_DEFAULT_SIZES);
	steps[1] = AllocSetContextCreate(cxt, "batcher merge",
									 ALLOCSET_DEFAULT_SIZES);
	PG_TRY();
	{
		for (; first + n < batch->nrefs && work < MERGE_BYTES; n++)
		{
			BatcherRef *ref = batch->refs[first + n];
			BatcherRowParts parts;

			batcher_row_read(ref->chunk, ref->row, &parts);
			MemoryContextReset(steps[n % 2]);
			MemoryContextSwitchTo(steps[n % 2]);
			merged = n == 0 ? (Jsonb *) parts.payload :
				batcher_merge_jsonb(merged, (Jsonb *) parts.payload);
			r->priority = n == 0 ? parts.priority :
				Max(r->priority, parts.priority);
			work += VARSIZE(merged);
		}
		MemoryContextSwitchTo(cxt);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		report_unmerged(view, n);
	}
	PG_END_TRY();
	r->merged = MemoryContextAllocHuge(cxt, VARSIZE(merged));
	memcpy(r->merged, merged, VARSIZE(merged));
	MemoryContextDelete(steps[0]);
	MemoryContextDelete(steps[1]);
	return n;
}

/*
 * Take the rows of a unit that was taken off which become one, up to the first
 * that is a batch of its own.
 */
static void
take_folded(BatcherLaneView *view, BatcherBatch *batch, BatcherUnit *unit)
{
	BatcherKeyPolicy policy = view->def->options.key_policy;
	int			max = Max(FOLD_BATCHES * view->def->options.max_batch_size,
						  FOLD_ROWS);
	int			first = batch->nrefs;
	Size		bytes = 0;
	BatcherBatchRow merged = {0};
	BatcherRef *stays;
	bool		alone;
	int			index;
	int			i;

	do
	{
		BatcherRef *ref = take_ref(view, batch, unit);

		alone = batcher_row_is_alone(view, ref->row);
		bytes += ref->row->size;
	} while (unit->nready > 0 && !alone && batch->nrefs - first < max &&
			 bytes < FOLD_BYTES &&
			 !batcher_row_is_alone(view, unit->head->row));

	if (policy == BATCHER_KEYS_MERGE && batch->nrefs - first > 1)
	{
		int			n = merge_payloads(view, batch, first, &merged);

		while (batch->nrefs > first + n)
			batcher_unit_push_back(view, batch->refs[--batch->nrefs]);
		batcher_unit_take_off(view->index, unit);
	}
	stays = batch->refs[policy == BATCHER_KEYS_FIRST ? first : batch->nrefs - 1];
	index = batcher_batch_add(batch, stays->chunk, stays->row);
	if (batch->nrefs - first > 1)
	{
		batch->rows[index].merged = merged.merged;
		batch->rows[index].priority = merged.priority;
	}
	for (i = first; i < batch->nrefs; i++)
	{
		if (batch->refs[i] != stays)
			batch->by[i] = index;
	}
}

/*
 * Take what comes first in a unit that was taken off.
 */
void
batcher_batch_take(BatcherLaneView *view, BatcherBatch *batch,
				   BatcherUnit *unit)
{
	if (batcher_unit_folds(view, unit))
		take_folded(view, batch, unit);
	else
	{
		BatcherRef *ref = take_ref(view, batch, unit);

		(void) batcher_batch_add(batch, ref->chunk, ref->row);
	}
}

/*
 * All has been taken: put the rows that give way to others behind those of the
 * statement.
 */
void
batcher_batch_complete(BatcherBatch *batch)
{
	int			i;

	batch->nall = batch->nrows;
	if (batch->nrefs <= batch->nrows)
		return;
	if (batch->allocated < batch->nrefs)
	{
		batch->allocated = batch->nrefs;
		batch->rows = repalloc_huge(batch->rows, batch->allocated *
									sizeof(BatcherBatchRow));
	}
	for (i = 0; i < batch->nrefs; i++)
	{
		BatcherBatchRow *r = &batch->rows[batch->nall];

		if (batch->by[i] < 0)
			continue;
		memset(r, 0, sizeof(*r));
		r->chunk = batch->refs[i]->chunk;
		r->row = batch->refs[i]->row;
		r->outcome = BATCHER_OUTCOME_STAYS;
		r->by = batch->by[i];
		batch->nall++;
	}
}

/*
 * What the statement gets of a row: with the payload and the priority of those
 * that were merged into it.
 */
void
batcher_batch_read(const BatcherBatchRow *r, BatcherRowParts *parts)
{
	batcher_row_read(r->chunk, r->row, parts);
	if (r->merged)
	{
		parts->payload = r->merged;
		parts->priority = r->priority;
	}
}

/*
 * Take note of how a batch has ended: what it has taken out of the index and
 * has not settled is put back.  Before settled chunks are let go; again does
 * no harm.
 */
void
batcher_batch_return(BatcherLaneView *view, BatcherBatch *batch)
{
	int			i;

	if (view->index == NULL || view->index != batch->index)
		return;
	for (i = batch->nrefs - 1; i >= 0; i--)
	{
		BatcherRef *ref = batch->refs[i];

		if (ref->row->flags & BATCHER_ROW_DONE)
			batcher_unit_forget_ref(view->index, ref);
		else
			batcher_unit_push_back(view, ref);
	}
	for (i = 0; batch->nrefs > 0 && i < batch->nrows; i++)
	{
		if (batch->rows[i].split)
			batcher_unit_split(view, batch->rows[i].chunk, batch->rows[i].row);
	}
	batch->nrefs = 0;
}
