//! The rows of a trial's table.

use lacuna_scenarios::wire::{Outcome, STEPS, Step};

use crate::failure::Result;
use crate::host::Host;

/// What was done so far.
#[derive(Default)]
pub(super) struct Steps {
    rows: Vec<Step>,
    current: String,
}

impl Steps {
    /// Begins the step called `name`.
    pub(super) fn begin(&mut self, host: &mut Host, name: &str) -> Result<()> {
        name.clone_into(&mut self.current);
        host.note(name)
    }

    /// Ends it, and tells the lab all rows.
    pub(super) fn end(&mut self, host: &mut Host, outcome: Outcome, detail: &str) -> Result<()> {
        self.rows.push(Step {
            name: self.current.clone(),
            outcome,
            detail: detail.to_owned(),
        });
        let rows = serde_json::to_value(&self.rows).map_err(std::io::Error::other)?;
        host.figure(STEPS, rows)
    }
}
