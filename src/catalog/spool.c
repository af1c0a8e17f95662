/*
 * spool.c
 *	  The spool: rows of durable queues as tuples of batcher.spool.
 *
 * A tuple holds what a chunk holds, in built-in types that any version can
 * read and pg_dump can carry: one array of tickets, of payloads and so on.
 * It bears the number of its chunk, and its 'home': the random number of the
 * shared memory, and of the state of the table, in which a chunk knows where
 * it is; 0 if no chunk does.  A tuple whose home is not the current one is
 * read back by a worker.
 *
 * Written and deleted by calls of the heap itself: no index, no trigger, no
 * logical decoding (HEAP_INSERT_NO_LOGICAL), and the durability of a row is
 * that of its transaction's commit record.  Never truncated, because that is
 * not MVCC-safe.  The table is read with a snapshot of the caller, but past
 * the predicate locks of serializable transactions, which would conflict with
 * every enqueuer.  Clients and workers.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/compat.h"
#include "catalog/catalog.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

/* Columns of batcher.spool. */
enum
{
	COL_NUMBER = 1,
	COL_HOME,
	COL_ENQUEUED_AT,
	COL_QUEUE_ID,
	COL_LANE,
	COL_ENQUEUED_BY,
	COL_TICKETS,
	COL_PAYLOADS,
	COL_KEYS,
	COL_TOPICS,
	COL_PRIORITIES,
	COL_ATTEMPTS,
	COL_IMMEDIATE,
	NUM_COLS = COL_IMMEDIATE
};

/*
 * Open the spool.  Producers and workers take RowExclusiveLock and keep it to
 * the end of their transaction, so that DDL can wait for them.
 */
Relation
batcher_spool_open(LOCKMODE lockmode)
{
	return table_open(batcher_catalog_find(false)->spool, lockmode);
}

/*
 * The home of tuples whose chunks are in this shared memory, for the spool's
 * current version.  It differs between databases, because CREATE DATABASE can
 * copy a spool.
 */
uint64
batcher_spool_home(uint32 version)
{
	return (batcher_shared->incarnation ^ ((uint64) MyDatabaseId << 16)) +
		(version & 0xFFFF);
}

/*
 * The version of the spool's file.  False if the file is not the one that
 * memory knows, because the table was rewritten (VACUUM FULL, CLUSTER) and no
 * worker has noticed yet.  The caller holds a lock on the table, so that this
 * holds until it lets go.
 */
bool
batcher_spool_version(BatcherSharedDatabase *db, Relation spool,
					  uint32 *version)
{
	uint64		file = batcher_relation_filenumber(spool);
	uint64		seen = pg_atomic_read_u64(&db->spool);

	if (seen == 0)
	{
		/* nobody has stored a place in the file yet */
		if (pg_atomic_compare_exchange_u64(&db->spool, &seen, file << 32 | 1))
			seen = file << 32 | 1;
	}
	*version = (uint32) seen;
	return (seen >> 32) == file;
}

/*
 * Take the spool's present file as a new version: every place that memory
 * knows is void.  False if another worker has done so already.
 */
bool
batcher_spool_new_version(BatcherSharedDatabase *db, Relation spool)
{
	uint64		file = batcher_relation_filenumber(spool);
	uint64		seen = pg_atomic_read_u64(&db->spool);

	if ((seen >> 32) == file)
		return false;
	return pg_atomic_compare_exchange_u64(&db->spool, &seen,
										  file << 32 |
										  (uint32) ((uint32) seen + 1));
}

/* An array of 'n' elements, some of which may be null. */
static Datum
make_array(Datum *elements, bool *nulls, int n, Oid type)
{
	int			lbound = 1;
	int16		len = type == INT8OID ? 8 : type == INT4OID ? 4 :
		type == BOOLOID ? 1 : -1;
	char		align = type == INT8OID ? TYPALIGN_DOUBLE :
		type == BOOLOID ? TYPALIGN_CHAR : TYPALIGN_INT;

	return PointerGetDatum(construct_md_array(elements, nulls, 1, &n, &lbound,
											  type, len, len > 0, align));
}

/* The rows of a chunk, column by column. */
typedef struct RowColumns
{
	int			n;
	bool		has_key;
	bool		has_topic;
	bool		has_priority;
	bool		has_attempts;
	bool		has_immediate;
	Datum	   *tickets;
	Datum	   *payloads;
	Datum	   *keys;
	bool	   *no_key;
	Datum	   *topics;
	bool	   *no_topic;
	Datum	   *priorities;
	Datum	   *attempts;
	Datum	   *immediate;
} RowColumns;

static void
collect_columns(RowColumns *c, const BatcherChunk *chunk,
				BatcherRow *const *skip, int nskip)
{
	BatcherRow *row = batcher_chunk_first(chunk);
	int			skipped = 0;
	int			i;

	memset(c, 0, sizeof(*c));
	c->tickets = palloc(chunk->nrows * sizeof(Datum));
	c->payloads = palloc(chunk->nrows * sizeof(Datum));
	c->keys = palloc0(chunk->nrows * sizeof(Datum));
	c->no_key = palloc(chunk->nrows * sizeof(bool));
	c->topics = palloc0(chunk->nrows * sizeof(Datum));
	c->no_topic = palloc(chunk->nrows * sizeof(bool));
	c->priorities = palloc(chunk->nrows * sizeof(Datum));
	c->attempts = palloc(chunk->nrows * sizeof(Datum));
	c->immediate = palloc(chunk->nrows * sizeof(Datum));

	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		BatcherRowParts parts;
		int			n = c->n;

		if (skipped < nskip && skip[skipped] == row)
		{
			skipped++;
			continue;
		}
		if (row->flags & BATCHER_ROW_DONE)
			continue;
		batcher_row_read(chunk, row, &parts);
		c->tickets[n] = Int64GetDatum(parts.ticket);
		c->payloads[n] = PointerGetDatum(parts.payload);
		c->keys[n] = PointerGetDatum(parts.key);
		c->no_key[n] = parts.key == NULL;
		c->topics[n] = PointerGetDatum(parts.topic);
		c->no_topic[n] = parts.topic == NULL;
		c->priorities[n] = Int32GetDatum(parts.priority);
		c->attempts[n] = Int32GetDatum(parts.attempts);
		c->immediate[n] = BoolGetDatum(parts.immediate);
		c->has_key |= parts.key != NULL;
		c->has_topic |= parts.topic != NULL;
		c->has_priority |= parts.priority != 0;
		c->has_attempts |= parts.attempts != 0;
		c->has_immediate |= parts.immediate;
		c->n++;
	}
}

/*
 * Store the rows of a chunk that are not settled, without the 'nskip' rows in
 * 'skip' (in the order of the chunk).  'home' is batcher_spool_home() or 0.
 * The place goes into 'tid'.  Allocates in the current context.
 */
void
batcher_spool_write(Relation spool, int32 queue_id, const BatcherChunk *chunk,
					BatcherRow *const *skip, int nskip, uint64 home,
					const char *enqueued_by, ItemPointer tid)
{
	Datum		values[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	bool		nulls[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	RowColumns	c;
	HeapTuple	tuple;

	batcher_catalog_check_columns(RelationGetDescr(spool), NUM_COLS);
	collect_columns(&c, chunk, skip, nskip);
	Assert(c.n > 0);
	memset(nulls, true, sizeof(nulls));
	memset(nulls, false, NUM_COLS + 1);
	values[COL_NUMBER] = Int64GetDatum(chunk->number);
	values[COL_HOME] = Int64GetDatum(home);
	values[COL_ENQUEUED_AT] = TimestampTzGetDatum(chunk->enqueued_at);
	values[COL_QUEUE_ID] = Int32GetDatum(queue_id);
	values[COL_LANE] = Int32GetDatum(0);
	values[COL_ENQUEUED_BY] = CStringGetTextDatum(enqueued_by);
	values[COL_TICKETS] = make_array(c.tickets, NULL, c.n, INT8OID);
	values[COL_PAYLOADS] = make_array(c.payloads, NULL, c.n, JSONBOID);
	if ((nulls[COL_KEYS] = !c.has_key) == false)
		values[COL_KEYS] = make_array(c.keys, c.no_key, c.n, TEXTOID);
	if ((nulls[COL_TOPICS] = !c.has_topic) == false)
		values[COL_TOPICS] = make_array(c.topics, c.no_topic, c.n, TEXTOID);
	if ((nulls[COL_PRIORITIES] = !c.has_priority) == false)
		values[COL_PRIORITIES] = make_array(c.priorities, NULL, c.n, INT4OID);
	if ((nulls[COL_ATTEMPTS] = !c.has_attempts) == false)
		values[COL_ATTEMPTS] = make_array(c.attempts, NULL, c.n, INT4OID);
	if ((nulls[COL_IMMEDIATE] = !c.has_immediate) == false)
		values[COL_IMMEDIATE] = make_array(c.immediate, NULL, c.n, BOOLOID);

	tuple = heap_form_tuple(RelationGetDescr(spool), values + 1, nulls + 1);
	heap_insert(spool, tuple, GetCurrentCommandId(true),
				HEAP_INSERT_NO_LOGICAL, NULL);
	*tid = tuple->t_self;
}

/*
 * The name of who enqueued the rows of a chunk; NULL if the role is gone.
 */
const char *
batcher_spool_enqueuer(const BatcherChunk *chunk)
{
	if (chunk->flags & BATCHER_CHUNK_PRIVATE)
		return batcher_private_chunk(chunk)->enqueued_by;
	return GetUserNameFromId(chunk->enqueued_by, true);
}

/* The chunk number of a tuple. */
static uint64
tuple_number(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;

	return DatumGetInt64(heap_getattr(tuple, COL_NUMBER, desc, &isnull));
}

/* Is the tuple of chunk 'number' at 'tid', on the page in 'buffer'? */
static bool
tuple_is_there(Relation spool, Buffer buffer, ItemPointer tid, uint64 number)
{
	Page		page;
	OffsetNumber offset = ItemPointerGetOffsetNumber(tid);
	bool		there = false;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	if (offset >= FirstOffsetNumber && offset <= PageGetMaxOffsetNumber(page))
	{
		ItemId		lp = PageGetItemId(page, offset);

		if (ItemIdIsNormal(lp))
		{
			HeapTupleData tuple;

			tuple.t_data = (HeapTupleHeader) PageGetItem(page, lp);
			tuple.t_len = ItemIdGetLength(lp);
			tuple.t_self = *tid;
			tuple.t_tableOid = RelationGetRelid(spool);
			there = tuple_number(&tuple, RelationGetDescr(spool)) == number;
		}
	}
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	return there;
}

/*
 * Delete the tuple of chunk 'number' at 'tid'.  False if it is not there or
 * is deleted already: then its rows were settled another way.  'pin' keeps
 * the page of the last call (InvalidBuffer at first), which the caller
 * releases; the block must be within the table.
 */
bool
batcher_spool_delete(Relation spool, ItemPointer tid, uint64 number,
					 Buffer *pin)
{
	BlockNumber block = ItemPointerGetBlockNumber(tid);
	TM_FailureData failure;

	if (BufferIsValid(*pin) && BufferGetBlockNumber(*pin) != block)
	{
		ReleaseBuffer(*pin);
		*pin = InvalidBuffer;
	}
	if (!BufferIsValid(*pin))
		*pin = ReadBuffer(spool, block);
	if (!tuple_is_there(spool, *pin, tid, number))
		return false;
	return heap_delete(spool, tid, GetCurrentCommandId(true), InvalidSnapshot,
					   true, &failure, false) == TM_Ok;
}

/* The tuple that is being read; queue_id 0: none. */
static BatcherSpoolEntry reading;

/*
 * The tuple that could not be read, if the error that was just caught was
 * raised by that; else NULL.
 */
const BatcherSpoolEntry *
batcher_spool_unreadable(void)
{
	return reading.queue_id != 0 ? &reading : NULL;
}

/* Say which tuple is being read. */
static void
begin_reading(Relation spool, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(spool);
	bool		isnull;

	reading.number = tuple_number(tuple, desc);
	reading.tid = tuple->t_self;
	reading.queue_id = DatumGetInt32(heap_getattr(tuple, COL_QUEUE_ID, desc,
												  &isnull));
}

static void
end_reading(void)
{
	reading.queue_id = 0;
}

/* The elements of an array column; a null column gives nulls. */
static void
read_array(Datum value, bool isnull, Oid type, int n, Datum **elements,
		   bool **nulls)
{
	int			found;
	ArrayType  *array;

	if (isnull)
	{
		*elements = palloc0(n * sizeof(Datum));
		*nulls = palloc(n * sizeof(bool));
		memset(*nulls, true, n * sizeof(bool));
		return;
	}
	array = DatumGetArrayTypeP(value);
	deconstruct_array(array, type,
					  type == INT8OID ? 8 : type == INT4OID ? 4 :
					  type == BOOLOID ? 1 : -1,
					  type == INT8OID || type == INT4OID || type == BOOLOID,
					  type == INT8OID ? TYPALIGN_DOUBLE :
					  type == BOOLOID ? TYPALIGN_CHAR : TYPALIGN_INT,
					  elements, nulls, &found);
	if (found != n)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a tuple of the spool has arrays of different lengths")));
}

static int
count_elements(Datum value)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	int			n = ARR_NDIM(array) == 1 ? ARR_DIMS(array)[0] : 0;

	if ((Pointer) array != DatumGetPointer(value))
		pfree(array);
	return n;
}

/*
 * A tuple of the spool as a private chunk of the current context, with its
 * rows ready to be flushed.  An ERROR (XX001) if it cannot be read.
 */
BatcherChunk *
batcher_spool_read(Relation spool, HeapTuple tuple)
{
	Datum		values[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	bool		nulls[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	Datum	   *column[NUM_COLS + 1];
	bool	   *missing[NUM_COLS + 1];
	static const Oid types[NUM_COLS + 1] = {
		[COL_TICKETS] = INT8OID, [COL_PAYLOADS] = JSONBOID,
		[COL_KEYS] = TEXTOID, [COL_TOPICS] = TEXTOID,
		[COL_PRIORITIES] = INT4OID, [COL_ATTEMPTS] = INT4OID,
		[COL_IMMEDIATE] = BOOLOID
	};
	BatcherRowParts *parts;
	BatcherChunk *chunk;
	BatcherRow *last = NULL;
	Size		size = 0;
	int			n;
	int			i;

	batcher_catalog_check_columns(RelationGetDescr(spool), NUM_COLS);
	heap_deform_tuple(tuple, RelationGetDescr(spool), values + 1, nulls + 1);
	n = count_elements(values[COL_TICKETS]);
	if (n < 1 || n > PG_UINT16_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a tuple of the spool has %d rows", n)));
	for (i = COL_TICKETS; i <= COL_IMMEDIATE; i++)
		read_array(values[i], nulls[i], types[i], n, &column[i], &missing[i]);

	parts = palloc0(n * sizeof(BatcherRowParts));
	for (i = 0; i < n; i++)
	{
		if (missing[COL_TICKETS][i] || missing[COL_PAYLOADS][i])
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("a tuple of the spool has a row without payload")));
		parts[i].ticket = DatumGetInt64(column[COL_TICKETS][i]);
		parts[i].payload = PG_DETOAST_DATUM(column[COL_PAYLOADS][i]);
		if (!missing[COL_KEYS][i])
			parts[i].key = DatumGetTextPP(column[COL_KEYS][i]);
		if (!missing[COL_TOPICS][i])
			parts[i].topic = DatumGetTextPP(column[COL_TOPICS][i]);
		if (!missing[COL_PRIORITIES][i])
			parts[i].priority = DatumGetInt32(column[COL_PRIORITIES][i]);
		if (!missing[COL_ATTEMPTS][i])
			parts[i].attempts = DatumGetInt32(column[COL_ATTEMPTS][i]);
		if (!missing[COL_IMMEDIATE][i])
			parts[i].immediate = DatumGetBool(column[COL_IMMEDIATE][i]);
		size += batcher_row_size(&parts[i]);
	}

	chunk = batcher_chunk_new(size, true);
	chunk->flags |= BATCHER_CHUNK_SPILLED | BATCHER_CHUNK_DURABLE;
	for (i = 0; i < n; i++)
	{
		last = batcher_chunk_add(chunk, last, &parts[i],
								 batcher_row_size(&parts[i]));
		if (last == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("a tuple of the spool has tickets out of order")));
	}
	chunk->number = DatumGetInt64(values[COL_NUMBER]);
	chunk->enqueued_at = DatumGetTimestampTz(values[COL_ENQUEUED_AT]);
	chunk->committed_at = chunk->enqueued_at;
	chunk->tid = tuple->t_self;
	batcher_private_chunk(chunk)->enqueued_by =
		TextDatumGetCString(values[COL_ENQUEUED_BY]);
	pg_atomic_write_u32(&chunk->state, BATCHER_CHUNK_COMMITTED);
	return chunk;
}

/*
 * The tuple of chunk 'number' at 'tid' as batcher_spool_read gives it; NULL if
 * 'snapshot' does not see it there.
 */
BatcherChunk *
batcher_spool_fetch(Relation spool, Snapshot snapshot, ItemPointer tid,
					uint64 number)
{
	HeapTupleData tuple;
	Buffer		buffer;
	BatcherChunk *chunk = NULL;

	end_reading();				/* an error may have left it */
	tuple.t_self = *tid;
	if (heap_fetch(spool, snapshot, &tuple, &buffer, false))
	{
		if (tuple_number(&tuple, RelationGetDescr(spool)) == number)
		{
			begin_reading(spool, &tuple);
			chunk = batcher_spool_read(spool, &tuple);
			end_reading();
		}
		ReleaseBuffer(buffer);
	}
	return chunk;
}

/*
 * Call 'visit' for each tuple that 'snapshot' sees, in the order of the
 * table.  The tuple is pinned during the call only.
 */
void
batcher_spool_scan(Relation spool, Snapshot snapshot,
				   BatcherSpoolVisitor visit, void *arg)
{
	TableScanDesc scan;
	HeapTuple	tuple;

	end_reading();				/* an error may have left it */
	scan = table_beginscan(spool, SnapshotAny, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Buffer		buffer = ((HeapScanDesc) scan)->rs_cbuf;
		BatcherSpoolEntry entry;
		bool		visible;
		bool		isnull;
		TupleDesc	desc = RelationGetDescr(spool);

		CHECK_FOR_INTERRUPTS();
		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		visible = HeapTupleSatisfiesVisibility(tuple, snapshot, buffer);
		LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
		if (!visible)
			continue;
		entry.number = tuple_number(tuple, desc);
		entry.home = DatumGetInt64(heap_getattr(tuple, COL_HOME, desc,
												&isnull));
		entry.queue_id = DatumGetInt32(heap_getattr(tuple, COL_QUEUE_ID, desc,
													&isnull));
		begin_reading(spool, tuple);
		entry.nrows = count_elements(heap_getattr(tuple, COL_TICKETS, desc,
												&isnull));
		end_reading();
		entry.tid = tuple->t_self;
		visit(tuple, &entry, arg);
	}
	table_endscan(scan);
}

typedef struct QueueVisit
{
	Relation	spool;
	int32		queue_id;
	bool		delete;
	int64		nrows;
} QueueVisit;

static void
visit_queue(HeapTuple tuple, const BatcherSpoolEntry *entry, void *arg)
{
	QueueVisit *visit = arg;
	ItemPointerData tid = entry->tid;

	if (entry->queue_id != visit->queue_id)
		return;
	visit->nrows += entry->nrows;
	if (visit->delete)
		simple_heap_delete(visit->spool, &tid);
}

static int64
visit_rows_of_queue(int32 queue_id, bool delete)
{
	QueueVisit	visit = {NULL, queue_id, delete, 0};
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	visit.spool = batcher_spool_open(RowExclusiveLock);
	batcher_spool_scan(visit.spool, snapshot, visit_queue, &visit);
	table_close(visit.spool, NoLock);
	UnregisterSnapshot(snapshot);
	return visit.nrows;
}

/*
 * Delete all rows of a queue that nobody else can flush or enqueue into now;
 * returns how many.  Transactional, unlike a purge.
 */
int64
batcher_spool_delete_queue(int32 queue_id)
{
	return visit_rows_of_queue(queue_id, true);
}

/*
 * How many rows of a queue wait in the spool.
 */
int64
batcher_spool_count_queue(int32 queue_id)
{
	return visit_rows_of_queue(queue_id, false);
}

/*
 * The greatest of the numbers in a tuple: its own and the tickets.
 */
uint64
batcher_spool_last_number(HeapTuple tuple, TupleDesc desc)
{
	uint64		last = tuple_number(tuple, desc);
	bool		isnull;
	Datum		tickets = heap_getattr(tuple, COL_TICKETS, desc, &isnull);
	Datum	   *elements;
	int			n;

	if (isnull)
		return last;
	deconstruct_array(DatumGetArrayTypeP(tickets), INT8OID, 8, true,
					  TYPALIGN_DOUBLE, &elements, NULL, &n);
	while (n-- > 0)
		last = Max(last, (uint64) DatumGetInt64(elements[n]));
	return last;
}
