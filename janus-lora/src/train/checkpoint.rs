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
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use janus_core::directory::{Directory, Place, is_of_link};
use janus_core::output::{StagedFolder, write_below};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::feeder::FeederState;
use super::guard::Progress;
use super::identity::RunIdentity;
use super::moments;
use super::step::Stepper;
use super::{TrainError, signals};
use crate::adapter::{Adapter, AdapterError, AdapterSpec, WEIGHTS_FILE};
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
    pub folder: Directory,
    /// What it knows beside tensors.
    pub state: State,
}

/// The folder of the checkpoint after `step` steps.
pub fn folder_of(run: &Path, step: u64) -> PathBuf {
    run.join(FOLDER).join(format!("{PREFIX}{step}"))
}

/// Steps of all checkpoints in a run folder, whole or not, rising.
pub fn steps<'a>(run: impl Into<Place<'a>>) -> Vec<u64> {
    let all = run.into().open().and_then(|run| run.folder(FOLDER));
    all.map(|all| steps_in(&all)).unwrap_or_default()
}

fn steps_in(all: &Directory) -> Vec<u64> {
    let step = |name: &str| {
        let digits = name.strip_prefix(PREFIX)?;
        digits.parse().ok().filter(|step: &u64| step.to_string() == digits)
    };
    let names = all.entries().unwrap_or_default();
    let mut steps: Vec<u64> = names.iter().filter_map(|name| step(name.to_str()?)).collect();
    steps.sort_unstable();
    steps
}

/// Writes a checkpoint; one of the same step is replaced.
///
/// # Errors
/// The system's, or a link in the place of the folder of all; no part of the checkpoint is there then.
pub fn write(run: &Directory, state: &State, adapter: &Adapter, stepper: &Stepper) -> Result<PathBuf> {
    let all = run.make_folder(FOLDER).map_err(|source| failed(run, FOLDER.into(), source))?;
    let name = format!("{PREFIX}{}", state.step);
    let target = all.path().join(&name);
    let failed = |source| TrainError::Write { path: target.clone(), source };
    if all.about(&name).map_err(failed)?.is_some() {
        remove(&all, &name).map_err(failed)?;
    }
    let staged = StagedFolder::below(&all, &name)?;
    let folder = staged.folder();
    adapter.write(folder)?;
    moments::write(folder, stepper)?;
    let mut checksums = BTreeMap::new();
    let mut lengths = BTreeMap::new();
    for name in folder.entries().map_err(failed)? {
        let file = folder.open_file(&name).map_err(failed)?;
        let (name, bytes) = (name.to_string_lossy().into_owned(), file.metadata().map_err(failed)?.len());
        lengths.insert(name.clone(), bytes);
        checksums.insert(name, sha256(file, false).map_err(failed)?);
    }
    let text = serde_json::to_vec(&State { lengths, ..state.clone() }).map_err(|e| failed(e.into()))?;
    write_below(folder, STATE_FILE, |file| file.write_all(&text))?;
    checksums.insert(STATE_FILE.to_owned(), hex(&Sha256::digest(&text)));
    let text = serde_json::to_vec_pretty(&checksums).map_err(|e| failed(e.into()))?;
    write_below(folder, CHECKSUMS_FILE, |file| file.write_all(&text))?;
    staged.commit()?;
    Ok(target)
}

/// What keeps a run from writing to a name in its folder.
pub(super) fn failed(run: &Directory, name: PathBuf, source: io::Error) -> TrainError {
    let path = run.path().join(name);
    match is_of_link(&source) {
        true => TrainError::Link { folder: run.path().to_path_buf(), link: path },
        false => TrainError::Write { path, source },
    }
}

/// Removes what is not kept: all but the last `keep` checkpoints up to `step`, the best of each of these, and nothing after
/// `step`, which a damaged later one may be.
///
/// # Errors
/// The system's, or a link in the place of the folder of all.
pub fn prune(run: &Directory, step: u64, keep: u64) -> Result<()> {
    let folder = run.folder(FOLDER).map_err(|source| failed(run, FOLDER.into(), source))?;
    let all = steps_in(&folder);
    let last: Vec<u64> =
        all.iter().rev().copied().filter(|s| *s <= step).take(usize::try_from(keep).unwrap_or(usize::MAX)).collect();
    let best = |step: &u64| {
        let of_step = folder.folder(format!("{PREFIX}{step}")).ok()?;
        read_state(&of_step).ok()?.progress.best.map(|best| best.step)
    };
    let best: Vec<u64> = last.iter().filter_map(best).collect();
    for gone in all.iter().filter(|step| !last.contains(step) && !best.contains(step)) {
        let name = format!("{PREFIX}{gone}");
        remove(&folder, &name).map_err(|source| TrainError::Write { path: folder.path().join(&name), source })?;
    }
    Ok(())
}

/// Removes a checkpoint: first its name, so that it is never seen in part.
fn remove(all: &Directory, name: &str) -> io::Result<()> {
    let aside = format!(".{name}.tmp-removed");
    all.remove_all(&aside)?;
    all.rename(name, all, &aside)?;
    all.remove_all(&aside)
}

/// The newest whole checkpoint of a run; a damaged one is told and passed over.
///
/// # Errors
/// [`TrainError::NoWholeCheckpoint`] where there are checkpoints and none is whole.
pub fn newest(run: &Directory, status: &dyn Status) -> Result<Option<Checkpoint>> {
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
            let (folder, count, source) = (run.path().join(FOLDER), steps.len(), Box::new(error.into()));
            Err(TrainError::NoWholeCheckpoint { folder, count, source }.into())
        }
    }
}

/// A checkpoint of a run, every file of it compared with its checksum.
///
/// # Errors
/// [`TrainError::Checkpoint`] with what is wrong; [`TrainError::Stopped`] where a signal comes.
pub fn open(run: &Directory, step: u64) -> Result<Checkpoint, TrainError> {
    let path = folder_of(run.path(), step);
    let broken = |problem: String| TrainError::Checkpoint { folder: path.clone(), problem };
    let folder = run.folder(FOLDER).and_then(|all| all.folder(format!("{PREFIX}{step}")));
    let folder = folder.map_err(|e| broken(e.to_string()))?;
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
fn compare(folder: &Directory, name: &str, expected: &str, length: Option<u64>) -> Result<(), TrainError> {
    let broken = |problem: String| TrainError::Checkpoint { folder: folder.path().to_path_buf(), problem };
    let told = |e: io::Error| broken(e.to_string());
    let file = folder.open_file(name).map_err(told)?;
    let bytes = file.metadata().map_err(told)?.len();
    match length {
        Some(length) if bytes != length => {
            return Err(broken(format!("`{name}` has {bytes} bytes, expected {length}")));
        }
        None if bytes > JSON_LIMIT_BYTES && !name.ends_with(TENSORS) => {
            return Err(broken(format!("`{name}` has {bytes} bytes, expected at most {JSON_LIMIT_BYTES}")));
        }
        _ => {}
    }
    let got = sha256(file, true);
    signals::check()?;
    match got.map_err(told)? {
        got if got == expected => Ok(()),
        got => Err(broken(format!("`{name}` has checksum {got}, expected {expected}"))),
    }
}

fn read_state(folder: &Directory) -> Result<State, String> {
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

fn read_json(folder: &Directory, name: &str) -> Result<String, String> {
    let mut text = String::new();
    let file = folder.open_file(name).map_err(|e| format!("`{name}`: {e}"))?;
    file.take(JSON_LIMIT_BYTES).read_to_string(&mut text).map_err(|e| format!("`{name}`: {e}"))?;
    Ok(text)
}

/// SHA-256 of a file, hexadecimal; `stops`: a signal ends it.
fn sha256(mut file: File, stops: bool) -> io::Result<String> {
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
    /// The adapter in the form that a run of `spec` trains it in.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`]: it is not of this run.
    pub fn adapter(&self, spec: &AdapterSpec, base: &Base) -> Result<Adapter> {
        let (config, tied) = (base.config(), base.checkpoint().is_tied());
        let read = || -> Result<Adapter, AdapterError> {
            Adapter::read(&self.folder, config, tied)?.in_form_of(&Adapter::blank(config, tied, spec)?)
        };
        read().map_err(|error| self.unusable(error.to_string()))
    }

    /// Puts the adapter's values back into the tensors under training.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`]: its tensors are not those of this run.
    pub fn restore_adapter(&self, stepper: &Stepper, base: &Base) -> Result<()> {
        let adapter = Adapter::read(&self.folder, base.config(), base.checkpoint().is_tied())?;
        stepper.trainables.set(adapter).map_err(|problem| self.unusable(problem))
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
        TrainError::Checkpoint { folder: self.folder.path().to_path_buf(), problem }.into()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;

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
        let open = Directory::open(&run).unwrap();
        let refused = prune(&open, 5, 1);
        assert!(matches!(refused, Err(Error::Train(TrainError::Link { ref link, .. })) if *link == run.join(FOLDER)));
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 5);
        // A folder of one's own is pruned.
        fs::remove_file(run.join(FOLDER)).unwrap();
        fs::rename(&victim, run.join(FOLDER)).unwrap();
        prune(&open, 5, 1).unwrap();
        assert_eq!(steps(&run), [5]);
    }
}
