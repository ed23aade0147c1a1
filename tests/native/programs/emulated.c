/* Starts children that share nothing with it and says how they ended. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <ramet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/wait.h>

struct pair {
    long a, b;
};

static _Alignas(16) char stack[65536];

static long sum(void *arg) {
    const struct pair *pair = arg;
    return (uintptr_t)__builtin_frame_address(0) % 16 == 0 ? pair->a + pair->b : 1;
}

static void report(const char *name, long pid) {
    int status = 0;
    if (pid < 0) {
        printf("%s: error %ld\n", name, -pid);
    } else if (waitpid((pid_t)pid, &status, 0) == pid && WIFEXITED(status)) {
        printf("%s: exit status %d\n", name, WEXITSTATUS(status));
    } else {
        printf("%s: wait status %#x\n", name, (unsigned)status);
    }
}

int main(void) {
    struct pair pair = {40, 2};
    char name[32];

    setbuf(stdout, NULL); /* else the children have a copy of what is to be written */
    errno = 4242;
    for (int misaligned = 0; misaligned < 16; misaligned++) {
        snprintf(name, sizeof name, "clone %d", misaligned);
        report(name, ramet_clone(sum, &pair, SIGCHLD, stack + sizeof stack - misaligned, NULL, NULL,
                                 NULL));
    }

    pair.b = 3;
    struct clone_args args = {
        .exit_signal = SIGCHLD, .stack = (uintptr_t)stack + 1, .stack_size = sizeof stack - 8};
    report("clone3", ramet_clone3(&args, sizeof args, sum, &pair));

    report("no function", ramet_clone(NULL, &pair, SIGCHLD, stack + 4096, NULL, NULL, NULL));
    report("no stack", ramet_clone(sum, &pair, SIGCHLD, NULL, NULL, NULL, NULL));
    report("bad flags", ramet_clone(sum, &pair, CLONE_THREAD, stack + 4096, NULL, NULL, NULL));
    printf("errno: %d\n", errno);
    return 0;
}
