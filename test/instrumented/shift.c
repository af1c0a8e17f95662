/*
 * shift.c
 *	  Shifts further than an integer is wide, when it is loaded.
 */
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

extern void _PG_init(void);

void
_PG_init(void)
{
	volatile int bits = 33;

	if ((1 << bits) == 0)
		elog(LOG, "nothing is left");
}
