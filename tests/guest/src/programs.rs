//! The programs of guests that run real ones: where they are, how each is called, and what has to come of it.
//! The lab puts them there, from the distribution.

use serde::{Deserialize, Serialize};

/// The compiler proper of GCC's C++.
pub const COMPILER: &str = "/usr/libexec/programs/cc1plus";
/// The assembler.
pub const ASSEMBLER: &str = "/usr/libexec/programs/as";
/// The program that is compiled, after the preprocessor.
pub const SOURCE: &str = "/usr/share/programs/source.ii";
/// The compiler's options, but for the files.
pub const OPTIONS: &[&str] = &["-quiet", "-fpreprocessed", "-O1"];
/// Python.
pub const PYTHON: &str = "/usr/bin/python3";
/// The web shop and its customers.
pub const SHOP: &str = "/usr/share/programs/shop.py";
/// Where the shop has its files, once it serves: [`SERVING`] below it.
pub const SHOP_FILES: &str = "/tmp/shop";
/// What a server writes when it serves, below [`SHOP_FILES`].
pub const SERVING: &str = "port";
/// The Java virtual machine.
pub const JAVA: &str = "/usr/lib/jvm/java/bin/java";
/// Its options and the program, but for the classes' place.
pub const JAVA_OPTIONS: &[&str] = &[
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Xmx128m",
];
/// Where the program's classes are.
pub const CLASSES: &str = "/usr/share/programs/classes";
/// The program, the most warehouses, and the orders of each in a step.
pub const WAREHOUSES: &[&str] = &["Warehouses", "4", "4000"];
/// The video encoder.
pub const ENCODER: &str = "/usr/bin/vpxenc";
/// The film.
pub const FILM: &str = "/usr/share/programs/film.y4m";
/// The encoder's options, but for the files.
pub const ENCODER_OPTIONS: &[&str] = &[
    "--codec=vp8",
    "--ivf",
    "--good",
    "--cpu-used=4",
    "--passes=2",
    "--threads=1",
    "--lag-in-frames=25",
    "--auto-alt-ref=1",
    "--target-bitrate=800",
    "--quiet",
];

/// What the programs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// A C++ program is compiled and assembled, by GCC.
    Compile,
    /// Customers of a web shop on Python's server and database, over the guest's loopback: small dynamic pages.
    Banking,
    /// The same shop: dynamic pages with images.
    Ecommerce,
    /// The same shop: large downloads.
    Support,
    /// A Java virtual machine handles orders from warehouses in its heap.
    Orders,
    /// A film is encoded, by vpxenc.
    Video,
}

impl Workload {
    /// Returns its guest's memory, in MiB.
    #[must_use]
    pub const fn guest_mib(self) -> u32 {
        match self {
            Self::Orders => 1024,
            _ => 640,
        }
    }

    /// Returns where the guest has what must come of a program, as the same programs have made it elsewhere.
    #[must_use]
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Compile => "/usr/share/programs/expected.o",
            Self::Banking => "/usr/share/programs/expected-banking",
            Self::Ecommerce => "/usr/share/programs/expected-ecommerce",
            Self::Support => "/usr/share/programs/expected-support",
            Self::Orders => "/usr/share/programs/expected-orders",
            Self::Video => "/usr/share/programs/expected.ivf",
        }
    }

    /// Returns the mix of the shop's customers, by the shop's own name; nothing for what is no shop.
    #[must_use]
    pub const fn mix(self) -> Option<&'static str> {
        match self {
            Self::Banking => Some("banking"),
            Self::Ecommerce => Some("ecommerce"),
            Self::Support => Some("support"),
            Self::Compile | Self::Orders | Self::Video => None,
        }
    }

    /// Returns the command line of the server that runs beside the programs, if they have one.
    #[must_use]
    pub fn server(self) -> Option<Vec<String>> {
        self.mix().map(|_| line(&[PYTHON, SHOP, "serve", SHOP_FILES]))
    }

    /// Returns the command lines of a program, in their order, and the file that it leaves its result in; its
    /// result is what the last one says if there is no such file. Names of files begin with `at`.
    #[must_use]
    pub fn steps(self, at: &str) -> (Vec<Vec<String>>, Option<String>) {
        match self {
            Self::Compile => {
                let (assembly, object) = (format!("{at}.s"), format!("{at}.o"));
                let mut compile = line(&[COMPILER]);
                compile.extend(line(OPTIONS));
                compile.extend(line(&[SOURCE, "-o", &assembly]));
                let assemble = line(&[ASSEMBLER, &assembly, "-o", &object]);
                (vec![compile, assemble], Some(object))
            }
            Self::Banking | Self::Ecommerce | Self::Support => {
                let mix = self.mix().unwrap_or_default();
                (vec![line(&[PYTHON, SHOP, "visit", SHOP_FILES, mix])], None)
            }
            Self::Orders => {
                let mut java = line(&[JAVA]);
                java.extend(line(JAVA_OPTIONS));
                java.extend(line(&["-cp", CLASSES]));
                java.extend(line(WAREHOUSES));
                (vec![java], None)
            }
            Self::Video => {
                let film = format!("{at}.ivf");
                let mut encode = line(&[ENCODER]);
                encode.extend(line(ENCODER_OPTIONS));
                encode.extend(line(&["-o", &film, FILM]));
                (vec![encode], Some(film))
            }
        }
    }
}

fn line(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}
