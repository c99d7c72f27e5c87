//! Files of a folder that a stranger may have filled: no name and no link leads out of it, and nothing is read at greater
//! length than its kind can have.
//!
//! The one place that a link may lead to is the store of a Hugging Face cache: there `snapshots/<commit>/<file>` points to
//! `blobs/<hash>` of the same repository.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use crate::directory::{Directory, Place, is_of_link};
use crate::error::{Diagnose, Fault};
use crate::temporary::is_temporary;

/// How folders of repositories begin in a Hugging Face cache.
const REPOSITORIES: [&str; 3] = ["models--", "datasets--", "spaces--"];

/// Longest file that is read beside the weights of a base; the largest, `tokenizer.json`, has 5 to 20 MB.
pub(crate) const MAX_SIDE_FILE_BYTES: u64 = 128 << 20;

/// Longest of those that are JSON and no tokenizer; the largest, a `tokenizer_config.json` with all its tokens, has some.
pub(crate) const MAX_JSON_BYTES: u64 = 16 << 20;

/// A file of a folder that is not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The system refused.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name with a root, a drive, or a `..` in it.
    #[error("`{name}` is not the path of a file below `{}`", folder.display())]
    Name {
        /// The folder.
        folder: PathBuf,
        /// The name.
        name: String,
    },
    /// A link, of a file or of a folder on the way, that leads out of the folder.
    #[error("`{}` is a link that leads out of `{}`", path.display(), folder.display())]
    Outside {
        /// The folder.
        folder: PathBuf,
        /// The file as it was named.
        path: PathBuf,
    },
    /// A link in a folder in which none is followed.
    #[error("`{}` is a link, and none is followed there", path.display())]
    Link {
        /// The file as it was named.
        path: PathBuf,
    },
    /// A folder, a device or a pipe.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Longer than such a file can be.
    #[error("`{}` has {bytes} bytes, expected at most {limit_bytes}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
}

/// Whose fault it is that a file cannot be read: the input's where the path that was given leads to no readable file.
pub fn fault_of_reading(error: &io::Error) -> Fault {
    use io::ErrorKind::{
        InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied, UnexpectedEof,
    };
    let is_given = matches!(
        error.kind(),
        NotFound | PermissionDenied | NotADirectory | IsADirectory | InvalidInput | InvalidFilename | UnexpectedEof
    );
    // Links that lead in a circle, which has no kind of its own.
    #[cfg(unix)]
    let is_given = is_given || error.raw_os_error() == Some(libc::ELOOP);
    if is_given { Fault::Input } else { Fault::Internal }
}

impl Diagnose for InputError {
    fn fault(&self) -> Fault {
        match self {
            InputError::Io { source, .. } => fault_of_reading(source),
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            InputError::Io { .. } if self.fault() == Fault::Internal => return Vec::new(),
            InputError::Io { .. } => "see whether it is there and this user may read it, such as with `ls -l`",
            InputError::Name { .. } => "what lies elsewhere must be copied into the folder",
            InputError::Outside { .. } => {
                "put the file itself there if you trust it; only a Hugging Face cache's links to its own `blobs` are followed"
            }
            InputError::NotAFile { .. } | InputError::Link { .. } => "put the file itself there",
            InputError::TooLarge { .. } => "no such file is that long: fetch it again from where it came from",
        };
        vec![hint.into()]
    }
}

/// The path of `name` below `folder` if a file lies there, `None` where nothing does.
///
/// # Errors
/// A name that could lead out of the folder, a link that does, something that is no regular file, or the system's.
pub fn locate(folder: &Path, name: &str) -> Result<Option<PathBuf>, InputError> {
    if !is_plain(name) {
        return Err(InputError::Name { folder: folder.to_path_buf(), name: name.into() });
    }
    let path = folder.join(name);
    let failed = |source| InputError::Io { path: path.clone(), source };
    match path.metadata() {
        // A link to nothing is nothing, as it is for every other program.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(source) => return Err(failed(source)),
        Ok(about) if !about.is_file() => return Err(InputError::NotAFile { path }),
        Ok(_) => {}
    }
    match contains(folder, &path).map_err(failed)? {
        true => Ok(Some(path)),
        false => Err(InputError::Outside { folder: folder.to_path_buf(), path }),
    }
}

/// Opens a regular file, wherever it lies. A pipe, a device or a socket is asked for its type and not opened, one that takes a
/// file's place in between is opened without waiting for its other end.
///
/// # Errors
/// What is no regular file ([`io::ErrorKind::InvalidInput`]), or the system's.
pub fn open(path: &Path) -> io::Result<File> {
    let regular = |about: std::fs::Metadata| match about.is_file() {
        true => Ok(()),
        false if about.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a pipe or a device, not a regular file")),
    };
    path.metadata().and_then(regular)?;
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path)?;
    file.metadata().and_then(regular)?;
    Ok(file)
}

/// The bytes of a file that the user named, wherever it lies.
///
/// # Errors
/// Something that is no regular file, more than `limit_bytes`, or the system's.
pub fn read_named(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, InputError> {
    read_file(path.to_path_buf(), limit_bytes)
}

/// A file of a folder.
#[derive(Debug)]
pub struct Opened {
    /// As it was named, for messages.
    pub path: PathBuf,
    /// The file, which is a regular one.
    pub file: File,
}

/// Opens the file `name` of a folder, `None` where there is none. What is opened lies in the folder whatever happens to names
/// meanwhile: where links lead is worked out first, and none is followed on the way there then.
///
/// # Errors
/// As [`locate`]; of a folder held open also a link that leads nowhere else.
pub fn open_in<'a>(folder: impl Into<Place<'a>>, name: &str) -> Result<Option<Opened>, InputError> {
    let folder = folder.into();
    let directory = match folder {
        Place::Named(folder) => {
            let Some(path) = locate(folder, name)? else { return Ok(None) };
            let opened = open_contained(folder, &path);
            return match opened.map_err(|source| not_opened(path.clone(), source))? {
                Some(file) => Ok(Some(Opened { path, file })),
                None => Err(InputError::Outside { folder: folder.to_path_buf(), path }),
            };
        }
        Place::Open(directory) => directory,
    };
    if !is_plain(name) {
        return Err(InputError::Name { folder: folder.path().to_path_buf(), name: name.into() });
    }
    let path = folder.path().join(name);
    match directory.open_file(name) {
        Ok(file) => Ok(Some(Opened { path, file })),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) if is_of_link(&e) && contains(folder.path(), &path).is_ok_and(|is_inside| !is_inside) => {
            Err(InputError::Outside { folder: folder.path().to_path_buf(), path })
        }
        Err(e) => Err(not_opened(path, e)),
    }
}

fn not_opened(path: PathBuf, source: io::Error) -> InputError {
    match source.kind() {
        _ if is_of_link(&source) => InputError::Link { path },
        io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => InputError::NotAFile { path },
        _ => InputError::Io { path, source },
    }
}

/// Opens the file that `path` leads to if [`contains`] says so of it, `None` otherwise.
fn open_contained(folder: &Path, path: &Path) -> io::Result<Option<File>> {
    let (folder, path) = (canonical(folder)?, path.canonicalize()?);
    let Some(root) = root_of(&folder, &path) else { return Ok(None) };
    let Ok(below) = path.strip_prefix(&root) else { return Ok(None) };
    match Directory::open(&root)?.open_file(below) {
        // Put there after it was asked where the path leads.
        Err(error) if is_of_link(&error) => Ok(None),
        opened => opened.map(Some),
    }
}

/// The bytes of the file `name` of a folder, `None` where there is none; of a `.json` file without a byte-order mark, with which
/// none may begin and some editors begin all.
///
/// # Errors
/// As [`open_in`]; a file of more than `limit_bytes`.
pub fn read<'a>(folder: impl Into<Place<'a>>, name: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, InputError> {
    let Some(opened) = open_in(folder, name)? else { return Ok(None) };
    let bytes = read_opened(opened, limit_bytes)?;
    Ok(Some(if name.ends_with(".json") { without_mark(bytes) } else { bytes }))
}

/// The bytes of the file that `path` leads to, if it lies below one of the folders, whatever the path looks like: an
/// absolute one, one with `..` in it, or a link. A relative one starts at each of the folders in turn. `None` where there is
/// no file.
///
/// # Errors
/// A file that lies elsewhere, something that is no regular file, more than `limit_bytes`, a path with a backslash or a zero
/// byte, or the system's.
pub fn read_among(folders: &[&Path], path: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, InputError> {
    let first = folders.first().copied().unwrap_or(Path::new(""));
    if path.is_empty() || path.contains(['\\', '\0']) {
        return Err(InputError::Name { folder: first.to_path_buf(), name: path.into() });
    }
    let mut refused = None;
    for start in folders {
        let path = start.join(path);
        let failed = |source| InputError::Io { path: path.clone(), source };
        match path.metadata() {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename
                ) => {}
            Err(source) => refused = refused.or(Some(failed(source))),
            Ok(about) => {
                // A folder that is not there contains nothing.
                let Some(folder) = folders.iter().find(|folder| contains(folder, &path).unwrap_or(false)) else {
                    refused = refused.or(Some(InputError::Outside { folder: start.to_path_buf(), path }));
                    continue;
                };
                if !about.is_file() {
                    refused = refused.or(Some(InputError::NotAFile { path }));
                    continue;
                }
                match open_contained(folder, &path).map_err(|source| not_opened(path.clone(), source))? {
                    Some(file) => return read_opened(Opened { path, file }, limit_bytes).map(Some),
                    None => refused = refused.or(Some(InputError::Outside { folder: start.to_path_buf(), path })),
                }
            }
        }
    }
    refused.map_or(Ok(None), Err)
}

fn read_file(path: PathBuf, limit_bytes: u64) -> Result<Vec<u8>, InputError> {
    let file = open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidInput => InputError::NotAFile { path: path.clone() },
        _ => InputError::Io { path: path.clone(), source },
    })?;
    read_opened(Opened { path, file }, limit_bytes)
}

fn read_opened(Opened { path, file }: Opened, limit_bytes: u64) -> Result<Vec<u8>, InputError> {
    let failed = |source| InputError::Io { path: path.clone(), source };
    let told = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    // A file may grow while it is read, and some tell no length: what counts is what comes.
    if told <= limit_bytes {
        file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    match told.max(bytes.len() as u64) {
        got if got > limit_bytes => Err(InputError::TooLarge { path, bytes: got, limit_bytes }),
        _ => Ok(bytes),
    }
}

/// Text without the byte-order mark that some editors put before UTF-8.
pub fn without_mark(mut text: Vec<u8>) -> Vec<u8> {
    if text.starts_with(b"\xEF\xBB\xBF") {
        text.drain(..3);
    }
    text
}

/// Whether a name joined to a folder stays below it, links aside. A backslash separates on some systems only, so it is
/// refused on all.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', '\0'])
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Whether `path`, all links followed, lies below `folder`, or among the blobs of the cached repository that the folder is
/// a snapshot of.
///
/// # Errors
/// One of them does not exist, or the system's.
pub fn contains(folder: &Path, path: &Path) -> io::Result<bool> {
    let (folder, path) = (canonical(folder)?, path.canonicalize()?);
    Ok(root_of(&folder, &path).is_some())
}

/// The folder by which a path belongs to a folder, both canonical: that folder, or the blobs beside it.
fn root_of(folder: &Path, path: &Path) -> Option<PathBuf> {
    if path.starts_with(folder) {
        return Some(folder.to_path_buf());
    }
    blobs_of(folder).filter(|blobs| path.parent() == Some(blobs))
}

/// The first link below `folder` that leads out of it or to nothing, for folders that are also written to: what lies there was
/// not put there by who writes to it. What has a temporary name is passed over, for it is not opened but taken away.
///
/// # Errors
/// The system's.
pub fn stray_link(folder: &Path) -> io::Result<Option<PathBuf>> {
    let root = canonical(folder)?;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in next.read_dir()? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, entry.path());
            if is_temporary(&entry.file_name().to_string_lossy()) {
                continue;
            }
            if kind.is_symlink() {
                if !path.canonicalize().is_ok_and(|target| target.starts_with(&root)) {
                    return Ok(Some(path));
                }
            } else if kind.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(None)
}

/// As `Path::canonicalize`, of a path that may be empty for the current folder.
fn canonical(folder: &Path) -> io::Result<PathBuf> {
    if folder.as_os_str().is_empty() { Path::new(".").canonicalize() } else { folder.canonicalize() }
}

/// Where the files of a snapshot, or of a folder in one, lie in a Hugging Face cache. `folder` is canonical.
fn blobs_of(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.ancestors().filter_map(Path::parent).find(|parent| parent.ends_with("snapshots"))?;
    let repository = snapshots.parent()?;
    let name = repository.file_name()?.to_str()?;
    let blobs = repository.join("blobs");
    let is_cache = REPOSITORIES.iter().any(|start| name.starts_with(start));
    // A store that is itself a link could be anywhere.
    (is_cache && blobs.symlink_metadata().ok()?.is_dir()).then_some(blobs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_refused() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("inner");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        std::fs::write(outer.path().join("secret"), "s").unwrap();
        std::fs::write(folder.join("sub/own"), "o").unwrap();
        let absolute = outer.path().join("secret");
        for name in ["../secret", "sub/../../secret", absolute.to_str().unwrap(), "", "..", "a\\b", "a\0b"] {
            assert!(matches!(locate(&folder, name), Err(InputError::Name { .. })), "{name:?}");
        }
        assert_eq!(read(&folder, "./sub/own", 1).unwrap().unwrap(), b"o");
        assert!(locate(&folder, "sub/none").unwrap().is_none());
        assert!(locate(&folder, "sub/own/none").unwrap().is_none());
        for name in ["sub", "."] {
            assert!(matches!(locate(&folder, name), Err(InputError::NotAFile { .. })), "{name}");
        }
    }

    #[test]
    fn json_comes_without_its_byte_order_mark() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text, expected) in [
            ("a.json", "\u{feff}{}", "{}"),
            ("b.json", "{}", "{}"),
            ("c.json", "\u{feff}", ""),
            ("d.json", "", ""),
            ("e.txt", "\u{feff}{}", "\u{feff}{}"),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
            assert_eq!(read(folder.path(), name, 9).unwrap().unwrap(), expected.as_bytes(), "{name}");
        }
    }

    #[test]
    fn longer_files_are_refused_whatever_they_tell() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), [0; 9]).unwrap();
        assert_eq!(read(folder.path(), "a", 9).unwrap().unwrap().len(), 9);
        let error = read(folder.path(), "a", 8).unwrap_err();
        assert!(matches!(error, InputError::TooLarge { bytes: 9, limit_bytes: 8, .. }), "{error}");
        assert!(!error.hints().is_empty());
    }

    #[test]
    fn paths_are_judged_by_where_they_lead() {
        let outer = tempfile::tempdir().unwrap();
        let (table, root) = (outer.path().join("table"), outer.path().join("pictures"));
        for (folder, text) in [(&table, "t"), (&root, "p"), (&outer.path().to_path_buf(), "o")] {
            std::fs::create_dir_all(folder.join("sub")).unwrap();
            std::fs::write(folder.join("a"), text).unwrap();
        }
        std::fs::write(root.join("b"), "b").unwrap();
        let absolute = |path: &Path| path.to_str().unwrap().to_owned();
        let read = |folders: &[&Path], path: &str| read_among(folders, path, 9);
        let (alone, both) = ([table.as_path()], [table.as_path(), root.as_path()]);
        for path in ["a", "./sub/../a", "../table/a", &absolute(&table.join("a")), &absolute(&table.join("sub/../a"))] {
            assert_eq!(read(&alone, path).unwrap().unwrap(), b"t", "{path}");
            assert_eq!(read(&both, path).unwrap().unwrap(), b"t", "{path}: what lies beside the table comes first");
        }
        for path in ["../pictures/b", &absolute(&root.join("b"))] {
            assert!(matches!(read(&alone, path), Err(InputError::Outside { .. })), "{path}");
            assert_eq!(read(&both, path).unwrap().unwrap(), b"b", "{path}");
        }
        assert_eq!(read(&both, "b").unwrap().unwrap(), b"b");
        for path in ["../a", &absolute(&outer.path().join("a")), "sub/../../a"] {
            assert!(matches!(read(&both, path), Err(InputError::Outside { .. })), "{path}");
        }
        for path in ["none", "../none", "/none", &"long/".repeat(2000), &"x".repeat(300)] {
            assert!(read(&both, path).unwrap().is_none(), "{path}");
        }
        for path in ["", "a\\b", "a\0"] {
            assert!(matches!(read(&both, path), Err(InputError::Name { .. })), "{path}");
        }
        assert!(matches!(read(&both, "sub"), Err(InputError::NotAFile { .. })));
        assert!(matches!(read_among(&alone, "a", 0), Err(InputError::TooLarge { bytes: 1, .. })));
        assert!(
            read(&[&outer.path().join("gone")], &absolute(&table.join("a"))).is_err(),
            "a folder that is not there"
        );
    }

    #[cfg(unix)]
    mod links {
        use std::os::unix::fs::symlink;

        use super::*;

        #[test]
        fn a_link_is_where_it_leads() {
            let outer = tempfile::tempdir().unwrap();
            let (table, root) = (outer.path().join("table"), outer.path().join("pictures"));
            for folder in [&table, &root] {
                std::fs::create_dir(folder).unwrap();
            }
            std::fs::write(outer.path().join("secret"), "s").unwrap();
            std::fs::write(root.join("a"), "p").unwrap();
            symlink("../secret", table.join("out")).unwrap();
            symlink("..", table.join("up")).unwrap();
            symlink("../pictures/a", table.join("allowed")).unwrap();
            symlink("../secret", root.join("out")).unwrap();
            symlink(&table, outer.path().join("alias")).unwrap();
            let both = [table.as_path(), root.as_path()];
            for path in ["out", "up/secret", "../pictures/out", "up/table/out"] {
                assert!(matches!(read_among(&both, path, 9), Err(InputError::Outside { .. })), "{path}");
            }
            assert_eq!(read_among(&both, "allowed", 9).unwrap().unwrap(), b"p");
            assert!(matches!(read_among(&both[..1], "allowed", 9), Err(InputError::Outside { .. })));
            std::fs::write(table.join("own"), "t").unwrap();
            let alias = outer.path().join("alias/own");
            assert_eq!(read_among(&both, alias.to_str().unwrap(), 9).unwrap().unwrap(), b"t");
        }

        #[test]
        fn a_link_out_of_the_folder_is_refused() {
            let outer = tempfile::tempdir().unwrap();
            let folder = outer.path().join("inner");
            std::fs::create_dir_all(folder.join("real")).unwrap();
            std::fs::write(outer.path().join("secret"), "s").unwrap();
            std::fs::write(folder.join("real/own"), "o").unwrap();
            symlink("../secret", folder.join("link")).unwrap();
            symlink("..", folder.join("up")).unwrap();
            symlink("real/own", folder.join("within")).unwrap();
            symlink("nothing", folder.join("dangling")).unwrap();
            symlink("/dev/zero", folder.join("endless")).unwrap();
            for name in ["link", "up/secret"] {
                let error = locate(&folder, name).unwrap_err();
                assert!(matches!(error, InputError::Outside { .. }), "{name}: {error}");
                assert!(!error.hints().is_empty());
            }
            assert!(matches!(locate(&folder, "endless"), Err(InputError::NotAFile { .. })));
            assert_eq!(read(&folder, "within", 1).unwrap().unwrap(), b"o");
            assert!(locate(&folder, "dangling").unwrap().is_none());
            // A folder that is itself reached through a link is the user's own choice.
            symlink(&folder, outer.path().join("alias")).unwrap();
            assert!(locate(&outer.path().join("alias"), "within").unwrap().is_some());
        }

        #[test]
        fn a_cache_may_keep_its_files_in_its_own_blobs() {
            let cache = tempfile::tempdir().unwrap();
            let make = |repository: &str| {
                let root = cache.path().join(repository);
                let snapshot = root.join("snapshots/abc");
                std::fs::create_dir_all(snapshot.join("sub")).unwrap();
                std::fs::create_dir_all(root.join("blobs")).unwrap();
                std::fs::write(root.join("blobs/123"), "b").unwrap();
                symlink("../../blobs/123", snapshot.join("config.json")).unwrap();
                symlink("../../../blobs/123", snapshot.join("sub/config.json")).unwrap();
                snapshot
            };
            let snapshot = make("models--owner--name");
            for (folder, name) in [("", "config.json"), ("", "sub/config.json"), ("sub", "config.json")] {
                assert_eq!(read(&snapshot.join(folder), name, 1).unwrap().unwrap(), b"b", "{folder} {name}");
            }
            symlink("../../../models--other--name/blobs/123", snapshot.join("foreign")).unwrap();
            make("models--other--name");
            assert!(matches!(locate(&snapshot, "foreign"), Err(InputError::Outside { .. })));
            let private = make("private");
            assert!(matches!(locate(&private, "config.json"), Err(InputError::Outside { .. })), "no cache's folder");
            let root = cache.path().join("models--owner--name");
            std::fs::rename(root.join("blobs"), cache.path().join("elsewhere")).unwrap();
            symlink("../elsewhere", root.join("blobs")).unwrap();
            assert!(
                matches!(locate(&snapshot, "config.json"), Err(InputError::Outside { .. })),
                "a store that is a link"
            );
        }

        #[test]
        fn links_that_would_be_written_through_are_found() {
            let outer = tempfile::tempdir().unwrap();
            let folder = outer.path().join("run");
            std::fs::create_dir_all(folder.join("checkpoints/step-1")).unwrap();
            std::fs::write(folder.join("metrics.jsonl"), "").unwrap();
            symlink("checkpoints/step-1", folder.join("latest")).unwrap();
            assert_eq!(stray_link(&folder).unwrap(), None);
            for (target, name) in [("../victim", "metrics"), ("/etc/hostname", "checkpoints/step-1/state.json")] {
                symlink(target, folder.join(name)).unwrap();
                assert_eq!(stray_link(&folder).unwrap(), Some(folder.join(name)));
                std::fs::remove_file(folder.join(name)).unwrap();
            }
        }
    }

    /// Whoever may write to a folder puts links in the place of its files while they are looked at.
    #[cfg(unix)]
    #[test]
    fn a_swap_between_the_look_and_the_opening_shows_nothing() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("base");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        std::fs::create_dir(outer.path().join("private")).unwrap();
        std::fs::write(outer.path().join("private/file"), "secret").unwrap();
        std::fs::write(folder.join("sub/file"), "own").unwrap();
        let (is_over, aside) = (AtomicBool::new(false), outer.path().join("aside"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The file, then the folder that it lies in.
                while !is_over.load(Ordering::Relaxed) {
                    let _ = std::os::unix::fs::symlink(outer.path().join("private/file"), &aside);
                    let _ = std::fs::rename(&aside, folder.join("sub/file"));
                    let _ = std::fs::write(&aside, "own");
                    let _ = std::fs::rename(&aside, folder.join("sub/file"));
                    // Long enough to be read.
                    std::thread::sleep(std::time::Duration::from_micros(100));
                    let _ = std::fs::rename(folder.join("sub"), &aside);
                    let _ = std::os::unix::fs::symlink(outer.path().join("private"), folder.join("sub"));
                    let _ = std::fs::remove_file(folder.join("sub"));
                    let _ = std::fs::rename(&aside, folder.join("sub"));
                }
            });
            let mut seen = [0; 3];
            let started = std::time::Instant::now();
            while started.elapsed() < std::time::Duration::from_millis(1500) {
                for opened in [
                    read(&folder, "sub/file", 9),
                    read_among(&[&folder], "sub/file", 9),
                    Directory::open(&folder).map_or(Ok(None), |folder| read(&folder, "sub/file", 9)),
                ] {
                    match opened {
                        Ok(Some(bytes)) if bytes == b"secret" => seen[2] += 1,
                        Ok(Some(_)) => seen[0] += 1,
                        Ok(None) => {}
                        Err(_) => seen[1] += 1,
                    }
                }
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(seen[0] > 0 && seen[1] > 0 && seen[2] == 0, "read, refused, and read what is private: {seen:?}");
        });
    }
}
