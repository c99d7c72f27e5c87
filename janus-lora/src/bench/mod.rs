//! Speed and memory on random weights of a known shape: nothing is downloaded, read or written.
//!
//! | file | what is measured |
//! | --- | --- |
//! | `train` | one optimiser step of an adapter, by any method |
//! | `understand` | an answer: time to its first token, then tokens per second |
//! | `generate` | the codes of one image with guidance, and its decoding |
//! | `bank` | rows of many adapters in one pass |
//! | `switch` | from one modality to the other with a dynamic visual encoder |
//! | `bandwidth` | how fast memory can be read, the limit of drawing tokens one by one |
//! | `inputs` | the prompts, pictures and batches that are fed in |
//!
//! What is measured is what `janus train`, `understand` and `generate` run: only weights and inputs are made up.

mod bandwidth;
mod bank;
mod generate;
mod inputs;
mod switch;
mod train;
mod understand;

use std::time::Instant;

use candle_core::{DType, Device};
use janus_core::checkpoint::{RandomWeights, expected_tensors};
use janus_core::config::JanusConfig;
use janus_core::{Janus, Parts};
use serde::Serialize;

pub use bank::{BankOptions, BankReport, bank};
pub use generate::{GenerateOptions, GenerateReport, generate};
pub use switch::{SwitchOptions, SwitchReport, switch};
pub use train::{TrainOptions, TrainReport, train};
pub use understand::{UnderstandOptions, UnderstandReport, understand};

use crate::error::Result;
use crate::status::Status;
use crate::train::metrics::peak_rss_bytes;

/// Seed of weights and inputs.
const SEED: u64 = 1;

/// What is measured: a model by its shape and the type it computes in.
#[derive(Debug, Clone)]
pub struct Model {
    /// What the shape is called.
    pub shape: String,
    /// Its sizes.
    pub config: JanusConfig,
    /// What the frozen weights are computed in: f32 or bf16.
    pub dtype: DType,
    /// Where it computes.
    pub device: Device,
}

impl Model {
    /// The parts of the model with random weights, and the seconds that took.
    fn open(&self, parts: Parts, status: &dyn Status) -> Result<(Janus, f64)> {
        let clock = Instant::now();
        let weights = RandomWeights::new(&self.config, SEED);
        let tensors = expected_tensors(&self.config, true);
        let values: usize = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        let bar = status.bytes("drawing weights", (values * self.dtype.size_in_bytes()) as u64);
        let model = Janus::open(&weights, self.dtype, &self.device, parts, &mut |bytes| bar.advance(bytes))?;
        bar.finish();
        Ok((model, clock.elapsed().as_secs_f64()))
    }
}

/// What every measurement tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// What the shape is called.
    pub shape: String,
    /// What the frozen weights were computed in.
    pub dtype: &'static str,
    /// Where it was computed: cpu, cuda or metal.
    pub device: &'static str,
    /// Threads of the pool.
    pub threads: usize,
    /// Tokens per second of the median step.
    pub tokens_per_second: f64,
    /// Median of the steps after the first.
    pub step_seconds: f64,
    /// Largest resident memory of the process.
    pub peak_rss_bytes: u64,
    /// Time in which the weights were drawn and the model built.
    pub opening_seconds: f64,
}

impl Figures {
    /// Of steps of `tokens` tokens; `steps` are those after the first.
    fn new(model: &Model, tokens: usize, steps: &[f64], opening_seconds: f64) -> Self {
        let step_seconds = median(steps);
        Self {
            shape: model.shape.clone(),
            dtype: model.dtype.as_str(),
            device: match model.device {
                Device::Cpu => "cpu",
                Device::Cuda(_) => "cuda",
                Device::Metal(_) => "metal",
            },
            threads: rayon::current_num_threads(),
            tokens_per_second: tokens as f64 / step_seconds,
            step_seconds,
            peak_rss_bytes: peak_rss_bytes(),
            opening_seconds,
        }
    }
}

/// The middle value, or the mean of the two middle ones; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.as_slice() {
        [] => 0.0,
        values if values.len() % 2 == 1 => values[half],
        values => (values[half - 1] + values[half]) / 2.0,
    }
}

/// Seconds between one moment and the next.
fn gaps(moments: &[Instant]) -> Vec<f64> {
    moments.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), 3.0);
    }
}
