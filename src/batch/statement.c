/*
 * statement.c
 *	  What a queue's statement may be, who it runs as, and over what.
 *
 * A definition is checked before it is stored: by the parser alone, by its
 * analysis over a relation "batch" of the rows' type, and by planning where that
 * executes nobody else's functions.  The flush (executor.c) uses the same
 * identity, relation and types.  Clients and workers.
 */
#include "postgres.h"

#include "batch/batch.h"
#include "batch/statement.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"

#define WHAT			"flush statement"
#define STATEMENT_MAX	(16 * 1024 * 1024)	/* bytes */

/*
 * Make the relation "batch" known to SPI.  Right after SPI_connect, because
 * what is made here must live until SPI_finish.  Its rows come later.
 */
EphemeralNamedRelation
batcher_statement_register(TupleDesc desc, int nrows)
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
void
batcher_statement_assume(const BatcherQueueDef *def, BatcherIdentity *before)
{
	GetUserIdAndSecContext(&before->user, &before->context);
	SetUserIdAndSecContext(def->owner,
						   before->context | SECURITY_RESTRICTED_OPERATION);
	before->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", def->search_path,
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
}

void
batcher_statement_restore(const BatcherIdentity *before)
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
batcher_statement_parse(const char *sql, const char *what)
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

/*
 * Is this a SELECT, and not a CREATE TABLE AS in its disguise?  Of several that
 * are combined the first one may have an INTO.
 */
bool
batcher_statement_is_select(Node *statement)
{
	SelectStmt *select = (SelectStmt *) statement;

	if (!IsA(statement, SelectStmt))
		return false;
	while (select->op != SETOP_NONE)
		select = select->larg;
	return select->intoClause == NULL;
}

/*
 * Refuse what does not read and write rows, or is not one statement.  The flush
 * asks too: nobody has checked a definition that was restored.
 */
void
batcher_statement_check_kind(const char *sql)
{
	Node	   *statement = batcher_statement_parse(sql, WHAT);

	switch (nodeTag(statement))
	{
		case T_InsertStmt:
		case T_UpdateStmt:
		case T_DeleteStmt:
		case T_MergeStmt:
			return;
		default:
			if (batcher_statement_is_select(statement))
				return;
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
batcher_statement_refuse_temporary(SPIPlanPtr plan, const char *what)
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
 * 'target_name'.  'known' as in batcher_row_type_refresh.  Errors: 22023 the
 * queue has a statement too, 42P01, 42704.
 */
BatcherRowType *
batcher_statement_types(const BatcherQueueDef *def, BatcherRowType *known,
			  char **target_name)
{
	BatcherRowType *row_type;

	*target_name = NULL;
	/* a restored definition may say anything */
	if (def->flush_sql && def->target_name)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a queue cannot have both \"flush_sql\" and \"target\"")));
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
batcher_statement_plan(SPIPlanPtr plan)
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
	batcher_statement_refuse_temporary(plan, WHAT);
	if (planning)
		batcher_statement_plan(plan);
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
batcher_statement_check(const BatcherQueueDef *def)
{
	const char *sql = def->flush_sql;
	bool		planning = GetUserId() == def->owner;
	TupleDesc	result_desc = NULL;
	ErrorContextCallback context;
	BatcherRowType *row_type;
	char	   *target_name;
	BatcherIdentity	before;
	TupleDesc	desc;

	context.callback = check_error_context;
	context.arg = unconstify(BatcherQueueDef *, def);
	context.previous = error_context_stack;
	error_context_stack = &context;
	if (sql)
		batcher_statement_check_kind(sql);
	row_type = batcher_statement_types(def, NULL, &target_name);
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
		(void) batcher_statement_register(desc, 1);
		batcher_statement_assume(def, &before);
		if (sql)
			result_desc = check_statement(sql, planning);
		error_context_stack = context.previous;
		if (def->options.notify_sql)
			batcher_notify_sql_check(def, result_desc, planning);
		batcher_statement_restore(&before);
		SPI_finish();
	}
	error_context_stack = context.previous;
}
