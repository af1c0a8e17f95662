/*
 * savefile.h
 *	  The format of the file that outlives a clean stop; for savefile.c, which
 *	  writes it, and savefile_read.c only.
 */
#ifndef BATCHER_SAVEFILE_H
#define BATCHER_SAVEFILE_H

#include "access/xlogdefs.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "queue/chunk.h"

#define BATCHER_SAVED_FILE		PGSTAT_STAT_PERMANENT_DIRECTORY "/batcher.saved"
#define BATCHER_SAVED_TEMP_FILE BATCHER_SAVED_FILE ".tmp"

/* Changes with the format of the file or of a row. */
#define BATCHER_SAVED_FORMAT	2
#define BATCHER_SAVED_MAGIC		0x62746368

/*
 * The file: a header, then for each queue a queue record and its chunks,
 * oldest first, each followed by the rows as they are in memory, then the end
 * record.  All but the header begin with a tag.  It is read only by the same
 * major version of the server, built alike; the sizes in the header tell.
 */
typedef struct BatcherSavedHeader
{
	uint32		magic;
	uint32		format;
	uint32		server_version; /* major */
	uint32		ncounters;
	uint32		queue_size;
	uint32		chunk_size;
	uint32		row_size;
	uint32		unused;
	uint64		system_identifier;
	XLogRecPtr	checkpoint;		/* the shutdown checkpoint */
} BatcherSavedHeader;

#define BATCHER_SAVED_QUEUE		1
#define BATCHER_SAVED_CHUNK		2
#define BATCHER_SAVED_END		3

typedef struct BatcherSavedQueue
{
	uint32		tag;
	BatcherQueueKey key;
	Oid			owner_role;
	Oid			identity;
	TimestampTz last_error_at;
	uint64		batch_number;
	uint64		counters[BATCHER_NUM_COUNTERS];
	char		name[NAMEDATALEN];
	char		last_sqlstate[6];
	char		last_error[BATCHER_ERROR_MAX];
} BatcherSavedQueue;

typedef struct BatcherSavedChunk
{
	uint32		tag;
	Oid			enqueued_by;
	uint64		number;
	uint64		first_ticket;
	TimestampTz enqueued_at;
	TimestampTz committed_at;
	uint32		nbytes;			/* of the rows that follow */
	uint16		nrows;
	uint16		flags;
} BatcherSavedChunk;

/* 'crc', the last bytes of the file, is of all that stands before it. */
typedef struct BatcherSavedEnd
{
	uint32		tag;
	uint32		unused;
	uint64		nrows;			/* in the whole file */
	uint32		nqueues;
	pg_crc32c	crc;
} BatcherSavedEnd;

/* savefile.c */
extern void batcher_savefile_header(BatcherSavedHeader *header,
									uint64 system_identifier,
									XLogRecPtr checkpoint);

/* savefile_read.c */
extern bool batcher_savefile_check(FILE *file, BatcherSavedHeader *header,
								   BatcherSavedEnd *end, uint64 *size);
extern void batcher_savefile_restore(FILE *file, const BatcherSavedEnd *end,
									 uint64 size);

#endif							/* BATCHER_SAVEFILE_H */
