/* SPDX-License-Identifier: MIT
 *
 * What a child that shares our memory does to it by a change of credentials.
 *
 * When a task changes its ids or gains capabilities the kernel makes the memory undumpable
 * (commit_creds, kernel/cred.c), which keeps others with the new ids from tracing the task and
 * reading what it has. The memory is ours, too: so it is undumpable as long as such a child
 * shares it, and made as it was when the last of them has let go of it.
 */
#ifndef RAMET_DUMPABLE_H
#define RAMET_DUMPABLE_H

/* Before such a child is started. */
void ramet_dumpable_hold(void);

/* When it has let go of the memory, or was not started. */
void ramet_dumpable_release(void);

/* In a fork, whose memory is a copy that none of them shares. */
void ramet_dumpable_after_fork(void);

#endif
