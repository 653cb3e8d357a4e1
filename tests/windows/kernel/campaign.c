/*
 * Operations on the guest's own memory and interfaces, at random: what a guest that means harm could do by accident or on
 * purpose, while Lacuna goes over its pages. For each page that takes part it is known what it must hold; a page that Xen
 * was told to write to, or that is gone, is nobody's until it has been written anew. The same seed makes the same choices.
 */
#include "guest.h"

/* xen.h */
#define HYPERVISOR_GRANT_TABLE_OP 20
#define HYPERVISOR_VCPU_OP 24
#define DOMID_SELF 0x7ff0
/* vcpu.h */
#define VCPUOP_UP 1
#define VCPUOP_DOWN 2
#define VCPUOP_IS_UP 3
/* grant_table.h */
#define GNTTABOP_COPY 5

/* version.h: what page_copy_out() writes. */
#define XENVER_EXTRAVERSION_BYTES 16

/* Pages that take part. */
#define PAGES 2048
/* Different contents: few enough that many pages are equal. */
#define CONTENTS 64
/* Times that the second virtual CPU is looked at until it is down. */
#define DOWN_LOOKS 100000

/* What a page must hold. */
enum holds {
    /* It does not take part. */
    OUTSIDE,
    /* Zeros: nobody has written to it. */
    ZEROS,
    /* Contents number `contents`. */
    CONTENTS_OF,
    /* Whatever Xen writes there. */
    XENS,
    /* Nothing: there is no memory at its frame. */
    GONE,
};

struct page {
    uint64_t frame;
    enum holds holds;
    uint32_t contents;
    /* Its descriptor says that it is free. */
    bool lies;
};

/* What Xen writes to on its own, and the page that each was told of last. */
enum area { RUNSTATE_VIRTUAL, TIME_VIRTUAL, RUNSTATE, TIME, GRANT_TABLE, SHARED_INFO, AREAS };

static struct page pages[PAGES];
static struct page *areas[AREAS];
static uint64_t operations, refused, wrong, random;

/* Counts what Xen did not do although it can. */
static bool done(bool success)
{
    refused += !success;

    return success;
}

static void found_wrong(const struct page *page)
{
    if ( !wrong++ )
        orders_tell_corrupt(page_of(page->frame), page->holds, page->contents);
}

/* Looks at the page from byte `from` on. */
static void check(const struct page *page, uint64_t from)
{
    const uint64_t *words = page_of(page->frame);
    bool same = true;
    uint64_t index;

    for ( index = from / 8; index < PAGE_WORDS; index++ )
        same &= words[index] == (page->holds == ZEROS ? 0 : work_word(page->contents, index));
    if ( !same )
        found_wrong(page);
}

static void write(struct page *page)
{
    uint64_t *words = page_of(page->frame), index;

    page->holds = CONTENTS_OF;
    page->contents = random_next(&random) % CONTENTS;
    for ( index = 0; index < PAGE_WORDS; index++ )
        words[index] = work_word(page->contents, index);
}

static bool is_own(const struct page *page)
{
    return page->holds == ZEROS || page->holds == CONTENTS_OF;
}

/* Another page whose contents are known; NULL if none is found soon. */
static struct page *another(const struct page *page)
{
    unsigned int tries;

    for ( tries = 0; tries < 16; tries++ )
    {
        struct page *other = &pages[random_next(&random) % PAGES];

        if ( other != page && is_own(other) )
            return other;
    }

    return NULL;
}

/* ---- operations on a page whose contents are known ---- */

static void read_it(struct page *page)
{
    check(page, 0);
}

static void tell_lies(struct page *page)
{
    if ( page->lies )
        memory_keep(page->frame);
    else
        memory_lie(page->frame, false);
    page->lies = !page->lies;
}

static void give_back(struct page *page)
{
    check(page, 0);
    if ( page->lies )
        memory_keep(page->frame);
    memory_give(page->frame);
    page->holds = OUTSIDE;
    page->lies = false;
}

static void remove(struct page *page)
{
    if ( done(page_remove(page->frame)) )
        page->holds = GONE;
}

static void decrease(struct page *page)
{
    if ( done(page_decrease(page->frame)) )
        page->holds = GONE;
}

/* Changes nothing: see page_exchange(). */
static void exchange(struct page *page)
{
    if ( page_exchange(page->frame) )
        found_wrong(page);
    check(page, 0);
}

/* The page comes to lie where another one was. */
static void move_over(struct page *page)
{
    struct page *other = another(page);

    if ( !other || !done(!page_map(XENMAPSPACE_GMFN, page->frame, other->frame)) )
        return;
    other->holds = page->holds;
    other->contents = page->contents;
    page->holds = GONE;
    check(other, 0);
}

/* Xen copies another page's bytes over the page's. */
static void grant_copy(struct page *page)
{
    struct side { uint64_t frame; uint16_t domain, offset; };
    struct { struct side from, to; uint16_t length, flags; int16_t status; } copy = { .length = PAGE_BYTES };
    struct page *other = another(page);

    if ( !other )
        return;
    copy.from = (struct side){ other->frame, DOMID_SELF, 0 };
    copy.to = (struct side){ page->frame, DOMID_SELF, 0 };
    if ( done(!hypercall(HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_COPY, (uint64_t)&copy, 1) && !copy.status) )
    {
        page->holds = other->holds;
        page->contents = other->contents;
    }
    check(page, 0);
    check(other, 0);
}

static void copy_out(struct page *page)
{
    if ( done(!page_copy_out(page->frame)) )
        check(page, XENVER_EXTRAVERSION_BYTES);
    write(page);
}

static void hypercall_page_there(struct page *page)
{
    /* A fault ends the guest, and its last words say which. */
    xen_set_hypercall_page(page->frame * PAGE_BYTES);
    write(page);
}

/* Xen writes to the page from now on, and no more to the one before it. */
static void register_area(struct page *page, enum area area, unsigned int command)
{
    /* Older versions lack some. */
    if ( page_register(command, page->frame) )
        return;
    page->holds = XENS;
    if ( areas[area] )
        write(areas[area]);
    areas[area] = page;
}

static void runstate_virtual(struct page *page)
{
    register_area(page, RUNSTATE_VIRTUAL, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA);
}

static void time_virtual(struct page *page)
{
    register_area(page, TIME_VIRTUAL, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA);
}

static void runstate(struct page *page)
{
    register_area(page, RUNSTATE, VCPUOP_REGISTER_RUNSTATE_PHYS_AREA);
}

static void time(struct page *page)
{
    register_area(page, TIME, VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA);
}

/* Xen's own frame comes to lie at the page's, and at no other. */
static void xens_frame(struct page *page, enum area area, int64_t result)
{
    if ( !done(!result) )
        return;
    page->holds = XENS;
    if ( areas[area] )
        areas[area]->holds = GONE;
    areas[area] = page;
}

static void grant_table(struct page *page)
{
    xens_frame(page, GRANT_TABLE, page_map(XENMAPSPACE_GRANT_TABLE, 0, page->frame));
}

/* The second virtual CPU goes off meanwhile: it would look at events where they are no more. */
static void shared_info(struct page *page)
{
    unsigned int looks = 0;

    if ( hypercall(HYPERVISOR_VCPU_OP, VCPUOP_IS_UP, 1, 0) < 0 )
    {
        xens_frame(page, SHARED_INFO, xen_move_shared_info(page->frame));
        return;
    }
    /* It takes no lock of this guest's while it waits for an event, which is all that it does now. */
    memory_rest(true);
    if ( done(!hypercall(HYPERVISOR_VCPU_OP, VCPUOP_DOWN, 1, 0)) )
    {
        while ( hypercall(HYPERVISOR_VCPU_OP, VCPUOP_IS_UP, 1, 0) > 0 && looks++ < DOWN_LOOKS )
            xen_yield();
        xens_frame(page, SHARED_INFO, xen_move_shared_info(page->frame));
        (void)done(!hypercall(HYPERVISOR_VCPU_OP, VCPUOP_UP, 1, 0));
    }
    memory_rest(false);
}

static void (*const operations_on_own[])(struct page *) = {
    read_it, write, write, tell_lies, give_back, remove, decrease, exchange, move_over, grant_copy, copy_out,
    hypercall_page_there, runstate_virtual, time_virtual, runstate, time, grant_table, shared_info,
};

/* ---- */

static void take(struct page *page)
{
    bool zeroed;
    uint64_t frame = memory_take(&zeroed);

    if ( frame == NOTHING )
        return;
    page->frame = frame;
    page->holds = ZEROS;
    if ( !zeroed )
        write(page);
    /* Every other one is left as it is, on its zero frame. */
    else if ( frame % 2 )
        check(page, 0);
}

static void populate(struct page *page)
{
    if ( done(page_populate(page->frame)) )
        write(page);
}

static void operate(struct page *page)
{
    uint64_t which = random_next(&random);

    switch ( page->holds )
    {
    case OUTSIDE:
        take(page);
        break;
    case GONE:
        populate(page);
        break;
    case XENS:
        /* Until another page takes its place. */
        (void)*(volatile uint64_t *)page_of(page->frame);
        break;
    default:
        operations_on_own[which % (sizeof(operations_on_own) / sizeof(operations_on_own[0]))](page);
    }
    operations++;
}

void campaign_run(uint64_t count, uint64_t seed)
{
    random = seed | 1;
    while ( count-- )
        operate(&pages[random_next(&random) % PAGES]);
}

void campaign_check(void)
{
    struct page *page;

    for ( page = pages; page < pages + PAGES; page++ )
        if ( is_own(page) )
            check(page, 0);
}

struct campaign_counters campaign_counters(void)
{
    struct campaign_counters counters = { operations, refused, wrong };

    return counters;
}
