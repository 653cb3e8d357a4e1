/*
 * Pages that the guest names to Xen: taken off the zeroed list and left as they are, so that they are where Lacuna has put
 * them, then handed to an interface, or given up. Numbers and structures are those of xen/include/public.
 */
#include "guest.h"

/* xen.h, version.h */
#define HYPERVISOR_MEMORY_OP 12
#define HYPERVISOR_XEN_VERSION 17
#define HYPERVISOR_VCPU_OP 24
#define HYPERVISOR_EVENT_CHANNEL_OP 32
#define DOMID_SELF 0x7ff0
#define XENVER_EXTRAVERSION 1
/* memory.h */
#define XENMEM_DECREASE_RESERVATION 1
#define XENMEM_POPULATE_PHYSMAP 6
#define XENMEM_ADD_TO_PHYSMAP 7
#define XENMEM_EXCHANGE 11
#define XENMEM_REMOVE_FROM_PHYSMAP 15
#define XENMAPSPACE_GRANT_TABLE 1
#define XENMAPSPACE_GMFN 2
/* vcpu.h */
#define VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA 5
#define VCPUOP_REGISTER_VCPU_INFO 10
#define VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA 13
#define VCPUOP_REGISTER_RUNSTATE_PHYS_AREA 14
#define VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA 15
/* event_channel.h */
#define EVTCHNOP_INIT_CONTROL 11
#define EVTCHNOP_EXPAND_ARRAY 12

#define MOST_TAKEN 8192
/* As many frames as an answer's line has room for. */
#define TOLD 32
/* What pages that are to be equal hold in their last word, beside the number of their kind. */
#define EQUAL_TAG 0x1ac414a000000000ull

struct reservation {
    const uint64_t *frames;
    uint64_t count;
    uint32_t order, flags;
    uint16_t domain;
};

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

static int64_t register_area(unsigned int command, uint64_t address)
{
    return hypercall(HYPERVISOR_VCPU_OP, command, 0, (uint64_t)&address);
}

static int64_t map_onto(uint32_t space, uint64_t index, uint64_t frame)
{
    struct { uint16_t domain, size; uint32_t space; uint64_t index, frame; } map = {
        DOMID_SELF, 0, space, index, frame
    };

    return hypercall(HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, (uint64_t)&map, 0);
}

int64_t named_hand(const char *line, uint64_t page)
{
    uint64_t frame = named_frame(page);

    if ( frame == NOTHING )
        return -1;
    if ( json_is(line, "interface", "copy-out") )
        return hypercall(HYPERVISOR_XEN_VERSION, XENVER_EXTRAVERSION, frame * PAGE_BYTES, 0);
    if ( json_is(line, "interface", "runstate-virtual") )
        return register_area(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, frame * PAGE_BYTES);
    if ( json_is(line, "interface", "time-virtual") )
        return register_area(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, frame * PAGE_BYTES);
    if ( json_is(line, "interface", "runstate") )
        return register_area(VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, frame * PAGE_BYTES);
    if ( json_is(line, "interface", "time") )
        return register_area(VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA, frame * PAGE_BYTES);
    if ( json_is(line, "interface", "vcpu-info") )
    {
        struct { uint64_t frame; uint32_t offset, reserved; } info = { frame, 0, 0 };

        return hypercall(HYPERVISOR_VCPU_OP, VCPUOP_REGISTER_VCPU_INFO, 0, (uint64_t)&info);
    }
    if ( json_is(line, "interface", "grant-table") )
        return map_onto(XENMAPSPACE_GRANT_TABLE, 0, frame);
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

    return -1;
}

static bool give(const char *line, uint64_t page)
{
    struct reservation list = { &taken[page], 1, 0, 0, DOMID_SELF };

    if ( json_is(line, "way", "remove") )
    {
        struct { uint16_t domain; uint64_t frame; } remove = { DOMID_SELF, taken[page] };

        return !hypercall(HYPERVISOR_MEMORY_OP, XENMEM_REMOVE_FROM_PHYSMAP, (uint64_t)&remove, 0);
    }
    if ( json_is(line, "way", "decrease") )
        return hypercall(HYPERVISOR_MEMORY_OP, XENMEM_DECREASE_RESERVATION, (uint64_t)&list, 0) == 1;
    if ( json_is(line, "way", "populate") )
        return hypercall(HYPERVISOR_MEMORY_OP, XENMEM_POPULATE_PHYSMAP, (uint64_t)&list, 0) == 1;
    if ( json_is(line, "way", "exchange") )
    {
        uint64_t frame = taken[page];
        struct { struct reservation in, out; uint64_t done; } exchange = {
            list, { &frame, 1, 0, 0, DOMID_SELF }, 0
        };

        return !hypercall(HYPERVISOR_MEMORY_OP, XENMEM_EXCHANGE, (uint64_t)&exchange, 0) && exchange.done == 1;
    }
    /* The page before it comes to lie where it was, and is itself no more. */
    if ( json_is(line, "way", "over") )
        return page % 2 == 0 || !map_onto(XENMAPSPACE_GMFN, taken[page - 1], taken[page]);

    return false;
}

uint64_t named_give(const char *line, uint64_t from, uint64_t pages)
{
    uint64_t page, given = 0;

    for ( page = from; page < from + pages && page < taken_count; page++ )
        given += give(line, page);

    return given;
}
