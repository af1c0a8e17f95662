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
 * the cancel, ends with its process.  The worker.
 */
#include "postgres.h"

#include <signal.h>

#include "base/debug.h"
#include "batch/batch.h"
#include "batch/statement.h"
#include "commands/sequence.h"
#include "executor/tstoreReceiver.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "tcop/dest.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/timeout.h"

#define SIZE_CLASSES	4
#define MAX_STATEMENTS	64		/* whose plans are kept */
#define OVERTIME		10000	/* ms after flush_timeout */

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
volatile sig_atomic_t batcher_executor_cancelled = false;

static TimeoutId overtime_timeout = MAX_TIMEOUTS;
static volatile sig_atomic_t overtime = false;

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
	uint64		known_number;
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
	known_number = known ? known->number : 0;
	executor->row_type = NULL;	/* it may be freed, and what follows fail */
	executor->row_type = batcher_statement_types(view->def, known, &target_name);
	if (executor->row_type)		/* so it goes with this, whatever fails */
		MemoryContextSetParent(executor->row_type->cxt, executor->cxt);
	if ((executor->row_type ? executor->row_type->number : 0) != known_number ||
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
		if (def->flush_sql)
			batcher_statement_check_kind(def->flush_sql);
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
	BatcherIdentity	before;

	batcher_executor_cancelled = false;
	if (QueryCancelPending)		/* one that comes meanwhile sets both */
		batcher_executor_cancelled = true;
	SPI_connect();
	batcher_statement_assume(def, &before);
	enable_timeout_after(STATEMENT_TIMEOUT, ms);
	enable_timeout_after(overtime_timeout, ms + OVERTIME);
	batcher_debug_point("statement");

	batcher_executor_phase = BATCHER_PHASE_PREPARING;
	executor = get_executor(view);
	enr = batcher_statement_register(batcher_relation_desc(executor->row_type),
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
	batcher_statement_restore(&before);
	if (store)
		tuplestore_end(store);	/* a temporary file would count as leaked */
	if (result)
		tuplestore_end(result);
	SPI_finish();
}
