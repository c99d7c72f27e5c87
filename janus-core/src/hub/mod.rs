//! From what the user wrote as a base to a local folder: an existing folder is used where it stands, a hub id
//! `owner/name` (optionally `owner/name@revision`) is downloaded into the Hugging Face cache.
//!
//! The cache has the layout Python's `huggingface_hub` uses (`blobs/`, `refs/`, `snapshots/<commit>/`, `.locks/`), so
//! what Python downloaded is found here and the other way round. Transfers continue where a cut connection left them,
//! also across runs, and nothing is sent at all when `HF_HUB_OFFLINE` is set.
//!
//! Of a data set ([`DatasetRepository`]) each file is brought when it is needed, and given up again, the one used longest
//! ago first, where all of them together are more than the cache may hold.

mod cache;
mod dataset;
mod download;
mod error;
mod id;
mod options;
mod progress;
mod select;
mod shards;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use dataset::{DatasetRepository, Shard};
pub use error::HubError;
pub use id::{RepoId, RepoKind};
pub use options::{DEFAULT_ENDPOINT, HubOptions, Patience};
pub use progress::{Progress, Silent};
pub use shards::{KeptFile, kept_files};

use cache::RepositoryCache;
use download::download_blob;
use select::{CONFIG_FILE, Weights, choose_files, missing_in_snapshot, shards_of_index, tensors_of_index};
use shards::{ShardRecord, touch};
use transport::{Listing, Transport};

use crate::checkpoint::MAX_INDEX_BYTES;
use crate::home;

/// Bytes of a safetensors file that tell the length of its header.
const LENGTH_BYTES: u64 = 8;

/// Turns what the user wrote as a base into a folder, with the options of the environment
/// ([`HubOptions::from_env`]). The environment is only read when the hub is needed.
///
/// # Errors
/// As [`resolve_base_with`], and settings of the environment that cannot be used.
pub fn resolve_base(spec: &str, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    match local_or_hub(spec)? {
        Base::Folder(path) => Ok(path),
        Base::Hub(id) => fetch_repository(&id, &HubOptions::from_env()?, progress),
    }
}

/// What can be said of a base before its weights are here.
#[derive(Debug, Clone)]
pub struct BaseOutline {
    /// The folder with its configuration and tokenizer, and with its weights where they are here already.
    pub folder: PathBuf,
    /// Whether the weights are here.
    pub has_weights: bool,
    /// Names of its tensors as its files spell them; `None` where they are not known without the weights.
    pub tensors: Option<BTreeSet<String>>,
}

impl BaseOutline {
    /// Of a folder that holds a whole base.
    fn whole(folder: PathBuf) -> Self {
        Self { folder, has_weights: true, tensors: None }
    }
}

/// As [`resolve_base`], but of a base on a hub only what tells its shape is fetched: configuration, tokenizer, the index or
/// the header of its weights. A base that is here whole is used as it is.
///
/// # Errors
/// As [`resolve_base`].
pub fn outline_base(spec: &str, progress: &dyn Progress) -> Result<BaseOutline, HubError> {
    match local_or_hub(spec)? {
        Base::Folder(path) => Ok(BaseOutline::whole(path)),
        Base::Hub(id) => fetch(&id, &HubOptions::from_env()?, Wanted::Outline, progress),
    }
}

/// Turns what the user wrote as a base into a folder: an existing folder is itself, `owner/name` is fetched.
///
/// # Errors
/// `spec` is neither, or the download fails.
pub fn resolve_base_with(spec: &str, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    match local_or_hub(spec)? {
        Base::Folder(path) => Ok(path),
        Base::Hub(id) => fetch_repository(&id, options, progress),
    }
}

enum Base {
    Folder(PathBuf),
    Hub(RepoId),
}

fn local_or_hub(spec: &str) -> Result<Base, HubError> {
    let spec = home::expand_text(spec)?;
    let spec = spec.as_str();
    let path = Path::new(spec);
    if path.is_dir() {
        return Ok(Base::Folder(path.to_path_buf()));
    }
    if path.exists() {
        return Err(HubError::NotAFolder { path: path.to_path_buf() });
    }
    match RepoId::parse(spec) {
        Ok(id) => Ok(Base::Hub(id)),
        Err(_) if looks_like_a_path(spec) => Err(HubError::NoSuchFolder { path: path.to_path_buf() }),
        Err(problem) => Err(HubError::NotABase { spec: spec.to_string(), problem }),
    }
}

/// Whether `spec`, which does not exist and is no hub id, can only have been meant as a path.
fn looks_like_a_path(spec: &str) -> bool {
    let path = Path::new(spec);
    path.is_absolute()
        || spec.starts_with(['.', '/'])
        || spec.ends_with('/')
        || spec.contains('\\')
        || spec.matches('/').count() > 1
}

/// Makes the files of a base that repository `id` holds available locally and returns their folder, the snapshot
/// `<cache>/models--owner--name/snapshots/<commit>`.
///
/// Asks the hub which commit the revision is, and downloads what of that commit is not in the cache. When the hub
/// cannot be reached and the cache holds the revision whole, that is used and [`Progress::note`] told.
///
/// # Errors
/// The hub refuses or cannot be reached, it sends something else than it announced, its listing is not that of a base
/// or names files outside the folder, the cache cannot be written, or, offline, a file is not in the cache.
pub fn fetch_repository(id: &RepoId, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    Ok(fetch(id, options, Wanted::Everything, progress)?.folder)
}

/// How much of a base is brought here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Everything,
    Outline,
}

fn fetch(id: &RepoId, options: &HubOptions, wanted: Wanted, progress: &dyn Progress) -> Result<BaseOutline, HubError> {
    let cache = RepositoryCache::new(id, &options.cache_dir);
    if options.offline {
        return cache.snapshot().map(BaseOutline::whole).map_err(|missing| HubError::Offline {
            id: id.clone(),
            file: missing,
            cache_dir: options.cache_dir.clone(),
        });
    }
    let transport = Transport::new(id, options)?;
    // With a whole copy at hand there is something better to do than to wait for the network.
    let attempts = match cache.snapshot() {
        Ok(_) => options.patience.attempts.min(2),
        Err(_) => options.patience.attempts,
    };
    let listing = match transport.listing(attempts) {
        Ok(listing) => listing,
        Err(error) if error.is_transient() => match cache.snapshot() {
            Ok(folder) => {
                progress.note(&format!("{error}; using `{id}` as the cache has it, `{}`", folder.display()));
                return Ok(BaseOutline::whole(folder));
            }
            Err(_) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let is_here = missing_in_snapshot(id, &cache.snapshot_folder(&listing.commit)).is_none();
    if wanted == Wanted::Outline && is_here {
        return Ok(BaseOutline::whole(cache.snapshot_folder(&listing.commit)));
    }
    let outline = fetch_commit(&transport, &cache, &listing, wanted, progress)?;
    if wanted == Wanted::Everything {
        // Last of all, so that an interrupted update leaves the revision at a commit that is there whole.
        cache.write_ref(&listing.commit)?;
    }
    Ok(outline)
}

/// The folder of the base that hub id `spec` is, if the cache of `options` holds it whole; nothing is asked of the hub.
pub fn cached_base(spec: &str, options: &HubOptions) -> Option<PathBuf> {
    let id = RepoId::parse(spec).ok()?;
    RepositoryCache::new(&id, &options.cache_dir).snapshot().ok()
}

/// Some files of a repository that is no base.
#[derive(Debug, Clone, Copy)]
pub struct NamedFiles<'a> {
    /// Names without which the repository is not the kind that was meant.
    pub needed: &'a [&'a str],
    /// Names of files that it may have besides.
    pub wanted: &'a [&'a str],
}

impl NamedFiles<'_> {
    /// Makes those files available locally and returns their folder, as [`fetch_repository`] does for a base.
    ///
    /// # Errors
    /// [`HubError::MissingFile`] for a needed file that the repository does not have, else as [`fetch_repository`].
    pub fn fetch(&self, id: &RepoId, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        let cache = RepositoryCache::new(id, &options.cache_dir);
        if options.offline {
            return self.cached(&cache).map_err(|missing| HubError::Offline {
                id: id.clone(),
                file: missing,
                cache_dir: options.cache_dir.clone(),
            });
        }
        let known = self.cached(&cache);
        let transport = Transport::new(id, options)?;
        let attempts = if known.is_ok() { options.patience.attempts.min(2) } else { options.patience.attempts };
        let listing = match (transport.listing(attempts), known) {
            (Ok(listing), _) => listing,
            (Err(error), Ok(folder)) if error.is_transient() => {
                progress.note(&format!("{error}; using `{id}` as the cache has it, `{}`", folder.display()));
                return Ok(folder);
            }
            (Err(error), _) => return Err(error),
        };
        if let Some(missing) = self.needed.iter().find(|name| !listing.files.contains(**name)) {
            return Err(HubError::MissingFile { id: id.clone(), file: (*missing).to_string() });
        }
        let names = self.wanted.iter().chain(self.needed).filter(|name| listing.files.contains(**name));
        let mut blobs = Vec::new();
        for name in names {
            if cache.pointer(&listing.commit, name).exists() {
                continue;
            }
            let metadata = transport.metadata(&listing.commit, name)?;
            download_blob(&transport, &cache, &listing.commit, name, &metadata, progress)?;
            blobs.push((name, metadata.etag));
        }
        for (name, etag) in &blobs {
            cache.link(&listing.commit, name, etag)?;
        }
        cache.write_ref(&listing.commit)?;
        Ok(cache.snapshot_folder(&listing.commit))
    }

    /// The snapshot that has every needed file, else the name of what is missing.
    fn cached(&self, cache: &RepositoryCache<'_>) -> Result<PathBuf, String> {
        let folder = cache.snapshot_folder(&cache.commit()?);
        match self.needed.iter().find(|name| !folder.join(name).is_file()) {
            None => Ok(folder),
            Some(missing) => Err((*missing).to_string()),
        }
    }
}

/// Completes the snapshot of a commit, or as much of it as tells its shape: every blob first, then the pointers to them.
fn fetch_commit(
    transport: &Transport<'_>,
    cache: &RepositoryCache<'_>,
    listing: &Listing,
    wanted: Wanted,
    progress: &dyn Progress,
) -> Result<BaseOutline, HubError> {
    let choice = choose_files(transport.id(), &listing.files)?;
    let mut blobs = Vec::new();
    let mut fetch = |name: &str| -> Result<PathBuf, HubError> {
        let pointer = cache.pointer(&listing.commit, name);
        if pointer.exists() {
            if wanted == Wanted::Everything {
                touch(cache, &listing.commit, name);
            }
            return Ok(pointer);
        }
        let metadata = transport.metadata(&listing.commit, name)?;
        // What another program downloaded is not ours to give up. Written before the download, so that a file of a run that
        // was killed is known for ours.
        if !cache.blob(&metadata.etag).exists() {
            ShardRecord::new(transport.id(), &listing.commit, name, &metadata.etag).write(cache)?;
        }
        let blob = download_blob(transport, cache, &listing.commit, name, &metadata, progress)?;
        blobs.push((name.to_string(), metadata.etag));
        Ok(blob)
    };
    for name in &choice.side_files {
        fetch(name)?;
    }
    let mut tensors = None;
    match (&choice.weights, wanted) {
        (Weights::Single(name), Wanted::Everything) => {
            fetch(name)?;
        }
        (Weights::Single(name), Wanted::Outline) => tensors = tensors_of_header(transport, &listing.commit, name)?,
        (Weights::Sharded { index }, _) => {
            let path = fetch(index)?;
            let shards = shards_of_index(transport.id(), index, &path)?;
            for shard in &shards {
                if !listing.files.contains(shard) {
                    return Err(HubError::MissingFile { id: transport.id().clone(), file: shard.clone() });
                }
            }
            if wanted == Wanted::Outline {
                tensors = Some(tensors_of_index(transport.id(), index, &path)?);
            } else {
                for shard in &shards {
                    fetch(shard)?;
                }
            }
        }
    }
    // `config.json` last: a snapshot cut short here does not pass for a whole one.
    blobs.sort_by_key(|(name, _)| name == CONFIG_FILE);
    for (name, etag) in &blobs {
        cache.link(&listing.commit, name, etag)?;
    }
    let folder = cache.snapshot_folder(&listing.commit);
    Ok(BaseOutline { folder, has_weights: wanted == Wanted::Everything, tensors })
}

/// The tensors that the header of a file on the hub names; `None` of pickled tensors, and where the hub sends no parts of files.
fn tensors_of_header(
    transport: &Transport<'_>,
    commit: &str,
    name: &str,
) -> Result<Option<BTreeSet<String>>, HubError> {
    if !name.ends_with(".safetensors") {
        return Ok(None);
    }
    let wrong = |problem: String| HubError::Index { id: transport.id().clone(), file: name.to_string(), problem };
    let Some(start) = transport.start_of(commit, name, LENGTH_BYTES)? else { return Ok(None) };
    let length = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let length = length.ok_or_else(|| wrong("it has less than eight bytes".into()))?;
    if length > MAX_INDEX_BYTES {
        return Err(wrong(format!("its header claims {length} bytes, at most {MAX_INDEX_BYTES} are read")));
    }
    let Some(bytes) = transport.start_of(commit, name, LENGTH_BYTES + length)? else { return Ok(None) };
    let header = bytes.get(LENGTH_BYTES as usize..).unwrap_or_default();
    let header: BTreeMap<String, serde::de::IgnoredAny> =
        serde_json::from_slice(header).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(header.into_keys().filter(|name| name != "__metadata__").collect()))
}
