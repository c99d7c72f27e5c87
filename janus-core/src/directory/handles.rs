//! Handles of a Unix: every call takes the handle of a folder and one name in it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::{About, How, Kind};

/// A folder that may be passed through and not listed can be held, too, where the system has handles for that.
#[cfg(any(target_os = "linux", target_os = "android"))]
const HELD: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const HELD: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

#[derive(Debug)]
pub(super) struct Handle(OwnedFd);

#[allow(clippy::unnecessary_cast)] // The types of its parts differ between systems.
fn about(stat: &Stat) -> About {
    let (kind, mode) = (FileType::from_raw_mode(stat.st_mode as _), Mode::from_raw_mode(stat.st_mode as _));
    let seconds = Duration::from_secs((stat.st_mtime as i64).max(0) as u64);
    // SAFETY: `geteuid` takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    About {
        kind: match kind {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        },
        modified: SystemTime::UNIX_EPOCH + seconds,
        is_own: stat.st_uid == user,
        is_for_all: mode.contains(Mode::WOTH) && !mode.contains(Mode::SVTX),
        mode: mode.as_raw_mode() as u32,
        identity: (stat.st_dev as u64, stat.st_ino as u64),
    }
}

/// Device and number of an open file.
pub(super) fn identity(file: &File) -> io::Result<(u64, u64)> {
    let about = file.metadata()?;
    Ok((about.dev(), about.ino()))
}

impl Handle {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, HELD, Mode::empty())?))
    }

    pub(super) fn child(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(&self.0, name, HELD | OFlags::NOFOLLOW, Mode::empty())?))
    }

    pub(super) fn file(&self, name: &OsStr, how: How, mode: u32) -> io::Result<File> {
        // A pipe that takes the file's place is opened without waiting for its other end.
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = flags
            | match how {
                How::Read => OFlags::RDONLY,
                How::Update => OFlags::RDWR | OFlags::CREATE,
                How::New => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            };
        Ok(rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(mode as _))?.into())
    }

    pub(super) fn create_folder(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.0, name, Mode::from_raw_mode(mode as _))?)
    }

    pub(super) fn about(&self, name: &OsStr) -> io::Result<Option<About>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(about(&stat))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn about_itself(&self) -> io::Result<About> {
        Ok(about(&rustix::fs::fstat(&self.0)?))
    }

    pub(super) fn entries(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::new(OwnedFd::from(self.as_file()?))? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    pub(super) fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    pub(super) fn remove_folder(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    pub(super) fn rename(&self, from: &OsStr, to: &Handle, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &to.0, name)?)
    }

    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(self.as_file()?, Mode::from_raw_mode(mode as _))?)
    }

    pub(super) fn as_file(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, ".", flags, Mode::empty())?.into())
    }
}
