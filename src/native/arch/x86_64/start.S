/* SPDX-License-Identifier: MIT
 *
 * Where the kernel enters a program: the stack has argc, the arguments and the environment. See
 * init.c.
 */
	.text
	.globl _start
	.type _start, @function
_start:
	.cfi_startproc
	.cfi_undefined rip
	endbr64
	xorl %ebp, %ebp
	movq %rsp, %rdi
	andq $-16, %rsp
	call ramet_init
	ud2
	.cfi_endproc
	.size _start, . - _start

	.section .note.GNU-stack, "", @progbits
