/*
 * payload.c
 *	  What is said about a batch, and on which channels.
 *
 * The rows that were flushed are sorted by channel, in their order, and each
 * channel is told of its rows in the queue's format.  It is done in the flush,
 * before its commit, because the rows are gone afterwards.  What cannot be
 * made (a payload so deep that it does not fit into another object) costs the
 * message and never the rows.  The worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/json.h"
#include "batch/message.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* A row that was flushed. */
typedef struct FlushedRow
{
	BatcherRowParts parts;
	struct FlushedRow *next;	/* on the same channel */
} FlushedRow;

/* The rows of a batch on one channel. */
typedef struct ChannelRows
{
	char		channel[NAMEDATALEN];	/* hash key, must be first */
	FlushedRow *first;
	FlushedRow *last;
	int			nrows;
} ChannelRows;

static void
append_text(StringInfo s, const text *t)
{
	if (t)
		appendBinaryStringInfo(s, VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t));
}

/* The channel for a row, in 'channel'; it is never unusable. */
static void
expand_channel(const BatcherQueueDef *def, const BatcherRowParts *parts,
			   StringInfo s, char *channel)
{
	const char *p = def->options.notify_channel;

	resetStringInfo(s);
	while (*p)
	{
		if (strncmp(p, "{queue}", 7) == 0)
		{
			appendStringInfoString(s, def->name);
			p += 7;
		}
		else if (strncmp(p, "{topic}", 7) == 0)
		{
			append_text(s, parts->topic);
			p += 7;
		}
		else if (strncmp(p, "{key}", 5) == 0)
		{
			append_text(s, parts->key);
			p += 5;
		}
		else
			appendStringInfoChar(s, *p++);
	}
	strlcpy(channel,
			s->len == 0 || s->len > BATCHER_NAME_MAX ? def->name : s->data,
			NAMEDATALEN);
}

/* Sort the rows that were flushed by channel: a list of ChannelRows. */
static List *
sort_by_channel(const BatcherQueueDef *def, BatcherBatch *batch)
{
	FlushedRow *rows = MemoryContextAllocHuge(CurrentMemoryContext,
											  sizeof(FlushedRow) * batch->nrows);
	HASHCTL		ctl;
	HTAB	   *table;
	List	   *list = NIL;
	StringInfoData s;
	int			i;

	ctl.keysize = NAMEDATALEN;
	ctl.entrysize = sizeof(ChannelRows);
	ctl.hcxt = CurrentMemoryContext;
	table = hash_create("channels of a batch", 16, &ctl,
						HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	initStringInfo(&s);
	for (i = 0; i < batch->nrows; i++)
	{
		FlushedRow *row = &rows[i];
		char		channel[NAMEDATALEN];
		ChannelRows *on;
		bool		found;

		if (batch->rows[i].outcome != BATCHER_OUTCOME_FLUSHED)
			continue;
		batcher_batch_read(&batch->rows[i], &row->parts);
		row->next = NULL;
		expand_channel(def, &row->parts, &s, channel);
		on = hash_search(table, channel, HASH_ENTER, &found);
		if (found)
			on->last->next = row;
		else
		{
			on->first = row;
			on->nrows = 0;
			list = lappend(list, on);
		}
		on->last = row;
		on->nrows++;
	}
	return list;
}

/* Tell one channel of its rows. */
static void
tell_channel(const BatcherNews *news, const ChannelRows *on)
{
	const BatcherOptions *options = &news->def->options;
	BatcherItem *items;
	FlushedRow *row;
	int			n = 0;

	if (options->notify_format == BATCHER_NOTIFY_SUMMARY)
	{
		JsonbParseState *state = NULL;

		batcher_parts_header(&state, news);
		batcher_message_add_object(news->channel, batcher_json_end(&state),
								   true);
		return;
	}
	items = MemoryContextAllocHuge(CurrentMemoryContext,
								   sizeof(BatcherItem) * on->nrows);
	for (row = on->first; row; row = row->next)
	{
		items[n].json = (Jsonb *) row->parts.payload;
		items[n].ticket = row->parts.ticket;
		n++;
	}
	if (options->notify_format == BATCHER_NOTIFY_ROWS)
		batcher_parts_add(news, "rows", items, n);
	else
	{
		int			room = batcher_parts_room(news, "events", n);
		BatcherItem *events;

		events = MemoryContextAllocHuge(CurrentMemoryContext,
										sizeof(BatcherItem) * n);
		n = batcher_group_rows(options, items, n, room, events);
		batcher_parts_add(news, "events", events, n);
	}
}

/* Make all messages of the batch. */
static void
make_messages(BatcherLaneView *view, BatcherBatch *batch)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "batcher payload",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = CurrentMemoryContext;
	List	   *list = sort_by_channel(view->def, batch);
	ListCell   *lc;

	foreach(lc, list)
	{
		ChannelRows *on = lfirst(lc);
		BatcherNews news = {
			.def = view->def,
			.channel = on->channel,
			.batch = batch->number,
			.count = on->nrows
		};

		MemoryContextSwitchTo(cxt);
		tell_channel(&news, on);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(cxt);
	}
}

/*
 * Make the messages of a batch whose rows have been flushed, in the
 * transaction in progress, unless the queue's own SQL makes them.
 */
void
batcher_payload_make(BatcherLaneView *view, BatcherBatch *batch)
{
	const BatcherOptions *options = &view->def->options;
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool failed = false;

	if (options->notify_sql != NULL || options->notify_channel == NULL ||
		options->notify_format == BATCHER_NOTIFY_NONE || batch->nflushed == 0)
		return;
	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		make_messages(view, batch);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
		{
			case ERRCODE_OPERATOR_INTERVENTION:
			case ERRCODE_INSUFFICIENT_RESOURCES:
				RESUME_INTERRUPTS();
				PG_RE_THROW();	/* it may pass */
		}
		EmitErrorReport();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		failed = true;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
	if (failed)
		batcher_message_drop(view); /* it may wait for another sender */
}
