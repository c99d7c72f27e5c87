//! One of some labels for a picture: features pooled by an attention with one learnt query, then one linear map.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax;
use janus_core::config::JanusConfig;

use super::{Head, wide};

const QUERY: &str = "query";
const WEIGHT: &str = "weight";
const BIAS: &str = "bias";

/// Added to the features' variance before they are pooled.
const EPS: f64 = 1e-6;

/// `query [hidden]`, `weight [labels, hidden]`, `bias [labels]`.
pub(super) fn shapes(config: &JanusConfig, labels: usize) -> Vec<(&'static str, Vec<usize>)> {
    let hidden = config.vision.projection_dim;
    vec![(QUERY, vec![hidden]), (WEIGHT, vec![labels, hidden]), (BIAS, vec![labels])]
}

/// Deviation of a value's first values: all labels are alike at first.
pub(super) fn first_deviation(own: &str) -> f64 {
    if own == QUERY { 0.02 } else { 0.0 }
}

/// Features of some pictures, `[images, patches, hidden]`, to their logits, `[images, labels]` in f32.
///
/// With f the features of a patch, brought to mean zero and variance one: `p = Σ softmax(q·f)·f`, then `W·p + b`.
///
/// # Errors
/// Shapes that do not fit.
pub fn logits(head: &Head, features: &Tensor) -> Result<Tensor> {
    let features = wide(features)?;
    // The base's features have a scale of their own, which an optimiser's step would have to find.
    let centred = features.broadcast_sub(&features.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let features = centred.broadcast_div(&(variance + EPS)?.sqrt()?)?;
    let (images, patches, hidden) = features.dims3()?;
    let query = head.value(QUERY).reshape((hidden, 1))?;
    let scores = features.reshape((images * patches, hidden))?.matmul(&query)?.reshape((images, patches))?;
    let weights = softmax(&scores, D::Minus1)?.unsqueeze(1)?;
    let pooled = weights.matmul(&features)?.squeeze(1)?;
    pooled.matmul(&head.value(WEIGHT).t()?)?.broadcast_add(head.value(BIAS))
}
