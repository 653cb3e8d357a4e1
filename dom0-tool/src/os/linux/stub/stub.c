/*
 * Lacuna's stub: the guest kernel's own definitions, asked.
 *
 * Compiled against the header tree of one kernel build. The functions below are that kernel's PageBuddy() and
 * __SetPageBuddy(); the parent learns what "free" means by running them (learn.rs), so no kernel version needs to be
 * known here beyond what the preprocessor itself says.
 */
#include <linux/version.h>
#include <generated/utsrelease.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/page-flags.h>
#include <linux/sched.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(3, 4, 0)
#include <linux/jump_label.h>
#endif
#include <linux/utsname.h>

/* __NR_read and __NR_write, arch/x86/entry/syscalls/syscall_{64,32}.tbl: all that strict seccomp leaves, with exit. */
#ifdef __i386__
#define CALL_READ 3
#define CALL_WRITE 4
/* 32-bit kernels are compiled with -mregparm=3; entry32.S takes its arguments from the stack. */
__attribute__((regparm(0)))
#else
#define CALL_READ 0
#define CALL_WRITE 1
#endif
extern long lacuna_syscall3(long number, long a, long b, long c);

struct lacuna_fact {
    char name[48];
    unsigned long long present;
    unsigned long long value;
};

#define FACT(n, v) { .name = n, .present = 1, .value = (unsigned long long)(v) }
#define SIZE_OF(type) FACT("sizeof(" #type ")", sizeof(type))
#define OFFSET_OF(type, member) FACT("offsetof(" #type "," #member ")", offsetof(type, member))
#define MEMBER_SIZE(type, member) FACT("sizeof(" #type "," #member ")", sizeof(((type *)0)->member))

static const struct lacuna_fact facts[] = {
    FACT("LINUX_VERSION_CODE", LINUX_VERSION_CODE),
    FACT("PAGE_SIZE", 1UL << PAGE_SHIFT),
    SIZE_OF(struct page),
    OFFSET_OF(struct page, flags),
    OFFSET_OF(struct page, private),
    OFFSET_OF(struct page, _mapcount),
    OFFSET_OF(struct page, lru),
#if LINUX_VERSION_CODE >= KERNEL_VERSION(4, 6, 0)
    OFFSET_OF(struct page, _refcount),
#endif
    SIZE_OF(struct zone),
    OFFSET_OF(struct zone, free_area),
    OFFSET_OF(struct zone, spanned_pages),
    SIZE_OF(struct free_area),
    OFFSET_OF(struct free_area, nr_free),
    MEMBER_SIZE(struct free_area, nr_free),
    /* How many orders there are, whatever MAX_ORDER means in this version (it changed meaning in 6.4, name in 6.8). */
    FACT("orders", sizeof(((struct zone *)0)->free_area) / sizeof(struct free_area)),
    FACT("MAX_NR_ZONES", MAX_NR_ZONES),
    FACT("MAX_NUMNODES", MAX_NUMNODES),
    SIZE_OF(struct pglist_data),
    OFFSET_OF(struct pglist_data, node_zones),
    OFFSET_OF(struct pglist_data, nr_zones),
    OFFSET_OF(struct pglist_data, node_start_pfn),
    OFFSET_OF(struct pglist_data, node_spanned_pages),
/* The condition had a name of its own until 5.14 (include/linux/mmzone.h). */
#if defined(CONFIG_FLAT_NODE_MEM_MAP) || (defined(CONFIG_FLATMEM) && LINUX_VERSION_CODE >= KERNEL_VERSION(5, 14, 0))
    OFFSET_OF(struct pglist_data, node_mem_map),
#endif
#ifdef CONFIG_SPARSEMEM
    SIZE_OF(struct mem_section),
    OFFSET_OF(struct mem_section, section_mem_map),
    FACT("SECTION_SIZE_BITS", SECTION_SIZE_BITS),
    FACT("SECTIONS_PER_ROOT", SECTIONS_PER_ROOT),
/* The table itself, or since 4.15 a pointer to it. */
    FACT("sizeof(mem_section)", sizeof(mem_section)),
#endif
#if defined(CONFIG_STACKPROTECTOR) || defined(CONFIG_CC_STACKPROTECTOR)
    OFFSET_OF(struct task_struct, stack_canary),
#endif
/* By these the first task is told where no symbol says where it is (first_task.rs). */
    OFFSET_OF(struct task_struct, group_leader),
    OFFSET_OF(struct task_struct, parent),
    OFFSET_OF(struct task_struct, comm),
/* Before 3.4 struct static_key was struct jump_label_key, and page poisoning had no switch. */
#if defined(CONFIG_JUMP_LABEL) && LINUX_VERSION_CODE >= KERNEL_VERSION(3, 4, 0)
    OFFSET_OF(struct static_key, enabled),
    MEMBER_SIZE(struct static_key, enabled),
#endif
#ifdef CONFIG_SPARSEMEM_VMEMMAP
    FACT("CONFIG_SPARSEMEM_VMEMMAP", 1),
#endif
#ifdef CONFIG_SPARSEMEM
    FACT("CONFIG_SPARSEMEM", 1),
#endif
#ifdef CONFIG_FLATMEM
    FACT("CONFIG_FLATMEM", 1),
#endif
#ifdef CONFIG_NUMA
    FACT("CONFIG_NUMA", 1),
#endif
#ifdef CONFIG_PAGE_POISONING
    FACT("CONFIG_PAGE_POISONING", 1),
#endif
#ifdef CONFIG_RANDSTRUCT
    FACT("CONFIG_RANDSTRUCT", 1),
#endif
#ifdef CONFIG_GCC_PLUGIN_RANDSTRUCT
    FACT("CONFIG_RANDSTRUCT", 1),
#endif
};

/* What the parent reads first, so that it knows how long everything else is. */
struct lacuna_greeting {
    char magic[8];
    unsigned long long fact_size;
    unsigned long long fact_count;
    unsigned long long descriptor_size;
    char release[128];
    char compiler[64];
};

static struct lacuna_greeting greeting = {
    .magic = "LACSTUB1",
    .fact_size = sizeof(struct lacuna_fact),
    .fact_count = sizeof(facts) / sizeof(facts[0]),
    .descriptor_size = sizeof(struct page),
    .release = UTS_RELEASE,
    .compiler = __VERSION__,
};

/*
 * noinline and a compiler barrier: each function must read and write the descriptor in memory, as the kernel would,
 * and not a value the optimiser remembers.
 */
static noinline int is_buddy(struct page *page)
{
    __asm__ volatile ("" : : "r" (page) : "memory");
    return !!PageBuddy(page);
}

static noinline void set_buddy(struct page *page)
{
    __SetPageBuddy(page);
    __asm__ volatile ("" : : "r" (page) : "memory");
}

static noinline void clear_buddy(struct page *page)
{
    __ClearPageBuddy(page);
    __asm__ volatile ("" : : "r" (page) : "memory");
}

/* mm/page_alloc.c, set_buddy_order() (set_page_order() before 5.9) is exactly this; it is not in any header. */
static noinline void set_order(struct page *page, unsigned long order)
{
    set_page_private(page, order);
    __asm__ volatile ("" : : "r" (page) : "memory");
}

/* mm/internal.h, buddy_order() (page_order() before 5.9). */
static noinline unsigned long get_order_field(struct page *page)
{
    __asm__ volatile ("" : : "r" (page) : "memory");
    return page_private(page);
}

static noinline void set_one_reference(struct page *page)
{
    init_page_count(page);
    __asm__ volatile ("" : : "r" (page) : "memory");
}

static int get(void *into, unsigned long size)
{
    char *at = into;

    while (size)
    {
        long got = lacuna_syscall3(CALL_READ, 0, (long)at, (long)size);

        if (got <= 0)
            return 0;
        at += got;
        size -= got;
    }
    return 1;
}

static int put(const void *from, unsigned long size)
{
    const char *at = from;

    while (size)
    {
        long done = lacuna_syscall3(CALL_WRITE, 1, (long)at, (long)size);

        if (done <= 0)
            return 0;
        at += done;
        size -= done;
    }
    return 1;
}

/*
 * One request and its answer: an operation, an argument that the answer's number replaces, and a descriptor. Aligned
 * so that the descriptor lies as it would in a memory map.
 */
struct lacuna_exchange {
    unsigned long long operation;
    unsigned long long value;
    unsigned char reserved[48];
    struct page page;
} __attribute__((aligned(64)));

static struct lacuna_exchange exchange;

void lacuna_serve(void)
{
    const unsigned long length = offsetof(struct lacuna_exchange, page) + sizeof(struct page);

    if (!put(&greeting, sizeof(greeting)) || !put(facts, sizeof(facts)))
        return;
    while (get(&exchange, length))
    {
        switch (exchange.operation)
        {
        case 'T': exchange.value = is_buddy(&exchange.page); break;
        case 'S': set_buddy(&exchange.page); break;
        case 'C': clear_buddy(&exchange.page); break;
        case 'O': set_order(&exchange.page, exchange.value); break;
        case 'o': exchange.value = get_order_field(&exchange.page); break;
        case 'R': set_one_reference(&exchange.page); break;
        default: return;
        }
        if (!put(&exchange, length))
            return;
    }
}
