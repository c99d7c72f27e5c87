//! Paths where the system has no handles of folders: each is looked at before it is used.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{About, How, Kind};

#[derive(Debug)]
pub(super) struct Handle(PathBuf);

fn about(metadata: &Metadata) -> About {
    let kind = metadata.file_type();
    About {
        kind: match () {
            () if kind.is_symlink() => Kind::Link,
            () if kind.is_dir() => Kind::Folder,
            () if kind.is_file() => Kind::File,
            () => Kind::Other,
        },
        modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        is_own: true,
        is_for_all: false,
        mode: 0,
        identity: told_apart(metadata),
    }
}

/// Two files are told apart by when they were made, as nearly as the system says.
fn told_apart(metadata: &Metadata) -> (u64, u64) {
    let since = metadata.created().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or((0, 0), |since| (since.as_secs(), u64::from(since.subsec_nanos())))
}

pub(super) fn identity(file: &File) -> io::Result<(u64, u64)> {
    Ok(told_apart(&file.metadata()?))
}

impl Handle {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match path.metadata()?.is_dir() {
            true => Ok(Self(path.to_path_buf())),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(super) fn child(&self, name: &OsStr) -> io::Result<Self> {
        let path = self.0.join(name);
        match path.symlink_metadata()?.is_dir() {
            true => Ok(Self(path)),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(super) fn file(&self, name: &OsStr, how: How, _mode: u32) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != How::Read).create(how == How::Update).create_new(how == How::New);
        options.open(self.0.join(name))
    }

    pub(super) fn create_folder(&self, name: &OsStr, _mode: u32) -> io::Result<()> {
        std::fs::create_dir(self.0.join(name))
    }

    pub(super) fn about(&self, name: &OsStr) -> io::Result<Option<About>> {
        match self.0.join(name).symlink_metadata() {
            Ok(metadata) => Ok(Some(about(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn about_itself(&self) -> io::Result<About> {
        Ok(about(&self.0.metadata()?))
    }

    pub(super) fn entries(&self) -> io::Result<Vec<OsString>> {
        self.0.read_dir()?.map(|entry| Ok(entry?.file_name())).collect()
    }

    pub(super) fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        std::fs::remove_file(self.0.join(name))
    }

    pub(super) fn remove_folder(&self, name: &OsStr) -> io::Result<()> {
        std::fs::remove_dir(self.0.join(name))
    }

    pub(super) fn rename(&self, from: &OsStr, to: &Handle, name: &OsStr) -> io::Result<()> {
        let to = to.0.join(name);
        // Not every system renames over an empty folder.
        if to.is_dir() {
            std::fs::remove_dir(&to)?;
        }
        std::fs::rename(self.0.join(from), to)
    }

    pub(super) fn set_mode(&self, _mode: u32) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn as_file(&self) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
