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

#endif							/* BATCHER_PACE_H */
