/*
 * Allocates, writes, checks and frees without pause, so that pages change hands all the time. Every word written is a
 * function of the block's number and its place (tests/guest/src/workload.rs does the same on Linux), so a word that was
 * lost, or is someone else's, is seen. A page that comes off the zeroed list must be zero.
 */
#include "guest.h"

#define BLOCK_PAGES 512
#define MOST_BLOCKS 512
/* Corrupt words that are told one by one; the counter has all of them. */
#define TOLD 16
#define MOST_LIES 4096

struct block {
    uint64_t generation, pages, first;
};

static struct worker {
    struct block held[MOST_BLOCKS];
    uint64_t oldest, newest, random;
    volatile bool runs;
} workers[2];
static volatile bool stopping;
static uint64_t depth, seed_of_lies;
static uint64_t blocks, pages_checked, corrupt;
static uint64_t grown = NOTHING;
static uint64_t lies[MOST_LIES], lie_count;

uint64_t work_word(uint64_t generation, uint64_t index)
{
    return (generation * 0x9e3779b97f4a7c15ull ^ index * 0xbf58476d1ce4e5b9ull) | 1;
}

static void found_corrupt(const void *at, uint64_t expected, uint64_t seen)
{
    if ( __atomic_fetch_add(&corrupt, 1, __ATOMIC_RELAXED) < TOLD )
        orders_tell_corrupt(at, expected, seen);
}

static bool is_zero(uint64_t frame)
{
    const uint64_t *words = page_of(frame);
    uint64_t any = 0;
    unsigned int index;

    for ( index = 0; index < PAGE_WORDS; index++ )
        any |= words[index];

    return !any;
}

static void write_page(uint64_t frame, uint64_t generation, uint64_t first)
{
    uint64_t *words = page_of(frame);
    unsigned int index;

    for ( index = 0; index < PAGE_WORDS; index++ )
        words[index] = work_word(generation, first + index);
}

static void check_page(uint64_t frame, uint64_t generation, uint64_t first)
{
    const uint64_t *words = page_of(frame);
    unsigned int index;

    for ( index = 0; index < PAGE_WORDS; index++ )
        if ( words[index] != work_word(generation, first + index) )
            found_corrupt(&words[index], work_word(generation, first + index), words[index]);
}

static void make_block(struct worker *worker)
{
    struct block *block = &worker->held[worker->newest % MOST_BLOCKS];
    uint64_t generation = random_next(&worker->random), wanted, last = NOTHING;

    switch ( generation % 4 )
    {
    case 0: wanted = 1 + generation / 4 % 16; break;
    case 1: wanted = BLOCK_PAGES; break;
    default: wanted = 1 + generation / 4 % BLOCK_PAGES;
    }
    block->generation = generation;
    block->pages = 0;
    for ( ; block->pages < wanted; block->pages++ )
    {
        bool zeroed;
        uint64_t frame = memory_take(&zeroed);

        if ( frame == NOTHING )
            break;
        if ( zeroed && !is_zero(frame) )
            found_corrupt(page_of(frame), 0, page_of(frame)[0]);
        write_page(frame, generation, block->pages * PAGE_WORDS);
        if ( last == NOTHING )
            block->first = frame;
        else
            memory_chain(last, frame);
        last = frame;
    }
    worker->newest++;
}

static void check_oldest(struct worker *worker)
{
    struct block *block = &worker->held[worker->oldest % MOST_BLOCKS];
    uint64_t frame = block->first, page;

    for ( page = 0; page < block->pages; page++ )
    {
        /* Read before the page is freed: the link is the list's from then on. */
        uint64_t next = page + 1 < block->pages ? memory_next(frame) : NOTHING;

        check_page(frame, block->generation, page * PAGE_WORDS);
        memory_give(frame);
        frame = next;
    }
    __atomic_fetch_add(&pages_checked, block->pages, __ATOMIC_RELAXED);
    __atomic_fetch_add(&blocks, 1, __ATOMIC_RELAXED);
    worker->oldest++;
}

void work_start(unsigned int threads, uint64_t mib, uint64_t seed)
{
    unsigned int number;

    if ( threads > 2 )
        threads = 2;
    if ( !threads )
        threads = 1;
    blocks = pages_checked = corrupt = 0;
    stopping = false;
    /* Blocks average half of the largest. */
    depth = mib * 256 / threads / BLOCK_PAGES * 2;
    if ( depth < 1 )
        depth = 1;
    if ( depth >= MOST_BLOCKS )
        depth = MOST_BLOCKS - 1;
    for ( number = 0; number < threads; number++ )
    {
        workers[number].random = (seed ^ (uint64_t)(number + 1) << 40) | 1;
        __atomic_store_n(&workers[number].runs, true, __ATOMIC_RELEASE);
        xen_wake(number);
    }
}

bool work_step(unsigned int cpu)
{
    struct worker *worker = &workers[cpu];

    if ( !__atomic_load_n(&worker->runs, __ATOMIC_ACQUIRE) )
        return false;
    if ( stopping )
    {
        while ( worker->oldest != worker->newest )
            check_oldest(worker);
        __atomic_store_n(&worker->runs, false, __ATOMIC_RELEASE);
        return true;
    }
    make_block(worker);
    if ( worker->newest - worker->oldest > depth )
    {
        check_oldest(worker);
        /* There are pages to be zeroed. */
        xen_wake(1);
    }

    return true;
}

void work_stop(void)
{
    stopping = true;
    while ( work_step(0) || __atomic_load_n(&workers[1].runs, __ATOMIC_ACQUIRE) )
        xen_yield();
}

struct work_counters work_counters(void)
{
    struct work_counters counters = { blocks, pages_checked, corrupt };

    return counters;
}

uint64_t work_grow(uint64_t pages, uint64_t *taken)
{
    uint64_t dirty = 0;

    for ( *taken = 0; *taken < pages; ++*taken )
    {
        bool zeroed;
        uint64_t frame = memory_take(&zeroed);

        if ( frame == NOTHING )
            break;
        if ( zeroed )
            dirty += !is_zero(frame);
        write_page(frame, pages, 0);
        memory_chain(frame, grown);
        grown = frame;
    }

    return dirty;
}

void work_shrink(void)
{
    while ( grown != NOTHING )
    {
        uint64_t next = memory_next(grown);

        memory_give(grown);
        grown = next;
    }
}

void work_lie(uint64_t pages)
{
    bool zeroed;

    seed_of_lies = read_tsc();
    while ( pages-- && lie_count < MOST_LIES )
    {
        uint64_t frame = memory_take(&zeroed);

        if ( frame == NOTHING )
            return;
        if ( pages % 2 )
            write_page(frame, seed_of_lies, lie_count);
        else
        {
            /* A single byte, somewhere. */
            memset(page_of(frame), 0, PAGE_BYTES);
            ((uint8_t *)page_of(frame))[lie_count * 61 % PAGE_BYTES] = 1;
        }
        memory_lie(frame, pages % 4 < 2);
        lies[lie_count++] = frame | (pages % 2) << 63;
    }
}

uint64_t work_check_lies(uint64_t *pages)
{
    uint64_t lie, lost = 0;

    for ( lie = 0; lie < lie_count; lie++ )
    {
        uint64_t frame = lies[lie] & ~(1ull << 63);
        const uint64_t *words = page_of(frame);
        unsigned int index;
        bool same = true;

        if ( lies[lie] >> 63 )
            for ( index = 0; index < PAGE_WORDS; index++ )
                same &= words[index] == work_word(seed_of_lies, lie + index);
        else
            for ( index = 0; index < PAGE_BYTES; index++ )
                same &= ((const uint8_t *)words)[index] == (index == lie * 61 % PAGE_BYTES);
        lost += !same;
    }
    *pages = lie_count;

    return lost;
}
