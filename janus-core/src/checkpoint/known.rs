//! Fingerprints that were worked out before, each kept with what the system says of the files it was worked out from.
//!
//! A fingerprint depends on nothing but the files. As long as path, size, times of writing and of change, device and number
//! of each file are the same, it is not worked out again. An entry that is damaged, of other files, or of who may
//! be anybody, counts as none.

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::Checkpoint;
use super::fingerprint::PREFIX as FINGERPRINT_PREFIX;
use crate::input;
use crate::output::{OutputError, write_file};
use crate::ownership::{is_believable, is_open_to_all};

/// First bytes of what is hashed: a change of the format makes all entries those of other files.
const PREFIX: &[u8] = b"janus-files-1\n";

/// How long files must have been left alone before times can tell of the next writing: FAT counts in steps of two seconds,
/// the coarsest clock of a file system in use.
const SETTLED: Duration = Duration::from_secs(2);

/// Digits of a SHA-256.
const DIGITS: usize = 64;

/// What the system says of a checkpoint's weights files, and where in them its tensors lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesIdentity {
    /// Hash of everything.
    digest: [u8; 32],
    /// The last writing to any of the files.
    modified: SystemTime,
}

impl Checkpoint {
    /// What the system says of the weights files now; `None` where it does not tell enough.
    pub fn identity(&self) -> Option<FilesIdentity> {
        let mut hasher = Sha256::new();
        hasher.update(PREFIX);
        hasher.update(FINGERPRINT_PREFIX);
        let mut modified = SystemTime::UNIX_EPOCH;
        for file in &self.files {
            modified = modified.max(file.identify(&mut hasher).ok()?);
        }
        for tensor in self.tensors() {
            hasher.update((tensor.name.len() as u64).to_le_bytes());
            hasher.update(tensor.name.as_bytes());
            hasher.update((tensor.shape.len() as u64).to_le_bytes());
            for number in tensor.shape.iter().map(|side| *side as u64).chain([tensor.file_index as u64, tensor.offset])
            {
                hasher.update(number.to_le_bytes());
            }
            hasher.update(tensor.dtype.as_str().as_bytes());
        }
        Some(FilesIdentity { digest: hasher.finalize().into(), modified })
    }
}

/// A folder of fingerprints, one entry of some hundred bytes for each checkpoint folder.
#[derive(Debug, Clone)]
pub struct KnownFingerprints {
    folder: PathBuf,
}

impl KnownFingerprints {
    /// Those in `folder`, which need not exist.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The fingerprint of a checkpoint of that identity, if it is known.
    pub fn get(&self, checkpoint: &Checkpoint, identity: &FilesIdentity) -> Option<String> {
        let longest = entry("", identity).len() + DIGITS;
        let mut text = String::new();
        let path = self.path(checkpoint)?;
        if !is_believable(&path, &self.folder) || self.folder.parent().is_some_and(is_open_to_all) {
            return None;
        }
        let file = input::open(&path).ok()?;
        file.take(longest as u64 + 1).read_to_string(&mut text).ok()?;
        let fingerprint = text.get(..DIGITS)?;
        (text == entry(fingerprint, identity)).then(|| fingerprint.to_owned())
    }

    /// Keeps a fingerprint that was worked out after `before` was asked for. Files that were written to since, or so
    /// shortly before that another writing might not show, are left out, and so is all in a folder that everybody may write to.
    ///
    /// # Errors
    /// The system's.
    pub fn put(&self, checkpoint: &Checkpoint, before: &FilesIdentity, fingerprint: &str) -> Result<(), OutputError> {
        let age = SystemTime::now().duration_since(before.modified).unwrap_or_default();
        let Some(path) = self.path(checkpoint).filter(|_| age >= SETTLED) else { return Ok(()) };
        let is_open = self.folder.ancestors().take(2).any(is_open_to_all);
        if is_open || checkpoint.identity().as_ref() != Some(before) {
            return Ok(());
        }
        write_file(&path, |file| file.write_all(entry(fingerprint, before).as_bytes()))
    }

    /// Named by the folder, not by what is in it: new weights in an old place overwrite the old entry.
    fn path(&self, checkpoint: &Checkpoint) -> Option<PathBuf> {
        let place = checkpoint.folder().canonicalize().ok()?;
        Some(self.folder.join(hex(&Sha256::digest(place.as_os_str().as_encoded_bytes()))))
    }
}

/// The text of an entry: the fingerprint, and a sum over it and what it belongs to.
fn entry(fingerprint: &str, identity: &FilesIdentity) -> String {
    let sum = Sha256::new().chain_update(identity.digest).chain_update(fingerprint).finalize();
    format!("{fingerprint} {}\n", hex(&sum))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
