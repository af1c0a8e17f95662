/*
 * message.c
 *	  Telling listeners, after the commit, with numbered messages.
 *
 * A transaction that has notified holds a lock on the whole server's queue of
 * notifications from just before its commit record until that is on disk.  So
 * messages do not go out with the data: they are remembered, and sent after
 * the data is durably committed, in a short transaction of their own that
 * does not wait for the disk; messages of several queues share one.  Only a
 * queue that has no statement claims and notifies in one transaction.  They
 * are made in the flush (payload.c, executor.c), because its rows are gone
 * afterwards, and numbered when they are sent.
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
#include "base/json.h"
#include "batch/message.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * A message.  An object is given its number when it is sent; a text is sent as
 * it is, and not counted.
 */
typedef struct Message
{
	dlist_node	node;
	slist_node	sent_node;		/* on the list of those that are being sent */
	char		channel[NAMEDATALEN];
	BatcherQueueKey queue;
	Jsonb	   *object;			/* or */
	char	   *text;
	bool		dated;			/* the object gets "at" */
	bool		remembered;		/* counted in lane.unsent */
	int			saved;			/* rows that need no message of their own */
	int			bytes;			/* of what was sent */
	BatcherSharedQueue *shared; /* when it was sent; stays, because we own its
								 * lane; or NULL */
} Message;

/* The count of a channel in the transaction that sends. */
typedef struct Count
{
	char		channel[NAMEDATALEN];	/* hash key, must be first */
	uint64		epoch;
	uint64		seq;			/* of the last message */
} Count;

/* Those of the flush in progress, in a context of their own. */
static struct
{
	MemoryContext cxt;
	BatcherQueueKey queue;
	dlist_head	list;
	int			n;
}			made;

/* Waiting to be sent; in contexts below this one, which is reset then. */
static dlist_head messages = DLIST_STATIC_INIT(messages);
static MemoryContext message_cxt = NULL;

/* What the transaction in progress sends if it commits. */
static slist_head sent = SLIST_STATIC_INIT(sent);
static HTAB *counts = NULL;		/* in TopTransactionContext */
static BatcherDatabaseKey counts_db;

/*
 * A message that its lane has counted as unsent is on its way, or lost.  Who has
 * taken the lane over at the same moment may have counted it as lost already.
 */
static void
forget_unsent(BatcherSharedQueue *queue)
{
	uint32		n = pg_atomic_read_u32(&queue->lane.unsent);

	while (n > 0 && !pg_atomic_compare_exchange_u32(&queue->lane.unsent, &n,
													n - 1))
		;
}

static void
message_xact_callback(XactEvent event, void *arg)
{
	HASH_SEQ_STATUS status;
	slist_iter	iter;
	Count	   *count;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
		return;
	if (event == XACT_EVENT_COMMIT && counts)
	{
		hash_seq_init(&status, counts);
		while ((count = hash_seq_search(&status)) != NULL)
			batcher_shmem_channel_write(counts_db, count->channel,
										count->epoch, count->seq);
	}
	if (event == XACT_EVENT_COMMIT)
	{
		slist_foreach(iter, &sent)
		{
			Message    *m = slist_container(Message, sent_node, iter.cur);

			if (m->shared == NULL)
				continue;
			if (m->remembered)
				forget_unsent(m->shared);
			batcher_count(m->shared, BATCHER_MESSAGES_SENT, 1);
			batcher_count(m->shared, BATCHER_MESSAGES_SAVED, m->saved);
			batcher_count(m->shared, BATCHER_MESSAGE_BYTES, m->bytes);
		}
	}
	slist_init(&sent);
	counts = NULL;
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

/*
 * A flush begins: what was made for the one before, which has failed, is
 * forgotten.
 */
void
batcher_message_begin(BatcherLaneView *view)
{
	if (made.cxt == NULL)
		made.cxt = AllocSetContextCreate(TopMemoryContext,
										 "batcher messages of a flush",
										 ALLOCSET_DEFAULT_SIZES);
	else
		MemoryContextReset(made.cxt);
	dlist_init(&made.list);
	made.n = 0;
	made.queue = view->queue->key;
}

/*
 * How many messages the flush in progress has made so far.
 */
int
batcher_message_made(void)
{
	return made.n;
}

/*
 * To how many channels they go.
 */
int
batcher_message_channels(void)
{
	HASHCTL		ctl;
	HTAB	   *channels;
	dlist_iter	iter;
	long		n;

	if (made.n == 0)
		return 0;
	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = NAMEDATALEN;
	ctl.hcxt = made.cxt;
	channels = hash_create("batcher channels", 64, &ctl,
						   HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	dlist_foreach(iter, &made.list)
		(void) hash_search(channels,
						   dlist_container(Message, node, iter.cur)->channel,
						   HASH_ENTER, NULL);
	n = hash_get_num_entries(channels);
	hash_destroy(channels);
	return (int) n;
}

/*
 * Only the first 'n' messages of the flush in progress stay.
 */
void
batcher_message_cut(int n)
{
	while (made.n > n)
	{
		(void) dlist_delete(dlist_tail_node(&made.list));
		made.n--;
	}
}

static Message *
add_message(const char *channel)
{
	Message    *m = MemoryContextAllocZero(made.cxt, sizeof(Message));

	strlcpy(m->channel, channel, NAMEDATALEN);
	m->queue = made.queue;
	dlist_push_tail(&made.list, &m->node);
	made.n++;
	return m;
}

/*
 * Add a message to those of the flush in progress: an object, which is to be
 * numbered, and dated.
 */
void
batcher_message_add_object(const char *channel, Jsonb *object, bool dated)
{
	Message    *m = add_message(channel);

	m->object = MemoryContextAlloc(made.cxt, VARSIZE(object));
	memcpy(m->object, object, VARSIZE(object));
	m->dated = dated;
}

/*
 * Add a message that is sent as it is.
 */
void
batcher_message_add_text(const char *channel, const char *text)
{
	add_message(channel)->text = MemoryContextStrdup(made.cxt, text);
}

/* Numbers of this database's channels are given under this lock. */
static void
lock_sender(void)
{
	LockDatabaseObject(ExtensionRelationId, batcher_catalog_find(false)->db.extoid,
					   1, ExclusiveLock);
}

/* The count of a message's channel in this transaction, one further. */
static Count *
next_count(const Message *m)
{
	HASHCTL		ctl;
	Count	   *count;
	bool		found;

	if (counts == NULL)
	{
		ctl.keysize = NAMEDATALEN;
		ctl.entrysize = sizeof(Count);
		ctl.hcxt = TopTransactionContext;
		counts = hash_create("batcher counts", 64, &ctl,
							 HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
		counts_db = m->queue.db;
	}
	count = hash_search(counts, m->channel, HASH_ENTER, &found);
	if (!found)
		batcher_shmem_channel_read(m->queue.db, m->channel, &count->epoch,
								   &count->seq);
	count->seq++;
	return count;
}

/* The text of a message that has a number. */
static char *
numbered_text(const Message *m, uint64 epoch, uint64 seq)
{
	JsonbParseState *state = NULL;
	char		epoch_text[17];
	char		at[MAXDATELEN + 1];

	snprintf(epoch_text, sizeof(epoch_text), "%016llx",
			 (unsigned long long) epoch);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	batcher_json_push_members(&state, m->object);
	batcher_json_string(&state, "epoch", epoch_text);
	batcher_json_integer(&state, "seq", seq);
	if (m->dated)
	{
		JsonEncodeDateTime(at, TimestampTzGetDatum(batcher_clock_now()),
						   TIMESTAMPTZOID, NULL);
		batcher_json_string(&state, "at", at);
	}
	return batcher_json_text(batcher_json_end(&state), NULL);
}

/* Give messages their numbers and hand them to NOTIFY. */
static void
notify_all(dlist_head *list, bool remembered)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "batcher message",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(cxt);
	dlist_iter	iter;

	lock_sender();
	dlist_foreach(iter, list)
	{
		Message    *m = dlist_container(Message, node, iter.cur);
		char	   *text = m->text;

		CHECK_FOR_INTERRUPTS();
		if (m->object)
		{
			Count	   *count = next_count(m);

			text = numbered_text(m, count->epoch, count->seq);
		}
		Assert(strlen(text) <= BATCHER_MESSAGE_MAX);
		Async_Notify(m->channel, text);
		m->bytes = strlen(text);
		m->shared = batcher_shmem_queue(m->queue);
		m->remembered = remembered;
		slist_push_head(&sent, &m->sent_node);
		MemoryContextReset(cxt);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(cxt);
}

/*
 * The flush is about to commit: its messages are complete.  Those of a queue
 * that has no statement go out with it.
 */
void
batcher_message_complete(BatcherLaneView *view, BatcherBatch *batch)
{
	if (made.n == 0)
		return;
	dlist_container(Message, node, dlist_head_node(&made.list))->saved =
		Max(batch->nflushed - made.n, 0);
	if (!batcher_definition_executes(view->def))
		notify_all(&made.list, false);
}

/*
 * The flush has committed: its messages wait to be sent.  Fails never.
 */
void
batcher_message_keep(void)
{
	if (made.n == 0)
		return;
	for (; made.n > 0; made.n--)
	{
		dlist_node *node = dlist_pop_head_node(&made.list);

		dlist_push_tail(&messages, node);
	}
	MemoryContextSetParent(made.cxt, message_cxt);
	made.cxt = NULL;
}

/*
 * Messages of a queue are lost, on this channel, or on those that nobody knows
 * (NULL): another epoch begins, so that whoever listens can tell.  The caller
 * has locked the sender, if he could, so that nobody else sends before with a
 * number that looks as if there was none.
 */
static void
lose_messages(BatcherSharedQueue *queue, BatcherDatabaseKey db,
			  const char *channel, int n)
{
	batcher_shmem_channel_renew(db, channel);
	batcher_count(queue, BATCHER_MESSAGES_DROPPED, n);
}

/*
 * The lane is ours now: messages that its last owner remembered, and did not
 * send before it ended, are lost, and with them on which channels they were.
 * In a transaction.
 */
void
batcher_message_recover(BatcherLaneView *view)
{
	uint32		n = pg_atomic_exchange_u32(&view->queue->lane.unsent, 0);

	if (n == 0)
		return;
	lock_sender();
	lose_messages(view->queue, view->queue->key.db, NULL, n);
	ereport(LOG,
			(errmsg("%u messages of queue \"%s\" were lost with the worker that was to send them",
					n, view->def->name)));
}

/*
 * The messages of the flush in progress could not be made.  Waits for who sends
 * just now, until it is cancelled.
 */
void
batcher_message_drop(BatcherLaneView *view)
{
	batcher_message_cut(0);
	lock_sender();
	lose_messages(view->queue, view->queue->key.db, NULL, 1);
}

/* Count the messages that could not be sent. */
static void
count_dropped(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &messages)
	{
		Message    *m = dlist_container(Message, node, iter.cur);
		BatcherSharedQueue *queue = batcher_shmem_queue(m->queue);

		if (queue == NULL)
			continue;
		forget_unsent(queue);
		lose_messages(queue, m->queue.db, m->channel, 1);
	}
}

/* Send all that waits in one transaction, which does not wait for the disk. */
static void
send_in_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, "batcher: sending messages");
	StartTransactionCommand();
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	notify_all(&messages, true);
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
