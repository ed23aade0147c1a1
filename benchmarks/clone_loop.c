/* The peers of ramet.clone in C: start a child that does nothing, and wait for it, n times. */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ramet.h"

#define STACK_SIZE 65536

static char stack[STACK_SIZE] __attribute__((aligned(16)));

static int nothing(void *argument) {
    (void)argument;
    return 0;
}

/* The least: the C library's clone, and waitpid. */
int bare_loop(int n) {
    for (int i = 0; i < n; i++) {
        int pid = clone(nothing, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
        if (pid < 0 || waitpid(pid, NULL, 0) != pid) {
            return -1;
        }
    }
    return 0;
}

/* What ramet does for its users, with the same calls, by its trampoline for C: signals blocked
 * during the start and handlers reset, a pidfd from birth, and the resource usage with the
 * exit status. */
static long restore_mask(void *mask) {
    return syscall(SYS_rt_sigprocmask, SIG_SETMASK, mask, NULL, sizeof(uint64_t));
}

int same_calls_loop(int n) {
    for (int i = 0; i < n; i++) {
        uint64_t all = ~(uint64_t)0;
        uint64_t mask = 0;
        int pidfd = -1;
        siginfo_t info;
        struct rusage usage;
        struct clone_args args = {
            .flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
            .exit_signal = SIGCHLD,
            .pidfd = (uint64_t)&pidfd,
            .stack = (uint64_t)stack,
            .stack_size = sizeof stack,
        };
        getpid(); /* which process the child is a child of */
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof all);
        long pid = ramet_clone3(&args, CLONE_ARGS_SIZE_VER0, restore_mask, &mask);
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
        if (pid < 0 || syscall(SYS_waitid, P_PIDFD, pidfd, &info, WEXITED | __WALL, &usage) < 0) {
            return -1;
        }
        close(pidfd);
    }
    return 0;
}

/* What ramet.clone starts. */
long returns_zero(void *argument) {
    (void)argument;
    return 0;
}
