//! The run folder: new, or one that a run left behind; held by one process at a time.
//!
//! `.lock` marks a folder as a run's and carries the lock, which the system releases with the process that holds it.
//! `adapter_model.safetensors` is the last file that a run writes: where it lies, the run is over.

use std::fs::TryLockError;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use janus_core::input;
use janus_core::output::{OutputError, require_new_folder};

use super::TrainError;
use super::checkpoint;
use super::metrics::require_regular;
use crate::adapter::WEIGHTS_FILE;
use crate::error::Result;
use crate::report::samples;

/// Marks and locks a run folder.
const LOCK_FILE: &str = ".lock";
/// What stands in it.
const MARK: &[u8] = b"janus run\n";

/// The folder of one run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    resumed: bool,
    /// Held while this value lives.
    lock: Option<fs::File>,
    locked: bool,
}

impl RunFolder {
    /// A folder that is new or empty. Nothing is made yet.
    ///
    /// # Errors
    /// There is something in it; [`TrainError::RunExists`] where that is a run.
    pub fn fresh(path: &Path) -> Result<Self> {
        match require_new_folder(path) {
            Err(OutputError::NotEmpty { .. }) if is_run(path) => {
                Err(TrainError::RunExists { folder: path.to_path_buf() }.into())
            }
            new => Ok(new.map(|()| Self { path: path.to_path_buf(), resumed: false, lock: None, locked: false })?),
        }
    }

    /// The folder of a run to go on with, locked; where there is nothing, a new one.
    ///
    /// # Errors
    /// [`TrainError::NotARun`] for a folder of something else, [`TrainError::Link`] for one with a link that leads out of
    /// it, [`TrainError::Busy`] where another process holds it.
    pub fn resume(path: &Path) -> Result<Self> {
        match require_new_folder(path) {
            Err(OutputError::NotEmpty { .. }) if is_run(path) => {
                let mut folder = Self { path: path.to_path_buf(), resumed: true, lock: None, locked: false };
                // A run appends to its files and removes its checkpoints: not through links that lead elsewhere.
                if let Some(link) = input::stray_link(path).map_err(|source| folder.failed(source))? {
                    return Err(TrainError::Link { folder: path.to_path_buf(), link }.into());
                }
                folder.take_lock()?;
                Ok(folder)
            }
            Err(OutputError::NotEmpty { .. }) => Err(TrainError::NotARun { folder: path.to_path_buf() }.into()),
            new => Ok(new.map(|()| Self { path: path.to_path_buf(), resumed: false, lock: None, locked: false })?),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a run was in it before.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether a lock keeps other processes out; not every file system knows locks.
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// Makes the folder where it is new, locks and marks it; takes away what an earlier process left half written.
    ///
    /// # Errors
    /// Another process was faster, or the system's.
    pub fn claim(&mut self) -> Result<()> {
        if self.lock.is_none() {
            fs::create_dir_all(&self.path).map_err(|source| self.failed(source))?;
            self.take_lock()?;
            let only_ours = entries(&self.path).map_err(|source| self.failed(source))?;
            if only_ours.iter().any(|name| name != LOCK_FILE) {
                return Err(OutputError::NotEmpty { path: self.path.clone() }.into());
            }
        }
        self.mark().map_err(|source| self.failed(source))?;
        remove_leftovers(&self.path).map_err(|source| self.failed(source))
    }

    /// Takes the finished adapter away, for the run that it was the end of goes on: the last checkpoint holds it, too.
    ///
    /// # Errors
    /// The system's.
    pub fn reopen(&self) -> Result<()> {
        match fs::remove_file(self.path.join(WEIGHTS_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, source: io::Error) -> crate::error::Error {
        TrainError::Write { path: self.path.clone(), source }.into()
    }

    fn take_lock(&mut self) -> Result<()> {
        let path = self.path.join(LOCK_FILE);
        require_regular(&path).map_err(|source| TrainError::Write { path: path.clone(), source })?;
        let opened = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = opened.map_err(|source| self.failed(source))?;
        self.locked = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => return Err(TrainError::Busy { folder: self.path.clone() }.into()),
            Err(TryLockError::Error(_)) => false,
        };
        self.lock = Some(file);
        Ok(())
    }

    fn mark(&mut self) -> io::Result<()> {
        match &mut self.lock {
            Some(file) if file.metadata()?.len() != MARK.len() as u64 => {
                file.set_len(0)?;
                file.write_all(MARK)
            }
            _ => Ok(()),
        }
    }
}

/// Whether the folder holds a run that is over.
pub fn is_finished(path: &Path) -> bool {
    path.join(WEIGHTS_FILE).is_file() && is_run(path)
}

/// Whether a folder is recognisably that of a run: by its mark, by a checkpoint, or because a run died before it marked it.
pub fn is_run(path: &Path) -> bool {
    let mut start = Vec::new();
    let lock = input::open(&path.join(LOCK_FILE)).and_then(|file| file.take(MARK.len() as u64).read_to_end(&mut start));
    match lock {
        Ok(_) if start == MARK => true,
        Ok(_) if entries(path).is_ok_and(|names| names == [LOCK_FILE]) => true,
        _ => !checkpoint::steps(path).is_empty(),
    }
}

fn entries(path: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Removes what stands under a temporary name here, among the checkpoints and among the samples: nobody else writes, so it
/// was left behind.
fn remove_leftovers(path: &Path) -> io::Result<()> {
    let sampled = path.join(samples::FOLDER);
    let mut folders = vec![path.to_path_buf(), path.join(checkpoint::FOLDER), sampled.clone()];
    if sampled.is_dir() {
        folders.extend(entries(&sampled)?.iter().map(|name| sampled.join(name)));
    }
    for folder in folders {
        // Links of what a run writes lead elsewhere.
        let is_own = folder == path || fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.is_dir());
        if !is_own {
            continue;
        }
        for name in entries(&folder)?.iter().filter(|name| name.starts_with('.') && name.contains(".tmp-")) {
            let leftover = folder.join(name);
            match fs::symlink_metadata(&leftover)?.is_dir() {
                true => fs::remove_dir_all(&leftover)?,
                false => fs::remove_file(&leftover)?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_run_folder_is_told_from_any_other() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        assert!(!RunFolder::resume(&path).unwrap().is_resumed());
        assert!(!path.exists(), "asking makes nothing");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
        assert!(matches!(RunFolder::fresh(&path), Err(Error::Core(_))));
        assert!(matches!(RunFolder::resume(&path), Err(Error::Train(TrainError::NotARun { .. }))));
        fs::write(path.join(LOCK_FILE), "another program's").unwrap();
        assert!(matches!(RunFolder::resume(&path), Err(Error::Train(TrainError::NotARun { .. }))));
        fs::write(path.join(LOCK_FILE), MARK).unwrap();
        assert!(matches!(RunFolder::fresh(&path), Err(Error::Train(TrainError::RunExists { .. }))));
        assert!(RunFolder::resume(&path).unwrap().is_resumed());
        // Killed between making the lock and marking it.
        fs::remove_file(path.join("notes.txt")).unwrap();
        fs::write(path.join(LOCK_FILE), "").unwrap();
        assert!(RunFolder::resume(&path).unwrap().is_resumed());
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_written_through_a_link() {
        use std::os::unix::fs::symlink;
        let parent = tempfile::tempdir().unwrap();
        let (path, victim) = (parent.path().join("run"), parent.path().join("victim"));
        fs::create_dir_all(path.join("checkpoints/step-1")).unwrap();
        fs::write(&victim, "mine").unwrap();
        for name in [LOCK_FILE, "metrics.jsonl", "checkpoints/step-1/state.json"] {
            symlink(&victim, path.join(name)).unwrap();
            let refused = RunFolder::resume(&path);
            assert!(
                matches!(refused, Err(Error::Train(TrainError::Link { ref link, .. })) if link == &path.join(name))
            );
            fs::remove_file(path.join(name)).unwrap();
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        assert!(RunFolder::resume(&path).unwrap().is_resumed());
    }

    #[test]
    fn one_at_a_time_and_leftovers_go() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("deep/run");
        let (mut one, mut two) = (RunFolder::fresh(&path).unwrap(), RunFolder::fresh(&path).unwrap());
        one.claim().unwrap();
        assert!(one.is_locked() && is_run(&path) && !is_finished(&path));
        assert!(matches!(two.claim(), Err(Error::Train(TrainError::Busy { .. }))));
        assert!(matches!(RunFolder::resume(&path), Err(Error::Train(TrainError::Busy { .. }))));
        for name in [
            ".recipe.toml.tmp-x",
            "checkpoints/.step-3.tmp-y/state.json",
            "checkpoints/step-2/state.json",
            "samples/rows/.0-0.png.tmp-z",
            "samples/rows/0-1.png",
            "kept",
        ] {
            fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
            fs::write(path.join(name), "half").unwrap();
        }
        drop(one);
        let mut again = RunFolder::resume(&path).unwrap();
        again.claim().unwrap();
        assert_eq!(entries(&path.join("checkpoints")).unwrap(), ["step-2"]);
        let mut names = entries(&path).unwrap();
        names.sort();
        assert_eq!(names, [".lock", "checkpoints", "kept", "samples"]);
        assert_eq!(entries(&path.join("samples/rows")).unwrap(), ["0-1.png"]);
        drop(again);
        // A second fresh run that was slower than a whole first one.
        assert!(matches!(two.claim(), Err(Error::Core(_))));
    }
}
