//! C and Rust mean the same by what crosses between them: the patches' headers against this crate's names,
//! numbers and structures. A name, number or structure that one side has and the other has not fails here.
#![allow(clippy::unwrap_used, clippy::panic)]

mod header;

use std::collections::BTreeMap;
use std::mem::offset_of;

use lacuna_core::abi::{
    BITMAP_VERSION, BitmapHeader, CHUNK_GFNS, DOMCTL_LACUNA, GROUP_NAME_MAX, GfnInfo, Op, Request,
    SCAN_CHANGED, ShimCounters, TABLE_ENTRIES, VERSION,
};
use lacuna_core::boundary::{RESET_SOFT, SHARE_ONLY_ZERO};
use lacuna_core::{Blocker, PageState, Refill, Skip, Status, Table, VcpuRegisters};

use header::{Layout, asserted_sizes, file, numbers, structures};

const CORE_H: &str = "xen/arch/x86/lacuna/core.h";
const PUBLIC_H: &str = "xen/include/public/domctl.h";
const ASM_H: &str = "xen/arch/x86/include/asm/lacuna.h";

macro_rules! layout {
    ($name:ident: $($member:ident),+) => {{
        let value = $name::default();
        let members = vec![$((
            stringify!($member).to_owned(),
            offset_of!($name, $member),
            size_of_val(&value.$member),
        )),+];
        (members, size_of::<$name>())
    }};
}

fn named(names: &[(&str, u32)]) -> BTreeMap<String, u32> {
    names
        .iter()
        .map(|(name, code)| ((*name).to_owned(), *code))
        .collect()
}

#[test]
fn the_shims_numbers_are_the_cores() {
    let mut ours = named(&[
        ("LACUNA_VCPU_ONLINE", VcpuRegisters::ONLINE),
        ("LACUNA_SHARE_ONLY_ZERO", SHARE_ONLY_ZERO),
        ("LACUNA_RESET_SOFT", RESET_SOFT),
        ("LACUNA_TABLE_BITMAP", Table::Bitmap as u32),
        ("LACUNA_TABLE_ROUNDS", Table::Rounds as u32),
        ("LACUNA_TABLE_INDEX", Table::Index as u32),
        ("LACUNA_TABLE_ZERO", Table::Zero as u32),
        ("LACUNA_TABLE_STRETCHES", Table::Stretches as u32),
        ("LACUNA_STATUS_GROUP_IN_USE", Status::GroupInUse.code()),
    ]);
    for names in [Skip::C_NAMES, PageState::C_NAMES, Blocker::C_NAMES] {
        ours.extend(named(names));
    }
    assert_eq!(numbers(&file(CORE_H), &["LACUNA_"]), ours);
}

#[test]
fn the_hypercalls_numbers_are_the_cores() {
    let mut theirs = numbers(
        &file(PUBLIC_H),
        &["XEN_DOMCTL_LACUNA_", "XEN_LACUNA_", "XEN_DOMCTL_lacuna"],
    );
    // Not the core's: how much of a buffer the C side copies, and the flags of an operation that it carries
    // out itself.
    for name in ["BUFFER_MAX", "FRAMES_ZERO", "FRAMES_RAM"] {
        assert!(
            theirs.remove(&format!("XEN_DOMCTL_LACUNA_{name}")).is_some(),
            "{name}"
        );
    }
    let ours = named(&[
        ("XEN_DOMCTL_lacuna", DOMCTL_LACUNA),
        ("XEN_DOMCTL_LACUNA_VERSION", VERSION),
        ("XEN_LACUNA_BITMAP_VERSION", BITMAP_VERSION),
        ("XEN_LACUNA_BITMAP_GFNS", u32::try_from(CHUNK_GFNS).unwrap()),
        ("XEN_LACUNA_BITMAP_NUMBERS", u32::try_from(TABLE_ENTRIES).unwrap()),
        (
            "XEN_DOMCTL_LACUNA_GROUP_MAX",
            u32::try_from(GROUP_NAME_MAX).unwrap(),
        ),
        ("XEN_DOMCTL_LACUNA_set_profile", Op::SetProfile as u32),
        ("XEN_DOMCTL_LACUNA_get_profile", Op::GetProfile as u32),
        ("XEN_DOMCTL_LACUNA_clear_profile", Op::ClearProfile as u32),
        ("XEN_DOMCTL_LACUNA_scan", Op::Scan as u32),
        ("XEN_DOMCTL_LACUNA_SCAN_CHANGED", SCAN_CHANGED),
        ("XEN_DOMCTL_LACUNA_share", Op::Share as u32),
        ("XEN_DOMCTL_LACUNA_statistics", Op::Statistics as u32),
        ("XEN_DOMCTL_LACUNA_explain", Op::Explain as u32),
        ("XEN_DOMCTL_LACUNA_registers", Op::Registers as u32),
        ("XEN_DOMCTL_LACUNA_read_bitmap", Op::ReadBitmap as u32),
        ("XEN_DOMCTL_LACUNA_frames", Op::ZeroFrames as u32),
        ("XEN_DOMCTL_LACUNA_populate_zero", Op::PopulateZero as u32),
        ("XEN_DOMCTL_LACUNA_content", Op::Content as u32),
        ("XEN_DOMCTL_LACUNA_set_group", Op::SetGroup as u32),
    ]);
    assert_eq!(theirs, ours);
}

#[test]
fn structures_have_one_layout_and_c_asserts_their_sizes() {
    let mut theirs = structures(&file(CORE_H), |_| true);
    theirs.extend(structures(&file(PUBLIC_H), |name| name.contains("lacuna")));
    theirs.extend(structures(&file(ASM_H), |name| name == "lacuna_refill"));
    // `xen-module/src/shim.rs` has them, and asserts the sizes.
    let shim = ["lacuna_part", "lacuna_bound"].map(|name| {
        let (_, size) = theirs.remove(name).unwrap();
        assert_eq!(size, 24, "{name}");
        (name, size)
    });
    // The C side gives the memory, and looks at none of it.
    let (_, refill) = theirs.remove("lacuna_refill").unwrap();
    assert_eq!(refill, size_of::<Refill>());

    let ours: BTreeMap<String, Layout> = [
        (
            "xen_domctl_lacuna",
            layout!(Request: version, op, flags, status, cursor, end, budget, result, buffer, buffer_size, pad),
        ),
        (
            "xen_lacuna_bitmap",
            layout!(BitmapHeader: version, chunks, sequence, started, complete, generation, gfns, state,
                contents, free, start),
        ),
        (
            "lacuna_vcpu",
            layout!(VcpuRegisters: cr0, cr3, cr4, efer, idt_base, lstar, sysenter_eip, idt_limit, flags),
        ),
        (
            "lacuna_gfn_info",
            layout!(GfnInfo: mfn, count_info, type_info, p2m_type, order, zero_frame, pad),
        ),
        (
            "lacuna_counters",
            layout!(ShimCounters: zero_gfns, unshared, unshare_enomem, released, pool_refused, metadata_bytes,
                content_gfns, content_unshared, refilled, bitmap_gfns, metadata_most,
                reserve, reserve_full, reserve_refused, stood, stood_ns),
        ),
    ]
    .map(|(name, layout)| (name.to_owned(), layout))
    .into();
    assert_eq!(theirs, ours);

    let asserted = asserted_sizes(&file("xen/arch/x86/lacuna/domctl.c"));
    for (name, size) in shim.into_iter().chain([("lacuna_refill", refill)]) {
        assert_eq!(asserted.get(name), Some(&size), "{name}");
    }
    for (name, (_, size)) in &ours {
        // The bitmap's header is the core's to fill in: no line of C depends on its size.
        if name != "xen_lacuna_bitmap" {
            assert_eq!(asserted.get(name), Some(size), "{name}");
        }
    }
}

/// libxenguest has words of its own for some answers, by their numbers.
#[test]
fn the_answers_that_a_save_explains_are_the_cores() {
    let text = file("tools/libs/guest/xg_sr_save_lacuna.c");
    let explained: Vec<Option<Status>> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("{ "))
        .filter_map(|rest| rest.split_once(", \""))
        .filter_map(|(code, _)| code.parse().ok())
        .map(Status::from_code)
        .collect();
    assert!(!explained.contains(&None), "{explained:?}");
    for status in [
        Status::KernelChanged,
        Status::Ended,
        Status::CountsDisagree,
        Status::CountersUnreadable,
        Status::NoMemory,
        Status::BadRequest,
    ] {
        assert!(explained.contains(&Some(status)), "{status:?}");
    }
}

/// [`Skip::index`] is the number less one.
#[test]
fn reasons_to_leave_a_page_alone_are_numbered_without_a_gap() {
    for (index, reason) in Skip::ALL.iter().enumerate() {
        assert_eq!(reason.index(), index);
        assert_eq!(Skip::from_code(reason.code()), Some(*reason));
        let result = -i32::try_from(reason.code()).unwrap();
        assert_eq!(Skip::from_result(result), *reason);
    }
    for unknown in [i32::MIN, -14, 0, 1, i32::MAX] {
        assert_eq!(Skip::from_result(unknown), Skip::EntryRefused, "{unknown}");
    }
}

/// Ours and Xen's own, which 4.17 gets in a form of its own, in the words of the same definitions.
#[test]
fn xen_4_17_has_the_same_hypercall() {
    let read = |directory: &str| {
        let path = format!(
            "{}/../patches/{directory}/0005-domctl-xsm-introduce-XEN_DOMCTL_lacuna.patch",
            env!("CARGO_MANIFEST_DIR")
        );
        let patch = std::fs::read_to_string(&path).unwrap();
        let (_, section) = patch
            .split_once(&format!("diff --git a/{PUBLIC_H} b/{PUBLIC_H}\n"))
            .unwrap();
        let section = section.split("\ndiff --git ").next().unwrap();
        let added: Vec<&str> = section.lines().filter(|line| line.starts_with('+')).collect();
        added.join("\n")
    };
    assert_eq!(read("4.17/lacuna"), read("lacuna"));
}
