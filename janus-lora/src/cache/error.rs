//! What can be wrong with a cache's settings.

use janus_core::Diagnose;
use janus_core::home::HomeError;

use super::store::LIMIT_VARIABLE;

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The folder begins with a home folder that is not known.
    #[error("environment variable `{variable}` cannot be used")]
    Folder {
        /// Its name.
        variable: &'static str,
        /// Why.
        source: HomeError,
    },
    /// The limit is no number.
    #[error("the environment variable `{LIMIT_VARIABLE}` is `{value}`, expected a number of bytes")]
    Limit {
        /// What it is.
        value: String,
    },
}

impl Diagnose for CacheError {
    fn hints(&self) -> Vec<String> {
        if let CacheError::Folder { source, .. } = self {
            return source.hints();
        }
        vec![
            "for example 20000000000; 0 turns the cache off, and without the variable it has a limit of its own".into(),
        ]
    }
}
