//! `lacuna identify`.

use serde_json::Value;

use super::Out;
use super::cli::Identify;
use super::render::kernel_json;
use super::terminal::Terminal;
use crate::failure::Failure;
use crate::ops::identify::identify;
use crate::os::Sources;

pub(super) fn run(arguments: &Identify, out: Out) -> Result<Value, Failure> {
    let sources = Sources {
        symbols: (&arguments.symbols).into(),
        system_map: arguments.system_map.clone(),
        layouts: arguments.layouts.clone(),
        ..Sources::default()
    };
    let kernel = identify(&arguments.guest.chosen()?, &sources, &mut Terminal::new(out))?;
    Ok(kernel_json(&kernel))
}
