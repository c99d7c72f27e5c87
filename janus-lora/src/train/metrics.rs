//! `metrics.jsonl`: one line per step and per evaluation.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use fs_err as fs;
use janus_core::directory::Place;
use janus_core::input;
use serde::Serialize;

use super::TrainError;
use super::guard::Spike;
use crate::available_memory::told_bytes;
use crate::error::Result;

/// A step that moved nothing.
#[derive(Debug, Clone, Serialize)]
pub struct SkippedStep {
    /// What was no number.
    pub reason: String,
    /// The rows that gave it, as text.
    pub rows: Vec<String>,
}

/// One line of a step.
#[derive(Debug, Clone, Serialize)]
pub struct StepLine {
    /// Steps done, from 1.
    pub step: u64,
    /// The stage, where the run has some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Passes over the largest table: rows drawn of it by its rows.
    pub epoch: f64,
    /// `Σ loss_weight · loss`.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens the decoder read; batches are packed, so that there is no padding beside them.
    pub tokens: u64,
    /// The same per second of the step.
    pub tokens_per_second: f64,
    /// Seconds of the step in which it waited for rows to be read and decoded.
    pub wait_seconds: f64,
    /// Resident memory of the process after the step.
    pub rss_bytes: u64,
    /// Largest resident memory of the process so far.
    pub peak_rss_bytes: u64,
    /// Loss of each table that the step had rows of.
    pub losses: serde_json::Map<String, serde_json::Value>,
    /// Loss of the mid features' alignment, where the step had pictures to align.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment: Option<f64>,
    /// Share of the image tokenizer's codes that are in use, where they are under training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codes_alive: Option<f64>,
    /// Those that were moved after the step, for nothing came near them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codes_revived: Option<usize>,
    /// Why the step moved nothing, where its loss or gradient was no number; `loss` and `grad_norm` are `null` then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<SkippedStep>,
    /// Losses far above what was usual.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spikes: Vec<Spike>,
}

/// Its name in a run folder.
pub(crate) const FILE: &str = "metrics.jsonl";

/// The file, appended line by line.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl MetricsFile {
    /// Opens the file of a run folder after its first `bytes`, 0 for a new one; what comes later is cut off, `replay` is
    /// given every line before that. Says, too, whether that much was there.
    ///
    /// # Errors
    /// The system's.
    pub fn open<'a>(
        folder: impl Into<Place<'a>>,
        bytes: u64,
        replay: &mut dyn FnMut(&serde_json::Value),
    ) -> Result<(Self, bool)> {
        let folder = folder.into();
        let path = folder.path().join(FILE);
        let mut open = || -> std::io::Result<(File, u64, bool)> {
            let mut file = folder.open()?.update_file(FILE)?;
            let there = file.metadata()?.len();
            let kept = whole_lines(&file, bytes.min(there), &mut |line| {
                if let Ok(value) = serde_json::from_slice(line) {
                    replay(&value);
                }
            })?;
            file.set_len(kept)?;
            file.seek(SeekFrom::Start(kept))?;
            Ok((file, kept, kept == bytes))
        };
        let (file, bytes, whole) = open().map_err(|source| TrainError::Write { path: path.clone(), source })?;
        Ok((Self { path, file, bytes }, whole))
    }

    /// Appends one object.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let failed = |source| TrainError::Write { path: self.path.clone(), source };
        let mut text = serde_json::to_vec(line).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(failed)?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Makes what was written durable; gives the length of it.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().map_err(|source| TrainError::Write { path: self.path.clone(), source })?;
        Ok(self.bytes)
    }
}

/// Longest file of metrics that is read: of some millions of steps.
pub const MAX_METRICS_BYTES: u64 = 2 << 30;

/// Longer lines are none of a run's.
pub const MAX_LINE_BYTES: u64 = 16 << 20;

/// Whether the first `bytes` of a run folder's metrics can be gone through again, in lines of a run's length; why not, otherwise.
/// Looked at before anything is written.
pub fn check<'a>(folder: impl Into<Place<'a>>, bytes: u64) -> std::result::Result<(), String> {
    if bytes > MAX_METRICS_BYTES {
        return Err(format!("it claims {bytes} bytes of `metrics.jsonl`, at most {MAX_METRICS_BYTES} are read"));
    }
    let told = |e: std::io::Error| format!("`metrics.jsonl`: {e}");
    let opened = input::open_in(folder, FILE).map_err(|e| e.to_string())?;
    let Some(input::Opened { file, .. }) = opened else { return Ok(()) };
    match whole_lines(&file, bytes, &mut |_| {}) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => Err(told(e)),
        _ => Ok(()),
    }
}

/// Length of the whole lines among the first `bytes` of a file, each of them given to `replay`.
fn whole_lines(file: impl Read, bytes: u64, replay: &mut dyn FnMut(&[u8])) -> std::io::Result<u64> {
    let mut lines = BufReader::new(file.take(bytes));
    let (mut kept, mut line) = (0, Vec::new());
    while lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? > 0 {
        if line.last() == Some(&b'\n') {
            kept += line.len() as u64;
            replay(&line);
        } else if line.len() as u64 == MAX_LINE_BYTES {
            let reason = format!("a line has more than {MAX_LINE_BYTES} bytes");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
        }
        line.clear();
    }
    Ok(kept)
}

/// Largest resident memory of this process so far, in bytes (`VmHWM` of proc(5)); 0 where the system does not tell.
///
/// `getrusage` stands in elsewhere: on Linux it counts the program that started this one, too, up to the moment in which this
/// one took its place.
pub fn peak_rss_bytes() -> u64 {
    let told = || told_bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:");
    if let Some(bytes) = told() {
        return bytes;
    }
    #[cfg(unix)]
    {
        // SAFETY: `getrusage` fills the struct it is given; an all-zero `rusage` is a valid value of that plain C struct.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            if libc::getrusage(libc::RUSAGE_SELF, &mut usage) != 0 {
                return 0;
            }
            usage
        };
        let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
        usage.ru_maxrss.max(0) as u64 * unit
    }
    #[cfg(not(unix))]
    0
}

/// Resident memory of this process now, in bytes (`VmRSS` of proc(5)); the largest so far where the system does not tell.
pub fn rss_bytes() -> u64 {
    let told = || told_bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:");
    told().unwrap_or_else(peak_rss_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_checkpoint_claims_of_the_metrics_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert_eq!(check(folder.path(), 100), Ok(()), "a run goes on without them");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n").unwrap();
        assert_eq!(check(folder.path(), 22), Ok(()));
        assert_eq!(check(folder.path(), MAX_METRICS_BYTES), Ok(()), "of a shorter file all is read");
        assert!(check(folder.path(), MAX_METRICS_BYTES + 1).unwrap_err().contains("at most 2147483648 are read"));
        // A file of holes, and nothing in it.
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(check(folder.path(), 1 << 30).unwrap_err().contains("a line has more than 16777216 bytes"));
    }

    #[test]
    fn a_file_goes_on_after_the_lines_that_count() {
        let folder = tempfile::tempdir().unwrap();
        let open = |bytes| {
            let mut seen = Vec::new();
            let (file, whole) = MetricsFile::open(folder.path(), bytes, &mut |line| seen.push(line.clone())).unwrap();
            (file, whole, seen)
        };
        let text = || std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let (mut file, whole, _) = open(0);
        assert!(whole);
        file.write(&json!({"step": 1})).unwrap();
        let bytes = file.sync().unwrap();
        file.write(&json!({"step": 2})).unwrap();
        drop(file);
        let (mut file, whole, seen) = open(bytes);
        assert_eq!((whole, seen), (true, vec![json!({"step": 1})]));
        file.write(&json!({"step": 3})).unwrap();
        assert_eq!(text(), "{\"step\":1}\n{\"step\":3}\n");
        // Shorter than it should be, and cut within a line.
        std::fs::write(folder.path().join("metrics.jsonl"), "{\"step\":1}\n{\"st").unwrap();
        let (mut file, whole, seen) = open(30);
        assert_eq!((whole, seen.len()), (false, 1));
        file.write(&json!({"step": 4})).unwrap();
        assert_eq!(text(), "{\"step\":1}\n{\"step\":4}\n");
    }
}
