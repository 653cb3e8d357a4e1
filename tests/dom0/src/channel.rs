//! dom0's second serial port, over which it talks with the lab (see [`lacuna_scenarios::wire`]).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};

use lacuna_scenarios::wire::{Event, Order};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::failure::{Result, differs};

/// COM2; the first port is Xen's console.
const DEVICE: &str = "/dev/ttyS1";

/// The open port.
pub(crate) struct Channel {
    input: BufReader<File>,
    output: File,
}

impl Channel {
    /// Opens the port without echo or line editing.
    pub(crate) fn open() -> Result<Self> {
        let output = File::options().read(true).write(true).open(DEVICE)?;
        let mut settings = tcgetattr(&output)?;
        settings.make_raw();
        tcsetattr(&output, OptionalActions::Now, &settings)?;
        Ok(Self {
            input: BufReader::new(output.try_clone()?),
            output,
        })
    }

    /// Tells the lab something.
    pub(crate) fn send(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_string(event).map_err(std::io::Error::other)?;
        line.push('\n');
        Ok(self.output.write_all(line.as_bytes())?)
    }

    /// Waits for the lab's next order.
    pub(crate) fn next_order(&mut self) -> Result<Order> {
        let mut line = String::new();
        self.input.read_line(&mut line)?;
        serde_json::from_str(line.trim())
            .map_err(|error| differs("the lab's order", "a line of JSON", &format!("{error}: {line:?}")))
    }
}
