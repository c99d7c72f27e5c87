//! One site's pair of factors: shapes, tensor names and first values as in PEFT.
//! Source: PEFT 0.21.2, `tuners/lora/layer.py` (`Linear`, `Conv2d`, `Embedding`, `reset_lora_parameters`).

use candle_core::{Device, Tensor};
use janus_core::noise;
use janus_core::site::{LowRank, Site, SiteKind};

use super::error::AdapterError;
use crate::drawn::drawn;

/// What PEFT puts before a native name in its files.
pub const KEY_PREFIX: &str = "base_model.model.";

/// The factors of one site: its weight is shifted by `scale · B·A`.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Where it belongs.
    pub site: Site,
    /// Linear `[rank, input]`, convolution `[rank, input, kernel, kernel]`, embedding `[rank, rows]`; f32.
    pub a: Tensor,
    /// Linear and embedding `[output, rank]`, convolution `[output, rank, 1, 1]`; f32.
    pub b: Tensor,
    /// Rank.
    pub rank: usize,
    /// `alpha / rank`.
    pub scale: f64,
    /// Numerator of the scale.
    pub alpha: f64,
}

impl Pair {
    /// The pair as the core computes it, its scale multiplied by `factor`; without dropout.
    pub fn low_rank(&self, factor: f64) -> LowRank {
        LowRank { a: self.a.clone(), b: self.b.clone(), scale: self.scale * factor, dropout: 0.0, request: None }
    }
}

/// Shapes of A and B.
pub fn pair_shapes(site: &Site, rank: usize) -> (Vec<usize>, Vec<usize>) {
    match site.kind {
        SiteKind::Linear | SiteKind::Embedding => (vec![rank, site.input], vec![site.output, rank]),
        SiteKind::Conv2d { kernel, .. } => (vec![rank, site.input, kernel, kernel], vec![site.output, rank, 1, 1]),
    }
}

/// Names of A and B in `adapter_model.safetensors`.
pub fn pair_keys(site: &Site) -> (String, String) {
    let path = &site.path;
    match site.kind {
        SiteKind::Linear | SiteKind::Conv2d { .. } => {
            (format!("{KEY_PREFIX}{path}.lora_A.weight"), format!("{KEY_PREFIX}{path}.lora_B.weight"))
        }
        SiteKind::Embedding => {
            (format!("{KEY_PREFIX}{path}.lora_embedding_A"), format!("{KEY_PREFIX}{path}.lora_embedding_B"))
        }
    }
}

/// First values of A and B, a function of `seed` and their names, so that no other pair has a say in them.
///
/// Linear and convolution: A from U(±1/√fan_in), which is `kaiming_uniform_(a = √5)` worked out, and B = 0. Embedding:
/// A = 0 and B from N(0, 1).
pub(super) fn first_values(site: &Site, rank: usize, seed: u64) -> Result<(Tensor, Tensor), AdapterError> {
    let (a_shape, b_shape) = pair_shapes(site, rank);
    let (a_key, b_key) = pair_keys(site);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
    Ok(match site.kind {
        SiteKind::Linear | SiteKind::Conv2d { .. } => {
            let fan_in: usize = a_shape[1..].iter().product();
            let bound = 1.0 / (fan_in as f64).sqrt();
            let a = drawn(&a_shape, seed, &a_key, |key, index| bound * (2.0 * noise::uniform(key, index) - 1.0))?;
            (a, zeros(&b_shape)?)
        }
        SiteKind::Embedding => (zeros(&a_shape)?, drawn(&b_shape, seed, &b_key, noise::normal)?),
    })
}
