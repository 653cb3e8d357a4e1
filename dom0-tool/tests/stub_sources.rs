//! The stub against kernel sources that were never configured or built, made by hand in the forms that they
//! had: 2.6.18 (an architecture's headers of its own, no `bounds.h`), 2.6.32 (`compiler-gcc4.h`, `bounds.c`),
//! 3.10 and later (`uapi`, tables of system calls, generic headers). Needs gcc and ld.
//!
//! Real ones were tried by hand as well (`SPECIFICATION.md` says which); they are not part of this
//! repository.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use lacuna::os::linux::layout::Layout;
use lacuna::os::linux::stub::headers::HeadersError;
use lacuna::os::linux::stub::toolchain::Compiler;
use lacuna::os::linux::stub::{StubError, StubOptions, layout_from_headers};
use lacuna_core::Field;
use tempfile::TempDir;

/// What `stub.c` needs of any kernel; the descriptor marks free blocks with a flag, as until 2.6.37.
const MM: &str = r"
#include <linux/compiler.h>
#include <asm/page.h>
#define noinline __attribute__((noinline))
#define offsetof(t, m) __builtin_offsetof(t, m)
typedef struct { int counter; } atomic_t;
struct page { unsigned long flags; atomic_t _count, _mapcount; unsigned long private; void *lru[2]; };
static inline int PageBuddy(const struct page *p) { return p->flags >> 19 & 1; }
static inline void __SetPageBuddy(struct page *p) { p->flags |= 1ul << 19; }
static inline void __ClearPageBuddy(struct page *p) { p->flags &= ~(1ul << 19); }
static inline void set_page_private(struct page *page, unsigned long v) { page->private = v; }
#define page_private(page) ((page)->private)
static inline void init_page_count(struct page *page) { page->_count.counter = 1; }
struct list_head { struct list_head *next, *prev; };
struct free_area { struct list_head free_list[5]; unsigned long nr_free; };
struct zone { unsigned long spanned_pages; struct free_area free_area[11]; };
#define MAX_NUMNODES 1
struct pglist_data { struct zone node_zones[MAX_NR_ZONES]; int nr_zones; unsigned long node_start_pfn, node_spanned_pages; };
struct task_struct { long state; struct task_struct *parent, *group_leader; char comm[16]; };
";

struct Sources {
    folder: TempDir,
}

impl Sources {
    fn new(makefile: &str) -> Self {
        let sources = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        sources.put("Makefile", makefile);
        for empty in ["kernel", "mmzone", "page-flags", "sched", "utsname"] {
            sources.put(&format!("include/linux/{empty}.h"), "");
        }
        sources
    }

    fn put(&self, file: &str, text: &str) {
        let path = self.folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn config(&self, text: &str) -> PathBuf {
        self.put("the-config", text);
        self.folder.path().join("the-config")
    }

    fn ask(&self, config: Option<&Path>, compiler: Compiler) -> Result<Layout, StubError> {
        let options = StubOptions {
            config,
            compiler: Some(compiler),
            release: None,
        };
        layout_from_headers(self.folder.path(), &options)
    }

    /// By each compiler that is here; at least one, or the test shows nothing and says so.
    fn learnt(&self, config: &Path) -> Vec<Layout> {
        let found: Vec<Layout> = [Compiler::Gcc, Compiler::Clang]
            .into_iter()
            .filter(|compiler| compiler.is_here())
            .map(|compiler| self.ask(Some(config), compiler).unwrap())
            .collect();
        if found.is_empty() {
            eprintln!("not tried: neither gcc nor clang is installed");
        }
        found
    }
}

const WIDE: &str =
    "CONFIG_X86=y\nCONFIG_X86_64=y\nCONFIG_OF_A_MODULE=m\nCONFIG_HZ=250\n# CONFIG_OTHER is not set\n";
const NARROW: &str = "CONFIG_X86=y\nCONFIG_X86_32=y\nCONFIG_OF_A_MODULE=m\nCONFIG_HZ=250\n";

/// What each made source checks of its configuration.
const CHECKS: &str = r"
#if !defined(CONFIG_OF_A_MODULE_MODULE) || defined(CONFIG_OF_A_MODULE) || CONFIG_HZ != 250 || defined(CONFIG_OTHER)
#error autoconf.h is not what the configuration says
#endif
";

/// 2.6.18: `asm` is a link that the build makes; compilers after gcc 4 are refused; `MAX_NR_ZONES` is a plain
/// number.
fn of_2_6_18() -> Sources {
    let sources = Sources::new("VERSION = 2\nPATCHLEVEL = 6\nSUBLEVEL = 18\nEXTRAVERSION = -made\n");
    sources.put(
        "include/linux/compiler.h",
        "#if __GNUC__ > 4\n#error no compiler-gcc.h file for this gcc version\n#elif __GNUC__ == 4\n#include <linux/compiler-gcc4.h>\n#endif\n",
    );
    sources.put("include/linux/compiler-gcc4.h", CHECKS);
    sources.put(
        "include/asm-x86_64/page.h",
        "#define PAGE_SHIFT 12\n#define WORD_OF_ASM 8\n",
    );
    sources.put(
        "include/asm-i386/page.h",
        "#include <mach_page.h>\n#define PAGE_SHIFT 12\n#define WORD_OF_ASM 4\n",
    );
    sources.put("include/asm-i386/mach-default/mach_page.h", "");
    let check =
        "typedef char asm_is_of_this_word[sizeof(long) == WORD_OF_ASM ? 1 : -1];\n#define MAX_NR_ZONES 4\n";
    let (head, tail) = MM.split_at(MM.find("#define noinline").unwrap());
    sources.put("include/linux/mm.h", &format!("{head}{check}{tail}"));
    sources
}

#[test]
fn sources_of_2_6_18_are_asked_for_both_word_sizes() {
    let sources = of_2_6_18();
    for (config, flag, order) in [
        (
            WIDE,
            Field { offset: 2, width: 1 },
            Field { offset: 16, width: 8 },
        ),
        (
            NARROW,
            Field { offset: 2, width: 1 },
            Field { offset: 12, width: 4 },
        ),
    ] {
        for layout in sources.learnt(&sources.config(config)) {
            assert_eq!(layout.release, "2.6.18-made");
            assert_eq!(layout.free.predicate.field, flag);
            assert_eq!(layout.free.predicate.mask, 8);
            assert_eq!(layout.free.blocks.unwrap().order, order);
            assert_eq!(layout.fact("LINUX_VERSION_CODE").unwrap(), 0x2_06_12);
        }
    }
}

#[test]
fn bounds_are_made_of_bounds_c() {
    let sources = Sources::new("VERSION = 2\nPATCHLEVEL = 6\nSUBLEVEL = 32\nEXTRAVERSION =\n");
    // The kernel's own way of getting numbers out of the compiler (include/linux/kbuild.h, both of its
    // forms).
    sources.put(
        "kernel/bounds.c",
        "#define __GENERATING_BOUNDS_H\n#include <linux/page-flags.h>\n\
         void foo(void) { __asm__ volatile(\"\\n->MAX_NR_ZONES %0 x\" : : \"i\" (4)); \
         __asm__ volatile(\"\\n.ascii \\\"->NR_PAGEFLAGS %0 y\\\"\" : : \"i\" (23)); }\n",
    );
    sources.put(
        "include/linux/page-flags.h",
        "#ifndef __GENERATING_BOUNDS_H\n#include <linux/bounds.h>\n#if NR_PAGEFLAGS != 23\n#error bounds\n#endif\n#endif\n",
    );
    sources.put(
        "include/linux/compiler.h",
        "#define __gcc_header(x) #x\n#define _gcc_header(x) __gcc_header(linux/compiler-gcc##x.h)\n#define gcc_header(x) _gcc_header(x)\n#include gcc_header(__GNUC__)\n",
    );
    sources.put("include/linux/compiler-gcc4.h", CHECKS);
    sources.put("arch/x86/include/asm/page.h", "#define PAGE_SHIFT 12\n");
    sources.put(
        "include/linux/mm.h",
        &format!("#include <linux/page-flags.h>\n{MM}"),
    );
    for layout in sources.learnt(&sources.config(WIDE)) {
        assert_eq!(layout.release, "2.6.32");
        assert_eq!(layout.fact("MAX_NR_ZONES").unwrap(), 4);
    }
    // Without it, what is missing is named.
    fs::remove_file(sources.folder.path().join("kernel/bounds.c")).unwrap();
    let error = sources
        .ask(Some(&sources.config(WIDE)), Compiler::Gcc)
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("bounds.h"), "{error}");
}

#[test]
fn generic_headers_and_system_calls_of_3_10_are_made() {
    let sources = Sources::new("VERSION = 3\nPATCHLEVEL = 10\nSUBLEVEL = 105\nEXTRAVERSION =\n");
    sources.put("include/linux/kconfig.h", "#include <generated/autoconf.h>\n");
    sources.put("include/linux/jump_label.h", "");
    sources.put("include/linux/compiler.h", CHECKS);
    sources.put(
        "include/asm-generic/page.h",
        "#error the architecture has its own\n",
    );
    sources.put("include/uapi/asm-generic/generic.h", "#define FROM_GENERIC 1\n");
    sources.put("arch/x86/include/uapi/asm/page.h", "#define PAGE_SHIFT 12\n");
    sources.put("arch/x86/include/asm/own.h", "");
    sources.put(
        "arch/x86/syscalls/syscall_64.tbl",
        "#\n0 common read sys_read\n16 64 ioctl sys_ioctl\n514 x32 ioctl compat_sys_ioctl\n",
    );
    sources.put("arch/x86/syscalls/syscall_32.tbl", "3 i386 read sys_read\n");
    let check = "#include <asm/generic.h>\n#include <asm/unistd_64.h>\n#include <asm/unistd_32_ia32.h>\n#include <asm/asm-offsets.h>\n\
        #if FROM_GENERIC != 1 || __NR_ioctl != 16 || __NR_ia32_read != 3\n#error generated\n#endif\n#define MAX_NR_ZONES 4\n";
    sources.put("include/linux/mm.h", &format!("{check}{MM}"));
    for layout in sources.learnt(&sources.config(WIDE)) {
        assert_eq!(layout.release, "3.10.105");
    }
}

#[test]
fn sources_without_configuration_are_refused_with_what_is_wanted() {
    let sources = of_2_6_18();
    let error = sources.ask(None, Compiler::Gcc).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, StubError::Headers(HeadersError::NoConfig(_))),
        "{error}"
    );
    let told = lacuna::failure::Failure::from(error).to_string();
    assert!(told.contains("--config"), "{told}");
    // Beside the sources it is found by itself.
    sources.put(".config", WIDE);
    if Compiler::Gcc.is_here() {
        assert_eq!(sources.ask(None, Compiler::Gcc).unwrap().release, "2.6.18-made");
    }
}

#[test]
fn a_guests_word_for_its_release_counts_where_sources_were_never_built() {
    let sources = of_2_6_18();
    let config = sources.config(WIDE);
    if !Compiler::Gcc.is_here() {
        return;
    }
    let options = StubOptions {
        config: Some(&config),
        release: Some("2.6.18-274.el5"),
        compiler: Some(Compiler::Gcc),
    };
    let layout = layout_from_headers(sources.folder.path(), &options).unwrap();
    assert_eq!(layout.release, "2.6.18-274.el5");
}
