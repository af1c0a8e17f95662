/*
 * clock.h
 *	  The one source of time for everything that decides when rows leave.
 */
#ifndef BATCHER_CLOCK_H
#define BATCHER_CLOCK_H

#include "datatype/timestamp.h"

/* "No deadline": later than every time. */
#define BATCHER_NEVER	DT_NOEND

extern TimestampTz batcher_clock_now(void);
extern long batcher_clock_ms_until(TimestampTz deadline, TimestampTz now);
extern TimestampTz batcher_clock_add_ms(TimestampTz t, double ms);

#endif							/* BATCHER_CLOCK_H */
