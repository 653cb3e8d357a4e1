//! The agent's end of the guest's console.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::sync::{Mutex, PoisonError};

use lacuna_guest::{MARK, Order, Reply, Report};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// What the kernel made its console; there even where nothing fills `/dev`.
const CONSOLE: &str = "/dev/console";

/// Returns the device of the last `console=` on the kernel's command line, which is the one that
/// `/dev/console` stands for. It can be made raw; the other cannot.
fn named(command_line: &str) -> Option<String> {
    let mut words = command_line.split_whitespace().rev();
    let console = words.find_map(|word| word.strip_prefix("console="))?;
    Some(format!("/dev/{}", console.split(',').next()?))
}

/// The console, shared by the agent's threads.
pub(crate) struct Console {
    input: Mutex<BufReader<File>>,
    output: Mutex<File>,
}

impl Console {
    /// Opens the console without echo or line editing: dom0 is a program.
    pub(crate) fn open() -> io::Result<Self> {
        let open = |path: &str| File::options().read(true).write(true).open(path);
        let output = match named(&std::fs::read_to_string("/proc/cmdline")?).map(|path| open(&path)) {
            Some(Ok(file)) => file,
            _ => open(CONSOLE)?,
        };
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
        // One write: it is the most that keeps the kernel's own lines out of the middle of this one. The
        // leading line end ends whatever the kernel may have left unfinished.
        let line = format!("\r\n{MARK}{text}\r\n");
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // dom0 waits with a time limit; a console that takes nothing cannot be told about it.
        let _ = output.write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn the_last_console_counts_and_its_speed_is_no_part_of_its_name() {
        assert_eq!(named("console=hvc0 panic=1"), Some("/dev/hvc0".to_owned()));
        assert_eq!(
            named("console=hvc0 quiet console=ttyS0,115200n8 panic=1"),
            Some("/dev/ttyS0".to_owned())
        );
        assert_eq!(named("panic=1"), None);
    }
}
