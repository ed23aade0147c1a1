/* SPDX-License-Identifier: MIT
 *
 * ramet_clone and ramet_clone3 for aarch64. What they promise is in ramet.h;
 * docs/architecture.md says how each line of the promise is tested.
 *
 * System calls: number in x8, arguments in x0 to x5 (syscall(2)); clone takes
 * tls before ctid here (CONFIG_CLONE_BACKWARDS, kernel/fork.c). Functions: x0 to
 * x7; sp is a multiple of 16 whenever memory is reached through it (AAPCS64 6.4.5).
 */

#define SYS_exit 93   /* include/uapi/asm-generic/unistd.h */
#define SYS_clone 220
#define SYS_clone3 435
#define EINVAL 22

	.text

/* long ramet_clone(fn, arg, flags, child_stack, ptid, newtls, ctid) */
	.globl ramet_clone
	.hidden ramet_clone
	.type ramet_clone, %function
	.balign 16
ramet_clone:
	.cfi_startproc
	hint #34			/* bti c */
	cbz x0, .Linvalid
	cbz x3, .Linvalid
	and x3, x3, #-16
	stp x0, x1, [x3, #-16]!		/* the two words that the child finds */
	mov x0, x2			/* flags */
	mov x1, x3			/* stack */
	mov x2, x4			/* ptid */
	mov x3, x5			/* tls */
	mov x4, x6			/* ctid */
	mov x8, #SYS_clone
	svc #0
	cbz x0, ramet_child
	ret
.Linvalid:
	mov x0, #-EINVAL
	ret
	.cfi_endproc
	.size ramet_clone, . - ramet_clone

/* long ramet_clone3(args, size, fn, arg) */
	.globl ramet_clone3
	.hidden ramet_clone3
	.type ramet_clone3, %function
	.balign 16
ramet_clone3:
	.cfi_startproc
	hint #34			/* bti c */
	cbz x0, .Linvalid3
	cbz x2, .Linvalid3
	cmp x1, #64			/* CLONE_ARGS_SIZE_VER0 */
	b.lo .Linvalid3
	ldp x4, x5, [x0, #40]		/* clone_args.stack, .stack_size */
	cbz x4, .Linvalid3
	cmp x5, #32
	b.lo .Linvalid3
	add x4, x4, x5
	and x4, x4, #-16
	stp x2, x3, [x4, #-16]
	mov x8, #SYS_clone3
	svc #0
	cbz x0, .Lchild3
	ret
.Linvalid3:
	mov x0, #-EINVAL
	ret
	.cfi_endproc
	.size ramet_clone3, . - ramet_clone3

/* The child. Undefined return address: the unwinder ends here. */
	.type ramet_child, %function
.Lchild3:
	.cfi_startproc
	.cfi_undefined x30
	mov x9, sp			/* clone3 starts at stack + stack_size */
	sub x9, x9, #16
	and sp, x9, #-16
ramet_child:
	mov x29, #0			/* the outermost frame */
	mov x30, #0
	ldp x9, x0, [sp]
	blr x9
	mov x8, #SYS_exit
	svc #0
	brk #0
	.cfi_endproc
	.size ramet_child, . - ramet_child

/* Every entry has a landing pad and no return address is stored, so the object
 * is fit for BTI and PAC: bits 0 and 1 of FEATURE_1_AND (AAELF64, 7.1.1). */
	.section .note.gnu.property, "a", %note
	.balign 8
	.word 4, 16, 5			/* name and descriptor sizes, NT_GNU_PROPERTY_TYPE_0 */
	.asciz "GNU"
	.word 0xc0000000, 4, 3, 0	/* FEATURE_1_AND, its size, BTI | PAC, padding */

	.section .note.GNU-stack, "", %progbits
