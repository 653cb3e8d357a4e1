//! Panics of parsers that others wrote, made errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Whether a panic on this thread is going to be caught and told as an error.
    static CATCHES: Cell<bool> = const { Cell::new(false) };
}

/// Runs `parse`. A panic in it is not printed, and its message is returned.
///
/// The caller must be able to do without whatever `parse` had half done.
///
/// # Errors
/// The panic's message.
pub fn catch_panic<T>(parse: AssertUnwindSafe<impl FnOnce() -> T>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !CATCHES.get() {
                before(panic);
            }
        }));
    });
    CATCHES.set(true);
    let result = catch_unwind(parse);
    CATCHES.set(false);
    result.map_err(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        said.unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let result: Result<(), _> = catch_panic(AssertUnwindSafe(|| panic!("index {}", 7)));
        assert_eq!(result, Err("index 7".to_owned()));
        assert_eq!(catch_panic(AssertUnwindSafe(|| 3)), Ok(3));
    }
}
