/* SPDX-License-Identifier: MIT
 *
 * ramet.h - enter a C function in the child of clone(2) or clone3(2).
 *
 * The two routines below are the raw system calls with one thing added: the
 * child calls fn(arg) on the stack it was given and ends with the raw exit
 * system call when fn returns. Nothing of the C library is used, errno is
 * never written, and the caller's stack frame is not relied on.
 *
 * What fn may do depends on what it shares with the caller, see clone(2). With
 * CLONE_VM and without a thread pointer of its own (CLONE_SETTLS) it shares
 * the caller's errno and every other thread-local variable, so it should keep
 * to system calls and to memory that it was handed.
 */
#ifndef RAMET_H
#define RAMET_H

#include <stddef.h>

#if !defined(__linux__)
#error "ramet is for Linux"
#elif !(defined(__x86_64__) && defined(__LP64__)) && !defined(__aarch64__) &&                      \
    !(defined(__riscv) && __riscv_xlen == 64)
#error "ramet has no trampoline for this architecture"
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct clone_args; /* <linux/sched.h> */

/* clone(2).
 *
 *   fn           called in the child as fn(arg); the low 8 bits of what it
 *                returns are the child's exit status
 *   flags        CLONE_* flags, with the exit signal in the low 8 bits
 *   child_stack  one past the highest byte of the child's stack, however
 *                aligned. Two words are stored below it before the system call,
 *                so it must be memory; fn uses what lies below those.
 *   ptid         where CLONE_PARENT_SETTID and CLONE_PIDFD store, or NULL
 *   newtls       the child's thread pointer, with CLONE_SETTLS
 *   ctid         where CLONE_CHILD_SETTID and CLONE_CHILD_CLEARTID store
 *
 * Returns the child's thread id, or -errno (-4095 to -1). -EINVAL, with no
 * system call made, if fn or child_stack is NULL.
 */
long ramet_clone(long (*fn)(void *), void *arg, unsigned long flags, void *child_stack, int *ptid,
                 void *newtls, int *ctid);

/* clone3(2).
 *
 *   args  as the kernel takes it; stack is the lowest byte of the child's
 *         stack and stack_size its length; two words are stored at its top
 *         before the system call. The struct itself is only read.
 *   size  sizeof(struct clone_args), or an earlier version of it
 *
 * Returns as ramet_clone does. -EINVAL, with no system call made, if fn, args
 * or args->stack is NULL, if size is less than CLONE_ARGS_SIZE_VER0 (64), or if
 * args->stack_size is less than 32.
 */
long ramet_clone3(struct clone_args *args, size_t size, long (*fn)(void *), void *arg);

#ifdef __cplusplus
}
#endif

#endif
