//! `run.json`: what a run was made with, and its memory as predicted and as measured.

use std::time::{SystemTime, UNIX_EPOCH};

use janus_core::directory::{Directory, Place};
use janus_core::input;
use janus_core::output::write_below;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::command;
use crate::eval::Metrics;
use crate::train::ending::Ending;
use crate::train::plan::Plan;

/// Where they lie in a run folder.
pub(crate) const FILE: &str = "run.json";
/// Longest such file that is read.
pub(super) const LIMIT_BYTES: u64 = 16 << 20;
/// Starts that are kept: the first and the last ones.
const MAX_STARTS: usize = 20;

/// What a run was made with.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Version of this program.
    pub janus: &'static str,
    /// The commit that it was built from, where it was built in its repository.
    pub commit: Option<&'static str>,
    /// Each start of the run, the first one first.
    pub starts: Vec<Start>,
    /// When it ended, in UTC.
    pub ended: Option<String>,
    /// Version of candle.
    pub candle: &'static str,
    /// What the program was built for.
    pub target: &'static str,
    /// Instruction sets that the compiler was allowed to use anywhere.
    pub target_features: Vec<&'static str>,
    /// The processor's name, where the system tells.
    pub cpu: Option<String>,
    /// Instruction sets it has of those that kernels are chosen by.
    pub cpu_features: Vec<&'static str>,
    /// Threads that compute.
    pub threads: usize,
    /// Where the model lies.
    pub device: String,
    /// The recipe's base.
    pub base: String,
    /// The plan, as `--dry-run --json` prints it.
    pub plan: serde_json::Value,
    /// Largest resident memory of the run, once it has ended.
    pub measured_peak_bytes: Option<u64>,
    /// What it left, once it has ended.
    pub left: Option<Left>,
}

/// One start of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// When, in UTC.
    pub at: String,
    /// The command, as a shell takes it.
    pub command: String,
    /// Steps that were done before.
    pub after_step: u64,
}

/// The adapter that a run left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// Which it is and why.
    #[serde(flatten)]
    pub ending: Ending,
    /// Figures without it.
    pub before: Metrics,
    /// Figures with it.
    pub after: Metrics,
}

impl Facts {
    /// Of this program on this machine, for a run in `folder` that starts after `first_step` steps.
    pub fn new(folder: &Directory, first_step: u64, base: &str, plan: &Plan, device: &candle_core::Device) -> Self {
        let mut starts = if first_step > 0 { earlier_starts(folder) } else { Vec::new() };
        starts.push(Start { at: utc(SystemTime::now()), command: command::this(), after_step: first_step });
        if starts.len() > MAX_STARTS {
            starts.remove(1);
        }
        Self {
            janus: env!("CARGO_PKG_VERSION"),
            commit: Some(env!("JANUS_COMMIT")).filter(|commit| !commit.is_empty()),
            starts,
            ended: None,
            candle: env!("JANUS_CANDLE_VERSION"),
            target: env!("JANUS_TARGET"),
            target_features: env!("JANUS_TARGET_FEATURES").split(',').filter(|name| !name.is_empty()).collect(),
            cpu: cpu_name(),
            cpu_features: cpu_features(),
            threads: rayon::current_num_threads(),
            device: format!("{:?}", device.location()).to_lowercase(),
            base: base.to_owned(),
            plan: serde_json::to_value(plan).expect("a plan is plain data"),
            measured_peak_bytes: None,
            left: None,
        }
    }

    /// The run is over.
    pub(super) fn end(&mut self, left: Left, measured_peak_bytes: u64) {
        self.ended = Some(utc(SystemTime::now()));
        (self.measured_peak_bytes, self.left) = (Some(measured_peak_bytes), Some(left));
    }

    /// Writes `run.json` into a run folder.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &Directory) -> Result<(), janus_core::output::OutputError> {
        let bytes = serde_json::to_vec_pretty(self).expect("facts are plain data");
        write_below(folder, FILE, |file| file.write_all(&bytes))
    }
}

/// The starts that the file of an earlier process tells; none where it cannot be read, for a run goes on without them.
fn earlier_starts<'a>(folder: impl Into<Place<'a>>) -> Vec<Start> {
    let folder = folder.into();
    let told = || {
        let bytes = input::read(folder, FILE, LIMIT_BYTES).ok()??;
        let facts: Value = serde_json::from_slice(&bytes).ok()?;
        serde_json::from_value(facts.get("starts")?.clone()).ok()
    };
    let mut starts: Vec<Start> = told().unwrap_or_default();
    starts.truncate(MAX_STARTS);
    starts
}

/// A moment as RFC 3339 has it, in UTC and whole seconds. Days become dates of the Gregorian calendar by counting years from
/// the first of March, so that the leap day is the last of its year.
fn utc(moment: SystemTime) -> String {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // From the first of March of the year 0; 400 years have 146,097 days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on have 153 days in five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The name that proc(5) gives.
fn cpu_name() -> Option<String> {
    let told = fs_err::read_to_string("/proc/cpuinfo").ok()?;
    let line = told.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let has = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        has.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_dates_of_the_calendar() {
        // Right values: `datetime.fromtimestamp(seconds, UTC)`.
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), date);
        }
    }

    #[test]
    fn earlier_starts_are_read_back_and_never_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        assert!(earlier_starts(folder.path()).is_empty());
        let start = Start { at: "2026-01-01T00:00:00Z".into(), command: "janus train x".into(), after_step: 0 };
        for (text, expected) in [
            ("not json".to_owned(), Vec::new()),
            (r#"{"starts": 7}"#.to_owned(), Vec::new()),
            (serde_json::json!({ "starts": [start] }).to_string(), vec![start.clone()]),
        ] {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            assert_eq!(earlier_starts(folder.path()), expected);
        }
    }
}
