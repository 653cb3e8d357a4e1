/*
 * Xenstore, as far as it takes to be suspended (docs/misc/xenstore-ring.txt, io/xs_wire.h): a watch on control/shutdown, a
 * look at it when it fires, and the acknowledgement, which is to empty it. The toolstack asks PVH guests in this way.
 */
#include "guest.h"

/* io/xs_wire.h */
#define XS_READ 2
#define XS_WATCH 4
#define XS_WRITE 11
#define XS_WATCH_EVENT 15
#define RING_BYTES 1024u
/* hvm/params.h */
#define HVM_PARAM_STORE_PFN 1
#define HVM_PARAM_STORE_EVTCHN 2

#define NODE "control/shutdown"
/* No answer to what is sent here is longer. */
#define BODY_BYTES 256

struct store_ring {
    char requests[RING_BYTES], answers[RING_BYTES];
    volatile uint32_t request_cons, request_prod, answer_cons, answer_prod;
};

struct message {
    uint32_t kind, request, transaction, length;
};

static struct store_ring *ring;
static uint32_t port;

/* Requests are fewer and shorter than the ring: it never fills up. */
static void put(const void *bytes, uint32_t length)
{
    uint32_t at = ring->request_prod, done;

    for ( done = 0; done < length; done++ )
        ring->requests[(at + done) % RING_BYTES] = ((const char *)bytes)[done];
    __atomic_store_n(&ring->request_prod, at + length, __ATOMIC_RELEASE);
}

static void request(uint32_t kind, const char *body, uint32_t length)
{
    struct message head = { kind, 0, 0, length };

    put(&head, sizeof(head));
    put(body, length);
    xen_send(port);
}

/* Takes `length` bytes that have arrived. */
static void get(void *to, uint32_t length, uint32_t from)
{
    uint32_t done;

    for ( done = 0; done < length; done++ )
        ((char *)to)[done] = ring->answers[(from + done) % RING_BYTES];
}

uint32_t store_begin(void)
{
    static const char watch[] = NODE "\0shutdown";

    ring = (struct store_ring *)page_of(xen_parameter(HVM_PARAM_STORE_PFN));
    port = xen_parameter(HVM_PARAM_STORE_EVTCHN);
    request(XS_WATCH, watch, sizeof(watch));

    return port;
}

bool store_step(void)
{
    static const char suspend[] = "suspend";
    char body[BODY_BYTES];
    struct message head;
    uint32_t from = ring->answer_cons, letter;
    uint32_t there = __atomic_load_n(&ring->answer_prod, __ATOMIC_ACQUIRE) - from;

    if ( there < sizeof(head) )
        return false;
    get(&head, sizeof(head), from);
    if ( head.length > sizeof(body) )
        stop("xenstored answers with more than was asked for");
    if ( there < sizeof(head) + head.length )
        return false;
    get(body, head.length, from + sizeof(head));
    __atomic_store_n(&ring->answer_cons, from + sizeof(head) + head.length, __ATOMIC_RELEASE);
    xen_send(port);
    if ( head.kind == XS_WATCH_EVENT )
        request(XS_READ, NODE, sizeof(NODE));
    else if ( head.kind == XS_READ && head.length == sizeof(suspend) - 1 )
    {
        for ( letter = 0; letter < head.length; letter++ )
            if ( body[letter] != suspend[letter] )
                return true;
        /* The value has no end of its own: the path's ends it. */
        request(XS_WRITE, NODE, sizeof(NODE));
    }
    else if ( head.kind == XS_WRITE )
        xen_suspend();

    return true;
}
