/*
 * savefile.c
 *	  What survives a clean stop: counters, and rows that are only in memory.
 *
 * The postmaster writes the file when it exits, because only then can nobody
 * push a row any more, and reads it when it has made the shared memory, before
 * any other process exists.  Rows of durable queues are not in it: they are in
 * the spool.
 *
 * No row may come back twice.  The file names the shutdown checkpoint that it
 * belongs to, and is used only while pg_control still shows the server shut
 * down at that checkpoint, so a server that has run since makes it worthless.
 * It is also worthless when the start replays WAL of a server that has gone
 * on (a standby, a recovery from a backup): the rows may have been flushed
 * there.  And it is removed, durably, before any of it is used.  A start that
 * fails before the server has run writes it again.
 *
 * Everything here runs in the postmaster (or in a single-user server), where
 * an ERROR would end the server.  What goes wrong with the file is reported
 * with LOG and costs the rows of non-durable queues, nothing else; the one
 * thing that may raise an ERROR is reading pg_control, without which the
 * server cannot run anyway.  The contents of the file are not trusted.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "base/compat.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "worker/savefile.h"
#include "worker/worker.h"

typedef struct SavedWriter
{
	FILE	   *file;
	pg_crc32c	crc;
	int			error;			/* errno of the first failure, 0: none */
	uint64		nrows;
	uint32		nqueues;
} SavedWriter;

/*
 * The checkpoint of the file that was read at this start, or invalid.  While
 * pg_control shows it, the server has not run yet.
 */
static XLogRecPtr loaded_checkpoint = InvalidXLogRecPtr;

/*
 * The control file in '*control', and whether it is intact and shows a
 * primary that was shut down in good order.  An ERROR if it cannot be read.
 */
static bool
read_control(ControlFileData *control)
{
	bool		intact;
	ControlFileData *copy = get_controlfile(DataDir, &intact);

	memcpy(control, copy, sizeof(ControlFileData));
	pfree(copy);
	return intact && control->state == DB_SHUTDOWNED;
}

/*
 * The header of a file that this server writes now.
 */
void
batcher_savefile_header(BatcherSavedHeader *header, uint64 system_identifier,
						XLogRecPtr checkpoint)
{
	memset(header, 0, sizeof(BatcherSavedHeader));
	header->magic = BATCHER_SAVED_MAGIC;
	header->format = BATCHER_SAVED_FORMAT;
	header->server_version = BATCHER_SERVER_MAJOR;
	header->ncounters = BATCHER_NUM_COUNTERS;
	header->queue_size = sizeof(BatcherSavedQueue);
	header->chunk_size = sizeof(BatcherSavedChunk);
	header->row_size = sizeof(BatcherRow);
	header->system_identifier = system_identifier;
	header->checkpoint = checkpoint;
}

/* Append to the file; after a failure do nothing. */
static void
write_part(SavedWriter *writer, const void *data, Size size)
{
	if (writer->error != 0)
		return;
	COMP_CRC32C(writer->crc, data, size);
	errno = 0;
	if (fwrite(data, 1, size, writer->file) != size)
		writer->error = errno ? errno : ENOSPC;
}

/* Write the rows of a chunk that wait; nothing if there are none. */
static void
write_chunk(SavedWriter *writer, const BatcherChunk *chunk)
{
	BatcherRow *row;
	BatcherSavedChunk saved;
	int			i;

	memset(&saved, 0, sizeof(saved));
	saved.tag = BATCHER_SAVED_CHUNK;
	saved.enqueued_by = chunk->enqueued_by;
	saved.number = chunk->number;
	saved.first_ticket = chunk->first_ticket;
	saved.enqueued_at = chunk->enqueued_at;
	saved.committed_at = chunk->committed_at;
	saved.flags = chunk->flags &
		(BATCHER_CHUNK_KEYED | BATCHER_CHUNK_IMMEDIATE);
	row = batcher_chunk_first(chunk);
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		if (row->flags & BATCHER_ROW_DONE)
			continue;
		saved.nrows++;
		saved.nbytes += row->size;
	}
	if (saved.nrows == 0)
		return;

	write_part(writer, &saved, sizeof(saved));
	row = batcher_chunk_first(chunk);
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		if (!(row->flags & BATCHER_ROW_DONE))
			write_part(writer, row, row->size);
	}
	writer->nrows += saved.nrows;
}

/* Write a queue and the rows of it that are in memory only. */
static void
write_queue(SavedWriter *writer, BatcherSharedQueue *queue)
{
	BatcherSavedQueue saved;
	dsa_pointer p;
	int			i;

	memset(&saved, 0, sizeof(saved));
	saved.tag = BATCHER_SAVED_QUEUE;
	saved.key = queue->key;
	saved.owner_role = queue->owner_role;
	saved.identity = queue->identity;
	saved.last_error_at = queue->last_error_at;
	saved.batch_number = pg_atomic_read_u64(&queue->batch_number);
	for (i = 0; i < BATCHER_NUM_COUNTERS; i++)
		saved.counters[i] = batcher_counter(queue, i);
	strlcpy(saved.name, queue->name, sizeof(saved.name));
	strlcpy(saved.last_sqlstate, queue->last_sqlstate,
			sizeof(saved.last_sqlstate));
	strlcpy(saved.last_error, queue->last_error, sizeof(saved.last_error));
	write_part(writer, &saved, sizeof(saved));
	writer->nqueues++;

	/* nobody owns the lane any more: bring all of it into order */
	(void) batcher_lane_take(&queue->lane);
	for (p = queue->lane.taken_head; DsaPointerIsValid(p);)
	{
		BatcherChunk *chunk = batcher_area_address(p);

		if (pg_atomic_read_u32(&chunk->state) == BATCHER_CHUNK_COMMITTED &&
			!(chunk->flags & BATCHER_CHUNK_DURABLE))
			write_chunk(writer, chunk);
		p = chunk->next;
	}
}

/* Write the queues of 'list' into the open file; then it is closed. */
static void
write_contents(SavedWriter *writer, const ControlFileData *control,
			   BatcherSharedQueue **list, int nqueues)
{
	BatcherSavedHeader header;
	BatcherSavedEnd end;
	int			i;

	INIT_CRC32C(writer->crc);
	batcher_savefile_header(&header, control->system_identifier,
							control->checkPoint);
	write_part(writer, &header, sizeof(header));
	for (i = 0; i < nqueues; i++)
	{
		BatcherSharedDatabase *db;

		db = batcher_shmem_database(list[i]->key.db, false);
		if (db && !pg_atomic_read_u32(&db->gone))
			write_queue(writer, list[i]);
	}

	memset(&end, 0, sizeof(end));
	end.tag = BATCHER_SAVED_END;
	end.nrows = writer->nrows;
	end.nqueues = writer->nqueues;
	write_part(writer, &end, offsetof(BatcherSavedEnd, crc));
	FIN_CRC32C(writer->crc);
	end.crc = writer->crc;
	write_part(writer, &end.crc, sizeof(end.crc));

	errno = 0;
	if (FreeFile(writer->file) != 0 && writer->error == 0)
		writer->error = errno ? errno : EIO;
}

/*
 * Write the file for the checkpoint of 'control' and put it in place, or LOG
 * why not.
 */
static void
write_file(const ControlFileData *control)
{
	SavedWriter writer;
	BatcherSharedQueue **list;
	int			nqueues;

	list = palloc_extended(batcher_max_queues * sizeof(BatcherSharedQueue *),
						   MCXT_ALLOC_HUGE | MCXT_ALLOC_NO_OOM);
	if (list == NULL)
	{
		ereport(LOG,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not write file \"%s\": out of memory",
						BATCHER_SAVED_FILE)));
		return;
	}
	nqueues = batcher_shmem_queue_list(InvalidOid, list, batcher_max_queues);
	if (nqueues == 0)
	{
		pfree(list);
		return;
	}

	memset(&writer, 0, sizeof(writer));
	writer.file = AllocateFile(BATCHER_SAVED_TEMP_FILE, PG_BINARY_W);
	if (writer.file == NULL)
		writer.error = errno;
	else
		write_contents(&writer, control, list, nqueues);
	pfree(list);

	if (writer.error != 0)
	{
		errno = writer.error;
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m",
						BATCHER_SAVED_TEMP_FILE),
				 errdetail("Counters of queues and waiting rows of non-durable queues are lost.")));
		(void) unlink(BATCHER_SAVED_TEMP_FILE);
		return;
	}
	if (durable_rename(BATCHER_SAVED_TEMP_FILE, BATCHER_SAVED_FILE, LOG) != 0)
	{
		(void) unlink(BATCHER_SAVED_TEMP_FILE);
		return;
	}
	if (writer.nrows > 0)
		ereport(LOG,
				(errmsg_plural("saved %llu row of non-durable queues",
							   "saved %llu rows of non-durable queues",
							   (unsigned long) writer.nrows,
							   (unsigned long long) writer.nrows)));
}

/*
 * The server stops in good order.  In the postmaster, when all other processes
 * have ended; what the control file says decides.
 */
static void
save_at_stop(void)
{
	ControlFileData control;

	if (batcher_shared == NULL || IsUnderPostmaster)
		return;
	if (read_control(&control))
		write_file(&control);
	else
		batcher_shmem_report_lost();
}

/*
 * The start has failed, after the file was removed and before the server has
 * run (an address in use, a mistake in pg_hba.conf): write it again.  Not when
 * the memory is made anew after a crash, which goes through here, too.
 */
static void
save_after_failed_start(int code, Datum arg)
{
	ControlFileData control;

	if (code == 0 || !proc_exit_inprogress || IsUnderPostmaster)
		return;
	if (read_control(&control) && control.checkPoint == loaded_checkpoint)
		write_file(&control);
}

/*
 * Will this start replay WAL?  The control file alone does not tell, if the
 * data directory is a copy made while the server was down.
 */
static bool
recovery_is_wanted(void)
{
	struct stat st;

	return stat(RECOVERY_SIGNAL_FILE, &st) == 0 ||
		stat(STANDBY_SIGNAL_FILE, &st) == 0 ||
		stat(BACKUP_LABEL_FILE, &st) == 0;
}

/*
 * The shared memory has been made.  In the postmaster, at its start and again
 * after a crash of another process; then there is no file, or one that the
 * control file shows to be worthless.
 */
static void
load_at_start(void)
{
	ControlFileData control;
	BatcherSavedHeader header;
	BatcherSavedEnd end;
	uint64		size;
	FILE	   *file;
	bool		undamaged;

	loaded_checkpoint = InvalidXLogRecPtr;
	if (batcher_shared == NULL || IsUnderPostmaster)
		return;
	(void) unlink(BATCHER_SAVED_TEMP_FILE);
	file = AllocateFile(BATCHER_SAVED_FILE, PG_BINARY_R);
	if (file == NULL && errno == ENOENT)
		return;
	if (file == NULL)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", BATCHER_SAVED_FILE)));
		(void) durable_unlink(BATCHER_SAVED_FILE, LOG);
		return;
	}

	undamaged = batcher_savefile_check(file, &header, &end, &size);
	if (durable_unlink(BATCHER_SAVED_FILE, LOG) != 0)
		ereport(LOG,
				(errmsg("ignoring file \"%s\"", BATCHER_SAVED_FILE),
				 errdetail("What cannot be removed could be restored twice.")));
	else if (!undamaged)
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ignoring file \"%s\"", BATCHER_SAVED_FILE),
				 errdetail("It is damaged, or was written by another version.")));
	else if (!read_control(&control) ||
			 header.system_identifier != control.system_identifier ||
			 header.checkpoint != control.checkPoint || recovery_is_wanted())
	{
		if (end.nrows > 0)
			ereport(LOG,
					(errmsg("rows of non-durable queues saved at an earlier stop are discarded"),
					 errdetail_plural("The file \"%s\" held %llu row, and does not belong to the last stop of this server.",
									  "The file \"%s\" held %llu rows, and does not belong to the last stop of this server.",
									  (unsigned long) end.nrows,
									  BATCHER_SAVED_FILE,
									  (unsigned long long) end.nrows)));
	}
	else
	{
		/* before the first use, so that no failure can come between */
		loaded_checkpoint = control.checkPoint;
		batcher_shared->after_crash = false;
		on_shmem_exit(save_after_failed_start, (Datum) 0);
		batcher_savefile_restore(file, &end, size);
	}
	(void) FreeFile(file);
}

/*
 * Have counters and rows that are in memory only saved at a clean stop and
 * restored at the start after it.  From _PG_init.
 */
void
batcher_savefile_install(void)
{
	batcher_shmem_at_startup(load_at_start, save_at_stop);
}
