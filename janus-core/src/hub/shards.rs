//! Which files of data sets this program brought into the cache, and which of them go when there are too many.
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
use super::{HubError, RepoId};
use crate::output::write_file;

const RECORDS: &str = ".janus/shards";

/// A file that this program brought into the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    repository: String,
    commit: String,
    name: String,
    etag: String,
}

impl ShardRecord {
    pub(super) fn new(id: &RepoId, commit: &str, name: &str, etag: &str) -> Self {
        Self { repository: id.repository().into(), commit: commit.into(), name: name.into(), etag: etag.into() }
    }

    pub(super) fn write(&self, cache: &RepositoryCache<'_>) -> Result<(), HubError> {
        let path = record_path(cache, &self.commit, &self.name);
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(write_error(folder))?;
        let text = serde_json::to_vec(self).map_err(|e| write_error(&path)(e.into()))?;
        Ok(write_file(&path, |writer| writer.write_all(&text))?)
    }

    /// The record of a file, unless it names things outside the repository's folder.
    fn read(path: &Path) -> Option<(Self, RepoId)> {
        let record: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let id = RepoId::dataset(&record.repository).ok()?;
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
    let mut kept = Vec::new();
    for repository in entries(cache_dir) {
        for path in entries(&repository.join(RECORDS)) {
            let Some((record, id)) = ShardRecord::read(&path) else { continue };
            let cache = RepositoryCache::new(&id, cache_dir);
            let Ok(found) = fs::metadata(cache.blob(&record.etag)) else { continue };
            let used = fs::metadata(&path).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            kept.push((used, path, record, id, found.len()));
        }
    }
    kept.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let mut total = kept.iter().fold(0u64, |total, entry| total.saturating_add(entry.4));
    for (_, path, record, id, bytes) in kept {
        if total <= limit_bytes {
            break;
        }
        if keep(&id, &record.commit, &record.name) {
            continue;
        }
        let cache = RepositoryCache::new(&id, cache_dir);
        // The pointer first: without it nothing looks for the rest.
        for gone in [cache.pointer(&record.commit, &record.name), cache.blob(&record.etag), path] {
            match fs::remove_file(&gone) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(write_error(&gone)(e)),
                _ => {}
            }
        }
        total = total.saturating_sub(bytes);
    }
    Ok(())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}
