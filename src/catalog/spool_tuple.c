/*
 * spool_tuple.c
 *	  What a tuple of the spool holds: the rows of a chunk.
 *
 * They are stored in built-in types that any version can read and pg_dump can
 * carry.  A single row, of which most tuples have but one, has its ticket, its
 * payload and so on in columns of their own; several have one array of
 * tickets, of payloads and so on.  Clients and workers.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/clock.h"
#include "catalog/catalog.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"

/* Columns of batcher.spool: of a tuple with one row, of one with several. */
enum
{
	COL_NUMBER = 1,
	COL_HOME,
	COL_ENQUEUED_AT,
	COL_QUEUE_ID,
	COL_LANE,
	COL_TICKET,
	COL_PRIORITY,
	COL_ATTEMPTS,
	COL_IMMEDIATE,
	COL_ENQUEUER,
	COL_ENQUEUED_BY,
	COL_PAYLOAD,
	COL_KEY,
	COL_TOPIC,
	COL_TICKETS,
	COL_PAYLOADS,
	COL_KEYS,
	COL_TOPICS,
	COL_PRIORITIES,
	COL_ATTEMPTS_EACH,
	COL_IMMEDIATE_EACH,
	COL_ALONE,
	COL_ALONE_EACH,
	NUM_COLS = COL_ALONE_EACH
};

/*
 * What is stored of a row.  Null stands for no key, no topic, and the usual
 * priority, attempts, immediate and alone; where all rows have it, for the array.
 */
enum
{
	PART_TICKET,
	PART_PAYLOAD,
	PART_KEY,
	PART_TOPIC,
	PART_PRIORITY,
	PART_ATTEMPTS,
	PART_IMMEDIATE,
	PART_ALONE,
	NUM_PARTS
};

static const struct
{
	int			one;			/* column of a tuple with one row */
	int			many;			/* column of the array */
	Oid			type;
	int16		len;
	bool		byval;
	char		align;
}			row_part[NUM_PARTS] =
{
	{COL_TICKET, COL_TICKETS, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	{COL_PAYLOAD, COL_PAYLOADS, JSONBOID, -1, false, TYPALIGN_INT},
	{COL_KEY, COL_KEYS, TEXTOID, -1, false, TYPALIGN_INT},
	{COL_TOPIC, COL_TOPICS, TEXTOID, -1, false, TYPALIGN_INT},
	{COL_PRIORITY, COL_PRIORITIES, INT4OID, 4, true, TYPALIGN_INT},
	{COL_ATTEMPTS, COL_ATTEMPTS_EACH, INT4OID, 4, true, TYPALIGN_INT},
	{COL_IMMEDIATE, COL_IMMEDIATE_EACH, BOOLOID, 1, true, TYPALIGN_CHAR},
	{COL_ALONE, COL_ALONE_EACH, BOOLOID, 1, true, TYPALIGN_CHAR},
};

/* What is stored of a row, part by part. */
static void
split_row(const BatcherRowParts *parts, Datum *values, bool *nulls)
{
	memset(nulls, false, NUM_PARTS * sizeof(bool));
	values[PART_TICKET] = Int64GetDatum(parts->ticket);
	values[PART_PAYLOAD] = PointerGetDatum(parts->payload);
	values[PART_KEY] = PointerGetDatum(parts->key);
	nulls[PART_KEY] = parts->key == NULL;
	values[PART_TOPIC] = PointerGetDatum(parts->topic);
	nulls[PART_TOPIC] = parts->topic == NULL;
	values[PART_PRIORITY] = Int32GetDatum(parts->priority);
	nulls[PART_PRIORITY] = parts->priority == 0;
	values[PART_ATTEMPTS] = Int32GetDatum(parts->attempts);
	nulls[PART_ATTEMPTS] = parts->attempts == 0;
	values[PART_IMMEDIATE] = BoolGetDatum(parts->immediate);
	nulls[PART_IMMEDIATE] = !parts->immediate;
	values[PART_ALONE] = BoolGetDatum(parts->alone);
	nulls[PART_ALONE] = !parts->alone;
}

/* Set the columns of a tuple with these 'n' rows. */
static void
set_rows(const BatcherRowParts *rows, int n, Datum *values, bool *nulls)
{
	Datum		part[NUM_PARTS];
	bool		missing[NUM_PARTS];
	Datum	   *elements[NUM_PARTS];
	bool	   *no_element[NUM_PARTS];
	int			lbound = 1;
	int			i;
	int			p;

	if (n == 1)
	{
		split_row(rows, part, missing);
		for (p = 0; p < NUM_PARTS; p++)
		{
			values[row_part[p].one] = part[p];
			nulls[row_part[p].one] = missing[p];
		}
		return;
	}

	for (p = 0; p < NUM_PARTS; p++)
	{
		elements[p] = palloc(n * sizeof(Datum));
		no_element[p] = palloc(n * sizeof(bool));
	}
	for (i = 0; i < n; i++)
	{
		split_row(&rows[i], part, missing);
		for (p = 0; p < NUM_PARTS; p++)
		{
			elements[p][i] = part[p];
			no_element[p][i] = missing[p];
			if (!missing[p])
				nulls[row_part[p].many] = false;
		}
	}
	for (p = 0; p < NUM_PARTS; p++)
	{
		if (nulls[row_part[p].many])
			continue;
		values[row_part[p].many] =
			PointerGetDatum(construct_md_array(elements[p], no_element[p], 1,
											   &n, &lbound, row_part[p].type,
											   row_part[p].len,
											   row_part[p].byval,
											   row_part[p].align));
	}
}

/*
 * The tuple for the rows of a chunk that are not settled, without the 'nskip'
 * of them in 'skip' (in the order of the chunk); at least one is left.
 * 'key' is the lane's; 'number' is the chunk's, unless it inherits another;
 * 'home' is batcher_spool_home(), 0 or less.  In the current context.
 */
HeapTuple
batcher_spool_form(TupleDesc desc, const BatcherQueueKey *key,
				   const BatcherChunk *chunk, uint64 number,
				   BatcherRow *const *skip, int nskip, uint64 home,
				   const char *enqueued_by)
{
	Datum		values[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	bool		nulls[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	BatcherRow *row = batcher_chunk_first(chunk);
	BatcherRowParts one;
	BatcherRowParts *rows = &one;
	int			skipped = 0;
	int			n = 0;
	int			i;

	batcher_catalog_check_columns(desc, NUM_COLS);
	if (chunk->nlive - nskip > 1)
		rows = palloc_array(BatcherRowParts, chunk->nlive - nskip);
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		if (skipped < nskip && skip[skipped] == row)
			skipped++;
		else if (!(row->flags & BATCHER_ROW_DONE))
			batcher_row_read(chunk, row, &rows[n++]);
	}
	Assert(n > 0 && n == chunk->nlive - nskip);
	memset(nulls, true, sizeof(nulls));
	values[COL_NUMBER] = Int64GetDatum(number);
	values[COL_HOME] = Int64GetDatum(home);
	values[COL_ENQUEUED_AT] = TimestampTzGetDatum(chunk->enqueued_at);
	values[COL_QUEUE_ID] = Int32GetDatum(key->queue_id);
	values[COL_LANE] = Int32GetDatum(key->lane);
	values[COL_ENQUEUER] = ObjectIdGetDatum(chunk->enqueued_by);
	values[COL_ENQUEUED_BY] = CStringGetTextDatum(enqueued_by);
	nulls[COL_NUMBER] = nulls[COL_HOME] = nulls[COL_ENQUEUED_AT] = false;
	nulls[COL_QUEUE_ID] = nulls[COL_LANE] = false;
	nulls[COL_ENQUEUER] = nulls[COL_ENQUEUED_BY] = false;
	set_rows(rows, n, values, nulls);
	return heap_form_tuple(desc, values + 1, nulls + 1);
}

/*
 * The chunk number of a tuple.
 */
uint64
batcher_spool_number(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;

	return DatumGetInt64(heap_getattr(tuple, COL_NUMBER, desc, &isnull));
}

/*
 * The home of a tuple.
 */
uint64
batcher_spool_tuple_home(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;

	return DatumGetInt64(heap_getattr(tuple, COL_HOME, desc, &isnull));
}

/*
 * The queue of a tuple.
 */
int32
batcher_spool_queue_id(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;

	return DatumGetInt32(heap_getattr(tuple, COL_QUEUE_ID, desc, &isnull));
}

/* The lane of a tuple. */
static int32
tuple_lane(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;

	return DatumGetInt32(heap_getattr(tuple, COL_LANE, desc, &isnull));
}

/* The elements of an array of rows' parts; returns how many there are. */
static int
read_array(Datum value, int p, Datum **elements, bool **nulls)
{
	int			n;

	deconstruct_array(DatumGetArrayTypeP(value), row_part[p].type,
					  row_part[p].len, row_part[p].byval, row_part[p].align,
					  elements, nulls, &n);
	return n;
}

/* How many rows a tuple has: one, or as many as its array of tickets. */
static int
count_rows(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, COL_TICKETS, desc, &isnull);
	ArrayType  *array;
	int			n;

	if (isnull)
		return 1;
	array = DatumGetArrayTypeP(value);
	n = ARR_NDIM(array) == 1 ? ARR_DIMS(array)[0] : 0;
	if ((Pointer) array != DatumGetPointer(value))
		pfree(array);
	return n;
}

/* Add one part, from the column of a tuple, to the rows of that. */
static void
read_part(int p, Datum value, BatcherRowParts *row)
{
	switch (p)
	{
		case PART_TICKET:
			row->ticket = DatumGetInt64(value);
			break;
		case PART_PAYLOAD:
			row->payload = PG_DETOAST_DATUM(value);
			break;
		case PART_KEY:
			row->key = DatumGetTextPP(value);
			break;
		case PART_TOPIC:
			row->topic = DatumGetTextPP(value);
			break;
		case PART_PRIORITY:
			row->priority = DatumGetInt32(value);
			break;
		case PART_ATTEMPTS:
			/* a chunk counts 16 bits of them */
			row->attempts = Min(Max(DatumGetInt32(value), 0), PG_UINT16_MAX);
			break;
		case PART_IMMEDIATE:
			row->immediate = DatumGetBool(value);
			break;
		case PART_ALONE:
			row->alone = DatumGetBool(value);
			break;
	}
}

/*
 * The 'n' rows of a tuple with these columns; NULL, and why, if they are none.
 */
static BatcherRowParts *
read_rows(Datum *values, bool *nulls, int n, const char **why)
{
	BatcherRowParts *rows = palloc0(n * sizeof(BatcherRowParts));
	bool		many = !nulls[COL_TICKETS];
	int			p;
	int			i;

	for (p = 0; p < NUM_PARTS; p++)
	{
		int			col = many ? row_part[p].many : row_part[p].one;
		Datum	   *elements = &values[col];
		bool	   *missing = &nulls[col];

		if (nulls[col])
			continue;
		if (many && read_array(values[col], p, &elements, &missing) != n)
		{
			*why = "a tuple of the spool has arrays of different lengths";
			return NULL;
		}
		for (i = 0; i < n; i++)
		{
			if (!missing[i])
				read_part(p, elements[i], &rows[i]);
		}
	}
	for (i = 0; i < n; i++)
	{
		if (rows[i].ticket == 0 || rows[i].payload == NULL)
		{
			*why = "a tuple of the spool has a row without ticket or payload";
			return NULL;
		}
	}
	return rows;
}

/* A private chunk of the current context with 'n' rows; NULL, and why. */
static BatcherChunk *
make_chunk(BatcherRowParts *rows, int n, const char **why)
{
	BatcherChunk *chunk;
	BatcherRow *last = NULL;
	Size		size = 0;
	int			i;

	for (i = 0; i < n; i++)
		size += batcher_row_size(&rows[i]);
	chunk = batcher_chunk_new(size, true);
	chunk->flags |= BATCHER_CHUNK_SPILLED | BATCHER_CHUNK_DURABLE;
	for (i = 0; i < n; i++)
	{
		last = batcher_chunk_add(chunk, last, &rows[i],
								 batcher_row_size(&rows[i]));
		if (last == NULL)
		{
			*why = "a tuple of the spool has tickets out of order";
			return NULL;
		}
	}
	return chunk;
}

/*
 * What a restore brings may say anything, and clocks go wrong: for a time that
 * cannot be true, it is now.
 */
static TimestampTz
true_time(TimestampTz enqueued_at)
{
	TimestampTz now = batcher_clock_now();

	return enqueued_at > 0 && enqueued_at < now ? enqueued_at : now;
}

/*
 * When the rows of a tuple were enqueued; where it says what cannot be, now.
 */
TimestampTz
batcher_spool_tuple_time(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		enqueued_at = heap_getattr(tuple, COL_ENQUEUED_AT, desc, &isnull);

	return true_time(isnull ? 0 : DatumGetTimestampTz(enqueued_at));
}

/*
 * A tuple of the spool as a private chunk of the current context, with its
 * rows ready to be flushed.  NULL, and why, if it is none that could be
 * written here: a restore brings what it likes.  An ERROR if it is damaged.
 */
BatcherChunk *
batcher_spool_read(Relation spool, HeapTuple tuple, const char **why)
{
	Datum		values[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	bool		nulls[NUM_COLS + BATCHER_MORE_COLUMNS + 1];
	BatcherRowParts *rows;
	BatcherChunk *chunk;
	int			n;

	n = count_rows(tuple, RelationGetDescr(spool));
	if (n < 1 || n > PG_UINT16_MAX)
	{
		*why = psprintf("a tuple of the spool has %d rows", n);
		return NULL;
	}
	heap_deform_tuple(tuple, RelationGetDescr(spool), values + 1, nulls + 1);
	rows = read_rows(values, nulls, n, why);
	chunk = rows ? make_chunk(rows, n, why) : NULL;
	if (chunk == NULL)
		return NULL;
	chunk->number = DatumGetInt64(values[COL_NUMBER]);
	chunk->enqueued_at = DatumGetTimestampTz(values[COL_ENQUEUED_AT]);
	chunk->committed_at = true_time(chunk->enqueued_at);
	chunk->enqueued_by = DatumGetObjectId(values[COL_ENQUEUER]);
	chunk->tid = tuple->t_self;
	batcher_private_chunk(chunk)->home = DatumGetInt64(values[COL_HOME]);
	batcher_private_chunk(chunk)->enqueued_by =
		TextDatumGetCString(values[COL_ENQUEUED_BY]);
	pg_atomic_write_u32(&chunk->state, BATCHER_CHUNK_COMMITTED);
	return chunk;
}

/*
 * What a scan tells of a tuple.
 */
void
batcher_spool_entry(HeapTuple tuple, TupleDesc desc, BatcherSpoolEntry *entry)
{
	entry->number = batcher_spool_number(tuple, desc);
	entry->home = batcher_spool_tuple_home(tuple, desc);
	entry->queue_id = batcher_spool_queue_id(tuple, desc);
	entry->lane = tuple_lane(tuple, desc);
	entry->nrows = count_rows(tuple, desc);
	entry->tid = tuple->t_self;
}

/* The tickets of a tuple, whether it can be read or not; returns how many. */
static int
read_tickets(HeapTuple tuple, TupleDesc desc, Datum **tickets, bool **missing)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, COL_TICKETS, desc, &isnull);

	if (!isnull)
		return read_array(value, PART_TICKET, tickets, missing);
	*tickets = palloc_object(Datum);
	*missing = palloc_object(bool);
	**tickets = heap_getattr(tuple, COL_TICKET, desc, *missing);
	return 1;
}

/*
 * The greatest of the numbers in a tuple: its own and the tickets.
 */
uint64
batcher_spool_last_number(HeapTuple tuple, TupleDesc desc)
{
	uint64		last = batcher_spool_number(tuple, desc);
	Datum	   *tickets;
	bool	   *missing;
	int			n = read_tickets(tuple, desc, &tickets, &missing);

	while (n-- > 0)
	{
		if (!missing[n])
			last = Max(last, (uint64) DatumGetInt64(tickets[n]));
	}
	return last;
}

/*
 * Whether a tuple has a row with this ticket.
 */
bool
batcher_spool_has_ticket(HeapTuple tuple, TupleDesc desc, uint64 ticket)
{
	Datum	   *tickets;
	bool	   *missing;
	int			n = read_tickets(tuple, desc, &tickets, &missing);

	while (n-- > 0)
	{
		if (!missing[n] && (uint64) DatumGetInt64(tickets[n]) == ticket)
			return true;
	}
	return false;
}
