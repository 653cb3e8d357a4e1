//! Shows on a terminal how an operation gets on.

use indicatif::ProgressBar;
use lacuna_core::OfflineScan;

use super::{Out, dedup, progress, render};
use crate::ops::Observer;
use crate::ops::dedup::{Mode, Round};
use crate::os::{BuiltProfile, Kernel};
use crate::progress::{Progress, Remark, Step};
use crate::source::dump::Dump;
use crate::xen::engine::ScanFigures;

/// A terminal, or whatever standard output is.
pub(super) struct Terminal {
    out: Out,
    bar: Option<ProgressBar>,
    /// Of a scan of a Linux guest the profile is not shown: `lacuna profile build` does that, at length.
    pub(super) is_scan: bool,
    /// What rounds look for.
    pub(super) mode: Mode,
}

impl Terminal {
    pub(super) fn new(out: Out) -> Self {
        Self {
            out,
            bar: None,
            is_scan: false,
            mode: Mode::default(),
        }
    }
}

impl Progress for Terminal {
    fn begin(&mut self, step: Step) {
        self.end();
        self.bar = Some(match step {
            Step::SearchForLinux => progress::over_memory("searching for the kernel"),
            Step::SearchForWindows => progress::over_memory("searching for a Windows kernel"),
            Step::AskHeaders => progress::spinner("asking the kernel headers"),
            Step::FetchHeaders => progress::spinner("looking for the headers"),
            Step::FetchPdb => progress::over_download(),
            Step::ScanDump => progress::over_memory("scanning"),
            Step::ScanGuest => progress::spinner("scanning"),
            Step::Round(number) => progress::spinner(format!("round {number}")),
        });
    }

    fn advance(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            // A server may not say how much there is.
            if total > 0 {
                bar.set_length(total);
            }
            bar.set_position(done);
        }
    }

    fn describe(&mut self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn remark(&mut self, remark: Remark) {
        self.out.line(match remark {
            Remark::NoLayout => {
                "layout      no headers of this kernel here: the guest's own memory has to do".to_owned()
            }
            Remark::NoCompiler => {
                "layout      no gcc or clang here for the headers: the guest's own memory has to do (its BTF, where it has one)"
                    .to_owned()
            }
            Remark::LayoutFrom(from) => format!("layout      {from}"),
            Remark::LayoutKept(file) => format!("kept the layout as {}", file.display()),
            Remark::LayoutNotKept(why) => format!("the layout could not be kept for next time: {why}"),
            Remark::LookingFor(path) => format!("looking for {path}"),
            Remark::PassedOver(image) => format!("passed over {image}"),
            Remark::Hole(hole) => format!(
                "note        read again as memory without its hole: --hole {:#x}:{:#x}",
                hole.start, hole.end
            ),
            Remark::RefusalNotKept(why) => format!("a migration's log will not tell the reason: {why}"),
        });
    }
}

impl Observer for Terminal {
    fn dump_opened(&mut self, dump: &Dump) {
        self.out.line(format!(
            "dump        {}, {} extents, registers of {} virtual CPU(s)",
            dump.format().name(),
            dump.extents().len(),
            dump.cpus.len()
        ));
        for remark in &dump.remarks {
            self.out.line(format!("note        {remark}"));
        }
    }

    fn identified(&mut self, kernel: &Kernel) {
        render::show_kernel(kernel, self.out);
    }

    fn built(&mut self, built: &BuiltProfile) {
        if !(self.is_scan && matches!(built, BuiltProfile::Linux(_))) {
            render::show_built(built, self.out);
        }
    }

    fn scanned(&mut self, scanned: &ScanFigures) {
        render::scan::show_figures(scanned, self.out);
    }

    fn dump_scanned(&mut self, built: &BuiltProfile, scanned: &OfflineScan) {
        render::show_dump_scan(built, scanned, self.out);
    }

    fn round_done(&mut self, number: u64, round: &Round) {
        for line in dedup::lines(round, number, self.mode) {
            self.out.line(line);
        }
    }
}
