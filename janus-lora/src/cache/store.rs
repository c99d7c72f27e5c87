//! A folder of entries by key, each checked when it is read, the least recently used given up where room is needed.
//!
//! An entry lies at `KIND/ab/cdef…` (its key in hexadecimal) and is
//!
//! ```text
//! "janus-cache-one\n"     16 bytes
//! key                     32 bytes
//! length of the payload   u64, little-endian
//! SHA-256 of the payload  32 bytes
//! payload
//! ```
//!
//! Entries are written aside and renamed, so any number of runs may share a folder; what is not exactly as expected
//! counts as absent and is written anew. When an entry was last used is its time of modification.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use fs_err as fs;

use super::error::CacheError;
use super::key::{Digest, digest};
use super::seal;
use super::stock::{self, is_hex};
use crate::base::cache_folder;
use janus_core::directory::Directory;
use janus_core::hub::HubOptions;
use janus_core::ownership::is_believable;
use janus_core::temporary::TemporaryFile;

/// The environment variable that sets the limit.
pub const LIMIT_VARIABLE: &str = "JANUS_CACHE_LIMIT_BYTES";

/// The limit where none is set: so much, or a tenth of what the disk has free, whichever is less.
const DEFAULT_LIMIT_BYTES: u64 = 20 << 30;

const MAGIC: &[u8; 16] = b"janus-cache-one\n";
const HEADER_BYTES: usize = MAGIC.len() + 32 + 8 + 32;

/// Kinds of entries: folders of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Features,
    Codes,
}

impl Kind {
    pub(super) const ALL: [Kind; 2] = [Kind::Features, Kind::Codes];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Features => "features",
            Kind::Codes => "codes",
        }
    }
}

/// Where and how much is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    /// The folder.
    pub folder: PathBuf,
    /// Most bytes of all that is kept once a command is over; 0 keeps nothing but what is in use, absent is 20 GiB or a tenth of the disk's free room.
    pub limit_bytes: Option<u64>,
    /// A hub's cache, whose files that this program brought count, too.
    pub hub_folder: Option<PathBuf>,
}

impl CacheSettings {
    /// A folder and its limit, without a hub's cache.
    pub fn new(folder: PathBuf, limit_bytes: Option<u64>) -> Self {
        Self { folder, limit_bytes, hub_folder: None }
    }

    /// As the environment has it: the folder of [`cache_folder`], the limit of [`LIMIT_VARIABLE`]. What was downloaded counts
    /// only where a limit is set: it takes longer to bring back than anything else does.
    ///
    /// # Errors
    /// A limit that is no number.
    pub fn from_environment() -> Result<Self, CacheError> {
        let limit_bytes = match std::env::var_os(LIMIT_VARIABLE).filter(|value| !value.is_empty()) {
            None => None,
            Some(value) => {
                let value = value.to_string_lossy();
                Some(value.trim().parse().map_err(|_| CacheError::Limit { value: value.clone().into_owned() })?)
            }
        };
        let hub_folder = limit_bytes.and_then(|_| Some(HubOptions::from_env().ok()?.cache_dir));
        Ok(Self { folder: cache_folder()?, limit_bytes, hub_folder })
    }

    /// Whether anything is kept at all.
    pub fn is_on(&self) -> bool {
        self.limit_bytes != Some(0)
    }

    /// The limit in bytes, where `total_bytes` are kept now.
    pub fn limit(&self, total_bytes: u64) -> u64 {
        self.limit_bytes.unwrap_or_else(|| {
            // With the cache's own share, or the limit would shrink as it fills.
            let free = free_bytes(&self.folder).map_or(u64::MAX, |free| free.saturating_add(total_bytes) / 10);
            free.min(DEFAULT_LIMIT_BYTES)
        })
    }
}

/// One file.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) used: SystemTime,
}

#[derive(Debug)]
struct Size {
    /// All that is kept at the last look, and what was written since.
    total_bytes: u64,
    /// What was written since.
    added_bytes: u64,
}

/// How writing fares.
#[derive(Debug, PartialEq, Eq)]
enum Writing {
    Works,
    /// Not told yet.
    Failed(String),
    Told,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Store {
    settings: CacheSettings,
    limit_bytes: u64,
    size: Mutex<Size>,
    writing: Mutex<Writing>,
}

impl Store {
    /// `None` where nothing is to be kept.
    pub(super) fn open(settings: &CacheSettings) -> Option<Self> {
        if !settings.is_on() {
            return None;
        }
        let settings = settings.clone();
        let items = stock::items(&settings.folder, settings.hub_folder.as_deref());
        let total_bytes = items.iter().map(|item| item.bytes).sum();
        let limit_bytes = settings.limit(total_bytes);
        let size = Mutex::new(Size { total_bytes, added_bytes: 0 });
        Some(Self { settings, limit_bytes, size, writing: Mutex::new(Writing::Works) })
    }

    fn path(&self, kind: Kind, key: &Digest) -> PathBuf {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let (start, rest) = name.split_at(2);
        self.settings.folder.join(kind.name()).join(start).join(rest)
    }

    /// The payload of an entry, `None` where there is none or another than `bytes` long, or anything is odd about it.
    pub(super) fn get(&self, kind: Kind, key: &Digest, bytes: usize) -> Option<Vec<u8>> {
        let path = self.path(kind, key);
        if !is_believable(&path, &self.settings.folder) {
            return None;
        }
        let about = fs::symlink_metadata(&path).ok()?;
        if !about.is_file() || about.len() != (HEADER_BYTES + bytes) as u64 {
            return None;
        }
        let mut file = std::fs::File::open(&path).ok()?;
        let mut found = [0; HEADER_BYTES];
        file.read_exact(&mut found).ok()?;
        let mut payload = vec![0; bytes];
        file.read_exact(&mut payload).ok()?;
        if found != header(key, &payload) {
            return None;
        }
        // Where it may not be touched it only ages faster than it is used.
        let _ = file.set_modified(SystemTime::now());
        Some(payload)
    }

    /// Writes an entry, if there is room or room can be made. The first failure is kept for [`Store::take_failure`], and
    /// nothing is written after it.
    pub(super) fn put(&self, kind: Kind, key: &Digest, payload: &[u8]) {
        if *self.writing() != Writing::Works {
            return;
        }
        let written = self.make_room((HEADER_BYTES + payload.len()) as u64).and_then(|fits| {
            if fits { write(&self.path(kind, key), &[&header(key, payload), payload]) } else { Ok(()) }
        });
        if let Err(reason) = written {
            let folder = self.settings.folder.display();
            *self.writing() = Writing::Failed(format!(
                "nothing more is kept in the cache `{folder}` (`JANUS_CACHE` names another), what is not there is computed each time: {reason}"
            ));
        }
    }

    /// Why nothing is written any more; only the first call says so.
    pub(super) fn take_failure(&self) -> Option<String> {
        let mut writing = self.writing();
        if !matches!(*writing, Writing::Failed(_)) {
            return None;
        }
        match std::mem::replace(&mut *writing, Writing::Told) {
            Writing::Failed(reason) => Some(reason),
            Writing::Works | Writing::Told => None,
        }
    }

    fn writing(&self) -> std::sync::MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up what was used longest ago, of whatever kind, until one more entry of `bytes` fits. `false` where it never would,
    /// what is in use included.
    ///
    /// Other runs may write meanwhile, so the folder is looked through again each sixteenth of the limit: together they
    /// exceed it by no more than that for each of them.
    fn make_room(&self, bytes: u64) -> io::Result<bool> {
        let limit = self.limit_bytes;
        let step = limit / 16;
        if bytes > limit - step {
            return Ok(false);
        }
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if size.added_bytes.saturating_add(bytes) > step || size.total_bytes.saturating_add(bytes) > limit {
            let mut items = stock::items(&self.settings.folder, self.settings.hub_folder.as_deref());
            let mut total: u64 = items.iter().map(|item| item.bytes).sum();
            if total.saturating_add(bytes) > limit {
                let used: u64 = items.iter().filter(|item| item.is_in_use()).map(|item| item.bytes).sum();
                if used.saturating_add(bytes) > limit - step {
                    // Or each entry would drive out the one before it.
                    return Err(io::Error::other(format!(
                        "what runs use takes {used} of {limit} bytes (`{LIMIT_VARIABLE}`)"
                    )));
                }
                items.sort_by_key(|item| item.used);
                for item in items {
                    // Some more than needed, so that not every entry costs a look through the folder.
                    if total.saturating_add(bytes) <= limit - step {
                        break;
                    }
                    if item.remove()? {
                        total -= item.bytes;
                    }
                }
            }
            *size = Size { total_bytes: total, added_bytes: 0 };
        }
        size.total_bytes += bytes;
        size.added_bytes += bytes;
        Ok(true)
    }
}

/// Writes aside and renames. Nothing is synced: after a loss of power an entry may be odd, and then counts as absent.
fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    seal::check_own_hand(folder)?;
    fs::create_dir_all(folder)?;
    let mut aside = TemporaryFile::create(&Directory::open(folder)?, name)?;
    for part in parts {
        aside.file().write_all(part)?;
    }
    aside.put(name)
}

/// What stands before a payload.
fn header(key: &Digest, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let length = (payload.len() as u64).to_le_bytes();
    let parts = [MAGIC.as_slice(), key, &length, &digest(payload)].concat();
    header.copy_from_slice(&parts);
    header
}

/// Every file that looks like an entry, and nothing else that may lie in the folder.
pub(super) fn entries(folder: &Path) -> Vec<(Kind, Entry)> {
    let list = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for kind in Kind::ALL {
        for shelf in list(&folder.join(kind.name())) {
            if !shelf.file_name().to_str().is_some_and(|name| is_hex(name, 2)) {
                continue;
            }
            for file in list(&shelf.path()) {
                let Some(name) = file.file_name().to_str().map(str::to_owned) else { continue };
                let Ok(about) = file.metadata() else { continue };
                let (true, Ok(used)) = (about.is_file(), about.modified()) else { continue };
                if is_hex(&name, 62) {
                    found.push((kind, Entry { path: file.path(), bytes: about.len(), used }));
                }
            }
        }
    }
    found
}

/// Room on the disk of a folder that may not be there yet, for users without privileges; `None` where the system does
/// not tell.
fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let there = folder.ancestors().find(|path| path.is_dir()).unwrap_or_else(|| Path::new("."));
        let path = std::ffi::CString::new(there.as_os_str().as_bytes()).ok()?;
        // SAFETY: `statvfs` reads a string that ends in NUL and fills the struct it is given; an all-zero `statvfs` is a
        // valid value of that plain C struct.
        let about = unsafe {
            let mut about: libc::statvfs = std::mem::zeroed();
            if libc::statvfs(path.as_ptr(), &mut about) != 0 {
                return None;
            }
            about
        };
        #[allow(clippy::unnecessary_cast)] // Their types differ between systems.
        Some((about.f_bavail as u64).saturating_mul(about.f_frsize as u64))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
