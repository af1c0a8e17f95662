/*
 * dead_letter.c
 *	  Dead letters for their users: looked at, tried again, thrown away; and
 *	  the breaker, closed by hand.
 *
 * Dead letters are tuples, so what is done to them is transactional.  A row
 * that is tried again keeps its ticket and who enqueued it; its attempts are
 * counted anew.  Client backends.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "enqueue/enqueue.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "monitor/monitor.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* Dead letters that are taken out of the table at a time. */
#define RETRY_AT_ONCE	1000

/* A queue, and whose dead letters of it the current user sees. */
typedef struct DeadSight
{
	BatcherQueueDef *def;
	bool		all;
	bool		own;
} DeadSight;

/* The call: where the rows go, and what may be seen of each queue. */
typedef struct DeadScan
{
	ReturnSetInfo *rsinfo;
	List	   *sights;			/* of queues of which something may */
	DeadSight  *last;			/* of the last dead letter */
} DeadScan;

/* Find out, once for each queue, what the current user sees. */
static void
list_sights(DeadScan *scan)
{
	ListCell   *lc;

	foreach(lc, batcher_definition_list())
	{
		DeadSight  *sight = palloc(sizeof(DeadSight));

		sight->def = lfirst(lc);
		sight->all = batcher_definition_may(sight->def, BATCHER_MANAGE);
		sight->own = batcher_definition_may(sight->def, BATCHER_ENQUEUE);
		if (sight->all || sight->own)
			scan->sights = lappend(scan->sights, sight);
	}
}

/* The queue of a dead letter that the current user sees, or NULL. */
static const BatcherQueueDef *
find_visible(DeadScan *scan, const BatcherDeadLetter *dead)
{
	ListCell   *lc;

	if (scan->last == NULL || scan->last->def->id != dead->queue_id)
	{
		scan->last = NULL;
		foreach(lc, scan->sights)
		{
			DeadSight  *sight = lfirst(lc);

			if (sight->def->id == dead->queue_id)
				scan->last = sight;
		}
	}
	if (scan->last && (scan->last->all || dead->enqueuer == GetUserId()))
		return scan->last->def;
	return NULL;
}

/* A BatcherDeadVisitor: give out a dead letter that the user may see. */
static void
visit_dead(const BatcherDeadLetter *dead, void *arg)
{
	enum
	{
		QUEUE, TICKET, KEY, TOPIC, PAYLOAD, SQLSTATE, MESSAGE, DETAIL, CONTEXT,
		ATTEMPTS, ENQUEUED_AT, ENQUEUED_BY, DIED_AT, NUM_COLS
	};
	DeadScan   *scan = arg;
	const BatcherQueueDef *def = find_visible(scan, dead);
	Datum		values[NUM_COLS] = {0};
	bool		nulls[NUM_COLS] = {0};

	if (def == NULL)
		return;
	values[QUEUE] = CStringGetTextDatum(def->name);
	values[TICKET] = Int64GetDatum(dead->row.ticket);
	values[KEY] = PointerGetDatum(dead->row.key);
	nulls[KEY] = dead->row.key == NULL;
	values[TOPIC] = PointerGetDatum(dead->row.topic);
	nulls[TOPIC] = dead->row.topic == NULL;
	values[PAYLOAD] = PointerGetDatum(dead->row.payload);
	nulls[PAYLOAD] = dead->row.payload == NULL;
	batcher_set_text(&values[SQLSTATE], &nulls[SQLSTATE], dead->sqlstate);
	batcher_set_text(&values[MESSAGE], &nulls[MESSAGE], dead->message);
	batcher_set_text(&values[DETAIL], &nulls[DETAIL], dead->detail);
	batcher_set_text(&values[CONTEXT], &nulls[CONTEXT], dead->context);
	values[ATTEMPTS] = Int32GetDatum(dead->attempts);
	batcher_set_time(&values[ENQUEUED_AT], &nulls[ENQUEUED_AT],
					 dead->enqueued_at);
	batcher_set_text(&values[ENQUEUED_BY], &nulls[ENQUEUED_BY],
					 dead->enqueued_by);
	batcher_set_time(&values[DIED_AT], &nulls[DIED_AT], dead->died_at);
	tuplestore_putvalues(scan->rsinfo->setResult, scan->rsinfo->setDesc,
						 values, nulls);
}

PG_FUNCTION_INFO_V1(batcher_get_dead_letter);

/*
 * The dead letters, by the snapshot of the query.
 */
Datum
batcher_get_dead_letter(PG_FUNCTION_ARGS)
{
	DeadScan	scan = {(ReturnSetInfo *) fcinfo->resultinfo, NIL, NULL};

	InitMaterializedSRF(fcinfo, 0);
	list_sights(&scan);
	batcher_dead_scan(visit_dead, &scan);
	return (Datum) 0;
}

/* The queue of argument 0, which the current user may manage. */
static BatcherQueueDef *
managed_queue(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("queue must not be null")));
	return batcher_definition_allowed(text_to_cstring(PG_GETARG_TEXT_PP(0)),
									  BATCHER_MANAGE);
}

/* The tickets of argument 1; 0: all. */
static Datum
tickets_argument(FunctionCallInfo fcinfo)
{
	return PG_ARGISNULL(1) ? (Datum) 0 :
		PointerGetDatum(PG_GETARG_ARRAYTYPE_P(1));
}

PG_FUNCTION_INFO_V1(batcher_retry_dead);

/*
 * batch_retry_dead(queue, tickets): put dead letters back into the queue, with
 * the transaction; returns how many.  NULL tickets: all of the queue.  What
 * has no payload, because it could not be read, stays.
 */
Datum
batcher_retry_dead(PG_FUNCTION_ARGS)
{
	BatcherQueueDef *def;
	BatcherTarget *target;
	Datum		tickets = tickets_argument(fcinfo);
	int64		after = PG_INT64_MIN;
	int64		total = 0;
	MemoryContext cxt;
	int			n;

	batcher_shmem_require();
	PreventCommandIfReadOnly("batch_retry_dead()");
	def = managed_queue(fcinfo);
	target = batcher_target_find(def->name, strlen(def->name));
	cxt = AllocSetContextCreate(CurrentMemoryContext, "batcher dead letters",
								ALLOCSET_DEFAULT_SIZES);
	do
	{
		MemoryContext old = MemoryContextSwitchTo(cxt);
		BatcherDeadLetter *letters = batcher_dead_take(def->id, tickets, after,
													   RETRY_AT_ONCE, &n);
		int			i;

		MemoryContextSwitchTo(old);
		for (i = 0; i < n; i++)
		{
			CHECK_FOR_INTERRUPTS();
			batcher_staging_add(target, &letters[i].row,
								OidIsValid(letters[i].enqueuer) ?
								letters[i].enqueuer : GetUserId());
			after = letters[i].row.ticket;
		}
		total += n;
		MemoryContextReset(cxt);
	} while (n > 0);			/* fewer than asked for, if others take some */
	MemoryContextDelete(cxt);
	PG_RETURN_INT64(total);
}

PG_FUNCTION_INFO_V1(batcher_purge_dead);

/*
 * batch_purge_dead(queue, tickets): throw dead letters away, with the
 * transaction; returns how many.
 */
Datum
batcher_purge_dead(PG_FUNCTION_ARGS)
{
	PreventCommandIfReadOnly("batch_purge_dead()");
	PG_RETURN_INT64(batcher_dead_delete(managed_queue(fcinfo)->id,
										tickets_argument(fcinfo)));
}

PG_FUNCTION_INFO_V1(batcher_reset_breaker);

/*
 * batch_reset_breaker(queue): close the breaker and flush again, at once and
 * whatever becomes of the transaction.
 */
Datum
batcher_reset_breaker(PG_FUNCTION_ARGS)
{
	BatcherSharedQueue *queue;
	BatcherQueueKey key;

	batcher_shmem_require();
	PreventCommandDuringRecovery("batch_reset_breaker()");
	key = batcher_monitor_key(managed_queue(fcinfo));
	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	queue = batcher_shmem_queue_locked(key);
	if (queue)
		batcher_queue_reset_breaker(queue);
	LWLockRelease(&batcher_shared->lock);
	if (queue)
		batcher_queue_wake(queue);	/* at worst another one */
	PG_RETURN_VOID();
}
