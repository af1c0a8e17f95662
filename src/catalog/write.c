/*
 * write.c
 *	  Writing our tables, through SPI, as the owner of the extension.
 *
 * Who may write what is decided by the callers.  Clients and workers.
 */
#include "postgres.h"

#include "catalog/catalog.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/guc.h"

/* Copy what the statement has returned into 'cxt'. */
static void
copy_result(MemoryContext cxt, BatcherWritten *written)
{
	MemoryContext old = MemoryContextSwitchTo(cxt);
	uint64		i;

	written->ntuples = SPI_processed;
	written->desc = CreateTupleDescCopy(SPI_tuptable->tupdesc);
	written->tuples = palloc_array(HeapTuple, Max(SPI_processed, 1));
	for (i = 0; i < SPI_processed; i++)
		written->tuples[i] = heap_copytuple(SPI_tuptable->vals[i]);
	MemoryContextSwitchTo(old);
}

/*
 * Run one statement as the owner of the extension, whatever the caller's
 * search_path and rights; the triggers on our tables let it pass.  Arguments
 * as those of SPI_execute_with_args.  Returns how many rows it has affected;
 * what it returns goes into 'written', in the current context, unless that is
 * NULL.
 */
uint64
batcher_catalog_write(const char *sql, int nargs, Oid *types, Datum *values,
					  const char *nulls, BatcherWritten *written)
{
	MemoryContext caller = CurrentMemoryContext;
	uint64		affected = 0;
	Oid			user;
	int			context;
	int			guc_level;
	int			result;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(batcher_catalog_find(false)->owner,
						   context | SECURITY_LOCAL_USERID_CHANGE);
	guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	batcher_definition_writing = true;
	PG_TRY();
	{
		SPI_connect();
		result = SPI_execute_with_args(sql, nargs, types, values, nulls,
									   false, 0);
		if (result < 0)
			elog(ERROR, "could not write a table of the extension: %s",
				 SPI_result_code_string(result));
		affected = SPI_processed;
		if (written)
			copy_result(caller, written);
		SPI_finish();
	}
	PG_FINALLY();
	{
		batcher_definition_writing = false;
	}
	PG_END_TRY();
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(user, context);
	return affected;
}
