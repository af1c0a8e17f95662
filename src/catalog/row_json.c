/*
 * row_json.c
 *	  Values of any type as JSON, for payloads.
 *
 * As to_jsonb makes it, but for casts to json that users wrote, which are not
 * called: nothing here runs code of a user.  (Output functions are the
 * server's own, or of base types, which superusers only can make.)  So numbers
 * and truth values are what they are in JSON too, and a message or a view
 * shows rows as one would write them.
 *
 * What is made 'exact' is to become the same value again, in a worker, whose
 * settings are others.  Clients and workers.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "base/json.h"
#include "catalog/pg_type.h"
#include "catalog/row_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/float.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/typcache.h"

static void
set_quietly(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * From here on texts of values mean the same in all sessions; returns what
 * batcher_row_json_settings_end is to be given.  'writing': they are made, so
 * that names of objects must have their schemas; what reads them may run code
 * of a user, who relies on his search_path.
 */
int
batcher_row_json_settings_begin(bool writing)
{
	int			level = NewGUCNestLevel();

	if (DateStyle != USE_ISO_DATES)
		set_quietly("datestyle", "ISO");
	if (IntervalStyle != INTSTYLE_POSTGRES)
		set_quietly("intervalstyle", "postgres");
	if (extra_float_digits < 1)
		set_quietly("extra_float_digits", "1");
	set_quietly("lc_monetary", "C");
	if (writing)
		set_quietly("search_path", "pg_catalog");
	return level;
}

/*
 * The settings are again what they were.
 */
void
batcher_row_json_settings_end(int level)
{
	AtEOXact_GUC(true, level);
}

static void
push_numeric(JsonbParseState **state, JsonbIteratorToken token, Numeric number)
{
	JsonbValue	v;

	v.type = jbvNumeric;
	v.val.numeric = number;
	(void) pushJsonbValue(state, token, &v);
}

static void
push_jsonb(JsonbParseState **state, JsonbIteratorToken token, Jsonb *jsonb)
{
	JsonbValue	v;

	if (!JB_ROOT_IS_SCALAR(jsonb) || !JsonbExtractScalar(&jsonb->root, &v))
	{
		v.type = jbvBinary;
		v.val.binary.data = &jsonb->root;
		v.val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
	}
	(void) pushJsonbValue(state, token, &v);
}

static void
push_json_text(JsonbParseState **state, JsonbIteratorToken token, char *text)
{
	Datum		jsonb = DirectFunctionCall1(jsonb_in, CStringGetDatum(text));

	push_jsonb(state, token, DatumGetJsonbP(jsonb));
}

/* Is the text of a value the same in all sessions? */
static bool
is_settled(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case BPCHAROID:
		case BYTEAOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NAMEOID:
		case NUMERICOID:
		case TEXTOID:
		case UNKNOWNOID:
		case UUIDOID:
		case VARCHAROID:
			return true;
		case FLOAT4OID:
		case FLOAT8OID:
			return extra_float_digits >= 1;
	}
	return false;
}

static char *
output(Datum value, Oid type)
{
	Oid			function;
	bool		is_varlena;

	getTypeOutputInfo(type, &function, &is_varlena);
	return OidOutputFunctionCall(function, value);
}

/*
 * The text of a value by the output function of its type, the same in all
 * sessions.
 */
char *
batcher_row_json_text(Datum value, Oid type)
{
	char	   *text;
	int			level;

	if (is_settled(type))
		return output(value, type);
	level = batcher_row_json_settings_begin(true);
	text = output(value, type);
	batcher_row_json_settings_end(level);
	return text;
}

static char *
text_of(Datum value, Oid type, bool exact)
{
	return exact ? batcher_row_json_text(value, type) : output(value, type);
}

/* A float, which is no number in JSON if it is infinite, none, or minus 0. */
static void
push_float(JsonbParseState **state, JsonbIteratorToken token, float8 number,
		   const char *text)
{
	if (isnan(number) || isinf(number) || strcmp(text, "-0") == 0)
		batcher_json_push_text(state, token, text);
	else
		push_numeric(state, token,
					 DatumGetNumeric(DirectFunctionCall3(numeric_in,
														 CStringGetDatum(text),
														 ObjectIdGetDatum(InvalidOid),
														 Int32GetDatum(-1))));
}

static void
push_datetime(JsonbParseState **state, JsonbIteratorToken token, Datum value,
			  Oid type)
{
	char		text[MAXDATELEN + 1];

	(void) JsonEncodeDateTime(text, value, type, NULL);
	batcher_json_push_text(state, token, pstrdup(text));
}

/* Would an array become another when it is read from a JSON array? */
static bool
array_is_special(ArrayType *array, Oid element)
{
	Oid			base = getBaseType(element);
	int			i;

	/* whose elements may look as if they were dimensions */
	if (base == JSONOID || base == JSONBOID ||
		OidIsValid(get_element_type(base)))
		return true;
	for (i = 0; i < ARR_NDIM(array); i++)
	{
		if (ARR_LBOUND(array)[i] != 1)
			return true;
	}
	return false;
}

/* One dimension of an array, and those within it; 'next' is its next value. */
static void
push_dimension(JsonbParseState **state, ArrayType *array, int dim, Oid element,
			   Datum *values, bool *nulls, int *next, bool exact)
{
	int			i;

	(void) pushJsonbValue(state, WJB_BEGIN_ARRAY, NULL);
	for (i = 0; ARR_NDIM(array) > 0 && i < ARR_DIMS(array)[dim]; i++)
	{
		if (dim + 1 < ARR_NDIM(array))
			push_dimension(state, array, dim + 1, element, values, nulls, next,
						   exact);
		else
		{
			batcher_row_json_push(state, WJB_ELEM, values[*next], nulls[*next],
							  element, exact);
			(*next)++;
		}
	}
	(void) pushJsonbValue(state, WJB_END_ARRAY, NULL);
}

static void
push_array(JsonbParseState **state, JsonbIteratorToken token, Datum value,
		   Oid type, Oid element, bool exact)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	int16		typlen;
	bool		typbyval;
	char		typalign;
	Datum	   *values;
	bool	   *nulls;
	int			n;
	int			next = 0;

	if (exact && array_is_special(array, element))
	{
		batcher_json_push_text(state, token, batcher_row_json_text(value, type));
		return;
	}
	get_typlenbyvalalign(element, &typlen, &typbyval, &typalign);
	deconstruct_array(array, element, typlen, typbyval, typalign, &values,
					  &nulls, &n);
	push_dimension(state, array, 0, element, values, nulls, &next, exact);
}

static void
push_record(JsonbParseState **state, Datum value, bool exact)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	TupleDesc	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
											  HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple;
	Datum	   *values = palloc_array(Datum, Max(desc->natts, 1));
	bool	   *nulls = palloc_array(bool, Max(desc->natts, 1));
	int			i;

	tuple.t_data = header;
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	heap_deform_tuple(&tuple, desc, values, nulls);
	(void) pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	for (i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		batcher_json_key(state, NameStr(att->attname));
		batcher_row_json_push(state, WJB_VALUE, values[i], nulls[i],
						  att->atttypid, exact);
	}
	(void) pushJsonbValue(state, WJB_END_OBJECT, NULL);
	ReleaseTupleDesc(desc);
}

/*
 * Add a value to an object or array that is being made: 'token' is WJB_VALUE
 * or WJB_ELEM.  'exact': so that it can be read again, in another session.  (An
 * anonymous record has no names by which its columns could be found again.)
 */
void
batcher_row_json_push(JsonbParseState **state, JsonbIteratorToken token,
				  Datum value, bool isnull, Oid type, bool exact)
{
	Oid			base = getBaseType(type);
	Oid			element;
	JsonbValue	v;

	check_stack_depth();
	if (isnull)
	{
		v.type = jbvNull;
		(void) pushJsonbValue(state, token, &v);
		return;
	}
	switch (base)
	{
		case BOOLOID:
			v.type = jbvBool;
			v.val.boolean = DatumGetBool(value);
			(void) pushJsonbValue(state, token, &v);
			return;
		case INT2OID:
			push_numeric(state, token, int64_to_numeric(DatumGetInt16(value)));
			return;
		case INT4OID:
			push_numeric(state, token, int64_to_numeric(DatumGetInt32(value)));
			return;
		case INT8OID:
			push_numeric(state, token, int64_to_numeric(DatumGetInt64(value)));
			return;
		case FLOAT4OID:
			push_float(state, token, DatumGetFloat4(value),
					   text_of(value, base, exact));
			return;
		case FLOAT8OID:
			push_float(state, token, DatumGetFloat8(value),
					   text_of(value, base, exact));
			return;
		case NUMERICOID:
			if (numeric_is_nan(DatumGetNumeric(value)) ||
				numeric_is_inf(DatumGetNumeric(value)))
				batcher_json_push_text(state, token, output(value, base));
			else
				push_numeric(state, token, DatumGetNumeric(value));
			return;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			push_datetime(state, token, value, base);
			return;
		case JSONBOID:
			push_jsonb(state, token, DatumGetJsonbP(value));
			return;
		case JSONOID:
			push_json_text(state, token, TextDatumGetCString(value));
			return;
	}
	element = get_element_type(base);
	if (OidIsValid(element))
		push_array(state, token, value, base, element, exact);
	else if (type_is_rowtype(base) && !(exact && base == RECORDOID))
		push_record(state, value, exact);
	else
		batcher_json_push_text(state, token, text_of(value, base, exact));
}

/*
 * Add the value of a record's column for a column of a row, or for one that is
 * not known (NULL).  What is no JSON is read as JSON where that is wanted, as
 * any other type is from its text.
 */
static void
push_column(JsonbParseState **state, const BatcherColumn *column,
			const char *name, Datum value, bool isnull, Oid type)
{
	Oid			base = getBaseType(type);

	batcher_json_key(state, name);
	if (!isnull && column && column->is_json &&
		(base == UNKNOWNOID || base == TEXTOID || base == VARCHAROID ||
		 base == BPCHAROID))
		push_json_text(state, WJB_VALUE, output(value, base));
	else
		batcher_row_json_push(state, WJB_VALUE, value, isnull, type, true);
}

/* Refuse a record of which two columns have one name. */
static void
check_names(TupleDesc desc)
{
	int			i;
	int			j;

	for (i = 0; i < desc->natts; i++)
	{
		for (j = 0; j < i; j++)
		{
			Form_pg_attribute a = TupleDescAttr(desc, i);
			Form_pg_attribute b = TupleDescAttr(desc, j);

			if (!a->attisdropped && !b->attisdropped &&
				strcmp(NameStr(a->attname), NameStr(b->attname)) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("row has more than one column \"%s\"",
								NameStr(a->attname))));
		}
	}
}

/*
 * The payload of a record that is enqueued into a typed queue: an object of
 * its columns by their names.  The values of an anonymous ROW(...), whose
 * columns have no names of their own, go by their position.  What the target
 * computes itself is left out, because a record cannot leave it out.
 * 'row_type' is NULL if the type is gone.  Errors: 42804 an anonymous row
 * that does not fit, 42701.
 */
Jsonb *
batcher_row_json_record(Datum record, BatcherRowType *row_type,
					   const char *queue_name)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(record);
	JsonbParseState *state = NULL;
	TupleDesc	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
											  HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple;
	Datum	   *values = palloc_array(Datum, Max(desc->natts, 1));
	bool	   *nulls = palloc_array(bool, Max(desc->natts, 1));
	bool		anonymous = row_type != NULL && desc->tdtypeid == RECORDOID;
	JsonbValue *object;
	int			n = 0;
	int			i;

	for (i = 0; anonymous && i < desc->natts; i++)
	{
		char		name[NAMEDATALEN];

		snprintf(name, sizeof(name), "f%d", i + 1);
		anonymous = strcmp(NameStr(TupleDescAttr(desc, i)->attname), name) == 0;
	}
	if (anonymous && desc->natts != row_type->ncolumns)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("row has %d columns, and rows of queue \"%s\" have %d",
						desc->natts, queue_name, row_type->ncolumns)));

	tuple.t_data = header;
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	heap_deform_tuple(&tuple, desc, values, nulls);
	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		const char *name = anonymous ? row_type->columns[i].name :
			NameStr(att->attname);
		BatcherColumn *column;

		if (att->attisdropped)
			continue;
		column = row_type ? batcher_row_type_column(row_type, name,
													strlen(name)) : NULL;
		if (column && column->use != BATCHER_COLUMN_FREE)
			continue;
		push_column(&state, column, name, values[i], nulls[i], att->atttypid);
		n++;
	}
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	if (object->val.object.nPairs < n)
		check_names(desc);
	ReleaseTupleDesc(desc);
	return JsonbValueToJsonb(object);
}
