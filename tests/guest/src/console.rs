//! The agent's end of the guest's console.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::sync::{Mutex, PoisonError};

use lacuna_guest::{MARK, Order, Reply, Report};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// The Xen console of a PVH guest.
const DEVICE: &str = "/dev/hvc0";

/// The console, shared by the agent's threads.
pub(crate) struct Console {
    input: Mutex<BufReader<File>>,
    output: Mutex<File>,
}

impl Console {
    /// Opens the console without echo or line editing: dom0 is a program.
    pub(crate) fn open() -> io::Result<Self> {
        let output = File::options().read(true).write(true).open(DEVICE)?;
        let mut settings = tcgetattr(&output)?;
        settings.make_raw();
        tcsetattr(&output, OptionalActions::Now, &settings)?;
        Ok(Self {
            input: Mutex::new(BufReader::new(output.try_clone()?)),
            output: Mutex::new(output),
        })
    }

    /// Waits for the next order. The inner error is about a line that is none.
    pub(crate) fn next_order(&self) -> io::Result<Result<Order, String>> {
        let mut line = String::new();
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        if input.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(line.trim()).map_err(|error| format!("{error}: {}", line.trim())))
    }

    /// Says `report` in answer to the order `id`, or by itself for 0.
    pub(crate) fn say(&self, id: u32, report: Report) {
        let Ok(text) = serde_json::to_string(&Reply { id, report }) else {
            return;
        };
        // One write: it is the most that keeps the kernel's own lines out of the middle of this one. The leading line
        // end ends whatever the kernel may have left unfinished.
        let line = format!("\r\n{MARK}{text}\r\n");
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // dom0 waits with a time limit; a console that takes nothing cannot be told about it.
        let _ = output.write_all(line.as_bytes());
    }
}
