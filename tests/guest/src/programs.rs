//! Where a guest that runs real programs has them. The lab puts them there, from the distribution.

/// The compiler proper of GCC's C++.
pub const COMPILER: &str = "/usr/libexec/programs/cc1plus";
/// The assembler.
pub const ASSEMBLER: &str = "/usr/libexec/programs/as";
/// The program that is compiled, after the preprocessor.
pub const SOURCE: &str = "/usr/share/programs/source.ii";
/// What comes of it, as the same compiler has made it elsewhere.
pub const EXPECTED: &str = "/usr/share/programs/expected.o";
/// The compiler's options, but for the files.
pub const OPTIONS: &[&str] = &["-quiet", "-fpreprocessed", "-O1"];
