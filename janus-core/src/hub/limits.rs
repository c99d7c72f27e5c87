//! How much a hub may send, and how slowly: a stranger's server must not fill a disk or hold a command for ever.

use super::HubError;
use crate::input::MAX_SIDE_FILE_BYTES;

/// The variable that sets [`Limits::file_bytes`].
pub(super) const FILE_BYTES_VARIABLE: &str = "JANUS_HUB_MAX_FILE_BYTES";

/// The variable that sets [`Limits::files`].
pub(super) const FILES_VARIABLE: &str = "JANUS_HUB_MAX_FILES";

/// The variable that sets [`Limits::least_bytes_per_s`].
pub(super) const LEAST_RATE_VARIABLE: &str = "JANUS_HUB_MIN_BYTES_PER_S";

/// Weights or a table whose size the hub tells: far more than any that is published in one file.
const MOST_TOLD_BYTES: u64 = 1 << 40;

/// Weights or a table whose size nobody tells: who sends them may never stop.
const MOST_UNTOLD_BYTES: u64 = 16 << 30;

/// What all the small files of a base may take together, in files of the greatest length.
const SMALL_FILES_TOGETHER: u64 = 4;

/// Files of one repository: the hub itself advises against more than twice as many.
const MOST_LISTED_FILES: usize = 50_000;

/// Configurations, tokenizers and templates beside a base's weights; published ones have about ten.
const MOST_SMALL_FILES: usize = 256;

/// A tenth of what the slowest mobile networks give.
const LEAST_BYTES_PER_S: u64 = 1000;

/// What is borne of a hub. Where a number is absent each kind of file has its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one file.
    pub file_bytes: Option<u64>,
    /// Most bytes of weights or of a table whose size the hub does not tell; goes before `file_bytes`.
    pub untold_bytes: Option<u64>,
    /// Most files of one repository, and most small files beside a base's weights.
    pub files: Option<usize>,
    /// Least bytes a second, on average over the time of [`super::Patience::silence`]; 0 waits for any.
    pub least_bytes_per_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: None, untold_bytes: None, files: None, least_bytes_per_s: LEAST_BYTES_PER_S }
    }
}

/// Kinds of files, by what they may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    /// Read into memory as a whole: configuration, tokenizer, template, index.
    Small,
    /// Weights, tables.
    Large,
}

impl Limits {
    /// Most bytes of a file whose size the hub tells, or does not.
    pub(super) fn bytes_of(&self, kind: FileKind, is_told: bool) -> u64 {
        let is_untold = kind == FileKind::Large && !is_told;
        let set = self.untold_bytes.filter(|_| is_untold).or(self.file_bytes);
        set.unwrap_or(match (kind, is_told) {
            (FileKind::Small, _) => MAX_SIDE_FILE_BYTES,
            (FileKind::Large, true) => MOST_TOLD_BYTES,
            (FileKind::Large, false) => MOST_UNTOLD_BYTES,
        })
    }

    /// Most bytes of all small files of a base together.
    pub(super) fn bytes_of_small(&self) -> u64 {
        self.bytes_of(FileKind::Small, true).saturating_mul(SMALL_FILES_TOGETHER)
    }

    /// Refuses a repository of too many files.
    pub(super) fn check_listed(&self, repository: &str, files: usize) -> Result<(), HubError> {
        self.check_count(repository, "files", files, MOST_LISTED_FILES)
    }

    /// Refuses a base of too many small files.
    pub(super) fn check_small(&self, repository: &str, files: usize) -> Result<(), HubError> {
        self.check_count(repository, "files beside its weights", files, MOST_SMALL_FILES)
    }

    fn check_count(&self, repository: &str, of: &'static str, got: usize, usual: usize) -> Result<(), HubError> {
        let limit = self.files.unwrap_or(usual);
        match got > limit {
            true => Err(HubError::TooMany { repository: repository.to_string(), of, got, limit }),
            false => Ok(()),
        }
    }
}
