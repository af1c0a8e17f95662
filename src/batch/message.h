/*
 * message.h
 *	  Messages: what they are made of, who makes them, who sends them.
 *
 * message.c sends and numbers; payload.c makes the messages of a batch, with
 * parts.c, which divides what is too long, and group.c, which makes one event
 * of several rows.
 */
#ifndef BATCHER_MESSAGE_H
#define BATCHER_MESSAGE_H

#include "batch/batch.h"

/* The server's limit is 8000 bytes with the terminating zero. */
#define BATCHER_MESSAGE_MAX		7999

/*
 * The most that the number of a message adds to it: an epoch of 16 digits, a
 * number of up to 19, the names and the marks.
 */
#define BATCHER_NUMBER_MAX		64

/* What is to be said on one channel about a batch. */
typedef struct BatcherNews
{
	const BatcherQueueDef *def;
	const char *channel;
	uint64		batch;
	int			count;			/* rows of the batch on this channel */
} BatcherNews;

/*
 * One of the things that a list in a message is made of: a row, or an event
 * of several.
 */
typedef struct BatcherItem
{
	Jsonb	   *json;
	uint64		ticket;			/* of its first row */
	int			len;			/* of its text */
} BatcherItem;

/* message.c */
extern void batcher_message_add_object(const char *channel, Jsonb *object,
									   bool dated);
extern void batcher_message_add_text(const char *channel, const char *text);
extern void batcher_message_drop(BatcherLaneView *view);

/* parts.c */
extern void batcher_parts_header(JsonbParseState **state,
								 const BatcherNews *news);
extern int	batcher_parts_room(const BatcherNews *news, const char *name,
							   int nitems);
extern void batcher_parts_add(const BatcherNews *news, const char *name,
							  BatcherItem *items, int nitems);

/* group.c */
extern int	batcher_group_rows(const BatcherOptions *options,
							   const BatcherItem *rows, int nrows, int room,
							   BatcherItem *events);

#endif							/* BATCHER_MESSAGE_H */
