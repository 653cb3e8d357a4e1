/*
 * Xen, as a PVH guest sees it: hypercalls, event channels that are polled (no interrupt is ever taken), the console ring.
 * Numbers and structures are those of xen/include/public.
 */
#include "guest.h"

/* xen.h */
#define HYPERVISOR_VCPU_OP 24
#define HYPERVISOR_SCHED_OP 29
#define HYPERVISOR_EVENT_CHANNEL_OP 32
#define HYPERVISOR_HVM_OP 34
#define DOMID_SELF 0x7ff0
/* vcpu.h, hvm/hvm_vcpu.h */
#define VCPUOP_INITIALISE 0
#define VCPUOP_UP 1
#define VCPU_HVM_MODE_64B 1
/* sched.h */
#define SCHEDOP_YIELD 0
#define SCHEDOP_SHUTDOWN 2
#define SCHEDOP_POLL 3
#define SHUTDOWN_SUSPEND 2
#define SHUTDOWN_CRASH 3
/* event_channel.h */
#define EVTCHNOP_SEND 4
#define EVTCHNOP_BIND_IPI 7
/* hvm/hvm_op.h, hvm/params.h */
#define HVMOP_GET_PARAM 1
#define HVM_PARAM_CONSOLE_PFN 17
#define HVM_PARAM_CONSOLE_EVTCHN 18

/* Where Linux' PVH guests have the page, too: beyond memory, below Xen's own pages (HVM_SHARED_INFO_ADDR). */
#define SHARED_INFO_FRAME 0xfe700ull
/* In shared_info, after 32 vcpu_info of 64 bytes: evtchn_pending, evtchn_mask, 64 words each. */
#define EVTCHN_PENDING (32 * 64 / 8)
#define EVTCHN_MASK (EVTCHN_PENDING + 64)

/* io/console.h */
struct console_ring {
    char in[1024];
    char out[2048];
    volatile uint32_t in_cons, in_prod;
    volatile uint32_t out_cons, out_prod;
};

static struct console_ring *console;
static uint32_t console_port, store_port, wake_ports[2];
static volatile uint64_t *shared_info;
/* Whether Xen's signs of pending events are where this guest does not look. */
static volatile bool events_moved;
static struct lock console_lock;

int64_t hypercall(unsigned int number, uint64_t first, uint64_t second, uint64_t third)
{
    int64_t result;
    void *entry = hypercall_page + number * 32;

    asm volatile ( "call *%[entry]"
                   : "=a" (result), "+D" (first), "+S" (second), "+d" (third)
                   : [entry] "r" (entry)
                   : "memory", "rcx", "r8", "r9", "r10", "r11" );

    return result;
}

void xen_set_hypercall_page(uint64_t address)
{
    uint32_t base, eax, ebx, ecx, edx;

    /* cpuid.h: Xen's leaves are at a multiple of 256, whichever other hypervisor it imitates as well. */
    for ( base = 0x40000000; base < 0x40010000; base += 0x100 )
    {
        asm volatile ( "cpuid" : "=a" (eax), "=b" (ebx), "=c" (ecx), "=d" (edx) : "a" (base), "c" (0) );
        if ( ebx == 0x566e6558 && ecx == 0x65584d4d && edx == 0x4d4d566e )
            break;
    }
    asm volatile ( "cpuid" : "=a" (eax), "=b" (ebx), "=c" (ecx), "=d" (edx) : "a" (base + 2), "c" (0) );
    write_msr(ebx, address);
}

uint64_t xen_parameter(uint32_t index)
{
    struct { uint16_t domain; uint32_t index; uint64_t value; } get = { DOMID_SELF, index, 0 };

    if ( hypercall(HYPERVISOR_HVM_OP, HVMOP_GET_PARAM, (uint64_t)&get, 0) )
        xen_crash();

    return get.value;
}

static uint32_t own_port(uint32_t cpu)
{
    struct { uint32_t cpu, port; } bind = { cpu, 0 };

    /* Fails for a virtual CPU that is not there: nobody waits on the port then. */
    (void)hypercall(HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, (uint64_t)&bind, 0);

    return bind.port;
}

int64_t xen_move_shared_info(uint64_t frame)
{
    int64_t result = page_map(XENMAPSPACE_SHARED_INFO, 0, frame);

    if ( !result )
        shared_info = (volatile uint64_t *)page_of(frame);

    return result;
}

void xen_events_moved(void)
{
    events_moved = true;
}

/* What a domain begins with, a restored one as well: it has other event channels, and shared_info mapped nowhere. */
static void connect(void)
{
    unsigned int word;

    if ( xen_move_shared_info(SHARED_INFO_FRAME) )
        xen_crash();
    for ( word = 0; word < 64; word++ )
        shared_info[EVTCHN_MASK + word] = ~0ull;
    console = (struct console_ring *)page_of(xen_parameter(HVM_PARAM_CONSOLE_PFN));
    console_port = xen_parameter(HVM_PARAM_CONSOLE_EVTCHN);
    wake_ports[0] = own_port(0);
    wake_ports[1] = own_port(1);
    store_port = store_begin();
}

void xen_begin(void)
{
    xen_set_hypercall_page((uint64_t)hypercall_page);
    connect();
}

void xen_suspend(void)
{
    uint32_t reason = SHUTDOWN_SUSPEND;

    /* 1: it came to nothing, and the domain goes on as it was. */
    if ( hypercall(HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN, (uint64_t)&reason, 0) != 1 )
        connect();
    xen_wake(1);
}

extern uint8_t second_start[], second_stack_top[], root_table[];

bool xen_start_second(void)
{
    static struct {
        uint32_t mode, pad;
        uint64_t rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rip, rflags, cr0, cr3, cr4, efer;
        /* The union's other member is larger. */
        uint64_t rest[8];
    } context;

    context.mode = VCPU_HVM_MODE_64B;
    context.rsp = (uint64_t)second_stack_top;
    context.rip = (uint64_t)second_start;
    context.rflags = 2;
    /* As the first one has them: entry.S. EFER says LMA, too. */
    context.cr0 = 0x80050033;
    context.cr3 = (uint64_t)root_table;
    context.cr4 = 0x20;
    context.efer = 0x501;
    if ( hypercall(HYPERVISOR_VCPU_OP, VCPUOP_INITIALISE, 1, (uint64_t)&context) )
        return false;

    return !hypercall(HYPERVISOR_VCPU_OP, VCPUOP_UP, 1, 0);
}

void xen_send(uint32_t port)
{
    (void)hypercall(HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_SEND, (uint64_t)&port, 0);
}

void xen_wake(unsigned int cpu)
{
    xen_send(wake_ports[cpu]);
}

static void clear_pending(uint32_t port)
{
    __atomic_fetch_and(&shared_info[EVTCHN_PENDING + port / 64], ~(1ull << port % 64), __ATOMIC_SEQ_CST);
}

void xen_wait(unsigned int cpu)
{
    uint32_t ports[] = { wake_ports[cpu], console_port, store_port }, port;
    struct { uint32_t *ports; uint32_t count; uint64_t timeout; } poll = { ports, cpu ? 1 : 3, 0 };

    /* An event that came before the wait would not end it. */
    if ( events_moved )
    {
        xen_yield();
        return;
    }
    (void)hypercall(HYPERVISOR_SCHED_OP, SCHEDOP_POLL, (uint64_t)&poll, 0);
    /* Before the caller looks at what there is to do: what comes later is seen by the next wait. */
    for ( port = 0; port < poll.count; port++ )
        clear_pending(ports[port]);
}

void xen_yield(void)
{
    (void)hypercall(HYPERVISOR_SCHED_OP, SCHEDOP_YIELD, 0, 0);
}

void xen_crash(void)
{
    uint32_t reason = SHUTDOWN_CRASH;

    for ( ;; )
        (void)hypercall(HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN, (uint64_t)&reason, 0);
}

void console_write(const char *text)
{
    lock_take(&console_lock);
    while ( *text )
    {
        uint32_t next = console->out_prod;

        while ( *text && next - console->out_cons < sizeof(console->out) )
            console->out[next++ % sizeof(console->out)] = *text++;
        __atomic_store_n(&console->out_prod, next, __ATOMIC_RELEASE);
        xen_send(console_port);
        if ( *text )
            xen_yield();
    }
    lock_drop(&console_lock);
}

bool console_line(char *line, size_t size)
{
    static char pending[LINE_BYTES];
    static size_t length;
    uint32_t next = console->in_cons;

    while ( next != __atomic_load_n(&console->in_prod, __ATOMIC_ACQUIRE) )
    {
        char letter = console->in[next++ % sizeof(console->in)];

        if ( letter == '\n' || letter == '\r' )
        {
            size_t copied = length < size ? length : size - 1;

            memcpy(line, pending, copied);
            line[copied] = 0;
            length = 0;
            __atomic_store_n(&console->in_cons, next, __ATOMIC_RELEASE);
            xen_send(console_port);
            if ( copied )
                return true;
        }
        else if ( length < sizeof(pending) )
            pending[length++] = letter;
    }
    if ( next != console->in_cons )
    {
        __atomic_store_n(&console->in_cons, next, __ATOMIC_RELEASE);
        xen_send(console_port);
    }

    return false;
}
