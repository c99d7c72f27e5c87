//! Files and folders that are whole or absent: written under a sibling temporary name, synced, renamed.

use std::ffi::OsStr;
use std::fs::{File, Metadata, TryLockError};
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::directory::{Directory, Kind, is_of_link};
use crate::error::{Diagnose, Fault};
use crate::temporary::{self, NoFolder, TemporaryFile, TemporaryFolder};

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
    /// Another process is making the same folder.
    #[error("another process is at work on `{}`", path.display())]
    Busy {
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
            OutputError::Io { source, .. } if !is_in_the_way(source) => Fault::Internal,
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            OutputError::NotEmpty { .. } => vec!["choose another folder, or empty this one first".into()],
            OutputError::Busy { .. } => vec!["wait for its end, or give another path".into()],
            OutputError::NotAFolder { .. } | OutputError::NoName { .. } => vec!["give the path of a new folder".into()],
            OutputError::NotAFile { .. } => vec!["give the path of a new file".into()],
            OutputError::Dangling { .. } => vec!["remove the link, or give another path".into()],
            OutputError::Refused { .. } => vec!["give a path in a folder that you may write to".into()],
            OutputError::Io { source, .. } if is_in_the_way(source) => {
                vec![
                    "move away what lies there: nothing is written through a link, or over what is of another kind"
                        .into(),
                ]
            }
            OutputError::Io { .. } => Vec::new(),
        }
    }
}

/// Whether an error says that something lies where something else is to be: a link, a file for a folder, or the reverse.
pub fn is_in_the_way(error: &io::Error) -> bool {
    is_of_link(error) || matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory)
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

/// The last part of a path.
fn name_of(path: &Path) -> Result<&OsStr, OutputError> {
    path.file_name().ok_or_else(|| OutputError::NoName { path: path.to_path_buf() })
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
    let folder = Directory::open(parent).map_err(refused(path))?;
    temporary::clear_of(&folder, name_of(&place)?);
    TemporaryFile::create(&folder, name_of(&place)?).map_err(refused(path))?;
    Ok(place)
}

/// Finds out whether a file can be written below a folder held open, as [`require_file`].
///
/// # Errors
/// As [`require_file`].
pub fn require_below(folder: &Directory, name: &str) -> Result<(), OutputError> {
    let path = folder.path().join(name);
    refuse_no_file(folder, OsStr::new(name), &path)?;
    temporary::clear_of(folder, OsStr::new(name));
    TemporaryFile::create(folder, OsStr::new(name)).map(drop).map_err(refused(&path))
}

/// Refuses a name that a folder or a device has.
fn refuse_no_file(at: &Directory, name: &OsStr, path: &Path) -> Result<(), OutputError> {
    let found = match at.about(name).map_err(io_error(path))?.map(|about| about.kind) {
        Some(Kind::Folder) => "a folder",
        Some(Kind::Other) => "a device, pipe or socket",
        _ => return Ok(()),
    };
    Err(OutputError::NotAFile { path: path.to_path_buf(), found })
}

/// Writes one file where the user said: `fill` writes to a temporary sibling, which is synced and renamed over `path`.
///
/// # Errors
/// Whatever `fill` or the system reports; `path` is then as it was.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), OutputError> {
    if let Some(found) = fs::metadata(path).ok().as_ref().and_then(no_file) {
        return Err(OutputError::NotAFile { path: path.to_path_buf(), found });
    }
    let parent = parent_of(path);
    fs::create_dir_all(parent).map_err(io_error(parent))?;
    let folder = Directory::open(parent).map_err(io_error(parent))?;
    write_named(&folder, name_of(path)?, path, fill)
}

/// Writes one file below a folder held open, as [`write_file`]; folders on the way are made, and no link is followed. A link of
/// that name is replaced.
///
/// # Errors
/// As [`write_file`].
pub fn write_below(
    folder: &Directory,
    name: impl AsRef<Path>,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), OutputError> {
    let name = name.as_ref();
    let path = folder.path().join(name);
    match name.parent() {
        Some(above) if !above.as_os_str().is_empty() => {
            let at = folder.make_folder(above).map_err(io_error(&path))?;
            write_named(&at, name_of(name)?, &path, fill)
        }
        _ => write_named(folder, name_of(name)?, &path, fill),
    }
}

fn write_named(
    at: &Directory,
    name: &OsStr,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), OutputError> {
    refuse_no_file(at, name, path)?;
    temporary::clear_of(at, name);
    let mut aside = TemporaryFile::create(at, name).map_err(io_error(path))?;
    let mut writer = BufWriter::with_capacity(1 << 20, aside.file());
    fill(&mut writer).and_then(|()| writer.flush()).map_err(io_error(path))?;
    drop(writer);
    aside.file().sync_all().map_err(io_error(path))?;
    match aside.put(name) {
        // A file that is a mount point by itself, as containers have them: only what is in it can be replaced.
        Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices) => {
            at.update_file(name).and_then(|to| copy_into(aside.file(), to)).map_err(io_error(path))?;
        }
        put => put.map_err(io_error(path))?,
    }
    at.sync();
    Ok(())
}

/// Replaces what is in a file.
fn copy_into(from: &mut File, mut to: File) -> io::Result<()> {
    from.rewind()?;
    to.set_len(0)?;
    io::copy(from, &mut to)?;
    to.sync_all()
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
    /// Its last part, where links to it lead.
    name: std::ffi::OsString,
    /// The empty folder that was there.
    found: Option<Directory>,
    staging: TemporaryFolder,
    /// Keeps others from filling the folder that was there.
    _claim: Option<File>,
    /// Dropped after `staging`, which lies in the deepest of them.
    _made: MadeParents,
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
    /// Starts a folder that will appear at `target`, or where a link there leads. Until it does, or this value goes, no other
    /// process can start the same.
    ///
    /// # Errors
    /// `target` exists and is not an empty folder, it is a link that leads to nothing, nothing can be made there, or another
    /// process is at it ([`OutputError::Busy`]).
    pub fn create(target: &Path) -> Result<Self, OutputError> {
        let (place, found) = look(target)?;
        match found {
            Some(metadata) if !metadata.is_dir() => Err(OutputError::NotAFolder { path: target.to_path_buf() }),
            Some(_) => Self::replacing(target, &place),
            None => {
                let parent = parent_of(&place);
                let made = MadeParents::make(parent).map_err(refused(target))?;
                let at = Directory::open(parent).map_err(refused(target))?;
                Self::new(&at, name_of(&place)?, target, made)
            }
        }
    }

    /// Starts a folder below one held open.
    ///
    /// # Errors
    /// As [`StagedFolder::create`]; something of that name is there.
    pub fn below(folder: &Directory, name: &str) -> Result<Self, OutputError> {
        let target = folder.path().join(name);
        if folder.about(name).map_err(io_error(&target))?.is_some() {
            return Err(OutputError::NotEmpty { path: target });
        }
        Self::new(folder, OsStr::new(name), &target, MadeParents(Vec::new()))
    }

    fn new(at: &Directory, name: &OsStr, target: &Path, made: MadeParents) -> Result<Self, OutputError> {
        let staging = TemporaryFolder::create(at, name, NEW_FOLDER_MODE).map_err(no_folder(target))?;
        let (target, name) = (target.to_path_buf(), name.to_owned());
        Ok(Self { target, name, found: None, staging, _claim: None, _made: made })
    }

    /// In the place of an empty folder.
    fn replacing(target: &Path, place: &Path) -> Result<Self, OutputError> {
        let found = Directory::open(place).map_err(refused(target))?;
        let name = place.file_name().unwrap_or(OsStr::new("janus"));
        let beside =
            place.parent().filter(|_| !is_current_folder(place)).and_then(|parent| Directory::open(parent).ok());
        for folder in beside.iter().chain([&found]) {
            temporary::clear_of(folder, name);
        }
        let require_empty = || {
            let names = found.entries().map_err(refused(target))?;
            // What killed processes left in it is taken away below.
            match names.iter().all(|name| name.to_str().is_some_and(temporary::is_own_name)) {
                true => Ok(()),
                false => Err(OutputError::NotEmpty { path: target.to_path_buf() }),
            }
        };
        require_empty()?;
        let claim = found.as_file().ok();
        if claim.as_ref().is_some_and(|claim| matches!(claim.try_lock(), Err(TryLockError::WouldBlock))) {
            return Err(OutputError::Busy { path: target.to_path_buf() });
        }
        // Another process may have filled it before it gave up the lock.
        require_empty()?;
        let mode = found.about_itself().map_err(refused(target))?.mode;
        let mut staging = TemporaryFolder::create(&found, name, mode).map_err(no_folder(target))?;
        if let Some(beside) = &beside {
            // A rename out of it shows whether one over it can work: not where it is a mount point or may not be touched.
            let _ = staging.move_to(beside);
        }
        let (target, name) = (target.to_path_buf(), name.to_owned());
        Ok(Self { target, name, found: Some(found), staging, _claim: claim, _made: MadeParents(Vec::new()) })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.staging.folder().path()
    }

    /// The folder to write into meanwhile.
    pub fn folder(&self) -> &Directory {
        self.staging.folder()
    }

    /// Syncs every file and puts the folder in its place.
    ///
    /// # Errors
    /// The system's, or another process filled the target meanwhile; nothing appears there then.
    pub fn commit(mut self) -> Result<(), OutputError> {
        let target = &self.target;
        sync_tree(self.staging.folder()).map_err(io_error(target))?;
        match &self.found {
            Some(found) if self.staging.parent().is_same(found) => {
                fill(found, self.staging.folder()).map_err(io_error(target))?;
            }
            Some(found) => {
                let mode = found.about_itself().map_err(io_error(target))?.mode;
                self.staging.folder().set_mode(mode).map_err(io_error(target))?;
                if self.staging.put(&self.name).is_err() {
                    fill(found, self.staging.folder()).map_err(io_error(target))?;
                }
            }
            None => self.staging.put(&self.name).map_err(|source| match source.kind() {
                io::ErrorKind::DirectoryNotEmpty => OutputError::NotEmpty { path: target.clone() },
                io::ErrorKind::NotADirectory => OutputError::NotAFolder { path: target.clone() },
                _ => OutputError::Io { path: target.clone(), source },
            })?,
        }
        self.staging.parent().sync();
        Ok(())
    }
}

/// Rights of a new folder, before the user's umask takes some away.
const NEW_FOLDER_MODE: u32 = 0o777;

fn no_folder(target: &Path) -> impl FnOnce(NoFolder) -> OutputError + '_ {
    move |error| match error {
        NoFolder::Busy => OutputError::Busy { path: target.to_path_buf() },
        NoFolder::Io(source) => refused(target)(source),
    }
}

fn is_current_folder(place: &Path) -> bool {
    std::env::current_dir().and_then(fs::canonicalize).is_ok_and(|current| current == place)
}

/// Moves everything into an empty folder, the JSON files last: they say what the others are.
fn fill(folder: &Directory, from: &Directory) -> io::Result<()> {
    let mut names: Vec<PathBuf> = from.entries()?.into_iter().map(PathBuf::from).collect();
    names.sort_by_key(|name| (name.extension().is_some_and(|extension| extension == "json"), name.clone()));
    let mut moved: Vec<PathBuf> = Vec::new();
    for name in names {
        if let Err(error) = from.rename(&name, folder, &name) {
            for name in moved.iter().rev() {
                let _ = folder.remove_all(name);
            }
            return Err(error);
        }
        moved.push(name);
    }
    folder.sync();
    Ok(())
}

fn sync_tree(folder: &Directory) -> io::Result<()> {
    for name in folder.entries()? {
        match folder.about(&name)?.map(|about| about.kind) {
            Some(Kind::Folder) => sync_tree(&folder.folder(&name)?)?,
            Some(Kind::File) => folder.open_file(&name)?.sync_all()?,
            _ => {}
        }
    }
    folder.sync();
    Ok(())
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
