//! A guest that runs is stopped once for its registers.
#![allow(clippy::unwrap_used, missing_docs)]

// Not all of what other tests need is needed here.
#[allow(dead_code)]
mod fake_kernel;

use fake_kernel::FakeKernel;
use lacuna::os::{Kernel, identify_running};
use lacuna::progress::Silent;
use lacuna::source::Cpu;

#[test]
fn a_linux_guest_is_looked_at_once() {
    let mut guest = FakeKernel::new();
    let mut looks = 0;
    let look = || {
        looks += 1;
        Ok(FakeKernel::vcpus().iter().map(Cpu::from_registers).collect())
    };
    let (kernel, cpus) = identify_running(&mut guest, None, look, &mut Silent).unwrap();
    assert!(matches!(kernel, Kernel::Linux(_)));
    assert_eq!(cpus.len(), FakeKernel::vcpus().len());
    assert_eq!(looks, 1);
}
