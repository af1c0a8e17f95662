/*
 * notify_sql.c
 *	  Messages that a queue's own SQL makes.
 *
 * The option notify_sql is a SELECT over "batch" and over "result", the rows
 * that the queue's statement has returned.  It runs in the flush, after the
 * statement, as the owner and in the same restricted operation; each row that
 * it returns is a message.  Its plan is kept for as long as the class of the
 * batch's size and the columns of "result" stay the same, for the reasons that
 * are in executor.c, which calls this.  The worker; the check, clients.
 */
#include "postgres.h"

#include "base/json.h"
#include "batch/message.h"
#include "batch/statement.h"
#include "catalog/pg_type.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/tuplestore.h"

#define WHAT	"notify_sql"

#define MESSAGES_MAX	(64 * 1024 * 1024)	/* bytes, of one flush */
#define MESSAGE_OVERHEAD	128	/* what a short one takes besides, about */

/* The prepared SELECT. */
struct BatcherTeller
{
	MemoryContext cxt;			/* of this */
	SPIPlanPtr	plan;
	int			size_class;		/* that it was planned for */
	TupleDesc	result_desc;	/* the same; NULL: there is no "result" */
};

/* Takes the rows of the SELECT. */
typedef struct Receiver
{
	DestReceiver pub;			/* must be first */
	MemoryContext cxt;			/* of one row */
	Oid			payload_type;	/* TEXTOID or JSONBOID */
	Size		bytes;			/* of all messages so far, about */
} Receiver;

/* Context of errors; as in executor.c. */
static void
error_context(void *arg)
{
	const BatcherQueueDef *def = arg;
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(def->options.notify_sql);
	}
	errcontext("%s of queue \"%s\"", WHAT, def->name);
}

static void
push_context(ErrorContextCallback *context, const BatcherQueueDef *def)
{
	context->callback = error_context;
	context->arg = unconstify(BatcherQueueDef *, def);
	context->previous = error_context_stack;
	error_context_stack = context;
}

/* Is a value of this type a text, as bytes? */
static bool
is_text(Oid type)
{
	type = getBaseType(type);
	return type == TEXTOID || type == VARCHAROID;
}

/* Refuse columns that are not (text, text or jsonb); the second's type. */
static Oid
check_columns(TupleDesc desc)
{
	Oid			types[2];
	int			i;

	if (desc->natts != 2)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("%s must return two columns, not %d",
						WHAT, desc->natts),
				 errhint("Return a channel as text, and a payload as text or jsonb.")));
	for (i = 0; i < 2; i++)
	{
		Oid			type = TupleDescAttr(desc, i)->atttypid;

		types[i] = is_text(type) ? TEXTOID : getBaseType(type);
		if (types[i] != TEXTOID && (i == 0 || types[i] != JSONBOID))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 i == 0 ?
					 errmsg("first column of %s must be of type text, not %s",
							WHAT, format_type_be(type)) :
					 errmsg("second column of %s must be of type text or jsonb, not %s",
							WHAT, format_type_be(type)),
					 errhint("Cast it.")));
	}
	return types[1];
}

static void
check_channel(const char *channel)
{
	int			len = strlen(channel);

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("channel must not be empty")));
	if (len > BATCHER_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("channel \"%s\" is too long",
						batcher_option_clip(channel, len)),
				 errdetail("A channel has at most %d bytes.",
						   BATCHER_NAME_MAX)));
}

static void
check_length(const char *channel, int len, int max)
{
	if (len > max)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("message of %d bytes for channel \"%s\" is too long",
						len, channel),
				 errdetail("A text has at most %d bytes, an object %d before its number is added.",
						   BATCHER_MESSAGE_MAX,
						   BATCHER_MESSAGE_MAX - BATCHER_NUMBER_MAX)));
}

/* A flush keeps its messages until it commits. */
static void
check_bytes(Receiver *receiver, Size more)
{
	receiver->bytes += more + MESSAGE_OVERHEAD;
	if (receiver->bytes > MESSAGES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("messages of one flush take more than %d MB",
						MESSAGES_MAX / (1024 * 1024))));
}

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc typeinfo)
{
	/* again: since it was checked, what it reads may have changed */
	((Receiver *) self)->payload_type = check_columns(typeinfo);
}

static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	Receiver   *receiver = (Receiver *) self;
	MemoryContext caller = MemoryContextSwitchTo(receiver->cxt);
	bool		channel_null;
	bool		payload_null;
	Datum		channel_datum = slot_getattr(slot, 1, &channel_null);
	Datum		payload = slot_getattr(slot, 2, &payload_null);

	if (!channel_null && !payload_null)
	{
		char	   *channel = TextDatumGetCString(channel_datum);
		Jsonb	   *json = NULL;
		char	   *message;
		int			len;

		check_channel(channel);
		if (receiver->payload_type == JSONBOID)
		{
			json = DatumGetJsonbP(payload);
			message = batcher_json_text(json, NULL);
		}
		else
			message = TextDatumGetCString(payload);
		len = strlen(message);
		check_bytes(receiver, strlen(channel) + len);
		if (json && JB_ROOT_IS_OBJECT(json))
		{
			check_length(channel, len,
						 BATCHER_MESSAGE_MAX - BATCHER_NUMBER_MAX);
			batcher_message_add_object(channel, json, false);
		}
		else
		{
			check_length(channel, len, BATCHER_MESSAGE_MAX);
			batcher_message_add_text(channel, message);
		}
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(receiver->cxt);
	return true;
}

static void
receiver_nothing(DestReceiver *self)
{
}

/* Make "result" known to SPI, beside "batch". */
static void
register_result(TupleDesc desc, Tuplestorestate *store)
{
	EphemeralNamedRelation enr;
	int			result;

	if (desc == NULL)
		return;
	enr = palloc0(sizeof(EphemeralNamedRelationData));
	enr->md.name = "result";
	enr->md.reliddesc = InvalidOid;
	enr->md.tupdesc = desc;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = store ? tuplestore_tuple_count(store) : 1;
	enr->reldata = store;
	result = SPI_register_relation(enr);
	if (result != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register the relation \"result\": %s",
			 SPI_result_code_string(result));
}

/* The owner's identity was assumed for another statement, given elsewhere. */
static void
use_search_path(const BatcherQueueDef *def)
{
	(void) set_config_option("search_path", def->notify_search_path ?
							 def->notify_search_path : def->search_path,
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
}

/*
 * Prepare the SELECT of a definition, and refuse what is none: one that was
 * restored may be anything.
 */
static SPIPlanPtr
prepare(const BatcherQueueDef *def)
{
	Node	   *statement = batcher_statement_parse(def->options.notify_sql, WHAT);
	SPIPlanPtr	plan;

	if (!batcher_statement_is_select(statement))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s must be SELECT", WHAT)));
	plan = SPI_prepare(def->options.notify_sql, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "could not prepare %s: %s", WHAT,
			 SPI_result_code_string(SPI_result));
	return plan;
}

/*
 * Check the notify_sql of a definition.  The caller has connected to SPI,
 * registered "batch", and become the owner.  'result_desc': the columns that
 * the queue's statement returns; NULL: none.  'planning': plan it too.
 */
void
batcher_notify_sql_check(const BatcherQueueDef *def, TupleDesc result_desc,
						 bool planning)
{
	ErrorContextCallback context;
	CachedPlanSource *source;
	SPIPlanPtr	plan;

	push_context(&context, def);
	register_result(result_desc, NULL);
	use_search_path(def);
	plan = prepare(def);
	batcher_statement_refuse_temporary(plan, WHAT);
	source = linitial(SPI_plan_get_plan_sources(plan));
	(void) check_columns(source->resultDesc);
	if (planning)
		batcher_statement_plan(plan);
	error_context_stack = context.previous;
}

/* The plan for a batch of this class and this result, prepared if need be. */
static SPIPlanPtr
get_plan(BatcherLaneView *view, int size_class, TupleDesc result_desc)
{
	BatcherTeller *teller = view->teller;
	MemoryContext cxt;
	MemoryContext caller;

	if (teller && teller->size_class == size_class &&
		(teller->result_desc == NULL) == (result_desc == NULL) &&
		(result_desc == NULL ||
		 equalTupleDescs(teller->result_desc, result_desc)))
		return teller->plan;
	batcher_notify_sql_reset(view);
	cxt = AllocSetContextCreate(CurrentMemoryContext, "batcher notify_sql",
								ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(cxt);
	teller = palloc0(sizeof(BatcherTeller));
	teller->cxt = cxt;
	teller->size_class = size_class;
	if (result_desc)
		teller->result_desc = CreateTupleDescCopy(result_desc);
	MemoryContextSwitchTo(caller);
	teller->plan = prepare(view->def);
	if (SPI_keepplan(teller->plan) != 0)
		elog(ERROR, "could not keep the prepared statement");
	MemoryContextSetParent(cxt, TopMemoryContext);
	view->teller = teller;
	return teller->plan;
}

/*
 * Run a queue's notify_sql over a batch; its messages are added to those of
 * the flush.  The caller has connected to SPI, registered "batch", become the
 * owner, and set the timeouts.  'result' has what the queue's statement has
 * returned, with the columns 'result_desc'; NULL: it returns nothing.
 */
void
batcher_notify_sql_run(BatcherLaneView *view, int size_class,
					   Tuplestorestate *result, TupleDesc result_desc)
{
	ErrorContextCallback context;
	SPIExecuteOptions options;
	Receiver	receiver;
	SPIPlanPtr	plan;
	int			code;

	push_context(&context, view->def);
	register_result(result_desc, result);
	use_search_path(view->def);
	batcher_executor_phase = BATCHER_PHASE_PREPARING;
	plan = get_plan(view, size_class, result_desc);
	batcher_executor_phase = BATCHER_PHASE_EXECUTING;
	memset(&receiver, 0, sizeof(receiver));
	receiver.pub.receiveSlot = receive_row;
	receiver.pub.rStartup = receiver_startup;
	receiver.pub.rShutdown = receiver_nothing;
	receiver.pub.rDestroy = receiver_nothing;
	receiver.pub.mydest = DestNone;
	receiver.cxt = AllocSetContextCreate(CurrentMemoryContext,
										 "row of notify_sql",
										 ALLOCSET_DEFAULT_SIZES);
	memset(&options, 0, sizeof(options));
	options.dest = &receiver.pub;
	code = SPI_execute_plan_extended(plan, &options);
	if (code < 0)
		elog(ERROR, "could not execute %s: %s", WHAT,
			 SPI_result_code_string(code));
	MemoryContextDelete(receiver.cxt);
	error_context_stack = context.previous;
}

/*
 * Forget the prepared SELECT.
 */
void
batcher_notify_sql_reset(BatcherLaneView *view)
{
	if (view->teller == NULL)
		return;
	(void) SPI_freeplan(view->teller->plan);
	MemoryContextDelete(view->teller->cxt);
	view->teller = NULL;
}
