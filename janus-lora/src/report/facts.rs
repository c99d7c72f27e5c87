//! `run.json`: what a run was made with, and its memory as predicted and as measured.

use std::path::Path;

use janus_core::output::write_file;
use serde::Serialize;

use crate::train::plan::Plan;

/// What a run was made with.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Version of this program.
    pub janus: &'static str,
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
}

impl Facts {
    /// Of this program on this machine.
    pub fn new(base: &str, plan: &Plan, device: &candle_core::Device) -> Self {
        Self {
            janus: env!("CARGO_PKG_VERSION"),
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
        }
    }

    /// Writes `run.json` into a run folder.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &Path) -> Result<(), janus_core::output::OutputError> {
        let bytes = serde_json::to_vec_pretty(self).expect("facts are plain data");
        write_file(&folder.join("run.json"), |file| file.write_all(&bytes))
    }
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
