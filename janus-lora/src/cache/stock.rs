//! Everything that the program keeps on disk and can make or fetch again: what there is, what it takes, what goes first.
//!
//! | kind | where | made by |
//! | --- | --- | --- |
//! | `bases` | `JANUS_CACHE/bases/NAME-HASH…` | `janus-nano` and `init:` bases |
//! | `data` | `JANUS_CACHE/data/*.parquet` | `synth:` tables |
//! | `features`, `codes` | `JANUS_CACHE/features/ab/cdef…` | images |
//! | `fingerprints` | `JANUS_CACHE/fingerprints/…` | bases |
//! | `hub-bases`, `hub-data` | the hub's cache | downloads of this program, by its records |
//!
//! Only what is named as the program names it counts; links are never followed, and nothing else is removed. Of bases and
//! drawn tables a run holds a lock as long as it lives ([`hold`]): whoever makes room passes them over.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fs_err as fs;
use janus_core::config::JanusConfig;
use janus_core::directory::Directory;
use janus_core::hub::{KeptFile, RepoKind, kept_files};
use janus_core::temporary::{self, is_own_name, written_as};

use super::seal::seal_of;
use super::store::{self, CacheSettings};
use crate::base::builtin;
use crate::data::synth::Domain;

/// A file of a data set on a hub that was used so lately may be what another run reads.
const READ_LATELY: Duration = Duration::from_secs(3600);

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum StockKind {
    /// The built-in base's files, and bases with random weights.
    Bases,
    /// Drawn tables.
    Data,
    /// Vision features of images.
    Features,
    /// Codes of images.
    Codes,
    /// Fingerprints of bases.
    Fingerprints,
    /// Bases that were downloaded.
    HubBases,
    /// Files of data sets that were downloaded.
    HubData,
}

impl StockKind {
    /// All of them.
    pub const ALL: [StockKind; 7] = [
        StockKind::Bases,
        StockKind::Data,
        StockKind::Features,
        StockKind::Codes,
        StockKind::Fingerprints,
        StockKind::HubBases,
        StockKind::HubData,
    ];

    /// Its name, as commands have it.
    pub fn name(self) -> &'static str {
        match self {
            StockKind::Bases => "bases",
            StockKind::Data => "data",
            StockKind::Features => "features",
            StockKind::Codes => "codes",
            StockKind::Fingerprints => "fingerprints",
            StockKind::HubBases => "hub-bases",
            StockKind::HubData => "hub-data",
        }
    }
}

/// One thing that can be given up as a whole.
#[derive(Debug)]
pub struct Item {
    /// What it is.
    pub kind: StockKind,
    /// What it is called.
    pub name: String,
    /// Its file or folder.
    pub path: PathBuf,
    /// What it takes.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
    parts: Parts,
}

/// How an item is held and removed.
#[derive(Debug)]
enum Parts {
    /// One file; nobody holds it, who misses it computes again.
    Free,
    /// One file that its user holds.
    Held,
    /// A folder's files, held by the first; the folder goes with them.
    Folder(Vec<PathBuf>),
    /// Files of a hub, held by one of them.
    Hub { lock: Option<PathBuf>, files: Vec<KeptFile> },
    /// Being written: what killed processes left was taken away.
    Aside,
}

/// Everything that is kept in the folder of the cache and, where it is given, in a hub's. What killed processes left half
/// written goes.
pub fn items(folder: &Path, hub: Option<&Path>) -> Vec<Item> {
    clear_leftovers(folder);
    let mut items = bases(&folder.join("bases"));
    items.extend(files(&folder.join("data"), StockKind::Data, &is_drawn));
    items.extend(store::entries(folder).into_iter().map(|(kind, entry)| Item {
        kind: match kind {
            store::Kind::Features => StockKind::Features,
            store::Kind::Codes => StockKind::Codes,
        },
        name: entry.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        path: entry.path,
        bytes: entry.bytes,
        used: entry.used,
        parts: Parts::Free,
    }));
    items.extend(files(&folder.join("fingerprints"), StockKind::Fingerprints, &|name| is_hex(name, 64)));
    items.extend(hub.into_iter().flat_map(on_hub));
    items
}

impl Item {
    /// Whether a run uses it at this moment, or may.
    pub fn is_in_use(&self) -> bool {
        match &self.parts {
            Parts::Free => false,
            Parts::Held => unused(&self.path).is_none(),
            Parts::Folder(files) => files.first().is_some_and(|first| unused(first).is_none()),
            Parts::Hub { lock: Some(lock), .. } if lock.exists() => unused(lock).is_none(),
            Parts::Hub { .. } => self.kind == StockKind::HubData && self.age() < READ_LATELY,
            Parts::Aside => true,
        }
    }

    /// How long it has not been used.
    pub fn age(&self) -> Duration {
        self.used.elapsed().unwrap_or_default()
    }

    /// Removes it, unless it is in use: `false` then.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(&self) -> io::Result<bool> {
        match &self.parts {
            Parts::Free => gone(&self.path)?,
            Parts::Held => {
                let Some(_lock) = unused(&self.path) else { return Ok(false) };
                gone(&self.path)?;
                gone(&seal_of(&self.path))?;
            }
            Parts::Folder(files) => {
                let Some(first) = files.first() else { return Ok(false) };
                let Some(_lock) = unused(first) else { return Ok(false) };
                // The configuration goes first: without it the folder is no base, however far this comes.
                files.iter().try_for_each(|file| gone(file))?;
                gone(&seal_of(&self.path))?;
                // What someone else put there since keeps the folder.
                let _ = fs::remove_dir(&self.path);
            }
            Parts::Hub { lock, files } => {
                let held = lock.as_ref().filter(|lock| lock.exists());
                let lock = held.map(|path| unused(path));
                if matches!(lock, Some(None)) || (lock.is_none() && self.is_in_use()) {
                    return Ok(false);
                }
                files.iter().try_for_each(|file| file.remove().map_err(io::Error::other))?;
            }
            Parts::Aside => return Ok(false),
        }
        Ok(true)
    }
}

/// Gives up what was used longest ago until `bytes` more fit, or nothing is left that is not in use. What cannot be removed
/// stays: room is made as far as it can be.
pub fn make_room(settings: &CacheSettings, bytes: u64) {
    let mut items = items(&settings.folder, settings.hub_folder.as_deref());
    let mut total = items.iter().fold(bytes, |total, item| total.saturating_add(item.bytes));
    let limit = settings.limit(total - bytes);
    if total <= limit {
        return;
    }
    items.sort_by_key(|item| item.used);
    for item in items {
        if total <= limit {
            break;
        }
        if item.remove().unwrap_or(false) {
            total = total.saturating_sub(item.bytes);
        }
    }
}

/// Whether this process has used what is kept.
static USED: AtomicBool = AtomicBool::new(false);

/// Says that this process uses what is kept, be it not held.
pub fn note_use() {
    USED.store(true, Ordering::Relaxed);
}

/// Brings what is kept below the limit when a command is over that used any of it, where one is set: what it used itself is
/// given up like everything else, of a limit of 0 at once. Downloads stay until the room is needed; they take longer to bring
/// back than anything else.
pub fn leave() {
    if !USED.load(Ordering::Relaxed) {
        return;
    }
    // Closing them ends their locks.
    HELD.lock().unwrap_or_else(PoisonError::into_inner).clear();
    if let Ok(settings) = CacheSettings::from_environment()
        && settings.limit_bytes.is_some()
    {
        make_room(&CacheSettings { hub_folder: None, ..settings }, 0);
    }
}

/// Files that are held until the process ends.
static HELD: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());

/// Keeps what a file stands for from being given up while this process lives, and says that it is used now. `false` where the
/// file is not there, or was given up at this moment: then it is to be made again.
pub fn hold(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    // A file system without locks has nobody who could see that nothing is held.
    let _ = file.lock_shared();
    if !is_at(&file, path) {
        return false;
    }
    // Where it may not be touched it only ages faster than it is used.
    let _ = file.set_modified(SystemTime::now());
    HELD.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_path_buf(), file);
    note_use();
    true
}

/// The file with a lock that no user of it allows; `None` where it is in use, or nobody can tell.
pub(super) fn unused(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    match file.try_lock() {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
    }
}

/// Whether a path still leads to an open file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (open.dev(), open.ino()) == (there.dev(), there.ino())
    }
    #[cfg(not(unix))]
    {
        open.len() == there.len()
    }
}

fn gone(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn list(folder: &Path) -> impl Iterator<Item = (String, fs::DirEntry)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry)))
}

/// Regular files of a folder whose names are the program's own, finished or half written.
fn files(folder: &Path, kind: StockKind, is_own: &dyn Fn(&str) -> bool) -> Vec<Item> {
    let item = |(name, entry): (String, fs::DirEntry)| {
        let about = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let parts = match written_as(&name) {
            Some(own) if is_own(own) || is_own_name(&name) => Parts::Aside,
            None if is_own(&name) && kind == StockKind::Data => Parts::Held,
            None if is_own(&name) => Parts::Free,
            _ => return None,
        };
        Some(Item { kind, name, path: entry.path(), bytes: about.len(), used: about.modified().ok()?, parts })
    };
    list(folder).filter_map(item).collect()
}

/// Bases that were made on the spot: folders with the program's names that hold files of a base and nothing else.
fn bases(folder: &Path) -> Vec<Item> {
    let item = |(name, entry): (String, fs::DirEntry)| {
        if !entry.file_type().ok()?.is_dir() {
            return None;
        }
        let own = written_as(&name);
        if !is_base(own.unwrap_or(&name)) && !is_own_name(&name) {
            return None;
        }
        let (mut files, mut bytes, mut newest) = (Vec::new(), 0, None);
        for (file, part) in list(&entry.path()) {
            let about = part.metadata().ok().filter(std::fs::Metadata::is_file)?;
            if !is_part(written_as(&file).unwrap_or(&file)) && !is_own_name(&file) {
                return None;
            }
            bytes += about.len();
            let used = about.modified().ok()?;
            newest = newest.max(Some(used));
            files.push(part.path());
        }
        files.sort_by_key(|path| path.file_name().is_none_or(|name| name != "config.json"));
        let used = newest.or_else(|| entry.metadata().ok()?.modified().ok())?;
        let parts = if own.is_some() { Parts::Aside } else { Parts::Folder(files) };
        Some(Item { kind: StockKind::Bases, name, path: entry.path(), bytes, used, parts })
    };
    list(folder).filter_map(item).collect()
}

/// Bases, each with all its files, and files of data sets that this program downloaded.
fn on_hub(cache: &Path) -> Vec<Item> {
    let mut items = Vec::new();
    let mut bases: BTreeMap<String, Vec<KeptFile>> = BTreeMap::new();
    for file in kept_files(cache) {
        let id = format!("{}@{}", file.repository(), file.commit());
        match file.repository().kind() {
            RepoKind::Model => bases.entry(id).or_default().push(file),
            RepoKind::Dataset => items.push(Item {
                kind: StockKind::HubData,
                name: format!("{id}/{}", file.name()),
                path: file.path(),
                bytes: file.bytes(),
                used: file.used(),
                parts: Parts::Hub { lock: None, files: vec![file] },
            }),
        }
    }
    for (name, files) in bases {
        let config = files.iter().map(KeptFile::path).find(|path| path.ends_with("config.json"));
        let path = files.first().map(KeptFile::path).unwrap_or_default();
        let touched = config.as_ref().and_then(|config| std::fs::metadata(config).ok()?.modified().ok());
        items.push(Item {
            kind: StockKind::HubBases,
            name,
            path: path.parent().unwrap_or(&path).to_path_buf(),
            bytes: files.iter().map(KeptFile::bytes).sum(),
            // Without a network only its configuration is touched.
            used: files.iter().map(KeptFile::used).chain(touched).max().unwrap_or(SystemTime::UNIX_EPOCH),
            parts: Parts::Hub { lock: config, files },
        });
    }
    items
}

/// Removes what killed processes left half written, among the program's own names.
fn clear_leftovers(folder: &Path) {
    let Ok(cache) = Directory::open(folder) else { return };
    let clear = |folder: &Directory, is_own: &dyn Fn(&str) -> bool| {
        temporary::clear(folder, &|name| is_own_name(name) || written_as(name).is_some_and(is_own));
    };
    let folders_in = |folder: &Directory| -> Vec<Directory> {
        folder.entries().unwrap_or_default().iter().filter_map(|name| folder.folder(name).ok()).collect()
    };
    if let Ok(bases) = cache.folder("bases") {
        clear(&bases, &is_base);
        for base in folders_in(&bases) {
            let is_named = base.path().file_name().and_then(|name| name.to_str()).is_some_and(is_base);
            if is_named {
                clear(&base, &is_part);
            }
        }
    }
    if let Ok(data) = cache.folder("data") {
        clear(&data, &|name| is_drawn(name.strip_suffix(".sha256").unwrap_or(name)));
    }
    if let Ok(fingerprints) = cache.folder("fingerprints") {
        clear(&fingerprints, &|name| is_hex(name, 64));
    }
    for kind in store::Kind::ALL {
        let Ok(shelves) = cache.folder(kind.name()) else { continue };
        for shelf in folders_in(&shelves) {
            if shelf.path().file_name().and_then(|name| name.to_str()).is_some_and(|name| is_hex(name, 2)) {
                clear(&shelf, &|name| is_hex(name, 62));
            }
        }
    }
}

/// `SHAPE-HASH`, or the same with a seed behind it, perhaps with a vocabulary.
fn is_base(name: &str) -> bool {
    let shapes = JanusConfig::shape_names().iter().copied().chain([builtin::NAME]);
    shapes.filter_map(|shape| name.strip_prefix(shape)?.strip_prefix('-')).any(|rest| {
        let (hash, tail) = rest.split_at_checked(crate::base::HASH_DIGITS).unwrap_or((rest, ""));
        is_hex(hash, crate::base::HASH_DIGITS) && (tail.is_empty() || tail.starts_with("-seed"))
    })
}

/// A file that a base made on the spot has.
pub(crate) fn is_part(name: &str) -> bool {
    let weights = name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".index.json"));
    let others = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    weights || others.contains(&name)
}

/// `DOMAIN-vN-SPLIT-rowsN-seedN-sizeN.parquet`.
fn is_drawn(name: &str) -> bool {
    let Some(parts) = name.strip_suffix(".parquet") else { return false };
    let parts: Vec<&str> = parts.split('-').collect();
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let follows = |part: &str, start: &str| part.strip_prefix(start).is_some_and(is_number);
    match parts.as_slice() {
        [domain, version, "train" | "eval", rows, seed, size] => {
            Domain::NAMES.contains(domain)
                && follows(version, "v")
                && follows(rows, "rows")
                && follows(seed, "seed")
                && follows(size, "size")
        }
        _ => false,
    }
}

/// So many lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
#[path = "stock_tests.rs"]
mod tests;
