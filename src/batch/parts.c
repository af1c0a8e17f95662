/*
 * parts.c
 *	  Dividing what is to be said on a channel into messages that fit.
 *
 * NOTIFY takes BATCHER_MESSAGE_MAX bytes, in the server's encoding.  So a list
 * of rows or events goes out in parts, each a message that can be read by
 * itself; an item that is too large for one is named by its ticket.  The length
 * of a message is known beforehand, because the server's code puts a list
 * together from the texts of its items, with ", " between them.
 *
 * With the encoding zlib a part has in place of its list a text: JSON in UTF-8,
 * which means the same whatever the encoding of the server and the client, as
 * a zlib stream in base64.  How much fits is found by trying.  The worker.
 */
#include "postgres.h"

#include <zlib.h>

#include "base/json.h"
#include "batch/message.h"
#include "catalog/namespace.h"
#include "common/base64.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/* The most that "at" adds to a message. */
#define DATE_MAX			64

/*
 * Longest list in a compressed part, as text, so that a client knows what it
 * may have to make room for.
 */
#define COMPRESSED_MAX		(1024 * 1024)

/*
 * A value of this size has a text that is longer than that: one of four bytes
 * ("[], ") takes eight, one of three ("1, ") twelve.
 */
#define TEXT_TRIED_MAX		(8 * COMPRESSED_MAX)

/* A part of a list: 'n' items from 'first' on. */
typedef struct Part
{
	int			first;
	int			n;
	char	   *data;			/* compressed; NULL: the items */
} Part;

/* How a list is divided. */
typedef struct Division
{
	Part	   *parts;
	int			nparts;
	bool	   *named;			/* of each item: is it only named? */
	int			nnamed;
} Division;

/*
 * Begin a message about a batch, with what all formats have.
 */
void
batcher_parts_header(JsonbParseState **state, const BatcherNews *news)
{
	pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	batcher_json_string(state, "type", "batch");
	batcher_json_string(state, "queue", news->def->name);
	batcher_json_integer(state, "batch", news->batch);
	batcher_json_integer(state, "count", news->count);
}

/* The same with the number of a part. */
static void
begin_part(JsonbParseState **state, const BatcherNews *news, int part,
		   int nparts)
{
	batcher_parts_header(state, news);
	batcher_json_integer(state, "part", part);
	batcher_json_integer(state, "parts", nparts);
}

/* What stands for an item that is too large. */
static Jsonb *
name_item(const BatcherItem *item)
{
	JsonbParseState *state = NULL;
	JsonbValue	yes;

	yes.type = jbvBool;
	yes.val.boolean = true;
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	batcher_json_integer(&state, "ticket", item->ticket);
	batcher_json_key(&state, "too_large");
	pushJsonbValue(&state, WJB_VALUE, &yes);
	return batcher_json_end(&state);
}

/*
 * How many bytes a message that has a list of this name has for the texts of
 * the items and what is between them, whatever its numbers.
 */
int
batcher_parts_room(const BatcherNews *news, const char *name, int nitems)
{
	JsonbParseState *state = NULL;
	int			len;

	begin_part(&state, news, nitems, nitems);
	batcher_json_key(&state, name);
	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	(void) batcher_json_text(batcher_json_end(&state), &len);
	return BATCHER_MESSAGE_MAX - len - BATCHER_NUMBER_MAX - DATE_MAX;
}

/* The same for the base64 text of a compressed list. */
static int
compressed_room(const BatcherNews *news, const char *name, int nitems)
{
	JsonbParseState *state = NULL;
	int			len;

	begin_part(&state, news, nitems, nitems);
	batcher_json_string(&state, "encoding", "zlib");
	batcher_json_string(&state, name, "");
	(void) batcher_json_text(batcher_json_end(&state), &len);
	return BATCHER_MESSAGE_MAX - len - BATCHER_NUMBER_MAX - DATE_MAX;
}

/* The texts of all items are measured; what is clearly too long is not made. */
static void
measure(BatcherItem *items, int nitems)
{
	int			i;

	for (i = 0; i < nitems; i++)
	{
		if (VARSIZE(items[i].json) > TEXT_TRIED_MAX)
			items[i].len = INT_MAX / 2;
		else
			pfree(batcher_json_text(items[i].json, &items[i].len));
	}
}

/* Push an item, or what stands for it. */
static void
push_item(JsonbParseState **state, const BatcherItem *item, bool named)
{
	batcher_json_push(state, WJB_ELEM, named ? name_item(item) : item->json);
}

static Division *
new_division(int nitems)
{
	Division   *d = palloc0(sizeof(Division));

	d->parts = MemoryContextAllocHuge(CurrentMemoryContext,
									  sizeof(Part) * nitems);
	d->named = MemoryContextAllocHuge(CurrentMemoryContext,
									  sizeof(bool) * nitems);
	memset(d->named, false, sizeof(bool) * nitems);
	return d;
}

static int
named_length(const BatcherItem *item)
{
	int			len;

	pfree(batcher_json_text(name_item(item), &len));
	return len;
}

/* Divide a list of items into parts that have them as they are. */
static Division *
divide(const BatcherItem *items, int nitems, int room)
{
	Division   *d = new_division(nitems);
	Part	   *part = NULL;
	int			used = 0;
	int			i;

	for (i = 0; i < nitems; i++)
	{
		int			len = items[i].len;

		if (len > room)
		{
			d->named[i] = true;
			d->nnamed++;
			len = named_length(&items[i]);
		}
		if (part == NULL || used + 2 + len > room)
		{
			part = &d->parts[d->nparts++];
			part->first = i;
			part->n = 0;
			part->data = NULL;
			used = -2;			/* before the first there is no comma */
		}
		part->n++;
		used += 2 + len;
	}
	return d;
}

/* A text in UTF-8, or NULL if it cannot be had. */
static char *
to_utf8(const char *text, int len)
{
	int			encoding = GetDatabaseEncoding();
	Oid			conversion;
	char	   *converted;
	int			size = len * MAX_CONVERSION_GROWTH + 1;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return unconstify(char *, text);
	conversion = FindDefaultConversionProc(encoding, PG_UTF8);
	if (!OidIsValid(conversion))
		return NULL;
	converted = palloc(size);
	if (pg_do_encoding_conversion_buf(conversion, encoding, PG_UTF8,
									  (unsigned char *) unconstify(char *, text),
									  len, (unsigned char *) converted,
									  size, true) != len)
		return NULL;			/* a character that Unicode has not */
	return converted;
}

/* The base64 text of what a text is compressed to; NULL if over 'room' bytes. */
static char *
compress_text(const char *text, int room)
{
	uLongf		size = compressBound(strlen(text));
	Bytef	   *data = palloc(size);
	char	   *base64;
	int			len;

	if (compress(data, &size, (const Bytef *) text, strlen(text)) != Z_OK)
		return NULL;
	len = pg_b64_enc_len(size);
	if (len > room)
		return NULL;
	base64 = palloc(len + 1);
	len = pg_b64_encode((const void *) data, size, base64, len);
	if (len < 0)
		return NULL;
	base64[len] = '\0';
	return base64;
}

/*
 * Compress the list of these items into base64 text of at most 'room' bytes;
 * NULL if that does not do.
 */
static char *
compress_items(const BatcherItem *items, const bool *named, int n, int room)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext,
											  "compressed part",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(cxt);
	JsonbParseState *state = NULL;
	char	   *text;
	Jsonb	   *list;
	int			len;
	int			i;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (i = 0; i < n; i++)
		push_item(&state, &items[i], named[i]);
	list = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
	text = batcher_json_text(list, &len);
	text = to_utf8(text, len);
	if (text)
		text = compress_text(text, room);
	MemoryContextSwitchTo(caller);
	if (text)
		text = pstrdup(text);
	MemoryContextDelete(cxt);
	return text;
}

/*
 * Make one part of the items from the beginning, of at most 'max' items, as
 * many as go into it, nearly.  'guess' is how many that might be, and then how
 * many they are.  NULL: not even one.
 */
static char *
fill_compressed(const BatcherItem *items, const bool *named, int max, int room,
				int *guess)
{
	int			fits = 0;
	int			fails = max + 1;
	char	   *data = NULL;

	while (fails - fits > 1 + fits / 8)
	{
		int			n = Min(Max(*guess, fits + 1), fails - 1);
		char	   *tried = compress_items(items, named, n, room);

		CHECK_FOR_INTERRUPTS();
		if (tried)
		{
			if (data)
				pfree(data);
			data = tried;
			fits = n;
			*guess = (int) (n * 0.97 * room / strlen(tried));
		}
		else
		{
			fails = n;
			*guess = (fits + fails) / 2;
		}
	}
	*guess = fits;
	return data;
}

/*
 * Divide a list of items into compressed parts; NULL if that makes no fewer
 * messages than 'plain', and lets no more items be seen.
 */
static Division *
divide_compressed(const BatcherItem *items, int nitems, int room,
				  const Division *plain)
{
	Division   *d = new_division(nitems);
	int			guess = 64;
	int			i;

	for (i = 0; i < nitems; i++)
	{
		/* would it fill a part alone? */
		if (items[i].len > COMPRESSED_MAX ||
			(items[i].len > room / 3 &&
			 compress_items(&items[i], &d->named[i], 1, room) == NULL))
		{
			d->named[i] = true;
			d->nnamed++;
		}
	}
	for (i = 0; i < nitems;)
	{
		Part	   *part = &d->parts[d->nparts++];
		Size		text = 2;
		int			max = 0;

		if (d->nparts > plain->nparts ||
			(d->nparts == plain->nparts && d->nnamed == plain->nnamed))
			return NULL;
		while (i + max < nitems && text <= COMPRESSED_MAX)
		{
			text += 2 + (d->named[i + max] ? 0 : items[i + max].len);
			max++;
		}
		if (text > COMPRESSED_MAX && max > 1)
			max--;
		part->first = i;
		part->data = fill_compressed(&items[i], &d->named[i], max, room,
									 &guess);
		if (part->data == NULL)
			return NULL;		/* what cannot be told in UTF-8 */
		part->n = guess;
		i += part->n;
	}
	return d;
}

/* One part of a list, without its number. */
static Jsonb *
make_part(const BatcherNews *news, const char *name, const BatcherItem *items,
		  const Division *d, int i)
{
	const Part *part = &d->parts[i];
	JsonbParseState *state = NULL;
	int			j;

	begin_part(&state, news, i + 1, d->nparts);
	if (part->data)
	{
		batcher_json_string(&state, "encoding", "zlib");
		batcher_json_string(&state, name, part->data);
	}
	else
	{
		batcher_json_key(&state, name);
		pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
		for (j = part->first; j < part->first + part->n; j++)
			push_item(&state, &items[j], d->named[j]);
		pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	}
	return batcher_json_end(&state);
}

/*
 * Tell a channel of items: as many messages as are needed, with lists of this
 * name.
 */
void
batcher_parts_add(const BatcherNews *news, const char *name,
				  BatcherItem *items, int nitems)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext cxt = AllocSetContextCreate(caller, "part",
											  ALLOCSET_DEFAULT_SIZES);
	Division   *d;
	int			i;

	measure(items, nitems);
	d = divide(items, nitems, batcher_parts_room(news, name, nitems));
	if (news->def->options.notify_encoding == BATCHER_ENCODING_ZLIB &&
		(d->nparts > 1 || d->nnamed > 0))
	{
		Division   *compressed =
			divide_compressed(items, nitems,
							  compressed_room(news, name, nitems), d);

		if (compressed)
			d = compressed;
	}
	for (i = 0; i < d->nparts; i++)
	{
		MemoryContextSwitchTo(cxt);
		batcher_message_add_object(news->channel,
								   make_part(news, name, items, d, i), true);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(cxt);
	}
}
