/*
 * memcheck.h
 *	  What PostgreSQL tells valgrind, told to AddressSanitizer instead.
 *
 * A server that is compiled with USE_VALGRIND and finds this file in the place
 * of valgrind's own tells AddressSanitizer which bytes of its memory contexts
 * nobody was given.  Without that it would know blocks of malloc only, each of
 * which holds many a palloc.
 *
 * Whether bytes have been given a value is not followed.  There are no pools:
 * the server marks the bytes of a chunk too.
 */
#ifndef BATCHER_POISON_MEMCHECK_H
#define BATCHER_POISON_MEMCHECK_H

#include <sanitizer/asan_interface.h>

#define VALGRIND_MAKE_MEM_NOACCESS(start, len) \
	ASAN_POISON_MEMORY_REGION((start), (len))
#define VALGRIND_MAKE_MEM_UNDEFINED(start, len) \
	ASAN_UNPOISON_MEMORY_REGION((start), (len))
#define VALGRIND_MAKE_MEM_DEFINED(start, len) \
	ASAN_UNPOISON_MEMORY_REGION((start), (len))
#define VALGRIND_CHECK_MEM_IS_DEFINED(start, len)	((void) 0)

#define VALGRIND_CREATE_MEMPOOL(pool, redzone, zeroed)	((void) 0)
#define VALGRIND_DESTROY_MEMPOOL(pool)	((void) 0)
#define VALGRIND_MEMPOOL_ALLOC(pool, start, len) \
	ASAN_UNPOISON_MEMORY_REGION((start), (len))
#define VALGRIND_MEMPOOL_FREE(pool, start)	((void) 0)
#define VALGRIND_MEMPOOL_CHANGE(pool, from, to, len)	((void) 0)

#endif							/* BATCHER_POISON_MEMCHECK_H */
