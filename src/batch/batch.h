/*
 * batch.h
 *	  From waiting rows to a committed flush and its message.
 */
#ifndef BATCHER_BATCH_H
#define BATCHER_BATCH_H

#include <signal.h>

#include "base/clock.h"
#include "batch/pace.h"
#include "catalog/row_type.h"
#include "nodes/bitmapset.h"
#include "nodes/nodes.h"
#include "utils/hsearch.h"
#include "utils/tuplestore.h"

/* How far the execution of a statement has come. */
typedef enum BatcherPhase
{
	BATCHER_PHASE_OUTSIDE,		/* it is not executed */
	BATCHER_PHASE_PREPARING,
	BATCHER_PHASE_EXECUTING
} BatcherPhase;

/* Why a batch left. */
typedef enum BatcherReason
{
	BATCHER_REASON_SIZE,
	BATCHER_REASON_TIME,
	BATCHER_REASON_FORCED,
	BATCHER_REASON_IMMEDIATE,
	BATCHER_REASON_DEBOUNCED,	/* nothing new came for its keys */
	BATCHER_REASON_SWEPT,		/* its keys have waited for max_wait */
	BATCHER_REASON_RETRY,		/* of rows that failed before */
	BATCHER_REASON_PURGE
} BatcherReason;

/* What becomes of a row when the transaction of its batch commits. */
typedef enum BatcherOutcome
{
	BATCHER_OUTCOME_FLUSHED,
	BATCHER_OUTCOME_PURGED,
	BATCHER_OUTCOME_DEAD,		/* it is a dead letter */
	BATCHER_OUTCOME_SUPERSEDED, /* another row was flushed in its stead */
	BATCHER_OUTCOME_FAILED,		/* it waits, charged with one attempt more */
	BATCHER_OUTCOME_PUT_OFF,	/* it waits, tried without fault of its own */
	BATCHER_OUTCOME_STAYS		/* it waits as before */
} BatcherOutcome;

/* Is a row with this outcome settled? */
#define batcher_outcome_settles(o)	((o) <= BATCHER_OUTCOME_SUPERSEDED)

/* One row of a batch. */
typedef struct BatcherBatchRow
{
	BatcherChunk *chunk;
	BatcherRow *row;
	struct varlena *merged;		/* the payload, if others are merged into it;
								 * else NULL */
	int32		priority;		/* then, the highest of theirs */
	BatcherOutcome outcome;
	bool		split;			/* it was merged and failed: next time its rows
								 * are flushed as they are */
	int			by;				/* index of the row that it gives way to, or -1 */
	int			next;			/* index of the next row of its claim, or -1 */
} BatcherBatchRow;

/* A chunk of which a batch has rows, or that inherits a number. */
typedef struct BatcherClaim
{
	BatcherChunk *chunk;
	int			first;			/* index of its first row in the batch, -1:
								 * none */
	int			nrows;			/* of the batch */
	bool		gone;			/* its tuple was settled another way */
	uint64		new_number;		/* that the chunk inherits; 0: none */
	int			nsettled;		/* of the rows, when it was settled */
	ItemPointerData new_tid;	/* of the tuple with the rows that stay;
								 * invalid: none stay */
} BatcherClaim;

/* The waiting rows in order: see index.c. */
typedef struct BatcherIndex BatcherIndex;
typedef struct BatcherRef BatcherRef;

typedef struct BatcherBatch
{
	BatcherReason reason;
	uint64		number;			/* of the batch, within its queue */
	int			nrows;			/* that the statement gets */
	int			nall;			/* with those that give way to them, which are
								 * behind them */
	BatcherBatchRow *rows;
	int			allocated;		/* rows for which there is room */
	int			nflushed;		/* rows that the statement has taken */
	int			nclaims;
	BatcherClaim *claims;
	int			ncharged;		/* claims whose rows are charged so far */
	TimestampTz oldest_at;		/* oldest commit of its rows */
	bool		alone;			/* of a row that is a batch of its own */
	BatcherIndex *index;		/* where it was taken from */
	int			nrefs;
	int			refs_allocated;
	BatcherRef **refs;			/* what was taken out of there ... */
	int		   *by;				/* ... and the row that it gives way to, or -1 */
} BatcherBatch;

/* Steps by which flushing degrades; the breaker is the last. */
typedef enum BatcherStep
{
	BATCHER_STEP_WHOLE,
	BATCHER_STEP_SMALLER,
	BATCHER_STEP_SINGLE
} BatcherStep;

/* Whose fault an error is. */
typedef enum BatcherFault
{
	BATCHER_FAULT_PASSING,		/* nobody's: it may pass */
	BATCHER_FAULT_STATEMENT,	/* the statement's, unless other rows pass */
	BATCHER_FAULT_DEFINITION,	/* the statement's: no row can pass */
	BATCHER_FAULT_ROW
} BatcherFault;

/* Rows that come from the spool: see readback.c. */
typedef struct BatcherReadback BatcherReadback;

/* A tuple of the spool that cannot be read. */
typedef struct BatcherUnreadable
{
	BatcherSpoolEntry entry;
	int			sqlerrcode;
	char	   *why;
} BatcherUnreadable;

/* Those that are to become dead letters together: see bury.c. */
typedef struct BatcherGrave
{
	MemoryContext cxt;			/* outlives the transactions */
	uint32		version;		/* of the spool, in which their places are; 0:
								 * it was not looked at yet */
	int			n;
	int			allocated;
	BatcherUnreadable *tuples;
	int			done;			/* of these, so many are settled */
	int			end;			/* before this one the next burial ends */
	int			at;				/* the one that is being deleted, or -1 */
} BatcherGrave;

/* The prepared statement: see executor.c. */
typedef struct BatcherExecutor BatcherExecutor;

/* The prepared SELECT that makes messages: see notify_sql.c. */
typedef struct BatcherTeller BatcherTeller;

/* What the next batch of a lane has to keep to: see schedule.c. */
typedef struct BatcherLimits
{
	int			size;			/* rows at which a flush starts */
	double		window;			/* ms, after which it starts */
	double		longest;		/* ms, the longest window that there can be */
	double		soonest;		/* ms, after which a row that has just come may
								 * be due */
	TimestampTz rows_at;		/* when more rows may leave, if none may now */
} BatcherLimits;

/*
 * A lane as its owner sees it: private memory of the worker, rebuilt from
 * shared memory and the spool by the next owner.
 */
typedef struct BatcherLaneView
{
	BatcherSharedDatabase *db;
	BatcherQueueKey key;
	BatcherSharedQueue *queue;	/* may be another's, if the lane is lost */
	BatcherQueueDef *def;
	uint64		generation;		/* of the definitions that 'def' is of */
	BatcherExecutor *executor;
	BatcherTeller *teller;
	BatcherReadback *readback;	/* NULL: none */
	HTAB	   *stuck;			/* tuples that are passed over: see bury.c; NULL:
								 * none */
	BatcherIndex *index;		/* NULL: to be built */
	int64		thin_at;		/* rows in it at which hot keys are thinned */
	TimestampTz deadline;		/* when to look again, BATCHER_NEVER */
	bool		wants_news;		/* look also when any chunk is decided: one
								 * holds back rows that are due, or what comes
								 * may be due before the deadline */
	BatcherLimits limits;		/* as of the last look */
	BatcherPace pace;			/* of an adaptive queue; size 0: not begun */
	uint64		enqueued_seen;	/* rows_enqueued, as of the last look */
	uint64		asked_upto;		/* flush_upto, when the last batch was gathered */
	uint64		forced_upto;	/* flush_upto for which a flush has failed */
	HTAB	   *retries;		/* see retry.c; NULL: none */
	uint32		resets;			/* lane.resets, as of the last look */
	int			passing;		/* flushes in a row that failed as a whole, by
								 * what may pass */
	uint64		probes;			/* breaker_until of the half-open breaker that
								 * the last batch tries to close; 0: none */
	int			reopened;		/* times in a row that the breaker has opened
								 * again after it was half open */
	double		flush_ms;		/* how long the last flush took */
	BatcherStep step;			/* how far flushing has degraded */
	TimestampTz step_at;		/* and when it last did */
	void		(*report) (BatcherSharedQueue *queue, int rows);	/* says what
																 * is flushed;
																 * 0 rows: the
																 * spool is read */
} BatcherLaneView;

/* gather.c */
extern BatcherBatch *batcher_gather(BatcherLaneView *view, TimestampTz now,
									bool draining);
extern int64 batcher_gather_ready(BatcherLaneView *view);
extern void batcher_gather_publish(BatcherLaneView *view);

/* take.c */
extern void batcher_batch_return(BatcherLaneView *view, BatcherBatch *batch);
extern void batcher_batch_read(const BatcherBatchRow *r,
							   BatcherRowParts *parts);

/* index.c */
extern void batcher_index_reset(BatcherLaneView *view);

/* breaker.c */
extern int	batcher_breaker_limit(BatcherLaneView *view, TimestampTz now);
extern void batcher_breaker_open(BatcherLaneView *view, const char *reason,
								 double ms);
extern bool batcher_breaker_may_open(BatcherLaneView *view);
extern void batcher_breaker_note_success(BatcherLaneView *view);
extern void batcher_breaker_note_failure(BatcherLaneView *view,
										 const char *message);

/* failure.c */
extern BatcherFault batcher_failure_fault(const ErrorData *error);
extern const char *batcher_failure_text(const ErrorData *error,
										BatcherFault fault);
extern bool batcher_failure_note(BatcherLaneView *view, const char *sqlstate,
								 const char *message);
extern void batcher_failure_note_row(BatcherLaneView *view,
									 const ErrorData *error,
									 BatcherFault fault);
extern void batcher_failure_step(BatcherLaneView *view, BatcherStep step,
								 int nrows);
extern void batcher_failure_whole_passed(BatcherLaneView *view);
extern ErrorData *batcher_failure_recover(BatcherLaneView *view,
										  MemoryContext cxt,
										  BatcherFault *fault);
extern void batcher_failure_put_off(BatcherLaneView *view);

/* probation.c */
extern void batcher_probation_install(void);
extern void batcher_probation_look(BatcherLaneView *view);
extern void batcher_probation_begin(BatcherLaneView *view);
extern void batcher_probation_end(BatcherLaneView *view);
extern void batcher_probation_forget(const BatcherQueueKey *key);

/* isolate.c */
typedef struct BatcherIsolation BatcherIsolation;
extern BatcherIsolation *batcher_isolation_new(BatcherLaneView *view,
											   BatcherBatch *batch,
											   ErrorData *error,
											   BatcherFault fault);
extern bool batcher_isolation_run(BatcherIsolation *iso);
extern void batcher_isolation_finish(BatcherIsolation *iso, bool committed);
extern bool batcher_isolation_counts(BatcherIsolation *iso);
extern ErrorData *batcher_isolation_error(BatcherIsolation *iso,
										  BatcherFault *fault);

/* retry.c */
#define BATCHER_NO_RETRY	BATCHER_NEVER
#define BATCHER_RETRY_NOW	((TimestampTz) 0)

/* Rows that are tried again in one transaction, each by itself. */
#define BATCHER_RETRY_BATCH	50

extern TimestampTz batcher_retry_at(BatcherLaneView *view,
									const BatcherChunk *chunk,
									const BatcherRow *row);
extern void batcher_retry_add(BatcherLaneView *view, uint64 ticket,
							  int attempts, bool alone, BatcherFault fault,
							  double random);
extern bool batcher_retry_alone(BatcherLaneView *view, uint64 ticket,
								BatcherFault *fault);
extern void batcher_retry_rejoin(BatcherLaneView *view, uint64 ticket);
extern void batcher_retry_absolve(BatcherLaneView *view);
extern void batcher_retry_remove(BatcherLaneView *view, uint64 ticket);
extern bool batcher_retry_waits(BatcherLaneView *view, uint64 ticket);
extern bool batcher_retry_known(BatcherLaneView *view, uint64 ticket);
extern bool batcher_retry_force(BatcherLaneView *view);
extern void batcher_retry_reset(BatcherLaneView *view);

/* survey.c */
extern void batcher_survey_spool(BatcherSharedDatabase *db, uint32 restores);

/* refill.c */
typedef enum BatcherRefill
{
	BATCHER_REFILL_NOT_DONE,
	BATCHER_REFILL_DONE,
	BATCHER_REFILL_AGAIN,		/* tuples that stood in the way are gone */
	BATCHER_REFILL_FAILED		/* the lane is put off */
} BatcherRefill;

extern BatcherRefill batcher_refill_lane(BatcherLaneView *view, bool draining);

/* bury.c */
extern bool batcher_grave_full(const BatcherGrave *grave);
extern void batcher_grave_note(BatcherGrave *grave,
							   const BatcherSpoolEntry *entry,
							   int sqlerrcode, const char *why);
extern void batcher_grave_bury(BatcherLaneView *view, BatcherGrave *grave);
extern bool batcher_grave_pass_over(BatcherLaneView *view, BatcherGrave *grave,
									const ErrorData *error);
extern bool batcher_grave_is_stuck(BatcherLaneView *view,
								   const BatcherSpoolEntry *entry);
extern void batcher_grave_reset(BatcherLaneView *view);

/* claim.c */
extern bool batcher_claim(BatcherLaneView *view, BatcherBatch *batch,
						  Relation spool);
extern BatcherClaim *batcher_claim_heir(BatcherBatch *batch,
										BatcherClaim *giver);
extern uint64 batcher_claim_deleted(bool reset);

/* settle.c */
extern void batcher_settle_install(void);
extern void batcher_settle_at_commit(BatcherLaneView *view,
									 BatcherBatch *batch, Relation spool);
extern void batcher_settle_tidy(BatcherLaneView *view, BatcherBatch *batch);
extern void batcher_settle_resync(BatcherLaneView *view, Relation spool);

/* relation.c */
extern TupleDesc batcher_relation_desc(const BatcherRowType *row_type);
extern Tuplestorestate *batcher_relation_store(BatcherBatch *batch,
											   TupleDesc desc,
											   BatcherRowType *row_type,
											   List *rows);

/* insert.c */

/* Rows of a batch that one statement inserts into the target. */
typedef struct BatcherInsertStep
{
	Bitmapset  *columns;		/* that they name, as indexes */
	List	   *rows;			/* as indexes, in their order */
} BatcherInsertStep;

extern List *batcher_insert_steps(const BatcherQueueDef *def,
								  BatcherRowType *row_type,
								  BatcherBatch *batch);
extern Bitmapset *batcher_insert_all_columns(const BatcherQueueDef *def,
											 const char *target_name,
											 const BatcherRowType *row_type);
extern char *batcher_insert_sql(const BatcherQueueDef *def,
								const char *target_name,
								const BatcherRowType *row_type,
								const Bitmapset *columns);

/* executor.c */
extern void batcher_executor_run(BatcherLaneView *view, BatcherBatch *batch,
								 double timeout);
extern BatcherPhase batcher_executor_phase;
/* SIGINT has come since the statement began: somebody or a timeout cancels it */
extern volatile sig_atomic_t batcher_executor_cancelled;
extern void batcher_executor_reset(BatcherLaneView *view);
extern bool batcher_executor_overtime(void);
extern void batcher_executor_forget_session(void);
extern void batcher_executor_install(void);

/* notify_sql.c */
extern void batcher_notify_sql_check(const BatcherQueueDef *def,
									 TupleDesc result_desc, bool planning);
extern void batcher_notify_sql_run(BatcherLaneView *view, int size_class,
								   Tuplestorestate *result,
								   TupleDesc result_desc);
extern void batcher_notify_sql_reset(BatcherLaneView *view);

/* message.c */
extern void batcher_message_begin(BatcherLaneView *view);
extern int	batcher_message_made(void);
extern int	batcher_message_channels(void);
extern void batcher_message_cut(int n);
extern void batcher_message_complete(BatcherLaneView *view,
									 BatcherBatch *batch);
extern void batcher_message_keep(void);
extern void batcher_message_send(void);
extern void batcher_message_recover(BatcherLaneView *view);
extern void batcher_message_install(void);

/* payload.c */
extern void batcher_payload_make(BatcherLaneView *view, BatcherBatch *batch);

/* readback.c */
extern void batcher_readback_refill(BatcherLaneView *view,
									BatcherGrave *grave);
extern bool batcher_readback_skip(BatcherLaneView *view,
								  const BatcherSpoolEntry *entry);
extern BatcherChunk *batcher_readback_first(BatcherLaneView *view);
extern BatcherChunk *batcher_readback_next(BatcherChunk *chunk);
extern void batcher_readback_recall(BatcherLaneView *view);
extern bool batcher_readback_low(BatcherLaneView *view);
extern bool batcher_readback_unread(BatcherLaneView *view);
extern bool batcher_readback_settled(BatcherLaneView *view, uint64 upto);
extern void batcher_readback_rewind(BatcherLaneView *view);
extern BatcherChunk *batcher_readback_take(BatcherLaneView *view);
extern void batcher_readback_count_settled(BatcherLaneView *view,
										   int64 nrows);
extern void batcher_readback_release(BatcherLaneView *view,
									 BatcherChunk *chunk);
extern void batcher_readback_reset(BatcherLaneView *view);

/* schedule.c */
extern double batcher_schedule_retry_delay(const BatcherOptions *options,
										   int failures, double random);
extern int	batcher_schedule_limits(BatcherLaneView *view, TimestampTz now,
									int max_rows);
extern bool batcher_schedule_take(BatcherLaneView *view, TimestampTz now,
								  int nrows);
extern void batcher_schedule_flushed(BatcherLaneView *view,
									 const BatcherBatch *batch, bool failed,
									 double ms);
extern void batcher_schedule_give_back(BatcherLaneView *view, int nrows);

/* flush.c */
extern bool batcher_flush_lane(BatcherLaneView *view, bool draining);
extern void batcher_flush_install(void);

#endif							/* BATCHER_BATCH_H */
