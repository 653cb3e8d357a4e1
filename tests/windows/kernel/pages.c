/*
 * Hypercalls on the guest's own pages: taken away, put back, mapped elsewhere, handed to Xen. Numbers and structures are
 * those of xen/include/public.
 */
#include "guest.h"

/* xen.h, version.h */
#define HYPERVISOR_MEMORY_OP 12
#define HYPERVISOR_XEN_VERSION 17
#define HYPERVISOR_VCPU_OP 24
#define DOMID_SELF 0x7ff0
#define XENVER_EXTRAVERSION 1
/* memory.h */
#define XENMEM_DECREASE_RESERVATION 1
#define XENMEM_POPULATE_PHYSMAP 6
#define XENMEM_ADD_TO_PHYSMAP 7
#define XENMEM_EXCHANGE 11
#define XENMEM_REMOVE_FROM_PHYSMAP 15

struct reservation {
    const uint64_t *frames;
    uint64_t count;
    uint32_t order, flags;
    uint16_t domain;
};

static int64_t memory_operation(unsigned int command, void *argument)
{
    return hypercall(HYPERVISOR_MEMORY_OP, command, (uint64_t)argument, 0);
}

static bool reserve(unsigned int command, uint64_t frame)
{
    struct reservation one = { &frame, 1, 0, 0, DOMID_SELF };

    return memory_operation(command, &one) == 1;
}

bool page_remove(uint64_t frame)
{
    struct { uint16_t domain; uint64_t frame; } one = { DOMID_SELF, frame };

    return !memory_operation(XENMEM_REMOVE_FROM_PHYSMAP, &one);
}

bool page_decrease(uint64_t frame)
{
    return reserve(XENMEM_DECREASE_RESERVATION, frame);
}

bool page_populate(uint64_t frame)
{
    return reserve(XENMEM_POPULATE_PHYSMAP, frame);
}

bool page_exchange(uint64_t frame)
{
    uint64_t other = frame;
    struct { struct reservation in, out; uint64_t done; } both = {
        { &frame, 1, 0, 0, DOMID_SELF }, { &other, 1, 0, 0, DOMID_SELF }, 0
    };

    return !memory_operation(XENMEM_EXCHANGE, &both);
}

int64_t page_map(uint32_t space, uint64_t index, uint64_t frame)
{
    struct { uint16_t domain, size; uint32_t space; uint64_t index, frame; } map = {
        DOMID_SELF, 0, space, index, frame
    };

    return memory_operation(XENMEM_ADD_TO_PHYSMAP, &map);
}

int64_t page_register(unsigned int command, uint64_t frame)
{
    uint64_t address = frame * PAGE_BYTES;

    return hypercall(HYPERVISOR_VCPU_OP, command, 0, (uint64_t)&address);
}

int64_t page_copy_out(uint64_t frame)
{
    return hypercall(HYPERVISOR_XEN_VERSION, XENVER_EXTRAVERSION, frame * PAGE_BYTES, 0);
}
