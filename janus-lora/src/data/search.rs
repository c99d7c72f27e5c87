//! Files below a folder: all tables, or what a pattern matches.
//!
//! Links to folders are followed, after all folders that are really there, and no folder is looked into twice, by whatever name:
//! a search ends, however links lead round in circles.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use glob::{MatchOptions, Pattern, PatternError};

/// Most folders that a search looks into.
const MAX_FOLDERS: usize = 1 << 17;

/// Why a search fails.
#[derive(Debug)]
pub(super) enum SearchFault {
    /// The pattern is none.
    Pattern(PatternError),
    /// A folder cannot be read.
    Read(PathBuf, io::Error),
    /// There are more folders than are looked into.
    TooMany(usize),
}

/// How globs match, here and on a hub.
pub(super) fn pattern_options() -> MatchOptions {
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true }
}

/// What a folder is known by, whatever it is called: file system and number.
#[cfg(unix)]
type Folder = (u64, u64);
#[cfg(not(unix))]
type Folder = PathBuf;

#[cfg(unix)]
fn identity(folder: &Path) -> io::Result<Folder> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(folder).map(|found| (found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn identity(folder: &Path) -> io::Result<Folder> {
    fs::canonicalize(folder)
}

/// A part of a pattern, between its separators.
enum Part {
    /// `**`: any number of folders.
    Folders,
    Name(String),
    Names(Pattern),
}

impl Part {
    fn new(part: &str) -> Result<Self, PatternError> {
        Ok(match part {
            "**" => Part::Folders,
            part if part.contains(['*', '?', '[']) => Part::Names(Pattern::new(part)?),
            part => Part::Name(part.to_owned()),
        })
    }
}

/// Folders that are still to be looked into, each with how far on the way it is.
struct Search {
    visited: HashSet<(Folder, usize)>,
    folders: Vec<(PathBuf, usize)>,
    links: VecDeque<(PathBuf, usize)>,
    /// Whether a folder is looked into once at each place on the way.
    by_place: bool,
}

/// What lies in a folder.
struct Entry {
    name: String,
    path: PathBuf,
    is_link: bool,
    is_folder: bool,
}

impl Search {
    fn new(folder: &Path, by_place: bool) -> Self {
        let folders = vec![(folder.to_path_buf(), 0)];
        Self { visited: HashSet::new(), folders, links: VecDeque::new(), by_place }
    }

    /// The next folder that was not looked into yet at this place on the way. An empty path is the current folder.
    fn next(&mut self) -> Result<Option<(PathBuf, usize)>, SearchFault> {
        while let Some((folder, place)) = self.folders.pop().or_else(|| self.links.pop_front()) {
            let known = identity(or_current(&folder)).map_err(|e| SearchFault::Read(folder.clone(), e))?;
            if self.visited.insert((known, if self.by_place { place } else { 0 })) {
                return match self.visited.len() {
                    count if count > MAX_FOLDERS => Err(SearchFault::TooMany(MAX_FOLDERS)),
                    _ => Ok(Some((folder, place))),
                };
            }
        }
        Ok(None)
    }

    fn add(&mut self, entry: Entry, place: usize) {
        match entry.is_link {
            true => self.links.push_back((entry.path, place)),
            false => self.folders.push((entry.path, place)),
        }
    }
}

fn or_current(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}

/// What lies in a folder, by name; of a name that is not Unicode a pattern sees `\u{fffd}`.
fn entries(folder: &Path) -> Result<Vec<Entry>, SearchFault> {
    let failed = |source| SearchFault::Read(folder.to_path_buf(), source);
    let read = fs::read_dir(or_current(folder)).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
    let entry = |entry: fs::DirEntry| {
        let path = folder.join(entry.file_name());
        let kind = entry.file_type().ok()?;
        let is_folder = kind.is_dir() || (kind.is_symlink() && path.is_dir());
        let name = entry.file_name().to_string_lossy().into_owned();
        Some(Entry { name, path, is_link: kind.is_symlink(), is_folder })
    };
    let mut found: Vec<Entry> = read.into_iter().filter_map(entry).collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The files below a folder that are called as `is_wanted` says; names that start with a dot (caches, files under construction)
/// are passed over. Folders deeper than `depth` are not looked into. Links that lead nowhere and pipes are among what is found:
/// rows that cannot be read must not be rows that are not there.
pub(super) fn below(
    folder: &Path,
    depth: usize,
    is_wanted: &dyn Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, SearchFault> {
    let (mut files, mut search) = (Vec::new(), Search::new(folder, false));
    while let Some((folder, deep)) = search.next()? {
        for entry in entries(&folder)?.into_iter().filter(|entry| !entry.name.starts_with('.')) {
            if entry.is_folder {
                if deep < depth {
                    search.add(entry, deep + 1);
                }
            } else if is_wanted(&entry.path) {
                files.push(entry.path);
            }
        }
    }
    Ok(files)
}

/// The files that a pattern matches, which begins at `folder`; as in [`below`] also those that cannot be read.
pub(super) fn matching(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, SearchFault> {
    let parts = pattern.split(std::path::is_separator).filter(|part| !part.is_empty());
    let parts: Vec<Part> = parts.map(Part::new).collect::<Result<_, _>>().map_err(SearchFault::Pattern)?;
    let mut files = Vec::new();
    if !or_current(folder).is_dir() {
        return Ok(files);
    }
    let mut search = Search::new(folder, true);
    while let Some((folder, place)) = search.next()? {
        let is_last = place + 1 == parts.len();
        let mut found = |entry: Entry, search: &mut Search| match entry.is_folder {
            true if !is_last => search.add(entry, place + 1),
            false if is_last => files.push(entry.path),
            _ => {}
        };
        match parts.get(place) {
            None => {}
            Some(Part::Name(name)) => {
                let path = folder.join(name);
                let (is_link, is_folder) = (path.is_symlink(), path.is_dir());
                if is_link || path.exists() {
                    found(Entry { name: name.clone(), path, is_link, is_folder }, &mut search);
                }
            }
            Some(Part::Names(pattern)) => {
                let entries = entries(&folder)?.into_iter();
                let matching = entries.filter(|entry| pattern.matches_with(&entry.name, pattern_options()));
                matching.for_each(|entry| found(entry, &mut search));
            }
            Some(Part::Folders) => {
                let below =
                    entries(&folder)?.into_iter().filter(|entry| entry.is_folder && !entry.name.starts_with('.'));
                below.for_each(|entry| search.add(entry, place));
                if !is_last {
                    search.folders.push((folder, place + 1));
                }
            }
        }
    }
    Ok(files)
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder_of(names: &[&str], links: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        links.iter().for_each(|(to, name)| symlink(to, folder.path().join(name)).unwrap());
        folder
    }

    fn found(folder: &Path, pattern: &str) -> Vec<String> {
        let mut files = matching(folder, pattern).unwrap();
        files.sort();
        files.iter().map(|file| file.strip_prefix(folder).unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_pattern_ends_where_links_lead_round() {
        let around: Vec<(String, String)> = (0..30).map(|n| ("..".to_owned(), format!("a/up{n}"))).collect();
        let around: Vec<(&str, &str)> = around.iter().map(|(to, name)| (to.as_str(), name.as_str())).collect();
        let links = [&around[..], &[("../b", "a/beside"), ("../a", "b/back"), ("y", "x"), ("x", "y")]].concat();
        let folder = folder_of(&["a/t.parquet", "b/deep/u.parquet"], &links);
        let folder = folder.path();
        for pattern in ["**/*.parquet", "**/*/**/*.parquet", "**/**/*.parquet"] {
            let found = found(folder, pattern);
            assert!(
                ["a/t.parquet", "b/deep/u.parquet"].iter().all(|name| found.contains(&(*name).to_owned())),
                "{found:?}"
            );
        }
        assert_eq!(found(folder, "**/*.parquet"), ["a/t.parquet", "b/deep/u.parquet"]);
        // Each folder once at each place of the pattern, where there are thirty ways to it.
        assert!(found(folder, "*/*/*/*/*/*/*/*/*/*/*.parquet").len() <= 2);
    }

    #[test]
    fn folders_that_links_lead_back_to_are_looked_into_once() {
        let links = [(".", "a/self"), ("..", "a/up"), ("../b", "a/beside"), ("../a", "b/back"), ("deep", "b/again")];
        let folder = folder_of(&["a/train.parquet", "b/deep/train.parquet"], &links);
        // What lies elsewhere is reached through its link alone.
        let other = folder_of(&["train.parquet"], &[]);
        symlink(other.path(), folder.path().join("elsewhere")).unwrap();
        let mut files = below(folder.path(), 16, &|_| true).unwrap();
        files.sort();
        let expected = ["a/train.parquet", "b/deep/train.parquet", "elsewhere/train.parquet"];
        assert_eq!(files, expected.map(|name| folder.path().join(name)));
    }

    #[test]
    fn files_that_are_the_same_by_two_names_stay_two() {
        let folder = folder_of(&["blobs/1", "s/none"], &[("../blobs/1", "s/a.parquet"), ("../blobs/1", "s/b.parquet")]);
        std::fs::hard_link(folder.path().join("blobs/1"), folder.path().join("s/c.parquet")).unwrap();
        assert_eq!(found(folder.path(), "s/*.parquet"), ["s/a.parquet", "s/b.parquet", "s/c.parquet"]);
        assert_eq!(below(folder.path(), 9, &|path| path.extension().is_some()).unwrap().len(), 3);
    }

    #[test]
    fn what_cannot_be_read_is_found_too() {
        let folder =
            folder_of(&["a/good.parquet"], &[("../gone", "a/dangling.parquet"), ("loop.parquet", "loop.parquet")]);
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("a/socket.parquet")).unwrap();
        let mut files = below(folder.path(), 9, &|_| true).unwrap();
        files.sort();
        let expected = ["a/dangling.parquet", "a/good.parquet", "a/socket.parquet", "loop.parquet"];
        assert_eq!(files, expected.map(|name| folder.path().join(name)));
        assert_eq!(found(folder.path(), "**/*.parquet"), expected);
        assert_eq!(found(folder.path(), "*/dangling.parquet"), ["a/dangling.parquet"]);
        assert_eq!(found(folder.path(), "*/none.parquet"), [""; 0]);
    }

    #[test]
    fn hidden_names_and_literal_parts_are_taken_as_written() {
        let folder = folder_of(&[".h/a.parquet", "v/.b.parquet", "v/w/c.parquet", "v/d"], &[]);
        let folder = folder.path();
        for (pattern, expected) in [
            ("**/*.parquet", &["v/w/c.parquet"][..]),
            (".h/*", &[".h/a.parquet"]),
            ("*/.*", &["v/.b.parquet"]),
            ("*/w/*", &["v/w/c.parquet"]),
            ("*/d", &["v/d"]),
            ("**", &[]),
            ("none/*", &[]),
        ] {
            assert_eq!(found(folder, pattern), expected, "{pattern}");
        }
        assert!(matches!(matching(folder, "***/a"), Err(SearchFault::Pattern(_))));
    }
}
