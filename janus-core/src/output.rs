//! Files and folders that are whole or absent: written under a sibling temporary name, synced, renamed.

use std::fs::Metadata;
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
    /// The path names something that no file can be put in the place of.
    #[error("output path `{}` is {found}, not a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it names.
        found: &'static str,
    },
    /// The path is a link that leads to nothing.
    #[error("output path `{}` is a link that leads to nothing", path.display())]
    Dangling {
        /// The path.
        path: PathBuf,
    },
    /// The path has no last component to write to.
    #[error("`{}` does not name a file or folder to write", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// Nothing can be written there, found out before there was anything to write.
    #[error("nothing can be written to `{}`", path.display())]
    Refused {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
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
            OutputError::NotAFile { .. } => vec!["give the path of a new file".into()],
            OutputError::Dangling { .. } => vec!["remove the link, or give another path".into()],
            OutputError::Refused { .. } => vec!["give a path in a folder that you may write to".into()],
            OutputError::Io { .. } => Vec::new(),
        }
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OutputError + '_ {
    move |source| OutputError::Io { path: path.to_path_buf(), source }
}

/// What keeps an output from being begun: wrong input, but for a full disk and the like.
fn refused(path: &Path) -> impl FnOnce(io::Error) -> OutputError + '_ {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::OutOfMemory
        | io::ErrorKind::Interrupted => OutputError::Io { path: path.to_path_buf(), source },
        _ => OutputError::Refused { path: path.to_path_buf(), source },
    }
}

/// The parent of `path`, the current folder where it names none.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Prefix of the temporary sibling of `path`: of a long name its beginning alone, so that the sibling's is none too long.
fn temporary_prefix(path: &Path) -> Result<String, OutputError> {
    const SHOWN: usize = 40;
    let name = path.file_name().ok_or_else(|| OutputError::NoName { path: path.to_path_buf() })?;
    let name: String = name.to_string_lossy().chars().take(SHOWN).collect();
    Ok(format!(".{name}.tmp-"))
}

/// Where a path leads, and what is there: through links where there is something, without a trailing `/` or `/.` where
/// there is nothing.
fn look(path: &Path) -> Result<(PathBuf, Option<Metadata>), OutputError> {
    match fs::metadata(path) {
        // A pipe behind `/dev/stdout` has no path.
        Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => Ok((path.to_path_buf(), Some(metadata))),
        Ok(metadata) => Ok((fs::canonicalize(path).map_err(refused(path))?, Some(metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let plain: PathBuf = path.components().collect();
            if plain.file_name().is_none() {
                return Err(OutputError::NoName { path: path.to_path_buf() });
            }
            if fs::symlink_metadata(&plain).is_ok() {
                return Err(OutputError::Dangling { path: path.to_path_buf() });
            }
            Ok((plain, None))
        }
        Err(source) => Err(refused(path)(source)),
    }
}

/// What stands where a file should go, if it is none.
fn no_file(metadata: &Metadata) -> Option<&'static str> {
    match metadata {
        metadata if metadata.is_file() => None,
        metadata if metadata.is_dir() => Some("a folder"),
        _ => Some("a device, pipe or socket"),
    }
}

/// Makes a rename durable. Folders cannot be opened for syncing on every system: there the rename alone must do.
fn sync_folder(path: &Path) {
    if let Ok(folder) = fs::File::open(path) {
        let _ = folder.sync_all();
    }
}

/// Finds out whether a file can be written to `path`, before there is anything to write; gives the path to write to, which
/// is where links lead. Nothing stays behind.
///
/// # Errors
/// A folder, device or pipe is there, a link leads to nothing, or nothing can be made beside it.
pub fn require_file(path: &Path) -> Result<PathBuf, OutputError> {
    let (place, found) = look(path)?;
    if let Some(found) = found.as_ref().and_then(no_file) {
        return Err(OutputError::NotAFile { path: path.to_path_buf(), found });
    }
    let named = path.as_os_str().as_encoded_bytes();
    if found.is_none() && (named.ends_with(b"/") || named.ends_with(b"/.")) {
        return Err(OutputError::NotAFile { path: path.to_path_buf(), found: "named as a folder" });
    }
    let parent = parent_of(&place);
    let _made = MadeParents::make(parent).map_err(refused(path))?;
    tempfile::Builder::new().prefix(&temporary_prefix(&place)?).tempfile_in(parent).map_err(refused(path))?;
    Ok(place)
}

/// Writes one file: `fill` writes to a temporary sibling, which is synced and renamed over `path`.
///
/// # Errors
/// Whatever `fill` or the system reports; `path` is then as it was.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), OutputError> {
    if let Some(found) = fs::metadata(path).ok().as_ref().and_then(no_file) {
        return Err(OutputError::NotAFile { path: path.to_path_buf(), found });
    }
    let parent = parent_of(path);
    fs::create_dir_all(parent).map_err(io_error(parent))?;
    let file = tempfile::Builder::new().prefix(&temporary_prefix(path)?).tempfile_in(parent).map_err(io_error(path))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer).map_err(io_error(path))?;
    let file = writer.into_inner().map_err(|e| io_error(path)(e.into_error()))?;
    set_default_permissions(file.as_file()).map_err(io_error(path))?;
    file.as_file().sync_all().map_err(io_error(path))?;
    if let Err(failed) = file.persist(path) {
        match failed.error.kind() {
            // A file that is a mount point by itself, as containers have them: only what is in it can be replaced.
            io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => {
                copy_into(failed.file.path(), path).map_err(io_error(path))?;
            }
            _ => return Err(io_error(path)(failed.error)),
        }
    }
    sync_folder(parent);
    Ok(())
}

/// Replaces what is in a file.
fn copy_into(from: &Path, to: &Path) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(to)?;
    io::copy(&mut fs::File::open(from)?, &mut file)?;
    file.sync_all()
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

/// Finds out whether a new folder can be made at `path`, or an empty one filled that is there. Nothing stays behind.
///
/// # Errors
/// As [`StagedFolder::create`].
pub fn require_new_folder(path: &Path) -> Result<(), OutputError> {
    StagedFolder::create(path).map(drop)
}

/// A folder under construction: filled under a temporary name and put in its place by [`StagedFolder::commit`]; dropped
/// without that, it leaves nothing behind.
///
/// It is filled beside its target and renamed, so that the target appears whole. A folder that is there and cannot be
/// replaced (a mount point, the current folder, one whose parent is read-only) is filled within, and its files renamed
/// one after the other.
#[derive(Debug)]
pub struct StagedFolder {
    /// As given, for messages.
    target: PathBuf,
    /// Where that leads.
    place: PathBuf,
    /// The empty folder that was there.
    found: Option<Metadata>,
    staging: Staging,
    /// Dropped after `staging`, which lies in the deepest of them.
    _made: MadeParents,
}

/// A folder that goes with this value.
#[derive(Debug)]
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Folders made on the way to a target, deepest first: what is still empty goes with this value.
#[derive(Debug)]
struct MadeParents(Vec<PathBuf>);

impl MadeParents {
    /// Makes a folder with all above it.
    fn make(folder: &Path) -> io::Result<Self> {
        let missing = folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let made = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(folder)?;
        Ok(made)
    }
}

impl Drop for MadeParents {
    fn drop(&mut self) {
        for folder in &self.0 {
            // One that holds something stays: what was asked for, or another's.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl StagedFolder {
    /// Starts a folder that will appear at `target`, or where a link there leads.
    ///
    /// # Errors
    /// `target` exists and is not an empty folder, it is a link that leads to nothing, or nothing can be made there.
    pub fn create(target: &Path) -> Result<Self, OutputError> {
        let (place, found) = look(target)?;
        match &found {
            Some(metadata) if !metadata.is_dir() => {
                return Err(OutputError::NotAFolder { path: target.to_path_buf() });
            }
            Some(_) if fs::read_dir(&place).map_err(refused(target))?.next().is_some() => {
                return Err(OutputError::NotEmpty { path: target.to_path_buf() });
            }
            _ => {}
        }
        let parent = if found.is_some() { place.as_path() } else { parent_of(&place) };
        let made = MadeParents::make(parent).map_err(refused(target))?;
        let prefix = temporary_prefix(&place).unwrap_or_else(|_| ".janus.tmp-".into());
        let staging = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(refused(target))?;
        let mut staging = Staging(staging.keep());
        if found.is_some() && !is_current_folder(&place) {
            // A rename out of it shows whether one over it can work: not where it is a mount point or may not be touched.
            let beside = place.parent().zip(staging.0.file_name()).map(|(parent, name)| parent.join(name));
            if let Some(beside) = beside.filter(|beside| !beside.exists())
                && fs::rename(&staging.0, &beside).is_ok()
            {
                staging.0 = beside;
            }
        }
        Ok(Self { target: target.to_path_buf(), place, found, staging, _made: made })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.staging.0
    }

    /// Syncs every file and puts the folder in its place.
    ///
    /// # Errors
    /// The system's; nothing appears at the target then.
    pub fn commit(self) -> Result<(), OutputError> {
        let Self { target, place, found, staging, _made } = &self;
        sync_tree(&staging.0).map_err(io_error(target))?;
        if staging.0.parent() == Some(place) {
            fill(place, &staging.0).map_err(io_error(target))?;
        } else {
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                let usual = std::fs::Permissions::from_mode(0o755);
                let permissions = found.as_ref().map_or(usual, Metadata::permissions);
                std::fs::set_permissions(&staging.0, permissions).map_err(io_error(target))?;
            }
            // Not every system renames over an empty folder.
            #[cfg(not(unix))]
            if found.is_some() {
                fs::remove_dir(place).map_err(io_error(target))?;
            }
            match fs::rename(&staging.0, place) {
                Err(_) if found.is_some() && place.is_dir() => fill(place, &staging.0).map_err(io_error(target))?,
                renamed => renamed.map_err(io_error(target))?,
            }
        }
        sync_folder(parent_of(place));
        Ok(())
    }
}

fn is_current_folder(place: &Path) -> bool {
    std::env::current_dir().and_then(fs::canonicalize).is_ok_and(|current| current == place)
}

/// Moves everything into an empty folder, the JSON files last: they say what the others are.
fn fill(folder: &Path, from: &Path) -> io::Result<()> {
    let mut names: Vec<PathBuf> =
        fs::read_dir(from)?.map(|entry| Ok(entry?.file_name().into())).collect::<io::Result<_>>()?;
    names.sort_by_key(|name| (name.extension().is_some_and(|extension| extension == "json"), name.clone()));
    let mut moved: Vec<PathBuf> = Vec::new();
    for name in names {
        let to = folder.join(&name);
        if let Err(error) = fs::rename(from.join(&name), &to) {
            for path in moved.iter().rev() {
                let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
            }
            return Err(error);
        }
        moved.push(to);
    }
    sync_folder(folder);
    Ok(())
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

    /// Whatever leads to an empty folder is filled there: no link is replaced, no folder taken away below a shell.
    #[cfg(unix)]
    #[test]
    fn an_empty_folder_is_filled_where_it_is() {
        use std::os::unix::fs::{MetadataExt, symlink};
        let parent = tempfile::tempdir().unwrap();
        let (real, link) = (parent.path().join("elsewhere/real"), parent.path().join("link"));
        std::fs::create_dir_all(&real).unwrap();
        symlink(&real, &link).unwrap();
        for (number, target) in [link.clone(), link.join("."), real.join("."), real.join("../real/")].iter().enumerate()
        {
            require_new_folder(target).unwrap();
            assert_eq!(std::fs::read_dir(&real).unwrap().count(), 0, "asking leaves nothing");
            let staged = StagedFolder::create(target).unwrap();
            std::fs::write(staged.path().join("a"), [number as u8]).unwrap();
            staged.commit().unwrap();
            assert_eq!(std::fs::read(real.join("a")).unwrap(), [number as u8], "{}", target.display());
            assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
            assert!(matches!(StagedFolder::create(target), Err(OutputError::NotEmpty { .. })));
            std::fs::remove_file(real.join("a")).unwrap();
            assert_eq!(std::fs::read_dir(real.parent().unwrap()).unwrap().count(), 1, "no temporary folder is left");
        }
        // Within, as where it cannot be replaced: the folder stays the one it was.
        let before = std::fs::metadata(&real).unwrap().ino();
        let from = real.join(".real.tmp-x");
        std::fs::create_dir_all(from.join("sub")).unwrap();
        for name in ["config.json", "model.safetensors", "sub/b"] {
            std::fs::write(from.join(name), name).unwrap();
        }
        let staged = StagedFolder {
            target: link,
            place: real.clone(),
            found: std::fs::metadata(&real).ok(),
            staging: Staging(from),
            _made: MadeParents(Vec::new()),
        };
        staged.commit().unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&real).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors", "sub"]);
        assert_eq!(std::fs::metadata(&real).unwrap().ino(), before);
    }

    #[cfg(unix)]
    #[test]
    fn what_cannot_be_written_is_found_out_before() {
        use std::os::unix::fs::symlink;
        let parent = tempfile::tempdir().unwrap();
        let inside = |name: &str| parent.path().join(name);
        std::fs::write(inside("file"), "mine").unwrap();
        std::fs::create_dir(inside("folder")).unwrap();
        symlink(inside("nothing"), inside("dangling")).unwrap();
        symlink("loop", inside("loop")).unwrap();
        symlink("file", inside("link")).unwrap();
        let long = "x".repeat(300);
        for name in ["file", "link", "file/out", "file/.", "dangling", "dangling/", "loop", "new/..", "", &long] {
            let path = if name.is_empty() { PathBuf::new() } else { inside(name) };
            let refused = require_new_folder(&path).expect_err(name);
            assert_eq!(refused.fault(), Fault::Input, "{name}: {refused}");
        }
        for name in ["folder", "folder/", "file/out", "file/", "dangling", "loop", "new/", "new/.", "new/..", "", &long]
        {
            let path = if name.is_empty() { PathBuf::new() } else { inside(name) };
            let refused = require_file(&path).expect_err(name);
            assert_eq!(refused.fault(), Fault::Input, "{name}: {refused}");
        }
        for device in ["/dev/null", "/dev/full"] {
            assert!(matches!(require_file(Path::new(device)), Err(OutputError::NotAFile { .. })));
            let written = write_file(Path::new(device), |file| file.write_all(b"x"));
            assert!(matches!(written, Err(OutputError::NotAFile { .. })), "{device} is not replaced");
        }
        require_new_folder(&inside("a/b/c")).unwrap();
        let long = format!("{}.png", "y".repeat(250));
        assert_eq!(require_file(&inside(&long)).unwrap(), inside(&long));
        assert_eq!(require_file(&inside("a/b.png")).unwrap(), inside("a/b.png"));
        let through = require_file(&inside("link")).unwrap();
        write_file(&through, |file| file.write_all(b"two")).unwrap();
        assert_eq!(std::fs::read(inside("file")).unwrap(), b"two", "a link to a file stays one");
        let mut names: Vec<_> =
            std::fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["dangling", "file", "folder", "link", "loop"]);
    }
}
