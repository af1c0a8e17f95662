/*
 * schedule.c
 *	  When a lane is looked at again: pure functions of what is known.
 */
#include "postgres.h"

#include <math.h>

#include "batch/batch.h"

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
