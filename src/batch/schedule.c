/*
 * schedule.c
 *	  When a lane is looked at again, and how much of it may leave then.
 *
 * What decides are the pure functions of pace.c; here they are given what is
 * known, and their state is kept where all can see it who need it.  The
 * worker.
 *
 * Where the queue is adaptive, the size of batches and the window are those of
 * its pace.  They are published for the views, and so that the next owner of
 * the lane goes on from there.
 *
 * The limit of rows a second is one of the whole queue: its token bucket is an
 * atomic in the queue's entry.  A look tells how many tokens there are, and
 * they are taken when a batch was gathered, if they are there still.  Rows
 * that are handed to the statement have used their tokens, whatever becomes of
 * them.
 */
#include "postgres.h"

#include "base/clock.h"
#include "batch/batch.h"

/*
 * Milliseconds to wait after the 'failures'-th failure in a row; 'random' from
 * 0 to 1.
 */
double
batcher_schedule_retry_delay(const BatcherOptions *options, int failures,
							 double random)
{
	return batcher_pace_retry_delay(options->retry_delay,
									options->retry_backoff,
									options->retry_max_delay, failures, random);
}

/*
 * How many tokens are worth waiting for: what waits, but no more than a batch,
 * or half of what the bucket holds, so that no token is lost while we are a
 * little late.
 */
static int
useful_rows(BatcherLaneView *view, int64 nrows)
{
	double		burst = batcher_bucket_burst(view->def->options.rate_limit);

	nrows = Min(nrows, view->limits.size);
	nrows = Min(nrows, (int64) (burst / 2));
	return (int) Max(nrows, 1);
}

/* The committed rows of the lane that wait, as far as they are counted. */
static int64
count_waiting(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	int64		nrows = (int64) pg_atomic_read_u64(&lane->npending);

	if (batcher_lane_spilled(lane))
		nrows += (int64) pg_atomic_read_u64(&lane->nspilled);
	return Max(nrows, 0);
}

/* The rows that rate_limit lets pass, of at most 'max_rows'; see below. */
static int
limit_rate(BatcherLaneView *view, TimestampTz now, int max_rows)
{
	double		rate = view->def->options.rate_limit;
	int64		empty_at = pg_atomic_read_u64(&view->queue->main->rate_empty_at);
	double		level = batcher_bucket_level(empty_at, now, rate);
	int64		waiting = count_waiting(view);
	int			useful = useful_rows(view, waiting);

	/* who finds nothing has to be able to say so: let him look */
	if (waiting > 0 && level < useful)
	{
		view->limits.rows_at = batcher_bucket_ready(empty_at, now, rate,
													useful);
		return 0;
	}
	max_rows = (int) Min(max_rows, Max(level, 1.0));
	/* a whole batch waits, so a part of it may leave; else its time decides */
	if (waiting >= view->limits.size)
		view->limits.size = Min(view->limits.size, max_rows);
	return max_rows;
}

/* Why the size is what it is, in words. */
static void
describe_size(const BatcherPace *pace, char *text)
{
	char		change[64];

	snprintf(change, sizeof(change), "%s from %d to %d",
			 pace->size > pace->old_size ? "raised" : "lowered",
			 pace->old_size, pace->size);
	switch (pace->reason)
	{
		case BATCHER_PACE_START:
			snprintf(text, BATCHER_REASON_MAX, "begun with %d", pace->size);
			break;
		case BATCHER_PACE_BACKLOG:
			snprintf(text, BATCHER_REASON_MAX, "%s: %.0f more rows waited",
					 change, pace->value);
			break;
		case BATCHER_PACE_LATENCY:
			snprintf(text, BATCHER_REASON_MAX,
					 "%s: flushes take longer than latency_target, the last took %.0f ms",
					 change, pace->value);
			break;
		case BATCHER_PACE_ERRORS:
			snprintf(text, BATCHER_REASON_MAX,
					 "%s: more rows fail than error_target, of the last batch %.1f %%",
					 change, pace->value * 100.0);
			break;
		case BATCHER_PACE_THROUGHPUT:
			snprintf(text, BATCHER_REASON_MAX,
					 "%s: throughput_target is missed, and %.0f rows/s are less than before",
					 change, pace->value);
			break;
	}
}

/* Show a size that has changed. */
static void
publish_size(BatcherLaneView *view)
{
	BatcherSharedLane *lane = &view->queue->lane;
	char		text[BATCHER_REASON_MAX];

	describe_size(&view->pace, text);
	LWLockAcquire(&lane->lock, LW_EXCLUSIVE);
	strlcpy(view->queue->size_reason, text, BATCHER_REASON_MAX);
	LWLockRelease(&lane->lock);
	pg_atomic_write_u32(&lane->current_size, view->pace.size);
	ereport(DEBUG1,
			(errmsg_internal("queue \"%s\": batch size %s",
							 view->def->name, text)));
}

/*
 * Bring the pace of an adaptive queue up to date: what its definition says,
 * and what has come since the last look.
 */
static void
adapt(BatcherLaneView *view, TimestampTz now)
{
	const BatcherOptions *options = &view->def->options;
	BatcherSharedLane *lane = &view->queue->lane;
	BatcherPace *pace = &view->pace;
	uint64		enqueued = batcher_counter(view->queue, BATCHER_ROWS_ENQUEUED);
	BatcherPaceBounds bounds = {
		.min_size = options->min_batch_size,
		.max_size = options->max_batch_size,
		.start_size = options->flush_size,
		.factor = options->adjust_factor,
		.latency = options->latency_target,
		.errors = options->error_target,
		.throughput = options->throughput_target,
		.window = options->flush_interval
	};

	if (!batcher_pace_keeps(pace, &bounds))
	{
		int			size = 0;	/* as the definition says */

		if (pace->size == 0)	/* the last owner's, if there was one */
			size = pg_atomic_read_u32(&lane->current_size);
		else if (pace->bounds.start_size == bounds.start_size)
			size = pace->size;
		batcher_pace_start(pace, &bounds, size);
		if (pace->size != size)
			publish_size(view);
	}
	/* the counter may have been reset */
	batcher_pace_arrived(pace, now, enqueued < view->enqueued_seen ? enqueued :
						 enqueued - view->enqueued_seen);
	view->enqueued_seen = enqueued;
	pg_atomic_write_u64(&lane->current_window, (uint64) (pace->window * 1000.0));
	pg_atomic_write_u64(&lane->arrival_rate,
						(uint64) (Max(pace->arrivals, 0) * 1000.0));
}

/*
 * Set view->limits, what the next batch of a lane has to keep to.  Returns how
 * many rows it may have, at most 'max_rows'; 0: none before limits.rows_at.
 */
int
batcher_schedule_limits(BatcherLaneView *view, TimestampTz now, int max_rows)
{
	const BatcherOptions *options = &view->def->options;

	view->limits.size = options->flush_size;
	view->limits.window = view->limits.longest = options->debounce > 0 ?
		options->max_wait : options->flush_interval;
	view->limits.rows_at = BATCHER_NEVER;
	if (options->adaptive)
	{
		adapt(view, now);
		view->limits.size = view->pace.size;
		view->limits.window = view->pace.window;
		max_rows = Min(max_rows, view->pace.size);
	}
	else if (view->pace.size != 0)
	{
		memset(&view->pace, 0, sizeof(view->pace));
		pg_atomic_write_u32(&view->queue->lane.current_size, 0);
	}
	view->limits.soonest = options->debounce > 0 ? options->debounce :
		view->limits.window;
	view->limits.size = Min(view->limits.size, max_rows);
	if (options->rate_limit > 0)
		max_rows = limit_rate(view, now, max_rows);
	return max_rows;
}

/*
 * Learn from a flush that has ended: it has taken 'ms' milliseconds, and if
 * it 'failed', no row has passed.  Retries of rows that failed tell nothing of
 * the size of batches.
 */
void
batcher_schedule_flushed(BatcherLaneView *view, const BatcherBatch *batch,
						 bool failed, double ms)
{
	BatcherPaceFlush flush = {
		.nrows = batch->nrows,
		.nfailed = failed ? batch->nrows : 0,
		.ms = ms,
		.waiting = count_waiting(view)
	};
	int			i;

	if (!view->def->options.adaptive ||
		batch->reason == BATCHER_REASON_PURGE ||
		batch->reason == BATCHER_REASON_RETRY)
		return;
	for (i = 0; !failed && i < batch->nrows; i++)
	{
		if (batch->rows[i].outcome == BATCHER_OUTCOME_FAILED ||
			batch->rows[i].outcome == BATCHER_OUTCOME_DEAD)
			flush.nfailed++;
	}
	if (batcher_pace_flushed(&view->pace, &flush))
		publish_size(view);
}

/*
 * Take tokens for 'nrows' rows.  False if another lane of the queue was
 * faster; then limits.rows_at is when to try again.
 */
bool
batcher_schedule_take(BatcherLaneView *view, TimestampTz now, int nrows)
{
	pg_atomic_uint64 *state = &view->queue->main->rate_empty_at;
	double		rate = view->def->options.rate_limit;
	uint64		empty_at;

	if (rate == 0)
		return true;
	empty_at = pg_atomic_read_u64(state);
	do
	{
		if (batcher_bucket_level(empty_at, now, rate) < nrows)
		{
			view->limits.rows_at =
				batcher_bucket_ready(empty_at, now, rate,
									 useful_rows(view, nrows));
			return false;
		}
	} while (!pg_atomic_compare_exchange_u64(state, &empty_at,
											 batcher_bucket_taken(empty_at, now,
																  rate, nrows)));
	return true;
}

/*
 * Tokens for so many rows were taken and not used.
 */
void
batcher_schedule_give_back(BatcherLaneView *view, int nrows)
{
	double		rate = view->def->options.rate_limit;

	if (rate > 0)
		(void) pg_atomic_fetch_sub_u64(&view->queue->main->rate_empty_at,
									   (int64) (nrows / rate * USECS_PER_SEC));
}
