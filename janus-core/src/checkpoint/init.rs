//! A checkpoint of random weights, for tests, demonstrations and measurements of speed.

use std::io::Write;

use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use serde_json::Map;
use sha2::{Digest, Sha256};

use super::names::{CODEBOOK, expected_tensors};
use super::side_files::{ImageProcessing, write_chat_template, write_generation_config, write_tokenizer_config};
use super::values::{is_weight_dtype, write_values};
use super::write::{Planned, PlannedSource, lift, make, plan, write_json, write_weights};
use super::{CheckpointError, WriteReport, tokenizer};
use crate::config::{JanusConfig, Layout};
use crate::directory::Place;

/// Values drawn from one generator; the next ones come from another, so that threads share a tensor.
const BLOCK: usize = 1 << 16;
/// Bytes of a file, as [`super::WriteOptions`] has it.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Size of what a residual branch adds to its input at first. Not zero, for with that the tensors before its last would get
/// no gradient in the first step.
const BRANCH_GAIN: f32 = 0.1;

/// Pixels in [-1, 1] have a deviation of about a half: with this, patches and positions are of one size where they meet.
const PATCH_GAIN: f32 = 2.0;

/// Angle from one patch to the next of the fastest wave of positions, and how much faster it is than the slowest.
const WAVES: (f32, f32) = (1.5, 32.0);

/// The last layers of residual branches: where they are, and how their names end.
const BRANCH_ENDS: [(&str, &str); 6] = [
    ("model.vqmodel.", ".conv2.weight"),
    ("model.vqmodel.", ".proj_out.weight"),
    ("model.vision_model.", ".projection_layer.weight"),
    ("model.vision_model.", ".fc2.weight"),
    ("model.language_model.", ".o_proj.weight"),
    ("model.language_model.", ".down_proj.weight"),
];

/// How a tensor is filled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fill {
    Ones,
    Zeros,
    /// Normal with this deviation.
    Normal(f32),
    /// Sines and cosines of the place in a square grid.
    Waves,
    /// Normal rows cut to length 1.
    UnitRows,
}

/// Norm weights 1, biases 0, codes of length 1. A linear layer or convolution has deviation 1/sqrt(fan in), which keeps
/// the size of a normed input (0.022 at width 2048, close to the usual 0.02, and right for small widths as well).
/// Tables have deviation 1, so that texts and images are of one size where they meet. Positions of patches are waves
/// (Beyer and others, arXiv:2205.01580), so that neighbours are alike from the start. What a residual branch adds to its input
/// is nearly nothing at first (Goyal and others, arXiv:1706.02677, section 5.1, begin with nothing): what went in comes through
/// the shortcuts from the start. What each is worth was measured: `docs/decisions/0013-tokenizers-of-janus-nano.md` for the
/// image tokenizer, `docs/decisions/0014-how-janus-nano-learns-to-see.md` for the tower.
pub(super) fn fill(name: &str, shape: &[usize]) -> Fill {
    let fan_in: usize = shape.iter().skip(1).product();
    if name == CODEBOOK {
        Fill::UnitRows
    } else if name.ends_with(".bias") {
        Fill::Zeros
    } else if shape.len() == 1 {
        Fill::Ones
    } else if name.contains("position_embedding") {
        Fill::Waves
    } else if name.contains("embed_tokens") || name.contains("generation_embeddings") {
        Fill::Normal(1.0)
    } else {
        let gain = if BRANCH_ENDS.iter().any(|(room, end)| name.starts_with(room) && name.ends_with(end)) {
            BRANCH_GAIN
        } else if name.ends_with(".patch_embedding.weight") {
            PATCH_GAIN
        } else {
            1.0
        };
        Fill::Normal(gain / (fan_in.max(1) as f32).sqrt())
    }
}

/// Places of a square grid, `[places, width]`: a quarter of the width each for sines and cosines of the row and of the column.
fn waves(shape: &[usize]) -> Vec<f32> {
    let (places, width) = (shape.first().copied().unwrap_or(0), shape.last().copied().unwrap_or(0));
    let side = places.saturating_sub(1).isqrt() + 1;
    let quarter = width.div_ceil(4).max(1);
    let value = |index: usize| {
        let (place, at) = (index / width, index % width);
        let along = if at < 2 * quarter { place / side } else { place % side } as f32;
        let angle = along * WAVES.0 * WAVES.1.powf(-((at % quarter) as f32) / quarter as f32);
        if (at / quarter).is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    (0..places * width).map(value).collect()
}

/// Brings the rows of a table of `shape` to length 1.
pub(super) fn unit_rows(values: &mut [f32], shape: &[usize]) {
    for row in values.chunks_mut(shape.last().copied().unwrap_or(1).max(1)) {
        let length = row.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        row.iter_mut().for_each(|value| *value /= length);
    }
}

/// The random tensor of a native name: `f32`, of `shape`, the same for the same seed and name whatever else is drawn.
fn random_tensor(seed: u64, name: &str, shape: &[usize]) -> candle_core::Result<Tensor> {
    let elements = shape.iter().product();
    let deviation = match fill(name, shape) {
        Fill::Ones => return Tensor::ones(shape, DType::F32, &Device::Cpu),
        Fill::Zeros => return Tensor::zeros(shape, DType::F32, &Device::Cpu),
        Fill::Waves => return Tensor::from_vec(waves(shape), shape, &Device::Cpu),
        Fill::Normal(deviation) => deviation,
        Fill::UnitRows => 1.0,
    };
    let mut values = vec![0_f32; elements];
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
        let mut hasher = Sha256::new();
        hasher.update(seed.to_le_bytes());
        hasher.update((block as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        let mut random = StdRng::from_seed(hasher.finalize().into());
        for value in values {
            let normal: f32 = StandardNormal.sample(&mut random);
            *value = deviation * normal;
        }
    });
    if fill(name, shape) == Fill::UnitRows {
        unit_rows(&mut values, shape);
    }
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Writes a whole checkpoint of random weights into the folder `into`, which is meant to be a
/// [`crate::output::StagedFolder`]'s.
///
/// Every tensor depends on `seed` and its native name only. `dtype` is `f32`, `bf16` or `f16`. The tokenizer is byte-level
/// (byte b has id b; [`super::write_tokenizer`] puts one with merges in its place), with the special tokens of Janus at the
/// ids of `config`. `progress` hears of bytes done and in total.
///
/// # Errors
/// Another type, a vocabulary too small for the special tokens, or the system's.
pub fn init_checkpoint<'a>(
    config: &JanusConfig,
    seed: u64,
    dtype: DType,
    into: impl Into<Place<'a>>,
    layout: Layout,
    progress: &mut dyn FnMut(u64, u64),
) -> crate::Result<WriteReport> {
    if !is_weight_dtype(dtype) {
        return Err(CheckpointError::WeightDtype { dtype }.into());
    }
    let into = &make(into.into())?;
    let config = init_side_files(config, dtype, into, layout)?;
    let native = expected_tensors(&config, !config.tie_word_embeddings);
    let shapes: std::collections::HashMap<_, _> =
        native.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let planned = plan(layout, native.into_iter().map(|tensor| (tensor.name, tensor.shape, dtype)));
    let mut values = |planned: &Planned, writer: &mut dyn Write| -> crate::Result<()> {
        let PlannedSource::Native(names) = &planned.source else { return Ok(()) };
        for name in names {
            let shape = shapes.get(name).map(Vec::as_slice).unwrap_or_default();
            let tensor = random_tensor(seed, name, shape)
                .map_err(|source| CheckpointError::Tensor { tensor: name.clone(), source })?;
            let io_error = |source| CheckpointError::Io { path: into.path().to_path_buf(), source };
            write_values(name, &tensor, planned.dtype, writer, io_error).map_err(lift::<crate::Error>)?;
        }
        Ok(())
    };
    write_weights(planned, MAX_SHARD_BYTES, into, &mut values, progress)
}

/// Writes what [`init_checkpoint`] writes beside the weights, which is all that a plan needs; gives the configuration with the
/// ids of special tokens.
///
/// # Errors
/// As [`init_checkpoint`].
pub fn init_side_files<'a>(
    config: &JanusConfig,
    dtype: DType,
    into: impl Into<Place<'a>>,
    layout: Layout,
) -> crate::Result<JanusConfig> {
    let into = &make(into.into())?;
    let ids = tokenizer::write(config, &tokenizer::Merges::new(), into)?;
    let mut config = config.clone();
    ids.complete(&mut config);
    write_json(into, "config.json", &config.to_json(layout, dtype))?;
    ImageProcessing::of_config(&config).write(layout, into)?;
    let mut tokenizer_config = Map::new();
    tokenizer_config.insert("clean_up_tokenization_spaces".into(), false.into());
    tokenizer_config.insert("model_max_length".into(), config.text.max_position_embeddings.into());
    write_tokenizer_config(tokenizer_config, layout, into)?;
    if layout == Layout::Native {
        write_chat_template(into)?;
        write_generation_config(&ids, into)?;
    }
    Ok(config)
}
