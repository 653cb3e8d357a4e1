/*
 * What the lab gives the guest as its initial file system: a description, and behind it the image of a kernel. It is
 * written by tests/windows/src/live.rs, whose test holds the two against each other.
 */
#ifndef LACUNA_WINDOWS_PACKAGE_H
#define LACUNA_WINDOWS_PACKAGE_H

#include <stdint.h>

/* "LACWINDO", little-endian. */
#define PACKAGE_MAGIC 0x4f444e495743414cull

/* Where some bits of an entry are, in bytes and bits; `width` 0: this kernel's entries do not have them. */
struct field {
    uint32_t offset, storage, bit, width;
};

struct package {
    uint64_t magic;
    /* Where the image is to be, and the page-frame database. */
    uint64_t image_base, database;
    /* Where the image begins in the package, and its size: whole pages. */
    uint32_t image_offset, image_bytes;
    /* sizeof(_MMPFN), and where its first word, the link of the lists, is. */
    uint32_t entry_bytes, link_offset;
    struct field location, references, rom, exists, lock;
    /* Variables in the image, from its beginning: MmPfnDatabase, MmPhysicalMemoryBlock and what it points to, the lists'
     * heads one after the other in the order of _MMLISTS (32 bytes each). */
    uint32_t pfn_database, memory_block, descriptor, lists;
    /* Where LSTAR leads, and where the exceptions' stubs are to be, 32 of 32 bytes. */
    uint32_t entry, stubs;
};

#endif
