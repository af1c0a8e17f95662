/*
 * admin.h
 *	  Calls that change queues.
 */
#ifndef BATCHER_ADMIN_H
#define BATCHER_ADMIN_H

#include "catalog/catalog.h"

extern BatcherQueueDef *batcher_admin_lookup(const char *name);

#endif							/* BATCHER_ADMIN_H */
