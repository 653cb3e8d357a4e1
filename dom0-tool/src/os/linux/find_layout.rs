//! Finds the layout of a guest's kernel: a file, or headers that are compiled and asked.

use std::path::{Path, PathBuf};

use super::identify::{Identified, architecture};
use super::layout::Layout;
use super::packages::{HeaderCache, KernelName};
use super::stub::headers::HeaderTree;
use super::stub::toolchain::Compiler;
use super::stub::{StubOptions, layout_from_headers};
use crate::failure::{Cause, Class, Failure};
use crate::os::{LayoutChoice, Sources};
use crate::progress::{Progress, Remark, Step};

/// The layout that `sources` want for `kernel`. With [`LayoutChoice::Auto`] that is none where none is to be
/// had.
///
/// # Errors
/// Why the layout that is wanted cannot be had.
pub fn wanted_layout<P: Progress + ?Sized>(
    sources: &Sources,
    kernel: &Identified,
    progress: &mut P,
) -> Result<Option<Layout>, Failure> {
    let release = kernel.release.as_str();
    let named = sources.layout.is_some() || sources.headers.is_some();
    match sources.choice {
        LayoutChoice::Vmcoreinfo | LayoutChoice::Btf => return Ok(None),
        LayoutChoice::Auto if !named => {
            let places = header_places(sources, kernel);
            let there = Layout::file_in(&sources.layouts, release).is_file()
                || places.iter().any(|place| place.is_dir());
            if !there {
                progress.remark(Remark::NoLayout);
                return Ok(None);
            }
        }
        LayoutChoice::Auto | LayoutChoice::Stub => {}
    }
    if sources.choice == LayoutChoice::Auto && kernel.note_at.is_some() && lacks_compiler(sources, release) {
        progress.remark(Remark::NoCompiler);
        return Ok(None);
    }
    let (layout, from) = layout_for(sources, kernel, progress)?;
    progress.remark(Remark::LayoutFrom(from));
    Ok(Some(layout))
}

/// Whether headers would have to be compiled, and there is nothing to do it with. A compiler that is named is
/// wanted, and an error if it is not there.
fn lacks_compiler(sources: &Sources, release: &str) -> bool {
    let is_made = sources.layout.is_some()
        || sources.headers.is_none() && Layout::file_in(&sources.layouts, release).is_file();
    !is_made && sources.compiler.is_none() && !Compiler::installed().is_here()
}

/// Where the headers of `kernel` may be: where distributions put them, and where they were fetched to.
fn header_places(sources: &Sources, kernel: &Identified) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = HeaderTree::usual_places(&kernel.release).into();
    if let Ok(name) = KernelName::new(&kernel.release, architecture(kernel.space.levels)) {
        places.push(HeaderCache::new(&sources.header_cache).place(&name));
    }
    places
}

/// The layout for `kernel`, and where it came from.
fn layout_for<P: Progress + ?Sized>(
    sources: &Sources,
    kernel: &Identified,
    progress: &mut P,
) -> Result<(Layout, String), Failure> {
    let release = kernel.release.as_str();
    if let Some(file) = &sources.layout {
        return Ok((Layout::load(file)?, format!("layout {}", file.display())));
    }
    if let Some(headers) = &sources.headers {
        return Ok((
            from_headers(headers, sources, Some(release), progress)?,
            format!("headers {}", headers.display()),
        ));
    }
    let file = Layout::file_in(&sources.layouts, release);
    if file.is_file() {
        return Ok((Layout::load(&file)?, format!("layout {}", file.display())));
    }
    let places = header_places(sources, kernel);
    let Some(headers) = places.iter().find(|place| place.is_dir()) else {
        let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        return Err(Failure::new(
            Class::NotFound,
            format!(
                "neither a layout nor the headers of the guest's kernel {release} are here: looked for {} and {}",
                file.display(),
                looked.join(", ")
            ),
            format!(
                "`lacuna profile fetch` for this guest, or install linux-headers-{release}, or make the layout elsewhere with `lacuna profile build --headers DIR --out {release}.layout.json` and put it into {}",
                sources.layouts.display()
            ),
        )
        .because(Cause::NoLayout));
    };
    let layout = from_headers(headers, sources, Some(release), progress)?;
    progress.remark(match layout.save(&file) {
        Ok(()) => Remark::LayoutKept(file),
        // Making it again next time costs seconds: not a failure.
        Err(error) => Remark::LayoutNotKept(error.to_string()),
    });
    Ok((layout, format!("headers {}", headers.display())))
}

/// Makes a layout from headers. `release` is what the guest calls its kernel, where there is a guest.
///
/// # Errors
/// Why the headers gave none.
pub fn from_headers<P: Progress + ?Sized>(
    headers: &Path,
    sources: &Sources,
    release: Option<&str>,
    progress: &mut P,
) -> Result<Layout, Failure> {
    let options = StubOptions {
        config: sources.config.as_deref(),
        release,
        compiler: sources.compiler,
    };
    progress.begin(Step::AskHeaders);
    let layout = layout_from_headers(headers, &options);
    progress.end();
    Ok(layout?)
}
