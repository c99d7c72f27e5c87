//! Files and folders that are whole or absent: written under a sibling temporary name, synced, renamed.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::error::{Diagnose, Fault};

/// A file or folder that cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The folder to be made already holds something.
    #[error("output folder `{}` is not empty", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The path names something that is not a folder.
    #[error("output path `{}` exists and is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// The path has no last component to write to.
    #[error("`{}` does not name a file or folder to write", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Diagnose for OutputError {
    fn fault(&self) -> Fault {
        match self {
            OutputError::Io { .. } => Fault::Internal,
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            OutputError::NotEmpty { .. } => vec!["choose another folder, or empty this one first".into()],
            OutputError::NotAFolder { .. } | OutputError::NoName { .. } => vec!["give the path of a new folder".into()],
            OutputError::Io { .. } => Vec::new(),
        }
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OutputError + '_ {
    move |source| OutputError::Io { path: path.to_path_buf(), source }
}

/// The parent of `path`, the current folder where it names none.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Prefix of the temporary sibling of `path`.
fn temporary_prefix(path: &Path) -> Result<String, OutputError> {
    let name = path.file_name().ok_or_else(|| OutputError::NoName { path: path.to_path_buf() })?;
    Ok(format!(".{}.tmp-", name.to_string_lossy()))
}

/// Makes a rename durable. Folders cannot be opened for syncing on every system: there the rename alone must do.
fn sync_folder(path: &Path) {
    if let Ok(folder) = fs::File::open(path) {
        let _ = folder.sync_all();
    }
}

/// Writes one file: `fill` writes to a temporary sibling, which is synced and renamed over `path`.
///
/// # Errors
/// Whatever `fill` or the system reports; `path` is then as it was.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), OutputError> {
    let parent = parent_of(path);
    fs::create_dir_all(parent).map_err(io_error(parent))?;
    let file = tempfile::Builder::new().prefix(&temporary_prefix(path)?).tempfile_in(parent).map_err(io_error(path))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer).map_err(io_error(path))?;
    let file = writer.into_inner().map_err(|e| io_error(path)(e.into_error()))?;
    set_default_permissions(file.as_file()).map_err(io_error(path))?;
    file.as_file().sync_all().map_err(io_error(path))?;
    file.persist(path).map_err(|e| io_error(path)(e.error))?;
    sync_folder(parent);
    Ok(())
}

/// Temporary files are private to their owner; a finished file is readable as any other.
fn set_default_permissions(file: &std::fs::File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// Refuses a folder to be made that already holds something.
///
/// # Errors
/// [`OutputError::NotEmpty`], [`OutputError::NotAFolder`].
pub fn require_new_folder(path: &Path) -> Result<(), OutputError> {
    if path.file_name().is_none() {
        return Err(OutputError::NoName { path: path.to_path_buf() });
    }
    if !path.exists() {
        return Ok(());
    }
    if !path.is_dir() {
        return Err(OutputError::NotAFolder { path: path.to_path_buf() });
    }
    let mut entries = fs::read_dir(path).map_err(io_error(path))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(OutputError::NotEmpty { path: path.to_path_buf() }),
    }
}

/// A folder under construction: filled under a temporary sibling name and renamed by [`StagedFolder::commit`];
/// dropped without that, it leaves nothing behind.
#[derive(Debug)]
pub struct StagedFolder {
    target: PathBuf,
    staging: tempfile::TempDir,
    /// Dropped after `staging`, which lies in the deepest of them.
    _made: MadeParents,
}

/// Folders made on the way to a target, deepest first: what is still empty goes with this value.
#[derive(Debug)]
struct MadeParents(Vec<PathBuf>);

impl Drop for MadeParents {
    fn drop(&mut self) {
        for folder in &self.0 {
            // One that holds something stays: what was asked for, or another's.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl StagedFolder {
    /// Starts a folder that will appear at `target`.
    ///
    /// # Errors
    /// `target` exists and is not an empty folder, or its parent cannot be made.
    pub fn create(target: &Path) -> Result<Self, OutputError> {
        require_new_folder(target)?;
        let parent = parent_of(target);
        let missing = parent.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let made = MadeParents(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(parent).map_err(io_error(parent))?;
        let staging =
            tempfile::Builder::new().prefix(&temporary_prefix(target)?).tempdir_in(parent).map_err(io_error(target))?;
        Ok(Self { target: target.to_path_buf(), staging, _made: made })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Syncs every file and renames the folder to its target.
    ///
    /// # Errors
    /// The system's; nothing appears at the target then.
    pub fn commit(self) -> Result<(), OutputError> {
        let target = self.target.as_path();
        sync_tree(self.staging.path()).map_err(io_error(target))?;
        if target.exists() {
            fs::remove_dir(target).map_err(io_error(target))?;
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(self.staging.path(), std::fs::Permissions::from_mode(0o755))
                .map_err(io_error(target))?;
        }
        let staging = self.staging.keep();
        if let Err(source) = fs::rename(&staging, target) {
            let _ = fs::remove_dir_all(&staging);
            return Err(OutputError::Io { path: target.to_path_buf(), source });
        }
        sync_folder(parent_of(target));
        Ok(())
    }
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            fs::File::open(&path)?.sync_all()?;
        }
    }
    sync_folder(folder);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/file.json");
        write_file(&path, |w| w.write_all(b"one")).unwrap();
        let failed = write_file(&path, |w| {
            w.write_all(b"half of two")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_staged_folder_appears_on_commit_only() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("deep/er/out");
        let staged = StagedFolder::create(&target).unwrap();
        std::fs::write(staged.path().join("a"), b"x").unwrap();
        assert!(!target.exists());
        drop(staged);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);

        let staged = StagedFolder::create(&target).unwrap();
        std::fs::write(staged.path().join("a"), b"x").unwrap();
        staged.commit().unwrap();
        assert_eq!(std::fs::read(target.join("a")).unwrap(), b"x");
        assert!(matches!(StagedFolder::create(&target), Err(OutputError::NotEmpty { .. })));
    }
}
