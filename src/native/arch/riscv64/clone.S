/* SPDX-License-Identifier: MIT
 *
 * ramet_clone and ramet_clone3 for riscv64. What they promise is in ramet.h;
 * docs/architecture.md says how each line of the promise is tested.
 *
 * System calls: number in a7, arguments in a0 to a5 (syscall(2)); clone takes
 * tls before ctid here (CONFIG_CLONE_BACKWARDS, kernel/fork.c). Functions: a0 to
 * a7; sp is a multiple of 16 (RISC-V ELF psABI, "Integer Calling Convention").
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
	beqz a0, .Linvalid
	beqz a3, .Linvalid
	andi a3, a3, -16
	addi a3, a3, -16
	sd a0, 0(a3)			/* the two words that the child finds */
	sd a1, 8(a3)
	mv a0, a2			/* flags */
	mv a1, a3			/* stack */
	mv a2, a4			/* ptid */
	mv a3, a5			/* tls */
	mv a4, a6			/* ctid */
	li a7, SYS_clone
	ecall
	beqz a0, ramet_child
	ret
.Linvalid:
	li a0, -EINVAL
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
	beqz a0, .Linvalid3
	beqz a2, .Linvalid3
	li t0, 64			/* CLONE_ARGS_SIZE_VER0 */
	bltu a1, t0, .Linvalid3
	ld t1, 40(a0)			/* clone_args.stack */
	beqz t1, .Linvalid3
	ld t2, 48(a0)			/* clone_args.stack_size */
	li t0, 32
	bltu t2, t0, .Linvalid3
	add t1, t1, t2
	andi t1, t1, -16
	sd a2, -16(t1)
	sd a3, -8(t1)
	li a7, SYS_clone3
	ecall
	beqz a0, .Lchild3
	ret
.Linvalid3:
	li a0, -EINVAL
	ret
	.cfi_endproc
	.size ramet_clone3, . - ramet_clone3

/* The child. Undefined return address: the unwinder ends here. */
	.type ramet_child, %function
.Lchild3:
	.cfi_startproc
	.cfi_undefined ra
	andi sp, sp, -16		/* clone3 starts at stack + stack_size */
	addi sp, sp, -16
ramet_child:
	li s0, 0			/* the outermost frame */
	li ra, 0
	ld t0, 0(sp)
	ld a0, 8(sp)
	jalr t0
	li a7, SYS_exit
	ecall
	ebreak
	.cfi_endproc
	.size ramet_child, . - ramet_child

	.section .note.GNU-stack, "", %progbits
