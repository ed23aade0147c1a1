/* SPDX-License-Identifier: MIT
 *
 * One managed start of a task: the parent's side.
 */
#ifndef RAMET_LAUNCH_H
#define RAMET_LAUNCH_H

#include <linux/sched.h>
#include <stddef.h>

#include "child.h"

struct ramet_launch {
    struct clone_args args;      /* stack is the lowest byte, as the kernel has it */
    size_t size;                 /* the version of clone_args that the kernel is given */
    int use_clone;               /* clone(2) instead of clone3(2) */
    struct ramet_record *record; /* lies where it outlives the task's use of it */
};

/* Blocks all signals, starts the task and restores the mask. fn and arg of the
 * record are set. Returns the thread id, or -errno. */
long ramet_launch(struct ramet_launch *launch);

#endif
