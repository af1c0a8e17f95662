/*
 * pace.h
 *	  How much is flushed, and when: pure functions of numbers.
 *
 * They know neither the server nor each other's callers, so that a test can
 * run them for simulated hours; see test/unit.  Times are in microseconds of
 * whatever clock the caller has, durations in milliseconds.
 */
#ifndef BATCHER_PACE_H
#define BATCHER_PACE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * A token bucket for a limit of rows a second.  All of its state is the time
 * at which it was empty, so that several processes can share it as one atomic;
 * 0: it is full.
 */
extern double batcher_bucket_burst(double rate);
extern double batcher_bucket_level(int64_t empty_at, int64_t now, double rate);
extern int64_t batcher_bucket_taken(int64_t empty_at, int64_t now,
									double rate, int nrows);
extern int64_t batcher_bucket_ready(int64_t empty_at, int64_t now,
									double rate, double nrows);

extern double batcher_pace_retry_delay(double first, double factor,
									   double longest, int failures,
									   double random);

/* What the size of batches and the window are to keep to. */
typedef struct BatcherPaceBounds
{
	int			min_size;		/* rows */
	int			max_size;
	int			start_size;
	double		factor;			/* by which the size changes */
	double		latency;		/* ms, the most that a flush should take */
	double		errors;			/* the largest share of rows that should fail */
	double		throughput;		/* rows a second that are wanted; 0: any */
	double		window;			/* ms, the longest */
} BatcherPaceBounds;

/* Why the size is what it is. */
typedef enum BatcherPaceReason
{
	BATCHER_PACE_START,
	BATCHER_PACE_BACKLOG,		/* up */
	BATCHER_PACE_LATENCY,		/* down, as are those that follow */
	BATCHER_PACE_ERRORS,
	BATCHER_PACE_THROUGHPUT
} BatcherPaceReason;

/*
 * What adapts.  'size' and 'window' are what it is for, 'reason', 'old_size'
 * and 'value' tell of the last change of the size; the rest is what was
 * learnt.
 */
typedef struct BatcherPace
{
	int			size;
	double		window;
	BatcherPaceReason reason;
	int			old_size;
	double		value;			/* rows that wait; ms, or share of rows that
								 * failed, of the last flush; rows a second */
	BatcherPaceBounds bounds;	/* since when it is what it is */
	double		latency;		/* averages, as shares of what is wanted */
	double		errors;
	double		throughput;		/* of full batches of this size, rows a
								 * second; 0: not known */
	int			nfull;			/* how many those were */
	double		smaller;		/* the same of the size before, when it was
								 * smaller; 0: it was not */
	int			ceiling;		/* a size that was worse; 0: none */
	int			nkept;			/* flushes that it is kept for */
	double		arrivals;		/* rows a second; less than 0: not known */
	int64_t		counted_at;		/* up to when; 0: not yet */
	int64_t		uncounted;		/* rows that came in no time since then */
} BatcherPace;

/* A flush that has ended. */
typedef struct BatcherPaceFlush
{
	int			nrows;
	int			nfailed;		/* of them */
	double		ms;
	int64_t		waiting;		/* rows that wait now */
} BatcherPaceFlush;

extern bool batcher_pace_keeps(const BatcherPace *pace,
							   const BatcherPaceBounds *bounds);
extern void batcher_pace_start(BatcherPace *pace,
							   const BatcherPaceBounds *bounds, int size);
extern void batcher_pace_arrived(BatcherPace *pace, int64_t now,
								 int64_t nrows);
extern bool batcher_pace_flushed(BatcherPace *pace,
								 const BatcherPaceFlush *flush);

#endif							/* BATCHER_PACE_H */
