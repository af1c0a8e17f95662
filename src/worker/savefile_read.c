/*
 * savefile_read.c
 *	  Checking and restoring the file that outlives a clean stop.
 *
 * The file is read twice: once whole, for its checksum, before anything in it
 * is believed, and then piece by piece into the shared memory, so that it
 * costs the postmaster no memory of the size of the file.  The second reading
 * checks lengths again: no contents can make it fail in another way than by
 * stopping early.  What finds no room is passed over and counted.
 *
 * Runs in the postmaster at its start, while no other process exists, or in a
 * single-user server; raises no error.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "worker/savefile.h"

typedef struct SavedReader
{
	FILE	   *file;
	uint64		left;			/* bytes before the end record */
	int			ndatabases;		/* that were made */
	uint64		nrows;			/* that were restored */
	uint32		nqueues;		/* that were restored */
} SavedReader;

/* Read 'size' bytes of what stands before the end record. */
static bool
read_part(SavedReader *reader, void *to, Size size)
{
	if (size > reader->left ||
		fread(to, 1, size, reader->file) != size)
		return false;
	reader->left -= size;
	return true;
}

/* Pass over 'size' bytes. */
static bool
skip_part(SavedReader *reader, Size size)
{
	if (size > reader->left ||
		fseeko(reader->file, (off_t) size, SEEK_CUR) != 0)
		return false;
	reader->left -= size;
	return true;
}

/*
 * Read the whole file once, before anything in it is believed.  True if it is
 * complete and undamaged and of this build; its first and last records are
 * returned then, and '*size' is the number of bytes before the last.
 */
bool
batcher_savefile_check(FILE *file, BatcherSavedHeader *header,
					   BatcherSavedEnd *end, uint64 *size)
{
	char		buffer[BLCKSZ];
	BatcherSavedHeader expected;
	pg_crc32c	crc;
	off_t		length;
	uint64		left;

	if (fseeko(file, 0, SEEK_END) != 0 || (length = ftello(file)) < 0)
		return false;
	if (length < (off_t) (sizeof(BatcherSavedHeader) + sizeof(BatcherSavedEnd)))
		return false;

	rewind(file);
	INIT_CRC32C(crc);
	left = (uint64) length - sizeof(end->crc);
	while (left > 0)
	{
		Size		n = Min(left, sizeof(buffer));

		if (fread(buffer, 1, n, file) != n)
			return false;
		COMP_CRC32C(crc, buffer, n);
		left -= n;
	}
	FIN_CRC32C(crc);

	*size = (uint64) length - sizeof(BatcherSavedEnd);
	if (fseeko(file, (off_t) *size, SEEK_SET) != 0 ||
		fread(end, sizeof(BatcherSavedEnd), 1, file) != 1)
		return false;
	rewind(file);
	if (fread(header, sizeof(BatcherSavedHeader), 1, file) != 1)
		return false;
	*size -= sizeof(BatcherSavedHeader);

	batcher_savefile_header(&expected, 0, InvalidXLogRecPtr);
	return EQ_CRC32C(crc, end->crc) && end->tag == BATCHER_SAVED_END &&
		memcmp(header, &expected,
			   offsetof(BatcherSavedHeader, system_identifier)) == 0;
}

/* Is a row what it says, within 'size' bytes? */
static bool
row_is_sound(const BatcherRow *row, Size size)
{
	const char *p = (const char *) row + sizeof(BatcherRow);
	Size		left;
	int			nparts = 1;

	if (size < sizeof(BatcherRow) || row->size < sizeof(BatcherRow) ||
		row->size > size || row->size % sizeof(int32) != 0 ||
		(row->flags & BATCHER_ROW_DONE))
		return false;
	left = row->size - sizeof(BatcherRow);
	if (row->flags & BATCHER_ROW_PRIORITY)
	{
		if (left < sizeof(int32))
			return false;
		p += sizeof(int32);
		left -= sizeof(int32);
	}
	if (row->flags & BATCHER_ROW_KEY)
		nparts++;
	if (row->flags & BATCHER_ROW_TOPIC)
		nparts++;
	while (nparts-- > 0)
	{
		Size		part;

		if (left < VARHDRSZ || !VARATT_IS_4B_U(p) ||
			VARSIZE_4B(p) < VARHDRSZ)
			return false;
		part = INTALIGN(VARSIZE_4B(p));
		if (part > left)
			return false;
		p += part;
		left -= part;
	}
	return left == 0;
}

/* Are there exactly 'nrows' sound rows in the chunk's 'nbytes' bytes? */
static bool
rows_are_sound(const BatcherChunk *chunk, int nrows, Size nbytes)
{
	BatcherRow *row = batcher_chunk_first(chunk);
	int			i;

	for (i = 0; i < nrows; i++)
	{
		if (!row_is_sound(row, nbytes))
			return false;
		nbytes -= row->size;
		row = batcher_row_next(row);
	}
	return nbytes == 0;
}

/*
 * Restore a chunk of 'queue', whose tag has been read.  With no queue, or no
 * room for the chunk, it is passed over.  False if the file makes no sense.
 */
static bool
restore_chunk(SavedReader *reader, BatcherSharedQueue *queue)
{
	BatcherSavedChunk saved;
	BatcherChunk *chunk;

	if (!read_part(reader, (char *) &saved + sizeof(saved.tag),
				   sizeof(saved) - sizeof(saved.tag)))
		return false;
	if (saved.nrows == 0 || saved.nbytes > reader->left ||
		saved.nbytes > MaxAllocSize - BLCKSZ ||
		(saved.nrows > 1 &&
		 BATCHER_CHUNK_HEADER + saved.nbytes > BATCHER_CHUNK_SIZE))
		return false;

	chunk = queue ? batcher_chunk_new(saved.nbytes, false) : NULL;
	if (chunk == NULL)
		return skip_part(reader, saved.nbytes);
	if (!read_part(reader, batcher_chunk_first(chunk), saved.nbytes) ||
		!rows_are_sound(chunk, saved.nrows, saved.nbytes))
	{
		batcher_slab_unref(chunk);
		return false;
	}

	chunk->number = saved.number;
	chunk->first_ticket = saved.first_ticket;
	chunk->enqueued_at = saved.enqueued_at;
	chunk->committed_at = saved.committed_at;
	chunk->enqueued_by = saved.enqueued_by;
	chunk->flags = saved.flags &
		(BATCHER_CHUNK_KEYED | BATCHER_CHUNK_IMMEDIATE);
	chunk->nrows = saved.nrows;
	chunk->nlive = saved.nrows;
	pg_atomic_write_u32(&chunk->state, BATCHER_CHUNK_COMMITTED);
	batcher_lane_push(&queue->lane, chunk);
	(void) pg_atomic_fetch_add_u64(&queue->lane.npending, saved.nrows);
	(void) pg_atomic_fetch_add_u64(&queue->main->lane.nbytes,
								   batcher_chunk_bytes(chunk));
	batcher_shmem_add_volatile(saved.nrows);
	reader->nrows += saved.nrows;
	return true;
}

/*
 * Restore a queue, whose tag has been read, into '*queue': NULL if there is
 * no room for it.  False if the file makes no sense.
 */
static bool
restore_queue(SavedReader *reader, BatcherSharedQueue **queue)
{
	BatcherSavedQueue saved;
	int			i;

	*queue = NULL;
	if (!read_part(reader, (char *) &saved + sizeof(saved.tag),
				   sizeof(saved) - sizeof(saved.tag)))
		return false;
	if (!OidIsValid(saved.key.db.dboid) || !OidIsValid(saved.key.db.extoid) ||
		saved.key.queue_id <= 0 || saved.key.lane < 0 ||
		saved.key.lane >= BATCHER_MAX_LANES)
		return false;

	/* one database more than there is room for would be an ERROR */
	if (batcher_shmem_database(saved.key.db, false) == NULL)
	{
		if (reader->ndatabases >= batcher_max_queues)
			return true;
		(void) batcher_shmem_database(saved.key.db, true);
		reader->ndatabases++;
	}
	if (reader->nqueues < batcher_max_queues)
		*queue = batcher_shmem_queue_create(saved.key, false);
	if (*queue == NULL)
		return true;

	/*
	 * Whether the queue is paused is not restored: it follows from its
	 * definition and from settings, which a worker looks at anew.
	 */
	(*queue)->owner_role = saved.owner_role;
	(*queue)->identity = saved.identity;
	(*queue)->last_error_at = saved.last_error_at;
	pg_atomic_write_u64(&(*queue)->batch_number, saved.batch_number);
	for (i = 0; i < BATCHER_NUM_COUNTERS; i++)
		pg_atomic_write_u64(&(*queue)->counters[i], saved.counters[i]);
	saved.name[sizeof(saved.name) - 1] = '\0';
	strlcpy((*queue)->name, saved.name, sizeof((*queue)->name));
	saved.last_sqlstate[sizeof(saved.last_sqlstate) - 1] = '\0';
	strlcpy((*queue)->last_sqlstate, saved.last_sqlstate,
			sizeof((*queue)->last_sqlstate));
	saved.last_error[sizeof(saved.last_error) - 1] = '\0';
	strlcpy((*queue)->last_error, saved.last_error,
			sizeof((*queue)->last_error));
	reader->nqueues++;
	return true;
}

/*
 * Restore all that stands between the header, which has been read, and the
 * end record.  False if the file makes no sense.
 */
static bool
restore_contents(SavedReader *reader)
{
	BatcherSharedQueue *queue = NULL;
	bool		sound = true;

	while (sound && reader->left > 0)
	{
		uint32		tag;

		sound = read_part(reader, &tag, sizeof(tag));
		if (sound && tag == BATCHER_SAVED_QUEUE)
			sound = restore_queue(reader, &queue);
		else if (sound && tag == BATCHER_SAVED_CHUNK)
			sound = restore_chunk(reader, queue);
		else
			sound = false;
	}
	/* children of the postmaster must not inherit a slab to fill */
	batcher_slab_end_transaction();
	return sound;
}

/*
 * Restore what 'file' holds and LOG what came of it.  The file has been
 * checked, which gave 'end' and 'size', and stands behind its header.
 */
void
batcher_savefile_restore(FILE *file, const BatcherSavedEnd *end, uint64 size)
{
	SavedReader reader;
	bool		sound;

	memset(&reader, 0, sizeof(reader));
	reader.file = file;
	reader.left = size;
	sound = restore_contents(&reader);

	if (reader.nrows > 0)
		ereport(LOG,
				(errmsg_plural("restored %llu row of non-durable queues",
							   "restored %llu rows of non-durable queues",
							   (unsigned long) reader.nrows,
							   (unsigned long long) reader.nrows)));
	if (!sound)
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not restore all of file \"%s\"",
						BATCHER_SAVED_FILE),
				 errdetail("Its contents are not what batcher writes; %llu of %llu rows of non-durable queues were restored.",
						   (unsigned long long) reader.nrows,
						   (unsigned long long) end->nrows)));
	else if (reader.nrows < end->nrows)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg_plural("%llu saved row of non-durable queues is lost, because there is no room for it",
							   "%llu saved rows of non-durable queues are lost, because there is no room for them",
							   (unsigned long) (end->nrows - reader.nrows),
							   (unsigned long long) (end->nrows - reader.nrows)),
				 errhint("Do not reduce \"%s\" or \"%s\" while rows wait.",
						 "batcher.shared_memory_size", "batcher.max_queues")));
	else if (reader.nqueues < end->nqueues)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("counters of %u queues are lost, because there is no room for them",
						end->nqueues - reader.nqueues),
				 errhint("Increase \"%s\".", "batcher.max_queues")));
}
