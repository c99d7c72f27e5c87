//! What can be wrong with a cache's settings.

use std::io;
use std::path::PathBuf;

use janus_core::home::HomeError;
use janus_core::{Diagnose, Fault};

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
    /// Neither a variable nor the system tells of a folder of one's own.
    #[error("there is no folder for the cache: this user has no home folder")]
    NoHome,
    /// A cache of another user that was not asked for.
    #[error("the cache folder `{}` belongs to another user (number {owner})", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// Number of its owner.
        owner: u32,
    },
    /// The limit is no number.
    #[error("the environment variable `{LIMIT_VARIABLE}` is `{value}`, expected a number of bytes")]
    Limit {
        /// What it is.
        value: String,
    },
    /// There is no place for files that are gone after a look.
    #[error("cannot make a temporary folder in `{}`", std::env::temp_dir().display())]
    Scratch {
        /// Why.
        source: io::Error,
    },
}

impl Diagnose for CacheError {
    fn fault(&self) -> Fault {
        match self {
            CacheError::Folder { .. } | CacheError::NoHome | CacheError::Foreign { .. } | CacheError::Limit { .. } => {
                Fault::Input
            }
            CacheError::Scratch { .. } => Fault::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            CacheError::Folder { source, .. } => source.hints(),
            CacheError::NoHome => vec!["set JANUS_CACHE to a folder that is yours alone".into()],
            CacheError::Foreign { .. } => {
                vec!["set JANUS_CACHE to a folder of yours, or to that one if you trust whose it is".into()]
            }
            CacheError::Limit { .. } => vec![
                "for example 20000000000; 0 turns the cache off, and without the variable it has a limit of its own"
                    .into(),
            ],
            CacheError::Scratch { .. } => vec!["set TMPDIR to a folder with some room".into()],
        }
    }
}
