/* SPDX-License-Identifier: MIT
 *
 *     lowest                                                highest
 *     | guard page (no access) | the task's stack  <- | launch record |
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "dumpable.h"
#include "stack.h"

/* What a word holds until the kernel clears it. Any value but 0 will do. */
#define ALIVE 1

#define NANOSECONDS 1000000000

struct ramet_stack *ramet_stack_map(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (size > SIZE_MAX - 2 * page) {
        errno = ENOMEM;
        return NULL;
    }
    struct ramet_stack *stack = calloc(1, sizeof *stack);
    if (stack == NULL) {
        return NULL;
    }
    stack->guard = page;
    stack->total = ((size + page - 1) & ~(page - 1)) + stack->guard;
    void *base = mmap(NULL, stack->total, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        free(stack);
        return NULL;
    }
    stack->base = base;
    if (mprotect(base, stack->guard, PROT_NONE) < 0) {
        int error = errno;
        ramet_stack_unmap(stack);
        errno = error;
        return NULL;
    }
    stack->record = (struct ramet_record *)(stack->base + stack->total) - 1;
    return stack;
}

void ramet_stack_unmap(struct ramet_stack *stack) {
    munmap(stack->base, stack->total);
    free(stack);
}

void ramet_stack_take_back(struct ramet_stack *stack) {
    if (stack->holds_dumpable) {
        stack->holds_dumpable = 0;
        ramet_dumpable_release();
    }
}

int ramet_stack_lend(struct ramet_stack *stack, struct ramet_launch *launch) {
    struct clone_args *args = &launch->args;
    launch->record = stack->record;
    args->stack = (uint64_t)(stack->base + stack->guard);
    args->stack_size = (uint64_t)((char *)stack->record - (stack->base + stack->guard));
    stack->record->returned = 0;
    stack->record->failed = 0;
    stack->record->step = 0;
    const struct ramet_program *program = stack->record->program;
    if (program != NULL && (program->flags & RAMET_PROGRAM_CHANGES_CREDENTIALS) &&
        (args->flags & CLONE_VM)) {
        ramet_dumpable_hold();
        stack->holds_dumpable = 1;
    }
    stack->word = NULL;
    stack->tid = 0;
    stack->released = 0;
    stack->marked = NULL;

    /* Without CLONE_VM the child has a copy of this stack; with CLONE_VFORK it is done with
     * the stack when the call returns.
     * And what a thread returned is read from there. */
    int thread = (args->flags & CLONE_THREAD) != 0;
    int lasting = thread || ((args->flags & CLONE_VM) && !(args->flags & CLONE_VFORK));
    if (lasting && !(args->flags & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID))) {
        args->flags |= CLONE_CHILD_CLEARTID;
        args->child_tid = (uint64_t)&stack->record->tid;
        stack->word = &stack->record->tid;
    } else if (thread) {
        stack->word = (int *)args->child_tid;
    }
    /* Otherwise the kernel, which has one address for both flags, has the caller's word, whose
     * value means nothing to us, since others may write to it: a process is seen to exit. */
    if ((args->flags & CLONE_VM) && (args->flags & CLONE_CHILD_CLEARTID)) {
        stack->marked = (int *)args->child_tid;
        stack->before = *stack->marked;
        *stack->marked = ALIVE;
    }
    return lasting;
}

void ramet_stack_not_started(struct ramet_stack *stack) {
    if (stack->marked != NULL) {
        *stack->marked = stack->before;
    }
}

void ramet_stack_started(struct ramet_stack *stack, const struct ramet_launch *launch, int tid) {
    /* Without a word of ours the id must tell, see below. */
    if ((launch->args.flags & CLONE_THREAD) && stack->word != &stack->record->tid) {
        stack->tid = tid;
    }
}

int ramet_stack_released(struct ramet_stack *stack) {
    if (__atomic_load_n(&stack->released, __ATOMIC_ACQUIRE)) {
        return 1;
    }
    int released = 0;
    if (stack->tid != 0) {
        /* The id goes after the memory (exit_mm and then release_task, kernel/exit.c). */
        released = syscall(SYS_tgkill, getpid(), stack->tid, 0) < 0 && errno == ESRCH;
    } else if (stack->word != NULL) {
        /* Its last act in this memory (mm_release, kernel/fork.c). */
        released = __atomic_load_n(stack->word, __ATOMIC_ACQUIRE) == 0;
    }
    if (released) { /* and stays so, whoever has the id, or the word, next */
        __atomic_store_n(&stack->released, 1, __ATOMIC_RELEASE);
    }
    return released;
}

static int is_before(const struct timespec *a, const struct timespec *b) {
    return a->tv_sec < b->tv_sec || (a->tv_sec == b->tv_sec && a->tv_nsec < b->tv_nsec);
}

/* Where the word is the caller's, the wake-up may go to a waiter of the caller's, or be that of
 * another thread with the same word. So look for the end of the id now and then. When the
 * kernel has cleared the word that is a matter of microseconds. */
static int wait_for_id(int *word, int value, const struct timespec *deadline) {
    const long moment = value == 0 ? 100000 : 10000000;
    struct timespec now;
    struct timespec soon;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (deadline != NULL && !is_before(&now, deadline)) {
        return ETIMEDOUT;
    }
    soon = now;
    soon.tv_nsec += moment;
    if (soon.tv_nsec >= NANOSECONDS) {
        soon.tv_sec++;
        soon.tv_nsec -= NANOSECONDS;
    }
    if (deadline != NULL && is_before(deadline, &soon)) {
        soon = *deadline;
    }
    long result = 0;
    if (value == 0) {
        result = -clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &soon, NULL);
        return result == -EINTR ? EINTR : EAGAIN;
    }
    result =
        syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, &soon, NULL, FUTEX_BITSET_MATCH_ANY);
    return result < 0 && errno != ETIMEDOUT ? errno : EAGAIN;
}

/* The kernel's wake-up is not FUTEX_PRIVATE, and wakes one waiter (mm_release,
 * kernel/fork.c): so neither is our wait, and whoever sees the end wakes the others. */
int ramet_stack_wait(const struct ramet_stack *stack, const struct timespec *deadline) {
    int value = __atomic_load_n(stack->word, __ATOMIC_ACQUIRE);
    if (stack->tid != 0) {
        return wait_for_id(stack->word, value, deadline);
    }
    long result = value == 0 ? 0
                             : syscall(SYS_futex, stack->word, FUTEX_WAIT_BITSET, value, deadline,
                                       NULL, FUTEX_BITSET_MATCH_ANY);
    return result < 0 ? errno : EAGAIN;
}

void ramet_stack_wake(const struct ramet_stack *stack) {
    syscall(SYS_futex, stack->word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}
