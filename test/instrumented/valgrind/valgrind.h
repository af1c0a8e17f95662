/*
 * valgrind.h
 *	  The rest of what PostgreSQL takes from valgrind; see memcheck.h.
 */
#ifndef BATCHER_POISON_VALGRIND_H
#define BATCHER_POISON_VALGRIND_H

#define RUNNING_ON_VALGRIND		0
#define VALGRIND_COUNT_ERRORS	0
#define VALGRIND_PRINTF(...)	((void) 0)

#endif							/* BATCHER_POISON_VALGRIND_H */
