/* SPDX-License-Identifier: MIT
 *
 * ramet-init: the first process of a pid namespace.
 *
 *     ramet-init REPORT PARENT WHOSE PROGRAM [ARGUMENT...]
 *
 * Runs the program (along PATH, if its name has no slash) in a session of its own; reaps whatever
 * is left to it; passes on the signals that come from outside the namespace; and ends, and all of
 * the namespace with it, when the program has ended or the process of the pidfd PARENT has (-1:
 * none). Two things hold in between parent and program that would not without it: the program is no
 * init, so signals have their default actions, and its peak memory is its own: what execs in
 * a child that shares its parent's memory inherits that parent's (setmax_mm_hiwater_rss,
 * fs/exec.c).
 *
 * The program has the signals blocked that this was started with; but none if those were all, as
 * is good for a caller that may send one at any moment.
 *
 * REPORT gets records (init.h): of the program alone, or of all children if WHOSE is 1, as of those
 * that the program bears with CLONE_PARENT. It should be a pipe: whoever has the same ids, so the
 * program, may set our limit for the size of files (check_prlimit_permission, kernel/sys.c). Only
 * this process has it: the program has no way to forge one, since it can neither open what belongs
 * to a process that is not dumpable nor trace that (ptrace_may_access, kernel/ptrace.c).
 *
 * Without the C library: it starts in a few page faults, and runs in any root directory.
 */
#include "init.h"

#include <asm/errno.h>
#include <asm/fcntl.h>
#include <asm/signal.h>
#include <asm/unistd.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/signalfd.h>
#include <linux/wait.h>

#include "syscall.h"

#define CLOSE_ON_EXEC 1 /* FD_CLOEXEC */
#define SET_FLAGS 2     /* F_SETFD */
#define LONGEST_PATH 4096
#define NOT_FOUND 127 /* as of a shell */
#define TEN 10
#define UNBLOCKABLE (1UL << (SIGKILL - 1) | 1UL << (SIGSTOP - 1))
#define MOST_FDS 0x7fffffff
#define OWN_ARGUMENTS 4 /* with the name */

void ramet_init(long *stack) __attribute__((noreturn));

static long call(long number, long a, long b, long c, long d) {
    return ramet_syscall4(number, a, b, c, d);
}

static void leave(int code) __attribute__((noreturn));

static void leave(int code) {
    for (;;) {
        call(__NR_exit_group, code, 0, 0, 0);
    }
}

/* Also "-1". */
static int number(const char *text) {
    int sign = 1;
    int value = 0;
    if (*text == '-') {
        sign = -1;
        text++;
    }
    for (; *text >= '0' && *text <= '9'; text++) {
        value = value * TEN + (*text - '0');
    }
    return sign * value;
}

static int has_slash(const char *text) {
    for (; *text != 0; text++) {
        if (*text == '/') {
            return 1;
        }
    }
    return 0;
}

/* The value of PATH. */
static const char *search_path(char *const *env) {
    static const char name[] = "PATH=";
    for (; *env != 0; env++) {
        const char *text = *env;
        int i = 0;
        while (name[i] != 0 && text[i] == name[i]) {
            i++;
        }
        if (name[i] == 0) {
            return text + i;
        }
    }
    return "/bin:/usr/bin"; /* as execvp(3) has it */
}

/* Appends, as long as there is room. Returns the new length. */
static int append(char *path, int length, char character) {
    if (length < LONGEST_PATH) {
        path[length] = character;
    }
    return length + 1;
}

/* Returns the errno that counts, as execvp(3) has it. */
static long exec(char *const *argv, char *const *env) {
    if (has_slash(argv[0])) {
        return -call(__NR_execve, (long)argv[0], (long)argv, (long)env, 0);
    }
    long error = ENOENT;
    const char *rest = search_path(env);
    for (int more = argv[0][0] != 0; more;) {
        char path[LONGEST_PATH];
        int length = 0;
        for (; *rest != 0 && *rest != ':'; rest++) {
            length = append(path, length, *rest);
        }
        more = *rest == ':';
        rest += more;
        if (length > 0) {
            length = append(path, length, '/');
        }
        for (const char *name = argv[0]; *name != 0; name++) {
            length = append(path, length, *name);
        }
        length = append(path, length, 0);
        long result = length > LONGEST_PATH
                          ? -ENAMETOOLONG
                          : call(__NR_execve, (long)path, (long)argv, (long)env, 0);
        if (result != -ENOENT && result != -ENOTDIR && error == ENOENT) {
            error = -result;
        }
    }
    return error;
}

static void tell(int report, struct ramet_init_record *record) {
    while (call(__NR_write, report, (long)record, sizeof *record, 0) == -EINTR) {
    }
}

static void clear(struct ramet_init_record *record, int kind, long value) {
    record->kind = kind;
    record->value = value;
    record->pid = 0;
    for (unsigned i = 0; i < sizeof record->rusage / sizeof *record->rusage; i++) {
        record->rusage[i] = 0;
    }
}

static void run(char *const *argv, char *const *env, int report, unsigned long mask)
    __attribute__((noreturn));

static void run(char *const *argv, char *const *env, int report, unsigned long mask) {
    struct ramet_init_record record;
    call(__NR_setsid, 0, 0, 0, 0);
    call(__NR_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, sizeof mask);
    clear(&record, RAMET_INIT_FAILED, exec(argv, env));
    tell(report, &record);
    leave(NOT_FOUND);
}

/* Who is who. */
struct family {
    int report;
    int parent;
    int signals;
    int tells_all; /* and not of the program only */
    long program;
};

/* Reaps all that has ended. Returns 1 once the program has. */
static int reap(const struct family *family) {
    for (;;) {
        struct ramet_init_record record;
        int status = 0;
        clear(&record, RAMET_INIT_REAPED, 0);
        long pid = call(__NR_wait4, -1, (long)&status, WNOHANG | __WALL, (long)record.rusage);
        int is_program = pid == family->program;
        if (is_program || (pid > 0 && family->tells_all)) {
            record.kind = is_program ? RAMET_INIT_ENDED : RAMET_INIT_REAPED;
            record.value = status;
            record.pid = pid;
            tell(family->report, &record);
        }
        if (is_program) {
            return 1;
        }
        if (pid <= 0 && pid != -EINTR) {
            return 0;
        }
    }
}

/* Takes one signal. Returns 1 once the program has ended. */
static int take_signal(const struct family *family) {
    struct signalfd_siginfo info;
    info.ssi_signo = 0; /* analyzers do not know what read writes to */
    info.ssi_pid = 0;
    if (call(__NR_read, family->signals, (long)&info, sizeof info, 0) != sizeof info) {
        return 0;
    }
    if (info.ssi_signo == SIGCHLD) {
        return reap(family);
    }
    /* A sender outside, or a terminal, has no pid here; those inside have the program's at hand. */
    if (info.ssi_pid == 0 || call(__NR_getpid, 0, 0, 0, 0) != 1) {
        call(__NR_kill, family->program, info.ssi_signo, 0, 0);
    }
    return 0;
}

/* Whoever reads what the program writes is to see its end. */
static void close_all_but(const struct family *family) {
    int first = 0;
    int last = 0;
    do {
        last = MOST_FDS;
        const int kept[] = {family->report, family->parent, family->signals};
        for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++) {
            if (kept[i] >= first && kept[i] < last) {
                last = kept[i];
            }
        }
        if (last > first) {
            call(__NR_close_range, first, last - 1, 0, 0);
        }
        first = last + 1;
    } while (last < MOST_FDS);
}

void ramet_init(long *stack) {
    char **argv = (char **)(stack + 1);
    char **env = argv + *stack + 1;
    unsigned long all = ~0UL;
    unsigned long mask = 0;
    if (*stack < OWN_ARGUMENTS + 1) {
        leave(NOT_FOUND);
    }
    struct family family = {
        .report = number(argv[1]),
        .parent = number(argv[2]),
        .tells_all = number(argv[3]),
    };
    call(__NR_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&mask, sizeof all);
    call(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0);
    call(__NR_prctl, PR_SET_NAME, (long)"ramet-init", 0, 0);
    call(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0); /* if this is no init */
    call(__NR_fcntl, family.report, SET_FLAGS, CLOSE_ON_EXEC, 0);
    call(__NR_fcntl, family.parent, SET_FLAGS, CLOSE_ON_EXEC, 0);
    family.signals = (int)call(__NR_signalfd4, -1, (long)&all, sizeof all, O_CLOEXEC);
    family.program = call(__NR_clone, SIGCHLD, 0, 0, 0);
    if (family.program == 0) {
        if ((mask | UNBLOCKABLE) == all) {
            mask = 0;
        }
        run(argv + OWN_ARGUMENTS, env, family.report, mask);
    }
    if (family.program < 0 || family.signals < 0) {
        struct ramet_init_record record;
        clear(&record, RAMET_INIT_FAILED, family.program < 0 ? -family.program : -family.signals);
        tell(family.report, &record);
        leave(NOT_FOUND);
    }
    close_all_but(&family);
    struct pollfd entries[] = {
        {.fd = family.signals, .events = POLLIN},
        {.fd = family.parent, .events = POLLIN},
    };
    for (;;) {
        long ready = ramet_syscall6(__NR_ppoll, (long)entries, 2, 0, 0, 0, 0);
        if (ready > 0 && entries[1].revents != 0) {
            leave(NOT_FOUND); /* nobody is there any more to be told */
        }
        if (ready > 0 && entries[0].revents != 0 && take_signal(&family)) {
            leave(0);
        }
    }
}
