/*
 * enqueue.c
 *	  The SQL functions that put rows into queues.
 *
 * Client backends, and workers whose flush enqueues into another queue.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "enqueue/enqueue.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

/*
 * Find the queue of this name, of 'len' bytes, and check that this transaction
 * may enqueue into it by 'function'.  Errors: 25006, 25000, and those of
 * batcher_target_find.
 */
BatcherTarget *
batcher_enqueue_begin(const char *name, int len, const char *function)
{
	BatcherTarget *target;

	batcher_shmem_require();
	if (IsInParallelMode())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("cannot enqueue during a parallel operation")));
	PreventCommandDuringRecovery(function);

	target = batcher_target_find(name, len);
	if (target->durable)
		PreventCommandIfReadOnly(function);
	return target;
}

/* The same for the queue of argument 0.  Errors: 22004 too. */
static BatcherTarget *
begin_enqueue(FunctionCallInfo fcinfo, const char *function)
{
	text	   *name;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("queue must not be null")));
	name = PG_GETARG_TEXT_PP(0);
	return batcher_enqueue_begin(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name),
								 function);
}

/*
 * Stage a row, enqueued by the role 'by'; returns its ticket, which is given
 * here.  The payload of a typed queue is checked.  Errors: those of
 * batcher_row_type_check and batcher_staging_add.
 */
uint64
batcher_enqueue_parts(BatcherTarget *target, BatcherRowParts *parts, Oid by)
{
	if (target->typed)
	{
		BatcherRowType *row_type = batcher_target_row_type(target);

		parts->payload = (struct varlena *)
			batcher_row_type_check(row_type, (Jsonb *) parts->payload,
								   target->name);
	}
	parts->alone = !batcher_enabled;
	parts->ticket = batcher_number_take(batcher_catalog_database());
	batcher_staging_add(target, parts, by);
	return parts->ticket;
}

/*
 * Stage a row with this payload, and what the arguments from 2 on say; returns
 * its ticket.
 */
static uint64
enqueue_one(FunctionCallInfo fcinfo, BatcherTarget *target, Jsonb *payload)
{
	BatcherRowParts parts;

	parts.payload = (struct varlena *) payload;
	parts.key = PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2);
	parts.topic = PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3);
	parts.priority = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT32(4);
	parts.immediate = PG_ARGISNULL(5) ? false : PG_GETARG_BOOL(5);
	parts.attempts = 0;
	return batcher_enqueue_parts(target, &parts, GetUserId());
}

PG_FUNCTION_INFO_V1(batcher_enqueue);

/*
 * batch_enqueue(queue, payload, key, topic, priority, immediate): stage a row
 * and return its ticket.
 */
Datum
batcher_enqueue(PG_FUNCTION_ARGS)
{
	BatcherTarget *target = begin_enqueue(fcinfo, "batch_enqueue()");

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("payload must not be null")));
	PG_RETURN_INT64(enqueue_one(fcinfo, target, PG_GETARG_JSONB_P(1)));
}

PG_FUNCTION_INFO_V1(batcher_enqueue_row);

/*
 * batch_enqueue_row(queue, value, key, topic, priority, immediate): stage a
 * row of a typed queue and return its ticket.
 */
Datum
batcher_enqueue_row(PG_FUNCTION_ARGS)
{
	BatcherTarget *target = begin_enqueue(fcinfo, "batch_enqueue_row()");
	Jsonb	   *payload;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("value must not be null")));
	if (!target->typed)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("rows of queue \"%s\" have no type", target->name),
				 errhint("Use batch_enqueue, or give the queue a row type or a target.")));
	payload = batcher_row_json_record(PG_GETARG_DATUM(1),
									 batcher_target_row_type(target),
									 target->name);
	PG_RETURN_INT64(enqueue_one(fcinfo, target, payload));
}

/* The elements of a text[] argument; all null if it is null. */
static void
get_texts(FunctionCallInfo fcinfo, int arg, const char *name, int expected,
		  Datum **texts, bool **nulls)
{
	int			n;

	if (PG_ARGISNULL(arg))
	{
		*texts = NULL;
		return;
	}
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, -1, false,
					  TYPALIGN_INT, texts, nulls, &n);
	if (n != expected)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number of %s (%d) does not match number of payloads (%d)",
						name, n, expected)));
}

PG_FUNCTION_INFO_V1(batcher_enqueue_many);

/*
 * batch_enqueue_many(queue, payloads, keys, topics, priority, immediate):
 * stage a row for each payload and return how many.
 */
Datum
batcher_enqueue_many(PG_FUNCTION_ARGS)
{
	BatcherTarget *target = begin_enqueue(fcinfo, "batch_enqueue_many()");
	BatcherRowParts parts;
	Datum	   *payloads;
	bool	   *no_payload;
	Datum	   *keys;
	bool	   *no_key;
	Datum	   *topics;
	bool	   *no_topic;
	int			n;
	int			i;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("payloads must not be null")));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), JSONBOID, -1, false,
					  TYPALIGN_INT, &payloads, &no_payload, &n);
	get_texts(fcinfo, 2, "keys", n, &keys, &no_key);
	get_texts(fcinfo, 3, "topics", n, &topics, &no_topic);
	memset(&parts, 0, sizeof(parts));
	parts.priority = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT32(4);
	parts.immediate = PG_ARGISNULL(5) ? false : PG_GETARG_BOOL(5);

	for (i = 0; i < n; i++)
	{
		if (no_payload[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("payload must not be null"),
					 errdetail("It is element %d of \"payloads\".", i + 1)));
		parts.payload = (struct varlena *) DatumGetJsonbP(payloads[i]);
		parts.key = keys && !no_key[i] ? DatumGetTextPP(keys[i]) : NULL;
		parts.topic = topics && !no_topic[i] ? DatumGetTextPP(topics[i]) : NULL;
		(void) batcher_enqueue_parts(target, &parts, GetUserId());
	}
	PG_RETURN_INT64(n);
}
