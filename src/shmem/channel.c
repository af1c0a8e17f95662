/*
 * channel.c
 *	  The counts of messages, one for each channel.
 *
 * They are numbered for each database by one sender at a time (batch/message.c),
 * who reads a count before and writes it after the messages have gone out.
 * There is room for so many channels; then those give way that have not been
 * used for the longest time, and begin with another epoch when they are used
 * again.  Each database has a share: who has more gives way to others, and
 * nobody else does.  The control lock protects all of it.  Workers; made by
 * the postmaster.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "shmem/shmem.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

typedef struct ChannelKey
{
	BatcherDatabaseKey db;
	char		name[NAMEDATALEN];
} ChannelKey;

typedef struct Channel
{
	ChannelKey	key;			/* hash key, must be first; zero-padded */
	uint64		epoch;			/* random; when the count began */
	uint64		seq;			/* of the last message */
	TimestampTz used_at;
} Channel;

static HTAB *channels = NULL;

/* Channels counted at the same time. */
static long
max_channels(void)
{
	return Max(batcher_max_queues, 16384);
}

/*
 * What the counts take of shared memory.
 */
Size
batcher_shmem_channels_size(void)
{
	return hash_estimate_size(max_channels(), sizeof(Channel));
}

/*
 * Make or find them, with AddinShmemInitLock.
 */
void
batcher_shmem_channels_init(void)
{
	channels = batcher_shmem_hash("batcher channels", max_channels(),
								  sizeof(ChannelKey), sizeof(Channel));
}

static void
make_key(ChannelKey *key, BatcherDatabaseKey db, const char *name)
{
	memset(key, 0, sizeof(*key));	/* padding is hashed too */
	key->db = db;
	strlcpy(key->name, name, sizeof(key->name));
}

static uint64
new_epoch(void)
{
	return pg_prng_uint64(&pg_global_prng_state);
}

/*
 * Has a channel to give way where 'db' wants room?  A database that has its
 * share takes it of its own channels, else of those who have more than theirs:
 * there are such when all places are taken.
 */
static bool
gives_way(const Channel *channel, const BatcherSharedDatabase *db, long share)
{
	const BatcherSharedDatabase *other;

	if (db->nchannels >= share)
		return memcmp(&channel->key.db, &db->key, sizeof(db->key)) == 0;
	other = batcher_shmem_database_locked(channel->key.db);
	return other == NULL || other->nchannels > share;
}

/* Take a channel away. */
static void
remove_channel(Channel *channel)
{
	BatcherSharedDatabase *db = batcher_shmem_database_locked(channel->key.db);

	if (db)
		db->nchannels--;
	(void) hash_search(channels, &channel->key, HASH_REMOVE, NULL);
}

/*
 * Make room for a channel of 'db': of those that have to give way those go that
 * were last used in the older half of the time since the oldest use.  One at
 * least, and as a rule many, so that it is not done for each new channel when
 * there are more than there is room for.
 */
static void
evict_channels(const BatcherSharedDatabase *db, TimestampTz now)
{
	long		share = max_channels() / batcher_shmem_database_count();
	HASH_SEQ_STATUS status;
	TimestampTz oldest = now;
	Channel    *channel;

	hash_seq_init(&status, channels);
	while ((channel = hash_seq_search(&status)) != NULL)
	{
		if (gives_way(channel, db, share))
			oldest = Min(oldest, channel->used_at);
	}
	hash_seq_init(&status, channels);
	while ((channel = hash_seq_search(&status)) != NULL)
	{
		if (channel->used_at <= oldest + (now - oldest) / 2 &&
			gives_way(channel, db, share))
			remove_channel(channel);
	}
}

/*
 * The count of a channel, made with a new epoch if there is none.
 */
void
batcher_shmem_channel_read(BatcherDatabaseKey db, const char *name,
						   uint64 *epoch, uint64 *seq)
{
	TimestampTz now = GetCurrentTimestamp();
	BatcherSharedDatabase *shared;
	Channel    *channel;
	ChannelKey	key;
	bool		found;

	make_key(&key, db, name);
	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	channel = hash_search(channels, &key, HASH_FIND, &found);
	shared = channel ? NULL : batcher_shmem_database_locked(db);
	if (shared)
	{
		if (hash_get_num_entries(channels) >= max_channels())
			evict_channels(shared, now);
		channel = hash_search(channels, &key, HASH_ENTER_NULL, &found);
		if (channel)
		{
			channel->epoch = new_epoch();
			channel->seq = 0;
			shared->nchannels++;
		}
	}
	*epoch = channel ? channel->epoch : new_epoch();
	*seq = channel ? channel->seq : 0;
	if (channel)
		channel->used_at = now;
	LWLockRelease(&batcher_shared->lock);
}

/*
 * Messages of a channel have gone out, up to this number.  It is forgotten if
 * the channel has given way meanwhile, or has begun another epoch.  Fails never.
 */
void
batcher_shmem_channel_write(BatcherDatabaseKey db, const char *name,
							uint64 epoch, uint64 seq)
{
	Channel    *channel;
	ChannelKey	key;

	make_key(&key, db, name);
	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	channel = hash_search(channels, &key, HASH_FIND, NULL);
	if (channel && channel->epoch == epoch)
		channel->seq = Max(channel->seq, seq);
	LWLockRelease(&batcher_shared->lock);
}

/*
 * Messages of a channel, or of nobody knows which if 'name' is NULL, are lost:
 * another epoch begins, so that whoever listens can tell.
 */
void
batcher_shmem_channel_renew(BatcherDatabaseKey db, const char *name)
{
	HASH_SEQ_STATUS status;
	Channel    *channel;

	LWLockAcquire(&batcher_shared->lock, LW_EXCLUSIVE);
	if (name)
	{
		ChannelKey	key;

		make_key(&key, db, name);
		channel = hash_search(channels, &key, HASH_FIND, NULL);
		if (channel)
			channel->epoch = new_epoch();
	}
	else
	{
		hash_seq_init(&status, channels);
		while ((channel = hash_seq_search(&status)) != NULL)
		{
			if (memcmp(&channel->key.db, &db, sizeof(db)) == 0)
				channel->epoch = new_epoch();
		}
	}
	LWLockRelease(&batcher_shared->lock);
}

/*
 * Forget the channels of a database; the control lock is held exclusively.
 */
void
batcher_shmem_channel_forget(BatcherDatabaseKey db)
{
	HASH_SEQ_STATUS status;
	Channel    *channel;

	hash_seq_init(&status, channels);
	while ((channel = hash_seq_search(&status)) != NULL)
	{
		if (memcmp(&channel->key.db, &db, sizeof(db)) == 0)
			(void) hash_search(channels, &channel->key, HASH_REMOVE, NULL);
	}
}
