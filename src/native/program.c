/* SPDX-License-Identifier: MIT
 *
 * Runs a program in a child that shares its parent's memory: see child.c for what
 * must not be used here.
 */
#include "program.h"

#include <asm/errno.h>
#include <asm/signal.h>
#include <asm/unistd.h>

#include "child.h"
#include "syscall.h"

#define MOST_ERRNO 4095 /* MAX_ERRNO, include/linux/err.h */

static int is_error(long result) {
    return result < 0 && result >= -MOST_ERRNO;
}

static int is_tolerated(const struct ramet_step *step, long result) {
    unsigned long error = (unsigned long)-result;
    return error < 64 * (sizeof step->tolerated / sizeof *step->tolerated) &&
           (step->tolerated[error / 64] >> error % 64 & 1);
}

static int has_failed(const struct ramet_step *step, long result) {
    if (is_error(result)) {
        return !is_tolerated(step, result);
    }
    return (step->flags & RAMET_STEP_EXPECTS) && result != step->expected;
}

long ramet_run_program(void *argument) {
    struct ramet_record *record = argument;
    const struct ramet_program *program = record->program;
    long results[RAMET_MOST_RESULTS]; /* the first takes what nobody wants */
    long refused = 0; /* the first result worth telling of those that were tried in turn */
    uint64_t refused_at = 0;
    int blocked = 1;

    for (int i = 0; i < RAMET_MOST_RESULTS; i++) {
        results[i] = 0;
    }
    for (uint64_t i = 0; i < program->count; i++) {
        const struct ramet_step *step = &program->steps[i];
        long args[RAMET_ARGUMENTS];
        for (int j = 0; j < RAMET_ARGUMENTS; j++) {
            if (step->from_results >> j & 1) {
                args[j] = results[step->args[j]];
            } else if (step->to_results >> j & 1) {
                args[j] = (long)&results[step->args[j]];
            } else {
                args[j] = (long)step->args[j];
            }
        }
        /* For the parent, if this is the last that is seen of us. */
        __atomic_store_n(&record->step, i, __ATOMIC_RELAXED);
        if (blocked && (step->flags & RAMET_STEP_UNBLOCKS)) {
            blocked = 0;
            ramet_syscall4(__NR_rt_sigprocmask, SIG_SETMASK, (long)&record->caller_mask, 0,
                           sizeof record->caller_mask);
        }
        long result =
            ramet_syscall6(step->number, args[0], args[1], args[2], args[3], args[4], args[5]);
        results[step->slot] = result;
        if (!has_failed(step, result)) {
            continue;
        }
        if (refused == 0 && result != -ENOENT && result != -ENOTDIR) {
            refused = result;
            refused_at = i;
        }
        if (step->flags & RAMET_STEP_OR_NEXT) {
            continue;
        }
        if (refused != 0) {
            result = refused;
            i = refused_at;
        }
        record->result = result;
        __atomic_store_n(&record->step, i, __ATOMIC_RELAXED);
        __atomic_store_n(&record->failed, 1, __ATOMIC_RELEASE);
        return RAMET_FAILED;
    }
    __atomic_store_n(&record->step, program->count, __ATOMIC_RELAXED);
    return 0;
}
