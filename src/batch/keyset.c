/*
 * keyset.c
 *	  Sets of keys of rows: those that are held back, those that leave at once.
 *
 * The keys themselves stay in the chunks.  The worker.
 */
#include "postgres.h"

#include "batch/keyset.h"
#include "common/hashfn.h"

typedef struct KeySetEntry
{
	text	   *key;			/* hash key */
} KeySetEntry;

static uint32
key_hash(const void *key, Size keysize)
{
	const text *t = *(text *const *) key;

	return hash_bytes((const unsigned char *) VARDATA(t),
					  VARSIZE(t) - VARHDRSZ);
}

static int
key_compare(const void *a, const void *b, Size keysize)
{
	const text *ta = *(text *const *) a;
	const text *tb = *(text *const *) b;

	if (VARSIZE(ta) != VARSIZE(tb))
		return 1;
	return memcmp(VARDATA(ta), VARDATA(tb), VARSIZE(ta) - VARHDRSZ);
}

/*
 * Add a key; NULL, which is none, is left out.  Allocates in the context that
 * was current at the first key.
 */
void
batcher_keyset_add(BatcherKeySet *set, text *key)
{
	if (key == NULL)
		return;
	if (set->table == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(text *);
		ctl.entrysize = sizeof(KeySetEntry);
		ctl.hash = key_hash;
		ctl.match = key_compare;
		ctl.hcxt = CurrentMemoryContext;
		set->table = hash_create("batcher keys", 32, &ctl,
								 HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
								 HASH_CONTEXT);
	}
	(void) hash_search(set->table, &key, HASH_ENTER, NULL);
}

/*
 * Whether a key is in the set; NULL never is.
 */
bool
batcher_keyset_has(const BatcherKeySet *set, text *key)
{
	return set->table && key &&
		hash_search(set->table, &key, HASH_FIND, NULL) != NULL;
}
