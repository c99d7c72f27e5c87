//! Where what the program makes on the spot goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::CacheError;
use super::seal;
use super::stock::{hold, unused};
use crate::base::cache_folder;

/// How folders for a look are called.
const SCRATCH: &str = "janus-look-";

/// The file in such a folder of which the process that made it holds a lock.
const LOCK: &str = "lock";

/// So old is a folder whose process had the time to take its lock.
const SETTLED: Duration = Duration::from_secs(60);

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
        clear_leftovers();
        let failed = |source| CacheError::Scratch { source };
        let folder = tempfile::Builder::new().prefix(SCRATCH).tempdir().map_err(failed)?;
        let lock = folder.path().join(LOCK);
        std::fs::File::create(&lock).map_err(failed)?;
        hold(&lock);
        Ok(Place::Scratch(Arc::new(folder)))
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
        Ok(if seal::holds(&kept.join(file)) { kept } else { self.folder()?.join("data") })
    }
}

/// Removes the folders of processes that were killed: a signal leaves no time to do so.
fn clear_leftovers() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(SCRATCH);
        if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let lock = entry.path().join(LOCK);
        let age = lock.metadata().and_then(|about| about.modified()).ok().and_then(|then| then.elapsed().ok());
        if age.is_some_and(|age| age >= SETTLED) && unused(&lock).is_some() {
            // Another user's stays.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn folders_of_processes_that_were_killed_go_and_those_in_use_stay() {
        let abandoned = std::env::temp_dir().join(format!("{SCRATCH}abandoned-{}", std::process::id()));
        std::fs::create_dir_all(&abandoned).unwrap();
        let lock = File::create(abandoned.join(LOCK)).unwrap();
        let old = SystemTime::now() - 2 * SETTLED;
        let in_use = Place::scratch().unwrap();
        let in_use_lock = in_use.folder().unwrap().join(LOCK);
        File::options().write(true).open(&in_use_lock).unwrap().set_modified(old).unwrap();
        assert!(abandoned.exists(), "it may have begun just now");
        lock.set_modified(old).unwrap();
        drop(lock);
        clear_leftovers();
        assert!(!abandoned.exists() && in_use_lock.exists());
    }
}
