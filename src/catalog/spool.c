/*
 * spool.c
 *	  The spool: rows of durable queues as tuples of batcher.spool.
 *
 * What a tuple holds is in spool_tuple.c.  Its 'home' is the random number of
 * the shared memory, and of the state of the table, in which a chunk knows
 * where it is; 0 if no chunk does.  A tuple whose home is not the current one
 * is read back by a worker.
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
#include "access/heaptoast.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/compat.h"
#include "catalog/catalog.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

/*
 * Open the spool.  Producers and workers take RowExclusiveLock and keep it to
 * the end of their transaction, so that DDL can wait for them.
 */
Relation
batcher_spool_open(LOCKMODE lockmode)
{
	return batcher_catalog_open(batcher_catalog_find(false)->spool, lockmode);
}

/*
 * In a worker, the next number when the last flush had locked the spool, which
 * it holds until it ends; 0 in all other processes.
 */
uint64		batcher_spool_held_since = 0;

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

/*
 * Who stores out of line has to have a snapshot.  A server with assertions
 * demands it of whoever might.
 */
#ifdef USE_ASSERT_CHECKING
#define WANTS_SNAPSHOT(tuple) true
#else
#define WANTS_SNAPSHOT(tuple) ((tuple)->t_len > TOAST_TUPLE_THRESHOLD)
#endif

/*
 * Store what batcher_spool_form makes of these arguments.  The place goes into
 * 'tid'.  Allocates in the current context.
 */
void
batcher_spool_write(Relation spool, const BatcherQueueKey *key,
					const BatcherChunk *chunk, uint64 number,
					BatcherRow *const *skip, int nskip, uint64 home,
					const char *enqueued_by, ItemPointer tid)
{
	HeapTuple	tuple = batcher_spool_form(RelationGetDescr(spool), key,
										   chunk, number, skip, nskip, home,
										   enqueued_by);
	bool		pushed = false;

	if (WANTS_SNAPSHOT(tuple) && !ActiveSnapshotSet())
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		pushed = true;
	}
	heap_insert(spool, tuple, GetCurrentCommandId(true),
				HEAP_INSERT_NO_LOGICAL, NULL);
	if (pushed)
		PopActiveSnapshot();
	*tid = tuple->t_self;
}

/*
 * The name of who enqueued the rows of a chunk, as of today; NULL, or of what
 * was read back the name that was stored, if the role is gone.
 */
const char *
batcher_spool_enqueuer(const BatcherChunk *chunk)
{
	const char *name = NULL;

	if (OidIsValid(chunk->enqueued_by))
		name = GetUserNameFromId(chunk->enqueued_by, true);
	if (name == NULL && (chunk->flags & BATCHER_CHUNK_PRIVATE))
		name = batcher_private_chunk(chunk)->enqueued_by;
	return name;
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
			there = batcher_spool_number(&tuple, RelationGetDescr(spool)) == number;
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

/* The tuple that is being read, if one is. */
static BatcherSpoolEntry reading;
static bool is_reading = false;

/*
 * The tuple that could not be read, if the error that was just caught was
 * raised by that; else NULL.
 */
const BatcherSpoolEntry *
batcher_spool_unreadable(void)
{
	return is_reading ? &reading : NULL;
}

/* Say which tuple is being read. */
static void
begin_reading(Relation spool, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(spool);

	reading.number = batcher_spool_number(tuple, desc);
	reading.tid = tuple->t_self;
	reading.queue_id = batcher_spool_queue_id(tuple, desc);
	reading.nrows = 0;			/* not known */
	is_reading = true;
}

static void
end_reading(void)
{
	is_reading = false;
}

/*
 * The tuple with number and place of 'entry' as batcher_spool_read gives it.
 * NULL, and why, if it cannot be read: then the entry is filled.  NULL, and no
 * 'why', if 'snapshot' does not see it there.  An ERROR if it is damaged.
 */
BatcherChunk *
batcher_spool_fetch(Relation spool, Snapshot snapshot,
					BatcherSpoolEntry *entry, const char **why)
{
	TupleDesc	desc = RelationGetDescr(spool);
	HeapTupleData tuple;
	Buffer		buffer;
	BatcherChunk *chunk = NULL;

	end_reading();				/* an error may have left it */
	*why = NULL;
	tuple.t_self = entry->tid;
	if (heap_fetch(spool, snapshot, &tuple, &buffer, false))
	{
		if (batcher_spool_number(&tuple, desc) == entry->number)
		{
			begin_reading(spool, &tuple);
			chunk = batcher_spool_read(spool, &tuple, why);
			if (chunk == NULL)
				batcher_spool_entry(&tuple, desc, entry);
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

		CHECK_FOR_INTERRUPTS();
		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		visible = HeapTupleSatisfiesVisibility(tuple, snapshot, buffer);
		LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
		if (!visible)
			continue;
		begin_reading(spool, tuple);
		batcher_spool_entry(tuple, RelationGetDescr(spool), &entry);
		end_reading();
		visit(tuple, &entry, arg);
	}
	table_endscan(scan);
}

typedef struct QueueVisit
{
	Relation	spool;
	int32		queue_id;
	bool		delete;
	bool		careful;		/* some of them may be damaged */
	int64		nrows;
	int			nleft;			/* that could not be deleted */
	BatcherSpoolEntry left;		/* the first of these */
} QueueVisit;

/*
 * Call a function in a subtransaction.  False, and nothing is done, if it fails
 * because something is damaged.
 */
static bool
try_on_damaged(void (*function) (void *arg), void *arg)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		function(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	if (error == NULL)
		return true;
	if (error->sqlerrcode != ERRCODE_DATA_CORRUPTED)
		ReThrowError(error);
	FreeErrorData(error);
	return false;
}

typedef struct Deletion
{
	Relation	spool;
	ItemPointerData tid;
} Deletion;

static void
delete_tuple(void *arg)
{
	Deletion   *deletion = arg;

	simple_heap_delete(deletion->spool, &deletion->tid);
}

static void
visit_queue(HeapTuple tuple, const BatcherSpoolEntry *entry, void *arg)
{
	QueueVisit *visit = arg;
	Deletion	deletion = {visit->spool, entry->tid};

	if (entry->queue_id != visit->queue_id)
		return;
	visit->nrows += entry->nrows;
	if (!visit->delete)
		return;
	/* what is stored out of line is deleted with it */
	if (!visit->careful || !HeapTupleHasExternal(tuple))
		delete_tuple(&deletion);
	else if (!try_on_damaged(delete_tuple, &deletion) && visit->nleft++ == 0)
		visit->left = *entry;
}

static void
visit_rows(void *arg)
{
	QueueVisit *visit = arg;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	batcher_spool_scan(visit->spool, snapshot, visit_queue, visit);
	UnregisterSnapshot(snapshot);
}

/*
 * Delete all rows of a queue that nobody else can flush or enqueue into now;
 * returns how many there were.  Transactional, unlike a purge.  Where the server
 * finds garbage instead of what a tuple has stored out of line, that tuple cannot
 * be deleted, and stays, as of no queue, with a WARNING.
 */
int64
batcher_spool_delete_queue(int32 queue_id)
{
	QueueVisit	visit = {.queue_id = queue_id,.delete = true};

	visit.spool = batcher_spool_open(RowExclusiveLock);
	if (!try_on_damaged(visit_rows, &visit))
	{
		/* many subtransactions are slow: only now one for each such tuple */
		visit.careful = true;
		visit.nrows = 0;
		visit_rows(&visit);
	}
	table_close(visit.spool, NoLock);
	if (visit.nleft > 0)
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg_plural("%d damaged tuple cannot be deleted, and stays in the spool",
							   "%d damaged tuples cannot be deleted, and stay in the spool",
							   visit.nleft, visit.nleft),
				 errdetail("The first one is at (%u,%u) of the table batcher.spool.",
						   ItemPointerGetBlockNumber(&visit.left.tid),
						   ItemPointerGetOffsetNumber(&visit.left.tid)),
				 errhint("A superuser can DELETE those of queue_id %d with \"zero_damaged_pages\" on.",
						 queue_id)));
	return visit.nrows;
}

/*
 * How many rows of a queue wait in the spool.
 */
int64
batcher_spool_count_queue(int32 queue_id)
{
	QueueVisit	visit = {.queue_id = queue_id};

	/* who only counts is nobody to wait for */
	visit.spool = batcher_spool_open(AccessShareLock);
	visit_rows(&visit);
	table_close(visit.spool, NoLock);
	return visit.nrows;
}

typedef struct TicketVisit
{
	TupleDesc	desc;
	int32		queue_id;
	uint64		ticket;
	bool		found;
	MemoryContext cxt;			/* reset after each tuple */
} TicketVisit;

static void
visit_ticket(HeapTuple tuple, const BatcherSpoolEntry *entry, void *arg)
{
	TicketVisit *visit = arg;
	MemoryContext old;

	if (visit->found || entry->queue_id != visit->queue_id)
		return;
	old = MemoryContextSwitchTo(visit->cxt);
	visit->found = batcher_spool_has_ticket(tuple, visit->desc, visit->ticket);
	MemoryContextSwitchTo(old);
	MemoryContextReset(visit->cxt);
}

/*
 * Whether a committed row with this ticket waits in the spool now.
 */
bool
batcher_spool_find_ticket(int32 queue_id, uint64 ticket)
{
	Relation	spool = batcher_spool_open(AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TicketVisit visit = {RelationGetDescr(spool), queue_id, ticket, false, NULL};

	visit.cxt = AllocSetContextCreate(CurrentMemoryContext, "batcher tickets",
									  ALLOCSET_DEFAULT_SIZES);
	batcher_spool_scan(spool, snapshot, visit_ticket, &visit);
	MemoryContextDelete(visit.cxt);
	UnregisterSnapshot(snapshot);
	table_close(spool, AccessShareLock);
	return visit.found;
}
