/* SPDX-License-Identifier: MIT
 *
 * A system call without the C library: no errno, no cancellation point, no
 * lazy binding. Safe in a child that shares its parent's memory.
 */
#ifndef RAMET_SYSCALL_H
#define RAMET_SYSCALL_H

static inline __attribute__((always_inline)) long ramet_syscall4(long number, long a, long b,
                                                                 long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

#endif
