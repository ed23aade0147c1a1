/* SPDX-License-Identifier: MIT
 *
 * Where the kernel enters a program: the stack has argc, the arguments and the environment. See
 * init.c.
 */
	.text
	.globl _start
	.type _start, %function
_start:
	.cfi_startproc
	.cfi_undefined ra
	.option push
	.option norelax
	la gp, __global_pointer$
	.option pop
	li s0, 0
	mv a0, sp			/* is aligned already */
	call ramet_init
	ebreak
	.cfi_endproc
	.size _start, . - _start

	.section .note.GNU-stack, "", %progbits
