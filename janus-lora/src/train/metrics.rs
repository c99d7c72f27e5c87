//! `metrics.jsonl`: one line per step and per evaluation.

use std::io::Write;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Serialize;

use super::TrainError;
use crate::error::Result;

/// One line of a step.
#[derive(Debug, Clone, Serialize)]
pub struct StepLine {
    /// Steps done, from 1.
    pub step: u64,
    /// Passes over the largest table, as a fraction.
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
    /// Largest resident memory of the process so far.
    pub peak_rss_bytes: u64,
    /// Loss of each table that the step had rows of.
    pub losses: serde_json::Map<String, serde_json::Value>,
}

/// The file, appended line by line.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: fs::File,
}

impl MetricsFile {
    /// Starts the file in a run folder.
    ///
    /// # Errors
    /// The system's.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let file = fs::File::create(&path).map_err(|source| TrainError::Write { path: path.clone(), source })?;
        Ok(Self { path, file })
    }

    /// Appends one object.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let failed = |source| TrainError::Write { path: self.path.clone(), source };
        let mut text = serde_json::to_vec(line).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        Ok(self.file.write_all(&text).map_err(failed)?)
    }
}

/// Largest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_rss_bytes() -> u64 {
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

/// Resident memory of this process now, in bytes; `None` where the system does not tell (`VmRSS` of proc(5)).
pub fn resident_bytes() -> Option<u64> {
    let told = fs::read_to_string("/proc/self/status").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
