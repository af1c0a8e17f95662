/*
 * empty.c
 *	  What a call costs that does nothing: the floor for batch_enqueue.
 *
 * test/bench/run.sh compares the two.  Client backends run it.
 */
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(empty_enqueue);

/*
 * empty_enqueue(queue, payload, key, topic, priority, immediate): always 1.
 */
Datum
empty_enqueue(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(1);
}
