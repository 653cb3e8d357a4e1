/*
 * A guest that keeps its memory as Windows does, for the lab: a kernel of our own on which Lacuna's Windows side is tried
 * live. It is not Windows, and has none of its code. What it has of Windows' shape:
 *
 *   - an image in the upper half, with a debug record, in which LSTAR and all exceptions end (windows.c);
 *   - MmPfnDatabase, MmPhysicalMemoryBlock, MmZeroedPageListHead, in the layout of a real kernel (package.h, memory.c);
 *   - zeroed, free, standby and modified lists and a thread that zeroes free pages (memory.c);
 *   - the windows in which an entry says less than the truth: see memory.c.
 *
 * It answers on the Xen console as the agent in the Linux guests does (tests/guest/src/lib.rs): orders.c.
 */
#ifndef LACUNA_WINDOWS_GUEST_H
#define LACUNA_WINDOWS_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "package.h"

#define PAGE_BYTES 4096ull
#define PAGE_WORDS 512ull
/* No page. */
#define NOTHING (~0ull)

/* The most that one order line or one answer has: 512 MiB of account take 9 frames. */
#define LINE_BYTES 1024

/* ---- xen.c: hypercalls, event channels, the console ---- */

extern uint8_t hypercall_page[];

int64_t hypercall(unsigned int number, uint64_t first, uint64_t second, uint64_t third);
/* Has Xen write its entries for hypercalls to the page at `address` (physical). */
void xen_set_hypercall_page(uint64_t address);
/* Has Xen's shared_info lie at `frame` from here on; Xen's error if it does not. */
int64_t xen_move_shared_info(uint64_t frame);
/* Xen tells of events elsewhere from here on, so nothing waits for one any more. */
void xen_events_moved(void);

void xen_begin(void);
/* Starts the second virtual CPU in second_start; false when the guest has one only. */
bool xen_start_second(void);
uint64_t xen_parameter(uint32_t index);
void xen_send(uint32_t port);
/* Stops the domain so that it can be saved; returns in the restored one, or in the same one if nothing came of it. */
void xen_suspend(void);
/* Waits until this virtual CPU was woken, or, on the first, there is something on the console or from xenstore. */
void xen_wait(unsigned int cpu);
void xen_wake(unsigned int cpu);
/* Gives the other virtual CPUs of the host a turn. */
void xen_yield(void);
__attribute__((noreturn)) void xen_crash(void);
void console_write(const char *text);
/* Takes the next whole line off the console; false while there is none. */
bool console_line(char *line, size_t size);

/* ---- store.c ---- */

/* Asks to be told when the domain is to be suspended; returns the event channel to wait for. */
uint32_t store_begin(void);
/* Takes the next message of xenstored's; false when there is none. */
bool store_step(void);

/* ---- text.c ---- */

void *memset(void *to, int value, size_t bytes);
void *memcpy(void *to, const void *from, size_t bytes);

/* Text of bounded length being put together. */
struct text {
    char bytes[LINE_BYTES];
    size_t length;
};
void text_add(struct text *text, const char *more);
void text_number(struct text *text, uint64_t number);

/* The number behind `"name":` in a line of JSON; `otherwise` when there is none. */
uint64_t json_number(const char *line, const char *name, uint64_t otherwise);
/* Whether the line has `"name":"value"`. */
bool json_is(const char *line, const char *name, const char *value);

__attribute__((noreturn)) void stop(const char *why);

/* ---- processor ---- */

static inline uint64_t read_tsc(void)
{
    uint32_t low, high;

    asm volatile ( "rdtsc" : "=a" (low), "=d" (high) );

    return (uint64_t)high << 32 | low;
}

static inline void write_msr(uint32_t number, uint64_t value)
{
    asm volatile ( "wrmsr" :: "c" (number), "a" ((uint32_t)value), "d" ((uint32_t)(value >> 32)) : "memory" );
}

struct lock {
    volatile uint32_t held;
};

static inline void lock_take(struct lock *lock)
{
    while ( __atomic_exchange_n(&lock->held, 1, __ATOMIC_ACQUIRE) )
        asm volatile ( "pause" );
}

static inline void lock_drop(struct lock *lock)
{
    __atomic_store_n(&lock->held, 0, __ATOMIC_RELEASE);
}

/* Marsaglia's xorshift64: never zero. */
static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;

    return *state;
}

/* ---- windows.c: what Lacuna looks for in the guest ---- */

extern const struct package *package;
/* The frame behind the last one of memory, and the frames from `hole` to `hole_end` that belong to no run. */
extern uint64_t frames, hole, hole_end;

void windows_begin(const struct package *given, uint64_t memory_end, uint64_t first_unused);
/* On each virtual CPU: its interrupt table and LSTAR. */
void windows_processor(unsigned int cpu);
/* The kernel's variable at `rva`. */
void *windows_variable(uint32_t rva);
/* Whether the frame is in a run of MmPhysicalMemoryBlock. */
bool windows_has(uint64_t frame);
/* Takes frames that are in use for good, before the page-frame database is there. */
uint64_t windows_take_frames(uint64_t count);

/* ---- memory.c: the page-frame database ---- */

/* As Windows numbers them (_MMLISTS). */
enum location { ZEROED = 0, FREE = 1, STANDBY = 2, MODIFIED = 3, ACTIVE = 6 };

void memory_begin(uint64_t *random, uint64_t in_use_to);
/* A page for use; `zeroed` says that it reads as zero already. NOTHING when memory is used up. */
uint64_t memory_take(bool *zeroed);
void memory_give(uint64_t frame);
/* Clears one free page, if there are enough of them. */
bool memory_zero_one(void);
/* Links used pages to each other; their entry's first word is nobody else's. */
void memory_chain(uint64_t frame, uint64_t next);
uint64_t memory_next(uint64_t frame);
uint64_t memory_count(enum location list);
/* Puts a page on the zeroed list as it is; `on_list` false leaves it just taken off, for good. */
void memory_lie(uint64_t frame, bool on_list);
/* Takes back what memory_lie() said of a page that was left off the list. */
void memory_keep(uint64_t frame);
/* Whether pages are to be left unzeroed; returns once none is being zeroed. */
void memory_rest(bool rest);
/* Sets the bit of each page of the zeroed list, under the list's lock; returns how many there are. */
uint64_t memory_truth(uint64_t *bits, uint64_t words);

static inline uint64_t *page_of(uint64_t frame)
{
    return (uint64_t *)(frame * PAGE_BYTES);
}

/* ---- work.c ---- */

void work_start(unsigned int threads, uint64_t mib, uint64_t seed);
/* Has the workers check and give back all they hold, and waits for that. */
void work_stop(void);
/* One block more on this virtual CPU, if the workload runs here. */
bool work_step(unsigned int cpu);
struct work_counters {
    uint64_t blocks, pages, corrupt;
};
struct work_counters work_counters(void);
/* Takes pages, and looks whether they read as zero; returns how many did not. */
uint64_t work_grow(uint64_t pages, uint64_t *taken);
void work_shrink(void);
void work_lie(uint64_t pages);
/* The word at `index` of contents number `generation`; never zero. */
uint64_t work_word(uint64_t generation, uint64_t index);
/* How many pages that were lied about do not hold what was written to them. */
uint64_t work_check_lies(uint64_t *pages);

/* ---- pages.c: hypercalls on the guest's own pages ---- */

/* memory.h, vcpu.h of Xen's */
#define XENMAPSPACE_SHARED_INFO 0
#define XENMAPSPACE_GRANT_TABLE 1
#define XENMAPSPACE_GMFN 2
#define VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA 5
#define VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA 13
#define VCPUOP_REGISTER_RUNSTATE_PHYS_AREA 14
#define VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA 15

/* Whether Xen took the page, or put one there. */
bool page_remove(uint64_t frame);
bool page_decrease(uint64_t frame);
bool page_populate(uint64_t frame);
/* Whether Xen exchanged it, which it cannot do for guests whose memory it translates; it looks at the page before it says
 * so. */
bool page_exchange(uint64_t frame);
/* Has what is at `index` of Xen's `space` lie at `frame`; Xen's error if it does not. */
int64_t page_map(uint32_t space, uint64_t index, uint64_t frame);
/* Has Xen keep an area of the first virtual CPU at the page's beginning, by a command of VCPUOP_REGISTER_*; Xen's answer. */
int64_t page_register(unsigned int command, uint64_t frame);
/* Has Xen write a few bytes to the page's beginning; Xen's answer. */
int64_t page_copy_out(uint64_t frame);

/* ---- named.c: pages that Xen is to write to, or that are given up ---- */

/* Takes pages off the zeroed list. With more than one of `copies`, so many are equal at a time, and not zero. Returns how
 * many were taken. */
uint64_t named_take(uint64_t pages, uint64_t copies);
/* The frame of a page that was taken, and how many of those an answer has room for. */
uint64_t named_frame(uint64_t page);
uint64_t named_told(void);
/* Hands a page to the interface that the order names; Xen's answer. */
int64_t named_hand(const char *line, uint64_t page);
/* Gives pages up in the way that the order names; how many Xen took. */
uint64_t named_give(const char *line, uint64_t from, uint64_t pages);

/* ---- campaign.c: operations at random ---- */

/* Carries out so many operations, which the seed chooses. */
void campaign_run(uint64_t count, uint64_t seed);
/* Looks at every page whose contents are known. */
void campaign_check(void);
/* Operations so far; those that Xen refused though it can do them; pages that did not hold what they must. */
struct campaign_counters {
    uint64_t operations, refused, wrong;
};
struct campaign_counters campaign_counters(void);

/* ---- orders.c ---- */

/* Takes the frames of the account: before the page-frame database is filled in. */
void orders_begin(void);
void orders_ready(bool second);
/* Carries out what has arrived on the console. */
bool orders_step(void);
/* Captures the truth once more, if that is wanted; false when nothing has changed for long. */
bool orders_capture(void);
void orders_tell_corrupt(const void *at, uint64_t expected, uint64_t seen);

#endif
