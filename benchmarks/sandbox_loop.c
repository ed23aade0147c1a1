/* The peer of Sandbox.run in C: makes the same sandbox by the same system calls, n times. The steps
 * of the child are those of the plan, which benchmarks/sandbox.py writes down as C in steps.h: a
 * line for each, STEP(index, number, arguments). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

#define STACK_SIZE 65536
#define CHUNK 65536

struct filter { /* sock_fprog, linux/filter.h */
    unsigned short count;
    const void *code;
};

/* What a start gives to the child's steps. */
struct sandbox {
    int fd0, fd1, fd2, report, parent, gate;
    int failed;         /* the number of the step that failed, from 1 */
    int memory_is_used; /* by the child */
    const char *argv;   /* the array, as an address */
    char stack[STACK_SIZE] __attribute__((aligned(16)));
};

static long call(long number, long a, long b, long c, long d, long e, long f) {
    long result = syscall(number, a, b, c, d, e, f);
    return result < 0 ? -errno : result;
}

#define STEP(index, number, ...)                                                                   \
    do {                                                                                           \
        results[index] = call(number, __VA_ARGS__);                                                \
        if (results[index] < 0) {                                                                  \
            given->failed = (index) + 1;                                                           \
            return 127;                                                                            \
        }                                                                                          \
    } while (0)

static int make_sandbox(void *argument) {
    struct sandbox *given = argument;
#include "steps.h"
    return 127;
}

static int write_file(int pid, const char *name, const char *text) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    long written = write(fd, text, strlen(text));
    close(fd);
    return written < 0 ? -1 : 0;
}

/* Reads all that is written to pipes until the child has ended. */
static int collect(int pidfd, const int *outputs, char *data) {
    struct pollfd entries[] = {
        {pidfd, POLLIN, 0}, {outputs[0], POLLIN, 0}, {outputs[1], POLLIN, 0}};
    do {
        if (poll(entries, 3, -1) < 0) {
            return -1;
        }
        for (int i = 1; i < 3; i++) {
            if (entries[i].revents != 0 && read(entries[i].fd, data, CHUNK) <= 0) {
                entries[i].fd = -1;
            }
        }
    } while (entries[0].revents == 0);
    return 0;
}

static int run_once(struct sandbox *box, char *data) {
    const char *args[] = {INIT_ARGS, "/bin/true", NULL};
    int input[2], outputs[2][2], report[2];
    struct ramet_init_record record = {0};
    siginfo_t info;
    struct rusage usage;
    int pidfd = -1;
    if (pipe2(input, O_CLOEXEC) != 0 || pipe2(outputs[0], O_CLOEXEC) != 0 ||
        pipe2(outputs[1], O_CLOEXEC) != 0 || pipe2(report, O_CLOEXEC) != 0) {
        return -1;
    }
    box->fd0 = input[0];
    box->fd1 = outputs[0][1];
    box->fd2 = outputs[1][1];
    box->report = report[1];
    box->parent = (int)syscall(SYS_pidfd_open, getpid(), 0);
    box->gate = eventfd(0, EFD_CLOEXEC);
    box->argv = (const char *)args;
    box->failed = 0;
    box->memory_is_used = 1;
    prctl(PR_SET_DUMPABLE, 0);
    int pid = clone(make_sandbox, box->stack + STACK_SIZE,
                    CLONE_VM | CLONE_PIDFD | CLONE_CHILD_CLEARTID | FLAGS | SIGCHLD, box, &pidfd,
                    NULL, &box->memory_is_used);
    if (pid < 0) {
        return -1;
    }
#ifdef UID_MAP /* otherwise the child writes them */
    if (write_file(pid, "uid_map", UID_MAP) != 0 || write_file(pid, "gid_map", GID_MAP) != 0 ||
        eventfd_write(box->gate, 1) != 0) {
        return -1;
    }
#endif
    while (__atomic_load_n(&box->memory_is_used, __ATOMIC_ACQUIRE) != 0) {
        syscall(SYS_futex, &box->memory_is_used, FUTEX_WAIT, 1, NULL, NULL, 0);
    }
    prctl(PR_SET_DUMPABLE, 1);
    int theirs[] = {box->fd0, box->fd1, box->fd2, box->report, box->parent, box->gate, input[1]};
    for (unsigned i = 0; i < sizeof theirs / sizeof *theirs; i++) {
        close(theirs[i]);
    }
    int ours[] = {outputs[0][0], outputs[1][0], report[0], pidfd};
    if (box->failed != 0 || collect(pidfd, ours, data) != 0 ||
        syscall(SYS_waitid, P_PIDFD, pidfd, &info, WEXITED, &usage) != 0 ||
        read(report[0], &record, sizeof record) != sizeof record) {
        return box->failed != 0 ? box->failed : -1;
    }
    for (unsigned i = 0; i < sizeof ours / sizeof *ours; i++) {
        close(ours[i]);
    }
    return record.kind == RAMET_INIT_ENDED && record.value == 0 ? 0 : -1;
}

/* Returns 0; the number of the step that failed; -1 if it was something else. */
int sandbox_loop(int n) {
    struct sandbox *box = calloc(1, sizeof *box);
    char *data = malloc(CHUNK);
    int result = 0;
    for (int i = 0; i < n && result == 0; i++) {
        result = run_once(box, data);
    }
    free(data);
    free(box);
    return result;
}
