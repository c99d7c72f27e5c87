//! Checkpoints: everything that a run needs to go on to the same bits, whole or absent.
//!
//! `checkpoints/step-N/` is an adapter folder, loadable by itself, and beside it:
//!
//! | file | what |
//! | --- | --- |
//! | `optimizer.safetensors` | moments and counts ([`super::moments`]) |
//! | `state.json` | [`State`]: step, rows, figures, and what the run was started with |
//! | `checksums.json` | SHA-256 of every other file: what does not match is not whole |
//!
//! A checkpoint stands between two steps, so there is no half accumulation to keep; noise is a function of seed and step, so
//! there is no generator's state either.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fs_err as fs;
use janus_core::input;
use janus_core::output::{StagedFolder, write_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::feeder::FeederState;
use super::guard::Progress;
use super::identity::RunIdentity;
use super::moments;
use super::step::Stepper;
use super::{TrainError, signals};
use crate::adapter::{Adapter, WEIGHTS_FILE};
use crate::base::Base;
use crate::error::Result;
use crate::status::Status;

/// Folder of all checkpoints in a run folder.
pub(super) const FOLDER: &str = "checkpoints";

/// The version written, and the only one read.
const FORMAT: u32 = 1;

const STATE_FILE: &str = "state.json";
const CHECKSUMS_FILE: &str = "checksums.json";
const PREFIX: &str = "step-";
/// What files of tensors end in.
const TENSORS: &str = ".safetensors";

/// Longest JSON file that is read: a table of a hundred thousand shards has some 20 MB of identity.
const JSON_LIMIT_BYTES: u64 = 256 << 20;

/// What a checkpoint knows beside tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of this format.
    pub format: u32,
    /// Steps done.
    pub step: u64,
    /// What the run was started with.
    pub identity: RunIdentity,
    /// Which rows come next.
    pub feeder: FeederState,
    /// Length of `metrics.jsonl`.
    pub metrics_bytes: u64,
    /// What the run knows of itself.
    pub progress: Progress,
    /// Bytes of the files beside it. Checkpoints of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lengths: BTreeMap<String, u64>,
}

impl State {
    /// The state after `step` steps.
    pub fn new(step: u64, identity: RunIdentity, feeder: FeederState, metrics_bytes: u64, progress: Progress) -> Self {
        Self { format: FORMAT, step, identity, feeder, metrics_bytes, progress, lengths: BTreeMap::new() }
    }
}

/// A whole checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// What it knows beside tensors.
    pub state: State,
}

/// The folder of the checkpoint after `step` steps.
pub fn folder_of(run: &Path, step: u64) -> PathBuf {
    run.join(FOLDER).join(format!("{PREFIX}{step}"))
}

/// Steps of all checkpoints in a run folder, whole or not, rising.
pub fn steps(run: &Path) -> Vec<u64> {
    let entries = fs::read_dir(run.join(FOLDER)).into_iter().flatten().flatten();
    let step = |name: String| {
        let digits = name.strip_prefix(PREFIX)?;
        digits.parse().ok().filter(|step: &u64| step.to_string() == digits)
    };
    let mut steps: Vec<u64> =
        entries.filter_map(|entry| step(entry.file_name().to_string_lossy().into_owned())).collect();
    steps.sort_unstable();
    steps
}

/// Writes a checkpoint; one of the same step is replaced.
///
/// # Errors
/// The system's; no part of the checkpoint is there then.
pub fn write(run: &Path, state: &State, adapter: &Adapter, stepper: &Stepper) -> Result<PathBuf> {
    require_own_folder(run)?;
    let target = folder_of(run, state.step);
    if target.exists() {
        remove(&target).map_err(|source| TrainError::Write { path: target.clone(), source })?;
    }
    let staged = StagedFolder::create(&target)?;
    let failed = |source| TrainError::Write { path: target.clone(), source };
    adapter.write(staged.path())?;
    moments::write(staged.path(), stepper).map_err(failed)?;
    let mut checksums = BTreeMap::new();
    let mut lengths = BTreeMap::new();
    for entry in fs::read_dir(staged.path()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        lengths.insert(name.clone(), entry.metadata().map_err(failed)?.len());
        checksums.insert(name, sha256(&entry.path(), false).map_err(failed)?);
    }
    let text = serde_json::to_vec(&State { lengths, ..state.clone() }).map_err(|e| failed(e.into()))?;
    write_file(&staged.path().join(STATE_FILE), |file| file.write_all(&text))?;
    checksums.insert(STATE_FILE.to_owned(), hex(&Sha256::digest(&text)));
    let text = serde_json::to_vec_pretty(&checksums).map_err(|e| failed(e.into()))?;
    write_file(&staged.path().join(CHECKSUMS_FILE), |file| file.write_all(&text))?;
    staged.commit()?;
    Ok(target)
}

/// A link that was put in the place of the folder during a run would lead elsewhere what is written and removed.
fn require_own_folder(run: &Path) -> Result<()> {
    let link = run.join(FOLDER);
    match fs::symlink_metadata(&link) {
        Ok(found) if found.is_symlink() => Err(TrainError::Link { folder: run.to_path_buf(), link }.into()),
        _ => Ok(()),
    }
}

/// Removes what is not kept: all but the last `keep` checkpoints up to `step`, the best of each of these, and nothing after
/// `step`, which a damaged later one may be.
///
/// # Errors
/// The system's.
pub fn prune(run: &Path, step: u64, keep: u64) -> Result<()> {
    require_own_folder(run)?;
    let all = steps(run);
    let last: Vec<u64> =
        all.iter().rev().copied().filter(|s| *s <= step).take(usize::try_from(keep).unwrap_or(usize::MAX)).collect();
    let best = |step: &u64| read_state(&folder_of(run, *step)).ok()?.progress.best.map(|best| best.step);
    let best: Vec<u64> = last.iter().filter_map(best).collect();
    for gone in all.iter().filter(|step| !last.contains(step) && !best.contains(step)) {
        let folder = folder_of(run, *gone);
        remove(&folder).map_err(|source| TrainError::Write { path: folder, source })?;
    }
    Ok(())
}

/// Removes a checkpoint: first its name, so that it is never seen in part.
fn remove(folder: &Path) -> io::Result<()> {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let aside = folder.with_file_name(format!(".{name}.tmp-removed"));
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::rename(folder, &aside)?;
    match fs::symlink_metadata(&aside)?.is_dir() {
        true => fs::remove_dir_all(&aside),
        false => fs::remove_file(&aside),
    }
}

/// The newest whole checkpoint of a run; a damaged one is told and passed over.
///
/// # Errors
/// [`TrainError::NoWholeCheckpoint`] where there are checkpoints and none is whole.
pub fn newest(run: &Path, status: &dyn Status) -> Result<Option<Checkpoint>> {
    let steps = steps(run);
    let mut newest = None;
    for step in steps.iter().rev() {
        match open(run, *step) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(stopped @ TrainError::Stopped { .. }) => return Err(stopped.into()),
            Err(error) => {
                status.warn(&format!("{error}; going back to the one before"));
                newest.get_or_insert(error);
            }
        }
    }
    match newest {
        None => Ok(None),
        Some(error) => {
            let (folder, count, source) = (run.join(FOLDER), steps.len(), Box::new(error.into()));
            Err(TrainError::NoWholeCheckpoint { folder, count, source }.into())
        }
    }
}

/// A checkpoint of a run, every file of it compared with its checksum.
///
/// # Errors
/// [`TrainError::Checkpoint`] with what is wrong; [`TrainError::Stopped`] where a signal comes.
pub fn open(run: &Path, step: u64) -> Result<Checkpoint, TrainError> {
    let folder = folder_of(run, step);
    let broken = |problem: String| TrainError::Checkpoint { folder: folder.clone(), problem };
    let text = read_json(&folder, CHECKSUMS_FILE).map_err(broken)?;
    let checksums: BTreeMap<String, String> =
        serde_json::from_str(&text).map_err(|e| broken(format!("`{CHECKSUMS_FILE}`: {e}")))?;
    for needed in [WEIGHTS_FILE, moments::FILE, STATE_FILE] {
        if !checksums.contains_key(needed) {
            return Err(broken(format!("`{CHECKSUMS_FILE}` does not list `{needed}`")));
        }
    }
    // It tells how long the others are: nothing is hashed that is not.
    let state = compare(&folder, STATE_FILE, &checksums[STATE_FILE], None).and_then(|()| {
        signals::check()?;
        read_state(&folder).map_err(broken)
    })?;
    for (name, expected) in checksums.iter().filter(|(name, _)| *name != STATE_FILE) {
        // Names come from a file that may be damaged: none leads out of the folder.
        if Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(broken(format!("`{CHECKSUMS_FILE}` lists `{name}`, which is no file name")));
        }
        compare(&folder, name, expected, state.lengths.get(name).copied())?;
    }
    if state.step != step {
        return Err(broken(format!("it is of step {}", state.step)));
    }
    Ok(Checkpoint { folder, state })
}

/// Compares a file of a checkpoint with its checksum, if it is as long as it was; without a length with what it can be at most.
fn compare(folder: &Path, name: &str, expected: &str, length: Option<u64>) -> Result<(), TrainError> {
    let broken = |problem: String| TrainError::Checkpoint { folder: folder.to_path_buf(), problem };
    let (path, told) = (folder.join(name), |e: io::Error| broken(e.to_string()));
    let bytes = fs::metadata(&path).map_err(told)?.len();
    match length {
        Some(length) if bytes != length => {
            return Err(broken(format!("`{name}` has {bytes} bytes, expected {length}")));
        }
        None if bytes > JSON_LIMIT_BYTES && !name.ends_with(TENSORS) => {
            return Err(broken(format!("`{name}` has {bytes} bytes, expected at most {JSON_LIMIT_BYTES}")));
        }
        _ => {}
    }
    let got = sha256(&path, true);
    signals::check()?;
    match got.map_err(told)? {
        got if got == expected => Ok(()),
        got => Err(broken(format!("`{name}` has checksum {got}, expected {expected}"))),
    }
}

fn read_state(folder: &Path) -> Result<State, String> {
    let text = read_json(folder, STATE_FILE)?;
    let told = |e: serde_json::Error| format!("`{STATE_FILE}`: {e}");
    // The version alone first: what else another version holds may be of other types.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let Version { format } = serde_json::from_str(&text).map_err(told)?;
    if format != FORMAT {
        return Err(format!("`{STATE_FILE}` has format {format}, expected {FORMAT}"));
    }
    serde_json::from_str(&text).map_err(told)
}

fn read_json(folder: &Path, name: &str) -> Result<String, String> {
    let mut text = String::new();
    let file = input::open(&folder.join(name)).map_err(|e| e.to_string())?;
    file.take(JSON_LIMIT_BYTES).read_to_string(&mut text).map_err(|e| format!("`{name}`: {e}"))?;
    Ok(text)
}

/// SHA-256 of a file, hexadecimal; `stops`: a signal ends it.
fn sha256(path: &Path, stops: bool) -> io::Result<String> {
    let mut file = input::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        if stops && signals::received().is_some() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match file.read(&mut piece)? {
            0 => break,
            read => hasher.update(&piece[..read]),
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Checkpoint {
    /// Puts the adapter's values back into the tensors under training.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`]: its tensors are not those of this run.
    pub fn restore_adapter(&self, stepper: &Stepper, base: &Base) -> Result<()> {
        let adapter = Adapter::read(&self.folder, base.config(), base.checkpoint().is_tied())?;
        stepper.trainables.set(&adapter).map_err(|problem| self.unusable(problem))
    }

    /// Puts adapter and moments back.
    ///
    /// # Errors
    /// As [`Checkpoint::restore_adapter`].
    pub fn restore(&self, stepper: &mut Stepper, base: &Base) -> Result<()> {
        self.restore_adapter(stepper, base)?;
        moments::read(&self.folder, stepper).map_err(|problem| self.unusable(problem))
    }

    /// The checkpoint cannot be used, for this reason.
    pub fn unusable(&self, problem: String) -> crate::error::Error {
        TrainError::Checkpoint { folder: self.folder.clone(), problem }.into()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn nothing_is_removed_through_a_link_planted_during_a_run() {
        let parent = tempfile::tempdir().unwrap();
        let (run, victim) = (parent.path().join("run"), parent.path().join("victim"));
        for step in 1..6 {
            fs::create_dir_all(victim.join(format!("{PREFIX}{step}"))).unwrap();
        }
        fs::create_dir_all(&run).unwrap();
        std::os::unix::fs::symlink(&victim, run.join(FOLDER)).unwrap();
        let refused = prune(&run, 5, 1);
        assert!(matches!(refused, Err(Error::Train(TrainError::Link { ref link, .. })) if *link == run.join(FOLDER)));
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 5);
        // A folder of one's own is pruned.
        fs::remove_file(run.join(FOLDER)).unwrap();
        fs::rename(&victim, run.join(FOLDER)).unwrap();
        prune(&run, 5, 1).unwrap();
        assert_eq!(steps(&run), [5]);
    }
}
