/*
 * schedule.c
 *	  When a lane is looked at again: pure functions of what is known.
 */
#include "postgres.h"

#include <math.h>

#include "batch/batch.h"

#define RETRY_DELAY		500.0	/* ms */
#define RETRY_BACKOFF	2.0
#define RETRY_MAX_DELAY	60000.0 /* ms */
#define RETRY_JITTER	0.2

/*
 * Milliseconds to wait after the 'failures'-th failed flush in a row: it
 * doubles from half a second up to a minute.  'random', from 0 to 1, spreads
 * it by a fifth to either side, so that queues that failed together do not
 * come back together.
 */
double
batcher_schedule_retry_delay(int failures, double random)
{
	double		delay;

	Assert(failures > 0);
	delay = RETRY_DELAY * pow(RETRY_BACKOFF, Min(failures - 1, 30));
	delay = Min(delay, RETRY_MAX_DELAY);
	return delay * (1.0 - RETRY_JITTER + 2.0 * RETRY_JITTER * random);
}
