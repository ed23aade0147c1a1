/* SPDX-License-Identifier: MIT
 *
 * What runs in a task between the trampoline and the user's function.
 */
#ifndef RAMET_CHILD_H
#define RAMET_CHILD_H

#include <stdint.h>

#include "program.h"

/* The launch record: lies at the top of the child's own stack, so it lives just
 * as long as the child may need it. */
struct ramet_record {
    long (*fn)(void *);
    void *arg;
    uint64_t caller_mask; /* the signal mask of the thread that starts the task */
    uint64_t mask;        /* the one that fn runs with */
    int reset_handlers;   /* the kernel has not done CLONE_CLEAR_SIGHAND for us */
    int returned;         /* set, after value, when fn has returned */
    long value;
    int tid; /* non-zero until the kernel clears it: CLONE_CHILD_CLEARTID */

    /* Of a program. */
    const struct ramet_program *program; /* NULL: there is none */
    uint64_t step; /* the one that runs or has failed; at the end their number */
    int failed;    /* set, after step and result */
    long result;
};

/* Entered by the trampoline, with every signal blocked. The argument is a ramet_record. */
long ramet_child_main(void *argument);

/* A function for fn that returns 0 at once: what probes and benchmarks start. */
long ramet_nothing(void *unused);

#endif
