//! Decoders of other people's files, kept from ending the program.
//!
//! The `parquet`, `image` and `tokenizers` crates report damage as errors, but they index and assert in many places that
//! hostile bytes can steer (`ColumnChunkMetaData::byte_range`, for one, asserts that offsets are not negative). A damaged
//! file is the user's to know of in one line, so such a panic is turned into an error, and its message kept off stderr.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// Resets the thread's mark also when `work` unwinds past it.
struct Quiet {
    before: bool,
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(self.before);
    }
}

/// Runs `work`; a panic in it becomes `Err` with its message.
///
/// What `work` was changing when it panicked must not be used afterwards: callers drop their reader on `Err`.
///
/// # Errors
/// The message of the panic.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    let _quiet = Quiet { before: QUIET.replace(true) };
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| message(payload.as_ref()))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("the decoder gave up ({})", text.unwrap_or("no reason given").lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_thread_goes_on() {
        assert_eq!(catch(|| 3), Ok(3));
        let reason = catch(|| -> usize { panic!("index {} is too far", 9) });
        assert_eq!(reason, Err("the decoder gave up (index 9 is too far)".into()));
        assert!(!QUIET.get(), "the mark is taken back");
        assert_eq!(catch(|| catch(|| panic!("inner")).is_err()), Ok(true));
    }
}
