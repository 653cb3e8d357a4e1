/*
 * Where the guest begins, and what its two processors do: the first answers orders, both run the workload, and the last one
 * there is zeroes free pages.
 */
#include "guest.h"

/* xen/include/public/arch-x86/hvm/start_info.h */
#define START_MAGIC 0x336ec578
#define MEMORY_RAM 1

/* Pages that are zeroed between two blocks of the workload. */
#define ZEROED_AT_A_TIME 1024

struct start_info {
    uint32_t magic, version, flags, modules;
    uint64_t module_list, command_line, rsdp, memory_map;
    uint32_t memory_entries, reserved;
};

struct module {
    uint64_t at, size, command_line, reserved;
};

struct memory_entry {
    uint64_t at, size;
    uint32_t kind, reserved;
};

extern uint8_t guest_end[];
static volatile bool ready;
static bool second;

/* Pages that are not in the lists begin behind the last thing that Xen's loader left below 4 GiB. */
static uint64_t first_unused(const struct start_info *info)
{
    const struct module *module = (const struct module *)info->module_list;
    uint64_t ends[] = {
        (uint64_t)guest_end, module->at + module->size, (uint64_t)info + PAGE_BYTES,
        info->module_list + PAGE_BYTES, info->command_line + PAGE_BYTES, info->memory_map + PAGE_BYTES,
    };
    uint64_t last = 0;
    unsigned int end;

    for ( end = 0; end < sizeof(ends) / sizeof(ends[0]); end++ )
        if ( ends[end] > last )
            last = ends[end];

    return (last + PAGE_BYTES - 1) / PAGE_BYTES;
}

static uint64_t memory_end(const struct start_info *info)
{
    const struct memory_entry *entry = (const struct memory_entry *)info->memory_map;
    uint64_t end = 0;
    uint32_t left;

    /* What lies below 4 GiB and is mapped: the lab's guests have no more. */
    for ( left = info->memory_entries; left; left--, entry++ )
        if ( entry->kind == MEMORY_RAM && entry->at + entry->size > end && entry->at + entry->size < 1ull << 32 )
            end = entry->at + entry->size;

    return end / PAGE_BYTES;
}

void begin(const struct start_info *info)
{
    const struct module *module;
    const struct package *given;
    uint64_t random = read_tsc() | 1;

    xen_begin();
    if ( info->magic != START_MAGIC || !info->modules || !info->memory_entries )
        stop("no start info of a PVH guest with an initial file system");
    module = (const struct module *)info->module_list;
    given = (const struct package *)module->at;
    if ( given->magic != PACKAGE_MAGIC )
        stop("the initial file system is no package of the lab's");
    windows_begin(given, memory_end(info), first_unused(info));
    windows_processor(0);
    /* The account's frames are the last that are in use for good. */
    second = xen_start_second();
    orders_begin();
    memory_begin(&random, windows_take_frames(0));
    __atomic_store_n(&ready, true, __ATOMIC_RELEASE);
    orders_ready(second);
    for ( ;; )
    {
        bool busy = orders_step();

        busy |= store_step();
        busy |= work_step(0);
        busy |= orders_capture();
        if ( !second )
            busy |= memory_zero_one();
        if ( !busy )
            xen_wait(0);
    }
}

void begin_second(void)
{
    windows_processor(1);
    while ( !__atomic_load_n(&ready, __ATOMIC_ACQUIRE) )
        xen_yield();
    for ( ;; )
    {
        bool busy = work_step(1);
        unsigned int left;

        /* As many as two blocks of the workload take, so that the zeroed list does not run dry. */
        for ( left = ZEROED_AT_A_TIME; left && memory_zero_one(); left-- )
            busy = true;
        if ( !busy )
            xen_wait(1);
    }
}

struct exception_frame {
    uint64_t vector, words[6];
};

void report_exception(const struct exception_frame *frame)
{
    struct text text = { .length = 0 };
    uint64_t address;
    unsigned int word;

    asm volatile ( "mov %%cr2, %0" : "=r" (address) );
    text_add(&text, "exception ");
    text_number(&text, frame->vector);
    text_add(&text, ", CR2 ");
    text_number(&text, address);
    text_add(&text, ", stack");
    for ( word = 0; word < 6; word++ )
    {
        text_add(&text, " ");
        text_number(&text, frame->words[word]);
    }
    stop(text.bytes);
}
