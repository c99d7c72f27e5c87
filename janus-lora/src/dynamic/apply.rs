//! Factors in a loaded model: in copies of the layer norms' parameters, and behind the last map of `generation_aligner`.
//!
//! A norm gives n·weight + bias, so that a factor on what it gives is one on its weight and its bias.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use janus_core::Janus;
use janus_core::config::JanusConfig;
use janus_core::pass::Pass;
use janus_core::site::{BaseView, Correction, LowRank, Site};

use super::Factors;

/// Low-rank terms, and factors on the output behind them.
#[derive(Debug, Clone)]
pub struct ScaledCorrection {
    /// The terms.
    pub terms: Vec<LowRank>,
    /// `[output]`, f32.
    pub factors: Tensor,
}

impl Correction for ScaledCorrection {
    fn apply(&self, pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> janus_core::Result<Tensor> {
        let y = base.forward_with(pass, x, &self.terms)?;
        Ok(y.to_dtype(DType::F32)?.broadcast_mul(&self.factors)?.to_dtype(y.dtype())?)
    }

    fn fold(&self, site: &Site, weight: Tensor) -> janus_core::Result<Tensor> {
        let mut weight = weight;
        for term in &self.terms {
            weight = (weight + term.weight_shift(site)?)?;
        }
        Ok(weight.broadcast_mul(&self.factors.unsqueeze(1)?)?)
    }
}

/// The last map of `generation_aligner`: its native path.
pub(super) fn generation_site(config: &JanusConfig) -> String {
    match config.vq.aligner_depth {
        0 | 1 => "model.generation_aligner.fc1".to_owned(),
        depth => format!("model.generation_aligner.hidden_layers.{}", depth - 2),
    }
}

/// Native names of the parameters of the tower's norms, each with its row in the factors.
pub(super) fn norm_parameters(config: &JanusConfig) -> impl Iterator<Item = (String, usize)> {
    (0..2 * config.vision.num_hidden_layers).flat_map(|row| {
        let (layer, norm) = (row / 2, row % 2 + 1);
        let name = |part: &str| format!("model.vision_model.encoder.layers.{layer}.layer_norm{norm}.{part}");
        [(name("weight"), row), (name("bias"), row)]
    })
}

impl Factors {
    /// The parameters of the norms that `model` has, multiplied, by native name; `own` gives what stands in for the base's
    /// values before that.
    ///
    /// # Errors
    /// Factors of a model of other sizes.
    pub fn norm_copies(
        &self,
        model: &Janus,
        own: impl Fn(&str) -> Option<Tensor>,
    ) -> candle_core::Result<BTreeMap<Arc<str>, Tensor>> {
        let mut copies = BTreeMap::new();
        let Some(factors) = &self.norms else { return Ok(copies) };
        let factors = factors.to_device(model.device())?;
        for (name, row) in norm_parameters(model.config()) {
            let Some(parameter) = model.parameters().get(&name) else { continue };
            let value = own(&name).unwrap_or_else(|| parameter.frozen().clone()).to_dtype(DType::F32)?;
            copies.insert(parameter.name().clone(), (value * factors.get(row)?)?);
        }
        Ok(copies)
    }

    /// The correction of a site with these terms, where the site has factors.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn correction(
        &self,
        model: &Janus,
        path: &str,
        terms: Vec<LowRank>,
    ) -> candle_core::Result<Option<Arc<dyn Correction>>> {
        match &self.generation {
            Some(factors) if path == generation_site(model.config()) => {
                let factors = factors.to_device(model.device())?;
                Ok(Some(Arc::new(ScaledCorrection { terms, factors })))
            }
            _ => Ok(None),
        }
    }

    /// The site that has factors, if one does.
    pub fn site(&self, config: &JanusConfig) -> Option<String> {
        self.generation.is_some().then(|| generation_site(config))
    }
}
