/*
 * settings.h
 *	  The server settings of batcher.
 */
#ifndef BATCHER_SETTINGS_H
#define BATCHER_SETTINGS_H

extern bool batcher_enabled;
extern int	batcher_enqueue_timeout;	/* ms */
extern int	batcher_max_batch_size; /* rows */
extern int	batcher_flush_interval; /* ms */
extern int	batcher_max_flush_timeout;
extern int	batcher_shutdown_timeout;	/* ms */
extern int	batcher_log_min_duration;	/* ms, -1 off */
extern int	batcher_max_workers;
extern int	batcher_shared_memory_size; /* MB */
extern int	batcher_max_queues;

/*
 * The most that batcher.max_workers may be set to.  Slots for so many are
 * laid out at the start, so that the setting can change by a reload.
 */
#define BATCHER_MAX_WORKERS		64

/* The most lanes that a queue can have. */
#define BATCHER_MAX_LANES		64

extern void batcher_settings_define(void);
extern void batcher_settings_override(void);

#endif							/* BATCHER_SETTINGS_H */
