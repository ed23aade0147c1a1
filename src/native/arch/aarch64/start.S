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
	.cfi_undefined x30
	hint #34			/* bti c */
	mov x29, #0
	mov x30, #0
	mov x0, sp			/* is aligned already */
	bl ramet_init
	brk #0
	.cfi_endproc
	.size _start, . - _start

	.section .note.GNU-stack, "", %progbits
