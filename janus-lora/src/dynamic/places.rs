//! Where a model has factors: at the tower's layer norms, and behind the last map of `generation_aligner`.

use candle_core::{DType, Result, Tensor};
use janus_core::config::JanusConfig;

use super::Factors;

/// The last map of `generation_aligner`: its native path.
pub fn generation_site(config: &JanusConfig) -> String {
    match config.vq.aligner_depth {
        0 | 1 => "model.generation_aligner.fc1".to_owned(),
        depth => format!("model.generation_aligner.hidden_layers.{}", depth - 2),
    }
}

/// Native names of the parameters of the tower's norms, each with its row in the factors.
pub(super) fn norm_parameters(config: &JanusConfig) -> impl Iterator<Item = (String, usize)> + use<> {
    (0..2 * config.vision.num_hidden_layers).flat_map(|row| {
        let (layer, norm) = (row / 2, row % 2 + 1);
        let name = |part: &str| format!("model.vision_model.encoder.layers.{layer}.layer_norm{norm}.{part}");
        [(name("weight"), row), (name("bias"), row)]
    })
}

impl Factors {
    /// Native names of the norms' parameters that have factors, each with its row in these.
    pub fn norm_parameters(&self, config: &JanusConfig) -> impl Iterator<Item = (String, usize)> + use<> {
        let all = self.norms.is_some().then(|| norm_parameters(config));
        all.into_iter().flatten()
    }

    /// The parameter of a norm under its factors, f32: a norm gives n·weight + bias, so that a factor on what it gives is one on
    /// its weight and its bias. `None` where norms have none.
    ///
    /// # Errors
    /// A parameter of another size.
    pub fn of_norm(&self, row: usize, value: &Tensor) -> Result<Option<Tensor>> {
        let Some(factors) = &self.norms else { return Ok(None) };
        Ok(Some((value.to_dtype(DType::F32)? * factors.get(row)?)?))
    }
}
