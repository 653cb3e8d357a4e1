//! dom0's image with a guest that runs programs of the distribution's: GCC's C++ compiler and the assembler, as
//! the sysroot has them, a program to compile, and what comes of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lacuna_guest::programs::{ASSEMBLER, COMPILER, EXPECTED, OPTIONS, SOURCE};

use crate::context::{Context, Staged};
use crate::error::{IoContext, Result};
use crate::image::{Images, libraries_of, start_guest, step_name};
use crate::key::KeyBuilder;
use crate::process::output;
use crate::setup::Stage;
use crate::sysroot::Sysroot;
use crate::xen::place;

/// The guest's file system in dom0.
const INITRD: &str = "guests/programs.initrd";
/// Says where the sysroot's compiler proper and its assembler are.
const WHERE: &str = "readlink -f \"$(g++ -print-prog-name=cc1plus)\" \"$(command -v as)\"";
/// Preprocesses, compiles and assembles `source.cc` in the directory that it is given, with the compiler that
/// it is given and what follows for options. Line markers name files that the guest has not: left out.
const MAKE: &str = "cd \"$1\" && compiler=$2 && shift 2 && g++ -E -P source.cc -o source.ii && \
    \"$compiler\" \"$@\" source.ii -o source.s && as source.s -o expected.o";

/// The program that is compiled: orders of a shop, kept in the containers of the standard library, so that the
/// compiler has as much to read and to instantiate as with most programs.
const PROGRAM: &str = "\
#include <algorithm>
#include <map>
#include <string>
#include <vector>

struct Order {
    std::string customer;
    std::vector<std::pair<std::string, unsigned>> lines;
};

class Shop {
public:
    void stock(const std::string &item, unsigned count) { stock_[item] += count; }

    bool take(const Order &order) {
        for (const auto &line : order.lines)
            if (stock_[line.first] < line.second)
                return false;
        for (const auto &line : order.lines)
            stock_[line.first] -= line.second;
        orders_[order.customer].push_back(order);
        return true;
    }

    std::vector<std::string> best() const {
        std::vector<std::pair<std::size_t, std::string>> counted;
        for (const auto &orders : orders_)
            counted.emplace_back(orders.second.size(), orders.first);
        std::sort(counted.rbegin(), counted.rend());
        std::vector<std::string> names;
        for (const auto &one : counted)
            names.push_back(one.second);
        return names;
    }

private:
    std::map<std::string, unsigned> stock_;
    std::map<std::string, std::vector<Order>> orders_;
};

std::size_t run(unsigned orders) {
    Shop shop;
    shop.stock(\"apple\", orders);
    shop.stock(\"pear\", orders / 2);
    for (unsigned number = 0; number < orders; number++)
        shop.take({std::to_string(number % 7), {{number % 2 ? \"apple\" : \"pear\", 1}}});
    return shop.best().size();
}
";

/// Makes it: an archive behind dom0's, which the kernel unpacks over that.
pub(crate) fn images(context: &Context, sysroot: &Sysroot, stage: &Stage) -> Result<Images> {
    let image = place(context, stage.series(), "images/programs.cpio");
    let mut key = KeyBuilder::new("images/programs", 1)
        .key(&sysroot.key)
        .file(&stage.images.dom0)?
        .file(&stage.agent)?
        .text(PROGRAM)
        .text(MAKE);
    for option in OPTIONS {
        key = key.text(option);
    }
    context.step(&step_name(stage.series(), "programs"), &key.finish(), |_| {
        let log = context.step_log("images");
        let inside = output(sysroot.command("/", &["sh", "-c", WHERE]), &log)?;
        let mut inside = inside.lines();
        let compiler = inside.next().unwrap_or_default().to_owned();
        let assembler = inside.next().unwrap_or_default().to_owned();
        let made = Staged::directory(place(context, stage.series(), "images/compiled"))?;
        let source = made.path.join("source.cc");
        fs::write(&source, PROGRAM).on("write", &source)?;
        let at = made.path.to_string_lossy();
        let mut arguments = vec!["sh", "-c", MAKE, "sh", &at, &compiler];
        arguments.extend(OPTIONS);
        output(sysroot.command("/", &arguments), &log)?;

        let initrd = Staged::file(place(context, stage.series(), "images/guest-programs.cpio"))?;
        let mut guest = start_guest(&initrd.path, &stage.agent)?;
        let mut libraries = BTreeMap::new();
        for (name, program) in [(COMPILER, &compiler), (ASSEMBLER, &assembler)] {
            let from = sysroot.root.join(program.trim_start_matches('/'));
            guest.file(name.trim_start_matches('/'), &from)?;
            libraries.extend(libraries_of(context, sysroot, &stage.tools, Path::new(program))?);
        }
        for (name, from) in &libraries {
            guest.file(name.trim_start_matches('/'), from)?;
        }
        guest.link("lib", "usr/lib")?;
        guest.link("lib64", "usr/lib64")?;
        for (name, file) in [(SOURCE, "source.ii"), (EXPECTED, "expected.o")] {
            guest.file(name.trim_start_matches('/'), &made.path.join(file))?;
        }
        guest.finish()?;
        stage
            .images
            .extend(&image, |archive| archive.file(INITRD, &initrd.path))?;
        made.commit()?;
        initrd.commit()
    })?;
    Ok(stage.images.with_dom0(image))
}
