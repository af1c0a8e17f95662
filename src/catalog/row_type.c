/*
 * row_type.c
 *	  The types of typed queues, and values of their columns from payloads.
 *
 * A row of a typed queue is kept as any other row, as a jsonb object, with a
 * member for each column that it names: so memory and spool have one format,
 * which knows no OIDs of types and which people can read.  A member becomes a
 * value of its column as jsonb_populate_record does it: a scalar by the input
 * function of the type, from its text.  That happens in the flush, as the
 * owner, because it can run what users wrote (domains).
 *
 * When a row is enqueued only what runs nothing of the kind is looked at
 * (row_check.c).
 *
 * What is known of a type is kept until the type, or the relation that it
 * belongs to, changes.  Clients and workers.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/tupdesc.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "catalog/row_type.h"
#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* What a composite type is now; 0: it does not exist. */
static uint64
type_identifier(Oid type)
{
	if (!SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(type)))
		return 0;
	return assign_record_type_identifier(type, -1);
}

/*
 * Is the text of a value of a built-in type what settings of the session make
 * of it?
 */
bool
batcher_row_type_unsettled(Oid type)
{
	char		category;
	bool		preferred;

	if (OidIsValid(get_element_type(type)))
		type = get_element_type(type);
	if (type_is_multirange(type))
		type = get_multirange_range(type);
	if (type_is_range(type))
		type = get_range_subtype(type);
	switch (type)
	{
		case CASHOID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGNAMESPACEOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGROLEOID:
		case REGTYPEOID:
			return true;
	}
	get_type_category_preferred(type, &category, &preferred);
	return category == TYPCATEGORY_DATETIME || category == TYPCATEGORY_TIMESPAN;
}

/*
 * Has the server brought this type, and is reading it all its own code?
 */
bool
batcher_row_type_builtin(Oid base)
{
	char		kind = get_typtype(base);

	return base < FirstNormalObjectId &&
		(kind == TYPTYPE_BASE || kind == TYPTYPE_RANGE ||
		 kind == TYPTYPE_MULTIRANGE);
}

/* May a row give a value to the target's column of that name? */
static BatcherColumnUse
column_use(Oid target, const char *name)
{
	HeapTuple	tuple = SearchSysCacheAttName(target, name);
	BatcherColumnUse use = BATCHER_COLUMN_FREE;

	if (!HeapTupleIsValid(tuple))
		return BATCHER_COLUMN_ABSENT;
	if (((Form_pg_attribute) GETSTRUCT(tuple))->attnum <= 0)
		use = BATCHER_COLUMN_ABSENT;
	else if (((Form_pg_attribute) GETSTRUCT(tuple))->attgenerated)
		use = BATCHER_COLUMN_GENERATED;
	else if (((Form_pg_attribute) GETSTRUCT(tuple))->attidentity ==
			 ATTRIBUTE_IDENTITY_ALWAYS)
		use = BATCHER_COLUMN_IDENTITY;
	ReleaseSysCache(tuple);
	return use;
}

/* The composite type of a value, or of the elements of an array. */
static Oid
find_composite(Oid base)
{
	Oid			element = get_element_type(base);

	if (OidIsValid(element))
		base = getBaseType(element);
	return get_typtype(base) == TYPTYPE_COMPOSITE ? base : InvalidOid;
}

static void
fill_column(BatcherColumn *column, Form_pg_attribute att, Oid target,
			bool checking)
{
	int32		base_typmod = att->atttypmod;
	Oid			base = getBaseTypeAndTypmod(att->atttypid, &base_typmod);

	column->name = pstrdup(NameStr(att->attname));
	column->type = att->atttypid;
	column->typmod = att->atttypmod;
	column->collation = att->attcollation;
	column->use = OidIsValid(target) ? column_use(target, column->name) :
		BATCHER_COLUMN_FREE;
	column->builtin = batcher_row_type_builtin(base);
	column->unsettled = column->builtin && batcher_row_type_unsettled(base);
	column->read_type = checking ? base : column->type;
	column->read_typmod = checking ? base_typmod : column->typmod;
	column->is_json = base == JSONOID || base == JSONBOID;
	column->composite = find_composite(base);
}

static BatcherRowType *
make_row_type(Oid type, Oid target, bool checking)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(type, -1);
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "batcher row type",
											  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	BatcherRowType *row_type = palloc0(sizeof(BatcherRowType));
	int			i;

	row_type->cxt = cxt;
	row_type->type = type;
	row_type->target = target;
	row_type->columns = palloc0_array(BatcherColumn, Max(desc->natts, 1));
	for (i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		fill_column(&row_type->columns[row_type->ncolumns], att, target,
					checking);
		row_type->ncolumns++;
	}
	MemoryContextSwitchTo(old);
	FreeTupleDesc(desc);
	MemoryContextSetParent(cxt, TopMemoryContext);	/* freed by who keeps it */
	return row_type;
}

/*
 * What a composite type is now; 'target': the relation that its rows are
 * inserted into, or InvalidOid; 'checking': to check payloads, not to flush
 * them.  'known' is returned if nothing has changed since it was made, and is
 * freed otherwise, and what comes may have its place: 'number' tells whether it
 * is another.  'known' may be NULL.  NULL if the type or the target is gone.
 */
BatcherRowType *
batcher_row_type_refresh(BatcherRowType *known, Oid type, Oid target,
						 bool checking)
{
	static uint64 last_number = 0;
	uint64		identifier = type_identifier(type);
	uint64		target_identifier = 0;

	if (identifier != 0 && OidIsValid(target))
	{
		Oid			target_type = get_rel_type_id(target);

		target_identifier = OidIsValid(target_type) ?
			type_identifier(target_type) : 0;
		if (target_identifier == 0)
			identifier = 0;
	}
	if (known && known->type == type && known->target == target &&
		known->identifier == identifier && identifier != 0 &&
		known->target_identifier == target_identifier)
		return known;
	batcher_row_type_free(known);
	if (identifier == 0)
		return NULL;
	known = make_row_type(type, target, checking);
	known->number = ++last_number;
	known->identifier = identifier;
	known->target_identifier = target_identifier;
	return known;
}

/*
 * Forget what was known of a type; NULL is nothing.
 */
void
batcher_row_type_free(BatcherRowType *row_type)
{
	if (row_type)
		MemoryContextDelete(row_type->cxt);
}

/*
 * The column of that name, or NULL.
 */
BatcherColumn *
batcher_row_type_column(const BatcherRowType *row_type, const char *name,
						int len)
{
	int			i;

	for (i = 0; i < row_type->ncolumns; i++)
	{
		BatcherColumn *column = &row_type->columns[i];

		if (strlen(column->name) == len && memcmp(column->name, name, len) == 0)
			return column;
	}
	return NULL;
}

/* Look up how a value of the column is read. */
static void
make_ready(BatcherRowType *row_type, BatcherColumn *column)
{
	Oid			function;

	getTypeInputInfo(column->read_type, &function, &column->ioparam);
	fmgr_info_cxt(function, &column->input, row_type->cxt);
	column->ready = true;
}

/*
 * Prepare a call of jsonb_populate_record for one column: there is no other
 * way to have an array or a composite value made from JSON.
 */
static void
make_populate(BatcherRowType *row_type, BatcherColumn *column)
{
	MemoryContext old = MemoryContextSwitchTo(row_type->cxt);
	TupleDesc	desc = CreateTemplateTupleDesc(1);
	FmgrInfo   *populate = palloc0(sizeof(FmgrInfo));
	List	   *args = list_make2(makeNullConst(RECORDOID, -1, InvalidOid),
								  makeNullConst(JSONBOID, -1, InvalidOid));
	Datum		value = (Datum) 0;
	bool		isnull = true;

	TupleDescInitEntry(desc, 1, column->name, column->read_type,
					   column->read_typmod, 0);
	column->desc = BlessTupleDesc(desc);
	column->empty = HeapTupleGetDatum(heap_form_tuple(desc, &value, &isnull));
	fmgr_info_cxt(F_JSONB_POPULATE_RECORD, populate, row_type->cxt);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_JSONB_POPULATE_RECORD,
											 RECORDOID, args, InvalidOid,
											 InvalidOid, COERCE_EXPLICIT_CALL),
					   populate);
	MemoryContextSwitchTo(old);
	column->populate = populate;
}

/* The value of a column from a payload that has a member of its name. */
static Datum
populate_column(BatcherRowType *row_type, BatcherColumn *column,
				Jsonb *payload, bool *isnull)
{
	HeapTupleData tuple;
	Datum		record;
	Datum		value;

	if (column->populate == NULL)
		make_populate(row_type, column);
	record = FunctionCall2(column->populate, column->empty,
						   JsonbPGetDatum(payload));
	tuple.t_data = DatumGetHeapTupleHeader(record);
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	heap_deform_tuple(&tuple, column->desc, &value, isnull);
	return value;
}

/* The member of a payload, which is an object, for a column; false: none. */
static bool
get_member(const BatcherColumn *column, Jsonb *payload, JsonbValue *member)
{
	return getKeyJsonValueFromContainer(&payload->root, column->name,
										strlen(column->name), member) != NULL;
}

/*
 * Does a payload name the column?
 */
bool
batcher_row_type_named(const BatcherColumn *column, Jsonb *payload)
{
	JsonbValue	member;

	return JB_ROOT_IS_OBJECT(payload) && get_member(column, payload, &member);
}

static void
column_error_context(void *arg)
{
	errcontext("column \"%s\"", ((BatcherColumn *) arg)->name);
}

/*
 * The value of a column of which the payload has this member.  Raises what the
 * input functions raise.
 */
Datum
batcher_row_type_read_member(BatcherRowType *row_type, BatcherColumn *column,
							 Jsonb *payload, JsonbValue *member, bool *isnull)
{
	ErrorContextCallback context;
	char	   *text = NULL;
	Datum		value;

	context.callback = column_error_context;
	context.arg = column;
	context.previous = error_context_stack;
	error_context_stack = &context;
	*isnull = member->type == jbvNull;
	if (!*isnull && (member->type == jbvBinary || column->is_json))
		value = populate_column(row_type, column, payload, isnull);
	else
	{
		if (!column->ready)
			make_ready(row_type, column);
		if (member->type == jbvString)
			text = pnstrdup(member->val.string.val, member->val.string.len);
		else if (member->type == jbvBool)
			text = member->val.boolean ? "true" : "false";
		else if (!*isnull)
			text = DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(member->val.numeric)));
		value = InputFunctionCall(&column->input, text, column->ioparam,
								  column->read_typmod);
	}
	error_context_stack = context.previous;
	return value;
}

/*
 * Refuse a payload that is no object: it cannot be a row of a type.
 */
void
batcher_row_type_require_object(Jsonb *payload)
{
	if (!JB_ROOT_IS_OBJECT(payload))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("payload of a row of a typed queue must be a JSON object")));
}

/*
 * The value of one column of a payload; null where it does not name it.  Unless
 * the target has a default then, its domain may refuse that.
 */
Datum
batcher_row_type_read_column(BatcherRowType *row_type, int column,
							 Jsonb *payload, bool *isnull)
{
	JsonbValue	member;

	batcher_row_type_require_object(payload);
	if (!get_member(&row_type->columns[column], payload, &member))
	{
		*isnull = true;
		if (OidIsValid(row_type->target))
			return (Datum) 0;
		member.type = jbvNull;
	}
	return batcher_row_type_read_member(row_type, &row_type->columns[column],
										payload, &member, isnull);
}

/*
 * The values of all columns of a payload, in the current context.  A column
 * that it does not name is null, and a member that no column bears is passed
 * over: the type may have changed since the row was enqueued.  Runs domains'
 * constraints.  Raises what the input functions raise.
 */
void
batcher_row_type_read(BatcherRowType *row_type, Jsonb *payload, Datum *values,
					  bool *nulls)
{
	int			i;

	for (i = 0; i < row_type->ncolumns; i++)
		values[i] = batcher_row_type_read_column(row_type, i, payload,
												 &nulls[i]);
}
