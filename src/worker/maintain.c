/*
 * maintain.c
 *	  Keeping the spool small.
 *
 * Each durable row leaves a dead tuple in the spool.  The worker vacuums the
 * spool itself, because it knows when there is something to gain: after so
 * many deletions, and when it becomes idle.  There is no index, so one pass
 * makes the room of dead tuples usable again; the tail of the file is cut
 * only when idle and when nobody holds a lock that the cutting would wait for.
 * While an old snapshot keeps all dead tuples alive nothing is done.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "base/compat.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "worker/worker.h"

/* Deletions after which a pass is worth it, under load and when idle. */
#define DELETED_BUSY	20000
#define DELETED_IDLE	1000

/* Can the oldest of the deleted tuples be removed? */
static bool
is_useful(Oid spool_oid, TransactionId since)
{
	Relation	spool = batcher_catalog_open(spool_oid, AccessShareLock);
	TransactionId oldest = GetOldestNonRemovableTransactionId(spool);

	table_close(spool, AccessShareLock);
	return TransactionIdPrecedes(since, oldest);
}

/* Would cutting the tail have to wait for somebody? */
static bool
is_unused(Oid spool_oid)
{
	if (!ConditionalLockRelationOid(spool_oid, AccessExclusiveLock))
		return false;
	UnlockRelationOid(spool_oid, AccessExclusiveLock);
	return true;
}

static void
vacuum_spool(Oid spool_oid, bool cut)
{
	VacuumParams params;

	memset(&params, 0, sizeof(params));
	params.options = VACOPT_VACUUM | VACOPT_PROCESS_TOAST |
		VACOPT_SKIP_LOCKED | BATCHER_VACOPT_MAIN;
	params.freeze_min_age = -1;
	params.freeze_table_age = -1;
	params.multixact_freeze_min_age = -1;
	params.multixact_freeze_table_age = -1;
	params.log_min_duration = -1;
	params.index_cleanup = VACOPTVALUE_AUTO;
	params.truncate = cut ? VACOPTVALUE_ENABLED : VACOPTVALUE_DISABLED;
	params.nworkers = -1;
	batcher_vacuum_relation(list_make1(makeVacuumRelation(NULL, spool_oid,
														  NIL)), &params);
}

/*
 * Vacuum the spool if something that was deleted after 'since' can go; true if
 * so.  In transactions of its own, with memory of 'cxt'.
 */
static bool
try_vacuum(bool idle, TransactionId since, MemoryContext cxt)
{
	Oid			spool;
	bool		useful;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	spool = batcher_catalog_find(false)->spool;
	useful = is_useful(spool, since);
	if (useful)
	{
		bool		cut = idle && is_unused(spool);

		pgstat_report_activity(STATE_RUNNING, "batcher: vacuum of the spool");
		/* what vacuum() is given has to outlive its transactions */
		PortalContext = cxt;
		MemoryContextSwitchTo(cxt);
		batcher_patience_run();
		batcher_debug_point("vacuum");
		vacuum_spool(spool, cut);
	}
	CommitTransactionCommand();
	return useful;
}

/*
 * Vacuum the spool if that is worth it; 'idle': there is nothing else to do.
 * True if it was tried: then the process may have waited, and a wake-up that
 * came meanwhile is gone.  An error is logged, and the next try comes after as
 * many deletions again.  Outside of a transaction.
 */
bool
batcher_maintain_spool(bool idle)
{
	static TransactionId since = InvalidTransactionId;
	uint64		deleted = batcher_claim_deleted(false);
	MemoryContext cxt = CurrentMemoryContext;
	volatile bool done = false;

	if (deleted == 0)
		return false;
	if (!TransactionIdIsValid(since))
		since = ReadNextTransactionId();
	if (deleted < (idle ? DELETED_IDLE : DELETED_BUSY))
		return false;

	PG_TRY();
	{
		done = try_vacuum(idle, since, cxt);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(cxt);
		disable_all_timeouts(false);
		QueryCancelPending = false;
		errcontext("vacuum of the spool");
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		RESUME_INTERRUPTS();
		done = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	if (done)
	{
		(void) batcher_claim_deleted(true);
		since = InvalidTransactionId;
	}
	return done;
}
