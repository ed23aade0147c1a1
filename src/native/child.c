/* SPDX-License-Identifier: MIT
 *
 * Runs in the child, which may share the parent's memory and its thread
 * pointer. Hence no C library, no errno, no lock, no allocation and no lazy
 * binding here; the build turns off stack protectors and sanitizers for this
 * file, since both reach for thread-local or global state.
 */
#include "child.h"

#include <asm/signal.h>
#include <asm/unistd.h>
#include <stddef.h>

#include "syscall.h"

/* _NSIG of every architecture here (asm-generic/signal.h). */
#define SIGNALS 64

/* The kernel's own struct sigaction: the C library's has another layout. */
struct kernel_sigaction {
    __sighandler_t handler;
    unsigned long flags;
#ifdef __x86_64__
    void (*restorer)(void);
#endif
    uint64_t mask;
};

/* What CLONE_CLEAR_SIGHAND does (flush_signal_handlers, kernel/signal.c), for
 * clone(2), which has no such flag: handlers become SIG_DFL, SIG_IGN stays.
 * SIGKILL and SIGSTOP answer EINVAL, which changes nothing. */
static void reset_handlers(void) {
    for (long signal = 1; signal <= SIGNALS; signal++) {
        struct kernel_sigaction action = {.handler = SIG_DFL};
        long error =
            ramet_syscall4(__NR_rt_sigaction, signal, 0, (long)&action, sizeof action.mask);
        if (error == 0 && action.handler != SIG_DFL && action.handler != SIG_IGN) {
            action = (struct kernel_sigaction){.handler = SIG_DFL};
            ramet_syscall4(__NR_rt_sigaction, signal, (long)&action, 0, sizeof action.mask);
        }
    }
}

long ramet_child_main(void *argument) {
    struct ramet_record *record = argument;

    /* In this order: a handler of the parent's must not run here, where it would
     * act on memory that is the parent's too. */
    if (record->reset_handlers) {
        reset_handlers();
    }
    ramet_syscall4(__NR_rt_sigprocmask, SIG_SETMASK, (long)&record->mask, 0, sizeof record->mask);

    long value = record->fn(record->arg);

    record->value = value;
    __atomic_store_n(&record->returned, 1, __ATOMIC_RELEASE);
    return value;
}

long ramet_nothing(void *unused) {
    (void)unused;
    return 0;
}
