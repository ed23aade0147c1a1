/* SPDX-License-Identifier: MIT
 *
 * Sums numbers in two children that share this program's memory: one that runs
 * while the parent is stopped, and one that the parent waits for by its pidfd.
 */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <ramet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* waitid(2); not every C library has the name. */
static const idtype_t by_pidfd = (idtype_t)3;

struct job {
    const int *numbers;
    size_t count;
    long sum;
};

/* Runs in the child: no C library here, for its state is the parent's. */
static long add_up(void *arg) {
    struct job *job = arg;
    for (size_t i = 0; i < job->count; i++) {
        job->sum += job->numbers[i];
    }
    return (long)job->count;
}

static long check(const char *what, long result) {
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(EXIT_FAILURE);
    }
    return result;
}

static int exit_status(idtype_t type, id_t id) {
    siginfo_t info;
    if (waitid(type, id, &info, WEXITED) < 0) {
        perror("waitid");
        exit(EXIT_FAILURE);
    }
    return info.si_status;
}

int main(void) {
    static _Alignas(16) char stack[64 * 1024];
    static const int primes[] = {2, 3, 5, 7, 11, 13, 17, 19};

    /* Like vfork: it returns when the child has ended. */
    struct job first = {.numbers = primes, .count = COUNT(primes)};
    long pid = check("clone", ramet_clone(add_up, &first, CLONE_VM | CLONE_VFORK | SIGCHLD,
                                          stack + sizeof stack, NULL, NULL, NULL));
    printf("clone: the sum is %ld, ", first.sum);
    printf("the exit status %d\n", exit_status(P_PID, (id_t)pid));

    /* The two run side by side; the pidfd is a handle that no other process can take over. */
    struct job second = {.numbers = primes, .count = 3};
    int pidfd = -1;
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_PIDFD,
        .pidfd = (uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .stack = (uintptr_t)stack,
        .stack_size = sizeof stack,
    };
    check("clone3", ramet_clone3(&args, sizeof args, add_up, &second));
    int status = exit_status(by_pidfd, (id_t)pidfd);
    close(pidfd);
    printf("clone3: the sum is %ld, the exit status %d\n", second.sum, status);
    return EXIT_SUCCESS;
}
