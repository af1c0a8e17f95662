/*
 * pending.c
 *	  The function under the view batcher.pending: the rows that wait.
 *
 * Rows of durable chunks are shown as the spool has them, under the snapshot
 * of the query: so a row is there exactly until the effects of its flush are,
 * and the query sees both or neither.  That memory holds a copy of them does
 * not matter.  Rows of other chunks exist in shared memory only and are shown
 * as they are at the moment.  A transaction does not see rows of its own.
 *
 * Memory is copied under the lane's lock and read after its release: first
 * the bytes are counted, then, with room for them, the chunks are copied, and
 * once more if there are more of them by then.  So a caller takes private
 * memory for what one lane holds.  The rows come out in the order in which
 * they are found, which is none that anybody should rely on.
 *
 * The entry of a dropped queue is emptied under the lane's lock and removed
 * under the control lock, in this order and after 'dropped' is set.  So the
 * lane's lock is taken under the control lock, and if the queue is not dropped
 * by then, neither the chunks nor the entry go as long as it is held.
 * Dropping the extension waits for us, because we hold the spool.
 *
 * Tuples of the spool that cannot be read, as a restore may bring them, hide no
 * others: there is a warning about them.  Errors: 55000 if the library is not
 * preloaded, XX001 if a tuple is damaged.  Client backends.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "monitor/monitor.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* The call: where the rows go, and whose rows. */
typedef struct PendingScan
{
	ReturnSetInfo *rsinfo;
	Relation	spool;
	int			nqueues;
	BatcherQueueDef **queues;	/* that the user may manage, by id */
	MemoryContext cxt;			/* for one chunk; reset after each */
	int64		nunreadable;	/* tuples, and the first of them */
	ItemPointerData unreadable_tid;
	char	   *unreadable_why;
} PendingScan;

static int
compare_ids(const void *a, const void *b)
{
	int32		ida = (*(BatcherQueueDef *const *) a)->id;
	int32		idb = (*(BatcherQueueDef *const *) b)->id;

	return ida < idb ? -1 : ida > idb;
}

/* The queues that the current user may manage. */
static void
list_queues(PendingScan *scan)
{
	List	   *defs = batcher_definition_list();
	ListCell   *lc;

	scan->queues = palloc_array(BatcherQueueDef *, list_length(defs) + 1);
	scan->nqueues = 0;
	foreach(lc, defs)
	{
		BatcherQueueDef *def = lfirst(lc);

		if (batcher_definition_may(def, BATCHER_MANAGE))
			scan->queues[scan->nqueues++] = def;
	}
	qsort(scan->queues, scan->nqueues, sizeof(*scan->queues), compare_ids);
}

/* That with this id, or NULL. */
static BatcherQueueDef *
find_queue(PendingScan *scan, int32 id)
{
	BatcherQueueDef wanted;
	BatcherQueueDef *key = &wanted;
	BatcherQueueDef **found;

	wanted.id = id;
	found = bsearch(&key, scan->queues, scan->nqueues, sizeof(*scan->queues),
					compare_ids);
	return found ? *found : NULL;
}

/*
 * Give out the rows of a chunk in private memory that are not settled.
 * 'enqueued_by': NULL if nobody knows.
 */
static void
put_chunk(PendingScan *scan, const BatcherQueueDef *def,
		  const BatcherChunk *chunk, const char *enqueued_by)
{
	enum
	{
		QUEUE, TICKET, KEY, TOPIC, PRIORITY, PAYLOAD, ATTEMPTS, DURABLE,
		ENQUEUED_AT, ENQUEUED_BY, NUM_COLS
	};
	ReturnSetInfo *rsinfo = scan->rsinfo;
	BatcherRow *row = batcher_chunk_first(chunk);
	Datum		values[NUM_COLS] = {0};
	bool		nulls[NUM_COLS] = {0};
	int			i;

	/* the same for all of them */
	values[QUEUE] = CStringGetTextDatum(def->name);
	values[DURABLE] =
		BoolGetDatum((chunk->flags & BATCHER_CHUNK_DURABLE) != 0);
	values[ENQUEUED_AT] = TimestampTzGetDatum(chunk->enqueued_at);
	if (enqueued_by)
		values[ENQUEUED_BY] = CStringGetTextDatum(enqueued_by);
	else
		nulls[ENQUEUED_BY] = true;

	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		BatcherRowParts parts;

		if (row->flags & BATCHER_ROW_DONE)
			continue;
		batcher_row_read(chunk, row, &parts);
		values[TICKET] = Int64GetDatum(parts.ticket);
		values[KEY] = PointerGetDatum(parts.key);
		nulls[KEY] = parts.key == NULL;
		values[TOPIC] = PointerGetDatum(parts.topic);
		nulls[TOPIC] = parts.topic == NULL;
		values[PRIORITY] = Int32GetDatum(parts.priority);
		values[PAYLOAD] = PointerGetDatum(parts.payload);
		values[ATTEMPTS] = Int32GetDatum(parts.attempts);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

/* A BatcherSpoolVisitor: give out the rows of a tuple. */
static void
visit_tuple(HeapTuple tuple, const BatcherSpoolEntry *entry, void *arg)
{
	PendingScan *scan = arg;
	BatcherQueueDef *def = find_queue(scan, entry->queue_id);
	TransactionId xmin;
	BatcherChunk *chunk;
	const char *why;
	MemoryContext old;

	if (def == NULL)
		return;

	/*
	 * A large transaction has written some of its rows already; they do not
	 * wait before it commits.
	 */
	xmin = HeapTupleHeaderGetXmin(tuple->t_data);
	if (TransactionIdIsCurrentTransactionId(xmin))
		return;

	old = MemoryContextSwitchTo(scan->cxt);
	chunk = batcher_spool_read(scan->spool, tuple, &why);
	if (chunk)
		put_chunk(scan, def, chunk, batcher_spool_enqueuer(chunk));
	MemoryContextSwitchTo(old);
	if (chunk == NULL && scan->nunreadable++ == 0)
	{
		scan->unreadable_tid = entry->tid;
		scan->unreadable_why = pstrdup(why);
	}
	MemoryContextReset(scan->cxt);
}

/* Say that there are tuples that cannot be read, if there are. */
static void
warn_of_unreadable(const PendingScan *scan)
{
	if (scan->nunreadable > 0)
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg_plural("%lld tuple of the spool cannot be read",
							   "%lld tuples of the spool cannot be read",
							   scan->nunreadable,
							   (long long) scan->nunreadable),
				 errdetail("The first one is at (%u,%u) of the table batcher.spool: %s. Each becomes a dead letter when its queue is flushed.",
						   ItemPointerGetBlockNumber(&scan->unreadable_tid),
						   ItemPointerGetOffsetNumber(&scan->unreadable_tid),
						   scan->unreadable_why)));
}

/* A copy of chunks that lie in memory only, one after the other. */
typedef struct ChunkCopies
{
	char	   *room;
	Size		size;			/* of the room */
	Size		needed;			/* for all chunks */
	int			nchunks;		/* that were copied */
} ChunkCopies;

/* Copy a chunk, if it is one that we show; the lane's lock is held. */
static void
copy_chunk(BatcherChunk *chunk, ChunkCopies *copies)
{
	Size		bytes;
	Size		room;

	if (pg_atomic_read_u32(&chunk->state) != BATCHER_CHUNK_COMMITTED)
		return;
	pg_read_barrier();			/* pairs with batcher_lane_decide */
	if ((chunk->flags & BATCHER_CHUNK_DURABLE) || chunk->nlive == 0)
		return;
	bytes = batcher_chunk_bytes(chunk);
	room = MAXALIGN(bytes);
	if (copies->needed + room <= copies->size)
	{
		memcpy(copies->room + copies->needed, chunk, bytes);
		copies->nchunks++;
	}
	copies->needed += room;
}

/*
 * Copy the chunks of a lane that lie in memory only, as many as fit; the
 * caller looks at what would have been needed.
 */
static void
copy_chunks(BatcherQueueKey key, ChunkCopies *copies)
{
	BatcherSharedQueue *queue = batcher_shmem_queue(key);
	BatcherSharedLane *lane = NULL;
	dsa_pointer p;

	copies->needed = 0;
	copies->nchunks = 0;
	if (queue == NULL)
		return;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	if (batcher_monitor_entry_is_of(queue, &key))
	{
		lane = &queue->lane;
		LWLockAcquire(&lane->lock, LW_SHARED);
		if (pg_atomic_read_u32(&queue->main->dropped))
		{
			LWLockRelease(&lane->lock);
			lane = NULL;
		}
	}
	LWLockRelease(&batcher_shared->lock);
	if (lane == NULL)
		return;

	for (p = lane->taken_head; DsaPointerIsValid(p);)
	{
		BatcherChunk *chunk = batcher_area_address(p);

		copy_chunk(chunk, copies);
		p = chunk->next;
	}
	for (p = pg_atomic_read_u64(&lane->inbox); DsaPointerIsValid(p);)
	{
		BatcherChunk *chunk = batcher_area_address(p);

		copy_chunk(chunk, copies);
		p = chunk->next;
	}
	LWLockRelease(&lane->lock);
}

/* Give out the rows of a lane of a queue that are in memory only. */
static void
show_lane(PendingScan *scan, const BatcherQueueDef *def, int lane)
{
	BatcherQueueKey key = batcher_monitor_key(def);
	ChunkCopies copies = {0};
	MemoryContext old = MemoryContextSwitchTo(scan->cxt);
	const char *place;
	int			i;

	key.lane = lane;
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		copy_chunks(key, &copies);
		if (copies.needed <= copies.size)
			break;
		if (copies.room)
			pfree(copies.room);

		/* some more, for what comes meanwhile */
		copies.size = add_size(copies.needed, copies.needed / 8 + BLCKSZ);
		copies.room = MemoryContextAllocHuge(scan->cxt, copies.size);
	}

	place = copies.room;
	for (i = 0; i < copies.nchunks; i++)
	{
		const BatcherChunk *chunk = (const BatcherChunk *) place;

		CHECK_FOR_INTERRUPTS();
		put_chunk(scan, def, chunk,
				  GetUserNameFromId(chunk->enqueued_by, true));
		place += MAXALIGN(batcher_chunk_bytes(chunk));
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(scan->cxt);
}

PG_FUNCTION_INFO_V1(batcher_get_pending);

/*
 * The waiting rows of the queues that the current user may manage.
 */
Datum
batcher_get_pending(PG_FUNCTION_ARGS)
{
	PendingScan scan = {0};
	int			i;
	int			lane;

	batcher_shmem_require();
	InitMaterializedSRF(fcinfo, 0);
	scan.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	scan.cxt = AllocSetContextCreate(CurrentMemoryContext, "batcher pending",
									 ALLOCSET_DEFAULT_SIZES);

	/* The spool first: while we hold it, the extension stays. */
	scan.spool = batcher_spool_open(AccessShareLock);
	list_queues(&scan);
	if (scan.nqueues > 0)
	{
		batcher_spool_scan(scan.spool, GetActiveSnapshot(), visit_tuple,
						   &scan);
		warn_of_unreadable(&scan);
		for (i = 0; i < scan.nqueues; i++)
		{
			for (lane = 0; lane < scan.queues[i]->options.lanes; lane++)
				show_lane(&scan, scan.queues[i], lane);
		}
	}
	table_close(scan.spool, AccessShareLock);
	MemoryContextDelete(scan.cxt);
	return (Datum) 0;
}
