/*
 * chunk.c
 *	  Rows as bytes: writing them into a chunk and reading them.
 *
 * Runs in clients, which write, and in workers and views, which read.  The
 * format is private to one incarnation of the shared memory; what is stored
 * in the spool is another (catalog/spool.c).
 */
#include "postgres.h"

#include "queue/chunk.h"

/*
 * Bytes that a row takes in a chunk.
 */
Size
batcher_row_size(const BatcherRowParts *parts)
{
	Size		size = sizeof(BatcherRow);

	if (parts->priority != 0)
		size += sizeof(int32);
	size += INTALIGN(VARSIZE_ANY_EXHDR(parts->payload) + VARHDRSZ);
	if (parts->key)
		size += INTALIGN(VARSIZE_ANY_EXHDR(parts->key) + VARHDRSZ);
	if (parts->topic)
		size += INTALIGN(VARSIZE_ANY_EXHDR(parts->topic) + VARHDRSZ);
	return size;
}

/*
 * A new, empty chunk with room for rows of 'row_size' bytes: in the shared
 * area, where it can grow, or NULL if that is full; or in private memory of
 * the current context, with room for all that a chunk may hold.
 */
BatcherChunk *
batcher_chunk_new(Size row_size, bool private_memory)
{
	Size		size = BATCHER_CHUNK_HEADER + row_size;
	BatcherChunk *chunk;

	if (private_memory)
	{
		BatcherPrivateChunk *private;

		private = MemoryContextAllocHuge(CurrentMemoryContext,
										 offsetof(BatcherPrivateChunk, chunk) +
										 Max(size, BATCHER_CHUNK_SIZE));
		memset(private, 0, sizeof(BatcherPrivateChunk));
		chunk = &private->chunk;
		chunk->flags = BATCHER_CHUNK_PRIVATE;
	}
	else
	{
		chunk = batcher_slab_reserve(size);
		if (chunk == NULL)
			return NULL;
		memset(chunk, 0, sizeof(BatcherChunk));
		chunk->slab_offset = batcher_slab_offset(chunk, size);
	}
	pg_atomic_init_u32(&chunk->state, BATCHER_CHUNK_COMMITTING);
	ItemPointerSetInvalid(&chunk->tid);
	return chunk;
}

static char *
put_varlena(char *to, const struct varlena *value)
{
	Size		len = VARSIZE_ANY_EXHDR(value);

	SET_VARSIZE(to, len + VARHDRSZ);
	memcpy(VARDATA(to), VARDATA_ANY(value), len);
	return to + INTALIGN(len + VARHDRSZ);
}

/*
 * Add a row of 'size' bytes (batcher_row_size) to a chunk, after its row
 * 'last' (NULL: it is the first, for which there is room).  Returns the row,
 * or NULL if it does not fit: then it needs a chunk of its own.  (Whoever
 * reads a chunk back has made room for all its rows.)
 */
BatcherRow *
batcher_chunk_add(BatcherChunk *chunk, BatcherRow *last,
				  const BatcherRowParts *parts, Size size)
{
	BatcherRow *row;
	char	   *p;

	if (last == NULL)
	{
		row = batcher_chunk_first(chunk);
		chunk->first_ticket = parts->ticket;
	}
	else
	{
		row = batcher_row_next(last);
		if (((char *) row - (char *) chunk + size > BATCHER_CHUNK_SIZE &&
			 !(chunk->flags & BATCHER_CHUNK_SPILLED)) ||
			parts->ticket < chunk->first_ticket ||
			parts->ticket - chunk->first_ticket > PG_UINT32_MAX)
			return NULL;
		if (!(chunk->flags & BATCHER_CHUNK_PRIVATE) &&
			batcher_slab_extend(row, size) == NULL)
			return NULL;
	}

	row->size = size;
	row->ticket = (uint32) (parts->ticket - chunk->first_ticket);
	row->flags = 0;
	row->attempts = parts->attempts;
	p = (char *) row + sizeof(BatcherRow);
	if (parts->priority != 0)
	{
		row->flags |= BATCHER_ROW_PRIORITY;
		memcpy(p, &parts->priority, sizeof(int32));
		p += sizeof(int32);
	}
	p = put_varlena(p, parts->payload);
	if (parts->key)
	{
		row->flags |= BATCHER_ROW_KEY;
		chunk->flags |= BATCHER_CHUNK_KEYED;
		p = put_varlena(p, parts->key);
	}
	if (parts->topic)
	{
		row->flags |= BATCHER_ROW_TOPIC;
		p = put_varlena(p, parts->topic);
	}
	if (parts->immediate)
	{
		row->flags |= BATCHER_ROW_IMMEDIATE;
		chunk->flags |= BATCHER_CHUNK_IMMEDIATE;
	}
	if (parts->alone)
		row->flags |= BATCHER_ROW_ALONE;
	Assert((Size) (p - (char *) row) == size);
	chunk->nrows++;
	chunk->nlive++;
	return row;
}

/*
 * What a row holds.  The varlenas point into the chunk.
 */
void
batcher_row_read(const BatcherChunk *chunk, BatcherRow *row,
				 BatcherRowParts *parts)
{
	char	   *p = (char *) row + sizeof(BatcherRow);

	memset(parts, 0, sizeof(*parts));
	parts->ticket = chunk->first_ticket + row->ticket;
	parts->attempts = row->attempts;
	parts->immediate = (row->flags & BATCHER_ROW_IMMEDIATE) != 0;
	parts->alone = (row->flags & BATCHER_ROW_ALONE) != 0;
	if (row->flags & BATCHER_ROW_PRIORITY)
	{
		memcpy(&parts->priority, p, sizeof(int32));
		p += sizeof(int32);
	}
	parts->payload = (struct varlena *) p;
	p += INTALIGN(VARSIZE(p));
	if (row->flags & BATCHER_ROW_KEY)
	{
		parts->key = (text *) p;
		p += INTALIGN(VARSIZE(p));
	}
	if (row->flags & BATCHER_ROW_TOPIC)
		parts->topic = (text *) p;
}

/*
 * The key of a row, or NULL.  It points into the chunk.
 */
text *
batcher_row_key(const BatcherChunk *chunk, BatcherRow *row)
{
	BatcherRowParts parts;

	if (!(row->flags & BATCHER_ROW_KEY))
		return NULL;
	batcher_row_read(chunk, row, &parts);
	return parts.key;
}

/*
 * The priority of a row.
 */
int32
batcher_row_priority(const BatcherRow *row)
{
	int32		priority = 0;

	if (row->flags & BATCHER_ROW_PRIORITY)
		memcpy(&priority, (const char *) row + sizeof(BatcherRow),
			   sizeof(priority));
	return priority;
}

/*
 * Bytes of a chunk, with its header.
 */
Size
batcher_chunk_bytes(const BatcherChunk *chunk)
{
	BatcherRow *row = batcher_chunk_first(chunk);
	int			i;

	for (i = 0; i < chunk->nrows; i++)
		row = batcher_row_next(row);
	return (char *) row - (const char *) chunk;
}

/*
 * Whether a chunk has a row with this ticket.
 */
bool
batcher_chunk_has_ticket(const BatcherChunk *chunk, uint64 ticket)
{
	BatcherRow *row = batcher_chunk_first(chunk);
	int			i;

	if (ticket < chunk->first_ticket)
		return false;
	for (i = 0; i < chunk->nrows; i++, row = batcher_row_next(row))
	{
		if (chunk->first_ticket + row->ticket == ticket)
			return true;
	}
	return false;
}
