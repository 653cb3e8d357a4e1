/*
 * What the lab orders over the console, and the answers: the protocol of the agent in the Linux guests
 * (tests/guest/src/lib.rs), and its account of free pages (tests/guest/src/truth.rs). Here the truth is the zeroed list,
 * walked under its lock.
 */
#include "guest.h"

/* truth.rs */
#define TRUTH_MAGIC 0x485455525443414cull
#define WORD_PAGES 1
#define SLOT_WORD(slot) (8 + 8 * (slot))
#define SLOT_SEQUENCE 0
#define SLOT_FREE 1
#define SLOT_SAME 2
/* Captures that were the same after which the account rests. */
#define STILL 64

static uint64_t *account;
static uint64_t account_frame;
static bool capturing;

static uint64_t bitmap_frames(void)
{
    return (frames + PAGE_BYTES * 8 - 1) / (PAGE_BYTES * 8);
}

static void answer(uint64_t id, const char *report, struct text *rest)
{
    struct text line = { .length = 0 };

    text_add(&line, "\r\n@@agent {\"id\":");
    text_number(&line, id);
    text_add(&line, ",\"report\":{\"is\":\"");
    text_add(&line, report);
    text_add(&line, "\"");
    if ( rest )
        text_add(&line, rest->bytes);
    text_add(&line, "}}\r\n");
    console_write(line.bytes);
}

static void member(struct text *text, const char *name, uint64_t number)
{
    text_add(text, ",\"");
    text_add(text, name);
    text_add(text, "\":");
    text_number(text, number);
}

void orders_begin(void)
{
    account_frame = windows_take_frames(1 + 2 * bitmap_frames());
    account = page_of(account_frame);
}

void orders_ready(bool second)
{
    struct text rest = { .length = 0 };

    text_add(&rest, ",\"release\":\"windows-like\",\"command_line\":\"");
    text_add(&rest, second ? "2 processors" : "1 processor");
    text_add(&rest, "\"");
    answer(0, "ready", &rest);
}

void orders_tell_corrupt(const void *at, uint64_t expected, uint64_t seen)
{
    struct text rest = { .length = 0 };

    member(&rest, "address", (uint64_t)at);
    member(&rest, "expected", expected);
    member(&rest, "seen", seen);
    answer(0, "corrupt", &rest);
}

bool orders_capture(void)
{
    static unsigned int slot;
    uint64_t words = bitmap_frames() * PAGE_WORDS, word;
    uint64_t *here, *there, *own, *other;
    bool same = true;

    if ( !capturing )
        return false;
    here = account + (1 + slot * bitmap_frames()) * PAGE_WORDS;
    there = account + (1 + (1 - slot) * bitmap_frames()) * PAGE_WORDS;
    own = account + SLOT_WORD(slot);
    other = account + SLOT_WORD(1 - slot);
    /* Ahead of the other one's, and odd while it is being written. */
    __atomic_store_n(&own[SLOT_SEQUENCE], other[SLOT_SEQUENCE] + 1, __ATOMIC_SEQ_CST);
    own[SLOT_FREE] = memory_truth(here, words);
    for ( word = 0; word < words; word++ )
        same &= here[word] == there[word];
    own[SLOT_SAME] = same ? other[SLOT_SAME] + 1 : 1;
    __atomic_store_n(&own[SLOT_SEQUENCE], own[SLOT_SEQUENCE] + 1, __ATOMIC_SEQ_CST);
    slot = 1 - slot;

    return own[SLOT_SAME] < STILL;
}

static void begin_account(struct text *rest)
{
    uint64_t frame, count = 1 + 2 * bitmap_frames();

    memset(account, 0, count * PAGE_BYTES);
    account[0] = TRUTH_MAGIC;
    account[WORD_PAGES] = frames;
    capturing = true;
    text_add(rest, ",\"gfns\":[");
    for ( frame = 0; frame < count; frame++ )
    {
        if ( frame )
            text_add(rest, ",");
        text_number(rest, account_frame + frame);
    }
    text_add(rest, "]");
}

static void tell_work(uint64_t id)
{
    struct work_counters counters = work_counters();
    struct text rest = { .length = 0 };

    member(&rest, "blocks", counters.blocks);
    member(&rest, "pages", counters.pages);
    member(&rest, "corrupt", counters.corrupt);
    answer(id, "work", &rest);
}

static void tell_health(uint64_t id)
{
    struct text rest = { .length = 0 };

    text_add(&rest, ",\"trouble\":[]");
    member(&rest, "total_pages", frames);
    member(&rest, "free_pages", memory_count(ZEROED) + memory_count(FREE));
    member(&rest, "buddy_pages", memory_count(ZEROED));
    answer(id, "health", &rest);
}

static void tell_taken(uint64_t id, uint64_t pages)
{
    struct text rest = { .length = 0 };
    uint64_t page;

    member(&rest, "pages", pages);
    text_add(&rest, ",\"gfns\":[");
    for ( page = 0; page < named_told(); page++ )
    {
        if ( page )
            text_add(&rest, ",");
        text_number(&rest, named_frame(page));
    }
    text_add(&rest, "]");
    answer(id, "taken", &rest);
}

static void tell_campaign(uint64_t id)
{
    struct campaign_counters counters = campaign_counters();
    struct text rest = { .length = 0 };

    member(&rest, "operations", counters.operations);
    member(&rest, "refused", counters.refused);
    member(&rest, "wrong", counters.wrong);
    answer(id, "operated", &rest);
}

static void carry_out(const char *line)
{
    struct text rest = { .length = 0 };
    uint64_t id = json_number(line, "id", 0), pages, dirty;

    if ( json_is(line, "do", "truth-start") )
    {
        begin_account(&rest);
        answer(id, "truth", &rest);
    }
    else if ( json_is(line, "do", "truth-stop") )
    {
        capturing = false;
        answer(id, "done", NULL);
    }
    else if ( json_is(line, "do", "work-start") )
    {
        work_start(json_number(line, "threads", 1), json_number(line, "mib", 1), json_number(line, "seed", 1));
        answer(id, "done", NULL);
    }
    else if ( json_is(line, "do", "work-status") )
        tell_work(id);
    else if ( json_is(line, "do", "work-stop") )
    {
        work_stop();
        tell_work(id);
    }
    else if ( json_is(line, "do", "grow") )
    {
        dirty = work_grow(json_number(line, "mib", 0) * 256, &pages);
        member(&rest, "pages", pages);
        member(&rest, "dirty", dirty);
        answer(id, "grown", &rest);
    }
    else if ( json_is(line, "do", "shrink") )
    {
        work_shrink();
        xen_wake(1);
        answer(id, "done", NULL);
    }
    else if ( json_is(line, "do", "lie") )
    {
        work_lie(json_number(line, "pages", 0));
        answer(id, "done", NULL);
    }
    else if ( json_is(line, "do", "lies-check") )
    {
        dirty = work_check_lies(&pages);
        member(&rest, "pages", pages);
        member(&rest, "lost", dirty);
        answer(id, "lies", &rest);
    }
    else if ( json_is(line, "do", "take-pages") )
        tell_taken(id, named_take(json_number(line, "pages", 0), json_number(line, "copies", 1)));
    else if ( json_is(line, "do", "read-page") )
    {
        uint64_t frame = named_frame(json_number(line, "page", 0));

        if ( frame != NOTHING )
            (void)*(volatile uint64_t *)page_of(frame);
        answer(id, "done", NULL);
    }
    else if ( json_is(line, "do", "hand-page") )
    {
        int64_t result = named_hand(line, json_number(line, "page", 0));

        /* Numbers have no sign here. */
        member(&rest, "error", result < 0 ? -result : 0);
        answer(id, "handed", &rest);
    }
    else if ( json_is(line, "do", "give-up") )
    {
        pages = json_number(line, "pages", 0);
        member(&rest, "pages", named_give(line, json_number(line, "from", 0), pages));
        answer(id, "given-up", &rest);
    }
    else if ( json_is(line, "do", "operate") )
    {
        campaign_run(json_number(line, "operations", 0), json_number(line, "seed", 1));
        tell_campaign(id);
    }
    else if ( json_is(line, "do", "operate-check") )
    {
        campaign_check();
        tell_campaign(id);
    }
    else if ( json_is(line, "do", "health") )
        tell_health(id);
    else
    {
        text_add(&rest, ",\"why\":\"the Windows-like guest has no such order\"");
        answer(id, "failed", &rest);
    }
}

bool orders_step(void)
{
    char line[LINE_BYTES];

    if ( !console_line(line, sizeof(line)) )
        return false;
    carry_out(line);

    return true;
}
