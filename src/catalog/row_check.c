/*
 * row_check.c
 *	  What is checked of a row of a typed queue when it is enqueued.
 *
 * That the payload is an object that names columns which can be given, with
 * values of the built-in types and of domains over them, without the domains'
 * constraints.  Nothing here runs what a user wrote: that is for the flush.
 *
 * The flush also reads what stays a text, and in another session, whose
 * settings are its own.  So a value whose text means what the settings say,
 * such as a date, is replaced by one that means the same everywhere, wherever
 * it stands: in a column, in an array, or in a composite value.  Clients, and
 * workers for rows that a flush enqueues.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "catalog/row_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

static JsonbValue *settle_object(JsonbParseState **state,
								 BatcherRowType *row_type, Jsonb *object,
								 const char *queue_name, bool *changed);

/* Refuse a member that cannot be given. */
static void
check_use(const BatcherColumn *column, const JsonbValue *key,
		  const char *queue_name)
{
	if (column == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("rows of queue \"%s\" have no column \"%s\"",
						queue_name,
						batcher_option_clip(key->val.string.val,
											key->val.string.len))));
	switch (column->use)
	{
		case BATCHER_COLUMN_GENERATED:
		case BATCHER_COLUMN_IDENTITY:
			ereport(ERROR,
					(errcode(ERRCODE_GENERATED_ALWAYS),
					 errmsg("cannot enqueue a value of column \"%s\" into queue \"%s\"",
							column->name, queue_name),
					 column->use == BATCHER_COLUMN_GENERATED ?
					 errdetail("Column \"%s\" of the target is a generated column.",
							   column->name) :
					 errdetail("Column \"%s\" of the target is an identity column defined as GENERATED ALWAYS.",
							   column->name)));
			break;
		case BATCHER_COLUMN_FREE:
		case BATCHER_COLUMN_ABSENT:
			break;
	}
}

/*
 * Is reading the text of a value of this type all the server's own code?
 * 'unsettled' is set if something in it means what the settings say.
 */
static bool
is_plain(Oid type, bool *unsettled)
{
	bool		plain = true;
	TupleDesc	desc;
	int			i;

	check_stack_depth();
	if (OidIsValid(get_element_type(type)))
		return is_plain(get_element_type(type), unsettled);
	if (batcher_row_type_builtin(type))
	{
		*unsettled |= batcher_row_type_unsettled(type);
		return true;
	}
	if (get_typtype(type) != TYPTYPE_COMPOSITE)
		return get_typtype(type) == TYPTYPE_ENUM;
	desc = lookup_rowtype_tupdesc(type, -1);
	for (i = 0; plain && i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped)
			plain = is_plain(TupleDescAttr(desc, i)->atttypid, unsettled);
	}
	ReleaseTupleDesc(desc);
	return plain;
}

/*
 * Add a value that was given as a text for a composite type, or an array of
 * such.  It can be read here only as a whole; where that would run what a user
 * wrote, because of a domain in it, it stays as it is.
 */
static void
settle_text(JsonbParseState **state, JsonbIteratorToken token, Oid type,
			JsonbValue *member, bool *changed)
{
	bool		unsettled = false;
	Oid			function;
	Oid			ioparam;
	Datum		value;

	if (!is_plain(type, &unsettled) || !unsettled)
	{
		pushJsonbValue(state, token, member);
		return;
	}
	getTypeInputInfo(type, &function, &ioparam);
	value = OidInputFunctionCall(function,
								 pnstrdup(member->val.string.val,
										  member->val.string.len),
								 ioparam, -1);
	batcher_row_json_push(state, token, value, false, type, true);
	*changed = true;
}

/*
 * Add the value of a column that has composite values, or of an array in it.
 */
static void
settle_nested(JsonbParseState **state, JsonbIteratorToken token,
			  BatcherRowType *row_type, BatcherColumn *column,
			  JsonbValue *member, bool *changed)
{
	BatcherRowType *nested = column->nested;
	JsonbIterator *it;
	JsonbValue	element;
	Jsonb	   *inner;

	check_stack_depth();
	if (member->type == jbvString)
	{
		settle_text(state, token, token == WJB_ELEM ? column->composite :
					column->read_type, member, changed);
		return;
	}
	if (member->type != jbvBinary)
	{
		pushJsonbValue(state, token, member);
		return;
	}
	inner = JsonbValueToJsonb(member);
	if (JB_ROOT_IS_OBJECT(inner))
	{
		column->nested = NULL;	/* it may be freed, and what follows fail */
		nested = batcher_row_type_refresh(nested, column->composite,
										  InvalidOid, true);
		if (nested == NULL)		/* it goes just now */
		{
			pushJsonbValue(state, token, member);
			return;
		}
		MemoryContextSetParent(nested->cxt, row_type->cxt);
		column->nested = nested;
		(void) settle_object(state, nested, inner, NULL, changed);
		return;
	}
	pushJsonbValue(state, WJB_BEGIN_ARRAY, NULL);
	it = JsonbIteratorInit(&inner->root);
	(void) JsonbIteratorNext(&it, &element, true);
	while (JsonbIteratorNext(&it, &element, true) == WJB_ELEM)
		settle_nested(state, WJB_ELEM, row_type, column, &element, changed);
	pushJsonbValue(state, WJB_END_ARRAY, NULL);
}

/*
 * Add an object whose members are columns of 'row_type', and return it;
 * 'changed' is set if it is not as it was.  'queue_name': it is a row of this
 * queue, and is checked; NULL: it is a composite value in one, which the flush
 * looks at.
 */
static JsonbValue *
settle_object(JsonbParseState **state, BatcherRowType *row_type,
			  Jsonb *object, const char *queue_name, bool *changed)
{
	JsonbIterator *it = JsonbIteratorInit(&object->root);
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	member;

	pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		BatcherColumn *column;
		Datum		value = (Datum) 0;
		bool		isnull = true;

		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &member, true);
		column = batcher_row_type_column(row_type, key.val.string.val,
										 key.val.string.len);
		if (queue_name)
			check_use(column, &key, queue_name);
		pushJsonbValue(state, WJB_KEY, &key);
		if (column && OidIsValid(column->composite))
		{
			settle_nested(state, WJB_VALUE, row_type, column, &member,
						  changed);
			continue;
		}
		if (column && !column->is_json &&
			(queue_name ? column->builtin : column->unsettled))
			value = batcher_row_type_read_member(row_type, column, object,
												 &member, &isnull);
		if (isnull || !column->unsettled)
			pushJsonbValue(state, WJB_VALUE, &member);
		else
		{
			*changed = true;
			batcher_row_json_push(state, WJB_VALUE, value, false,
								  column->read_type, true);
		}
	}
	return pushJsonbValue(state, WJB_END_OBJECT, NULL);
}

/*
 * Check a payload that is to be enqueued: that it is an object, names columns
 * only that can be given, and has values of the built-in types where they are
 * wanted.  Runs nothing that a user wrote.  Returns the payload, in which
 * values that mean what the session's settings say (dates and such) stand as
 * they mean the same everywhere.  'row_type' is one for checking, or NULL: the
 * type is gone, and it is not known what it will be.  Errors:
 * 22023, 42703, 428C9, and those of the types' input functions.
 */
Jsonb *
batcher_row_type_check(BatcherRowType *row_type, Jsonb *payload,
					   const char *queue_name)
{
	JsonbParseState *state = NULL;
	JsonbValue *settled;
	bool		changed = false;

	batcher_row_type_require_object(payload);
	if (row_type == NULL)
		return payload;
	settled = settle_object(&state, row_type, payload, queue_name, &changed);
	return changed ? JsonbValueToJsonb(settled) : payload;
}
