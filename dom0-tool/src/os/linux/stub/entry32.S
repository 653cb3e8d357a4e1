/*
 * entry.S for 32-bit kernels: the same first act, the same reasons, the numbers of 32-bit system calls.
 */
    .text
    .globl lacuna_entry
    .type lacuna_entry, @function
lacuna_entry:
    xorl %ebp, %ebp
    movl $172, %eax             /* __NR_prctl, arch/x86/entry/syscalls/syscall_32.tbl */
    movl $22, %ebx              /* PR_SET_SECCOMP, include/uapi/linux/prctl.h */
    movl $1, %ecx               /* SECCOMP_MODE_STRICT, include/uapi/linux/seccomp.h */
    xorl %edx, %edx
    xorl %esi, %esi
    xorl %edi, %edi
    int $0x80
    testl %eax, %eax
    jnz 1f
    andl $-16, %esp
    call lacuna_serve
    xorl %ebx, %ebx
    jmp 2f
1:  movl $97, %ebx              /* the parent's name for "no seccomp here", SANDBOX_UNAVAILABLE in run.rs */
2:  movl $1, %eax               /* __NR_exit: the only exit that strict mode lets through */
    int $0x80
    ud2

    /* long lacuna_syscall3(long number, long a, long b, long c), arguments on the stack */
    .globl lacuna_syscall3
    .type lacuna_syscall3, @function
lacuna_syscall3:
    pushl %ebx
    movl 8(%esp), %eax
    movl 12(%esp), %ebx
    movl 16(%esp), %ecx
    movl 20(%esp), %edx
    int $0x80
    popl %ebx
    ret

    .section .note.GNU-stack, "", @progbits
