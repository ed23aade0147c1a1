/* SPDX-License-Identifier: MIT
 *
 * ramet_clone and ramet_clone3 for x86-64. What they promise is in ramet.h;
 * docs/architecture.md says how each line of the promise is tested.
 *
 * System calls: number in rax, arguments in rdi, rsi, rdx, r10, r8; rcx and r11
 * are lost (syscall(2), "Architecture calling conventions"). Functions: rdi,
 * rsi, rdx, rcx, r8, r9, then the stack; rsp is a multiple of 16 before a call
 * (System V ABI, AMD64 supplement, 3.2.2).
 */

#define SYS_exit 60   /* arch/x86/entry/syscalls/syscall_64.tbl */
#define SYS_clone 56
#define SYS_clone3 435
#define EINVAL 22

/* <cet.h> marks the object as fit for IBT and shadow stacks, where they are
 * asked for with -fcf-protection, and defines the landing pad. */
#ifdef __CET__
#include <cet.h>
#else
#define _CET_ENDBR
#endif

	.text

/* long ramet_clone(fn, arg, flags, child_stack, ptid, newtls, ctid) */
	.globl ramet_clone
	.hidden ramet_clone
	.type ramet_clone, @function
	.balign 16
ramet_clone:
	.cfi_startproc
	_CET_ENDBR
	testq %rdi, %rdi
	jz .Linvalid
	testq %rcx, %rcx
	jz .Linvalid
	movq 8(%rsp), %r10		/* ctid: the seventh argument */
	andq $-16, %rcx
	movq %rdi, -16(%rcx)		/* the two words that the child finds */
	movq %rsi, -8(%rcx)
	movq %rdx, %rdi			/* flags */
	leaq -16(%rcx), %rsi		/* stack */
	movq %r8, %rdx			/* ptid */
	movq %r9, %r8			/* tls */
	movl $SYS_clone, %eax
	syscall
	testq %rax, %rax
	jz ramet_child
	ret
.Linvalid:
	movq $-EINVAL, %rax
	ret
	.cfi_endproc
	.size ramet_clone, . - ramet_clone

/* long ramet_clone3(args, size, fn, arg) */
	.globl ramet_clone3
	.hidden ramet_clone3
	.type ramet_clone3, @function
	.balign 16
ramet_clone3:
	.cfi_startproc
	_CET_ENDBR
	testq %rdi, %rdi
	jz .Linvalid3
	testq %rdx, %rdx
	jz .Linvalid3
	cmpq $64, %rsi			/* CLONE_ARGS_SIZE_VER0 */
	jb .Linvalid3
	movq 40(%rdi), %r8		/* clone_args.stack */
	testq %r8, %r8
	jz .Linvalid3
	movq 48(%rdi), %r9		/* clone_args.stack_size */
	cmpq $32, %r9
	jb .Linvalid3
	addq %r9, %r8
	andq $-16, %r8
	movq %rdx, -16(%r8)
	movq %rcx, -8(%r8)
	movl $SYS_clone3, %eax
	syscall
	testq %rax, %rax
	jz .Lchild3
	ret
.Linvalid3:
	movq $-EINVAL, %rax
	ret
	.cfi_endproc
	.size ramet_clone3, . - ramet_clone3

/* The child. Undefined return address: the unwinder ends here. With CLONE_VFORK
 * the shadow stack is the parent's (arch/x86/kernel/shstk.c), so this may call
 * but must not return: what a call pushes lies beyond what the parent uses. */
	.type ramet_child, @function
.Lchild3:
	.cfi_startproc
	.cfi_undefined rip
	andq $-16, %rsp			/* clone3 starts at stack + stack_size */
	subq $16, %rsp
ramet_child:
	xorl %ebp, %ebp			/* the outermost frame */
	cld
	movq 8(%rsp), %rdi
	call *(%rsp)
	movq %rax, %rdi
	movl $SYS_exit, %eax
	syscall
	ud2
	.cfi_endproc
	.size ramet_child, . - ramet_child

	.section .note.GNU-stack, "", @progbits
