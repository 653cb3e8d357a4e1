/*
 * The stub's entry point, assembled without any header of the guest kernel.
 *
 * The first thing done is to give up everything but read, write and exit: prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT).
 * What is compiled from the header tree runs only after that has succeeded, so a hostile tree can at worst return
 * wrong answers, which the parent holds against VMCOREINFO and the guest's own counters.
 */
    .text
    .globl lacuna_entry
    .type lacuna_entry, @function
lacuna_entry:
    xorl %ebp, %ebp
    movl $157, %eax             /* __NR_prctl, arch/x86/entry/syscalls/syscall_64.tbl */
    movl $22, %edi              /* PR_SET_SECCOMP, include/uapi/linux/prctl.h */
    movl $1, %esi               /* SECCOMP_MODE_STRICT, include/uapi/linux/seccomp.h */
    xorl %edx, %edx
    xorl %r10d, %r10d
    xorl %r8d, %r8d
    syscall
    testq %rax, %rax
    jnz 1f
    andq $-16, %rsp
    call lacuna_serve
    xorl %edi, %edi
    jmp 2f
1:  movl $97, %edi              /* the parent's name for "no seccomp here", SANDBOX_UNAVAILABLE in run.rs */
2:  movl $60, %eax              /* __NR_exit: the only exit that strict mode lets through */
    syscall
    ud2

    /* long lacuna_syscall3(long number, long a, long b, long c) */
    .globl lacuna_syscall3
    .type lacuna_syscall3, @function
lacuna_syscall3:
    movq %rdi, %rax
    movq %rsi, %rdi
    movq %rdx, %rsi
    movq %rcx, %rdx
    syscall
    ret

    .section .note.GNU-stack, "", @progbits
