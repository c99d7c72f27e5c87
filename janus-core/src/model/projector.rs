//! The multi-layer projectors into the decoder's space: `model.aligner` and `model.generation_aligner`.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::loader::Loader;
use crate::error::Result;
use crate::ops;
use crate::pass::Pass;
use crate::site::Projection;

/// `fc1`, then GELU and a further layer as often as there are `hidden_layers`.
#[derive(Debug)]
pub(crate) struct Projector {
    layers: Vec<Arc<Projection>>,
}

impl Projector {
    pub(crate) fn load(loader: &mut Loader<'_>, path: &str, depth: usize, dtype: DType) -> Result<Self> {
        let mut layers = vec![loader.projection(&format!("{path}.fc1"), true, dtype)?];
        for i in 0..depth.saturating_sub(1) {
            layers.push(loader.projection(&format!("{path}.hidden_layers.{i}"), true, dtype)?);
        }
        Ok(Self { layers })
    }

    /// `[.., input]` to `[.., hidden]`.
    pub(crate) fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                x = ops::activation::gelu(&x)?;
            }
            x = layer.forward(pass, &x)?;
        }
        Ok(x)
    }
}
