/*
 * lanes.c
 *	  Another number of lanes for a queue, and the wait for those who use it.
 *
 * Client backends.
 */
#include "postgres.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/settings.h"
#include "enqueue/enqueue.h"
#include "miscadmin.h"
#include "monitor/monitor.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/guc.h"

/* Who is waited for, and whether batcher.enqueue_timeout is the limit. */
typedef struct Waiting
{
	int			pid;
	bool		limited;
} Waiting;

/* Say it in an error; a time that is over is not what the user has set. */
static void
wait_context(void *arg)
{
	const Waiting *waiting = arg;

	if (waiting->limited && geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE)
		errmsg("transactions that have enqueued rows, or flushes, have not ended within \"%s\"",
			   "batcher.enqueue_timeout");
	errcontext("while waiting for the end of the transaction of process %d, which has enqueued rows or flushes",
			   waiting->pid);
}

/*
 * Wait for all transactions that have enqueued, and for the flushes, until 'end'
 * at most.  Errors: 55P03.
 */
void
batcher_monitor_wait_for_users(TimestampTz end)
{
	Waiting		waiting = {0};
	ErrorContextCallback context = {error_context_stack, wait_context, &waiting};
	VirtualTransactionId *user;
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, batcher_catalog_find(false)->spool);
	error_context_stack = &context;
	for (user = GetLockConflicts(&tag, ShareLock, NULL);
		 VirtualTransactionIdIsValid(*user); user++)
	{
		long		ms = TimestampDifferenceMilliseconds(batcher_clock_now(),
														 end);
		int			nest_level = NewGUCNestLevel();
		PGPROC	   *proc = batcher_vxid_proc(*user);

		waiting.pid = proc ? proc->pid : 0;
		waiting.limited = end != BATCHER_NEVER &&
			(LockTimeout == 0 || LockTimeout > ms);
		if (waiting.limited)
			(void) set_config_option("lock_timeout",
									 psprintf("%ld", Max(ms, 1)),
									 PGC_USERSET, PGC_S_SESSION,
									 GUC_ACTION_SAVE, true, 0, false);
		(void) VirtualXactLock(*user, true);
		AtEOXact_GUC(true, nest_level);
	}
	error_context_stack = context.previous;
}

/*
 * The number of a queue's lanes changes.  A key may have another lane then, so
 * this is done while no row waits: the queue is closed, who has enqueued is
 * waited for, and what waits is flushed, for which there is the time that an
 * enqueue waits for room.  'def' has the new number.  Errors: 55006, 55P03,
 * 53400.
 */
void
batcher_monitor_change_lanes(const BatcherQueueDef *def)
{
	BatcherSharedQueue *queue;
	BatcherQueueKey key;
	TimestampTz end;

	batcher_shmem_require();
	key = batcher_monitor_key(def);
	queue = batcher_entry_make(key, 1, false);
	if (batcher_staging_has_queue(queue))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot change the lanes of queue \"%s\" because this transaction has enqueued rows into it",
						def->name)));
	batcher_change_note_lanes();	/* seen to after the queue is open */
	batcher_change_close(queue);
	end = batcher_clock_add_ms(batcher_clock_now(), batcher_enqueue_timeout);
	batcher_monitor_wait_for_users(end);
	(void) batcher_wait_flushed(queue->key, def->name, end);
	if (batcher_monitor_count_waiting(queue, def) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot change the lanes of queue \"%s\" because rows wait in it",
						def->name),
				 def->paused ? errdetail("The queue is paused.") :
				 batcher_queue_breaker_open(queue) ?
				 errdetail("The breaker of the queue is open.") :
				 errdetail("They were not flushed within \"%s\".",
						   "batcher.enqueue_timeout"),
				 errhint("Have them flushed, or purge the queue.")));
	(void) batcher_entry_make(queue->key, def->options.lanes, true);
}
