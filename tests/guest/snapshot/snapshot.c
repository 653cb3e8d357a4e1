/*
 * The first and only process of a guest of the kernel matrix (tests/lab/src/matrix): it uses memory as the kernel command
 * line asks, then keeps its account of which pages are free (tests/guest/src/truth.rs has the layout) until it is stopped.
 *
 * In C, freestanding and without a library, because it must run on i386 kernels too and the lab has no Rust library for
 * them. Built by gcc -static -nostdlib, once with -m64 and once with -m32.
 *
 * Words on the kernel command line:
 *   snap.fill=N     touch N percent of the free memory and give every other run of pages back (default 60)
 *   snap.decoys     plant notes, banners and page arrays that look like the kernel's own, below and above the fill
 *   snap.huge=N     map N huge pages of the pool that hugepages= made
 *   snap.fragment   give back every other page of the fill, so that hardly two free pages lie together
 *   snap.wait=W     before anything else, say "SNAP waiting" and wait until there is more (W = more) or less memory
 * A file /module.ko in the initial file system is loaded as a module first.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long word;

#define PAGE 4096UL
#define CHUNK 4096UL /* entries of kpageflags read at once: 32 KiB */

#if defined(__x86_64__)
enum { SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_mmap = 9, SYS_munmap = 11, SYS_mlockall = 151, SYS_mount = 165,
       SYS_mkdir = 83, SYS_nanosleep = 35, SYS_pread = 17, SYS_madvise = 28, SYS_setpriority = 141, SYS_finit_module = 313 };
static long call(long n, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;

    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
static long pread64(int file, void *into, word bytes, u64 at)
{
    return call(SYS_pread, file, (long)into, bytes, at, 0, 0);
}
static void *map(word bytes, int flags)
{
    return (void *)call(SYS_mmap, 0, bytes, 3, flags | 0x22, -1, 0);
}
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tand $-16,%rsp\n\tcall run\n\thlt\n");
#else
enum { SYS_read = 3, SYS_write = 4, SYS_open = 5, SYS_mmap2 = 192, SYS_munmap = 91, SYS_mlockall = 152, SYS_mount = 21,
       SYS_mkdir = 39, SYS_nanosleep = 162, SYS_pread = 180, SYS_madvise = 219, SYS_setpriority = 97, SYS_finit_module = 350 };
/* Six arguments want ebp: all of them go through memory, so that the compiler need not spare a register. */
long call(long n, long a, long b, long c, long d, long e, long f);
__asm__(".globl call\ncall:\n\tpush %ebp\n\tpush %ebx\n\tpush %esi\n\tpush %edi\n\tmov 20(%esp),%eax\n\tmov 24(%esp),%ebx\n"
        "\tmov 28(%esp),%ecx\n\tmov 32(%esp),%edx\n\tmov 36(%esp),%esi\n\tmov 40(%esp),%edi\n\tmov 44(%esp),%ebp\n"
        "\tint $0x80\n\tpop %edi\n\tpop %esi\n\tpop %ebx\n\tpop %ebp\n\tret\n");
static long pread64(int file, void *into, word bytes, u64 at)
{
    return call(SYS_pread, file, (long)into, bytes, (long)(u32)at, (long)(u32)(at >> 32), 0);
}
static void *map(word bytes, int flags)
{
    return (void *)call(SYS_mmap2, 0, bytes, 3, flags | 0x22, -1, 0);
}
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tand $-16,%esp\n\tcall run\n\thlt\n");
#endif

void *memset(void *at, int value, word bytes)
{
    volatile u8 *byte = at;

    while ( bytes-- )
        *byte++ = value;
    return at;
}

void *memcpy(void *to, const void *from, word bytes)
{
    volatile u8 *byte = to;
    const u8 *source = from;

    while ( bytes-- )
        *byte++ = *source++;
    return to;
}

static word length(const char *text)
{
    word bytes = 0;

    while ( text[bytes] )
        bytes++;
    return bytes;
}

static int console;

static void say(const char *text)
{
    call(SYS_write, console, (long)text, length(text), 0, 0, 0);
}

static void say_number(u64 value)
{
    char text[24];
    int at = sizeof(text) - 1;

    text[at] = 0;
    do
        text[--at] = "0123456789abcdef"[value & 15];
    while ( value >>= 4 );
    say(text + at);
}

static int open_file(const char *path, int flags)
{
    return call(SYS_open, (long)path, flags | 0100000, 0, 0, 0, 0);
}

static word read_all(const char *path, char *into, word room)
{
    int file = open_file(path, 0);
    word done = 0;

    while ( file >= 0 && done + 1 < room )
    {
        long got = call(SYS_read, file, (long)(into + done), room - 1 - done, 0, 0, 0);

        if ( got <= 0 )
            break;
        done += got;
    }
    into[done] = 0;
    return done;
}

static const char *find(const char *text, const char *wanted)
{
    word bytes = length(wanted), i;

    for ( ; *text; text++ )
    {
        for ( i = 0; i < bytes && text[i] == wanted[i]; i++ )
            ;
        if ( i == bytes )
            return text + bytes;
    }
    return 0;
}

static word number_after(const char *text, const char *wanted, word otherwise)
{
    const char *at = find(text, wanted);
    word value = 0;

    if ( !at )
        return otherwise;
    while ( *at == ' ' )
        at++;
    while ( *at >= '0' && *at <= '9' )
        value = value * 10 + (*at++ - '0');
    return value;
}

static char text[1 << 16];

/* A page that looks like the kernel's VMCOREINFO note, with `from` replaced by `to` of the same length. */
static void forge(u8 *page, const u8 *note, word bytes, const char *from, const char *to)
{
    word i, j, size = length(from);

    memset(page, 0, 2 * PAGE);
    memcpy(page, note, bytes);
    for ( i = 24; size && i + size < bytes; i++ )
    {
        for ( j = 0; j < size && page[i + j] == from[j]; j++ )
            ;
        if ( j == size )
            memcpy(page + i, to, size);
    }
}

/* The kernel's note, out of the headers of /proc/kcore; without it a short one made up. */
static u8 note_bytes[8192];
static word find_note(void)
{
    static u8 head[65536];
    int file = open_file("/proc/kcore", 0);
    long got = file < 0 ? 0 : pread64(file, head, sizeof(head), 0);
    long i, j;
    static const char made_up[] = "OSRELEASE=9.9.9-decoy\nPAGESIZE=4096\nSIZE(page)=64\nSYMBOL(_stext)=ffffffff81000000\n";

    for ( i = 0; i + 32 < got; i += 4 )
    {
        const u32 *words = (const u32 *)(head + i);

        for ( j = 0; j < 11 && head[i + 12 + j] == (u8)"VMCOREINFO"[j]; j++ )
            ;
        if ( j == 11 && words[0] == 11 && words[1] < 4096 && i + 24 + (long)words[1] <= got )
        {
            memcpy(note_bytes, head + i, 24 + words[1]);
            ((u32 *)note_bytes)[2] = 0;
            return 24 + words[1];
        }
    }
    ((u32 *)note_bytes)[0] = 11;
    ((u32 *)note_bytes)[1] = sizeof(made_up) - 1;
    memcpy(note_bytes + 12, "VMCOREINFO", 11);
    memcpy(note_bytes + 24, made_up, sizeof(made_up) - 1);
    return 24 + sizeof(made_up) - 1;
}

static void plant(word note)
{
    static const char banner[] = "Linux version 9.9.9-decoy (root@decoy) (gcc 9.9.9) #1 SMP\n";
    u8 *at = map(64 * 2 * PAGE + 4096 * 64, 0x8000);
    word i;

    for ( i = 0; i < 64; i++, at += 2 * PAGE )
        switch ( i % 6 )
        {
        case 0: forge(at, note_bytes, note, "", ""); break;
        case 1: forge(at, note_bytes, note, "SIZE(page)=", "SIZE(pagf)="); break;
        case 2: forge(at, note_bytes, note, "SIZE(page)=64", "SIZE(page)=56"); break;
        case 3: forge(at, note_bytes, note, "OFFSET(page.private)=40", "OFFSET(page.private)=16"); break;
        case 4: forge(at, note_bytes, note, "OSRELEASE=", "OSRELEASF="); break;
        default: memset(at, 0, PAGE); memcpy(at, banner, sizeof(banner)); break;
        }
    /* 4096 descriptors of 64 bytes, each of which says "free, of order 10" in both ways of marking it. */
    for ( i = 0; i < 4096; i++, at += 64 )
    {
        *(u64 *)(at + 40) = 10;
        *(u32 *)(at + 48) = i & 1 ? 0xf0000000 : 0xffffff7f;
    }
}

/* Until MemTotal has changed as `more` says, or two minutes have passed, which the lab notices by the missing account. */
static void wait_for_memory(int more)
{
    struct { word seconds, nanoseconds; } pause = { 0, 200000000 };
    word before, now, i;

    read_all("/proc/meminfo", text, sizeof(text));
    before = number_after(text, "MemTotal:", 0);
    say("SNAP waiting\n");
    for ( i = 0; i < 600; i++ )
    {
        read_all("/proc/meminfo", text, sizeof(text));
        now = number_after(text, "MemTotal:", 0);
        /* 64 MiB at least: kernels change a little by themselves. */
        if ( more ? now > before + 65536 : now + 65536 < before )
        {
            word last;

            /* And until it has come to rest. */
            do
            {
                last = now;
                pause.seconds = 2;
                call(SYS_nanosleep, (long)&pause, 0, 0, 0, 0, 0);
                read_all("/proc/meminfo", text, sizeof(text));
                now = number_after(text, "MemTotal:", 0);
            } while ( now != last );
            say("SNAP memory changed\n");
            return;
        }
        call(SYS_nanosleep, (long)&pause, 0, 0, 0, 0, 0);
    }
    say("SNAP memory did not change\n");
    for ( ;; )
        call(SYS_nanosleep, (long)&pause, 0, 0, 0, 0, 0);
}

static void load_module(const char *path)
{
    int file = open_file(path, 0);

    if ( file >= 0 && call(SYS_finit_module, file, (long)"", 0, 0, 0, 0) < 0 )
        say("SNAP the module was refused\n");
}

static void fill(word percent, int fragment)
{
    word pages, i;
    u8 *at;
    u32 random = 12345;

    read_all("/proc/meminfo", text, sizeof(text));
    pages = number_after(text, "MemFree:", 0) / 4 / 100 * percent;
    if ( sizeof(word) == 4 && pages > 400000 )
        pages = 400000; /* what a process has room for */
    at = map(pages * PAGE, 0);
    if ( (word)at > (word)-4096 )
        return;
    for ( i = 0; i < pages; i++ )
        *(word *)(at + i * PAGE) = i | 1;
    for ( i = 0; fragment && i < pages; i += 2 )
        call(SYS_madvise, (long)(at + i * PAGE), PAGE, 4 /* MADV_DONTNEED */, 0, 0, 0);
    if ( fragment )
        return;
    /* Runs of 1 to 64 pages, every other one given back. */
    for ( i = 0; i < pages; )
    {
        word run;

        random = random * 1103515245 + 12345;
        run = 1 + (random >> 16) % 64;
        if ( run > pages - i )
            run = pages - i;
        if ( random >> 30 & 1 )
            call(SYS_madvise, (long)(at + i * PAGE), run * PAGE, 4 /* MADV_DONTNEED */, 0, 0, 0);
        i += run;
    }
}

/* What tests/guest/src/truth.rs describes, in words of 64 bits. */
static void account(void)
{
    int flags = open_file("/proc/kpageflags", 0), pagemap = open_file("/proc/self/pagemap", 0);
    u64 low = 0, high = 1, entry;
    word pages, bitmap, total, i, same = 0;
    u64 *memory;
    static u64 chunk[CHUNK];
    int slot = 0;

    if ( flags < 0 )
        say("SNAP no kpageflags\n");
    while ( pread64(flags, &entry, 8, high * 8) == 8 )
    {
        low = high;
        high *= 2;
    }
    while ( high - low > 1 )
    {
        u64 middle = (low + high) / 2;

        if ( pread64(flags, &entry, 8, middle * 8) == 8 )
            low = middle;
        else
            high = middle;
    }
    pages = high;
    bitmap = (pages + PAGE * 8 - 1) / (PAGE * 8);
    total = 1 + 2 * bitmap;
    memory = map(total * PAGE, 0x8000);
    memset(memory, 0, total * PAGE);
    call(SYS_mlockall, 3, 0, 0, 0, 0, 0);
    memcpy(memory, "LACTRUTH", 8);
    memory[1] = pages;
    call(SYS_setpriority, 0, 0, -20, 0, 0, 0);
    for ( ;; )
    {
        u64 *own = memory + 8 + 8 * slot, *other = memory + 16 - 8 * slot, free = 0;
        u64 *here = memory + (1 + slot * bitmap) * 512, *there = memory + (1 + (1 - slot) * bitmap) * 512;
        word start, equal = 1;
        struct { word seconds, nanoseconds; } pause = { 0, 20000000 };

        own[0] = other[0] + 1;
        for ( start = 0; start < pages; start += CHUNK )
        {
            word count = pages - start < CHUNK ? pages - start : CHUNK;

            pread64(flags, chunk, count * 8, (u64)start * 8);
            for ( i = 0; i < count; i += 64 )
            {
                u64 bits = 0;
                word bit;

                for ( bit = 0; bit < 64 && i + bit < count; bit++ )
                    if ( chunk[i + bit] >> 10 & 1 )
                    {
                        bits |= 1ULL << bit;
                        free++;
                    }
                if ( there[(start + i) / 64] != bits )
                    equal = 0;
                here[(start + i) / 64] = bits;
            }
        }
        same = equal ? same + 1 : 1;
        own[1] = free;
        own[2] = same;
        own[0]++;
        if ( same == 3 )
        {
            /* Written once; the console's own use of memory then shows as a change and is waited out by the lab. */
            static int told;

            if ( !told )
            {
                told = 1;
                say("\nSNAP account");
                for ( i = 0; i < total; i++ )
                {
                    pread64(pagemap, &entry, 8, ((word)memory / PAGE + i) * 8ULL);
                    say(" ");
                    say_number(entry & ((1ULL << 55) - 1));
                }
                say(" end\n");
            }
        }
        slot = 1 - slot;
        call(SYS_nanosleep, (long)&pause, 0, 0, 0, 0, 0);
    }
}

void run(void)
{
    static char line[4096];
    word note, i;

    call(SYS_mkdir, (long)"/proc", 0755, 0, 0, 0, 0);
    call(SYS_mkdir, (long)"/sys", 0755, 0, 0, 0, 0);
    call(SYS_mount, (long)"proc", (long)"/proc", (long)"proc", 0, 0, 0);
    call(SYS_mount, (long)"sysfs", (long)"/sys", (long)"sysfs", 0, 0, 0);
    call(SYS_mkdir, (long)"/dev", 0755, 0, 0, 0, 0);
    call(SYS_mount, (long)"devtmpfs", (long)"/dev", (long)"devtmpfs", 0, 0, 0);
    console = open_file("/dev/ttyS0", 2);
    say("\nSNAP up\n");
    read_all("/proc/cmdline", line, sizeof(line));
    load_module("/module.ko");
    if ( find(line, "snap.wait=more") )
        wait_for_memory(1);
    if ( find(line, "snap.wait=less") )
        wait_for_memory(0);
    note = find_note();
    if ( find(line, "snap.decoys") )
        plant(note);
    i = number_after(line, "snap.huge=", 0);
    if ( i )
    {
        u8 *huge = map(i << 21, 0x40000 | 0x8000);

        if ( (word)huge > (word)-4096 )
            say("SNAP no huge pages\n");
    }
    fill(number_after(line, "snap.fill=", 60), find(line, "snap.fragment") != 0);
    if ( find(line, "snap.decoys") )
        plant(note);
    account();
}
