/* SPDX-License-Identifier: MIT
 *
 * ramet-init: the first process of a pid namespace.
 *
 *     ramet-init REPORT PARENT PROGRAM [ARGUMENT...]
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
 * REPORT gets records (init.h). It should be a pipe: whoever has the same ids, so the program, may
 * set our limit for the size of files (check_prlimit_permission, kernel/sys.c). Only this process
 * has it: the program has no way to forge one, since it can neither open what belongs to a process
 * that is not dumpable nor trace that (ptrace_may_access, kernel/ptrace.c).
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

/* Reaps all that has ended. Returns 1 once the program has. */
static int reap(long program, int report) {
    for (;;) {
        struct ramet_init_record record;
        int status = 0;
        clear(&record, RAMET_INIT_ENDED, 0);
        long pid = call(__NR_wait4, -1, (long)&status, WNOHANG | __WALL, (long)record.rusage);
        if (pid == program) {
            record.value = status;
            tell(report, &record);
            return 1;
        }
        if (pid <= 0 && pid != -EINTR) {
            return 0;
        }
    }
}

/* Takes one signal. Returns 1 once the program has ended. */
static int take_signal(int signals, long program, int report) {
    struct signalfd_siginfo info;
    info.ssi_signo = 0; /* analyzers do not know what read writes to */
    info.ssi_pid = 0;
    if (call(__NR_read, signals, (long)&info, sizeof info, 0) != sizeof info) {
        return 0;
    }
    if (info.ssi_signo == SIGCHLD) {
        return reap(program, report);
    }
    /* A sender outside, or a terminal, has no pid here; those inside have the program's at hand. */
    if (info.ssi_pid == 0 || call(__NR_getpid, 0, 0, 0, 0) != 1) {
        call(__NR_kill, program, info.ssi_signo, 0, 0);
    }
    return 0;
}

/* Whoever reads what the program writes is to see its end. */
static void close_all_but(int report, int parent, int signals) {
    int first = 0;
    int last = 0;
    do {
        last = MOST_FDS;
        const int kept[] = {report, parent, signals};
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
    if (*stack < 4) {
        leave(NOT_FOUND);
    }
    int report = number(argv[1]);
    int parent = number(argv[2]);
    call(__NR_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&mask, sizeof all);
    call(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0);
    call(__NR_prctl, PR_SET_NAME, (long)"ramet-init", 0, 0);
    call(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0); /* if this is no init */
    call(__NR_fcntl, report, SET_FLAGS, CLOSE_ON_EXEC, 0);
    call(__NR_fcntl, parent, SET_FLAGS, CLOSE_ON_EXEC, 0);
    long signals = call(__NR_signalfd4, -1, (long)&all, sizeof all, O_CLOEXEC);
    long program = call(__NR_clone, SIGCHLD, 0, 0, 0);
    if (program == 0) {
        if ((mask | UNBLOCKABLE) == all) {
            mask = 0;
        }
        run(argv + 3, env, report, mask);
    }
    if (program < 0 || signals < 0) {
        struct ramet_init_record record;
        clear(&record, RAMET_INIT_FAILED, program < 0 ? -program : -signals);
        tell(report, &record);
        leave(NOT_FOUND);
    }
    close_all_but(report, parent, (int)signals);
    struct pollfd entries[] = {
        {.fd = (int)signals, .events = POLLIN},
        {.fd = parent, .events = POLLIN},
    };
    for (;;) {
        long ready = ramet_syscall6(__NR_ppoll, (long)entries, 2, 0, 0, 0, 0);
        if (ready > 0 && entries[1].revents != 0) {
            leave(NOT_FOUND); /* nobody is there any more to be told */
        }
        if (ready > 0 && entries[0].revents != 0 && take_signal((int)signals, program, report)) {
            leave(0);
        }
    }
}
