//! Files that a symbol store keeps compressed (`.pd_`): Microsoft cabinets with one file in them.

use std::io::{Read, Seek, Write};
use std::panic::AssertUnwindSafe;

use crate::os::windows::catch_panic::catch_panic;

/// Unpacks the one file of the cabinet `packed`, or the one called `name`, into `into`; at most `most` bytes.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn unpack(
    packed: impl Read + Seek,
    name: &str,
    most: u64,
    into: &mut impl Write,
) -> Result<(), String> {
    // The cabinet crate is safe Rust; a panic in it leaves at worst a part of a temporary file behind.
    let work = AssertUnwindSafe(|| unpack_or_panic(packed, name, most, into));
    catch_panic(work).unwrap_or_else(|panic| Err(format!("the cabinet is damaged: {panic}")))
}

fn unpack_or_panic(
    packed: impl Read + Seek,
    name: &str,
    most: u64,
    into: &mut impl Write,
) -> Result<(), String> {
    let mut cabinet = cab::Cabinet::new(packed).map_err(|error| format!("not a cabinet: {error}"))?;
    let names: Vec<String> = cabinet
        .folder_entries()
        .flat_map(|folder| {
            folder
                .file_entries()
                .map(|file| file.name().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let chosen = match names.as_slice() {
        [only] => only,
        several => several
            .iter()
            .find(|file| file.eq_ignore_ascii_case(name))
            .ok_or_else(|| format!("the cabinet holds {} files, none called {name}", several.len()))?,
    };
    let file = cabinet
        .read_file(chosen)
        .map_err(|error| format!("the cabinet is damaged: {error}"))?;
    let copied = std::io::copy(&mut file.take(most + 1), into)
        .map_err(|error| format!("the cabinet cannot be unpacked: {error}"))?;
    if copied > most {
        return Err(format!("the cabinet unpacks to more than {most} bytes"));
    }
    Ok(())
}
