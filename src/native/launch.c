/* SPDX-License-Identifier: MIT */
#include "launch.h"

#include <asm/signal.h>
#include <asm/unistd.h>

#include "ramet.h"
#include "syscall.h"

_Static_assert(sizeof(struct clone_args) == CLONE_ARGS_SIZE_VER2, "fields of clone_args");
_Static_assert(offsetof(struct clone_args, stack) == 40, "clone.S reads stack here");
_Static_assert(offsetof(struct clone_args, stack_size) == 48, "clone.S reads stack_size here");

/* clone(2) has one pointer for both parent_tid and pidfd, and the exit signal in
 * the low byte of the flags. The caller sees to it that the request fits. */
static long start_with_clone(const struct clone_args *args, struct ramet_record *record) {
    __u64 ptid = (args->flags & CLONE_PIDFD) ? args->pidfd : args->parent_tid;
    return ramet_clone(ramet_child_main, record, args->flags | args->exit_signal,
                       (void *)(args->stack + args->stack_size), (int *)ptid, (void *)args->tls,
                       (int *)args->child_tid);
}

long ramet_launch(struct ramet_launch *launch) {
    struct ramet_record *record = launch->record;
    const uint64_t all = ~(uint64_t)0;
    uint64_t mask = 0;

    /* The raw call, since the C library's leaves out the signals that it keeps for
     * itself (32 and 33), whose handlers must not run in the child either. */
    ramet_syscall4(__NR_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&mask, sizeof all);

    /* Shared handlers stay blocked: they would run on a stack and a thread pointer that they
     * know nothing of. So does all in a program, until it execs. */
    record->caller_mask = mask;
    record->mask = (launch->args.flags & CLONE_SIGHAND) || record->program != NULL ? all : mask;
    record->reset_handlers = launch->use_clone && !(launch->args.flags & CLONE_SIGHAND);

    long result = launch->use_clone
                      ? start_with_clone(&launch->args, record)
                      : ramet_clone3(&launch->args, launch->size, ramet_child_main, record);

    ramet_syscall4(__NR_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, sizeof mask);
    return result;
}
