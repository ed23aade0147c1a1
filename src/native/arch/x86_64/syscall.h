/* SPDX-License-Identifier: MIT
 *
 * A system call without the C library: no errno, no cancellation point, no
 * lazy binding. Safe in a child that shares its parent's memory.
 */
#ifndef RAMET_SYSCALL_H
#define RAMET_SYSCALL_H

#define RAMET_INLINE static inline __attribute__((always_inline))

RAMET_INLINE long ramet_syscall6(long number, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

RAMET_INLINE long ramet_syscall4(long number, long a, long b, long c, long d) {
    return ramet_syscall6(number, a, b, c, d, 0, 0);
}

#endif
