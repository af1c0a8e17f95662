/*
 * batch.h
 *	  From waiting rows to a committed flush and its message.
 */
#ifndef BATCHER_BATCH_H
#define BATCHER_BATCH_H

#include "catalog/catalog.h"

/* Why a batch left. */
typedef enum BatcherReason
{
	BATCHER_REASON_SIZE,
	BATCHER_REASON_TIME,
	BATCHER_REASON_FORCED,
	BATCHER_REASON_IMMEDIATE,
	BATCHER_REASON_PURGE
} BatcherReason;

/* One row of a batch. */
typedef struct BatcherBatchRow
{
	BatcherChunk *chunk;
	BatcherRow *row;
} BatcherBatchRow;

/* A chunk of which a batch has rows. */
typedef struct BatcherClaim
{
	BatcherChunk *chunk;
	int			first;			/* of its rows in the batch */
	int			nrows;
	bool		gone;			/* its tuple was settled another way */
	ItemPointerData new_tid;	/* of the tuple with the rows that stay;
								 * invalid: none stay */
} BatcherClaim;

typedef struct BatcherBatch
{
	BatcherReason reason;
	uint64		number;			/* of the batch, within its queue */
	int			nrows;
	BatcherBatchRow *rows;		/* rows of one chunk stand together */
	int			nclaims;
	BatcherClaim *claims;
	TimestampTz oldest_at;		/* oldest commit of its rows */
} BatcherBatch;

/* Rows that come from the spool: see readback.c. */
typedef struct BatcherReadback BatcherReadback;

/* The prepared statement: see executor.c. */
typedef struct BatcherExecutor BatcherExecutor;

/*
 * A lane as its owner sees it: private memory of the worker, rebuilt from
 * shared memory and the spool by the next owner.
 */
typedef struct BatcherLaneView
{
	BatcherSharedDatabase *db;
	BatcherSharedQueue *queue;
	BatcherQueueDef *def;
	uint64		generation;		/* of the definitions that 'def' is of */
	BatcherExecutor *executor;
	BatcherReadback *readback;	/* NULL: none */
	int			nimmediate;		/* chunks taken with immediate rows, about */
	bool		has_void;		/* a look met a VOID chunk: sweep */
	TimestampTz deadline;		/* when to look again, BATCHER_NEVER */
	uint64		forced_upto;	/* flush_upto for which a flush has failed */
	void		(*report) (BatcherSharedQueue *queue, int rows);	/* says what
																 * is flushed */
} BatcherLaneView;

/* gather.c */
extern BatcherBatch *batcher_gather(BatcherLaneView *view, TimestampTz now,
									bool draining);
extern void batcher_gather_publish(BatcherLaneView *view);

/* claim.c */
extern bool batcher_claim(BatcherLaneView *view, BatcherBatch *batch,
						  Relation spool);
extern uint64 batcher_claim_deleted(bool reset);
extern void batcher_settle_install(void);
extern void batcher_settle_at_commit(BatcherLaneView *view,
									 BatcherBatch *batch);
extern void batcher_settle_tidy(BatcherLaneView *view, BatcherBatch *batch);
extern void batcher_settle_resync(BatcherLaneView *view, Relation spool);

/* executor.c */
extern void batcher_executor_check(const BatcherQueueDef *def);
extern void batcher_executor_run(BatcherLaneView *view, BatcherBatch *batch);
extern void batcher_executor_reset(BatcherLaneView *view);
extern bool batcher_executor_overtime(void);
extern void batcher_executor_forget_session(void);
extern void batcher_executor_install(void);

/* message.c */
extern void batcher_message_add(BatcherLaneView *view, BatcherBatch *batch);
extern void batcher_message_send(void);
extern void batcher_message_notify(BatcherLaneView *view,
								   BatcherBatch *batch);
extern bool batcher_message_wanted(const BatcherQueueDef *def);
extern void batcher_message_recover(BatcherLaneView *view);
extern void batcher_message_install(void);

/* readback.c */
extern void batcher_readback_refill(BatcherLaneView *view);
extern BatcherChunk *batcher_readback_first(BatcherLaneView *view);
extern BatcherChunk *batcher_readback_next(BatcherChunk *chunk);
extern bool batcher_readback_low(BatcherLaneView *view);
extern bool batcher_readback_settled(BatcherLaneView *view, uint64 upto);
extern void batcher_readback_tidy(BatcherLaneView *view);
extern void batcher_readback_reset(BatcherLaneView *view);
extern void batcher_readback_survey(BatcherSharedDatabase *db);

/* schedule.c */
extern double batcher_schedule_retry_delay(int failures, double random);

/* flush.c */
extern bool batcher_flush_lane(BatcherLaneView *view, bool draining);
extern void batcher_flush_install(void);

#endif							/* BATCHER_BATCH_H */
