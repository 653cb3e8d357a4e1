//! The free-page engine as an object that links into Xen.
//!
//! `lacuna-core` has the logic; this crate implements its traits on what Xen's C side offers
//! (`xen/arch/x86/lacuna/`, from `patches/`) and exports the entry points that the C side calls. It is the
//! one home of `unsafe`.
//!
//! The object that is made of it holds no SSE, no indirect branch and no reachable panic; `cargo lab` checks
//! the object itself. There is no allocator.
#![no_std]

mod content;
mod entry;
mod mapped_frame;
mod shim;
mod tables;
mod xen_domain;

/// Unreachable: the build refuses an object in which anything refers to a panic. The compiler demands the
/// function.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
