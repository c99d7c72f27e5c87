use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::cache::RepositoryCache;
use super::download::{Wish, download_ours};
use super::limits::FileKind;
use super::select::check_name;
use super::shards::{evict, touch};
use super::transport::{LARGEST_LISTING_BYTES, Listing, Transport};
use super::{HubError, HubOptions, Progress, RepoId, Silent};
use crate::input;
use crate::output::write_file;

/// Files of a repository that stay in the cache in any case: the one that is read and the one that comes next.
const FILES_IN_USE: usize = 2;

/// A data set on a hub at one commit. Its files are brought into the cache one by one, when they are needed.
#[derive(Debug)]
pub struct DatasetRepository {
    id: RepoId,
    options: HubOptions,
    limit_bytes: u64,
    commit: String,
    files: BTreeSet<String>,
    /// Files used last, the latest at the end.
    in_use: Mutex<VecDeque<String>>,
    /// Files whose content was compared with their names.
    checked: Mutex<BTreeSet<String>>,
}

/// What is kept of a listing, for times without a network: `<repository>/.janus/<commit>.json`.
#[derive(Serialize, Deserialize)]
struct Listed {
    files: BTreeSet<String>,
}

impl DatasetRepository {
    /// Asks the hub which commit the revision is and which files it has; nothing is downloaded yet. Files that this
    /// program brought into the cache of `options` take at most `limit_bytes` there, or as much as two files.
    ///
    /// When the hub cannot be reached, what it said last is used and [`Progress::note`] told.
    ///
    /// # Errors
    /// The hub refuses or cannot be reached, or it names files that lead out of a folder; offline, a revision that was
    /// never looked up.
    pub fn open(
        id: RepoId,
        options: HubOptions,
        limit_bytes: u64,
        progress: &dyn Progress,
    ) -> Result<Arc<Self>, HubError> {
        let cache = RepositoryCache::new(&id, &options.cache_dir);
        let (commit, files) = if options.offline {
            known(&cache, progress).map_err(|missing| HubError::Offline {
                id: id.clone(),
                file: missing,
                cache_dir: options.cache_dir.clone(),
            })?
        } else {
            let transport = Transport::new(&id, &options)?;
            match transport.listing(transport.attempts()) {
                Ok(listing) => {
                    for name in &listing.files {
                        check_name(name).map_err(|problem| HubError::UnsafeName {
                            id: id.clone(),
                            name: name.clone(),
                            problem,
                        })?;
                    }
                    // Without it a time without a network knows only what is here.
                    keep_listing(&cache, &id, &listing).or_else(HubError::unless_refused)?;
                    cache.write_ref(&listing.commit)?;
                    (listing.commit, listing.files)
                }
                Err(error) if error.is_transient() => match known(&cache, progress) {
                    Ok(known) => {
                        progress.note(&format!("{error}; using `{id}` as it was when it was last looked up"));
                        known
                    }
                    Err(_) => return Err(error),
                },
                Err(error) => return Err(error),
            }
        };
        Ok(Arc::new(Self {
            id,
            options,
            limit_bytes,
            commit,
            files,
            in_use: Mutex::default(),
            checked: Mutex::default(),
        }))
    }

    /// The repository.
    pub fn id(&self) -> &RepoId {
        &self.id
    }

    /// The commit that is read.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Names of all files, relative to the repository, none of which leads out of it.
    pub fn files(&self) -> &BTreeSet<String> {
        &self.files
    }

    /// One of the files; `None` if there is none of that name.
    pub fn shard(self: &Arc<Self>, name: &str) -> Option<Shard> {
        self.files.contains(name).then(|| Shard { repository: self.clone(), name: name.to_string() })
    }

    /// The files in use, this one among them.
    fn use_file(&self, name: &str) -> Vec<String> {
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.retain(|used| used != name);
        in_use.push_back(name.to_string());
        while in_use.len() > FILES_IN_USE {
            in_use.pop_front();
        }
        in_use.iter().cloned().collect()
    }
}

fn keep_listing(cache: &RepositoryCache<'_>, id: &RepoId, listing: &Listing) -> Result<(), HubError> {
    let text = serde_json::to_vec(&Listed { files: listing.files.clone() })
        .map_err(|error| HubError::Listing { id: id.clone(), problem: error.to_string() })?;
    let path = cache.records()?.join(format!("{}.json", listing.commit));
    Ok(write_file(&path, |writer| writer.write_all(&text))?)
}

/// Commit and files of a revision as they were last looked up, or the name of what is missing for that.
fn known(cache: &RepositoryCache<'_>, progress: &dyn Progress) -> Result<(String, BTreeSet<String>), String> {
    let commit = cache.commit()?;
    let record = cache.root().join(".janus").join(format!("{commit}.json"));
    let listed = input::read_named(&record, LARGEST_LISTING_BYTES).ok();
    let listed = listed.and_then(|text| serde_json::from_slice::<Listed>(&text).ok());
    let files = match listed {
        Some(listed) => listed.files,
        None => {
            // Another program brought it here, perhaps not all of it.
            let files = cache.files_of(&commit);
            if files.is_empty() {
                return Err(format!("snapshots/{commit}"));
            }
            progress.note(&format!(
                "only the {} files in `{}` are used: which others there are on the hub is not known",
                files.len(),
                cache.snapshot_folder(&commit).display()
            ));
            files
        }
    };
    match files.iter().find(|name| check_name(name).is_err()) {
        Some(name) => Err(name.clone()),
        None => Ok((commit, files)),
    }
}

/// One file of a data set.
#[derive(Debug, Clone)]
pub struct Shard {
    repository: Arc<DatasetRepository>,
    name: String,
}

impl Shard {
    /// Its name, relative to the repository.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its repository.
    pub fn repository(&self) -> &DatasetRepository {
        &self.repository
    }

    /// Makes sure that the file is in the cache and returns its path. Where it is not, room is made first and the file is
    /// downloaded. It may be given up as soon as two other files of the repository were asked for.
    ///
    /// # Errors
    /// The hub refuses, cannot be reached or sends something else than announced; the cache cannot be written; offline, the
    /// file is not in the cache.
    pub fn fetch(&self, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        let DatasetRepository { id, options, limit_bytes, commit, .. } = &*self.repository;
        let cache = RepositoryCache::new(id, &options.cache_dir);
        let pointer = cache.pointer(commit, &self.name);
        let in_use = self.repository.use_file(&self.name);
        if self.is_here(&cache, progress)? {
            touch(&cache, commit, &self.name);
            return Ok(pointer);
        }
        if options.offline {
            let (id, file, cache_dir) = (id.clone(), self.name.clone(), options.cache_dir.clone());
            return Err(HubError::Offline { id, file, cache_dir });
        }
        let transport = Transport::new(id, options)?;
        let metadata = transport.metadata(commit, &self.name)?;
        let wish = Wish { commit, name: &self.name, kind: FileKind::Large, left_bytes: u64::MAX };
        wish.check(&transport, &metadata)?;
        if !cache.blob(&metadata.etag).exists() {
            let keep = |repository: &RepoId, at: &str, name: &str| {
                repository.repository() == id.repository() && at == commit && in_use.iter().any(|used| used == name)
            };
            evict(&options.cache_dir, limit_bytes.saturating_sub(metadata.size_bytes.unwrap_or(0)), &keep)?;
        }
        download_ours(&transport, &cache, wish, &metadata, progress)?;
        cache.link(commit, &self.name, &metadata.etag)?;
        Ok(pointer)
    }

    /// The file's path in the cache, if it is there.
    ///
    /// # Errors
    /// It is damaged, and cannot be fetched again.
    pub fn cached(&self) -> Result<Option<PathBuf>, HubError> {
        let DatasetRepository { id, options, commit, .. } = &*self.repository;
        let cache = RepositoryCache::new(id, &options.cache_dir);
        Ok(self.is_here(&cache, &Silent)?.then(|| cache.pointer(commit, &self.name)))
    }

    /// Whether the file is in the cache, and sound where that can be told, which is found out once.
    fn is_here(&self, cache: &RepositoryCache<'_>, progress: &dyn Progress) -> Result<bool, HubError> {
        let DatasetRepository { options, commit, checked, .. } = &*self.repository;
        if !cache.pointer(commit, &self.name).is_file() {
            return Ok(false);
        }
        if checked.lock().unwrap_or_else(PoisonError::into_inner).contains(&self.name) {
            return Ok(true);
        }
        let is_sound = match options.offline {
            true => cache.fault_of(commit, &self.name).map_or(Ok(true), Err)?,
            false => cache.has(commit, &self.name, progress)?,
        };
        if is_sound {
            checked.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name.clone());
        }
        Ok(is_sound)
    }

    /// The last `bytes` bytes of the file, all of a shorter one, and the size of the file, without the rest being
    /// downloaded; `None` where the hub sends no parts of files.
    ///
    /// # Errors
    /// The hub refuses or cannot be reached.
    pub fn tail(&self, bytes: u64) -> Result<Option<(Vec<u8>, u64)>, HubError> {
        let DatasetRepository { id, options, commit, .. } = &*self.repository;
        if options.offline {
            let (id, file, cache_dir) = (id.clone(), self.name.clone(), options.cache_dir.clone());
            return Err(HubError::Offline { id, file, cache_dir });
        }
        Transport::new(id, options)?.tail_of(commit, &self.name, bytes)
    }
}
