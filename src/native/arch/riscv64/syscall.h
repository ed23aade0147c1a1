/* SPDX-License-Identifier: MIT
 *
 * A system call without the C library: no errno, no cancellation point, no
 * lazy binding. Safe in a child that shares its parent's memory.
 */
#ifndef RAMET_SYSCALL_H
#define RAMET_SYSCALL_H

#define RAMET_INLINE static inline __attribute__((always_inline))

RAMET_INLINE long ramet_syscall6(long number, long a, long b, long c, long d, long e, long f) {
    register long nr __asm__("a7") = number;
    register long r0 __asm__("a0") = a;
    register long r1 __asm__("a1") = b;
    register long r2 __asm__("a2") = c;
    register long r3 __asm__("a3") = d;
    register long r4 __asm__("a4") = e;
    register long r5 __asm__("a5") = f;
    __asm__ volatile("ecall"
                     : "+r"(r0)
                     : "r"(nr), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5)
                     : "memory");
    return r0;
}

RAMET_INLINE long ramet_syscall4(long number, long a, long b, long c, long d) {
    return ramet_syscall6(number, a, b, c, d, 0, 0);
}

#endif
