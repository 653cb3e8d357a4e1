//! What operations report, as text and as JSON.

mod linux;
pub(crate) mod profile;
pub(crate) mod scan;
mod windows;

use lacuna_core::OfflineScan;
use serde_json::Value;

use super::Out;
use crate::ops::scan::DumpScan;
use crate::os::{BuiltProfile, Kernel};

/// Shows a kernel and what confirms it.
pub(crate) fn show_kernel(kernel: &Kernel, out: Out) {
    match kernel {
        Kernel::Linux(kernel) => linux::show_kernel(kernel, out),
        Kernel::Windows(kernel) => windows::show_kernel(kernel, out),
    }
}

/// Renders a kernel as JSON.
pub(crate) fn kernel_json(kernel: &Kernel) -> Value {
    match kernel {
        Kernel::Linux(kernel) => linux::kernel_json(kernel),
        Kernel::Windows(kernel) => windows::kernel_json(kernel),
    }
}

/// Shows a profile that was built, and what it was made from.
pub(crate) fn show_built(built: &BuiltProfile, out: Out) {
    match built {
        BuiltProfile::Linux(built) => linux::show_built(built, out),
        BuiltProfile::Windows { built, .. } => windows::show_built(built, out),
    }
}

/// Renders a profile that was built, as JSON.
pub(crate) fn built_json(kernel: &Kernel, built: &BuiltProfile) -> Value {
    match built {
        BuiltProfile::Linux(built) => linux::built_json(built),
        BuiltProfile::Windows { built, facts } => {
            let mut answer = kernel_json(kernel);
            merge(&mut answer, windows::built_json(built, facts));
            answer["verdict"] = Value::from("built");
            answer
        }
    }
}

/// Shows the figures of a dump's scan.
pub(crate) fn show_dump_scan(built: &BuiltProfile, scanned: &OfflineScan, out: Out) {
    match built {
        BuiltProfile::Linux(_) => linux::show_scanned(scanned, out),
        BuiltProfile::Windows { .. } => windows::show_scanned(scanned, out),
    }
}

/// Returns the scan of a dump as JSON.
pub(crate) fn dump_scan_json(scan: &DumpScan) -> Value {
    match (&scan.kernel, &scan.built) {
        (Kernel::Linux(kernel), BuiltProfile::Linux(built)) => linux::scan_json(scan, kernel, built),
        (Kernel::Windows(kernel), BuiltProfile::Windows { built, facts }) => {
            windows::scan_json(scan, kernel, built, facts)
        }
        // A profile is of its own kernel's kind.
        _ => Value::Null,
    }
}

/// Adds the members of one JSON object to another.
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
