/*
 * relation.c
 *	  The rows of a batch as the relation "batch".
 *
 * It has the payload, or, if the queue is typed, the columns of the row type,
 * and then what else is known of a row.  The worker; its columns, clients too.
 */
#include "postgres.h"

#include "batch/batch.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

/* The columns of "batch" that are behind the payload, or the row's own. */
enum
{
	POS, TICKET, KEY, TOPIC, PRIORITY, ATTEMPTS, ENQUEUED_AT, ENQUEUED_BY,
	NUM_COLS
};

static const struct
{
	const char *name;
	Oid			type;
}			batch_columns[NUM_COLS] = {
	[POS] = {"batch_pos", INT4OID},
	[TICKET] = {"batch_ticket", INT8OID},
	[KEY] = {"batch_key", TEXTOID},
	[TOPIC] = {"batch_topic", TEXTOID},
	[PRIORITY] = {"batch_priority", INT4OID},
	[ATTEMPTS] = {"batch_attempts", INT4OID},
	[ENQUEUED_AT] = {"batch_enqueued_at", TIMESTAMPTZOID},
	[ENQUEUED_BY] = {"batch_enqueued_by", TEXTOID},
};

/*
 * The columns of the relation "batch"; 'row_type' is NULL for a queue that is
 * not typed.  Errors: 42701.
 */
TupleDesc
batcher_relation_desc(const BatcherRowType *row_type)
{
	int			nown = row_type ? row_type->ncolumns : 1;
	TupleDesc	desc = CreateTemplateTupleDesc(nown + NUM_COLS);
	int			i;
	int			j;

	if (row_type == NULL)
		TupleDescInitEntry(desc, 1, "payload", JSONBOID, -1, 0);
	for (i = 0; row_type && i < nown; i++)
	{
		const BatcherColumn *column = &row_type->columns[i];

		for (j = 0; j < NUM_COLS; j++)
		{
			if (strcmp(column->name, batch_columns[j].name) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("rows must not have a column \"%s\"",
								column->name),
						 errdetail("The relation \"batch\" has one of its own.")));
		}
		TupleDescInitEntry(desc, i + 1, column->name, column->type,
						   column->typmod, 0);
		TupleDescInitEntryCollation(desc, i + 1, column->collation);
	}
	for (j = 0; j < NUM_COLS; j++)
		TupleDescInitEntry(desc, nown + j + 1, batch_columns[j].name,
						   batch_columns[j].type, -1, 0);
	return desc;
}

/* Put one row of a batch into a tuplestore; 'by': who enqueued it. */
static void
store_row(Tuplestorestate *store, TupleDesc desc, BatcherBatch *batch,
		  int index, BatcherRowType *row_type, const char *by)
{
	BatcherChunk *chunk = batch->rows[index].chunk;
	Datum	   *values = palloc_array(Datum, desc->natts);
	bool	   *nulls = palloc0_array(bool, desc->natts);
	int			nown = desc->natts - NUM_COLS;
	Datum	   *v = values + nown;
	BatcherRowParts parts;

	batcher_batch_read(&batch->rows[index], &parts);
	if (row_type)
		batcher_row_type_read(row_type, (Jsonb *) parts.payload, values, nulls);
	else
		values[0] = PointerGetDatum(parts.payload);
	v[POS] = Int32GetDatum(index + 1);
	v[TICKET] = Int64GetDatum(parts.ticket);
	v[KEY] = PointerGetDatum(parts.key);
	nulls[nown + KEY] = parts.key == NULL;
	v[TOPIC] = PointerGetDatum(parts.topic);
	nulls[nown + TOPIC] = parts.topic == NULL;
	v[PRIORITY] = Int32GetDatum(parts.priority);
	v[ATTEMPTS] = Int32GetDatum(parts.attempts);
	v[ENQUEUED_AT] = TimestampTzGetDatum(chunk->enqueued_at);
	if (by)
		v[ENQUEUED_BY] = CStringGetTextDatum(by);
	else
		nulls[nown + ENQUEUED_BY] = true;
	tuplestore_putvalues(store, desc, values, nulls);
}

/*
 * The rows of a batch as a tuplestore: those whose indexes are listed, or all
 * if 'rows' is NIL.  As the owner, because values of types are made here.
 */
Tuplestorestate *
batcher_relation_store(BatcherBatch *batch, TupleDesc desc,
					   BatcherRowType *row_type, List *rows)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	MemoryContext row_cxt = AllocSetContextCreate(CurrentMemoryContext,
												  "batcher row",
												  ALLOCSET_DEFAULT_SIZES);
	int			n = rows ? list_length(rows) : batch->nrows;
	int			level = row_type ? batcher_row_json_settings_begin(false) : -1;
	BatcherChunk *chunk = NULL;
	const char *by = NULL;
	int			i;

	for (i = 0; i < n; i++)
	{
		int			index = rows ? list_nth_int(rows, i) : i;
		MemoryContext old;

		if (batch->rows[index].chunk != chunk)
		{
			chunk = batch->rows[index].chunk;
			by = batcher_spool_enqueuer(chunk);
		}
		old = MemoryContextSwitchTo(row_cxt);
		store_row(store, desc, batch, index, row_type, by);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row_cxt);
	}
	if (row_type)
		batcher_row_json_settings_end(level);
	MemoryContextDelete(row_cxt);
	return store;
}
