//! One of some labels for a picture: features pooled by an attention with one learnt query, then one linear map.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax;
use janus_core::config::JanusConfig;

use super::layers::normalised;
use super::{First, Head, Value};

const QUERY: &str = "query";
const WEIGHT: &str = "weight";
const BIAS: &str = "bias";

/// `query [hidden]`, `weight [labels, hidden]`, `bias [labels]`.
pub(super) fn values(config: &JanusConfig, labels: usize) -> Vec<Value> {
    let hidden = config.vision.projection_dim;
    vec![
        Value::new(QUERY, &[hidden], First::Normal(0.02)),
        Value::new(WEIGHT, &[labels, hidden], First::Normal(1.0 / (hidden as f64).sqrt())),
        Value::new(BIAS, &[labels], First::Constant(0.0)),
    ]
}

/// Features of some pictures, `[images, patches, hidden]`, to their logits, `[images, labels]` in f32.
///
/// With f the features of a patch, brought to mean zero and variance one: `p = Σ softmax(q·f)·f`, then `W·p + b`.
///
/// # Errors
/// Shapes that do not fit.
pub fn logits(head: &Head, features: &Tensor) -> Result<Tensor> {
    let features = normalised(features)?;
    let (images, patches, hidden) = features.dims3()?;
    let query = head.value(QUERY).reshape((hidden, 1))?;
    let scores = features.reshape((images * patches, hidden))?.matmul(&query)?.reshape((images, patches))?;
    let weights = softmax(&scores, D::Minus1)?.unsqueeze(1)?;
    let pooled = weights.matmul(&features)?.squeeze(1)?;
    pooled.matmul(&head.value(WEIGHT).t()?)?.broadcast_add(head.value(BIAS))
}
