//! The free-page engine as an object that links into Xen.
//!
//! `lacuna-core` has the logic. This crate implements its traits by functions of Xen's C side
//! (`xen/arch/x86/lacuna/`, from `patches/`), and exports the entry points that the C side calls. All
//! `unsafe` code is here.
//!
//! The object made from it has no SSE, no indirect branch and no reachable panic; `cargo lab` checks
//! the object itself. There is no allocator.
#![no_std]

mod content;
mod entry;
mod mapped_frame;
mod shim;
mod tables;
mod xen_domain;

/// Is never called: the build refuses an object in which anything refers to a panic. The compiler demands the
/// function.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
