//! Builds profiles and layouts, and reads those that were built.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lacuna_core::{MAX_PROFILE_BYTES, Profile};

use super::Observer;
use super::guest::{Guest, Live, with_dumped_kernel};
use crate::failure::{Class, Failure};
use crate::os::linux::find_layout::from_headers;
use crate::os::linux::layout::Layout;
use crate::os::{BuiltProfile, Kernel, Sources};
use crate::output::{refuse_inputs, write_whole};
use crate::xen::answer::explain_status;
use crate::xen::engine::EngineError;

/// Builds the profile of a guest, and writes it to `out`.
///
/// # Errors
/// Why there is none, or why it was not written.
pub fn build<O: Observer + ?Sized>(
    guest: &Guest,
    sources: &Sources,
    out: Option<&Path>,
    observer: &mut O,
) -> Result<(Kernel, BuiltProfile), Failure> {
    if let Some(out) = out {
        refuse_inputs(out, inputs(guest, sources))?;
    }
    let (kernel, built) = match guest {
        Guest::Domain(text) => {
            Live::open(text)?.with_kernel(sources, observer, |memory, kernel, cpus, observer| {
                let built = kernel.build(memory, cpus, sources, observer)?;
                observer.built(&built);
                Ok((kernel.clone(), built))
            })
        }
        Guest::Dump(file) => {
            let mut dump = file.open(observer)?;
            with_dumped_kernel(&mut dump, sources, observer, |dump, kernel, cpus, observer| {
                let built = kernel.build(dump, cpus, sources, observer)?;
                observer.built(&built);
                Ok((kernel, built))
            })
        }
    }?;
    if let Some(out) = out {
        let encoded = encode(built.profile())?;
        write_whole(out, |file| file.write_all(&encoded))
            .map_err(|error| Failure::plain(Class::Failed, format!("{}: {error}", out.display())))?;
    }
    Ok((kernel, built))
}

/// Makes the layout of a kernel from its headers alone, and writes it to `out`. `release` is what the kernel
/// calls itself, for sources that were never built.
///
/// # Errors
/// Why there is none, or why it was not written.
pub fn build_layout<O: Observer + ?Sized>(
    headers: &Path,
    sources: &Sources,
    release: Option<&str>,
    out: Option<&Path>,
    observer: &mut O,
) -> Result<Layout, Failure> {
    if let Some(out) = out {
        refuse_inputs(out, named(sources))?;
    }
    let layout = from_headers(headers, sources, release, observer)?;
    if let Some(out) = out {
        layout.save(out)?;
    }
    Ok(layout)
}

/// Returns the files that are read for a guest.
pub(super) fn inputs<'g>(guest: &'g Guest, sources: &'g Sources) -> impl Iterator<Item = &'g Path> {
    let dump = match guest {
        Guest::Domain(_) => None,
        Guest::Dump(dump) => Some([Some(dump.file.as_path()), dump.registers.as_deref()]),
    };
    dump.into_iter().flatten().flatten().chain(named(sources))
}

/// Returns the files that `sources` name.
fn named(sources: &Sources) -> impl Iterator<Item = &Path> {
    [
        &sources.layout,
        &sources.system_map,
        &sources.config,
        &sources.symbols.pdb,
    ]
    .into_iter()
    .filter_map(|file: &Option<PathBuf>| file.as_deref())
}

/// Encodes a profile in the form that the hypervisor takes.
///
/// # Errors
/// It does not fit.
pub fn encode(profile: &Profile) -> Result<Vec<u8>, Failure> {
    let mut buffer = vec![0; MAX_PROFILE_BYTES];
    let encoded = profile.encode(&mut buffer).map_err(|error| {
        let (status, values) = error.status();
        let why = explain_status(status, &values).what;
        Failure::plain(Class::Failed, format!("the profile cannot be encoded: {why}"))
    })?;
    Ok(encoded.to_vec())
}

/// Decodes and checks a profile, with the hypervisor's own words for what is wrong.
///
/// # Errors
/// What is wrong.
pub fn decode(bytes: &[u8]) -> Result<Profile, Failure> {
    Profile::decode(bytes).map_err(|error| {
        let (status, values) = error.status();
        EngineError::Refused { status, values }.into()
    })
}

/// Reads a profile file, or the beginning of any other file.
///
/// # Errors
/// The file cannot be read.
pub fn read_file(file: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: std::io::Error| {
        let class = if error.kind() == std::io::ErrorKind::NotFound {
            Class::NotFound
        } else {
            Class::Failed
        };
        Failure::plain(class, format!("{}: {error}", file.display()))
    };
    let mut bytes = Vec::new();
    File::open(file)
        .map_err(failed)?
        .take(MAX_PROFILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// What a file holds, or what a domain has.
#[derive(Debug)]
pub enum LayoutOrProfile {
    /// A layout.
    Layout(Box<Layout>),
    /// A profile, and its bytes.
    Profile(Box<Profile>, usize),
}

/// Reads a profile or a layout: of the file `what`, or else of the domain with this number or name.
///
/// # Errors
/// It is none, or there is none.
pub fn show(what: &str) -> Result<LayoutOrProfile, Failure> {
    let file = Path::new(what);
    let bytes = if file.is_file() {
        let bytes = read_file(file)?;
        if bytes.first() == Some(&b'{') {
            return Ok(LayoutOrProfile::Layout(Box::new(Layout::load(file)?)));
        }
        bytes
    } else {
        Live::open(what)?.engine.get_profile()?
    };
    Ok(LayoutOrProfile::Profile(Box::new(decode(&bytes)?), bytes.len()))
}
