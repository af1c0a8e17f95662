/*
 * freed.c
 *	  Reads what was given back to its memory context, when it is loaded.
 */
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

extern void _PG_init(void);

void
_PG_init(void)
{
	volatile char *given = palloc0(100);

	pfree((char *) given);
	if (given[50] == 'x')
		elog(LOG, "the memory was given to somebody else");
}
