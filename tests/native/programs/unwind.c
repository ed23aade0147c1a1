/* Unwinds the stack from a function in the child and prints the frames' addresses. */
#define _GNU_SOURCE
#include <ramet.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unwind.h>

#define FRAMES 16

struct walk {
    uintptr_t address[FRAMES];
    int frames;
    _Unwind_Reason_Code reason;
};

struct clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

static _Alignas(16) char stack[1 << 20];

static _Unwind_Reason_Code add_frame(struct _Unwind_Context *context, void *arg) {
    struct walk *walk = arg;
    if (walk->frames == FRAMES) {
        return _URC_NORMAL_STOP;
    }
    /* 0 is what comes after the outermost frame. Else it is where a call returns to,
     * which may be one past the caller's end. */
    uintptr_t address = _Unwind_GetIP(context);
    if (address != 0) {
        walk->address[walk->frames++] = address - 1;
    }
    return _URC_NO_REASON;
}

/* Not static, since gdb sets a breakpoint here. */
__attribute__((noinline)) long child_function(void *arg) {
    struct walk *walk = arg;
    walk->reason = _Unwind_Backtrace(add_frame, walk);
    return 0;
}

int main(int argc, char **argv) {
    unsigned long flags = CLONE_VM | CLONE_VFORK;
    struct walk walk = {.frames = 0};
    long pid;

    if (argc > 1 && strcmp(argv[1], "ramet_clone3") == 0) {
        struct clone_args args = {.flags = flags,
                                  .exit_signal = SIGCHLD,
                                  .stack = (uintptr_t)stack,
                                  .stack_size = sizeof stack - 5};
        pid = ramet_clone3(&args, sizeof args, child_function, &walk);
    } else {
        pid = ramet_clone(child_function, &walk, flags | SIGCHLD, stack + sizeof stack - 5, NULL,
                          NULL, NULL);
    }

    int status;
    if (pid < 0 || waitpid((pid_t)pid, &status, 0) != pid || status != 0) {
        return 1;
    }
    printf("%d\n", walk.reason == _URC_END_OF_STACK);
    for (int i = 0; i < walk.frames; i++) {
        printf("%#lx\n", (unsigned long)walk.address[i]);
    }
    return 0;
}
