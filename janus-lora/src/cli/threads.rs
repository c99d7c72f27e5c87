//! One pool of threads for the whole program, of the size the user asks for.
//!
//! Three would grow by themselves: rayon's global pool, in which this program and its matrix products compute; candle's
//! barrier pool, whose threads spin between operations and take the cores from the first; and candle's own rayon pool,
//! which nothing here uses. Only the first is made, the second is made without threads.

use std::num::NonZeroUsize;

use crate::error::{Error, Result};

/// Where the number comes from when `--threads` is not given.
const VARIABLE: &str = "JANUS_THREADS";
/// More threads than any machine has cores; beyond, the system may refuse to start them.
const MOST: usize = 1024;

/// A number of threads.
pub(super) fn parse(text: &str) -> std::result::Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MOST).contains(number));
    number.ok_or_else(|| format!("`{text}` is no number of threads from 1 to {MOST}"))
}

/// Makes the pool. To be called before anything computes, and before any thread is started.
pub(super) fn set_up(asked: Option<usize>) -> Result<()> {
    let threads = match asked.map_or_else(from_environment, |asked| Ok(Some(asked)))? {
        Some(threads) => threads,
        None => default_threads(),
    };
    let mut settings = vec![("RAYON_NUM_THREADS", threads.to_string())];
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        settings.push(("CANDLE_NUM_THREADS", "1".to_owned()));
    }
    for (name, value) in settings {
        // SAFETY: changing the environment is unsound only while another thread may read it. This runs at the start of
        // `main`, before the first thread of the process is started, as `cli::main` asks of its caller.
        unsafe { std::env::set_var(name, value) };
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("janus-{i}"));
    // As large as that of `main` mostly is: a backward walks its graph by recursion.
    let pool = pool.stack_size(8 << 20);
    pool.build_global().map_err(|e| Error::Usage {
        message: format!("cannot start {threads} threads: {e}"),
        hint: "give fewer with `--threads`".into(),
    })
}

fn from_environment() -> Result<Option<usize>> {
    let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) else { return Ok(None) };
    match parse(&text.to_string_lossy()) {
        Ok(threads) => Ok(Some(threads)),
        Err(message) => Err(Error::Usage {
            message: format!("{VARIABLE}: {message}"),
            hint: format!("unset {VARIABLE} for one thread per physical core, or give `--threads`"),
        }),
    }
}

/// `RAYON_NUM_THREADS`, else the physical cores, but no more than this process may use (its affinity, its cgroup).
fn default_threads() -> usize {
    let counted = candle_core::utils::get_num_threads();
    if std::env::var_os("RAYON_NUM_THREADS").is_some() {
        return counted.min(MOST);
    }
    counted.min(std::thread::available_parallelism().map_or(counted, NonZeroUsize::get)).clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counts_of_threads_are_numbers_of_threads() {
        assert_eq!(parse("1"), Ok(1));
        assert_eq!(parse("1024"), Ok(1024));
        for text in ["", "0", "-1", "1.5", "two", "1025", "99999999999999999999"] {
            assert!(parse(text).unwrap_err().contains(text), "{text}");
        }
    }
}
