//! What is written aside under a temporary name, `.NAME.tmp-janus-…` beside `NAME`, and taken away where its maker was killed.
//!
//! Whoever makes one holds a lock on it for as long as it lives: the system releases the lock with the process, whatever
//! becomes of it. So what is not locked was left behind, and whoever writes to the same place next removes it. Earlier
//! versions called theirs `.NAME.tmp-…` and held no lock: those go after a day, and so does everything where a file system
//! knows no locks. What belongs to another user stays, and a link is none of these.

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::time::Duration;

use crate::directory::{About, Directory, Kind};

/// Behind the name that something is to have, in the name that it has meanwhile.
const ASIDE: &str = ".tmp-";

/// The same of those that are locked.
const LOCKED: &str = ".tmp-janus-";

/// At this age nobody is at work any more on what has no lock.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Attempts to make something before somebody else takes the name, or takes it away.
const ATTEMPTS: usize = 100;

/// Characters of a name that are kept, so that the temporary one is none too long.
const SHOWN: usize = 40;

/// How the temporary names of `name` begin, without what tells earlier ones from today's.
fn beginning(name: &OsStr) -> String {
    let name: String = name.to_string_lossy().chars().take(SHOWN).collect();
    format!(".{name}")
}

/// The name that something is to have by its temporary one, which of a long name is its beginning alone.
pub fn written_as(name: &str) -> Option<&str> {
    Some(name.strip_prefix('.')?.split_once(ASIDE)?.0)
}

fn random() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// What asking for a lock came to.
enum Lock {
    Taken,
    Held,
    /// The file system knows none.
    Unknown,
}

fn lock(file: &File) -> Lock {
    match file.try_lock() {
        Ok(()) => Lock::Taken,
        Err(TryLockError::WouldBlock) => Lock::Held,
        Err(TryLockError::Error(_)) => Lock::Unknown,
    }
}

/// A file that goes with this value unless it is put in its place.
#[derive(Debug)]
pub struct TemporaryFile {
    at: Directory,
    name: Option<String>,
    /// Locked while it is open.
    file: File,
}

impl TemporaryFile {
    /// A file beside `name`.
    ///
    /// # Errors
    /// The system's.
    pub fn create(at: &Directory, name: &OsStr) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let name = format!("{}{LOCKED}{}", beginning(name), random());
            match at.create_file(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(file) => match lock(&file) {
                    // Whoever clears up may have come between: it is gone then, or about to.
                    Lock::Held => {}
                    Lock::Taken if !at.leads_to(&name, &file) => {}
                    _ => return Ok(Self { at: at.clone(), name: Some(name), file }),
                },
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The file.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it the name that it was made for.
    ///
    /// # Errors
    /// The system's.
    pub fn put(&mut self, name: &OsStr) -> io::Result<()> {
        let Some(aside) = &self.name else { return Ok(()) };
        self.at.rename(aside, &self.at, name)?;
        self.name = None;
        Ok(())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = self.at.remove_file(name);
        }
    }
}

/// A folder that goes, with all that is in it, with this value unless it is put in its place.
#[derive(Debug)]
pub(crate) struct TemporaryFolder {
    at: Directory,
    name: Option<String>,
    folder: Directory,
    /// The lock, where there are such.
    _lock: Option<File>,
}

/// Why there is no temporary folder.
#[derive(Debug)]
pub(crate) enum NoFolder {
    /// Another process has one for the same name.
    Busy,
    Io(io::Error),
}

impl From<io::Error> for NoFolder {
    fn from(error: io::Error) -> Self {
        NoFolder::Io(error)
    }
}

impl TemporaryFolder {
    /// A folder beside `name`, the only one of a living process: all that make one for the same name take the same temporary
    /// name, and whoever locks it first has it. Only where that name cannot be had (a link, a folder of another user, no
    /// locks) it is another one, and nobody is kept out.
    pub(crate) fn create(at: &Directory, name: &OsStr, mode: u32) -> Result<Self, NoFolder> {
        clear_of(at, name);
        let whole = name.to_string_lossy();
        // Of a long name only the beginning is shown: two of them are told apart by the rest.
        let rest = if whole.chars().count() > SHOWN { digits_of(&whole) } else { String::new() };
        let claimed = format!("{}{LOCKED}folder{rest}", beginning(name));
        for _ in 0..ATTEMPTS {
            let is_new = match at.create_folder(&claimed, mode) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(error.into()),
            };
            let folder = match at.about(&claimed)? {
                // Some file systems say of what is made that it is another's.
                Some(About { kind: Kind::Folder, is_own, .. }) if is_own || is_new => at.folder(&claimed),
                None => continue,
                Some(_) => break,
            };
            let Ok(folder) = folder else { continue };
            let Ok(handle) = folder.as_file() else {
                if is_new {
                    return Ok(Self { at: at.clone(), name: Some(claimed), folder, _lock: None });
                }
                break;
            };
            match lock(&handle) {
                Lock::Held => return Err(NoFolder::Busy),
                Lock::Unknown if is_new => {
                    return Ok(Self { at: at.clone(), name: Some(claimed), folder, _lock: None });
                }
                Lock::Unknown => break,
                Lock::Taken if !at.leads_to(&claimed, &handle) => {}
                Lock::Taken if is_new => {
                    return Ok(Self { at: at.clone(), name: Some(claimed), folder, _lock: Some(handle) });
                }
                // Left behind by a process that was killed.
                Lock::Taken => at.remove_all(&claimed)?,
            }
        }
        let name = format!("{}{LOCKED}{}", beginning(name), random());
        at.create_folder(&name, mode)?;
        let folder = at.folder(&name)?;
        let handle = folder.as_file().ok().filter(|handle| matches!(lock(handle), Lock::Taken));
        Ok(Self { at: at.clone(), name: Some(name), folder, _lock: handle })
    }

    pub(crate) fn folder(&self) -> &Directory {
        &self.folder
    }

    /// The folder that it lies in.
    pub(crate) fn parent(&self) -> &Directory {
        &self.at
    }

    /// Takes it, under its temporary name, to another folder, if it can be taken there and nothing has that name.
    pub(crate) fn move_to(&mut self, other: &Directory) -> io::Result<()> {
        let Some(name) = &self.name else { return Ok(()) };
        if other.about(name)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.at.rename(name, other, name)?;
        self.at = other.clone();
        self.folder = other.folder(name)?;
        Ok(())
    }

    /// Gives it a name in the folder that it lies in.
    pub(crate) fn put(&mut self, name: &OsStr) -> io::Result<()> {
        let Some(aside) = &self.name else { return Ok(()) };
        self.at.rename(aside, &self.at, name)?;
        self.name = None;
        Ok(())
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // What has taken its name since is not this one.
        if let Some(name) = &self.name
            && self.at.folder(name).is_ok_and(|there| there.is_same(&self.folder))
        {
            let _ = self.at.remove_all(name);
        }
    }
}

fn digits_of(name: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(name).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Removes what processes that are gone left beside `name`.
pub(crate) fn clear_of(at: &Directory, name: &OsStr) {
    let start = format!("{}{ASIDE}", beginning(name));
    clear(at, &|name| name.starts_with(&start));
}

/// Removes what processes that are gone left in a folder, of the temporary names that are `wanted`.
pub fn clear(at: &Directory, wanted: &dyn Fn(&str) -> bool) {
    for name in at.entries().unwrap_or_default() {
        let Some(name) = name.to_str().filter(|name| is_temporary(name) && wanted(name)) else { continue };
        // What cannot be asked or removed stays.
        let _ = remove_if_left(at, name);
    }
}

/// Whether this is a temporary name.
pub fn is_temporary(name: &str) -> bool {
    written_as(name).is_some()
}

/// Whether a temporary name is one that this version gives, which nobody else does.
pub fn is_own_name(name: &str) -> bool {
    name.starts_with('.') && name.contains(LOCKED)
}

/// The file or folder of a name, to be locked.
fn lockable(at: &Directory, name: &str, kind: Kind) -> io::Result<Option<File>> {
    match kind {
        Kind::File => at.open_file(name).map(Some),
        Kind::Folder => at.folder(name)?.as_file().map(Some),
        Kind::Link | Kind::Other => Ok(None),
    }
}

fn remove_if_left(at: &Directory, name: &str) -> io::Result<()> {
    let Some(about) = at.about(name)?.filter(|about| about.is_own) else { return Ok(()) };
    let Some(open) = lockable(at, name, about.kind)? else { return Ok(()) };
    let is_old = || is_abandoned(at, name, &about);
    let is_left = match lock(&open) {
        Lock::Held => false,
        Lock::Taken => is_own_name(name) || is_old(),
        Lock::Unknown => is_old(),
    };
    // Renamed meanwhile, it is no longer what was locked.
    if is_left && at.leads_to(name, &open) { at.remove_all(name) } else { Ok(()) }
}

/// Whether a living process holds the lock of what has a temporary name.
pub fn is_living(at: &Directory, name: &str) -> bool {
    let Ok(Some(about)) = at.about(name) else { return false };
    matches!(lockable(at, name, about.kind), Ok(Some(open)) if matches!(lock(&open), Lock::Held))
}

/// Whether it was last written to so long ago, as a folder what is in it, too.
fn is_abandoned(at: &Directory, name: &str, about: &About) -> bool {
    let is_old = |about: &About| about.modified.elapsed().is_ok_and(|age| age > ABANDONED);
    let Ok(folder) = at.folder(name) else { return is_old(about) };
    let mut parts = folder.entries().unwrap_or_default().into_iter();
    is_old(about) && parts.all(|part| matches!(folder.about(&part), Ok(Some(part)) if is_old(&part)))
}

#[cfg(all(test, unix))]
#[path = "temporary_tests.rs"]
mod tests;
