//! Where what the program makes on the spot goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::CacheError;
use crate::base::cache_folder;

/// Where bases and drawn tables that are not there yet are made.
#[derive(Debug, Clone)]
pub enum Place {
    /// In the cache, where they stay.
    Cache,
    /// In a folder that goes with the last copy of this value: for a look that leaves nothing behind.
    Scratch(Arc<TempDir>),
}

impl Place {
    /// A folder of the system's for temporary files.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn scratch() -> Result<Self, CacheError> {
        let folder = tempfile::Builder::new().prefix("janus-look-").tempdir();
        Ok(Place::Scratch(Arc::new(folder.map_err(|source| CacheError::Scratch { source })?)))
    }

    /// Whether nothing is to be left behind.
    pub fn is_scratch(&self) -> bool {
        matches!(self, Place::Scratch(_))
    }

    /// The folder that stands for the cache's.
    ///
    /// # Errors
    /// As [`cache_folder`].
    pub(crate) fn folder(&self) -> Result<PathBuf, CacheError> {
        match self {
            Place::Cache => cache_folder(),
            Place::Scratch(folder) => Ok(folder.path().to_path_buf()),
        }
    }

    /// Where a drawn table of this name is, or goes.
    ///
    /// # Errors
    /// As [`cache_folder`].
    pub(crate) fn data_folder(&self, file: &Path) -> Result<PathBuf, CacheError> {
        let kept = cache_folder()?.join("data");
        Ok(if kept.join(file).is_file() { kept } else { self.folder()?.join("data") })
    }
}
