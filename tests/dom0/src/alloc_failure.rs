//! Makes allocations in the hypervisor fail on purpose, and learns which ones did
//! (`tests/lab/xen/alloc-failure.patch`, in the mutant hypervisor only).

use std::collections::{BTreeMap, BTreeSet};

use lacuna_core::abi::Request;

use crate::engine::Direct;
use crate::failure::{Result, differs, ensure};
use crate::host::Host;

/// `ALLOC_FAILURE_OP` of the patch.
const OP: u32 = 0x4c00;
/// Bytes of the patch's list of sites, at most.
const LIST_BYTES: usize = 65_536;
/// Functions of the allocators themselves, which are left out of a site: their callers are of interest.
const ALLOCATORS: &[&str] = &[
    "alloc_failure",
    "_xmalloc",
    "_xzalloc",
    "_xvmalloc",
    "_xvzalloc",
    "vmalloc_type",
    "vmalloc",
    "vzalloc",
    "vm_alloc",
    "__vmap",
    "vmap",
    "alloc_xen_pagetable",
    "alloc_mapped_pagetable",
    "map_pages_to_xen",
    "xmalloc_whole_pages",
    "xmalloc_pool_get",
    "xmem_pool_alloc",
    "alloc_xenheap_pages",
    "alloc_domheap_pages",
];
/// The outermost functions of interest. Their callers are the hypervisor's common code.
const OUTERMOST: &[&str] = &["lacuna_domctl", "do_domctl", "hvm_hap_nested_page_fault"];

/// What is to fail; the numbers are those of the patch's `FAIL_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fail {
    /// Nothing.
    Nothing = 0,
    /// In an operation of Lacuna, the n-th allocation of the first site that has not failed so far.
    NewSite = 1,
    /// The same of the site that failed last.
    SameSite = 2,
    /// One in n of those made on behalf of guests, drawn at random.
    Guests = 3,
    /// In an operation of Lacuna, all allocations of the first site that has not failed so far.
    WholeSite = 4,
}

/// The hypervisor's report of failed allocations.
pub(crate) struct Report {
    /// Allocations of the work concerned, since something was asked to fail.
    pub(crate) allocations: u64,
    /// Those of them that failed.
    pub(crate) failures: u64,
    /// Free pages of the host, exactly.
    pub(crate) free_pages: u64,
    /// Sites that have failed: the operation's number, 0 for guests, with the functions, innermost first.
    failed: BTreeMap<(u32, Vec<String>), u64>,
}

/// Controls failing allocations, and collects the sites that have failed.
pub(crate) struct Failures {
    direct: Direct,
    /// Every site that has failed so far, as in [`Report`].
    sites: BTreeMap<(u32, Vec<String>), u64>,
}

impl Failures {
    /// Opens the control, with no allocation failing and no site known.
    pub(crate) fn open() -> Result<Self> {
        let failures = Self {
            direct: Direct::open(0)?,
            sites: BTreeMap::new(),
        };
        failures.forget()?;
        Ok(failures)
    }

    /// Makes the hypervisor forget which sites have failed.
    pub(crate) fn forget(&self) -> Result<()> {
        self.call(Fail::Nothing, 0, true).map(drop)
    }

    /// Makes `what` fail from now on, with `nth` its n.
    pub(crate) fn begin(&self, what: Fail, nth: u64) -> Result<()> {
        self.call(what, nth, false).map(drop)
    }

    /// Ends the failing, and returns the hypervisor's report.
    pub(crate) fn end(&mut self) -> Result<Report> {
        let report = self.call(Fail::Nothing, 0, false)?;
        for (site, failures) in &report.failed {
            self.sites.insert(site.clone(), *failures);
        }
        Ok(report)
    }

    /// Tells the lab every site that failed, and fails unless each function of `expected` is among them, with
    /// at least so many places in it.
    pub(crate) fn tell(&self, host: &mut Host, expected: &[(&str, usize)]) -> Result<()> {
        let mut of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut lines = BTreeSet::new();
        for (operation, functions) in self.sites.keys() {
            let mut chain = Vec::new();
            for function in functions {
                // FILE#NAME+OFFSET/SIZE: Xen names the file of what is local to it.
                let (name, _) = function.split_once('+').unwrap_or((function, ""));
                let (_, name) = name.rsplit_once('#').unwrap_or(("", name));
                if !ALLOCATORS.contains(&name) {
                    chain.push(function.as_str());
                    of.entry(name).or_default().insert(function);
                }
                if OUTERMOST.contains(&name) {
                    break;
                }
            }
            let operation = if *operation == 0 {
                "guest".to_owned()
            } else {
                format!("operation {operation}")
            };
            lines.insert(format!("{operation}: {}\n", chain.join(" < ")));
        }
        host.log("sites.log", &lines.iter().cloned().collect::<String>())?;
        host.figure("sites_failed", self.sites.len() as u64)?;
        for (function, least) in expected {
            let seen = of.get(function).map_or(0, BTreeSet::len);
            ensure(
                seen >= *least,
                &format!("places in {function} that failed"),
                &format!("at least {least}"),
                &seen.to_string(),
            )?;
        }
        Ok(())
    }

    fn call(&self, what: Fail, nth: u64, forget: bool) -> Result<Report> {
        let mut request = Request {
            op: OP,
            flags: what as u32,
            cursor: nth,
            end: u64::from(forget),
            ..Request::default()
        };
        let mut list = vec![0; LIST_BYTES];
        self.direct.raw(&mut request, &mut list)?;
        list.truncate(usize::try_from(request.buffer_size).unwrap_or(0));
        let text = String::from_utf8_lossy(&list);
        let failed = text
            .lines()
            .map(site)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| differs("the hypervisor's list of sites", "numbers and names", &text))?;
        Ok(Report {
            allocations: request.result[0],
            failures: request.result[1],
            free_pages: request.result[3],
            failed: failed.into_iter().filter(|(_, failures)| *failures > 0).collect(),
        })
    }
}

/// Parses a line of the list: the operation and the functions, and how many allocations failed there.
fn site(line: &str) -> Option<((u32, Vec<String>), u64)> {
    let mut words = line.split_whitespace();
    let operation = words.next()?.parse().ok()?;
    let _allocations: u64 = words.next()?.parse().ok()?;
    let failures = words.next()?.parse().ok()?;
    Some(((operation, words.map(ToOwned::to_owned).collect()), failures))
}
