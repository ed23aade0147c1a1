/* SPDX-License-Identifier: MIT
 *
 * Copies of this process.
 */
#ifndef RAMET_PRIVATE_H
#define RAMET_PRIVATE_H

#include <linux/sched.h>
#include <stddef.h>

/* Copies this process, which has one thread, between PyOS_BeforeFork and what belongs after it.
 * tid_offset is where the C library has its copy of the thread's id. Returns the pid, 0 in the
 * copy, or -errno. */
long ramet_copy_process(struct clone_args *args, size_t size, int use_clone, long tid_offset);

#endif
