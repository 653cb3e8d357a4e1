/*
 * Pages that the guest names to Xen: taken off the zeroed list and left as they are, so that they are where Lacuna has put
 * them, then handed to an interface, or given up. Numbers and structures are those of xen/include/public.
 */
#include "guest.h"

/* xen.h */
#define HYPERVISOR_VCPU_OP 24
#define HYPERVISOR_EVENT_CHANNEL_OP 32
/* vcpu.h */
#define VCPUOP_REGISTER_VCPU_INFO 10
/* event_channel.h */
#define EVTCHNOP_INIT_CONTROL 11
#define EVTCHNOP_EXPAND_ARRAY 12
/* Viridian's registers (Xen's asm/guest/hyperv-tlfs.h): bit 0 turns a page on, its frame is from bit 12 on. */
#define HV_X64_MSR_GUEST_OS_ID 0x40000000
#define HV_X64_MSR_HYPERCALL 0x40000001
#define HV_X64_MSR_REFERENCE_TSC 0x40000021
#define HV_X64_MSR_VP_ASSIST_PAGE 0x40000073
#define HV_X64_MSR_SIMP 0x40000083
#define HV_X64_PAGE_ON 1
/* Any that is not 0. */
#define SOME_SYSTEM 1

#define MOST_TAKEN 8192
/* As many frames as an answer's line has room for. */
#define TOLD 32
/* What pages that are to be equal hold in their last word, beside the number of their kind. */
#define EQUAL_TAG 0x1ac414a000000000ull

static uint64_t taken[MOST_TAKEN], taken_count;

uint64_t named_take(uint64_t pages, uint64_t copies)
{
    taken_count = 0;
    while ( taken_count < pages && taken_count < MOST_TAKEN )
    {
        bool zeroed;
        uint64_t frame = memory_take(&zeroed);

        if ( frame == NOTHING )
            break;
        if ( !zeroed )
        {
            memory_give(frame);
            /* No zeroed page is left. */
            if ( !memory_count(ZEROED) )
                break;
            continue;
        }
        if ( copies > 1 )
            page_of(frame)[PAGE_WORDS - 1] = EQUAL_TAG + taken_count / copies;
        taken[taken_count++] = frame;
    }

    return taken_count;
}

uint64_t named_frame(uint64_t page)
{
    return page < taken_count ? taken[page] : NOTHING;
}

uint64_t named_told(void)
{
    return taken_count < TOLD ? taken_count : TOLD;
}

/* A fault ends the guest, and its last words say which. */
static int64_t hand_to_viridian(uint32_t msr, uint64_t frame)
{
    write_msr(HV_X64_MSR_GUEST_OS_ID, SOME_SYSTEM);
    write_msr(msr, frame * PAGE_BYTES | HV_X64_PAGE_ON);

    return 0;
}

int64_t named_hand(const char *line, uint64_t page)
{
    uint64_t frame = named_frame(page);

    if ( frame == NOTHING )
        return -1;
    if ( json_is(line, "interface", "copy-out") )
        return page_copy_out(frame);
    if ( json_is(line, "interface", "runstate-virtual") )
        return page_register(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, frame);
    if ( json_is(line, "interface", "time-virtual") )
        return page_register(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, frame);
    if ( json_is(line, "interface", "runstate") )
        return page_register(VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, frame);
    if ( json_is(line, "interface", "time") )
        return page_register(VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA, frame);
    if ( json_is(line, "interface", "vcpu-info") )
    {
        struct { uint64_t frame; uint32_t offset, reserved; } info = { frame, 0, 0 };

        return hypercall(HYPERVISOR_VCPU_OP, VCPUOP_REGISTER_VCPU_INFO, 0, (uint64_t)&info);
    }
    if ( json_is(line, "interface", "grant-table") )
        return page_map(XENMAPSPACE_GRANT_TABLE, 0, frame);
    if ( json_is(line, "interface", "shared-info") )
        return xen_move_shared_info(frame);
    if ( json_is(line, "interface", "event-control") )
    {
        struct { uint64_t frame; uint32_t offset, cpu; uint8_t link_bits, pad[7]; } control = {
            .frame = frame
        };
        int64_t result = hypercall(HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_INIT_CONTROL, (uint64_t)&control, 0);

        if ( !result )
            xen_events_moved();
        return result;
    }
    if ( json_is(line, "interface", "event-array") )
        return hypercall(HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_EXPAND_ARRAY, (uint64_t)&frame, 0);
    if ( json_is(line, "interface", "hypercall-page") )
    {
        /* A fault ends the guest, and its last words say which. */
        xen_set_hypercall_page(frame * PAGE_BYTES);
        return 0;
    }
    if ( json_is(line, "interface", "viridian-hypercall-page") )
        return hand_to_viridian(HV_X64_MSR_HYPERCALL, frame);
    if ( json_is(line, "interface", "viridian-time") )
        return hand_to_viridian(HV_X64_MSR_REFERENCE_TSC, frame);
    if ( json_is(line, "interface", "viridian-assist") )
        return hand_to_viridian(HV_X64_MSR_VP_ASSIST_PAGE, frame);
    if ( json_is(line, "interface", "viridian-messages") )
        return hand_to_viridian(HV_X64_MSR_SIMP, frame);

    return -1;
}

static bool give(const char *line, uint64_t page)
{
    if ( json_is(line, "way", "remove") )
        return page_remove(taken[page]);
    if ( json_is(line, "way", "decrease") )
        return page_decrease(taken[page]);
    if ( json_is(line, "way", "populate") )
        return page_populate(taken[page]);
    if ( json_is(line, "way", "exchange") )
        return page_exchange(taken[page]);
    /* The page before it comes to lie where it was, and is itself no more. */
    if ( json_is(line, "way", "over") )
        return page % 2 == 0 || !page_map(XENMAPSPACE_GMFN, taken[page - 1], taken[page]);

    return false;
}

uint64_t named_give(const char *line, uint64_t from, uint64_t pages)
{
    uint64_t page, given = 0;

    for ( page = from; page < from + pages && page < taken_count; page++ )
        given += give(line, page);

    return given;
}
