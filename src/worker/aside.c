/*
 * aside.c
 *	  Workers step aside for commands that need a database to themselves.
 *
 * DROP DATABASE, ALTER DATABASE ... RENAME and SET TABLESPACE, and CREATE
 * DATABASE ... TEMPLATE refuse to run while another process is connected to
 * the database, and a worker stays connected.  So the command's backend marks
 * the database in shared memory, asks its workers to leave, and waits for
 * that before the command begins.  No worker of a marked database is started
 * or takes a lane.
 *
 * The mark stays until the transaction, or the subtransaction, of the command
 * ends: until then its locks would only keep a new worker waiting, and a
 * worker of a database that is gone would fail.  The callbacks at that end
 * also cover a command that fails and a backend that dies, which aborts its
 * transaction first.
 *
 * Who is not allowed to run the command does not disturb the workers.  A
 * worker that does not leave in time is left alone: the command then says
 * itself that the database is in use.  Client backends.
 */
#include "postgres.h"

#include <signal.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "base/clock.h"
#include "base/compat.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/syscache.h"
#include "worker/worker.h"

/* How long to wait for the workers, and when to interrupt a flush again. */
#define ASIDE_TIMEOUT_MS	10000
#define ASIDE_REPEAT_MS		1000

/* A mark of this backend, and the subtransaction that it goes with. */
typedef struct HeldMark
{
	Oid			dboid;
	SubTransactionId subid;
} HeldMark;

static HeldMark held[BATCHER_MAX_ASIDE];
static int	nheld = 0;

/* The launcher is to look at the list of databases if this commits. */
static bool scan_at_commit = false;

static ProcessUtility_hook_type prev_process_utility_hook = NULL;

/* Does the backend that made this mark still exist? */
static bool
mark_is_alive(const BatcherSharedAside *mark)
{
	return mark->pid == MyProcPid || kill(mark->pid, 0) == 0 ||
		errno != ESRCH;
}

/*
 * Whether the workers of a database are to stay away.  The caller holds the
 * control lock.
 */
bool
batcher_aside_marked(Oid dboid)
{
	int			i;

	Assert(LWLockHeldByMe(&batcher_shared->lock));
	Assert(OidIsValid(dboid));

	for (i = 0; i < BATCHER_MAX_ASIDE; i++)
	{
		BatcherSharedAside *mark = &batcher_shared->aside[i];

		if (mark->dboid == dboid && mark_is_alive(mark))
			return true;
	}
	return false;
}

/*
 * The databases whose workers are to stay away, into 'dboids', which has room
 * for BATCHER_MAX_ASIDE; returns how many.
 */
int
batcher_aside_list(Oid *dboids)
{
	int			n = 0;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_SHARED);
	for (i = 0; i < BATCHER_MAX_ASIDE; i++)
	{
		BatcherSharedAside *mark = &batcher_shared->aside[i];

		if (OidIsValid(mark->dboid) && mark_is_alive(mark))
			dboids[n++] = mark->dboid;
	}
	LWLockRelease(&batcher_shared->lock);
	return n;
}

/*
 * Mark a database until the current subtransaction ends.  If so many commands
 * are under way that there is no place for another mark, the workers are
 * asked all the same, and with luck none is started before the command is
 * through.
 */
static void
mark_database(Oid dboid)
{
	int			i;

	for (i = 0; i < nheld; i++)
	{
		if (held[i].dboid == dboid)
			return;
	}
	if (nheld == BATCHER_MAX_ASIDE)
		return;

	/* first what undoes it, then the mark */
	held[nheld].dboid = dboid;
	held[nheld].subid = GetCurrentSubTransactionId();
	nheld++;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	for (i = 0; i < BATCHER_MAX_ASIDE; i++)
	{
		BatcherSharedAside *mark = &batcher_shared->aside[i];

		if (OidIsValid(mark->dboid) && mark_is_alive(mark))
			continue;
		mark->dboid = dboid;
		mark->pid = MyProcPid;
		break;
	}
	LWLockRelease(&batcher_shared->lock);
}

/* Take back a mark of this backend, or, with InvalidOid, all. */
static void
unmark_database(Oid dboid)
{
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	for (i = 0; i < BATCHER_MAX_ASIDE; i++)
	{
		BatcherSharedAside *mark = &batcher_shared->aside[i];

		if (mark->pid == MyProcPid &&
			(mark->dboid == dboid || !OidIsValid(dboid)))
		{
			mark->dboid = InvalidOid;
			mark->pid = 0;
		}
	}
	LWLockRelease(&batcher_shared->lock);
}

/*
 * Ask the workers of a database to leave; with 'interrupt', also those that
 * are in a flush, which is repeated later.  Returns how many are still there.
 */
static int
ask_workers(Oid dboid, bool interrupt)
{
	uint32		procs[BATCHER_MAX_WORKERS];
	pid_t		pids[BATCHER_MAX_WORKERS];
	int			n = 0;
	int			i;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	for (i = 0; i < BATCHER_MAX_WORKERS; i++)
	{
		BatcherSharedWorker *worker = &batcher_shared->workers[i];

		if (worker->state == BATCHER_WORKER_FREE ||
			worker->db.dboid != dboid)
			continue;
		pg_atomic_write_u32(&worker->leave, 1);
		procs[n] = pg_atomic_read_u32(&worker->proc);
		pids[n] = worker->state == BATCHER_WORKER_RUNNING &&
			worker->queue_id != 0 ? worker->pid : 0;
		n++;
	}
	LWLockRelease(&batcher_shared->lock);

	for (i = 0; i < n; i++)
	{
		batcher_shmem_wake_proc(procs[i]);
		if (interrupt && pids[i] != 0)
			(void) kill(pids[i], SIGINT);
	}
	return n;
}

/*
 * Mark a database and wait until no worker is in it, or the time is over.
 */
static void
step_aside(Oid dboid)
{
	static uint32 wait_event = 0;
	TimestampTz now = batcher_clock_now();
	TimestampTz deadline = batcher_clock_add_ms(now, ASIDE_TIMEOUT_MS);
	TimestampTz interrupt_at = now;

	if (wait_event == 0)
		wait_event = batcher_wait_event("BatcherAside");

	mark_database(dboid);
	ConditionVariablePrepareToSleep(&batcher_shared->worker_cv);
	for (;;)
	{
		bool		interrupt = now >= interrupt_at;
		long		ms;

		if (interrupt)
			interrupt_at = batcher_clock_add_ms(now, ASIDE_REPEAT_MS);
		if (ask_workers(dboid, interrupt) == 0 || now >= deadline)
			break;
		ms = batcher_clock_ms_until(Min(interrupt_at, deadline), now);
		(void) ConditionVariableTimedSleep(&batcher_shared->worker_cv, ms,
										   wait_event);
		now = batcher_clock_now();
	}
	ConditionVariableCancelSleep();
}

/* May the current role create databases? */
static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result = false;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

/* May whoever may create databases copy this one? */
static bool
is_template(Oid dboid)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	bool		result = false;

	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return result;
}

/* The string given for an option, or NULL. */
static char *
option_string(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, name) == 0 && option->arg)
			return defGetString(option);
	}
	return NULL;
}

/*
 * The database that a command needs to itself, or InvalidOid if it needs none
 * or the current role may not run it.
 */
static Oid
database_needed(Node *stmt)
{
	const char *name = NULL;
	bool		copied = false;
	bool		by_creator = false;
	Oid			dboid;

	if (IsA(stmt, DropdbStmt))
		name = ((DropdbStmt *) stmt)->dbname;
	else if (IsA(stmt, RenameStmt))
	{
		if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
			name = ((RenameStmt *) stmt)->subname;
		by_creator = true;
	}
	else if (IsA(stmt, AlterDatabaseStmt))
	{
		if (option_string(((AlterDatabaseStmt *) stmt)->options, "tablespace"))
			name = ((AlterDatabaseStmt *) stmt)->dbname;
	}
	else if (IsA(stmt, CreatedbStmt))
	{
		name = option_string(((CreatedbStmt *) stmt)->options, "template");
		if (name == NULL)
			name = "template1";
		copied = true;
		by_creator = true;
	}

	if (name == NULL || RecoveryInProgress())
		return InvalidOid;
	dboid = get_database_oid(name, true);
	if (!OidIsValid(dboid))
		return InvalidOid;
	if (dboid == MyDatabaseId && !copied)
		return InvalidOid;		/* it fails anyway */
	if (by_creator && !may_create_databases())
		return InvalidOid;
	if (!(copied && is_template(dboid)) &&
		!batcher_database_owner(dboid, GetUserId()))
		return InvalidOid;
	return dboid;
}

/* Does a command change which databases can have a worker? */
static bool
changes_databases(Node *stmt)
{
	return IsA(stmt, CreatedbStmt) || IsA(stmt, DropdbStmt) ||
		IsA(stmt, AlterDatabaseStmt);
}

static void
aside_process_utility(PlannedStmt *pstmt, const char *queryString,
					  bool readOnlyTree, ProcessUtilityContext context,
					  ParamListInfo params, QueryEnvironment *queryEnv,
					  DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	bool		scan = false;

	if (batcher_shared && IsUnderPostmaster)
	{
		Oid			dboid = database_needed(stmt);

		if (OidIsValid(dboid))
			step_aside(dboid);
		scan = changes_databases(stmt);
	}

	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, queryString, readOnlyTree, context,
								  params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);

	/* the launcher would not see the change yet: it is told at the commit */
	if (scan)
		scan_at_commit = true;
}

/*
 * The end of a transaction: first what the launcher is to look at, then the
 * marks, so that it never starts a worker for a database that it could know
 * to be gone.
 */
static void
aside_xact_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	if (nheld == 0 && !scan_at_commit)
		return;

	if (scan_at_commit && event == XACT_EVENT_COMMIT)
		(void) pg_atomic_fetch_or_u32(&batcher_shared->scan_wanted,
									  BATCHER_SCAN_LIST);
	if (nheld > 0)
		unmark_database(InvalidOid);
	nheld = 0;
	scan_at_commit = false;
	batcher_shmem_wake_launcher();
}

/* The end of a subtransaction: its marks go to its parent, or away. */
static void
aside_subxact_callback(SubXactEvent event, SubTransactionId my_subid,
					   SubTransactionId parent_subid, void *arg)
{
	bool		unmarked = false;
	int			i;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	for (i = nheld - 1; i >= 0; i--)
	{
		if (held[i].subid != my_subid)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			held[i].subid = parent_subid;
		else
		{
			unmark_database(held[i].dboid);
			held[i] = held[--nheld];
			unmarked = true;
		}
	}
	if (unmarked)
		batcher_shmem_wake_launcher();
}

/*
 * Install the hook and the callbacks.  From _PG_init, while
 * shared_preload_libraries is processed.
 */
void
batcher_aside_install(void)
{
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = aside_process_utility;
	RegisterXactCallback(aside_xact_callback, NULL);
	RegisterSubXactCallback(aside_subxact_callback, NULL);
}
