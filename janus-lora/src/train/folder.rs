//! The run folder: new, or one that a run left behind; held by one process at a time.
//!
//! `.lock` marks a folder as a run's and carries the lock, which the system releases with the process that holds it.
//! `adapter_model.safetensors` is the last file that a run writes: where it lies, the run is over.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use janus_core::directory::{About, Directory, Kind, Place};
use janus_core::output::{OutputError, StagedFolder};
use janus_core::{input, temporary};

use super::TrainError;
use super::checkpoint;
use crate::adapter::WEIGHTS_FILE;
use crate::error::Result;
use crate::report::samples;

/// Marks and locks a run folder.
const LOCK_FILE: &str = ".lock";
/// What stands in it.
const MARK: &[u8] = b"janus run\n";

/// Rights of a run folder, before the user's umask takes some away: never such that all users may write to it.
#[cfg(unix)]
const MODE: u32 = 0o775;

/// The folder of one run.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    resumed: bool,
    /// The folder, once it is there: whatever becomes of its path, the run works in it.
    directory: Option<Directory>,
    /// Keeps others from beginning the same run until there is a lock to hold.
    claim: Option<StagedFolder>,
    /// Held while this value lives.
    lock: Option<File>,
    locked: bool,
}

impl RunFolder {
    /// A folder that is new or empty. Nothing is made yet but a temporary folder that keeps other runs out of it.
    ///
    /// # Errors
    /// There is something in it; [`TrainError::RunExists`] where that is a run, [`TrainError::Busy`] where another process has
    /// begun one, [`TrainError::WorldWritable`] where every user may write to it.
    pub fn fresh(path: &Path) -> Result<Self> {
        match StagedFolder::create(path) {
            Err(OutputError::NotEmpty { .. }) if is_run(path) => {
                Err(TrainError::RunExists { folder: path.to_path_buf() }.into())
            }
            new => Self::claimed(path, new),
        }
    }

    /// The folder of a run to go on with, locked; where there is nothing, a new one.
    ///
    /// # Errors
    /// [`TrainError::NotARun`] for a folder of something else, [`TrainError::Link`] for one with a link that leads out of
    /// it, [`TrainError::Busy`] where another process holds it, [`TrainError::WorldWritable`] where every user may write to it.
    pub fn resume(path: &Path) -> Result<Self> {
        match StagedFolder::create(path) {
            Err(OutputError::NotEmpty { .. }) if is_run(path) => {
                let mut folder = Self::new(path, true);
                let directory = Directory::open(path).map_err(|source| folder.failed(source))?;
                require_private(&directory)?;
                // A run appends to its files and removes its checkpoints: not through links that lead elsewhere.
                if let Some(link) = input::stray_link(path).map_err(|source| folder.failed(source))? {
                    return Err(TrainError::Link { folder: path.to_path_buf(), link }.into());
                }
                folder.take_lock(directory)?;
                Ok(folder)
            }
            Err(OutputError::NotEmpty { .. }) => Err(TrainError::NotARun { folder: path.to_path_buf() }.into()),
            new => Self::claimed(path, new),
        }
    }

    fn new(path: &Path, resumed: bool) -> Self {
        Self { path: path.to_path_buf(), resumed, directory: None, claim: None, lock: None, locked: false }
    }

    fn claimed(path: &Path, claim: std::result::Result<StagedFolder, OutputError>) -> Result<Self> {
        let claim = claim.map_err(|error| match error {
            OutputError::Busy { path } => TrainError::Busy { folder: path }.into(),
            other => crate::error::Error::from(other),
        })?;
        if let Ok(directory) = Directory::open(path) {
            require_private(&directory)?;
        }
        Ok(Self { claim: Some(claim), ..Self::new(path, false) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder, held open.
    ///
    /// # Panics
    /// A new folder that was not claimed.
    pub fn directory(&self) -> &Directory {
        self.directory.as_ref().expect("a run works in a folder that it has claimed")
    }

    /// Whether a run was in it before.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether a lock keeps other processes out; not every file system knows locks.
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// What is to be known of the claimed folder, and does not keep the run from going on.
    pub fn remarks(&self) -> Vec<String> {
        let (path, mut remarks) = (self.path.display(), Vec::new());
        if !self.locked {
            remarks.push(format!("the file system of `{path}` knows no locks: nothing keeps a second run out of it"));
        }
        let about = self.directory.as_ref().and_then(|directory| directory.about_itself().ok());
        if about.is_some_and(|about| !about.is_own) {
            remarks.push(format!("the run folder `{path}` belongs to another user, who may change what is in it"));
        }
        if about.is_some_and(|about| about.is_for_all) {
            remarks.push(format!("the file system of `{path}` keeps no rights: every user may change what is in it"));
        }
        remarks
    }

    /// Makes the folder where it is new, locks and marks it; takes away what an earlier process left half written.
    ///
    /// # Errors
    /// Another process was faster, or the system's.
    pub fn claim(&mut self) -> Result<()> {
        if self.lock.is_none() {
            let mut builder = DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, MODE);
            let made = builder.create(&self.path).and_then(|()| Directory::open(&self.path));
            self.take_lock(made.map_err(|source| self.failed(source))?)?;
            // The lock keeps others out from here on.
            self.claim = None;
            let only_ours = self.directory().entries().map_err(|source| self.failed(source))?;
            if only_ours.iter().any(|name| name != LOCK_FILE) {
                return Err(OutputError::NotEmpty { path: self.path.clone() }.into());
            }
        }
        self.mark().map_err(|source| self.failed(source))?;
        remove_leftovers(self.directory()).map_err(|source| self.failed(source))
    }

    /// Takes the finished adapter away, for the run that it was the end of goes on: the last checkpoint holds it, too.
    ///
    /// # Errors
    /// The system's.
    pub fn reopen(&self) -> Result<()> {
        match self.directory().remove_file(WEIGHTS_FILE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, source: io::Error) -> crate::error::Error {
        TrainError::Write { path: self.path.clone(), source }.into()
    }

    fn take_lock(&mut self, directory: Directory) -> Result<()> {
        let opened = directory.update_file(LOCK_FILE);
        let file = opened.map_err(|source| not_locked(&directory, source))?;
        self.locked = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => return Err(TrainError::Busy { folder: self.path.clone() }.into()),
            Err(TryLockError::Error(_)) => false,
        };
        (self.lock, self.directory) = (Some(file), Some(directory));
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

/// What keeps a run from the lock of its folder: a folder that takes no writing is wrong input, as a new one would be there.
fn not_locked(directory: &Directory, source: io::Error) -> TrainError {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    match source.kind() {
        PermissionDenied | ReadOnlyFilesystem => {
            TrainError::ReadOnly { folder: directory.path().to_path_buf(), source }
        }
        _ => checkpoint::failed(directory, LOCK_FILE.into(), source),
    }
}

/// Refuses a folder that every user may write to: whatever is in it, none of it need be this run's. A file system that keeps no
/// rights says so of everything, and of that nothing can be learnt.
fn require_private(directory: &Directory) -> Result<()> {
    const PROBE: &str = ".rights.tmp-janus-probe";
    let is_for_all = |about: io::Result<About>| about.is_ok_and(|about| about.is_for_all);
    if !is_for_all(directory.about_itself()) {
        return Ok(());
    }
    let keeps_rights = match directory.create_folder(PROBE, 0o700) {
        Ok(()) => {
            let probe = directory.folder(PROBE).and_then(|probe| probe.about_itself());
            let _ = directory.remove_all(PROBE);
            !is_for_all(probe)
        }
        Err(_) => true,
    };
    match keeps_rights {
        true => Err(TrainError::WorldWritable { folder: directory.path().to_path_buf() }.into()),
        false => Ok(()),
    }
}

/// Whether the folder holds a run that is over.
pub fn is_finished(path: &Path) -> bool {
    let weights = Directory::open(path).and_then(|run| run.about(WEIGHTS_FILE));
    matches!(weights, Ok(Some(About { kind: Kind::File, .. }))) && is_run(path)
}

/// Whether a folder is recognisably that of a run: by its mark, by a checkpoint, or because a run died before it marked it.
pub fn is_run(path: &Path) -> bool {
    let Ok(directory) = Place::from(path).open() else { return false };
    let mut start = Vec::new();
    let lock = directory.open_file(LOCK_FILE);
    let read = lock.and_then(|file| file.take(MARK.len() as u64).read_to_end(&mut start));
    match read {
        Ok(_) if start == MARK => true,
        Ok(_) if directory.entries().is_ok_and(|names| names == [LOCK_FILE]) => true,
        _ => !checkpoint::steps(&directory).is_empty(),
    }
}

/// Removes what stands under a temporary name here, among the checkpoints and among the samples: no run but this one writes, so
/// it was left behind, unless a process that writes a report holds it.
fn remove_leftovers(run: &Directory) -> io::Result<()> {
    let mut folders = vec![run.clone()];
    // Links are none of a run's folders, and what they lead to is not its own.
    folders.extend(run.folder(checkpoint::FOLDER));
    if let Ok(sampled) = run.folder(samples::FOLDER) {
        for name in sampled.entries()? {
            if matches!(sampled.about(&name)?, Some(About { kind: Kind::Folder, .. })) {
                folders.push(sampled.folder(&name)?);
            }
        }
        folders.push(sampled);
    }
    for folder in folders {
        for name in folder.entries()? {
            let name = name.to_string_lossy();
            if temporary::is_temporary(&name) && !temporary::is_living(&folder, &name) {
                folder.remove_all(&*name)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use janus_core::{Diagnose, Fault};

    use super::*;
    use crate::error::Error;

    fn entries(path: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

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

    /// By the system's errors: no right keeps root out, and not every user may mount a folder read-only (`campaign.rs` does where
    /// it may).
    #[test]
    fn a_folder_that_takes_no_writing_is_wrong_input() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::open(parent.path()).unwrap();
        for kind in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
            let error = not_locked(&directory, kind.into());
            assert!(matches!(&error, TrainError::ReadOnly { folder, .. } if folder == parent.path()), "{error}");
            assert_eq!((error.fault(), error.hints().len()), (Fault::Input, 1));
        }
        let full = not_locked(&directory, io::ErrorKind::StorageFull.into());
        assert!(matches!(full, TrainError::Write { .. }) && full.fault() == Fault::Internal);
    }

    #[test]
    fn one_at_a_time_and_leftovers_go() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("deep/run");
        let mut one = RunFolder::fresh(&path).unwrap();
        // Before there is anything of the first: the second is told at once.
        assert!(!path.exists());
        for second in [RunFolder::fresh(&path), RunFolder::resume(&path)] {
            assert!(matches!(second, Err(Error::Train(TrainError::Busy { .. }))));
        }
        one.claim().unwrap();
        assert_eq!(entries(path.parent().unwrap()).unwrap(), ["run"]);
        assert!(one.is_locked() && is_run(&path) && !is_finished(&path));
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
    }
}
