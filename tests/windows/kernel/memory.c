/*
 * The page-frame database, its lists, and the thread that zeroes.
 *
 * Entries are written as Windows leaves them, with the times at which one says less than the truth:
 *
 *   - a page that was taken off a list reads location 0 and no reference until its user has marked it, whichever list it
 *     was on, and also while the zeroing thread clears it. Nothing but zeroes is written to it in that time: the page is
 *     marked first, then written;
 *   - entries of frames that are in no run were never filled in, and read 0 throughout;
 *   - some pages of ROM, absent and locked ones, and some with a reference read location 0 for good, and are zero.
 *
 * One lock covers the entries and the lists. Lists are linked through the entry's first word (u1.Flink).
 */
#include "guest.h"

/* The zeroing thread leaves so many free pages alone, so that there always are free pages which are not zero
 * (Windows: MmMinimumFreePagesToZero). */
#define FREE_KEPT 1024
/* Pages of each kind that read location 0 and are on no list, and the distance between two in frames. */
#define TRAPS 64
#define TRAP_DISTANCE 37

/* MMPFNLIST */
struct list {
    volatile uint64_t total;
    uint64_t name, first, last;
};

static struct lock lock;
static uint8_t *entries;
/* Whether no page is to be zeroed, and whether one is. */
static bool resting, zeroing;

static struct list *list_of(enum location location)
{
    return (struct list *)windows_variable(package->lists) + location;
}

static uint8_t *entry_of(uint64_t frame)
{
    return entries + frame * package->entry_bytes;
}

static uint64_t *link_of(uint64_t frame)
{
    return (uint64_t *)(entry_of(frame) + package->link_offset);
}

static void set(uint64_t frame, const struct field *field, uint64_t value)
{
    volatile uint8_t *at = entry_of(frame) + field->offset;
    uint64_t mask;

    if ( !field->width )
        return;
    mask = (field->width == 64 ? ~0ull : (1ull << field->width) - 1) << field->bit;
    value <<= field->bit;
    switch ( field->storage )
    {
    case 1: *at = (*at & ~mask) | value; break;
    case 2: *(volatile uint16_t *)at = (*(volatile uint16_t *)at & ~mask) | value; break;
    case 4: *(volatile uint32_t *)at = (*(volatile uint32_t *)at & ~mask) | value; break;
    default: *(volatile uint64_t *)at = (*(volatile uint64_t *)at & ~mask) | value; break;
    }
}

static void append(enum location location, uint64_t frame)
{
    struct list *list = list_of(location);

    *link_of(frame) = NOTHING;
    if ( list->last == NOTHING )
        list->first = frame;
    else
        *link_of(list->last) = frame;
    list->last = frame;
    list->total++;
    set(frame, &package->references, 0);
    set(frame, &package->location, location);
}

/* Takes the first page off a list. Its entry reads location 0 from here on, until its user marks it. */
static uint64_t remove(enum location location)
{
    struct list *list = list_of(location);
    uint64_t frame = list->first;

    if ( frame == NOTHING )
        return NOTHING;
    list->first = *link_of(frame);
    if ( list->first == NOTHING )
        list->last = NOTHING;
    list->total--;
    set(frame, &package->location, ZEROED);

    return frame;
}

static void mark_used(uint64_t frame)
{
    set(frame, &package->references, 1);
    set(frame, &package->location, ACTIVE);
}

/* An entry as a page of the guest's has it, full of what is of no concern to anybody here. */
static void fill_in(uint64_t frame, uint64_t *random)
{
    uint64_t *word = (uint64_t *)entry_of(frame);
    unsigned int left;

    for ( left = package->entry_bytes / 8; left; left-- )
        *word++ = random_next(random);
    set(frame, &package->rom, 0);
    set(frame, &package->exists, 1);
    set(frame, &package->lock, 0);
}

/* Words that are not zero, in a page or a part of it. */
static void scribble(uint64_t frame, uint64_t *random)
{
    uint64_t *words = page_of(frame);
    unsigned int word;

    for ( word = 0; word < PAGE_WORDS; word++ )
        words[word] = random_next(random);
}

/* Has `TRAPS` pages read location 0 though they are not free, by `field`. They are zero. */
static void trap(uint64_t *frame, const struct field *field, uint64_t value)
{
    unsigned int count;

    if ( !field->width )
        return;
    for ( count = 0; count < TRAPS; *frame += TRAP_DISTANCE )
    {
        if ( !windows_has(*frame) )
            continue;
        memset(page_of(*frame), 0, PAGE_BYTES);
        set(*frame, &package->references, 0);
        set(*frame, &package->location, ZEROED);
        set(*frame, field, value);
        count++;
    }
}

/* Which frames the traps have: looked up while the other pages go to their lists. */
static bool is_trap(uint64_t frame, uint64_t first, uint64_t last)
{
    return frame >= first && frame < last && (frame - first) % TRAP_DISTANCE == 0;
}

void memory_begin(uint64_t *random, uint64_t in_use_to)
{
    uint64_t frame, first_trap = in_use_to, after_traps = in_use_to;
    unsigned int list;

    entries = (uint8_t *)package->database;
    for ( list = 0; list < 8; list++ )
    {
        list_of(list)->name = list;
        list_of(list)->first = list_of(list)->last = NOTHING;
    }
    for ( frame = 0; frame < frames; frame++ )
        if ( windows_has(frame) )
            fill_in(frame, random);
    trap(&after_traps, &package->references, 1);
    trap(&after_traps, &package->rom, 1);
    trap(&after_traps, &package->exists, 0);
    trap(&after_traps, &package->lock, 1);
    for ( frame = 0; frame < frames; frame++ )
    {
        if ( !windows_has(frame) || is_trap(frame, first_trap, after_traps) )
            continue;
        if ( frame >= 0x100 && frame < in_use_to )
        {
            mark_used(frame);
            continue;
        }
        switch ( random_next(random) % 16 )
        {
        case 0:
            /* Some of what is cached is zero as well, and not free. */
            if ( frame % 4 )
                scribble(frame, random);
            else
                memset(page_of(frame), 0, PAGE_BYTES);
            append(frame % 8 ? STANDBY : MODIFIED, frame);
            break;
        case 1:
            scribble(frame, random);
            append(FREE, frame);
            break;
        case 2:
            /* Other programs', for good; zero is what fresh memory of theirs is. */
            memset(page_of(frame), 0, PAGE_BYTES);
            mark_used(frame);
            break;
        default:
            memset(page_of(frame), 0, PAGE_BYTES);
            append(ZEROED, frame);
        }
    }
}

uint64_t memory_take(bool *zeroed)
{
    static uint64_t turn;
    uint64_t frame;

    lock_take(&lock);
    /* Mostly zeroed pages, as programs get them; some free ones, as a driver or a read from disk would. */
    *zeroed = ++turn % 8 != 0;
    frame = remove(*zeroed ? ZEROED : FREE);
    if ( frame == NOTHING )
    {
        *zeroed = !*zeroed;
        frame = remove(*zeroed ? ZEROED : FREE);
    }
    if ( frame == NOTHING )
    {
        *zeroed = false;
        frame = remove(STANDBY);
    }
    lock_drop(&lock);
    if ( frame == NOTHING )
        return NOTHING;
    /* Here the entry says less than the truth. */
    asm volatile ( "pause" );
    lock_take(&lock);
    mark_used(frame);
    lock_drop(&lock);

    return frame;
}

void memory_give(uint64_t frame)
{
    lock_take(&lock);
    append(FREE, frame);
    lock_drop(&lock);
}

bool memory_zero_one(void)
{
    uint64_t frame = NOTHING;

    lock_take(&lock);
    if ( !resting && list_of(FREE)->total > FREE_KEPT )
        frame = remove(FREE);
    zeroing = frame != NOTHING;
    lock_drop(&lock);
    if ( frame == NOTHING )
        return false;
    memset(page_of(frame), 0, PAGE_BYTES);
    lock_take(&lock);
    append(ZEROED, frame);
    zeroing = false;
    lock_drop(&lock);

    return true;
}

void memory_chain(uint64_t frame, uint64_t next)
{
    *link_of(frame) = next;
}

uint64_t memory_next(uint64_t frame)
{
    return *link_of(frame);
}

uint64_t memory_count(enum location location)
{
    return list_of(location)->total;
}

void memory_lie(uint64_t frame, bool on_list)
{
    lock_take(&lock);
    if ( on_list )
        append(ZEROED, frame);
    else
    {
        set(frame, &package->references, 0);
        set(frame, &package->location, ZEROED);
    }
    lock_drop(&lock);
}

void memory_keep(uint64_t frame)
{
    lock_take(&lock);
    mark_used(frame);
    lock_drop(&lock);
}

void memory_rest(bool rest)
{
    bool busy;

    do {
        lock_take(&lock);
        resting = rest;
        busy = rest && zeroing;
        lock_drop(&lock);
        if ( busy )
            xen_yield();
    } while ( busy );
}

uint64_t memory_truth(uint64_t *bits, uint64_t words)
{
    uint64_t frame, total = 0;

    lock_take(&lock);
    memset(bits, 0, words * 8);
    for ( frame = list_of(ZEROED)->first; frame != NOTHING; frame = *link_of(frame) )
    {
        bits[frame / 64] |= 1ull << frame % 64;
        total++;
    }
    lock_drop(&lock);

    return total;
}
