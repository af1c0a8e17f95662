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
 * The most tokens that a bucket holds: what comes in a second, and at least
 * one, else nothing would ever leave.  So in any time of t seconds at most
 * rate * (t + 1) rows leave, or one more than rate * t.
 */
double
batcher_bucket_burst(double rate)
{
	return Max(rate, 1.0);
}

/* A clock that was put back must not stop the flow until it is there again. */
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

	empty_at = empty_since(empty_at, now);
	return Max(empty_at, oldest) + (int64_t) ceil(nrows / rate * SECOND_US);
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
