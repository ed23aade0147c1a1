/* SPDX-License-Identifier: MIT
 *
 * What the tests' children run: no C library, no thread-local state.
 */
#include <asm/unistd.h>

#include "syscall.h"

struct call {
    long number;
    long args[6];
    long result;
};

struct script {
    long count;
    struct call calls[];
};

static long syscall6(long number, const long *args) {
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = args[3];
    register long r8 __asm__("r8") = args[4];
    register long r9 __asm__("r9") = args[5];
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(args[0]), "S"(args[1]), "d"(args[2]), "r"(r10), "r"(r8),
                       "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long nr __asm__("x8") = number;
    register long r0 __asm__("x0") = args[0];
    register long r1 __asm__("x1") = args[1];
    register long r2 __asm__("x2") = args[2];
    register long r3 __asm__("x3") = args[3];
    register long r4 __asm__("x4") = args[4];
    register long r5 __asm__("x5") = args[5];
    __asm__ volatile("svc #0"
                     : "+r"(r0)
                     : "r"(nr), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5)
                     : "memory");
    return r0;
#elif defined(__riscv)
    register long nr __asm__("a7") = number;
    register long r0 __asm__("a0") = args[0];
    register long r1 __asm__("a1") = args[1];
    register long r2 __asm__("a2") = args[2];
    register long r3 __asm__("a3") = args[3];
    register long r4 __asm__("a4") = args[4];
    register long r5 __asm__("a5") = args[5];
    __asm__ volatile("ecall"
                     : "+r"(r0)
                     : "r"(nr), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5)
                     : "memory");
    return r0;
#else
#error "no system call for this architecture"
#endif
}

/* Makes the calls of a script one after another. Returns the last result. */
long run(void *arg) {
    struct script *script = arg;
    long result = 0;
    for (long i = 0; i < script->count; i++) {
        struct call *call = &script->calls[i];
        result = syscall6(call->number, call->args);
        call->result = result;
    }
    return result;
}

long identity(void *arg) {
    return (long)arg;
}

/* Adds 1 to a long. */
long increment(void *arg) {
    ++*(volatile long *)arg;
    return 0;
}

/* Stores the thread pointer. */
long thread_pointer(void *arg) {
    long value = 0;
#if defined(__x86_64__)
    const long arch_get_fs = 0x1003;
    ramet_syscall4(__NR_arch_prctl, arch_get_fs, (long)&value, 0, 0);
#elif defined(__aarch64__)
    __asm__("mrs %0, tpidr_el0" : "=r"(value));
#else
    __asm__("mv %0, tp" : "=r"(value));
#endif
    *(volatile long *)arg = value;
    return 0;
}

/* Sends itself the signal whose number is arg. */
long raise_signal(void *arg) {
    long pid = ramet_syscall4(__NR_getpid, 0, 0, 0, 0);
    long tid = ramet_syscall4(__NR_gettid, 0, 0, 0, 0);
    return ramet_syscall4(__NR_tgkill, pid, tid, (long)arg, 0);
}

long write_to_null(void *arg) {
    (void)arg;
    *(volatile int *volatile)0 = 1;
    return 0;
}

/* Uses up the stack, page by page. */
long overflow(void *arg) {
    volatile char frame[512];
    frame[0] = (char)(long)arg;
    return overflow((char *)arg + 1) + frame[0];
}

/* Computes for arg rounds. */
long spin(void *arg) {
    volatile long rounds = (long)arg;
    while (rounds > 0) {
        rounds = rounds - 1;
    }
    return 0;
}
