/*
 * drop.c
 *	  DROP EXTENSION beside those who use it.
 *
 * The command locks all objects of the extension, one after the other as it
 * finds them in pg_depend, the definitions before the spool and both before
 * the views.  Who enqueues has locked the spool and looks at the definitions
 * then, who looks at a view has locked that: each would meet the command in a
 * deadlock, and the command, which has waited longer, be the one to fail.  So
 * it first locks what others begin with: the views, then the spool, which
 * whoever writes our tables has locked before (batcher_spool_share).  While it
 * waits there it has nothing that they want.
 *
 * That is no order for all: a transaction can use several views, or a view
 * after it has enqueued, and CASCADE locks the tables that have a trigger of
 * ours.  Where it comes to a deadlock after all, the command gives up its locks,
 * lets the others pass, and tries again.  Client backends.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "nodes/pg_list.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/resowner.h"

/*
 * So often the command is tried.  It may never pass: the locks that others wait
 * for may be those that its transaction had before.
 */
#define DROP_ATTEMPTS	10

static ProcessUtility_hook_type prev_process_utility_hook = NULL;

/* Does this drop our extension, which is there, as one who may? */
static bool
drops_extension(Node *node)
{
	const BatcherCatalog *cat;
	DropStmt   *stmt = (DropStmt *) node;
	ListCell   *lc;

	if (!IsA(node, DropStmt) || stmt->removeType != OBJECT_EXTENSION ||
		RecoveryInProgress())
		return false;
	foreach(lc, stmt->objects)
	{
		if (strcmp(strVal(lfirst(lc)), "batcher") == 0)
			break;
	}
	if (lc == NULL)
		return false;
	cat = batcher_catalog_find(true);
	return cat && has_privs_of_role(GetUserId(), cat->owner);
}

/* The views of the extension, in the order of their OIDs. */
static List *
list_views(Oid extoid)
{
	Relation	rel = table_open(DependRelationId, AccessShareLock);
	List	   *views = NIL;
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(ExtensionRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(extoid));
	scan = systable_beginscan(rel, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend member = (Form_pg_depend) GETSTRUCT(tuple);

		if (member->deptype == DEPENDENCY_EXTENSION &&
			member->classid == RelationRelationId &&
			get_rel_relkind(member->objid) == RELKIND_VIEW)
			views = lappend_oid(views, member->objid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	list_sort(views, list_oid_cmp);
	return views;
}

/* Lock what others begin with. */
static void
lock_entrances(void)
{
	const BatcherCatalog *cat = batcher_catalog_find(true);
	Oid			spool;
	ListCell   *lc;

	if (cat == NULL)
		return;
	spool = cat->spool;
	/* the command itself begins with this one */
	LockDatabaseObject(ExtensionRelationId, cat->db.extoid, 0,
					   AccessExclusiveLock);
	foreach(lc, list_views(cat->db.extoid))
		LockRelationOid(lfirst_oid(lc), AccessExclusiveLock);
	LockRelationOid(spool, AccessExclusiveLock);
}

static void
run_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
			ProcessUtilityContext context, ParamListInfo params,
			QueryEnvironment *queryEnv, DestReceiver *dest,
			QueryCompletion *qc)
{
	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, queryString, readOnlyTree, context,
								  params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
}

static void
drop_process_utility(PlannedStmt *pstmt, const char *queryString,
					 bool readOnlyTree, ProcessUtilityContext context,
					 ParamListInfo params, QueryEnvironment *queryEnv,
					 DestReceiver *dest, QueryCompletion *qc)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error;
	volatile int attempt = 0;

	if (!drops_extension(pstmt->utilityStmt))
	{
		run_utility(pstmt, queryString, readOnlyTree, context, params,
					queryEnv, dest, qc);
		return;
	}
	do
	{
		error = NULL;
		CHECK_FOR_INTERRUPTS();
		BeginInternalSubTransaction(NULL);
		MemoryContextSwitchTo(cxt);
		PG_TRY();
		{
			lock_entrances();
			/* the tree is needed again */
			run_utility(pstmt, queryString, true, context, params, queryEnv,
						dest, qc);
			ReleaseCurrentSubTransaction();
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(cxt);
			error = CopyErrorData();
			FlushErrorState();
			RollbackAndReleaseCurrentSubTransaction();
		}
		PG_END_TRY();
		MemoryContextSwitchTo(cxt);
		CurrentResourceOwner = owner;
		if (error && (error->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED ||
					  ++attempt == DROP_ATTEMPTS))
			ReThrowError(error);
	} while (error);
}

/*
 * Install the hook.  From _PG_init, while shared_preload_libraries is
 * processed.
 */
void
batcher_drop_install(void)
{
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = drop_process_utility;
}
