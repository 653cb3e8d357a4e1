/*
 * What of Windows Lacuna looks for from outside: the image with its debug record, in which the processors enter the
 * kernel; the variables in it; the runs of memory; the page-frame database; the shared data with its cookie.
 *
 * Page tables and all that is mapped through them lie in frames taken from the end of what was loaded, and virtual
 * neighbours are no neighbours in memory.
 */
#include "guest.h"

#define PRESENT_WRITE 3ull
#define ADDRESS 0x000ffffffffff000ull
#define CODE 0x10
/* KUSER_SHARED_DATA (ntddk.h): its address on 64 bits, and Cookie in it. */
#define SHARED_DATA 0xfffff78000000000ull
#define COOKIE 0x330
/* Each processor has its interrupt table, below the image. */
#define INTERRUPTS(cpu) (package->image_base - 0x100000 + (cpu) * PAGE_BYTES)
#define GATES 256
#define VECTORS 32
#define STUB_BYTES 32
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082

const struct package *package;
uint64_t frames, hole, hole_end;
static uint64_t next_frame;

extern uint8_t root_table[], exception[];

uint64_t windows_take_frames(uint64_t count)
{
    uint64_t first = next_frame;

    next_frame += count;
    if ( next_frame > hole )
        stop("the guest has too little memory");
    memset(page_of(first), 0, count * PAGE_BYTES);

    return first;
}

static void map(uint64_t at, uint64_t frame)
{
    uint64_t *table = (uint64_t *)root_table;
    int shift;

    for ( shift = 39; shift > 12; shift -= 9 )
    {
        uint64_t *slot = &table[at >> shift & 511];

        if ( !(*slot & 1) )
            *slot = windows_take_frames(1) * PAGE_BYTES | PRESENT_WRITE;
        table = (uint64_t *)(*slot & ADDRESS);
    }
    table[at >> 12 & 511] = frame * PAGE_BYTES | PRESENT_WRITE;
}

/* Maps `count` fresh pages from `at` on, the last of the frames first. */
static void map_fresh(uint64_t at, uint64_t count)
{
    uint64_t first = windows_take_frames(count), page;

    for ( page = 0; page < count; page++ )
        map(at + page * PAGE_BYTES, first + count - 1 - page);
}

void *windows_variable(uint32_t rva)
{
    return (void *)(package->image_base + rva);
}

bool windows_has(uint64_t frame)
{
    return (frame >= 1 && frame < 0x9f) || (frame >= 0x100 && frame < hole) ||
           (frame >= hole_end && frame < frames);
}

/* `push vector; jmp *[rip]; .quad exception` for each exception, in the image's code. */
static void write_stubs(void)
{
    unsigned int vector;

    for ( vector = 0; vector < VECTORS; vector++ )
    {
        uint8_t *stub = windows_variable(package->stubs + vector * STUB_BYTES);
        uint64_t target = (uint64_t)exception;

        stub[0] = 0x6a;
        stub[1] = vector;
        stub[2] = 0xff;
        stub[3] = 0x25;
        memset(stub + 4, 0, 4);
        memcpy(stub + 8, &target, 8);
    }
}

static void write_memory_block(void)
{
    uint64_t *block = windows_variable(package->descriptor);

    *(uint64_t *)windows_variable(package->memory_block) = (uint64_t)block;
    /* NumberOfRuns, NumberOfPages, and BasePage with PageCount of each run (PHYSICAL_MEMORY_DESCRIPTOR). */
    block[0] = 3;
    block[2] = 1;
    block[3] = 0x9f - 1;
    block[4] = 0x100;
    block[5] = hole - 0x100;
    block[6] = hole_end;
    block[7] = frames - hole_end;
    block[1] = block[3] + block[5] + block[7];
}

static void write_gates(unsigned int cpu)
{
    unsigned int vector;

    for ( vector = 0; vector < GATES; vector++ )
    {
        uint64_t *gate = (uint64_t *)INTERRUPTS(cpu) + 2 * vector;
        uint64_t handler = package->image_base + package->stubs + vector % VECTORS * STUB_BYTES;

        gate[0] = (handler & 0xffff) | CODE << 16 | 0x8e00ull << 32 | (handler >> 16 & 0xffff) << 48;
        gate[1] = handler >> 32;
    }
}

void windows_begin(const struct package *given, uint64_t memory_end, uint64_t first_unused)
{
    uint64_t random = read_tsc() | 1, page;

    package = given;
    frames = memory_end;
    /* Devices' memory, for all that Windows knows: in no run, with entries that nobody filled in. */
    hole = frames / 2;
    hole_end = hole + 0x100;
    next_frame = first_unused;
    map_fresh(package->image_base, package->image_bytes / PAGE_BYTES);
    memcpy((void *)package->image_base, (const uint8_t *)package + package->image_offset, package->image_bytes);
    write_stubs();
    map_fresh(SHARED_DATA, 1);
    for ( page = 0; page < 16; page++ )
        (void)random_next(&random);
    *(uint32_t *)(SHARED_DATA + COOKIE) = random_next(&random) | 1;
    for ( page = 0; page < 2; page++ )
    {
        map_fresh(INTERRUPTS(page), 1);
        write_gates(page);
    }
    map_fresh(package->database, (frames * package->entry_bytes + PAGE_BYTES - 1) / PAGE_BYTES);
    *(uint64_t *)windows_variable(package->pfn_database) = package->database;
    write_memory_block();
}

void windows_processor(unsigned int cpu)
{
    struct __attribute__((packed)) { uint16_t limit; uint64_t base; } table = {
        GATES * 16 - 1, INTERRUPTS(cpu)
    };

    asm volatile ( "lidt %0" :: "m" (table) );
    write_msr(MSR_STAR, (uint64_t)CODE << 32);
    write_msr(MSR_LSTAR, package->image_base + package->entry);
}
