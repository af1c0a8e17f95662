/*
 * unset.c
 *	  Decides by what was never given a value, when it is loaded.
 */
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

extern void _PG_init(void);

void
_PG_init(void)
{
	volatile char *given = palloc(100);

	if (given[50] == 'x')
		elog(LOG, "the memory has an x");
	pfree((char *) given);
}
