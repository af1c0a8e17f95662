/*
 * clock.c
 *	  The one source of time for everything that decides when rows leave.
 *
 * Every deadline of a lane is computed from batcher_clock_now(), so that a
 * test can see what a schedule does by replacing this file's one reading.
 * Runs in every process; nothing here can fail.
 */
#include "postgres.h"

#include "base/clock.h"
#include "utils/timestamp.h"

/*
 * The time now.
 */
TimestampTz
batcher_clock_now(void)
{
	return GetCurrentTimestamp();
}

/*
 * Milliseconds from 'now' until 'deadline', rounded up, as WaitLatch wants
 * them: 0 if the deadline has passed, -1 (wait without limit) if it is
 * BATCHER_NEVER.  At most one hour, so that a clock that jumps is noticed.
 */
long
batcher_clock_ms_until(TimestampTz deadline, TimestampTz now)
{
	TimestampTz diff;

	if (deadline == BATCHER_NEVER)
		return -1;
	if (deadline <= now)
		return 0;
	diff = deadline - now;
	if (diff > INT64CONST(3600) * USECS_PER_SEC)
		return 3600 * 1000L;
	return (long) ((diff + 999) / 1000);
}

/*
 * 't' and 'ms' milliseconds; never beyond BATCHER_NEVER.
 */
TimestampTz
batcher_clock_add_ms(TimestampTz t, double ms)
{
	double		us = ms * 1000.0;

	if (t == BATCHER_NEVER || us >= (double) (BATCHER_NEVER - t))
		return BATCHER_NEVER;
	return t + (TimestampTz) us;
}
