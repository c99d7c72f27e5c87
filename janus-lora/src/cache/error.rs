//! What can be wrong with a cache's settings.

use janus_core::Diagnose;

use super::store::LIMIT_VARIABLE;

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The limit is no number.
    #[error("the environment variable `{LIMIT_VARIABLE}` is `{value}`, expected a number of bytes")]
    Limit {
        /// What it is.
        value: String,
    },
}

impl Diagnose for CacheError {
    fn hints(&self) -> Vec<String> {
        vec![
            "for example 20000000000; 0 turns the cache off, and without the variable it has a limit of its own".into(),
        ]
    }
}
