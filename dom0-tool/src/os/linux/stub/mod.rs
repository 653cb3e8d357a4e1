//! The stub: a guest kernel's own definitions, compiled against its headers and asked.
//!
//! [`headers`] finds the header tree of one kernel build, `prepare` makes what a tree that was never built
//! lacks, [`compile`] makes a small static program from it with one of the compilers of [`toolchain`],
//! [`run`] starts that program with nothing but read, write and exit allowed, and [`learn`] finds out by
//! experiment which bits of a page descriptor make it free, then proves the finding on random descriptors.
//! The result is a [`Layout`].

pub mod compile;
pub mod headers;
pub mod learn;
mod prepare;
pub mod run;
pub mod toolchain;

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

/// How to ask a header tree.
#[derive(Clone, Copy, Debug, Default)]
pub struct StubOptions<'o> {
    /// The kernel's configuration, for sources that were never configured.
    pub config: Option<&'o Path>,
    /// What the guest calls its kernel, for sources that were never built and do not know.
    pub release: Option<&'o str>,
    /// With which compiler; the first that is installed if left out.
    pub compiler: Option<toolchain::Compiler>,
}

/// Makes the layout of the kernel whose headers, or sources, are at `headers`.
///
/// # Errors
/// [`StubError`].
pub fn layout_from_headers(headers: &Path, options: &StubOptions<'_>) -> Result<Layout, StubError> {
    let tree = headers::HeaderTree::open(headers, options.config)?;
    let compiler = options.compiler.unwrap_or_else(toolchain::Compiler::installed);
    let program = compile::compile(&tree, compiler, options.release)?;
    let mut stub = run::Stub::start(&program)?;
    learn::learn(&mut stub, &tree, compiler).map_err(|error| match error {
        learn::LearnError::Run(error) => StubError::Run(error),
        other => StubError::Learn(other),
    })
}
