/*
 * insert.c
 *	  What a flush into a target executes: its statements, and which rows each
 *	  of them inserts.
 *
 * A column that a row does not name takes its default, so rows that name
 * different columns need different statements: one for each set of columns.
 * Where rows of a batch depend on each other, because they have the same key
 * or may conflict in the target, the statements are put into such an order, and
 * a set gets several if it has to be, that the effect is that of the rows one
 * after the other.
 *
 * The target is meant by its OID: the caller has locked it, so that its name
 * is the right one.  The worker; the check, clients.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "batch/batch.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

/* Where a row is inserted. */
typedef struct Place
{
	int			level;			/* statements of a level come before those of
								 * the next, ... */
	int			set;			/* ... and within one in the order of sets */
	int			row;
} Place;

/* The last place of rows that must follow each other. */
typedef struct LastPlace
{
	uint64		key;			/* a hash of what they have in common */
	int			level;
	int			set;
} LastPlace;

/* The index of a column; -1: the rows have none of that name. */
static int
find_column(const BatcherRowType *row_type, const char *name)
{
	BatcherColumn *column = batcher_row_type_column(row_type, name,
													strlen(name));

	return column ? column - row_type->columns : -1;
}

/*
 * The names of the columns of the target's primary key, one that a conflict
 * can be found by; NIL: there is none.
 */
static List *
key_names(Oid target)
{
	Oid			constraint;
	Bitmapset  *attnos = get_primary_key_attnos(target, false, &constraint);
	List	   *names = NIL;
	int			i = -1;

	while ((i = bms_next_member(attnos, i)) >= 0)
		names = lappend(names,
						get_attname(target,
									i + FirstLowInvalidHeapAttributeNumber,
									false));
	return names;
}

/* Do the columns include those of the names? */
static bool
has_names(const BatcherRowType *row_type, const Bitmapset *columns,
		  List *names)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		int			column = find_column(row_type, lfirst(lc));

		if (column < 0 || !bms_is_member(column, columns))
			return false;
	}
	return names != NIL;
}

/* Refuse a target whose rows cannot be updated on conflict. */
static void
check_update(const BatcherQueueDef *def, const char *target_name, List *names)
{
	char		kind = get_rel_relkind(def->target);

	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("option \"on_conflict\" cannot be \"update\" for target %s of queue \"%s\"",
						target_name, def->name),
				 errdetail("It is a view or a foreign table.")));
	if (names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("option \"on_conflict\" cannot be \"update\" for target %s of queue \"%s\"",
						target_name, def->name),
				 errdetail("It has no primary key that is not deferrable."),
				 errhint("Add a primary key, or give a statement as \"flush_sql\".")));
}

/*
 * All columns that a row can give to the target.  Errors: 42703 the target has
 * none of the name of one of the rows' columns.
 */
Bitmapset *
batcher_insert_all_columns(const BatcherQueueDef *def,
						   const char *target_name,
						   const BatcherRowType *row_type)
{
	Bitmapset  *columns = NULL;
	int			i;

	for (i = 0; i < row_type->ncolumns; i++)
	{
		const BatcherColumn *column = &row_type->columns[i];

		if (column->use == BATCHER_COLUMN_ABSENT)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("target %s of queue \"%s\" has no column \"%s\"",
							target_name, def->name, column->name),
					 errdetail("The row type has one.")));
		if (column->use == BATCHER_COLUMN_FREE)
			columns = bms_add_member(columns, i);
	}
	return columns;
}

/* "b.x, b.y" for columns, or "x = excluded.x, ..." if they are assigned to. */
static void
append_columns(StringInfo s, const BatcherRowType *row_type,
			   const Bitmapset *columns, const char *prefix, bool assign)
{
	const char *separator = "";
	int			i = -1;

	while ((i = bms_next_member(columns, i)) >= 0)
	{
		const char *name = quote_identifier(row_type->columns[i].name);

		appendStringInfoString(s, separator);
		if (assign)
			appendStringInfo(s, "%s = ", name);
		appendStringInfo(s, "%s%s", prefix, name);
		separator = ", ";
	}
}

static void
append_names(StringInfo s, List *names)
{
	ListCell   *lc;

	foreach(lc, names)
		appendStringInfo(s, "%s%s", lc == list_head(names) ? "" : ", ",
						 quote_identifier(lfirst(lc)));
}

/*
 * The statement that inserts rows that name these columns into the target,
 * whose name of today is 'target_name'.  A tuplestore is read in the order of
 * the batch.  Where a conflict updates, only the last row of a key is there,
 * because a statement updates no row twice.  Errors: 0A000 and 42P10, if the
 * target does not have what "on_conflict" needs.
 */
char *
batcher_insert_sql(const BatcherQueueDef *def, const char *target_name,
				   const BatcherRowType *row_type, const Bitmapset *columns)
{
	bool		update = def->options.on_conflict == BATCHER_CONFLICT_UPDATE;
	List	   *names = update ? key_names(def->target) : NIL;
	Bitmapset  *others = bms_copy(columns);
	StringInfoData s;
	ListCell   *lc;

	if (update)
		check_update(def, target_name, names);
	initStringInfo(&s);
	appendStringInfo(&s, "INSERT INTO %s ", target_name);
	if (!bms_is_empty(columns))
	{
		appendStringInfoChar(&s, '(');
		append_columns(&s, row_type, columns, "", false);
		appendStringInfoString(&s, ") ");
	}
	appendStringInfoString(&s, bms_is_empty(columns) ? "SELECT" : "SELECT ");
	append_columns(&s, row_type, columns, "b.", false);
	if (has_names(row_type, columns, names))
	{
		appendStringInfoString(&s, " FROM (SELECT DISTINCT ON (");
		append_names(&s, names);
		appendStringInfoString(&s, ") * FROM batch ORDER BY ");
		append_names(&s, names);
		appendStringInfoString(&s, ", batch_pos DESC) AS b ORDER BY b.batch_pos");
	}
	else
		appendStringInfoString(&s, " FROM batch AS b");
	if (def->options.on_conflict == BATCHER_CONFLICT_NOTHING)
		appendStringInfoString(&s, " ON CONFLICT DO NOTHING");
	if (!update)
		return s.data;

	foreach(lc, names)
	{
		int			column = find_column(row_type, lfirst(lc));

		if (column >= 0)
			others = bms_del_member(others, column);
	}
	appendStringInfoString(&s, " ON CONFLICT (");
	append_names(&s, names);
	if (bms_is_empty(others))
		appendStringInfoString(&s, ") DO NOTHING");
	else
	{
		appendStringInfoString(&s, ") DO UPDATE SET ");
		append_columns(&s, row_type, others, "excluded.", true);
	}
	return s.data;
}

static Jsonb *
row_payload(BatcherBatch *batch, int row, BatcherRowParts *parts)
{
	batcher_batch_read(&batch->rows[row], parts);
	return (Jsonb *) parts->payload;
}

/* The columns of the target that a row names. */
static Bitmapset *
row_columns(const BatcherRowType *row_type, Jsonb *payload)
{
	Bitmapset  *columns = NULL;
	int			i;

	for (i = 0; i < row_type->ncolumns; i++)
	{
		if (row_type->columns[i].use == BATCHER_COLUMN_FREE &&
			batcher_row_type_named(&row_type->columns[i], payload))
			columns = bms_add_member(columns, i);
	}
	return columns;
}

/* The index of a set in the list of sets, to which it is added if need be. */
static int
find_set(List **sets, Bitmapset *columns, int likely_index)
{
	ListCell   *lc;

	if (likely_index < list_length(*sets) &&
		bms_equal(list_nth(*sets, likely_index), columns))
		return likely_index;
	foreach(lc, *sets)
	{
		if (bms_equal(lfirst(lc), columns))
			return foreach_current_index(lc);
	}
	*sets = lappend(*sets, columns);
	return list_length(*sets) - 1;
}

/*
 * A hash of a row's primary key, equal for equal keys.  Those of a type that
 * has no hash function count as equal: that only costs statements.
 */
static uint64
hash_key(BatcherRowType *row_type, Jsonb *payload, List *names)
{
	uint64		hash = 1;
	ListCell   *lc;

	foreach(lc, names)
	{
		int			i = find_column(row_type, lfirst(lc));
		BatcherColumn *column = &row_type->columns[i];
		TypeCacheEntry *cache = lookup_type_cache(column->type,
												  TYPECACHE_HASH_PROC_FINFO);
		bool		isnull;
		Datum		value = batcher_row_type_read_column(row_type, i, payload,
														 &isnull);

		if (!isnull && OidIsValid(cache->hash_proc))
			hash = hash_combine64(hash,
								  DatumGetUInt32(FunctionCall1Coll(&cache->hash_proc_finfo,
																   column->collation,
																   value)));
	}
	return hash;
}

/* A row must not come before the others of this key. */
static void
follow(HTAB *last_places, uint64 key, Place *place)
{
	bool		found;
	LastPlace  *last = hash_search(last_places, &key, HASH_ENTER, &found);

	if (found)
		place->level = Max(place->level,
						   place->set < last->set ? last->level + 1 :
						   last->level);
	last->level = place->level;
	last->set = place->set;
}

/* The levels of all rows, which are of several sets. */
static void
set_levels(const BatcherQueueDef *def, BatcherRowType *row_type,
		   BatcherBatch *batch, List *sets, Place *places)
{
	List	   *names = def->options.on_conflict == BATCHER_CONFLICT_ERROR ?
		NIL : key_names(def->target);
	HASHCTL		ctl;
	HTAB	   *last_places;
	int			i;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(LastPlace);
	ctl.hcxt = CurrentMemoryContext;
	last_places = hash_create("batcher places", batch->nrows, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (i = 0; i < batch->nrows; i++)
	{
		Place	   *place = &places[i];
		BatcherRowParts parts;
		Jsonb	   *payload = row_payload(batch, i, &parts);
		uint64		by_key = 0;
		uint64		by_target = 0;

		if (parts.key)
			by_key = hash_bytes_extended((unsigned char *) VARDATA_ANY(parts.key),
										 VARSIZE_ANY_EXHDR(parts.key), 0);
		if (has_names(row_type, list_nth(sets, place->set), names))
			by_target = hash_key(row_type, payload, names);
		/* both before either is noted: one may raise the level */
		if (parts.key)
			follow(last_places, by_key, place);
		if (by_target != 0)
			follow(last_places, by_target, place);
		if (parts.key)
			follow(last_places, by_key, place);
	}
	hash_destroy(last_places);
}

static int
compare_places(const void *a, const void *b)
{
	const Place *p = a;
	const Place *q = b;

	if (p->level != q->level)
		return p->level < q->level ? -1 : 1;
	if (p->set != q->set)
		return p->set < q->set ? -1 : 1;
	return p->row < q->row ? -1 : p->row > q->row;
}

/*
 * The statements that flush a batch, in their order, as a list of
 * BatcherInsertStep in the current context.  May run domains' constraints on
 * columns of the primary key.
 */
List *
batcher_insert_steps(const BatcherQueueDef *def, BatcherRowType *row_type,
					 BatcherBatch *batch)
{
	Place	   *places = palloc0_array(Place, batch->nrows);
	List	   *sets = NIL;
	List	   *steps = NIL;
	BatcherInsertStep *step = NULL;
	int			i;

	for (i = 0; i < batch->nrows; i++)
	{
		BatcherRowParts parts;
		Jsonb	   *payload = row_payload(batch, i, &parts);

		places[i].row = i;
		places[i].set = find_set(&sets, row_columns(row_type, payload),
								 i > 0 ? places[i - 1].set : 0);
	}
	if (list_length(sets) > 1)
	{
		set_levels(def, row_type, batch, sets, places);
		qsort(places, batch->nrows, sizeof(Place), compare_places);
	}
	for (i = 0; i < batch->nrows; i++)
	{
		if (i == 0 || places[i].level != places[i - 1].level ||
			places[i].set != places[i - 1].set)
		{
			step = palloc0(sizeof(BatcherInsertStep));
			step->columns = list_nth(sets, places[i].set);
			steps = lappend(steps, step);
		}
		step->rows = lappend_int(step->rows, places[i].row);
	}
	return steps;
}
