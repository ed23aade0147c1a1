/* SPDX-License-Identifier: MIT
 *
 * The memory that one task runs on, and what tells that the task has let go of it.
 */
#ifndef RAMET_STACK_H
#define RAMET_STACK_H

#include "launch.h"

struct ramet_stack {
    char *base;                  /* of the mapping, guard page included */
    size_t total;                /* length of the mapping */
    size_t guard;                /* length of the guard page */
    struct ramet_record *record; /* at the top of the mapping */
    int *word;                   /* what the kernel clears at the end; NULL: nothing does */
    int tid;                     /* of a thread whose word is its user's; 0: the word is ours */
    int released;                /* the task was seen to have let go */
    int *marked;                 /* the word that says that the task is alive */
    int before;                  /* what it held */
    int holds_dumpable;          /* the task may change its credentials: see dumpable.h */
};

/* Maps a stack of at least size bytes. NULL: errno is set, nothing is mapped. */
struct ramet_stack *ramet_stack_map(size_t size);

void ramet_stack_unmap(struct ramet_stack *stack);

/* Takes back what was lent: no task is on it. */
void ramet_stack_take_back(struct ramet_stack *stack);

/* Lends a stack that no task is on to a launch: fills in record, stack, and what tells
 * of its end. Returns whether a task that is started by it will need the stack after the
 * call. fn, arg and program of the record are set. */
int ramet_stack_lend(struct ramet_stack *stack, struct ramet_launch *launch);

/* The task that it was lent to could not be started: the caller's word is as it was. */
void ramet_stack_not_started(struct ramet_stack *stack);

/* The task that it was lent to has been started. */
void ramet_stack_started(struct ramet_stack *stack, const struct ramet_launch *launch, int tid);

/* Whether the task that it was lent to is known to have let go of it. */
int ramet_stack_released(struct ramet_stack *stack);

/* Waits, while the stack of a thread is not released, until a time of CLOCK_MONOTONIC or, if that
 * is NULL, for ever. Returns EAGAIN (look again), EINTR, ETIMEDOUT, or EFAULT if the
 * caller's word is gone. */
int ramet_stack_wait(const struct ramet_stack *stack, const struct timespec *deadline);

/* Wakes all who wait: the stack is released. */
void ramet_stack_wake(const struct ramet_stack *stack);

#endif
