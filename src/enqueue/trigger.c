/*
 * trigger.c
 *	  batch_enqueue_trigger(): each changed row of a table goes into a queue.
 *
 * The row is enqueued by the owner of the table, whoever changes it: the right
 * is looked for at each firing, and who may write to the table needs none.
 * Nothing that a user wrote runs here with the one's rights or the other's:
 * rows become JSON without casts (catalog/row_json.c).  Client backends, and
 * whatever else fires triggers.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "base/json.h"
#include "commands/trigger.h"
#include "enqueue/enqueue.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* Refuse a trigger that cannot be. */
static void
check_trigger(FunctionCallInfo fcinfo)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	int			nargs;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called as a trigger",
						"batch_enqueue_trigger")));
	if (!TRIGGER_FIRED_AFTER(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called by a trigger AFTER ... FOR EACH ROW",
						"batch_enqueue_trigger")));
	nargs = data->tg_trigger->tgnargs;
	if (nargs < 1 || nargs > 3)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" of table \"%s\" has %d arguments",
						data->tg_trigger->tgname,
						RelationGetRelationName(data->tg_relation), nargs),
				 errhint("Function \"%s\" takes a queue, and perhaps a key column and a topic.",
						 "batch_enqueue_trigger")));
}

/* A member for a row of the table, null if there is none. */
static void
push_row(JsonbParseState **state, const char *name, HeapTuple tuple,
		 TupleDesc desc)
{
	batcher_json_key(state, name);
	batcher_row_json_push(state, WJB_VALUE,
					  tuple ? heap_copy_tuple_as_datum(tuple, desc) : (Datum) 0,
					  tuple == NULL, desc->tdtypeid, false);
}

/* {"op": ..., "table": ..., "new": ..., "old": ...} */
static Jsonb *
make_payload(TriggerData *data)
{
	TupleDesc	desc = RelationGetDescr(data->tg_relation);
	bool		insert = TRIGGER_FIRED_BY_INSERT(data->tg_event);
	bool		update = TRIGGER_FIRED_BY_UPDATE(data->tg_event);
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	batcher_json_string(&state, "op", insert ? "INSERT" : update ? "UPDATE" : "DELETE");
	batcher_json_string(&state, "table",
			  batcher_named_relation(RelationGetRelid(data->tg_relation)));
	push_row(&state, "new", insert ? data->tg_trigtuple :
			 update ? data->tg_newtuple : NULL, desc);
	push_row(&state, "old", insert ? NULL : data->tg_trigtuple, desc);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/*
 * The key: the text of a column, of the new row if there is one; NULL where
 * that is null.  Errors: 42703.
 */
static text *
make_key(TriggerData *data, const char *column)
{
	TupleDesc	desc = RelationGetDescr(data->tg_relation);
	HeapTuple	tuple = TRIGGER_FIRED_BY_UPDATE(data->tg_event) ?
		data->tg_newtuple : data->tg_trigtuple;
	AttrNumber	attno = get_attnum(RelationGetRelid(data->tg_relation), column);
	bool		isnull;
	Datum		value;

	if (attno <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						column, RelationGetRelationName(data->tg_relation)),
				 errdetail("Trigger \"%s\" takes its keys from it.",
						   data->tg_trigger->tgname)));
	value = heap_getattr(tuple, attno, desc, &isnull);
	if (isnull)
		return NULL;
	return cstring_to_text(batcher_row_json_text(value,
												 TupleDescAttr(desc, attno - 1)->atttypid));
}

PG_FUNCTION_INFO_V1(batcher_enqueue_trigger);

/*
 * batch_enqueue_trigger(): AFTER INSERT, UPDATE or DELETE, for each row; the
 * arguments are a queue, the column of the key, the topic.  Errors: 39P01,
 * 22023, 42703, and those of batch_enqueue.
 */
Datum
batcher_enqueue_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	BatcherRowParts parts;
	BatcherTarget *target;
	const char *queue;
	Trigger    *trigger;
	Oid			owner;
	Oid			user;
	int			context;

	check_trigger(fcinfo);
	trigger = data->tg_trigger;
	owner = data->tg_relation->rd_rel->relowner;
	memset(&parts, 0, sizeof(parts));
	parts.payload = (struct varlena *) make_payload(data);
	if (trigger->tgnargs > 1)
		parts.key = make_key(data, trigger->tgargs[1]);
	if (trigger->tgnargs > 2)
		parts.topic = cstring_to_text(trigger->tgargs[2]);

	queue = trigger->tgargs[0];
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE);
	target = batcher_enqueue_begin(queue, strlen(queue),
								   "batch_enqueue_trigger()");
	SetUserIdAndSecContext(user, context);
	(void) batcher_enqueue_parts(target, &parts, owner);
	return PointerGetDatum(NULL);
}
