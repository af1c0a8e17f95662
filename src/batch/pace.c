/*
 * pace.c
 *	  How much is flushed, and when: pure functions of numbers.
 *
 * No function of the server is called here, and there is no state but what
 * the caller keeps: see pace.h.
 */
#include "postgres.h"

#include <math.h>

#include "batch/pace.h"

#define SECOND_US		1e6

/* What rounding may have taken from a level that is whole. */
#define LEVEL_SLACK		1e-6

/*
 * Averages move by a quarter towards what is new, and that counts as at most
 * twice what is wanted.  So a single outlier, however large, does not take an
 * average beyond what is wanted that was at two thirds of it.
 */
#define AVERAGE_WEIGHT	0.25
#define OUTLIER			2.0

/* The size grows only while so much of the errors wanted at most is used. */
#define FEW_ERRORS		0.5

/* Full batches of a size that tell its throughput. */
#define ENOUGH_BATCHES	4

/* What is so much less than another throughput is worse than that. */
#define WORSE			0.95

/* For so many flushes no size is tried again that was worse. */
#define KEEP_CEILING	100

/* The arrival rate is an average over so many windows, in these limits (ms). */
#define RATE_WINDOWS	2.0
#define MIN_RATE_MS		20.0
#define MAX_RATE_MS		60000.0

/* A full window is worth while for so many rows that are to come in it. */
#define WORTH_WAITING	3.0

/* A batch should be full after its window; so much later it is not awaited. */
#define LATE			1.25

/* The share by which a delay differs from what it should be, at most. */
#define RETRY_JITTER	0.2

/*
 * The most tokens that a bucket holds: what comes in a second, and at least
 * one, else nothing would ever leave.  So in any time of t seconds at most
 * rate * (t + 1) rows leave, or one more than rate * t.
 */
double
batcher_bucket_burst(double rate)
{
	return Max(rate, 1.0);
}

/*
 * Not later than now: a clock that was put back must not stop the flow until
 * it is there again.
 */
static int64_t
empty_since(int64_t empty_at, int64_t now)
{
	return Min(empty_at, now);
}

/*
 * How many tokens the bucket holds at 'now'.
 */
double
batcher_bucket_level(int64_t empty_at, int64_t now, double rate)
{
	double		level = (now - empty_since(empty_at, now)) * rate / SECOND_US;

	return Min(level + LEVEL_SLACK, batcher_bucket_burst(rate));
}

/*
 * The state after 'nrows' tokens were taken, which the bucket holds.
 */
int64_t
batcher_bucket_taken(int64_t empty_at, int64_t now, double rate, int nrows)
{
	double		full_us = batcher_bucket_burst(rate) / rate * SECOND_US;
	int64_t		oldest = now - (int64_t) full_us;

	empty_at = Max(empty_since(empty_at, now), oldest) +
		(int64_t) ceil(nrows / rate * SECOND_US);
	return empty_since(empty_at, now);
}

/*
 * When the bucket will hold 'nrows' tokens, not more than it can hold.
 */
int64_t
batcher_bucket_ready(int64_t empty_at, int64_t now, double rate, double nrows)
{
	return empty_since(empty_at, now) +
		(int64_t) ceil(nrows / rate * SECOND_US);
}

/*
 * Milliseconds to wait after the 'failures'-th failure in a row: 'first',
 * growing by 'factor' up to 'longest'.  'random', from 0 to 1, spreads it by a
 * fifth to either side, so that what failed together does not come back
 * together; what that takes beyond the longest is as much below it.
 */
double
batcher_pace_retry_delay(double first, double factor, double longest,
						 int failures, double random)
{
	double		delay;

	Assert(failures > 0);
	delay = Min(first * pow(factor, failures - 1), longest);
	delay *= 1.0 - RETRY_JITTER + 2.0 * RETRY_JITTER * random;
	return delay > longest ? longest - (delay - longest) : delay;
}

/*
 * The window.  As long as the bounds allow where that gathers rows, but no
 * longer than it takes to fill a batch, so that rows do not wait for others
 * when the stream has ended; and next to nothing where hardly a row is to come
 * that would go with the first.  In between it grows with the rows to come.
 */
static void
set_window(BatcherPace *pace)
{
	double		longest = pace->bounds.window;
	double		expected = pace->arrivals * longest / 1000.0;

	if (pace->arrivals < 0)
		pace->window = longest;
	else if (expected >= pace->size * LATE)
		pace->window = pace->size * LATE / pace->arrivals * 1000.0;
	else
		pace->window = longest *
			Max(0.0, Min(1.0, (expected - 1.0) / (WORTH_WAITING - 1.0)));
}

/* The size is another one now: what was learnt of the old one is scaled. */
static void
set_size(BatcherPace *pace, int size, BatcherPaceReason reason, double value)
{
	bool		grown = size > pace->size;

	pace->latency *= (double) size / pace->size;
	pace->smaller = grown ? pace->throughput : 0;
	pace->throughput = 0;
	pace->nfull = 0;
	pace->old_size = pace->size;
	pace->size = size;
	pace->reason = reason;
	pace->value = value;
	set_window(pace);
}

/*
 * Are these the bounds that it keeps to?
 */
bool
batcher_pace_keeps(const BatcherPace *pace, const BatcherPaceBounds *bounds)
{
	const BatcherPaceBounds *kept = &pace->bounds;

	return kept->min_size == bounds->min_size &&
		kept->max_size == bounds->max_size &&
		kept->start_size == bounds->start_size &&
		kept->factor == bounds->factor &&
		kept->latency == bounds->latency &&
		kept->errors == bounds->errors &&
		kept->throughput == bounds->throughput &&
		kept->window == bounds->window;
}

/*
 * Begin to keep to these bounds, with the size that they say, or, if 'size' is
 * not 0, as close to that as they allow.
 */
void
batcher_pace_start(BatcherPace *pace, const BatcherPaceBounds *bounds, int size)
{
	if (size == 0)
		size = bounds->start_size;
	memset(pace, 0, sizeof(*pace));
	pace->bounds = *bounds;
	pace->size = Max(bounds->min_size, Min(size, bounds->max_size));
	pace->old_size = pace->size;
	pace->reason = BATCHER_PACE_START;
	pace->arrivals = -1;
	set_window(pace);
}

/*
 * 'nrows' rows have come since the last call.  The forecast of the arrival
 * rate is an average in which what was long ago counts exponentially less.
 */
void
batcher_pace_arrived(BatcherPace *pace, int64_t now, int64_t nrows)
{
	double		over = pace->bounds.window * RATE_WINDOWS;
	double		ms = (now - pace->counted_at) / 1000.0;

	if (pace->counted_at == 0 || ms < 0)
	{
		/* since when these have come is not known */
		pace->counted_at = now;
		return;
	}
	pace->uncounted += nrows;
	if (ms == 0)
		return;
	over = Max(MIN_RATE_MS, Min(over, MAX_RATE_MS));
	pace->arrivals = Max(pace->arrivals, 0);
	pace->arrivals += (1.0 - exp(-ms / over)) *
		(pace->uncounted * 1000.0 / ms - pace->arrivals);
	pace->counted_at = now;
	pace->uncounted = 0;
	set_window(pace);
}

/* Move an average of shares towards a new one. */
static void
average(double *mean, double share)
{
	*mean += AVERAGE_WEIGHT * (Min(share, OUTLIER) - *mean);
}

/* Learn from a flush. */
static void
learn(BatcherPace *pace, const BatcherPaceFlush *flush)
{
	double		errors = (double) flush->nfailed / flush->nrows;

	average(&pace->latency, flush->ms / pace->bounds.latency);
	if (pace->bounds.errors > 0)
		average(&pace->errors, errors / pace->bounds.errors);
	else
		average(&pace->errors, errors > 0 ? OUTLIER : 0);
	if (flush->nrows >= pace->size && flush->ms > 0)
	{
		double		throughput = flush->nrows * 1000.0 / flush->ms;

		pace->nfull++;
		pace->throughput += (throughput - pace->throughput) /
			Min(pace->nfull, ENOUGH_BATCHES);
	}
	if (pace->ceiling > 0 && --pace->nkept == 0)
		pace->ceiling = 0;
}

/* Is the throughput less than wanted, and worse than it was before? */
static bool
larger_was_worse(const BatcherPace *pace)
{
	return pace->bounds.throughput > 0 && pace->smaller > 0 &&
		pace->nfull >= ENOUGH_BATCHES &&
		pace->throughput < pace->bounds.throughput &&
		pace->throughput < pace->smaller * WORSE;
}

/*
 * A flush has ended.  True if the size is another one after it: smaller if
 * too many rows fail, flushes take too long, or a larger size has not brought
 * the throughput that is wanted; larger if whole batches wait, and nothing
 * says that a larger one would be too much.
 */
bool
batcher_pace_flushed(BatcherPace *pace, const BatcherPaceFlush *flush)
{
	const BatcherPaceBounds *bounds = &pace->bounds;
	int			step = (int) Max(1.0, rint(pace->size * bounds->factor));
	int			smaller = Max(pace->size - step, bounds->min_size);
	int			larger = Min(pace->size + step, bounds->max_size);

	if (flush->nrows <= 0)
		return false;
	learn(pace, flush);
	if (pace->errors > 1 && smaller < pace->size)
		set_size(pace, smaller, BATCHER_PACE_ERRORS,
				 (double) flush->nfailed / flush->nrows);
	else if (pace->latency > 1 && smaller < pace->size)
		set_size(pace, smaller, BATCHER_PACE_LATENCY, flush->ms);
	else if (larger_was_worse(pace) && smaller < pace->size)
	{
		pace->ceiling = pace->size;
		pace->nkept = KEEP_CEILING;
		set_size(pace, smaller, BATCHER_PACE_THROUGHPUT, pace->throughput);
	}
	else if (larger > pace->size &&
			 flush->nrows >= pace->size && flush->waiting >= pace->size &&
			 pace->errors <= FEW_ERRORS &&
			 pace->latency * larger / pace->size <= 1 &&
			 (bounds->throughput == 0 || pace->nfull >= ENOUGH_BATCHES) &&
			 (pace->ceiling == 0 || larger < pace->ceiling))
		set_size(pace, larger, BATCHER_PACE_BACKLOG, (double) flush->waiting);
	else
		return false;
	return true;
}
