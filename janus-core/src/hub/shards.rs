//! Which files this program brought into the cache, and which files of data sets go when there are too many.
//!
//! One small record a file, `<repository>/.janus/shards/<digest>.json`; the time it was last written is the time the file was
//! last used. A file without a record belongs to another program and stays.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cache::{RepositoryCache, is_commit, write_error};
use super::select::check_name;
use super::{HubError, RepoId, RepoKind};
use crate::input;
use crate::output::write_file;

/// Longest record that is read: a few names of some hundred bytes.
const MOST_RECORD_BYTES: u64 = 64 << 10;

const RECORDS: &str = ".janus/shards";

/// A file that this program brought into the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    /// Whether the repository is a model's; records of before are all of data sets.
    #[serde(default)]
    is_model: bool,
    repository: String,
    commit: String,
    name: String,
    etag: String,
}

impl ShardRecord {
    pub(super) fn new(id: &RepoId, commit: &str, name: &str, etag: &str) -> Self {
        let is_model = id.kind() == RepoKind::Model;
        let repository = id.repository().into();
        Self { is_model, repository, commit: commit.into(), name: name.into(), etag: etag.into() }
    }

    /// The name of the blob that a file was brought as, if we brought it.
    pub(super) fn tag_of(cache: &RepositoryCache<'_>, commit: &str, name: &str) -> Option<String> {
        let (record, _) = Self::read(&record_path(cache, commit, name))?;
        (record.commit == commit && record.name == name).then_some(record.etag)
    }

    pub(super) fn write(&self, cache: &RepositoryCache<'_>) -> Result<(), HubError> {
        cache.require_own_hand()?;
        let path = record_path(cache, &self.commit, &self.name);
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(write_error(folder))?;
        let text = serde_json::to_vec(self).map_err(|e| write_error(&path)(e.into()))?;
        Ok(write_file(&path, |writer| writer.write_all(&text))?)
    }

    /// Forgets a file that did not come.
    pub(super) fn remove(&self, cache: &RepositoryCache<'_>) {
        let _ = fs::remove_file(record_path(cache, &self.commit, &self.name));
    }

    /// The record of a file, unless it names things outside the repository's folder.
    fn read(path: &Path) -> Option<(Self, RepoId)> {
        let record: Self = serde_json::from_slice(&input::read_named(path, MOST_RECORD_BYTES).ok()?).ok()?;
        let id: RepoId = match record.is_model {
            true => record.repository.parse().ok()?,
            false => RepoId::dataset(&record.repository).ok()?,
        };
        let is_plain = is_commit(&record.commit) && check_name(&record.name).is_ok();
        (is_plain && check_name(&record.etag).is_ok() && !record.etag.contains('/')).then_some((record, id))
    }
}

fn record_path(cache: &RepositoryCache<'_>, commit: &str, name: &str) -> PathBuf {
    let digest = Sha256::digest(format!("{commit}/{name}"));
    let digest: String = digest.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    cache.root().join(RECORDS).join(format!("{digest}.json"))
}

/// Says that a file was used, if it is one of ours.
pub(super) fn touch(cache: &RepositoryCache<'_>, commit: &str, name: &str) {
    if let Ok(file) = fs::File::options().write(true).open(record_path(cache, commit, name)) {
        // The order of giving up suffers, and nothing else.
        let _ = file.into_parts().0.set_modified(SystemTime::now());
    }
}

/// Gives up files that were used longest ago until those of ours take at most `limit_bytes`; those that `keep` names, by
/// repository, commit and name, stay.
pub(super) fn evict(
    cache_dir: &Path,
    limit_bytes: u64,
    keep: &dyn Fn(&RepoId, &str, &str) -> bool,
) -> Result<(), HubError> {
    let mut kept: Vec<KeptFile> =
        kept_files(cache_dir).into_iter().filter(|f| f.id.kind() == RepoKind::Dataset).collect();
    kept.sort_by(|a, b| (a.used, &a.record_path).cmp(&(b.used, &b.record_path)));
    let mut total = kept.iter().fold(0u64, |total, file| total.saturating_add(file.bytes));
    for file in kept {
        if total <= limit_bytes {
            break;
        }
        if keep(&file.id, &file.record.commit, &file.record.name) {
            continue;
        }
        file.remove()?;
        total = total.saturating_sub(file.bytes);
    }
    Ok(())
}

/// A file that this program brought into the cache of a hub.
#[derive(Debug, Clone)]
pub struct KeptFile {
    id: RepoId,
    cache_dir: PathBuf,
    record: ShardRecord,
    record_path: PathBuf,
    used: SystemTime,
    bytes: u64,
}

/// Every file that this program brought into a cache and that is there; what other programs brought is not among them.
pub fn kept_files(cache_dir: &Path) -> Vec<KeptFile> {
    let mut kept = Vec::new();
    for repository in entries(cache_dir) {
        for record_path in entries(&repository.join(RECORDS)) {
            let Some((record, id)) = ShardRecord::read(&record_path) else { continue };
            let cache = RepositoryCache::new(&id, cache_dir);
            // A record that was carried into another repository's folder speaks of nothing here.
            if cache.root() != repository {
                continue;
            }
            let Ok(found) = fs::metadata(cache.blob(&record.etag)) else { continue };
            let used = fs::metadata(&record_path).and_then(|about| about.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let (cache_dir, bytes) = (cache_dir.to_path_buf(), found.len());
            kept.push(KeptFile { id, cache_dir, record, record_path, used, bytes });
        }
    }
    kept
}

impl KeptFile {
    /// Its repository, at the revision that stands where none is written.
    pub fn repository(&self) -> &RepoId {
        &self.id
    }

    /// The commit that it is of.
    pub fn commit(&self) -> &str {
        &self.record.commit
    }

    /// Its name, relative to the repository.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When it was last used.
    pub fn used(&self) -> SystemTime {
        self.used
    }

    /// Where it is looked for, `snapshots/<commit>/<name>`.
    pub fn path(&self) -> PathBuf {
        RepositoryCache::new(&self.id, &self.cache_dir).pointer(&self.record.commit, &self.record.name)
    }

    /// Removes it with its record. Bytes that another commit's file shares stay.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(&self) -> Result<(), HubError> {
        let cache = RepositoryCache::new(&self.id, &self.cache_dir);
        let (pointer, blob) = (self.path(), cache.blob(&self.record.etag));
        // The pointer first: without it nothing looks for the rest.
        remove(&pointer)?;
        if !cache.is_pointed_to(&blob) {
            remove(&blob)?;
        }
        remove(&self.record_path)
    }
}

fn remove(path: &Path) -> Result<(), HubError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(write_error(path)(e)),
        _ => Ok(()),
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}
