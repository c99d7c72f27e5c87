//! The two norms of the transformer parts, with their parameters.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};

use super::loader::Loader;
use crate::block::BlockNorm;
use crate::error::Result;
use crate::ops;
use crate::parameter::Parameter;
use crate::pass::{Part, Pass, Span};

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
        let weight = loader.routed_parameter(&format!("{path}.weight"), dtype)?;
        let bias = loader.routed_parameter(&format!("{path}.bias"), dtype)?;
        Ok(Self { weight, bias, eps })
    }

    /// The norm of `x: [.., width]`, rows of the vision part.
    pub(crate) fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let own = |x: &Tensor| Ok(ops::layer_norm(x, &self.weight.value(), &self.bias.value(), self.eps)?);
        let Some(routing) = pass.routing(Part::Vision) else { return own(x) };
        let blends = routing.mixtures().iter().map(|mixture| self.parts().blended(mixture));
        let blends = blends.collect::<Result<Vec<_>>>()?;
        let rows = x.flatten_to(D::Minus2)?;
        let spans = routing.over(rows.dim(0)?)?;
        if blends.iter().all(Option::is_none) {
            return own(x);
        }
        let normed = |span: &Span| {
            let rows = rows.narrow(0, span.rows.start, span.rows.len())?;
            match &blends[span.mixture] {
                Some([weight, bias]) => Ok(ops::layer_norm(&rows, weight, bias, self.eps)?),
                None => own(&rows),
            }
        };
        Ok(Tensor::cat(&spans.iter().map(normed).collect::<Result<Vec<_>>>()?, 0)?.reshape(x.shape())?)
    }

    /// Its parameters for a fused block.
    pub(crate) fn parts(&self) -> BlockNorm<'_> {
        BlockNorm { weight: &self.weight, bias: Some(&self.bias), eps: self.eps }
    }
}
