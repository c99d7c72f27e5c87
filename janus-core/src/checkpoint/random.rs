//! Random weights that are nowhere stored: drawn tensor by tensor, straight in the wanted type, for measurements of speed.
//!
//! [`super::init_checkpoint`] draws normal numbers for files that people train on. Here only sizes matter, so the draw is as
//! cheap as it gets: sixteen bits a value, a function of seed, name and place.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::init::{Fill, fill};
use super::names::{EMBED_TOKENS, LM_HEAD, expected_tensors};
use super::values::Value;
use super::{CheckpointError, init};
use crate::config::JanusConfig;
use crate::error::{ModelError, Result};
use crate::noise;

/// Standard deviation of every matrix, kernel and table: the usual first value of transformers' `initializer_range`.
const DEVIATION: f32 = 0.02;
/// Values that one 64-bit number gives.
const PER_NUMBER: usize = 4;
/// Values filled by one thread at a time.
const BLOCK: usize = 1 << 16;

/// The weights of a model that exists in memory only.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    config: JanusConfig,
    seed: u64,
    shapes: HashMap<String, Vec<usize>>,
}

impl RandomWeights {
    /// Weights for `config`: matrices, kernels and tables uniform with deviation 0.02, norms 1, biases 0, codes of length 1.
    pub fn new(config: &JanusConfig, seed: u64) -> Self {
        let tensors = expected_tensors(config, !config.tie_word_embeddings);
        let shapes = tensors.into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        Self { config: config.clone(), seed, shapes }
    }

    /// Sizes and constants.
    pub fn config(&self) -> &JanusConfig {
        &self.config
    }

    /// Whether the head is the embedding table.
    pub fn is_tied(&self) -> bool {
        self.config.tie_word_embeddings
    }

    /// The tensor of a native name on the CPU, as `f32` or `bf16`; the latter are the former's values, rounded.
    ///
    /// # Errors
    /// No such tensor, or another type.
    pub fn read(&self, native_name: &str, dtype: DType) -> Result<Tensor> {
        let name = if self.is_tied() && native_name == LM_HEAD { EMBED_TOKENS } else { native_name };
        let shape = self.shapes.get(name).ok_or_else(|| ModelError::UnknownParameter { name: name.into() })?;
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(CheckpointError::WeightDtype { dtype }.into());
        }
        let key = noise::combine(self.seed, noise::key_of(name));
        Ok(match fill(name, shape) {
            Fill::Ones => Tensor::ones(shape.as_slice(), dtype, &Device::Cpu)?,
            Fill::Zeros => Tensor::zeros(shape.as_slice(), dtype, &Device::Cpu)?,
            Fill::Normal(_) | Fill::Waves => uniform(key, shape, dtype)?,
            Fill::UnitRows => {
                let mut values = uniform_values(key, shape.iter().product());
                init::unit_rows(&mut values, shape);
                Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?.to_dtype(dtype)?
            }
        })
    }
}

fn uniform(key: u64, shape: &[usize], dtype: DType) -> candle_core::Result<Tensor> {
    let count = shape.iter().product();
    if dtype == DType::F32 {
        return Tensor::from_vec(uniform_values(key, count), shape, &Device::Cpu);
    }
    let mut values = bf16::zeros(count);
    draw(key, &mut values, bf16::from_f32);
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn uniform_values(key: u64, count: usize) -> Vec<f32> {
    let mut values = f32::zeros(count);
    draw(key, &mut values, |value| value);
    values
}

/// Fills `values` from the sequence of `key`: uniform, mean 0, deviation [`DEVIATION`].
fn draw<T: Send>(key: u64, values: &mut [T], convert: impl Fn(f32) -> T + Sync) {
    // Uniform in ±a has deviation a/√3; the 65,536 possible values are the centres of as many equal steps.
    let step = DEVIATION * 3_f32.sqrt() / f32::from(1_u16 << 15);
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
        for (quad, values) in values.chunks_mut(PER_NUMBER).enumerate() {
            let mut number = noise::combine(key, (block * (BLOCK / PER_NUMBER) + quad) as u64);
            for value in values {
                let [low, high, ..] = number.to_le_bytes();
                *value = convert((f32::from(i16::from_le_bytes([low, high])) + 0.5) * step);
                number >>= 16;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn tiny(seed: u64) -> RandomWeights {
        RandomWeights::new(&JanusConfig::shape("janus-tiny").unwrap(), seed)
    }

    #[test]
    fn matrices_have_mean_zero_and_the_deviation() {
        let mut drawn = vec![0_f32; 3 * BLOCK + 7];
        draw(5, &mut drawn, |value| value);
        let count = drawn.len() as f64;
        let mean = drawn.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
        let variance = drawn.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
        assert!(mean.abs() < 2e-4 && (variance.sqrt() - 0.02).abs() < 1e-4, "{mean} {}", variance.sqrt());
        // The same place of two blocks, and two neighbours, are drawn apart.
        assert_ne!(drawn[..100], drawn[BLOCK..BLOCK + 100]);
        let distinct: std::collections::HashSet<u32> = drawn[..1000].iter().map(|v| v.to_bits()).collect();
        assert!(distinct.len() > 950, "{}", distinct.len());
    }

    #[test]
    fn bf16_values_are_those_of_f32_rounded() {
        let name = "model.language_model.layers.1.mlp.up_proj.weight";
        let (wide, narrow) = (tiny(3).read(name, DType::F32).unwrap(), tiny(3).read(name, DType::BF16).unwrap());
        assert_eq!((narrow.dtype(), narrow.dims()), (DType::BF16, wide.dims()));
        assert_eq!(values(&wide.to_dtype(DType::BF16).unwrap()), values(&narrow));
        assert_ne!(values(&wide), values(&tiny(4).read(name, DType::F32).unwrap()));
        let other = "model.language_model.layers.0.mlp.up_proj.weight";
        assert_ne!(values(&wide), values(&tiny(3).read(other, DType::F32).unwrap()));
    }

    #[test]
    fn norms_biases_and_codes_have_their_own_values() {
        let weights = tiny(1);
        let read = |name: &str| values(&weights.read(name, DType::BF16).unwrap());
        assert!(read("model.language_model.norm.weight").iter().all(|v| *v == 1.0));
        assert!(read("model.aligner.fc1.bias").iter().all(|v| *v == 0.0));
        let codes = weights.read("model.vqmodel.quantize.embedding.weight", DType::F32).unwrap();
        for length in values(&codes.sqr().unwrap().sum(1).unwrap()) {
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }

    #[test]
    fn every_tensor_can_be_read_and_no_other() {
        for tied in [false, true] {
            let config = JanusConfig { tie_word_embeddings: tied, ..JanusConfig::shape("janus-tiny").unwrap() };
            let weights = RandomWeights::new(&config, 1);
            for tensor in expected_tensors(&config, true) {
                assert_eq!(weights.read(&tensor.name, DType::F32).unwrap().dims(), tensor.shape, "{}", tensor.name);
            }
            assert!(weights.read("model.nothing.weight", DType::F32).is_err());
            assert!(weights.read(EMBED_TOKENS, DType::F16).is_err());
        }
    }
}
