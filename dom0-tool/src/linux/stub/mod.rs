//! The stub: a guest kernel's own definitions, compiled against its headers and asked.
//!
//! [`headers`] finds the header tree of one kernel build, [`compile`] makes a small static program from it, [`run`]
//! starts that program with nothing but read, write and exit allowed, and [`learn`] finds out by experiment which bits
//! of a page descriptor make it free, then proves the finding on random descriptors. The result is a
//! [`Layout`](super::layout::Layout).

pub mod compile;
pub mod headers;
pub mod learn;
pub mod run;

use std::path::Path;

use thiserror::Error;

use super::layout::Layout;

/// Why the headers gave no layout.
#[derive(Debug, Error)]
pub enum StubError {
    /// The header tree is not usable.
    #[error(transparent)]
    Headers(#[from] headers::HeadersError),
    /// The stub did not compile.
    #[error(transparent)]
    Compile(#[from] compile::CompileError),
    /// The stub did not run.
    #[error(transparent)]
    Run(#[from] run::RunError),
    /// What the stub does makes no sense, or is not what was learnt.
    #[error(transparent)]
    Learn(#[from] learn::LearnError),
}

/// Makes the layout of the kernel whose headers are at `headers`.
///
/// # Errors
/// [`StubError`].
pub fn layout_from_headers(headers: &Path) -> Result<Layout, StubError> {
    let tree = headers::HeaderTree::open(headers)?;
    let program = compile::compile(&tree)?;
    let mut stub = run::Stub::start(&program)?;
    learn::learn(&mut stub, &tree).map_err(|error| match error {
        learn::LearnError::Run(error) => StubError::Run(error),
        other => StubError::Learn(other),
    })
}
