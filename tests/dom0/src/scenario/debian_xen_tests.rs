//! Xen's own test programs on the Debian host: first on the distribution's hypervisor, then on Lacuna's. Both
//! must do the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::debian_host::{install, install_and_boot, is_ours, shell};
use crate::failure::{Result, ensure};
use crate::host::Host;

/// Where the programs are.
const PROGRAMS: &str = "/opt/lab/xen-tests";
/// What they did on the distribution's hypervisor, kept over the reboot.
const STOCK: &str = "/var/lib/lab-xen-tests.json";
/// How long one may take, in seconds.
const LIMIT: u32 = 300;

/// What a program did.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Outcome {
    status: i32,
    /// Both outputs, with each domain's number as `dN`.
    text: String,
}

/// Runs them all, before the reboot into Lacuna's hypervisor and after it, and compares.
pub(super) fn xen_tests(host: &mut Host) -> Result<()> {
    install(host)?;
    if !is_ours(host)? {
        let stock = outcomes(host)?;
        fs::write(STOCK, serde_json::to_vec(&stock).map_err(std::io::Error::other)?)?;
    }
    install_and_boot(host)?;
    ensure(
        Path::new(STOCK).exists(),
        "what Xen's tests did on the distribution's hypervisor",
        "known: this scenario comes before others that boot Lacuna's",
        "never run there",
    )?;
    let stock: BTreeMap<String, Outcome> =
        serde_json::from_slice(&fs::read(STOCK)?).map_err(std::io::Error::other)?;
    let ours = outcomes(host)?;
    host.figure("programs", stock.len() as u64)?;
    let passed = stock.values().filter(|outcome| outcome.status == 0).count();
    host.figure("passed_on_stock", passed as u64)?;
    ensure(passed > 0, "programs that pass on stock Xen", "some", "none")?;
    for (name, expected) in &stock {
        let seen = ours.get(name);
        ensure(
            seen == Some(expected),
            name,
            &format!("as on stock Xen: {expected:?}"),
            &format!("{seen:?}"),
        )?;
    }
    Ok(())
}

/// Runs each program.
fn outcomes(host: &mut Host) -> Result<BTreeMap<String, Outcome>> {
    let mut outcomes = BTreeMap::new();
    for entry in fs::read_dir(PROGRAMS)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let ran = shell(host, &format!("timeout {LIMIT} {PROGRAMS}/{name}"))?;
        let text = without_numbers(&ran.text);
        outcomes.insert(
            name,
            Outcome {
                status: ran.status,
                text,
            },
        );
    }
    Ok(outcomes)
}

/// `text` with each domain's number, which differs from run to run, as `dN`.
fn without_numbers(text: &str) -> String {
    text.split_inclusive(|character: char| !character.is_ascii_alphanumeric())
        .map(|word| {
            let number = word
                .strip_prefix('d')
                .map(|rest| rest.trim_end_matches(|last: char| !last.is_ascii_alphanumeric()));
            match number {
                Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                    word.replacen(digits, "N", 1)
                }
                _ => word.to_owned(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::without_numbers;

    #[test]
    fn only_the_numbers_of_domains_are_left_out() {
        let text = "Test x86 PVH\n  Created d17\n  d17: grant table\nd3, dead d0x 0x20 d\n";
        let expected = "Test x86 PVH\n  Created dN\n  dN: grant table\ndN, dead d0x 0x20 d\n";
        assert_eq!(without_numbers(text), expected);
    }
}
