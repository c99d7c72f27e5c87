//! From what the user wrote as a base to a local folder: an existing folder is used where it stands, a hub id
//! `owner/name` (optionally `owner/name@revision`) is downloaded into the Hugging Face cache.
//!
//! The cache has the layout Python's `huggingface_hub` uses (`blobs/`, `refs/`, `snapshots/<commit>/`, `.locks/`), so
//! what Python downloaded is found here and the other way round. Transfers continue where a cut connection left them,
//! also across runs, and nothing is sent at all when `HF_HUB_OFFLINE` is set.
//!
//! What a hub sends is bounded ([`Limits`]) and compared with the digest that it is called by; what lies in the cache is
//! compared again when it is found there, up to a size that costs nothing.
//!
//! Of a data set ([`DatasetRepository`]) each file is brought when it is needed, and given up again, the one used longest
//! ago first, where all of them together are more than the cache may hold.

mod cache;
mod content;
mod dataset;
mod download;
mod error;
mod id;
mod limits;
mod options;
mod pace;
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
pub use limits::Limits;
pub use options::{DEFAULT_ENDPOINT, HubOptions, Patience};
pub use progress::{Progress, Silent};
pub use shards::{KeptFile, kept_files};

use cache::{Kept, RepositoryCache};
use download::{Wish, download_blob, download_ours};
use limits::FileKind;
use select::{CONFIG_FILE, Weights, choose_files, shards_of_index, tensors_of_index};
use shards::touch;
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
    let kept = cache.snapshot();
    if options.offline {
        return offline(kept, id, options).map(BaseOutline::whole);
    }
    let transport = Transport::new(id, options)?;
    // With a whole copy at hand there is something better to do than to wait for the network.
    let listing = match (transport.listing(attempts(options, &kept)), kept) {
        (Ok(listing), _) => listing,
        (Err(error), Kept::Whole(folder)) if error.is_transient() => {
            return Ok(BaseOutline::whole(as_kept(folder, id, &error, progress)));
        }
        (Err(error), _) => return Err(error),
    };
    if wanted == Wanted::Outline
        && let Kept::Whole(folder) = cache.base_at(&listing.commit)
    {
        return Ok(BaseOutline::whole(folder));
    }
    let outline = match (fetch_commit(&transport, &cache, &listing, wanted, progress), cache.snapshot()) {
        // A cache of another owner, which has an earlier commit.
        (Err(error), Kept::Whole(folder)) if error.is_refused() => {
            return Ok(BaseOutline::whole(as_kept(folder, id, &error, progress)));
        }
        (fetched, _) => fetched?,
    };
    if wanted == Wanted::Everything {
        // Last of all, so that an interrupted update leaves the revision at a commit that is there whole.
        cache.write_ref(&listing.commit)?;
    }
    Ok(outline)
}

/// What is used where nothing may be asked of the hub.
fn offline(kept: Kept, id: &RepoId, options: &HubOptions) -> Result<PathBuf, HubError> {
    match kept {
        Kept::Whole(folder) => Ok(folder),
        Kept::Damaged(error) => Err(error),
        Kept::Without(file) => Err(HubError::Offline { id: id.clone(), file, cache_dir: options.cache_dir.clone() }),
    }
}

/// Requests for one thing, fewer where it may not be needed.
fn attempts(options: &HubOptions, kept: &Kept) -> u32 {
    match kept {
        Kept::Whole(_) => options.patience.attempts.min(2),
        _ => options.patience.attempts,
    }
}

/// Says that what the cache has is used, and why.
fn as_kept(folder: PathBuf, id: &RepoId, error: &HubError, progress: &dyn Progress) -> PathBuf {
    progress.note(&format!("{error}; using `{id}` as the cache has it, `{}`", folder.display()));
    folder
}

/// The folder of the base that hub id `spec` is, if the cache of `options` holds it whole; nothing is asked of the hub.
///
/// # Errors
/// What the cache holds is damaged.
pub fn cached_base(spec: &str, options: &HubOptions) -> Result<Option<PathBuf>, HubError> {
    let Ok(id) = RepoId::parse(spec) else { return Ok(None) };
    match RepositoryCache::new(&id, &options.cache_dir).snapshot() {
        Kept::Whole(folder) => Ok(Some(folder)),
        Kept::Without(_) => Ok(None),
        Kept::Damaged(error) => Err(error),
    }
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
        let kept = self.cached(&cache);
        if options.offline {
            return offline(kept, id, options);
        }
        let transport = Transport::new(id, options)?;
        let listing = match (transport.listing(attempts(options, &kept)), kept) {
            (Ok(listing), _) => listing,
            (Err(error), Kept::Whole(folder)) if error.is_transient() => {
                return Ok(as_kept(folder, id, &error, progress));
            }
            (Err(error), _) => return Err(error),
        };
        if let Some(missing) = self.needed.iter().find(|name| !listing.files.contains(**name)) {
            return Err(HubError::MissingFile { id: id.clone(), file: (*missing).to_string() });
        }
        match (self.fetch_commit(&transport, &cache, &listing, progress), self.cached(&cache)) {
            (Err(error), Kept::Whole(folder)) if error.is_refused() => Ok(as_kept(folder, id, &error, progress)),
            (fetched, _) => fetched,
        }
    }

    fn fetch_commit(
        &self,
        transport: &Transport<'_>,
        cache: &RepositoryCache<'_>,
        listing: &Listing,
        progress: &dyn Progress,
    ) -> Result<PathBuf, HubError> {
        let commit = listing.commit.as_str();
        let names = self.wanted.iter().chain(self.needed).filter(|name| listing.files.contains(**name));
        let mut blobs = Vec::new();
        for name in names {
            if cache.has(commit, name, progress)? {
                continue;
            }
            let metadata = transport.metadata(commit, name)?;
            let kind = if name.ends_with(".json") { FileKind::Small } else { FileKind::Large };
            let wish = Wish { commit, name, kind, left_bytes: u64::MAX };
            download_blob(transport, cache, wish, &metadata, progress)?;
            blobs.push((name, metadata.etag));
        }
        for (name, etag) in &blobs {
            cache.link(commit, name, etag)?;
        }
        cache.write_ref(commit)?;
        Ok(cache.snapshot_folder(commit))
    }

    /// The snapshot that has every needed file, as far as it is here.
    fn cached(&self, cache: &RepositoryCache<'_>) -> Kept {
        let commit = match cache.commit() {
            Ok(commit) => commit,
            Err(missing) => return Kept::Without(missing),
        };
        let folder = cache.snapshot_folder(&commit);
        if let Some(missing) = self.needed.iter().find(|name| !folder.join(name).is_file()) {
            return Kept::Without((*missing).to_string());
        }
        match self.wanted.iter().chain(self.needed).find_map(|name| cache.fault_of(&commit, name)) {
            None => Kept::Whole(folder),
            Some(fault) => Kept::Damaged(fault),
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
    transport.limits().check_small(transport.id().repository(), choice.side_files.len())?;
    let mut blobs = Vec::new();
    let mut left_bytes = transport.limits().bytes_of_small();
    let mut fetch = |name: &str, kind: FileKind| -> Result<PathBuf, HubError> {
        let pointer = cache.pointer(&listing.commit, name);
        if cache.has(&listing.commit, name, progress)? {
            if wanted == Wanted::Everything {
                touch(cache, &listing.commit, name);
            }
            return Ok(pointer);
        }
        let metadata = transport.metadata(&listing.commit, name)?;
        let is_small = kind == FileKind::Small;
        let left = if is_small { left_bytes } else { u64::MAX };
        let wish = Wish { commit: &listing.commit, name, kind, left_bytes: left };
        let blob = download_ours(transport, cache, wish, &metadata, progress)?;
        if is_small {
            left_bytes = left_bytes.saturating_sub(blob.metadata().map_or(0, |about| about.len()));
        }
        blobs.push((name.to_string(), metadata.etag));
        Ok(blob)
    };
    for name in &choice.side_files {
        fetch(name, FileKind::Small)?;
    }
    let mut tensors = None;
    match (&choice.weights, wanted) {
        (Weights::Single(name), Wanted::Everything) => {
            fetch(name, FileKind::Large)?;
        }
        (Weights::Single(name), Wanted::Outline) => tensors = tensors_of_header(transport, &listing.commit, name)?,
        (Weights::Sharded { index }, _) => {
            let path = fetch(index, FileKind::Small)?;
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
                    fetch(shard, FileKind::Large)?;
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
