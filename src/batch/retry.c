/*
 * retry.c
 *	  Rows that have failed and are tried again by themselves.
 *
 * How often a row has failed is told by the row; when it is tried next is
 * known to the worker that owns the lane only, and goes with it: the next
 * owner tries such rows at once.  A row that failed by no fault of its own
 * has no attempts and is here only.  So each row that is here, or that has
 * attempts, waits to be tried again, and holds back the later rows of its key.
 * The memory is linear in such rows, and in those that were given up (queue/thin.c)
 * since none waited last.  The worker.
 */
#include "postgres.h"

#include "base/clock.h"
#include "batch/batch.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

typedef struct Retry
{
	uint64		ticket;			/* hash key */
	TimestampTz due;
	int			delays;			/* how often it has been put off */
	bool		alone;			/* other rows passed in a flush in which it
								 * failed ... */
	BatcherFault fault;			/* ... with this */
	bool		rejoins;		/* it is tried with other rows next */
} Retry;

/* What is known of the failures of a row, or NULL. */
static Retry *
find_retry(BatcherLaneView *view, uint64 ticket)
{
	if (view->retries == NULL || hash_get_num_entries(view->retries) == 0)
		return NULL;
	return hash_search(view->retries, &ticket, HASH_FIND, NULL);
}

/*
 * When a row is to be tried again; BATCHER_NO_RETRY if it does not wait for
 * that.
 */
TimestampTz
batcher_retry_at(BatcherLaneView *view, const BatcherChunk *chunk,
				 const BatcherRow *row)
{
	Retry	   *retry = find_retry(view, chunk->first_ticket + row->ticket);

	if (retry)
		return retry->rejoins ? BATCHER_NO_RETRY : retry->due;
	return row->attempts > 0 ? BATCHER_RETRY_NOW : BATCHER_NO_RETRY;
}

/*
 * A row has failed: put it off.  'attempts' is how often it has failed by its
 * own fault by now, 0 if it was not at fault; 'alone': other rows passed in
 * the flush in which it failed with 'fault'.  'random', from 0 to 1, is the
 * same for rows that failed together, so that they are tried again together.
 */
void
batcher_retry_add(BatcherLaneView *view, uint64 ticket, int attempts,
				  bool alone, BatcherFault fault, double random)
{
	Retry	   *retry;
	bool		found;
	double		delay;

	if (view->retries == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(uint64);
		ctl.entrysize = sizeof(Retry);
		ctl.hcxt = TopMemoryContext;
		view->retries = hash_create("batcher retries", 64, &ctl,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	retry = hash_search(view->retries, &ticket, HASH_ENTER, &found);
	if (!found)
	{
		retry->delays = 0;
		retry->alone = false;
	}
	if (alone || !found)
	{
		retry->alone = alone;
		retry->fault = fault;
	}
	retry->rejoins = false;
	retry->delays = Max(retry->delays + 1, attempts);
	delay = batcher_schedule_retry_delay(&view->def->options, retry->delays,
										 random);
	retry->due = batcher_clock_add_ms(batcher_clock_now(), delay);
}

/*
 * Whether a row has failed in a flush in which others passed; 'fault', unless it
 * is NULL, is with what.
 */
bool
batcher_retry_alone(BatcherLaneView *view, uint64 ticket, BatcherFault *fault)
{
	Retry	   *retry = find_retry(view, ticket);

	if (retry == NULL || !retry->alone)
		return false;
	if (fault)
		*fault = retry->fault;
	return true;
}

/*
 * A row has failed by itself with what may be the statement's: only together
 * with other rows can it be told whose fault it is.
 */
void
batcher_retry_rejoin(BatcherLaneView *view, uint64 ticket)
{
	batcher_retry_add(view, ticket, 0, false, BATCHER_FAULT_STATEMENT, 0.5);
	find_retry(view, ticket)->rejoins = true;
}

/*
 * A row is settled.
 */
void
batcher_retry_remove(BatcherLaneView *view, uint64 ticket)
{
	if (view->retries)
		(void) hash_search(view->retries, &ticket, HASH_REMOVE, NULL);
}

/*
 * Whether a row is known to wait to be tried again by itself.
 */
bool
batcher_retry_waits(BatcherLaneView *view, uint64 ticket)
{
	Retry	   *retry = find_retry(view, ticket);

	return retry && !retry->rejoins;
}

/*
 * Whether it is known of a row that it has failed.
 */
bool
batcher_retry_known(BatcherLaneView *view, uint64 ticket)
{
	return find_retry(view, ticket) != NULL;
}

/*
 * Have all rows tried again now, because somebody asks for a flush.  False if
 * nothing changes by that.
 */
bool
batcher_retry_force(BatcherLaneView *view)
{
	HASH_SEQ_STATUS status;
	Retry	   *retry;
	bool		changed = false;

	if (view->retries == NULL)
		return false;
	hash_seq_init(&status, view->retries);
	while ((retry = hash_seq_search(&status)) != NULL)
	{
		changed |= retry->due != BATCHER_RETRY_NOW;
		retry->due = BATCHER_RETRY_NOW;
	}
	return changed;
}

/*
 * Another statement is to be tried: that others passed where a row failed tells
 * nothing of that.  When it is tried again stays.
 */
void
batcher_retry_absolve(BatcherLaneView *view)
{
	HASH_SEQ_STATUS status;
	Retry	   *retry;

	if (view->retries == NULL)
		return;
	hash_seq_init(&status, view->retries);
	while ((retry = hash_seq_search(&status)) != NULL)
		retry->alone = false;
}

/*
 * Forget when rows are tried again: the lane goes to another worker, or its
 * rows are gone.
 */
void
batcher_retry_reset(BatcherLaneView *view)
{
	if (view->retries)
		hash_destroy(view->retries);
	view->retries = NULL;
}
