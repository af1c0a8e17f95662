/*
 * message.c
 *	  Telling listeners, with one NOTIFY for a batch.
 *
 * A transaction that has notified holds a lock on the whole server's queue of
 * notifications from just before its commit record until that is on disk.  So
 * messages do not go out with the data: they are remembered, and sent after
 * the data is durably committed, in a short transaction of their own that
 * does not wait for the disk; messages of several queues share one.  Only a
 * queue that has no statement claims and notifies in one transaction.
 *
 * The messages of a channel are numbered in the order in which they are sent.
 * The number is given in the sending transaction, under a heavyweight lock of
 * the database, so that arrival and number agree whichever worker sends; it
 * is stored when that transaction commits, before the lock is let go.  The
 * worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/clock.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "common/pg_prng.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

/* The server's limit is 8000 bytes with the terminating zero. */
#define MESSAGE_MAX		7999

/* A message that is to be sent, or is being sent. */
typedef struct Message
{
	dlist_node	node;
	char		channel[NAMEDATALEN];
	char		queue_name[NAMEDATALEN];
	BatcherQueueKey queue;
	uint64		batch;
	int			count;			/* rows */
	TimestampTz at;
} Message;

/* A message that the transaction in progress sends if it commits. */
typedef struct GivenNumber
{
	slist_node	node;
	BatcherSharedChannel *channel;
	uint64		seq;
	BatcherSharedQueue *queue;	/* stays, because we own its lane; or NULL */
	int			count;			/* rows */
	int			bytes;
	bool		remembered;		/* counted in lane.unsent */
} GivenNumber;

/* Waiting to be sent; in a context of their own, which is reset then. */
static dlist_head messages = DLIST_STATIC_INIT(messages);
static MemoryContext message_cxt = NULL;

/* In TopTransactionContext. */
static slist_head given = SLIST_STATIC_INIT(given);

static void
message_xact_callback(XactEvent event, void *arg)
{
	slist_iter	iter;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		slist_foreach(iter, &given)
		{
			GivenNumber *g = slist_container(GivenNumber, node, iter.cur);

			g->channel->seq = Max(g->channel->seq, g->seq);
			if (g->queue == NULL)
				continue;
			if (g->remembered)
				(void) pg_atomic_fetch_sub_u32(&g->queue->lane.unsent, 1);
			batcher_count(g->queue, BATCHER_MESSAGES_SENT, 1);
			batcher_count(g->queue, BATCHER_MESSAGES_SAVED, g->count - 1);
			batcher_count(g->queue, BATCHER_MESSAGE_BYTES, g->bytes);
		}
	}
	slist_init(&given);
}

/*
 * Register the callback that stores numbers.  A worker, once.
 */
void
batcher_message_install(void)
{
	RegisterXactCallback(message_xact_callback, NULL);
	message_cxt = AllocSetContextCreate(TopMemoryContext, "batcher messages",
										ALLOCSET_DEFAULT_SIZES);
}

/* The channel of a queue's messages: {queue} replaced, and never unusable. */
static void
expand_channel(const BatcherQueueDef *def, char *channel)
{
	const char *p = def->options.notify_channel;
	StringInfoData s;

	initStringInfo(&s);
	while (*p)
	{
		if (strncmp(p, "{queue}", 7) == 0)
		{
			appendStringInfoString(&s, def->name);
			p += 7;
		}
		else
			appendStringInfoChar(&s, *p++);
	}
	if (s.len == 0 || s.len > BATCHER_NAME_MAX)
		strlcpy(channel, def->name, NAMEDATALEN);
	else
		strlcpy(channel, s.data, NAMEDATALEN);
	pfree(s.data);
}

/*
 * Whether the batches of a queue are announced.
 */
bool
batcher_message_wanted(const BatcherQueueDef *def)
{
	return def->options.notify_channel != NULL &&
		def->options.notify_format != BATCHER_NOTIFY_NONE;
}

static void
fill_message(Message *message, BatcherLaneView *view, BatcherBatch *batch)
{
	expand_channel(view->def, message->channel);
	strlcpy(message->queue_name, view->def->name, NAMEDATALEN);
	message->queue = view->queue->key;
	message->batch = batch->number;
	message->count = batch->nflushed;
	message->at = batcher_clock_now();
}

/*
 * Remember that a committed batch is to be announced.
 */
void
batcher_message_add(BatcherLaneView *view, BatcherBatch *batch)
{
	Message    *message;

	if (!batcher_message_wanted(view->def) || batch->nflushed == 0)
		return;
	message = MemoryContextAlloc(message_cxt, sizeof(Message));
	fill_message(message, view, batch);
	dlist_push_tail(&messages, &message->node);
}

/* Numbers of this database's channels are given under this lock. */
static void
lock_sender(void)
{
	LockDatabaseObject(ExtensionRelationId, batcher_catalog_find(false)->db.extoid,
					   1, ExclusiveLock);
}

/* The next number of a channel in this transaction. */
static GivenNumber *
give_number(const Message *message)
{
	GivenNumber *number = MemoryContextAlloc(TopTransactionContext,
											 sizeof(GivenNumber));
	slist_iter	iter;

	number->channel = batcher_shmem_channel(message->queue.db,
											message->channel);
	number->seq = number->channel->seq + 1;
	number->queue = batcher_shmem_queue(message->queue);
	number->count = message->count;
	number->bytes = 0;
	number->remembered = false;
	slist_foreach(iter, &given)
	{
		GivenNumber *other = slist_container(GivenNumber, node, iter.cur);

		if (other->channel == number->channel)
			number->seq = Max(number->seq, other->seq + 1);
	}
	slist_push_head(&given, &number->node);
	return number;
}

static void
push_string(JsonbParseState **state, const char *key, const char *value)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, key);
	v.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &v);
	v.val.string.val = unconstify(char *, value);
	v.val.string.len = strlen(value);
	pushJsonbValue(state, WJB_VALUE, &v);
}

static void
push_number(JsonbParseState **state, const char *key, int64 value)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, key);
	v.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &v);
	v.type = jbvNumeric;
	v.val.numeric = int64_to_numeric(value);
	pushJsonbValue(state, WJB_VALUE, &v);
}

/* The text of a summary. */
static char *
summary_text(const Message *message, uint64 epoch, uint64 seq)
{
	JsonbParseState *state = NULL;
	JsonbValue *object;
	char		epoch_text[17];
	char		at[MAXDATELEN + 1];
	Jsonb	   *json;

	snprintf(epoch_text, sizeof(epoch_text), "%016llx",
			 (unsigned long long) epoch);
	JsonEncodeDateTime(at, TimestampTzGetDatum(message->at), TIMESTAMPTZOID,
					   NULL);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_string(&state, "type", "batch");
	push_string(&state, "queue", message->queue_name);
	push_number(&state, "batch", message->batch);
	push_string(&state, "epoch", epoch_text);
	push_number(&state, "seq", seq);
	push_number(&state, "count", message->count);
	push_string(&state, "at", at);
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	json = JsonbValueToJsonb(object);
	return JsonbToCString(NULL, &json->root, VARSIZE(json));
}

/* Give a message its number and hand it to NOTIFY. */
static void
notify_one(const Message *message, bool remembered)
{
	GivenNumber *number = give_number(message);
	char	   *text = summary_text(message, number->channel->epoch,
									number->seq);

	Assert(strlen(text) <= MESSAGE_MAX);
	Async_Notify(message->channel, text);
	number->bytes = strlen(text);
	number->remembered = remembered;
}

/*
 * Messages of a queue are lost: its channel's count begins anew, so that
 * whoever listens can tell.  The caller has locked the sender, if he could, so
 * that nobody else sends before with a number that looks as if there was none.
 */
static void
lose_messages(BatcherSharedQueue *queue, BatcherDatabaseKey db,
			  const char *channel, int n)
{
	batcher_shmem_channel(db, channel)->epoch =
		pg_prng_uint64(&pg_global_prng_state);
	batcher_count(queue, BATCHER_MESSAGES_DROPPED, n);
}

/*
 * The lane is ours now: messages that its last owner remembered, and did not
 * send before it ended, are lost.  In a transaction.
 */
void
batcher_message_recover(BatcherLaneView *view)
{
	uint32		n = pg_atomic_exchange_u32(&view->queue->lane.unsent, 0);
	char		channel[NAMEDATALEN];

	if (n == 0 || !batcher_message_wanted(view->def))
		return;
	expand_channel(view->def, channel);
	lock_sender();
	lose_messages(view->queue, view->queue->key.db, channel, n);
	ereport(LOG,
			(errmsg("%u messages of queue \"%s\" were lost with the worker that was to send them",
					n, view->def->name)));
}

/* Count the messages that could not be sent. */
static void
count_dropped(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &messages)
	{
		Message    *message = dlist_container(Message, node, iter.cur);
		BatcherSharedQueue *queue = batcher_shmem_queue(message->queue);

		if (queue == NULL)
			continue;
		(void) pg_atomic_fetch_sub_u32(&queue->lane.unsent, 1);
		lose_messages(queue, message->queue.db, message->channel, 1);
	}
}

/* Send all that waits in one transaction, which does not wait for the disk. */
static void
send_in_transaction(void)
{
	dlist_iter	iter;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, "batcher: sending messages");
	StartTransactionCommand();
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	lock_sender();
	dlist_foreach(iter, &messages)
	{
		Message    *message = dlist_container(Message, node, iter.cur);

		message->at = batcher_clock_now();
		notify_one(message, true);
	}
	batcher_debug_point("notify");
	CommitTransactionCommand();
}

/*
 * Send the messages that were remembered.  Never raises an error: messages
 * that cannot be sent (the server's queue of notifications is full) are
 * dropped and counted, and the first such failure is logged.
 */
void
batcher_message_send(void)
{
	static bool failed_before = false;
	MemoryContext caller = CurrentMemoryContext;

	if (dlist_is_empty(&messages))
		return;
	PG_TRY();
	{
		send_in_transaction();
		failed_before = false;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(caller);
		if (!failed_before)
			EmitErrorReport();
		FlushErrorState();
		failed_before = true;
		LWLockReleaseAll();
		count_dropped();		/* while the sender is locked */
		AbortOutOfAnyTransaction();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	dlist_init(&messages);
	MemoryContextReset(message_cxt);
}

/*
 * Announce the batch in the transaction of its flush, for a queue that has no
 * statement.
 */
void
batcher_message_notify(BatcherLaneView *view, BatcherBatch *batch)
{
	Message		message;

	if (!batcher_message_wanted(view->def))
		return;
	lock_sender();
	fill_message(&message, view, batch);
	notify_one(&message, false);
}
