/*
 * schedule.c
 *	  When a lane is looked at again, and how much of it may leave then.
 *
 * What decides are the pure functions of pace.c; here they are given what is
 * known, and their state is kept where all can see it who need it.  The
 * worker.
 *
 * The limit of rows a second is one of the whole queue: its token bucket is an
 * atomic in the queue's entry.  A look tells how many tokens there are, and
 * they are taken when a batch was gathered, if they are there still.  Rows
 * that are handed to the statement have used their tokens, whatever becomes of
 * them.
 */
#include "postgres.h"

#include <math.h>

#include "base/clock.h"
#include "batch/batch.h"
#include "batch/pace.h"

#define RETRY_JITTER	0.2

/*
 * Milliseconds to wait after the 'failures'-th failure in a row: retry_delay,
 * growing by the factor retry_backoff up to retry_max_delay.  'random', from 0
 * to 1, spreads it by a fifth to either side, so that what failed together
 * does not come back together.
 */
double
batcher_schedule_retry_delay(const BatcherOptions *options, int failures,
							 double random)
{
	double		delay;

	Assert(failures > 0);
	delay = options->retry_delay * pow(options->retry_backoff, failures - 1);
	delay = Min(delay, options->retry_max_delay);
	return delay * (1.0 - RETRY_JITTER + 2.0 * RETRY_JITTER * random);
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
	int64		empty_at = pg_atomic_read_u64(&view->queue->rate_empty_at);
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

/*
 * Set view->limits, what the next batch of a lane has to keep to.  Returns how
 * many rows it may have, at most 'max_rows'; 0: none before limits.rows_at.
 */
int
batcher_schedule_limits(BatcherLaneView *view, TimestampTz now, int max_rows)
{
	const BatcherOptions *options = &view->def->options;

	view->limits.size = Min(options->flush_size, max_rows);
	view->limits.window = options->flush_interval;
	view->limits.rows_at = BATCHER_NEVER;
	if (options->rate_limit > 0)
		max_rows = limit_rate(view, now, max_rows);
	return max_rows;
}

/*
 * Take tokens for 'nrows' rows.  False if another lane of the queue was
 * faster; then limits.rows_at is when to try again.
 */
bool
batcher_schedule_take(BatcherLaneView *view, TimestampTz now, int nrows)
{
	pg_atomic_uint64 *state = &view->queue->rate_empty_at;
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
		(void) pg_atomic_fetch_sub_u64(&view->queue->rate_empty_at,
									   (int64) (nrows / rate * USECS_PER_SEC));
}
