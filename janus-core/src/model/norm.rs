//! The two norms of the transformer parts, with their parameters.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::loader::Loader;
use crate::block::BlockNorm;
use crate::error::Result;
use crate::ops;
use crate::parameter::Parameter;

/// Root-mean-square norm of the decoder.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Arc<Parameter>,
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn load(loader: &mut Loader<'_>, path: &str, eps: f64, dtype: DType) -> Result<Self> {
        Ok(Self { weight: loader.parameter(&format!("{path}.weight"), dtype)?, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm(x, &self.weight.value(), self.eps)?)
    }

    /// Its parameters for a fused block.
    pub(crate) fn parts(&self) -> BlockNorm<'_> {
        BlockNorm { weight: &self.weight, bias: None, eps: self.eps }
    }
}

/// Layer norm of the vision tower.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Arc<Parameter>,
    bias: Arc<Parameter>,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn load(loader: &mut Loader<'_>, path: &str, eps: f64, dtype: DType) -> Result<Self> {
        let weight = loader.parameter(&format!("{path}.weight"), dtype)?;
        let bias = loader.parameter(&format!("{path}.bias"), dtype)?;
        Ok(Self { weight, bias, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight.value(), &self.bias.value(), self.eps)?)
    }

    /// Its parameters for a fused block.
    pub(crate) fn parts(&self) -> BlockNorm<'_> {
        BlockNorm { weight: &self.weight, bias: Some(&self.bias), eps: self.eps }
    }
}
