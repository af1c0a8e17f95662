/*
 * statement.h
 *	  What a queue's statement may be, who it runs as, and over what.
 */
#ifndef BATCHER_STATEMENT_H
#define BATCHER_STATEMENT_H

#include "catalog/catalog.h"
#include "executor/spi.h"
#include "nodes/parsenodes.h"
#include "utils/queryenvironment.h"

/* What is to be restored after the owner's code. */
typedef struct BatcherIdentity
{
	Oid			user;
	int			context;
	int			guc_level;
} BatcherIdentity;

extern EphemeralNamedRelation batcher_statement_register(TupleDesc desc,
														 int nrows);
extern void batcher_statement_assume(const BatcherQueueDef *def,
									 BatcherIdentity *before);
extern void batcher_statement_restore(const BatcherIdentity *before);
extern BatcherRowType *batcher_statement_types(const BatcherQueueDef *def,
											   BatcherRowType *known,
											   char **target_name);
extern Node *batcher_statement_parse(const char *sql, const char *what);
extern bool batcher_statement_is_select(Node *statement);
extern void batcher_statement_check_kind(const char *sql);
extern void batcher_statement_refuse_temporary(SPIPlanPtr plan,
											   const char *what);
extern void batcher_statement_plan(SPIPlanPtr plan);
extern void batcher_statement_check(const BatcherQueueDef *def);

#endif							/* BATCHER_STATEMENT_H */
