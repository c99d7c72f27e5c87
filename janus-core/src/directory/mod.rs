//! Folders held open: what is named below one lies in it, whatever becomes of its path, and no link below it is followed.
//!
//! A path can lead elsewhere from one call to the next; a handle cannot. Every name is walked from the handle part by part,
//! each part opened in the one before without following a link, and what counts is what the opened handle is. (That is what
//! Linux's `openat2` does with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, as every Unix can do it.) Where the system has no such
//! handles, paths are looked at before each use.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

#[cfg(not(unix))]
#[path = "paths.rs"]
mod handle;
#[cfg(unix)]
#[path = "handles.rs"]
mod handle;

use handle::Handle;

/// Deeper folders are none of this program's: their removal is refused before it takes a handle for each.
const MAX_DEPTH: usize = 32;

/// Rights of what is made, before the user's umask takes some away.
const FOLDER_MODE: u32 = 0o777;
const FILE_MODE: u32 = 0o666;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, which is not followed.
    Link,
    /// A device, pipe or socket.
    Other,
}

/// What the system says of a file or folder.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// What it is.
    pub kind: Kind,
    /// When it was last written to.
    pub modified: SystemTime,
    /// Whether it belongs to the user of this process.
    pub is_own: bool,
    /// Whether every user may write to it; to a folder with the sticky bit they may only add.
    pub is_for_all: bool,
    /// Its rights; 0 where the system has none.
    pub mode: u32,
    /// Device and number.
    identity: (u64, u64),
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Read,
    /// To be read and written, made where it is not there.
    Update,
    /// A new one.
    New,
}

/// A folder held open.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
    handle: Arc<Handle>,
}

/// A name in the way of which lies a link.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is a link, and none is followed there", path.display())]
struct LinkInTheWay {
    path: PathBuf,
}

/// The error of a link where none is followed.
fn link(path: PathBuf) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, LinkInTheWay { path })
}

/// Whether an error says that there is a link where none is followed.
pub fn is_of_link(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<LinkInTheWay>())
}

fn not_regular(kind: Kind) -> io::Error {
    match kind {
        Kind::Folder => io::ErrorKind::IsADirectory.into(),
        _ => io::Error::new(io::ErrorKind::InvalidInput, "it is a pipe or a device, not a regular file"),
    }
}

impl Directory {
    /// Opens a folder that the user named, wherever links in its path lead.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let named = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(Self { path: path.to_path_buf(), handle: Arc::new(Handle::open(named)?) })
    }

    /// Where it lay when it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder below this one that `name` leads through, and the last part of `name`.
    fn at<'a>(&'a self, name: &'a Path) -> io::Result<(Cow<'a, Directory>, &'a OsStr)> {
        let mut parts = Vec::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                Component::CurDir => {}
                _ => {
                    let reason = format!("`{}` is not the path of something below a folder", name.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
                }
            }
        }
        let Some((last, above)) = parts.split_last() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name without a part"));
        };
        let mut at = Cow::Borrowed(self);
        for part in above {
            at = Cow::Owned(at.child(part)?);
        }
        Ok((at, last))
    }

    /// The error of the system where `name` is no link, one that says so where it is.
    fn told(&self, name: &OsStr, error: io::Error) -> io::Error {
        match self.handle.about(name) {
            Ok(Some(About { kind: Kind::Link, .. })) => link(self.path.join(name)),
            _ => error,
        }
    }

    fn child(&self, name: &OsStr) -> io::Result<Self> {
        let handle = self.handle.child(name).map_err(|error| self.told(name, error))?;
        Ok(Self { path: self.path.join(name), handle: Arc::new(handle) })
    }

    fn open_as(&self, name: &Path, how: How) -> io::Result<File> {
        let (at, name) = self.at(name)?;
        // Asked before, for opening a device may do something; asked again of what was opened.
        match at.handle.about(name)?.map(|about| about.kind) {
            Some(Kind::Link) if how != How::New => return Err(link(at.path.join(name))),
            Some(kind @ (Kind::Folder | Kind::Other)) if how != How::New => return Err(not_regular(kind)),
            _ => {}
        }
        let file = at.handle.file(name, how, FILE_MODE).map_err(|error| match how {
            How::New => error,
            _ => at.told(name, error),
        })?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(not_regular(Kind::Other)),
        }
    }

    /// Opens a folder in it.
    ///
    /// # Errors
    /// The system's, or a link on the way ([`is_of_link`]).
    pub fn folder(&self, name: impl AsRef<Path>) -> io::Result<Self> {
        let (at, name) = self.at(name.as_ref())?;
        at.child(name)
    }

    /// Opens a folder in it, made with all on the way where it is not there.
    ///
    /// # Errors
    /// As [`Directory::folder`].
    pub fn make_folder(&self, name: impl AsRef<Path>) -> io::Result<Self> {
        let mut at = self.clone();
        for part in name.as_ref().components() {
            let part = Path::new(part.as_os_str());
            match at.create_folder(part, FOLDER_MODE) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => at = at.folder(part)?,
            }
        }
        Ok(at)
    }

    /// Makes a folder that is not there yet, with these rights but for what the umask takes.
    ///
    /// # Errors
    /// Something is there, or the system's.
    pub fn create_folder(&self, name: impl AsRef<Path>, mode: u32) -> io::Result<()> {
        let (at, name) = self.at(name.as_ref())?;
        at.handle.create_folder(name, mode)
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// Something else or a link is there ([`io::ErrorKind::InvalidInput`]), or the system's.
    pub fn open_file(&self, name: impl AsRef<Path>) -> io::Result<File> {
        self.open_as(name.as_ref(), How::Read)
    }

    /// Opens a regular file for reading and writing, made where it is not there.
    ///
    /// # Errors
    /// As [`Directory::open_file`].
    pub fn update_file(&self, name: impl AsRef<Path>) -> io::Result<File> {
        self.open_as(name.as_ref(), How::Update)
    }

    /// Makes a file that is not there yet.
    ///
    /// # Errors
    /// Something is there, be it a link, or the system's.
    pub fn create_file(&self, name: impl AsRef<Path>) -> io::Result<File> {
        self.open_as(name.as_ref(), How::New)
    }

    /// What a name stands for; `None` where there is nothing.
    ///
    /// # Errors
    /// The system's, or a link on the way.
    pub fn about(&self, name: impl AsRef<Path>) -> io::Result<Option<About>> {
        match self.at(name.as_ref()) {
            Ok((at, name)) => at.handle.about(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the system says of the folder itself.
    ///
    /// # Errors
    /// The system's.
    pub fn about_itself(&self) -> io::Result<About> {
        self.handle.about_itself()
    }

    /// Names of all that is in it.
    ///
    /// # Errors
    /// The system's.
    pub fn entries(&self) -> io::Result<Vec<OsString>> {
        self.handle.entries()
    }

    /// Whether a name stands for a file or folder that is open.
    pub fn leads_to(&self, name: impl AsRef<Path>, open: &File) -> bool {
        let Ok(Some(about)) = self.about(name) else { return false };
        handle::identity(open).is_ok_and(|identity| identity == about.identity)
    }

    /// Whether both are the same folder.
    pub fn is_same(&self, other: &Directory) -> bool {
        let (one, two) = (self.about_itself(), other.about_itself());
        one.is_ok_and(|one| two.is_ok_and(|two| one.identity == two.identity))
    }

    /// Removes a file, or a link itself.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_file(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let (at, name) = self.at(name.as_ref())?;
        at.handle.remove_file(name)
    }

    /// Removes whatever has this name: of a link the link, of a folder all that is in it.
    ///
    /// # Errors
    /// The system's; folders in folders beyond a depth that this program ever makes.
    pub fn remove_all(&self, name: impl AsRef<Path>) -> io::Result<()> {
        let (at, name) = self.at(name.as_ref())?;
        at.remove_tree(name, 0)
    }

    fn remove_tree(&self, name: &OsStr, depth: usize) -> io::Result<()> {
        match self.handle.about(name)?.map(|about| about.kind) {
            None => Ok(()),
            Some(Kind::Folder) if depth == MAX_DEPTH => {
                Err(io::Error::other(format!("folders in folders, more than {MAX_DEPTH} deep")))
            }
            Some(Kind::Folder) => {
                let folder = self.child(name)?;
                for entry in folder.entries()? {
                    folder.remove_tree(&entry, depth + 1)?;
                }
                self.handle.remove_folder(name)
            }
            Some(_) => self.handle.remove_file(name),
        }
    }

    /// Renames what is in it to a name in a folder, over the file or empty folder that has it.
    ///
    /// # Errors
    /// The system's.
    pub fn rename(&self, from: impl AsRef<Path>, to: &Directory, name: impl AsRef<Path>) -> io::Result<()> {
        let ((at, from), (to, name)) = (self.at(from.as_ref())?, to.at(name.as_ref())?);
        at.handle.rename(from, &to.handle, name)
    }

    /// Sets the rights of the folder itself, where the system has such.
    ///
    /// # Errors
    /// The system's.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.handle.set_mode(mode)
    }

    /// An open file of the folder itself: to be locked, or synced.
    ///
    /// # Errors
    /// The system's; there is none everywhere.
    pub fn as_file(&self) -> io::Result<File> {
        self.handle.as_file()
    }

    /// Makes renames in it durable. Folders cannot be opened for syncing on every system: there the rename alone must do.
    pub fn sync(&self) {
        if let Ok(folder) = self.as_file() {
            let _ = folder.sync_all();
        }
    }
}

/// A folder that the user named, or one held open.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Links to it are followed, and those in it that stay in it ([`crate::input`]).
    Named(&'a Path),
    /// No link in it is followed.
    Open(&'a Directory),
}

impl<'a> Place<'a> {
    /// Where it is, for messages.
    pub fn path(self) -> &'a Path {
        match self {
            Place::Named(path) => path,
            Place::Open(directory) => directory.path(),
        }
    }

    /// The folder, held open.
    ///
    /// # Errors
    /// The system's.
    pub fn open(self) -> io::Result<Directory> {
        match self {
            Place::Named(path) => Directory::open(path),
            Place::Open(directory) => Ok(directory.clone()),
        }
    }

    /// The folder to write into, made where it is not there.
    ///
    /// # Errors
    /// The system's.
    pub fn make(self) -> io::Result<Directory> {
        match self {
            Place::Named(path) => {
                fs_err::create_dir_all(path)?;
                Directory::open(path)
            }
            Place::Open(directory) => Ok(directory.clone()),
        }
    }
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for Place<'a> {
    fn from(path: &'a P) -> Self {
        Place::Named(path.as_ref())
    }
}

impl<'a> From<&'a Directory> for Place<'a> {
    fn from(directory: &'a Directory) -> Self {
        Place::Open(directory)
    }
}

#[cfg(all(test, unix))]
#[path = "tests.rs"]
mod tests;
