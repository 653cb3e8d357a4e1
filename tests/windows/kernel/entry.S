/*
 * How processors come into the guest. The first is started by Xen as a PVH guest's is (docs/misc/pvh.pandoc): 32 bits, no
 * paging, EBX leads to the start info. The second is started by VCPUOP_up in 64 bits. Both run on an identity map of the
 * lower 4 GiB, to which windows.c adds what Windows has in its upper half.
 */

#define CODE 0x10               /* KGDT64_R0_CODE, as in Windows */
#define DATA 0x18
#define PRESENT_WRITE 0x3
#define LARGE 0x80

    /* XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h): where to begin. */
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long start

    .text
    .code32
    .globl start
start:
    cld
    mov $first_stack_top, %esp
    mov %ebx, %esi
    movl $(identity_high + PRESENT_WRITE), root_table
    mov $4, %ecx
    mov $(identity_low + PRESENT_WRITE), %eax
    mov $identity_high, %edi
1:  mov %eax, (%edi)
    add $0x1000, %eax
    add $8, %edi
    loop 1b
    mov $(4 * 512), %ecx
    mov $(LARGE + PRESENT_WRITE), %eax
    mov $identity_low, %edi
2:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 2b
    mov $root_table, %eax
    mov %eax, %cr3
    mov $0x20, %eax             /* CR4.PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx       /* EFER: SCE, LME */
    mov $0x101, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80050033, %eax       /* CR0: PG, AM, WP, NE, ET, MP, PE */
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $CODE, $long_mode

    .code64
long_mode:
    call load_data_segments
    mov %esi, %edi
    xor %ebp, %ebp
    call begin
    ud2

    .globl second_start
second_start:
    lgdt gdt_pointer
    pushq $CODE
    pushq $3f
    lretq
3:  call load_data_segments
    xor %ebp, %ebp
    call begin_second
    ud2

load_data_segments:
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    ret

    /* The stubs in the image push the exception's number and come here: nothing of this guest's may fail. */
    .globl exception
exception:
    mov %rsp, %rdi
    call report_exception
    ud2

    .data
    .balign 8
gdt:
    .quad 0, 0
    .quad 0x00209b0000000000    /* code, 64 bits */
    .quad 0x00cf93000000ffff    /* data */
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt

    .bss
    .balign 4096
    .globl root_table, hypercall_page, second_stack_top
root_table:     .skip 4096
identity_high:  .skip 4096
identity_low:   .skip 4 * 4096
hypercall_page: .skip 4096
first_stack:    .skip 16384
first_stack_top:
second_stack:   .skip 16384
second_stack_top:

    .section .note.GNU-stack, "", @progbits
