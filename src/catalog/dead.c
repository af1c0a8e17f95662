/*
 * dead.c
 *	  Dead letters: rows that failed too often, as tuples of batcher.dead_row.
 *
 * Written by the worker in the transaction of the flush in which a row failed
 * last, so that it is in the spool or here, and never in both.  Written
 * through SPI as the owner of the extension; read with the caller's snapshot.
 * Clients and workers.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "base/clock.h"
#include "catalog/catalog.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* Bytes of each text of an error that are kept. */
#define TEXT_MAX	8000

/* Columns of batcher.dead_row. */
enum
{
	COL_QUEUE_ID = 1,
	COL_TICKET,
	COL_KEY,
	COL_TOPIC,
	COL_PRIORITY,
	COL_PAYLOAD,
	COL_SQLSTATE,
	COL_MESSAGE,
	COL_DETAIL,
	COL_CONTEXT,
	COL_ATTEMPTS,
	COL_ENQUEUED_AT,
	COL_ENQUEUED_BY,
	COL_ENQUEUER,
	COL_DIED_AT,
	NUM_COLS = COL_DIED_AT
};

/* A text of an error, cut where it is too long; NULL is null. */
static Datum
clipped_text(const char *s, char *null)
{
	*null = s ? ' ' : 'n';
	if (s == NULL)
		return (Datum) 0;
	return PointerGetDatum(cstring_to_text_with_len(s, pg_mbcliplen(s, strlen(s), TEXT_MAX)));
}

/*
 * Store a dead letter.  If there is one with its ticket, which a restore can
 * bring, it gets another: none is lost.
 */
static void
insert_dead(Datum *values, char *nulls)
{
	static Oid	types[NUM_COLS] = {
		INT4OID, INT8OID, TEXTOID, TEXTOID, INT4OID, JSONBOID, TEXTOID,
		TEXTOID, TEXTOID, TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, OIDOID,
		TIMESTAMPTZOID
	};

	while (batcher_catalog_write("INSERT INTO batcher.dead_row (queue_id, ticket,"
								 " key, topic, priority, payload, sqlstate,"
								 " message, detail, context, attempts,"
								 " enqueued_at, enqueued_by, enqueuer, died_at)"
								 " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,"
								 " $10, $11, $12, $13, $14, $15)"
								 " ON CONFLICT (queue_id, ticket) DO NOTHING",
								 NUM_COLS, types, values, nulls, NULL) == 0)
		values[COL_TICKET - 1] =
			Int64GetDatum(batcher_number_take(batcher_catalog_database()));
}

/*
 * Make a row of a chunk a dead letter: it has failed once more, with 'error'.
 */
void
batcher_dead_insert(int32 queue_id, const BatcherChunk *chunk, BatcherRow *row,
					const ErrorData *error)
{
	Datum		values[NUM_COLS];
	char		nulls[NUM_COLS];
	BatcherRowParts parts;
	const char *by = batcher_spool_enqueuer(chunk);
	Oid			enqueuer = chunk->enqueued_by;

	/* of what was restored only the name is known */
	if (!OidIsValid(enqueuer))
		enqueuer = by == NULL ? InvalidOid : get_role_oid(by, true);
	else if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(enqueuer)))
		enqueuer = InvalidOid;
	batcher_row_read(chunk, row, &parts);
	memset(nulls, ' ', sizeof(nulls));
	values[COL_QUEUE_ID - 1] = Int32GetDatum(queue_id);
	values[COL_TICKET - 1] = Int64GetDatum(parts.ticket);
	values[COL_KEY - 1] = PointerGetDatum(parts.key);
	nulls[COL_KEY - 1] = parts.key ? ' ' : 'n';
	values[COL_TOPIC - 1] = PointerGetDatum(parts.topic);
	nulls[COL_TOPIC - 1] = parts.topic ? ' ' : 'n';
	values[COL_PRIORITY - 1] = Int32GetDatum(parts.priority);
	values[COL_PAYLOAD - 1] = PointerGetDatum(parts.payload);
	values[COL_SQLSTATE - 1] =
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[COL_MESSAGE - 1] = clipped_text(error->message,
										   &nulls[COL_MESSAGE - 1]);
	values[COL_DETAIL - 1] = clipped_text(error->detail,
										  &nulls[COL_DETAIL - 1]);
	values[COL_CONTEXT - 1] = clipped_text(error->context,
										   &nulls[COL_CONTEXT - 1]);
	values[COL_ATTEMPTS - 1] = Int32GetDatum(parts.attempts + 1);
	values[COL_ENQUEUED_AT - 1] = TimestampTzGetDatum(chunk->enqueued_at);
	values[COL_ENQUEUED_BY - 1] = clipped_text(by, &nulls[COL_ENQUEUED_BY - 1]);
	values[COL_ENQUEUER - 1] = ObjectIdGetDatum(enqueuer);
	values[COL_DIED_AT - 1] = TimestampTzGetDatum(batcher_clock_now());
	insert_dead(values, nulls);
}

/*
 * Make a tuple of the spool that cannot be read a dead letter without payload,
 * under the number of its chunk, which is no ticket.
 */
void
batcher_dead_insert_unreadable(const BatcherSpoolEntry *entry,
							   int sqlerrcode, const char *why)
{
	Datum		values[NUM_COLS] = {0};
	char		nulls[NUM_COLS];

	memset(nulls, 'n', sizeof(nulls));
	values[COL_QUEUE_ID - 1] = Int32GetDatum(entry->queue_id);
	values[COL_TICKET - 1] = Int64GetDatum(entry->number);
	values[COL_PRIORITY - 1] = Int32GetDatum(0);
	values[COL_SQLSTATE - 1] =
		CStringGetTextDatum(unpack_sql_state(sqlerrcode));
	values[COL_MESSAGE - 1] = clipped_text(why, &nulls[COL_MESSAGE - 1]);
	values[COL_DETAIL - 1] =
		CStringGetTextDatum(psprintf("The tuple was at (%u,%u) of the table batcher.spool.",
									 ItemPointerGetBlockNumber(&entry->tid),
									 ItemPointerGetOffsetNumber(&entry->tid)));
	values[COL_ATTEMPTS - 1] = Int32GetDatum(1);
	values[COL_DIED_AT - 1] = TimestampTzGetDatum(batcher_clock_now());
	nulls[COL_QUEUE_ID - 1] = nulls[COL_TICKET - 1] = ' ';
	nulls[COL_PRIORITY - 1] = nulls[COL_SQLSTATE - 1] = ' ';
	nulls[COL_DETAIL - 1] = nulls[COL_ATTEMPTS - 1] = ' ';
	nulls[COL_DIED_AT - 1] = ' ';
	insert_dead(values, nulls);
}

/* A text column, or NULL. */
static char *
text_column(Datum *values, bool *nulls, int column)
{
	return nulls[column] ? NULL : TextDatumGetCString(values[column]);
}

/* A dead letter from its tuple, in the current context. */
static void
read_dead(HeapTuple tuple, TupleDesc desc, BatcherDeadLetter *dead)
{
	Datum		values[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	bool		nulls[NUM_COLS + BATCHER_MORE_COLUMNS + 1];

	batcher_catalog_check_columns(desc, NUM_COLS);
	heap_deform_tuple(tuple, desc, values + 1, nulls + 1);
	memset(dead, 0, sizeof(*dead));
	dead->queue_id = DatumGetInt32(values[COL_QUEUE_ID]);
	dead->row.ticket = DatumGetInt64(values[COL_TICKET]);
	if (!nulls[COL_KEY])
		dead->row.key = DatumGetTextPCopy(values[COL_KEY]);
	if (!nulls[COL_TOPIC])
		dead->row.topic = DatumGetTextPCopy(values[COL_TOPIC]);
	dead->row.priority = DatumGetInt32(values[COL_PRIORITY]);
	if (!nulls[COL_PAYLOAD])
		dead->row.payload = (struct varlena *) DatumGetJsonbPCopy(values[COL_PAYLOAD]);
	dead->sqlstate = text_column(values, nulls, COL_SQLSTATE);
	dead->message = text_column(values, nulls, COL_MESSAGE);
	dead->detail = text_column(values, nulls, COL_DETAIL);
	dead->context = text_column(values, nulls, COL_CONTEXT);
	dead->attempts = DatumGetInt32(values[COL_ATTEMPTS]);
	if (!nulls[COL_ENQUEUED_AT])
		dead->enqueued_at = DatumGetTimestampTz(values[COL_ENQUEUED_AT]);
	dead->enqueued_by = text_column(values, nulls, COL_ENQUEUED_BY);
	if (!nulls[COL_ENQUEUER])
		dead->enqueuer = DatumGetObjectId(values[COL_ENQUEUER]);
	dead->died_at = DatumGetTimestampTz(values[COL_DIED_AT]);
}

/*
 * Call 'visit' for each dead letter that the active snapshot sees; what it is
 * given is freed after the call.
 */
void
batcher_dead_scan(BatcherDeadVisitor visit, void *arg)
{
	Relation	rel = batcher_catalog_open(batcher_catalog_find(false)->dead_table,
										 AccessShareLock);
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "batcher dead letters",
											  ALLOCSET_DEFAULT_SIZES);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false,
										  GetActiveSnapshot(), 0, NULL);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		BatcherDeadLetter dead;

		CHECK_FOR_INTERRUPTS();
		read_dead(tuple, RelationGetDescr(rel), &dead);
		visit(&dead, arg);
		MemoryContextReset(cxt);
	}
	MemoryContextSwitchTo(old);
	systable_endscan(scan);
	MemoryContextDelete(cxt);
	table_close(rel, AccessShareLock);
}

/*
 * The ticket of a dead letter.
 */
uint64
batcher_dead_ticket(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		ticket = heap_getattr(tuple, COL_TICKET, desc, &isnull);

	return isnull ? 0 : DatumGetInt64(ticket);
}

/*
 * Whether the row with this ticket is a dead letter now.
 */
bool
batcher_dead_exists(int32 queue_id, uint64 ticket)
{
	const BatcherCatalog *cat = batcher_catalog_find(false);
	Relation	rel = batcher_catalog_open(cat->dead_table, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	bool		exists;

	ScanKeyInit(&keys[0], COL_QUEUE_ID, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(queue_id));
	ScanKeyInit(&keys[1], COL_TICKET, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(ticket));
	scan = systable_beginscan(rel, cat->dead_index, true, NULL, 2, keys);
	exists = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return exists;
}

/*
 * Delete dead letters of a queue: those with the tickets of 'tickets', an
 * int8[] (0: all).  Returns how many.
 */
uint64
batcher_dead_delete(int32 queue_id, Datum tickets)
{
	Oid			types[] = {INT4OID, INT8ARRAYOID};
	Datum		values[] = {Int32GetDatum(queue_id), tickets};

	return batcher_catalog_write("DELETE FROM batcher.dead_row"
								 " WHERE queue_id = $1"
								 " AND ($2 IS NULL OR ticket = ANY ($2))",
								 2, types, values, tickets ? "  " : " n",
								 NULL);
}

/*
 * Delete up to 'max' of these dead letters that have a payload and a ticket
 * above 'after', in the order of their tickets, and return them as an array
 * in the current context; '*n' is how many.
 */
BatcherDeadLetter *
batcher_dead_take(int32 queue_id, Datum tickets, int64 after, int max, int *n)
{
	Oid			types[] = {INT4OID, INT8ARRAYOID, INT8OID, INT4OID};
	Datum		values[] = {
		Int32GetDatum(queue_id), tickets, Int64GetDatum(after),
		Int32GetDatum(max)
	};
	BatcherWritten written;
	BatcherDeadLetter *letters;
	uint64		i;

	(void) batcher_catalog_write("WITH d AS (DELETE FROM batcher.dead_row"
									" WHERE queue_id = $1 AND ticket IN"
									" (SELECT ticket FROM batcher.dead_row"
									" WHERE queue_id = $1"
									" AND ($2 IS NULL OR ticket = ANY ($2))"
									" AND payload IS NOT NULL AND ticket > $3"
									" ORDER BY ticket LIMIT $4)"
									" RETURNING *) SELECT * FROM d"
									" ORDER BY ticket",
									4, types, values,
									tickets ? "    " : " n  ", &written);
	letters = palloc_array(BatcherDeadLetter, Max(written.ntuples, 1));
	for (i = 0; i < written.ntuples; i++)
		read_dead(written.tuples[i], written.desc, &letters[i]);
	*n = written.ntuples;
	return letters;
}
