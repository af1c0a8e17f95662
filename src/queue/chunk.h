/*
 * chunk.h
 *	  Rows as bytes: slabs, chunks and rows in the shared area.
 *
 * A chunk is rows of one transaction for one lane, in the order of
 * enqueuing.  It lies in a slab of the shared area, or, when the area has no
 * room and for rows read back from the spool, in private memory, in the same
 * format.  Nothing here knows SQL.
 */
#ifndef BATCHER_CHUNK_H
#define BATCHER_CHUNK_H

#include "shmem/shmem.h"
#include "utils/jsonb.h"

/* Flags of a row. */
#define BATCHER_ROW_PRIORITY	0x0001	/* has a priority other than 0 */
#define BATCHER_ROW_KEY			0x0002	/* has a key */
#define BATCHER_ROW_TOPIC		0x0004	/* has a topic */
#define BATCHER_ROW_IMMEDIATE	0x0008	/* is to leave at once */
#define BATCHER_ROW_DONE		0x0010	/* settled, in a committed transaction */
#define BATCHER_ROW_PURGED		0x0020	/* with DONE: thrown away, not flushed */
#define BATCHER_ROW_RECORDED	0x0040	/* its fate is remembered */
#define BATCHER_ROW_DEAD		0x0080	/* with DONE: it is a dead letter */
#define BATCHER_ROW_SUPERSEDED	0x0100	/* with DONE: another row of its key was
										 * flushed in its stead */
#define BATCHER_ROW_ALONE		0x0200	/* is to be a batch of its own */

/*
 * One row.  After the header, each part aligned to four bytes: the priority
 * (if flagged), the payload, the key, the topic (varlenas with long headers).
 * The flags from DONE to SUPERSEDED, and 'attempts', are changed by the lane's
 * owner; in the inbox the former by whoever holds lane.lock exclusively.
 */
typedef struct BatcherRow
{
	uint32		size;			/* of all of it, a multiple of four */
	uint32		ticket;			/* added to the chunk's first ticket */
	uint16		flags;
	uint16		attempts;		/* times it failed by its own fault */
} BatcherRow;

/* What a row is made from, and what can be read from it. */
typedef struct BatcherRowParts
{
	uint64		ticket;
	struct varlena *payload;	/* a Jsonb */
	text	   *key;			/* NULL: none */
	text	   *topic;			/* NULL: none */
	int32		priority;
	bool		immediate;
	bool		alone;
	int			attempts;
} BatcherRowParts;

/* States of a chunk. */
typedef enum BatcherChunkState
{
	BATCHER_CHUNK_COMMITTING,	/* its transaction may still end either way */
	BATCHER_CHUNK_COMMITTED,
	BATCHER_CHUNK_VOID			/* its transaction rolled back */
} BatcherChunkState;

/* Flags of a chunk. */
#define BATCHER_CHUNK_DURABLE	0x0001	/* has a tuple in the spool */
#define BATCHER_CHUNK_KEYED		0x0002	/* some row has a key */
#define BATCHER_CHUNK_IMMEDIATE	0x0004	/* some row is immediate */
#define BATCHER_CHUNK_PRIVATE	0x0008	/* in private memory */
#define BATCHER_CHUNK_SPILLED	0x0010	/* read back: its tuple's home is
										 * elsewhere */
#define BATCHER_CHUNK_SEEN		0x0020	/* an owner has seen that it is
										 * committed */

/*
 * The header of a chunk; the rows follow.
 *
 * The producer fills everything before it pushes the chunk, then only stores
 * 'committed_at' and 'state'.  The owner of the lane changes the links, 'tid',
 * 'nlive', the flag SEEN and the rows' flags; those of chunks that are in the
 * inbox and committed also thin.c.  'nrows' and 'nlive' count 16
 * bits, which a chunk's size bounds.
 */
typedef struct BatcherChunk
{
	dsa_pointer next;			/* in the inbox the older one, in the taken
								 * list the newer one */
	dsa_pointer previous;		/* in the taken list the older one */
	uint64		number;			/* given at PRE_COMMIT: the order of chunks */
	uint64		first_ticket;
	TimestampTz enqueued_at;	/* start of the transaction that enqueued */
	TimestampTz committed_at;
	pg_atomic_uint32 state;
	Oid			enqueued_by;	/* InvalidOid: restored */
	ItemPointerData tid;		/* of the spool tuple, if DURABLE */
	uint16		slab_offset;	/* from the slab's start, in units of 8 bytes */
	uint16		flags;
	uint16		nrows;
	uint16		nlive;			/* rows not DONE; 0 in one rolled back, when
								 * the owner has seen that */
	uint16		spool_version;	/* of the spool that 'tid' is of */
} BatcherChunk;

/*
 * A chunk in private memory, and what only such a one has: its successor on
 * a list, the name of who enqueued, where the role may be gone, and what is
 * known of its tuple.
 */
typedef struct BatcherPrivateChunk
{
	struct BatcherPrivateChunk *next;
	struct BatcherPrivateChunk *previous;
	char	   *enqueued_by;	/* as stored, in case the chunk's role is gone;
								 * NULL: not stored yet */
	int64		home;			/* of the tuple that it was read from */
	uint64		place;			/* the number by whose order it comes */
	BatcherChunk chunk;			/* the rows follow */
} BatcherPrivateChunk;

#define batcher_private_chunk(c) \
	((BatcherPrivateChunk *) ((char *) (c) - offsetof(BatcherPrivateChunk, chunk)))

/*
 * Bytes that a chunk of more than one row takes at most: so that its tuple
 * in the spool fills a page and never two.
 */
#define BATCHER_CHUNK_SIZE		7600

#define BATCHER_CHUNK_HEADER	MAXALIGN(sizeof(BatcherChunk))

/* A chunk's first row, and the row after a row. */
#define batcher_chunk_first(chunk) \
	((BatcherRow *) ((char *) (chunk) + BATCHER_CHUNK_HEADER))
#define batcher_row_next(row) \
	((BatcherRow *) ((char *) (row) + (row)->size))

/* slab.c */
extern bool batcher_slab_refuses(uint64 bytes, Size size);
extern void *batcher_slab_reserve(Size size);
extern void *batcher_slab_extend(void *end, Size size);
extern void batcher_slab_end_transaction(void);
extern void batcher_slab_unref(BatcherChunk *chunk);
extern uint16 batcher_slab_offset(void *place, Size size);

/* chunk.c */
extern Size batcher_row_size(const BatcherRowParts *parts);
extern BatcherChunk *batcher_chunk_new(Size row_size, bool private_memory);
extern BatcherRow *batcher_chunk_add(BatcherChunk *chunk, BatcherRow *last,
									 const BatcherRowParts *parts, Size size);
extern void batcher_row_read(const BatcherChunk *chunk, BatcherRow *row,
							 BatcherRowParts *parts);
extern text *batcher_row_key(const BatcherChunk *chunk, BatcherRow *row);
extern int32 batcher_row_priority(const BatcherRow *row);
extern Size batcher_chunk_bytes(const BatcherChunk *chunk);
extern bool batcher_chunk_has_ticket(const BatcherChunk *chunk,
									 uint64 ticket);

/* lane.c */
extern bool batcher_lane_spilled(BatcherSharedLane *lane);
extern void batcher_lane_spill_begin(BatcherSharedLane *lane);
extern void batcher_lane_spill_end(BatcherSharedLane *lane);
extern void batcher_lane_spill_mark(BatcherSharedLane *lane);
extern void batcher_lane_spill_known(BatcherSharedLane *lane,
									 BatcherSharedDatabase *db,
									 uint32 restores);
extern bool batcher_lane_spill_clear(BatcherSharedLane *lane, uint64 seen);
extern void batcher_lane_push(BatcherSharedLane *lane, BatcherChunk *chunk);
extern void batcher_lane_decide(BatcherChunk *chunk, bool committed,
								TimestampTz now);
extern uint64 batcher_lane_arriving(BatcherSharedQueue *queue, int nrows);
extern void batcher_lane_arrived(BatcherSharedQueue *queue, uint64 before,
								 int nrows, bool urgent);
extern dsa_pointer batcher_lane_take(BatcherSharedLane *lane);
extern void batcher_lane_release(BatcherSharedQueue *queue,
								 BatcherChunk **chunks, int n);
extern void batcher_lane_sweep(BatcherSharedQueue *queue);
extern dsa_pointer batcher_lane_unlink_settled(BatcherSharedQueue *queue);
extern void batcher_lane_free(BatcherSharedQueue *queue,
							  dsa_pointer released);
extern bool batcher_lane_empty(BatcherSharedLane *lane);
extern void batcher_queue_reset_breaker(BatcherSharedQueue *queue);
extern bool batcher_lane_has_ticket(BatcherSharedLane *lane, uint64 ticket);
extern bool batcher_queue_breaker_open(BatcherSharedQueue *queue);
extern void batcher_lane_discard(BatcherSharedQueue *queue);
extern bool batcher_lane_may_retire(BatcherSharedQueue *queue,
									pg_atomic_uint64 *generation,
									uint64 expected);
extern bool batcher_lane_retire(BatcherQueueKey key, int slot,
								pg_atomic_uint64 *generation,
								uint64 expected);
extern void batcher_queue_discard(BatcherSharedQueue *queue);
extern int	batcher_lane_choose(const text *key, int nlanes);
extern void batcher_lane_discard_database(BatcherDatabaseKey key);

/* thin.c */
extern int64 batcher_lane_thin_inbox(BatcherSharedQueue *queue,
									 pg_atomic_uint64 *generation,
									 uint64 expected);
extern void batcher_lane_thin_taken(BatcherSharedQueue *queue);

/* owner.c */
extern int	batcher_lane_owner(BatcherSharedLane *lane);
extern bool batcher_lane_own(BatcherSharedQueue *queue, int slot);
extern bool batcher_lane_hold(BatcherSharedLane *lane, int slot);
extern void batcher_lane_let_go(BatcherSharedLane *lane);
extern bool batcher_lane_may_own(BatcherSharedQueue *queue, int slot);
extern bool batcher_lane_wants_worker(BatcherSharedQueue *queue);
extern TimestampTz batcher_lane_due(BatcherSharedQueue *queue,
									TimestampTz since);
extern TimestampTz batcher_lane_late(BatcherSharedQueue *queue,
									 TimestampTz due);
extern TimestampTz batcher_lane_stuck_at(BatcherSharedQueue *queue);
extern void batcher_lane_note_due(BatcherSharedQueue *queue, bool urgent);
extern void batcher_lane_wake(BatcherSharedQueue *queue);
extern void batcher_queue_wake(BatcherSharedQueue *queue);

/* fate.c */
typedef enum BatcherFate
{
	BATCHER_FATE_UNKNOWN,
	BATCHER_FATE_FLUSHED,
	BATCHER_FATE_PURGED,
	BATCHER_FATE_DEAD,
	BATCHER_FATE_SUPERSEDED
} BatcherFate;

extern void batcher_fate_record(BatcherSharedQueue *queue, uint64 ticket,
								BatcherFate fate);
extern BatcherFate batcher_fate_find(BatcherQueueKey key,
									 uint64 ticket);
extern void batcher_fate_hand_over(BatcherSharedQueue *queue);
extern void batcher_fate_discard(BatcherSharedQueue *queue);

#endif							/* BATCHER_CHUNK_H */
