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
 * for each class of sizes, thrown away when the definition changes.  They are
 * prepared as the owner, because planning executes immutable functions.
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
#include "catalog/pg_type.h"
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
#include "utils/tuplestore.h"

#define WHAT			"flush statement"
#define SIZE_CLASSES	4
#define OVERTIME		10000	/* ms after flush_timeout */
#define STATEMENT_MAX	(16 * 1024 * 1024)	/* bytes */

struct BatcherExecutor
{
	SPIPlanPtr	plans[SIZE_CLASSES];
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

/* The columns of the relation "batch". */
static TupleDesc
batch_desc(void)
{
	TupleDesc	desc = CreateTemplateTupleDesc(9);

	TupleDescInitEntry(desc, 1, "payload", JSONBOID, -1, 0);
	TupleDescInitEntry(desc, 2, "batch_pos", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 3, "batch_ticket", INT8OID, -1, 0);
	TupleDescInitEntry(desc, 4, "batch_key", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, 5, "batch_topic", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, 6, "batch_priority", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 7, "batch_attempts", INT4OID, -1, 0);
	TupleDescInitEntry(desc, 8, "batch_enqueued_at", TIMESTAMPTZOID, -1, 0);
	TupleDescInitEntry(desc, 9, "batch_enqueued_by", TEXTOID, -1, 0);
	return desc;
}

/* The rows of a batch as a tuplestore. */
static Tuplestorestate *
store_batch(BatcherBatch *batch, TupleDesc desc)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	Datum		values[9];
	bool		nulls[9];
	text	   *by = NULL;
	int			i;

	for (i = 0; i < batch->nrows; i++)
	{
		BatcherChunk *chunk = batch->rows[i].chunk;
		BatcherRowParts parts;

		if (i == 0 || batch->rows[i - 1].chunk != chunk)
		{
			const char *name = batcher_spool_enqueuer(chunk);

			by = name ? cstring_to_text(name) : NULL;
		}
		batcher_row_read(chunk, batch->rows[i].row, &parts);
		memset(nulls, false, sizeof(nulls));
		values[0] = PointerGetDatum(parts.payload);
		values[1] = Int32GetDatum(i + 1);
		values[2] = Int64GetDatum(parts.ticket);
		values[3] = PointerGetDatum(parts.key);
		nulls[3] = parts.key == NULL;
		values[4] = PointerGetDatum(parts.topic);
		nulls[4] = parts.topic == NULL;
		values[5] = Int32GetDatum(parts.priority);
		values[6] = Int32GetDatum(parts.attempts);
		values[7] = TimestampTzGetDatum(chunk->enqueued_at);
		values[8] = PointerGetDatum(by);
		nulls[8] = by == NULL;
		tuplestore_putvalues(store, desc, values, nulls);
	}
	return store;
}

/*
 * Make the relation "batch" known to SPI.  Right after SPI_connect, because
 * what is made here must live until SPI_finish.
 */
static void
register_batch(TupleDesc desc, Tuplestorestate *store, int nrows)
{
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));
	int			result;

	enr->md.name = "batch";
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = desc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = nrows;
	enr->reldata = store;
	result = SPI_register_relation(enr);
	if (result != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register the relation \"batch\": %s",
			 SPI_result_code_string(result));
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

/* Plan the statement of a definition; the columns that it returns, or NULL. */
static TupleDesc
check_statement(const BatcherQueueDef *def)
{
	ErrorContextCallback context;
	CachedPlanSource *source;
	CachedPlan *cached;
	SPIPlanPtr	plan;

	context.callback = check_error_context;
	context.arg = unconstify(BatcherQueueDef *, def);
	context.previous = error_context_stack;
	error_context_stack = &context;
	check_statement_kind(def->flush_sql);
	plan = SPI_prepare(def->flush_sql, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "could not prepare the statement: %s",
			 SPI_result_code_string(SPI_result));
	batcher_executor_refuse_temporary(plan, WHAT);
	cached = SPI_plan_get_cached_plan(plan);
	if (cached)
		ReleaseCachedPlan(cached, NULL);	/* an unsaved one is not owned */
	error_context_stack = context.previous;
	source = linitial(SPI_plan_get_plan_sources(plan));
	return source->resultDesc;
}

/*
 * Check the SQL of a definition by planning it as the owner; raises the error
 * that it has.
 */
void
batcher_executor_check(const BatcherQueueDef *def)
{
	TupleDesc	result_desc = NULL;
	Identity	before;

	if (def->flush_sql == NULL && def->options.notify_sql == NULL)
		return;
	SPI_connect();
	register_batch(batch_desc(), NULL, 1);
	assume_identity(def, &before);
	if (def->flush_sql)
		result_desc = check_statement(def);
	if (def->options.notify_sql)
		batcher_notify_sql_check(def, result_desc);
	restore_identity(&before);
	SPI_finish();
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

/* The plan for a batch of this size, prepared if need be. */
static SPIPlanPtr
get_plan(BatcherLaneView *view, int nrows)
{
	int			class = size_class(nrows);
	SPIPlanPtr	plan;

	if (view->executor == NULL)
		view->executor = MemoryContextAllocZero(TopMemoryContext,
												sizeof(BatcherExecutor));
	plan = view->executor->plans[class];
	if (plan == NULL)
	{
		plan = SPI_prepare(view->def->flush_sql, 0, NULL);
		if (plan == NULL)
			elog(ERROR, "could not prepare the statement: %s",
				 SPI_result_code_string(SPI_result));
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "could not keep the prepared statement");
		view->executor->plans[class] = plan;
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
	int			i;

	batcher_notify_sql_reset(view);
	if (view->executor == NULL)
		return;
	for (i = 0; i < SIZE_CLASSES; i++)
	{
		if (view->executor->plans[i])
			(void) SPI_freeplan(view->executor->plans[i]);
	}
	pfree(view->executor);
	view->executor = NULL;
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
 * advisory locks and the values of sequences that it has cached.
 */
void
batcher_executor_forget_session(void)
{
	LockReleaseAll(USER_LOCKMETHOD, true);
	ResetSequenceCaches();
}

/*
 * Execute the statement.  What it returns goes into 'result', unless that is
 * NULL; returns the columns of that, or NULL if it returns nothing.
 */
static TupleDesc
execute_statement(BatcherLaneView *view, int nrows, Tuplestorestate *result)
{
	SPIExecuteOptions options;
	CachedPlanSource *source;
	SPIPlanPtr	plan;
	int			code;

	batcher_executor_phase = BATCHER_PHASE_PREPARING;
	plan = get_plan(view, nrows);
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
	Tuplestorestate *store;
	TupleDesc	desc;
	Identity	before;

	SPI_connect();
	desc = batch_desc();
	store = store_batch(batch, desc);
	register_batch(desc, store, batch->nrows);
	assume_identity(def, &before);
	enable_timeout_after(STATEMENT_TIMEOUT, ms);
	enable_timeout_after(overtime_timeout, ms + OVERTIME);
	batcher_debug_point("statement");

	if (def->flush_sql && def->options.notify_sql)
		result = tuplestore_begin_heap(false, false, work_mem);
	if (def->flush_sql)
		result_desc = execute_statement(view, batch->nrows, result);
	if (def->options.notify_sql)
		batcher_notify_sql_run(view, size_class(batch->nrows), result,
							   result_desc);

	batcher_executor_phase = BATCHER_PHASE_OUTSIDE;
	disable_timeout(overtime_timeout, false);
	disable_timeout(STATEMENT_TIMEOUT, false);
	restore_identity(&before);
	tuplestore_end(store);		/* a temporary file would count as leaked */
	if (result)
		tuplestore_end(result);
	SPI_finish();
}
