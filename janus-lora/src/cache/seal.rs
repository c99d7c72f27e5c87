//! Digests beside what was made on the spot and cannot be told from something else: drawn tables, bases with random weights.
//!
//! `NAME.sha256` beside the file or folder `NAME` has a line for each file: digest, length, time of writing in nanoseconds,
//! name. What is not exactly as it says is made anew. It tells damage and mistakes; against who may write to the folder, and so
//! to the digests, it is the folder's mode that counts ([`janus_core::ownership`]).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::Metadata;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use janus_core::input;
use janus_core::output::{OutputError, write_file};
use janus_core::ownership::{is_believable, is_open_to_all};
use sha2::{Digest, Sha256};

/// Longest file that is read again at each use. Of longer ones length and time of writing are believed as long as they are
/// those that were noted.
const MOST_READ_BYTES: u64 = 64 << 20;

/// Longest list of digests: a line is some hundred bytes, and a base has at most some hundred files.
const MOST_LIST_BYTES: u64 = 1 << 20;

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    digest: String,
    bytes: u64,
    written_ns: u128,
}

/// Where the digests of a file or folder are.
pub(crate) fn seal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// Writes down the digests of what was made at `made` and is, or will be, at `path`.
pub(crate) fn seal(made: &Path, path: &Path) -> Result<(), OutputError> {
    let failed = |source| OutputError::Io { path: made.to_path_buf(), source };
    let mut lines = BTreeMap::new();
    for (name, file, about) in files(made).map_err(failed)? {
        // One file is known by the name that it will have.
        let name = if made.is_dir() { name } else { own_name(path) };
        let digest = digest_of(&file).map_err(failed)?;
        lines.insert(name, Line { digest, bytes: about.len(), written_ns: written_ns(&about) });
    }
    write(path, &lines)
}

/// Whether a file or folder is there and is what was made.
pub(crate) fn holds(path: &Path) -> bool {
    let seal = seal_of(path);
    let folder = path.parent().unwrap_or(Path::new("."));
    if !is_believable(&seal, folder) || folder.parent().is_some_and(is_open_to_all) {
        return false;
    }
    let Some(lines) = read(&seal) else { return false };
    let Ok(found) = files(path) else { return false };
    if found.len() != lines.len() {
        return false;
    }
    let mut now = BTreeMap::new();
    for (name, file, about) in found {
        let Some(line) = lines.get(&name).filter(|line| line.bytes == about.len()) else { return false };
        let written_ns = written_ns(&about);
        let is_as_noted = about.len() > MOST_READ_BYTES && written_ns == line.written_ns;
        if !is_as_noted && digest_of(&file).ok().as_ref() != Some(&line.digest) {
            return false;
        }
        now.insert(name, Line { written_ns, ..line.clone() });
    }
    let was_copied = now.iter().any(|(name, line)| line.bytes > MOST_READ_BYTES && lines.get(name) != Some(line));
    if was_copied {
        // Without it the next use reads everything again.
        let _ = require_own_hand(path).and_then(|()| write(path, &now));
    }
    true
}

/// Refuses to write where every user of the machine may put something else in the place of what is written: `path` is what is
/// to be made, in a folder of the cache.
pub(crate) fn require_own_hand(path: &Path) -> Result<(), OutputError> {
    check_own_hand(path).map_err(|source| OutputError::Io { path: path.to_path_buf(), source })
}

/// As [`require_own_hand`], without the path.
pub(super) fn check_own_hand(path: &Path) -> io::Result<()> {
    const WHY: &str = "every user may put something else there: take a folder of your own in it, or `chmod o-w`";
    match path.ancestors().take(3).any(is_open_to_all) {
        true => Err(io::Error::new(io::ErrorKind::PermissionDenied, WHY)),
        false => Ok(()),
    }
}

fn own_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The regular file, or those of a folder that holds nothing else.
fn files(path: &Path) -> io::Result<Vec<(String, PathBuf, Metadata)>> {
    let about = path.symlink_metadata()?;
    if about.is_file() {
        return Ok(vec![(own_name(path), path.to_path_buf(), about)]);
    }
    let mut found = Vec::new();
    for entry in path.read_dir()? {
        let (file, name) = entry.map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))?;
        // Hidden ones are no part of a base: what is being written, what the system put there.
        if name.starts_with('.') {
            continue;
        }
        let about = file.symlink_metadata()?;
        if !about.is_file() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        found.push((name, file, about));
    }
    Ok(found)
}

fn written_ns(about: &Metadata) -> u128 {
    let since = about.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos())
}

fn digest_of(path: &Path) -> io::Result<String> {
    let mut file = input::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write(path: &Path, lines: &BTreeMap<String, Line>) -> Result<(), OutputError> {
    let mut text = String::new();
    for (name, Line { digest, bytes, written_ns }) in lines {
        let _ = writeln!(text, "{digest} {bytes} {written_ns} {name}");
    }
    write_file(&seal_of(path), |out| out.write_all(text.as_bytes()))
}

fn read(seal: &Path) -> Option<BTreeMap<String, Line>> {
    let text = String::from_utf8(input::read_named(seal, MOST_LIST_BYTES).ok()?).ok()?;
    let line = |line: &str| {
        let mut parts = line.splitn(4, ' ');
        let (digest, bytes, written) = (parts.next()?, parts.next()?, parts.next()?);
        let line = Line { digest: digest.into(), bytes: bytes.parse().ok()?, written_ns: written.parse().ok()? };
        Some((parts.next()?.to_owned(), line))
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_as_it_was_made_does_not_hold() {
        let cache = tempfile::tempdir().unwrap();
        let base = cache.path().join("bases/one");
        fs_err::create_dir_all(&base).unwrap();
        for (name, text) in [("config.json", "{}"), ("weights", "1234")] {
            fs_err::write(base.join(name), text).unwrap();
        }
        assert!(!holds(&base), "nobody says what it should be");
        seal(&base, &base).unwrap();
        assert!(holds(&base));
        let spoil: [(&str, &dyn Fn()); 5] = [
            ("another content", &|| fs_err::write(base.join("weights"), "1235").unwrap()),
            ("another length", &|| fs_err::write(base.join("weights"), "123").unwrap()),
            ("a file more", &|| fs_err::write(base.join("added_tokens.json"), "{}").unwrap()),
            ("a file less", &|| fs_err::remove_file(base.join("config.json")).unwrap()),
            ("no list", &|| fs_err::write(seal_of(&base), "nothing").unwrap()),
        ];
        for (what, spoil) in spoil {
            fs_err::remove_dir_all(&base).unwrap();
            fs_err::create_dir_all(&base).unwrap();
            for (name, text) in [("config.json", "{}"), ("weights", "1234")] {
                fs_err::write(base.join(name), text).unwrap();
            }
            seal(&base, &base).unwrap();
            assert!(holds(&base), "{what}");
            spoil();
            assert!(!holds(&base), "{what}");
        }
    }

    #[test]
    fn a_file_has_its_own() {
        let cache = tempfile::tempdir().unwrap();
        let path = cache.path().join("rows.parquet");
        fs_err::write(&path, "rows").unwrap();
        seal(&path, &path).unwrap();
        assert!(holds(&path));
        fs_err::write(&path, "rowz").unwrap();
        assert!(!holds(&path));
    }

    #[cfg(unix)]
    #[test]
    fn links_and_what_everybody_may_have_put_there_do_not_hold() {
        use std::os::unix::fs::PermissionsExt;
        let cache = tempfile::tempdir().unwrap();
        let path = cache.path().join("data/rows.parquet");
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, "rows").unwrap();
        seal(&path, &path).unwrap();
        for folder in [cache.path(), path.parent().unwrap()] {
            let set = |mode| fs_err::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
            set(0o777);
            assert!(!holds(&path));
            assert!(require_own_hand(&path).unwrap_err().to_string().contains("cannot write"));
            set(0o1777);
            assert!(holds(&path) && require_own_hand(&path).is_ok(), "as in `/tmp`, what is one's own");
            set(0o755);
        }
        fs_err::rename(&path, cache.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(cache.path().join("elsewhere"), &path).unwrap();
        assert!(!holds(&path));
    }
}
