/*
 * debug.h
 *	  Named points at which a test makes a process wait, fail or die.
 *
 * Compiled in with -DBATCHER_DEBUG_POINTS only; in a release build they are
 * nothing.  See debug.c for the setting that arms them.
 */
#ifndef BATCHER_DEBUG_H
#define BATCHER_DEBUG_H

#ifdef BATCHER_DEBUG_POINTS
extern void batcher_debug_define(void);
extern void batcher_debug_point(const char *name);
extern int	batcher_debug_limit(const char *name, int limit);
#else
#define batcher_debug_define()		((void) 0)
#define batcher_debug_point(name)	((void) 0)
#define batcher_debug_limit(name, limit) (limit)
#endif

#endif							/* BATCHER_DEBUG_H */
