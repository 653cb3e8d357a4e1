//! The stub against header trees made by hand, one for each way in which Linux has marked a free block, and
//! against trees that must be refused. Needs gcc and ld; real trees are tried when `LACUNA_TEST_HEADERS`
//! names them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use lacuna::os::linux::layout::Layout;
use lacuna::os::linux::stub::compile::CompileError;
use lacuna::os::linux::stub::headers::HeadersError;
use lacuna::os::linux::stub::learn::LearnError;
use lacuna::os::linux::stub::run::RunError;
use lacuna::os::linux::stub::toolchain::Compiler;
use lacuna::os::linux::stub::{StubError, StubOptions, layout_from_headers};
use lacuna_core::{Blocks, Field, Order, Predicate};
use tempfile::TempDir;

/// What every tree has in common: just enough of a kernel for `stub.c`.
const COMMON: &str = r"
#define PAGE_SHIFT 12
#define noinline __attribute__((noinline))
#define offsetof(t, m) __builtin_offsetof(t, m)
#define MAX_NR_ZONES 3
#define MAX_NUMNODES 1
typedef struct { int counter; } atomic_t;
struct list_head { struct list_head *next, *prev; };
struct free_area { struct list_head free_list[5]; unsigned long nr_free; };
struct zone { unsigned long spanned_pages; struct free_area free_area[11]; };
struct pglist_data { struct zone node_zones[MAX_NR_ZONES]; int nr_zones; unsigned long node_start_pfn, node_spanned_pages; };
struct task_struct { long state; unsigned long stack_canary; struct task_struct *parent, *group_leader; char comm[16]; };
#define CONFIG_STACKPROTECTOR 1
static inline void set_page_private(struct page *page, unsigned long v) { page->private = v; }
#define page_private(page) ((page)->private)
static inline void init_page_count(struct page *page) { page->_refcount.counter = 1; }
";

/// Since 6.11: the type is a byte to compare.
const BYTE: &str = r"
struct page { unsigned long flags; void *lru[2]; void *mapping; unsigned long index, private;
              union { unsigned page_type; atomic_t _mapcount; }; atomic_t _refcount; unsigned long memcg; };
static inline int PageBuddy(const struct page *p) { return p->page_type >> 24 == 0xf0; }
static inline void __SetPageBuddy(struct page *p) { p->page_type = 0xf0u << 24; }
static inline void __ClearPageBuddy(struct page *p) { p->page_type = ~0u; }
";
/// 4.18 to 6.10: a bit that is cleared, under a base that must be set.
const CLEARED_BIT: &str = r"
struct page { unsigned long flags; void *lru[2]; void *mapping; unsigned long index, private;
              union { unsigned page_type; atomic_t _mapcount; }; atomic_t _refcount; unsigned long memcg; };
static inline int PageBuddy(const struct page *p) { return (p->page_type & 0xf0000080u) == 0xf0000000u; }
static inline void __SetPageBuddy(struct page *p) { p->page_type &= ~0x80u; }
static inline void __ClearPageBuddy(struct page *p) { p->page_type |= 0x80u; }
";
/// 2.6.38 to 4.17: a magic number in the map count.
const NUMBER: &str = r"
struct page { unsigned long flags; void *mapping; unsigned long private; atomic_t _mapcount, _refcount; void *lru[2]; };
static inline int PageBuddy(const struct page *p) { return p->_mapcount.counter == -128; }
static inline void __SetPageBuddy(struct page *p) { p->_mapcount.counter = -128; }
static inline void __ClearPageBuddy(struct page *p) { p->_mapcount.counter = -1; }
";
/// Up to 2.6.37: a flag.
const FLAG: &str = r"
struct page { unsigned long flags; atomic_t _refcount, _mapcount; unsigned long private; void *mapping, *index, *lru[2]; };
static inline int PageBuddy(const struct page *p) { return p->flags >> 19 & 1; }
static inline void __SetPageBuddy(struct page *p) { p->flags |= 1ul << 19; }
static inline void __ClearPageBuddy(struct page *p) { p->flags &= ~(1ul << 19); }
";

/// Makes a 64-bit kernel's tree whose `mm.h` is `page` and what all trees share.
fn tree(page: &str) -> TempDir {
    tree_for("CONFIG_X86_64", page)
}

/// The same, of the word size that `option` stands for.
fn tree_for(option: &str, page: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let version = "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n\
                   #define LINUX_VERSION_CODE KERNEL_VERSION(6, 12, 0)\n";
    put("include/linux/version.h", version);
    put(
        "include/generated/utsrelease.h",
        "#define UTS_RELEASE \"6.12.0-made\"\n",
    );
    put("include/generated/autoconf.h", &format!("#define {option} 1\n"));
    put("arch/x86/include/asm/page.h", "");
    put("include/generated/bounds.h", "");
    // stub.c needs atomic_t before struct page: the type goes first.
    let (types, rest) = COMMON.split_at(COMMON.find("struct list_head").unwrap());
    put("include/linux/mm.h", &format!("{types}{page}{rest}"));
    for empty in [
        "kconfig",
        "kernel",
        "mmzone",
        "page-flags",
        "sched",
        "jump_label",
        "utsname",
    ] {
        put(&format!("include/linux/{empty}.h"), "");
    }
    folder
}

/// Whether gcc and ld are here; says so when not, since the test then shows nothing.
fn have_compiler() -> bool {
    let have = ["gcc", "ld"].into_iter().all(|tool| {
        Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    });
    if !have {
        eprintln!("not tried: gcc and ld are not installed");
    }
    have
}

fn learnt(page: &str) -> Layout {
    ask(&tree(page)).unwrap()
}

fn refused(page: &str) -> StubError {
    ask(&tree(page)).map(|_| ()).unwrap_err()
}

fn ask(folder: &TempDir) -> Result<Layout, StubError> {
    layout_from_headers(folder.path(), &StubOptions::default())
}

#[test]
fn a_32_bit_kernel_is_asked_by_a_32_bit_program() {
    if !have_compiler() {
        return;
    }
    let layout = ask(&tree_for("CONFIG_X86_32", BYTE)).unwrap();
    assert_eq!(layout.descriptor_bytes, 36);
    let field = |offset, width| Field { offset, width };
    assert_eq!(
        layout.free.predicate,
        Predicate {
            field: field(27, 1),
            mask: 0xff,
            expected: 0xf0,
        }
    );
    assert_eq!(layout.free.conditions, [Predicate::zero(field(28, 4))]);
    assert_eq!(layout.free.blocks.unwrap().order, field(20, 4));
    assert_eq!(
        layout.fact("offsetof(struct task_struct,stack_canary)").unwrap(),
        4
    );
    // A setter that makes a system call of the 32-bit kind: strict seccomp kills it, too.
    let hostile = BYTE.replace(
        "p->page_type = 0xf0u << 24;",
        "long r; __asm__ volatile (\"int $0x80\" : \"=a\" (r) : \"0\" (20L) : \"memory\"); p->page_type = 0xf0u << 24;",
    );
    let error = ask(&tree_for("CONFIG_X86_32", &hostile)).map(|_| ()).unwrap_err();
    assert!(
        matches!(&error, StubError::Run(RunError::Ended(how)) if how.contains("signal 9")),
        "{error}"
    );
}

#[test]
fn both_compilers_learn_the_same() {
    if !have_compiler() || !Compiler::Clang.is_here() {
        eprintln!("not tried: gcc and clang are not both installed");
        return;
    }
    for option in ["CONFIG_X86_64", "CONFIG_X86_32"] {
        for page in [BYTE, CLEARED_BIT, NUMBER, FLAG] {
            let folder = tree_for(option, page);
            let by = |compiler| {
                let options = StubOptions {
                    compiler: Some(compiler),
                    ..StubOptions::default()
                };
                layout_from_headers(folder.path(), &options).unwrap()
            };
            let (gcc, clang) = (by(Compiler::Gcc), by(Compiler::Clang));
            assert_eq!(gcc.id(), clang.id());
            assert!(clang.free_source.contains("clang"), "{}", clang.free_source);
        }
    }
}

#[test]
fn another_architectures_headers_are_refused() {
    let error = ask(&tree_for("CONFIG_ARM64", BYTE)).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, StubError::Headers(HeadersError::NotX86(_))),
        "{error}"
    );
}

#[test]
fn the_rule_of_each_era_is_learnt() {
    if !have_compiler() {
        return;
    }
    let cases = [
        (
            BYTE,
            Predicate {
                field: Field { offset: 51, width: 1 },
                mask: 0xff,
                expected: 0xf0,
            },
            40,
            52,
        ),
        (
            CLEARED_BIT,
            Predicate {
                field: Field { offset: 48, width: 4 },
                mask: 0xf000_0080,
                expected: 0xf000_0000,
            },
            40,
            52,
        ),
        (
            NUMBER,
            Predicate {
                field: Field { offset: 24, width: 4 },
                mask: 0xffff_ffff,
                expected: 0xffff_ff80,
            },
            16,
            28,
        ),
        (
            FLAG,
            Predicate {
                field: Field { offset: 2, width: 1 },
                mask: 0x08,
                expected: 0x08,
            },
            16,
            8,
        ),
    ];
    for (page, predicate, order, references) in cases {
        let layout = learnt(page);
        assert_eq!(layout.free.predicate, predicate);
        let order = Field {
            offset: order,
            width: 8,
        };
        let references = Field {
            offset: references,
            width: 4,
        };
        let max_order = Order::new(10).unwrap();
        assert_eq!(layout.free.blocks, Some(Blocks { order, max_order }));
        assert_eq!(layout.free.conditions, [Predicate::zero(references)]);
        assert_eq!(layout.release, "6.12.0-made");
        assert!(layout.proof.descriptors >= 100_000, "{:?}", layout.proof);
        assert!(layout.fact("offsetof(struct task_struct,stack_canary)").unwrap() == 8);
    }
}

#[test]
fn a_layout_survives_its_file() {
    if !have_compiler() {
        return;
    }
    let layout = learnt(BYTE);
    let folder = tempfile::tempdir().unwrap();
    let file = Layout::file_in(folder.path(), &layout.release);
    layout.save(&file).unwrap();
    assert_eq!(Layout::load(&file).unwrap(), layout);
}

#[test]
fn a_test_that_is_no_mask_and_value_is_refused() {
    if !have_compiler() {
        return;
    }
    // One of two numbers: no single flip shows it, the proof does.
    let either = BYTE.replace("== 0xf0;", "== 0xf0 || p->page_type >> 24 == 0x0f;");
    let error = refused(&either);
    assert!(
        matches!(error, StubError::Learn(LearnError::Disagree { .. })),
        "{error}"
    );
    // A setter that its test does not recognise.
    let error = refused(&BYTE.replace("0xf0u << 24", "0xf1u << 24"));
    assert!(
        matches!(error, StubError::Learn(LearnError::NeverFree)),
        "{error}"
    );
    // Bits at both ends of the descriptor.
    let error = refused(&BYTE.replace(
        "== 0xf0;",
        "== 0xf0 && (p->flags & 1) == 0 && (p->memcg & 1) == 0;",
    ));
    assert!(
        matches!(
            error,
            StubError::Learn(LearnError::Shape { .. } | LearnError::NeverFree)
        ),
        "{error}"
    );
}

#[test]
fn code_in_the_headers_can_do_nothing_but_answer() {
    if !have_compiler() {
        return;
    }
    // A setter that opens a file: strict seccomp kills it.
    let hostile = BYTE.replace(
        "p->page_type = 0xf0u << 24;",
        "long r; __asm__ volatile (\"syscall\" : \"=a\" (r) : \"0\" (2L), \"D\" (\"/etc/passwd\"), \"S\" (0L), \"d\" (0L) : \"rcx\", \"r11\", \"memory\"); p->page_type = 0xf0u << 24;",
    );
    let error = refused(&hostile);
    assert!(
        matches!(&error, StubError::Run(RunError::Ended(how)) if how.contains("signal 9")),
        "{error}"
    );
    // A constructor and an interpreter of its own do not run at all: the stub's entry and segments are fixed.
    let sneaky = format!(
        "{BYTE}\n__asm__(\".section .interp,\\\"a\\\"\\n.asciz \\\"/bin/false\\\"\\n.text\");\n\
         static void __attribute__((constructor)) early(void) {{ __builtin_trap(); }}\n"
    );
    assert_eq!(learnt(&sneaky).free, learnt(BYTE).free);
}

#[test]
fn what_is_missing_is_named() {
    let error = layout_from_headers(Path::new("/nowhere/at/all"), &StubOptions::default())
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(error, StubError::Headers(HeadersError::NoTree(_))),
        "{error}"
    );

    let folder = tree(BYTE);
    fs::remove_file(folder.path().join("include/generated/bounds.h")).unwrap();
    let uses = "#include <generated/bounds.h>\n";
    fs::write(folder.path().join("include/linux/page-flags.h"), uses).unwrap();
    let error = ask(&folder).map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("include/generated/bounds.h"),
        "{error}"
    );

    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("Makefile"),
        "include /usr/src/linux-headers-0.0-nowhere/Makefile\n",
    )
    .unwrap();
    let error = ask(&folder).map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("/usr/src/linux-headers-0.0-nowhere"),
        "{error}"
    );
}

#[test]
fn a_compilers_complaint_is_shown() {
    if !have_compiler() {
        return;
    }
    let error = refused(&BYTE.replace("unsigned long memcg;", "struct unheard_of memcg;"));
    assert!(
        matches!(&error, StubError::Compile(CompileError::Failed { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("memcg"), "{error}");
}

#[test]
fn real_headers_give_a_layout() {
    let Ok(trees) = std::env::var("LACUNA_TEST_HEADERS") else {
        eprintln!("not tried: LACUNA_TEST_HEADERS names no header trees");
        return;
    };
    for headers in std::env::split_paths(&trees) {
        let layout = layout_from_headers(&headers, &StubOptions::default())
            .unwrap_or_else(|error| panic!("{}: {error}", headers.display()));
        assert_eq!(layout.descriptor_bytes, 64, "{}", layout.release);
        assert!(
            layout
                .find_fact("offsetof(struct task_struct,stack_canary)")
                .is_some(),
            "{}",
            layout.release
        );
    }
}
