/* The core as the extension uses it, without Python: for sanitizers and valgrind. */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK_SIZE 65536

static volatile sig_atomic_t handled;

static void handler(int signal) {
    (void)signal;
    handled++;
}

static long add(void *argument) {
    const long *numbers = argument;
    return numbers[0] + numbers[1];
}

/* One start, waited for. Returns the wait status, or -errno. */
static long start(long (*fn)(void *), void *argument, unsigned long flags, int use_clone) {
    char *stack = malloc(STACK_SIZE);
    if (stack == NULL) {
        return -ENOMEM;
    }
    struct ramet_record *record =
        (struct ramet_record *)(stack + STACK_SIZE - sizeof(struct ramet_record));
    struct ramet_launch launch = {
        .args = {.flags = flags,
                 .exit_signal = SIGCHLD,
                 .stack = (__u64)stack,
                 .stack_size = (__u64)((char *)record - stack)},
        .size = CLONE_ARGS_SIZE_VER0,
        .use_clone = use_clone,
        .record = record,
    };
    record->program = NULL;
    record->fn = fn;
    record->arg = argument;
    long result = ramet_launch(&launch);
    if (result > 0) {
        int status = 0;
        pid_t reaped = waitpid((pid_t)result, &status, 0);
        result = reaped == (pid_t)result ? status : -errno;
    }
    free(stack);
    return result;
}

int main(int argc, char **argv) {
    /* Valgrind knows no clone3, and vfork as fork only. */
    int emulated = argc > 1 && strcmp(argv[1], "emulated") == 0;
    const unsigned long regimes[] = {0, CLONE_VM | CLONE_VFORK};
    long numbers[] = {40, 2};
    sigset_t before;
    sigset_t after;

    struct sigaction action = {.sa_handler = handler};
    sigaction(SIGUSR1, &action, NULL);
    sigemptyset(&before);
    sigaddset(&before, SIGUSR2);
    sigprocmask(SIG_SETMASK, &before, NULL);

    for (int use_clone = emulated; use_clone < 2; use_clone++) {
        for (size_t i = 0; i < sizeof regimes / sizeof *regimes; i++) {
            unsigned long flags =
                regimes[i] | (use_clone ? 0UL : (unsigned long)CLONE_CLEAR_SIGHAND);
            for (int round = 0; round < (emulated ? 3 : 1000); round++) {
                long status = start(add, numbers, flags, use_clone);
                if (status != 42 << 8) {
                    printf("clone%s %#lx: %ld\n", use_clone ? "" : "3", flags, status);
                    return 1;
                }
            }
        }
        /* SIGHAND without VM */
        if (start(add, numbers, CLONE_SIGHAND, use_clone) != -EINVAL) {
            return 2;
        }
    }
    sigprocmask(SIG_SETMASK, NULL, &after);
    raise(SIGUSR1);
    if (handled != 1 || !sigismember(&after, SIGUSR2) || sigismember(&after, SIGUSR1)) {
        return 3;
    }
    puts("ok");
    return 0;
}
