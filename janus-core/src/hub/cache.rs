use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::content::{MOST_CHECKED_BYTES, other_digest};
use super::select::{is_of_base, missing_in_snapshot};
use super::shards::ShardRecord;
use super::{HubError, Progress, RepoId, RepoKind};
use crate::input;
use crate::output::write_file;
use crate::ownership::is_open_to_all;

/// Longest file below `refs/` that is read: one hash.
const MOST_REF_BYTES: u64 = 1024;

/// What the cache has of a base, or of some files.
#[derive(Debug)]
pub(super) enum Kept {
    /// All of it, in this folder.
    Whole(PathBuf),
    /// All but this, and perhaps more.
    Without(String),
    /// Something else than was once downloaded.
    Damaged(HubError),
}

/// The part of the cache that belongs to one repository.
pub(super) struct RepositoryCache<'a> {
    id: &'a RepoId,
    /// `<cache>/models--owner--name`, of a data set `<cache>/datasets--owner--name`.
    root: PathBuf,
    /// `<cache>/.locks/` and the same name, where Python's `huggingface_hub` locks, too.
    locks: PathBuf,
    repo: CacheRepo,
}

pub(super) fn write_error(path: &Path) -> impl Fn(io::Error) -> HubError + '_ {
    move |source| HubError::Write { path: path.to_path_buf(), source }
}

/// Whether `text` is a commit hash, SHA-1 or SHA-256.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl<'a> RepositoryCache<'a> {
    pub(super) fn new(id: &'a RepoId, cache_dir: &Path) -> Self {
        let kind = match id.kind() {
            RepoKind::Model => RepoType::Model,
            RepoKind::Dataset => RepoType::Dataset,
        };
        let repo = Repo::with_revision(id.repository().to_string(), kind, id.revision().to_string());
        let root = cache_dir.join(repo.folder_name());
        let locks = cache_dir.join(".locks").join(repo.folder_name());
        Self { id, root, locks, repo: Cache::new(cache_dir.to_path_buf()).repo(repo) }
    }

    /// `snapshots/<commit>`.
    pub(super) fn snapshot_folder(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// `snapshots/<commit>/<name>`.
    pub(super) fn pointer(&self, commit: &str, name: &str) -> PathBuf {
        self.snapshot_folder(commit).join(name)
    }

    /// `blobs/<etag>`.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// `blobs/<etag>.incomplete`.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The repository's folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of our own records of the repository, made if it is not there.
    pub(super) fn records(&self) -> Result<PathBuf, HubError> {
        self.plain_folders(".janus", None)
    }

    /// Names of the files of a commit that are there, relative to its snapshot.
    pub(super) fn files_of(&self, commit: &str) -> BTreeSet<String> {
        let base = self.snapshot_folder(commit);
        let (mut folders, mut files) = (vec![base.clone()], BTreeSet::new());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                // Folders behind links would lead out of the snapshot, or in a circle.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if path.is_file()
                    && let Some(name) = path.strip_prefix(&base).ok().and_then(Path::to_str)
                {
                    files.insert(name.replace('\\', "/"));
                }
            }
        }
        files
    }

    /// Whether a snapshot has a link to a blob.
    pub(super) fn is_pointed_to(&self, blob: &Path) -> bool {
        let Ok(blob) = fs::canonicalize(blob) else { return false };
        let commits = fs::read_dir(self.root.join("snapshots")).into_iter().flatten().flatten();
        commits.filter_map(|commit| commit.file_name().into_string().ok()).any(|commit| {
            let base = self.snapshot_folder(&commit);
            self.files_of(&commit)
                .iter()
                .any(|name| fs::canonicalize(base.join(name)).is_ok_and(|target| target == blob))
        })
    }

    /// The commit that the revision was when it was last looked up, else the name of what is missing.
    pub(super) fn commit(&self) -> Result<String, String> {
        let revision = self.id.revision();
        if is_commit(revision) {
            return Ok(revision.to_string());
        }
        let reference = format!("refs/{revision}");
        let text = input::read_named(&self.root.join(&reference), MOST_REF_BYTES).map_err(|_| reference.clone())?;
        let text = String::from_utf8_lossy(&text);
        Ok(Some(text.trim()).filter(|text| is_commit(text)).ok_or(reference)?.to_string())
    }

    /// The base of the revision, as far as it is here.
    pub(super) fn snapshot(&self) -> Kept {
        match self.commit() {
            Ok(commit) => self.base_at(&commit),
            Err(missing) => Kept::Without(missing),
        }
    }

    /// The base of a commit, as far as it is here.
    pub(super) fn base_at(&self, commit: &str) -> Kept {
        let folder = self.snapshot_folder(commit);
        if let Some(missing) = missing_in_snapshot(self.id, &folder) {
            return Kept::Without(missing);
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| is_of_base(name));
        names.sort();
        match names.iter().find_map(|name| self.fault_of(commit, name)) {
            None => Kept::Whole(folder),
            Some(fault) => Kept::Damaged(fault),
        }
    }

    /// What is wrong with a blob that is there, as far as its name tells what is in it and it is not too long to be read each
    /// time.
    pub(super) fn damage(&self, etag: &str, blob: &Path) -> Option<HubError> {
        let path = || blob.to_path_buf();
        match other_digest(etag, blob, MOST_CHECKED_BYTES) {
            Ok(Some(got)) => Some(HubError::Damaged { path: path(), expected: etag.to_string(), got }),
            Ok(None) => None,
            Err(source) => Some(HubError::Read { path: path(), source }),
        }
    }

    /// What is wrong with a file of a snapshot that is there: another content than its blob's name tells, or another blob than
    /// our record of the download names. A plain file that nobody recorded, as Python leaves it where there are no links, tells
    /// nothing of itself.
    pub(super) fn fault_of(&self, commit: &str, name: &str) -> Option<HubError> {
        let pointer = self.pointer(commit, name);
        if !pointer.exists() {
            return None;
        }
        let recorded = ShardRecord::tag_of(self, commit, name);
        let linked = self.blob_behind(&pointer);
        match (linked, recorded) {
            (Some(blob), recorded) => {
                let etag = blob.file_name()?.to_str()?;
                match recorded.filter(|recorded| recorded != etag) {
                    Some(expected) => Some(HubError::Damaged { path: pointer, expected, got: etag.to_string() }),
                    None => self.damage(etag, &blob),
                }
            }
            (None, Some(recorded)) => self.damage(&recorded, &pointer),
            (None, None) => None,
        }
    }

    /// The blob that a link of a snapshot leads to.
    fn blob_behind(&self, pointer: &Path) -> Option<PathBuf> {
        let is_link = fs::symlink_metadata(pointer).is_ok_and(|about| about.is_symlink());
        let blobs = fs::canonicalize(self.root.join("blobs")).ok()?;
        let target = fs::canonicalize(pointer).ok().filter(|_| is_link)?;
        (target.parent() == Some(&blobs)).then_some(target)
    }

    /// Whether a file of a commit is here. One that is damaged is removed, so that it is fetched again.
    pub(super) fn has(&self, commit: &str, name: &str, progress: &dyn Progress) -> Result<bool, HubError> {
        let pointer = self.pointer(commit, name);
        if !pointer.exists() {
            return Ok(false);
        }
        let Some(fault) = self.fault_of(commit, name) else { return Ok(true) };
        let note = format!("{fault}: it is fetched again");
        let blob = self.blob_behind(&pointer);
        let removed = self.require_own_hand().is_ok()
            && blob.into_iter().chain([pointer]).all(|path| fs::remove_file(path).is_ok());
        match removed {
            true => progress.note(&note),
            false => return Err(fault),
        }
        Ok(false)
    }

    /// Refuses to write where every user of the machine may put something else in its place.
    pub(super) fn require_own_hand(&self) -> Result<(), HubError> {
        let below = ["", "blobs", "snapshots", "refs"].map(|name| self.root.join(name));
        let mut folders = self.root.parent().map(Path::to_path_buf).into_iter().chain(below);
        match folders.find(|folder| is_open_to_all(folder)) {
            None => Ok(()),
            Some(path) => Err(HubError::OpenToAll { path }),
        }
    }

    /// Waits until no other process downloads the blob; the lock ends with the file's life.
    pub(super) fn lock(&self, etag: &str, name: &str, progress: &dyn Progress) -> Result<File, HubError> {
        self.require_own_hand()?;
        fs::create_dir_all(&self.locks).map_err(write_error(&self.locks))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(write_error(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.note(&format!("another process downloads `{name}`; waiting for it"));
                file.lock().map_err(write_error(&path))?;
            }
            Err(TryLockError::Error(source)) => return Err(write_error(&path)(source)),
        }
        Ok(file)
    }

    /// Points `snapshots/<commit>/<name>` to the blob: by a relative symbolic link where the file system has such,
    /// else by a second name for or a copy of the blob. A pointer to something that is gone is replaced.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), HubError> {
        let pointer = self.pointer(commit, name);
        if pointer.exists() {
            return Ok(());
        }
        let below_snapshots = Path::new(commit).join(name);
        let folder = self.plain_folders("snapshots", below_snapshots.parent())?;
        let blob = self.blob(etag);
        let to_root: PathBuf = std::iter::repeat_n("..", below_snapshots.components().count()).collect();
        let target = to_root.join("blobs").join(etag);
        let mut builder = tempfile::Builder::new();
        builder.prefix(".pointer-");
        let made = builder
            .make_in(&folder, |path| symlink(&target, path))
            .or_else(|_| builder.make_in(&folder, |path| std::fs::hard_link(&blob, path)))
            .or_else(|_| builder.make_in(&folder, |path| std::fs::copy(&blob, path).map(|_| ())))
            .map_err(write_error(&pointer))?;
        made.persist(&pointer).map_err(|e| write_error(&pointer)(e.error))?;
        sync_folder(&folder);
        Ok(())
    }

    /// Records the commit the revision stands for, where that may be written; a revision that is itself a commit needs no
    /// record.
    pub(super) fn write_ref(&self, commit: &str) -> Result<(), HubError> {
        let revision = self.id.revision();
        if revision == commit || self.commit().is_ok_and(|known| known == commit) {
            return Ok(());
        }
        // Without it the revision has to be asked for again, and nothing else.
        self.record_ref(revision, commit).or_else(HubError::unless_refused)
    }

    fn record_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self
            .plain_folders("refs", Path::new(revision).parent())?
            .join(Path::new(revision).file_name().unwrap_or_default());
        Ok(write_file(&path, |writer| writer.write_all(commit.as_bytes()))?)
    }

    /// Makes `<root>/<first>/<rest>`, refusing to go through anything below `first` that is not a real folder: a
    /// symbolic link there would take what is written out of the cache.
    fn plain_folders(&self, first: &str, rest: Option<&Path>) -> Result<PathBuf, HubError> {
        self.require_own_hand()?;
        let mut folder = self.root.join(first);
        fs::create_dir_all(&folder).map_err(write_error(&folder))?;
        for part in rest.iter().flat_map(|rest| rest.components()) {
            folder.push(part);
            match fs::symlink_metadata(&folder) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Err(HubError::Occupied { path: folder, expected: "folder" }),
                Err(_) => match std::fs::create_dir(&folder) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(write_error(&folder)(e)),
                    _ => {}
                },
            }
        }
        Ok(folder)
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _path: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes a rename durable. Folders cannot be opened for syncing on every system: there the rename alone must do.
pub(super) fn sync_folder(path: &Path) {
    if let Ok(folder) = fs::File::open(path) {
        let _ = folder.sync_all();
    }
}
