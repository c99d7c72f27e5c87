//! Whether a blob of the cache is what its name says: the hub names files in large-file storage by their SHA-256, others by
//! the hash that Git has for them.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::is_commit;
use crate::input;

/// Longest file that is read again each time it is found in the cache: some hundredths of a second.
pub(super) const MOST_CHECKED_BYTES: u64 = 32 << 20;

/// Digits of a SHA-1.
const GIT_DIGITS: usize = 40;

/// Whether the name of a blob tells what is in it.
pub(super) fn is_telling(etag: &str) -> bool {
    is_commit(etag)
}

/// The digest of a file that is another one than `etag` says; `None` of a tag that tells nothing, and of a file that is longer
/// than `limit_bytes`.
pub(super) fn other_digest(etag: &str, path: &Path, limit_bytes: u64) -> io::Result<Option<String>> {
    if !is_telling(etag) {
        return Ok(None);
    }
    let mut file = input::open(path)?;
    let length_bytes = file.metadata()?.len();
    if length_bytes > limit_bytes {
        return Ok(None);
    }
    let got = if etag.len() == GIT_DIGITS {
        let git = digest(&mut file, Sha1::new().chain_update(format!("blob {length_bytes}\0")), length_bytes)?;
        // Mirrors that are no Git repositories name small files by their plain SHA-1.
        let is_plain = git != etag && {
            file.rewind()?;
            digest(&mut file, Sha1::new(), length_bytes)? == etag
        };
        if is_plain { etag.to_string() } else { git }
    } else {
        digest(&mut file, Sha256::new(), length_bytes)?
    };
    Ok((got != etag).then_some(got))
}

/// So many bytes and one more at the most: a file that grows meanwhile has another digest as it is.
fn digest<D: Digest>(file: &mut File, mut hasher: D, length_bytes: u64) -> io::Result<String> {
    let mut buffer = vec![0; 256 << 10];
    let mut rest = file.take(length_bytes.saturating_add(1));
    loop {
        match rest.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(count) => hasher.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_of_large_file_storage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "what is up, doc?").unwrap();
        let differs = |etag: &str, limit| other_digest(etag, &path, limit).unwrap();
        // As `git hash-object` has it.
        let git = "bd9dbf5aae1a3862dd1526723246b20206e5fc37";
        let sha256 = hex(&Sha256::digest("what is up, doc?"));
        for same in [git, &sha256, &hex(&Sha1::digest("what is up, doc?"))] {
            assert_eq!(differs(same, 16), None);
        }
        assert_eq!(differs(&"0".repeat(40), 16).as_deref(), Some(git));
        assert_eq!(differs(&"0".repeat(64), 16), Some(sha256));
        assert_eq!(differs(&"0".repeat(40), 15), None, "longer than is looked at");
        assert_eq!(differs("5d41402abc4b2a76b9719d911017c592-3", 16), None, "another host's tag");
    }
}
