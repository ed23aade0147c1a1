/* SPDX-License-Identifier: MIT
 *
 * A system call without the C library: no errno, no cancellation point, no
 * lazy binding. Safe in a child that shares its parent's memory.
 */
#ifndef RAMET_SYSCALL_H
#define RAMET_SYSCALL_H

static inline __attribute__((always_inline)) long ramet_syscall4(long number, long a, long b,
                                                                 long c, long d) {
    register long nr __asm__("a7") = number;
    register long r0 __asm__("a0") = a;
    register long r1 __asm__("a1") = b;
    register long r2 __asm__("a2") = c;
    register long r3 __asm__("a3") = d;
    __asm__ volatile("ecall" : "+r"(r0) : "r"(nr), "r"(r1), "r"(r2), "r"(r3) : "memory");
    return r0;
}

#endif
