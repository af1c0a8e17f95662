/*
 * executor.c
 *	  Running a queue's statement over the relation "batch".
 *
 * The rows go into a tuplestore that is an ephemeral named relation for SPI,
 * as transition tables are for triggers, and the statement is executed once.
 * It runs as the queue's owner, in a security-restricted operation, with the
 * search_path that was saved with it, under flush_timeout; constraints and
 * their triggers were made immediate before (flush.c).
 *
 * A saved plan over such a relation is never made anew because the relation
 * changed, nor estimated again by its size; so the plans are ours to keep: one
 * for each class of sizes, thrown away when the definition, the type of the
 * rows or the target changes.  They are prepared as the owner, because planning
 * executes immutable functions.
 *
 * A queue with a target has a statement for each set of columns that rows name
 * (insert.c); "batch" has the rows of one after the other.
 *
 * A flush that goes on ten seconds after its timeout, because its code catches
 * the cancel, ends with its process.  The worker; the check, clients.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "base/clock.h"
#include "base/debug.h"
#include "batch/batch.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "executor/tstoreReceiver.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "storage/lmgr.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#define WHAT			"flush statement"
#define SIZE_CLASSES	4
#define MAX_STATEMENTS	64		/* whose plans are kept */
#define OVERTIME		10000	/* ms after flush_timeout */
#define STATEMENT_MAX	(16 * 1024 * 1024)	/* bytes */

/* The plans of a statement. */
typedef struct Statement
{
	Bitmapset  *columns;		/* that it inserts, of a target's */
	SPIPlanPtr	plans[SIZE_CLASSES];
} Statement;

struct BatcherExecutor
{
	MemoryContext cxt;			/* of this, and above that of the row type */
	BatcherRowType *row_type;	/* NULL: the rows are not typed */
	char	   *target_name;	/* in the statements; NULL: no target */
	List	   *statements;
};

/* Where the statement is; whoever catches an error resets it. */
BatcherPhase batcher_executor_phase = BATCHER_PHASE_OUTSIDE;

static TimeoutId overtime_timeout = MAX_TIMEOUTS;
static volatile sig_atomic_t overtime = false;

/* What is to be restored after the owner's code. */
typedef struct Identity
{
	Oid			user;
	int			context;
	int			guc_level;
} Identity;

/*
 * Make the relation "batch" known to SPI.  Right after SPI_connect, because
 * what is made here must live until SPI_finish.  Its rows come later.
 */
static EphemeralNamedRelation
register_batch(TupleDesc desc, int nrows)
{
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));
	int			result;

	enr->md.name = "batch";
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = desc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = nrows;
	result = SPI_register_relation(enr);
	if (result != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register the relation \"batch\": %s",
			 SPI_result_code_string(result));
	return enr;
}

/* Become the owner, with the saved search_path. */
static void
assume_identity(const BatcherQueueDef *def, Identity *before)
{
	GetUserIdAndSecContext(&before->user, &before->context);
	SetUserIdAndSecContext(def->owner,
						   before->context | SECURITY_RESTRICTED_OPERATION);
	before->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", def->search_path,
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
}

static void
restore_identity(const Identity *before)
{
	AtEOXact_GUC(false, before->guc_level);
	SetUserIdAndSecContext(before->user, before->context);
}

/*
 * The parse tree of a statement, which is called 'what'.  Refused are what is
 * not one statement, and what is so long that the parser might want more
 * memory for one of its pieces than can be had, which is an internal error.
 */
Node *
batcher_executor_parse(const char *sql, const char *what)
{
	List	   *parsed;

	if (strlen(sql) > STATEMENT_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s of %zu bytes is too long", what, strlen(sql)),
				 errdetail("A statement has at most %d bytes.",
						   STATEMENT_MAX)));
	parsed = raw_parser(sql, RAW_PARSE_DEFAULT);
	if (parsed == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("%s is empty", what)));
	if (list_length(parsed) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("%s must be one statement, not %d", what,
						list_length(parsed))));
	return linitial_node(RawStmt, parsed)->stmt;
}

/* Refuse what does not read and write rows. */
static void
check_statement_kind(const char *sql)
{
	Node	   *statement = batcher_executor_parse(sql, WHAT);

	switch (nodeTag(statement))
	{
		case T_InsertStmt:
		case T_UpdateStmt:
		case T_DeleteStmt:
		case T_MergeStmt:
			return;
		case T_SelectStmt:
			if (((SelectStmt *) statement)->intoClause == NULL)
				return;
			break;
		default:
			break;
	}
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("flush statement must be INSERT, UPDATE, DELETE, MERGE or SELECT")));
}

/*
 * Context of errors in the statement when it is checked.  A position that
 * the parser gave is one in the statement, not in what the client sent.
 */
static void
check_error_context(void *arg)
{
	const BatcherQueueDef *def = arg;
	int			position = geterrposition();

	if (def->flush_sql == NULL)
	{
		if (def->target_name)
			errcontext("insert of queue \"%s\" into its target", def->name);
		return;
	}
	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(def->flush_sql);
	}
	errcontext("flush statement of queue \"%s\"", def->name);
}

/*
 * Refuse a statement over what only the session sees that gave it.
 */
void
batcher_executor_refuse_temporary(struct _SPI_plan *plan, const char *what)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));
	ListCell   *lc;

	foreach(lc, source->relationOids)
	{
		if (get_rel_persistence(lfirst_oid(lc)) == RELPERSISTENCE_TEMP)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("%s must not use temporary relation \"%s\"", what,
							get_rel_name(lfirst_oid(lc)))));
	}
}

/*
 * A target or a row type is gone; 'name' is one that it had: another object may
 * have that by now.
 */
static void
report_dropped(const BatcherQueueDef *def, const char *what, const char *name,
			   int sqlstate)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("%s of queue \"%s\" was dropped", what, def->name),
			 errdetail("Its name was %s.", name),
			 errhint("Use batch_alter_queue to give the queue another one.")));
}

/*
 * What the rows of a typed queue are now.  The target is locked, so that it
 * stays what it is until the end of the transaction; its name goes into
 * 'target_name'.  'known' as in batcher_row_type_refresh.  Errors: 42P01,
 * 42704.
 */
static BatcherRowType *
look_at_types(const BatcherQueueDef *def, BatcherRowType *known,
			  char **target_name)
{
	BatcherRowType *row_type;

	*target_name = NULL;
	if (!batcher_definition_typed(def))
		return NULL;
	if (def->target_name)
	{
		if (OidIsValid(def->target))
			LockRelationOid(def->target, RowExclusiveLock);
		*target_name = batcher_named_relation(def->target);
		if (*target_name == NULL)
			report_dropped(def, "target", def->target_name,
						   ERRCODE_UNDEFINED_TABLE);
	}
	row_type = batcher_row_type_refresh(known, batcher_named_row_type(def),
										def->target_name ? def->target :
										InvalidOid, false);
	if (row_type == NULL)
		report_dropped(def, "row type", def->row_type_name,
					   ERRCODE_UNDEFINED_OBJECT);
	return row_type;
}

/*
 * Plan a prepared statement for the errors that only this finds.
 */
void
batcher_executor_plan(struct _SPI_plan *plan)
{
	CachedPlan *cached = SPI_plan_get_cached_plan(plan);

	if (cached)
		ReleaseCachedPlan(cached, NULL);	/* an unsaved one is not owned */
}

/* Check a statement of a queue; the columns that it returns, or NULL. */
static TupleDesc
check_statement(const char *sql, bool planning)
{
	CachedPlanSource *source;
	SPIPlanPtr	plan;

	plan = SPI_prepare(sql, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "could not prepare the statement: %s",
			 SPI_result_code_string(SPI_result));
	batcher_executor_refuse_temporary(plan, WHAT);
	if (planning)
		batcher_executor_plan(plan);
	source = linitial(SPI_plan_get_plan_sources(plan));
	return source->resultDesc;
}

/*
 * Check the SQL of a definition as the owner, and the type of its rows; raises
 * the error that there is.
 *
 * It is planned too if the owner is the caller.  For another one, such as a
 * superuser, it is not: planning executes immutable functions, and the owner's
 * could take or release advisory locks of the caller's session.  What planning
 * would have found, the flush finds.
 */
void
batcher_executor_check(const BatcherQueueDef *def)
{
	const char *sql = def->flush_sql;
	bool		planning = GetUserId() == def->owner;
	TupleDesc	result_desc = NULL;
	ErrorContextCallback context;
	BatcherRowType *row_type;
	char	   *target_name;
	Identity	before;
	TupleDesc	desc;

	context.callback = check_error_context;
	context.arg = unconstify(BatcherQueueDef *, def);
	context.previous = error_context_stack;
	error_context_stack = &context;
	if (sql)
		check_statement_kind(sql);
	row_type = look_at_types(def, NULL, &target_name);
	if (row_type)				/* whatever fails */
		MemoryContextSetParent(row_type->cxt, CurrentMemoryContext);
	desc = batcher_relation_desc(row_type);
	if (target_name)
		sql = batcher_insert_sql(def, target_name, row_type,
								 batcher_insert_all_columns(def, target_name,
															row_type));
	if (sql || def->options.notify_sql)
	{
		SPI_connect();
		(void) register_batch(desc, 1);
		assume_identity(def, &before);
		if (sql)
			result_desc = check_statement(sql, planning);
		error_context_stack = context.previous;
		if (def->options.notify_sql)
			batcher_notify_sql_check(def, result_desc, planning);
		restore_identity(&before);
		SPI_finish();
	}
	error_context_stack = context.previous;
}

/* 0 for a few rows, then a class for each factor of 16. */
static int
size_class(int nrows)
{
	int			class = 0;

	while (nrows >= 16 && class < SIZE_CLASSES - 1)
	{
		nrows /= 16;
		class++;
	}
	return class;
}

static void
drop_statements(BatcherExecutor *executor)
{
	ListCell   *lc;
	int			i;

	foreach(lc, executor->statements)
	{
		Statement  *statement = lfirst(lc);

		for (i = 0; i < SIZE_CLASSES; i++)
		{
			if (statement->plans[i])
				(void) SPI_freeplan(statement->plans[i]);
		}
		bms_free(statement->columns);
	}
	list_free_deep(executor->statements);
	executor->statements = NIL;
}

/* The lane's executor, whose plans are of the types and target of today. */
static BatcherExecutor *
get_executor(BatcherLaneView *view)
{
	BatcherExecutor *executor = view->executor;
	BatcherRowType *known;
	char	   *target_name;

	if (executor == NULL)
	{
		MemoryContext cxt = AllocSetContextCreate(TopMemoryContext,
												  "batcher executor",
												  ALLOCSET_SMALL_SIZES);

		executor = MemoryContextAllocZero(cxt, sizeof(BatcherExecutor));
		executor->cxt = cxt;
		view->executor = executor;
	}
	known = executor->row_type;
	executor->row_type = NULL;	/* it may be freed, and what follows fail */
	executor->row_type = look_at_types(view->def, known, &target_name);
	if (executor->row_type)		/* so it goes with this, whatever fails */
		MemoryContextSetParent(executor->row_type->cxt, executor->cxt);
	if (executor->row_type != known ||
		(target_name && executor->target_name &&
		 strcmp(target_name, executor->target_name) != 0))
	{
		drop_statements(executor);
		batcher_notify_sql_reset(view);
	}
	if (target_name && executor->statements == NIL)
	{
		if (executor->target_name)
			pfree(executor->target_name);
		executor->target_name = MemoryContextStrdup(executor->cxt, target_name);
	}
	return executor;
}

/* The statement that inserts these columns, or, of no target, the only one. */
static Statement *
get_statement(BatcherExecutor *executor, const Bitmapset *columns)
{
	MemoryContext old;
	Statement  *statement;
	ListCell   *lc;

	foreach(lc, executor->statements)
	{
		statement = lfirst(lc);
		if (bms_equal(statement->columns, columns))
			return statement;
	}
	if (list_length(executor->statements) >= MAX_STATEMENTS)
		drop_statements(executor);
	old = MemoryContextSwitchTo(executor->cxt);
	statement = palloc0(sizeof(Statement));
	statement->columns = bms_copy(columns);
	executor->statements = lappend(executor->statements, statement);
	MemoryContextSwitchTo(old);
	return statement;
}

/* The plan for a batch of this size, prepared if need be. */
static SPIPlanPtr
get_plan(BatcherLaneView *view, const Bitmapset *columns, int nrows)
{
	const BatcherQueueDef *def = view->def;
	Statement  *statement = get_statement(view->executor, columns);
	int			class = size_class(nrows);
	SPIPlanPtr	plan;

	plan = statement->plans[class];
	if (plan == NULL)
	{
		plan = SPI_prepare(def->flush_sql ? def->flush_sql :
						   batcher_insert_sql(def, view->executor->target_name,
											  view->executor->row_type,
											  columns),
						   0, NULL);
		if (plan == NULL)
			elog(ERROR, "could not prepare the statement: %s",
				 SPI_result_code_string(SPI_result));
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "could not keep the prepared statement");
		statement->plans[class] = plan;
	}
	return plan;
}

/*
 * Forget the prepared statement: the definition has changed, or the lane goes
 * to another worker.
 */
void
batcher_executor_reset(BatcherLaneView *view)
{
	BatcherExecutor *executor = view->executor;

	batcher_notify_sql_reset(view);
	if (executor == NULL)
		return;
	view->executor = NULL;
	drop_statements(executor);
	MemoryContextDelete(executor->cxt);
}

/* The flush has had its time and ten seconds more. */
static void
end_overtime(void)
{
	overtime = true;
	ProcDiePending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

/*
 * Whether this process ends because a flush outlived its timeout.
 */
bool
batcher_executor_overtime(void)
{
	return overtime;
}

/*
 * Register the timeout that ends a worker.  A worker, once, after it has
 * connected to its database.
 */
void
batcher_executor_install(void)
{
	overtime_timeout = RegisterTimeout(USER_TIMEOUT, end_overtime);
}

/*
 * Let go of what a statement, also one that failed, can leave in the session:
 * advisory locks and the values of sequences that it has cached.  Locks of the
 * transaction stay until that has ended.
 */
void
batcher_executor_forget_session(void)
{
	LockReleaseSession(USER_LOCKMETHOD);
	ResetSequenceCaches();
}

/*
 * Let the relation "batch" have the rows that are listed, or all if 'rows' is
 * NIL.  The caller ends what is returned: a temporary file would count as
 * leaked.
 */
static Tuplestorestate *
fill_batch(BatcherLaneView *view, BatcherBatch *batch,
		   EphemeralNamedRelation enr, List *rows)
{
	Tuplestorestate *store;

	batcher_executor_phase = BATCHER_PHASE_EXECUTING;
	store = batcher_relation_store(batch, enr->md.tupdesc,
								   view->executor->row_type, rows);
	enr->md.enrtuples = rows ? list_length(rows) : batch->nrows;
	enr->reldata = store;
	return store;
}

/*
 * Execute the statement that inserts these columns, or the queue's own.  What
 * it returns goes into 'result', unless that is NULL; returns the columns of
 * that, or NULL if it returns nothing.
 */
static TupleDesc
execute_statement(BatcherLaneView *view, const Bitmapset *columns, int nrows,
				  Tuplestorestate *result)
{
	SPIExecuteOptions options;
	CachedPlanSource *source;
	SPIPlanPtr	plan;
	int			code;

	batcher_executor_phase = BATCHER_PHASE_PREPARING;
	plan = get_plan(view, columns, nrows);
	batcher_executor_phase = BATCHER_PHASE_EXECUTING;
	batcher_debug_point("executing");
	memset(&options, 0, sizeof(options));
	if (result)
	{
		options.dest = CreateDestReceiver(DestTuplestore);
		SetTuplestoreDestReceiverParams(options.dest, result,
										CurrentMemoryContext, false, NULL,
										NULL);
	}
	else
		options.dest = CreateDestReceiver(DestNone);
	code = SPI_execute_plan_extended(plan, &options);
	if (code < 0)
		elog(ERROR, "could not execute the statement: %s",
			 SPI_result_code_string(code));
	/* the columns may have changed just now, when it was planned again */
	source = linitial(SPI_plan_get_plan_sources(plan));
	return source->resultDesc;
}

/* Insert the rows of a batch into the target. */
static void
insert_rows(BatcherLaneView *view, BatcherBatch *batch,
			EphemeralNamedRelation enr)
{
	ListCell   *lc;

	batcher_executor_phase = BATCHER_PHASE_EXECUTING;
	foreach(lc, batcher_insert_steps(view->def, view->executor->row_type, batch))
	{
		BatcherInsertStep *step = lfirst(lc);
		Tuplestorestate *store = fill_batch(view, batch, enr, step->rows);

		(void) execute_statement(view, step->columns, list_length(step->rows),
								 NULL);
		tuplestore_end(store);
	}
}

/*
 * Execute the statement over the rows of a batch, and what makes messages of
 * them, in the transaction of the flush, for at most 'timeout' milliseconds.
 * Whatever that raises is raised; the caller aborts the transaction then, which
 * restores what is changed here but for the timeouts.
 */
void
batcher_executor_run(BatcherLaneView *view, BatcherBatch *batch,
					 double timeout)
{
	const BatcherQueueDef *def = view->def;
	int			ms = (int) Min(Max(timeout, 1), INT_MAX / 2);
	Tuplestorestate *result = NULL;
	TupleDesc	result_desc = NULL;
	Tuplestorestate *store = NULL;
	BatcherExecutor *executor;
	EphemeralNamedRelation enr;
	Identity	before;

	SPI_connect();
	assume_identity(def, &before);
	enable_timeout_after(STATEMENT_TIMEOUT, ms);
	enable_timeout_after(overtime_timeout, ms + OVERTIME);
	batcher_debug_point("statement");

	batcher_executor_phase = BATCHER_PHASE_PREPARING;
	executor = get_executor(view);
	enr = register_batch(batcher_relation_desc(executor->row_type),
						 batch->nrows);
	if (def->target_name)
		insert_rows(view, batch, enr);
	if (def->flush_sql || def->options.notify_sql)
		store = fill_batch(view, batch, enr, NIL);
	if (def->flush_sql && def->options.notify_sql)
		result = tuplestore_begin_heap(false, false, work_mem);
	if (def->flush_sql)
		result_desc = execute_statement(view, NULL, batch->nrows, result);
	if (def->options.notify_sql)
		batcher_notify_sql_run(view, size_class(batch->nrows), result,
							   result_desc);

	batcher_executor_phase = BATCHER_PHASE_OUTSIDE;
	disable_timeout(overtime_timeout, false);
	disable_timeout(STATEMENT_TIMEOUT, false);
	restore_identity(&before);
	if (store)
		tuplestore_end(store);	/* a temporary file would count as leaked */
	if (result)
		tuplestore_end(result);
	SPI_finish();
}
