use std::fmt;
use std::str::FromStr;

use super::HubError;

/// The revision that stands where none is written.
const DEFAULT_REVISION: &str = "main";

/// Longest `owner/name` the hub allows, in bytes.
const LONGEST_ID_BYTES: usize = 96;

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// A repository on a hub at a revision, written `owner/name` or `owner/name@revision`, after `datasets/` if it is a data
/// set's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoId {
    kind: RepoKind,
    // Boxed, for errors carry ids along.
    repository: Box<str>,
    revision: Box<str>,
}

impl RepoId {
    /// `owner/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Branch, tag, `refs/pr/N` or commit hash; `main` where none was written.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// What the repository holds.
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// The id of a data set's repository.
    ///
    /// # Errors
    /// `spec` is not `owner/name` or `owner/name@revision`.
    pub fn dataset(spec: &str) -> Result<Self, HubError> {
        let id = Self::parse(spec).map_err(|problem| HubError::Id { spec: spec.to_string(), problem })?;
        Ok(Self { kind: RepoKind::Dataset, ..id })
    }

    /// Where the repository is below the hub's address: `owner/name` or `datasets/owner/name`.
    pub(super) fn path(&self) -> String {
        match self.kind {
            RepoKind::Model => self.repository.to_string(),
            RepoKind::Dataset => format!("datasets/{}", self.repository),
        }
    }

    /// Reads a model's id, or tells the rule that `spec` breaks.
    pub(super) fn parse(spec: &str) -> Result<Self, &'static str> {
        let (repository, revision) = spec.split_once('@').unwrap_or((spec, DEFAULT_REVISION));
        let (owner, name) = repository.split_once('/').ok_or("there is no `/` in it")?;
        if repository.len() > LONGEST_ID_BYTES {
            return Err("it is longer than 96 bytes");
        }
        check_part(owner)?;
        check_part(name)?;
        if name.ends_with(".git") {
            return Err("the name ends in `.git`");
        }
        check_revision(revision)?;
        let (repository, revision) = (repository.into(), revision.into());
        Ok(Self { kind: RepoKind::Model, repository, revision })
    }
}

impl FromStr for RepoId {
    type Err = HubError;

    fn from_str(spec: &str) -> Result<Self, HubError> {
        Self::parse(spec).map_err(|problem| HubError::Id { spec: spec.to_string(), problem })
    }
}

/// The hub's rule for owners and names (`validate_repo_id` of Python's `huggingface_hub`).
fn check_part(part: &str) -> Result<(), &'static str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if part.is_empty() {
        return Err("owner or name is empty");
    }
    if !part.chars().all(|c| is_word(c) || c == '-' || c == '.') {
        return Err("owner and name hold letters, digits, `-`, `_` and `.` only");
    }
    if !part.starts_with(is_word) || !part.ends_with(is_word) {
        return Err("owner and name begin and end with a letter, a digit or `_`");
    }
    if part.contains("--") || part.contains("..") {
        return Err("owner and name hold neither `--` nor `..`");
    }
    Ok(())
}

/// A revision names a file below `refs/` of the cache, so it must not lead out of there.
fn check_revision(revision: &str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+' | '=' | '#' | ',');
    if revision.is_empty() {
        return Err("the revision after `@` is empty");
    }
    if !revision.chars().all(plain) {
        return Err("the revision after `@` holds a character that no branch, tag or commit has");
    }
    if revision.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        return Err("a part of the revision after `@` is empty or begins with `.`");
    }
    Ok(())
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())?;
        if *self.revision != *DEFAULT_REVISION {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}
