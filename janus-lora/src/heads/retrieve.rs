//! Pictures and captions as vectors that lie close where they belong together.

use candle_core::{DType, Result, Tensor};
use janus_core::config::JanusConfig;

use super::contrast::{FIRST_TEMPERATURE, unit};
use super::layers::normalised;
use super::{First, Head, Value};

/// Width of the vectors.
const WIDTH: usize = 128;

const IMAGE: &str = "image.weight";
const TEXT: &str = "text.weight";
const TEMPERATURE: &str = "log_temperature";

/// `image.weight [128, hidden]`, `text.weight [128, hidden]`, `log_temperature [1]`.
pub(super) fn values(config: &JanusConfig) -> Vec<Value> {
    let project =
        |name: &str, input: usize| Value::new(name, &[WIDTH, input], First::Normal((1.0 / input as f64).sqrt()));
    vec![
        project(IMAGE, config.vision.projection_dim),
        project(TEXT, config.text.hidden_size),
        Value::new(TEMPERATURE, &[1], First::Constant(FIRST_TEMPERATURE.ln())),
    ]
}

/// Features of some pictures, `[images, patches, hidden]`, to vectors of length one, `[images, 128]`: each patch's features
/// brought to mean zero and variance one, their mean over the patches, projected.
///
/// # Errors
/// Shapes that do not fit.
pub fn image_vectors(head: &Head, features: &Tensor) -> Result<Tensor> {
    unit(&normalised(features)?.mean(1)?.matmul(&head.value(IMAGE).t()?)?)
}

/// The final hidden states of some captions' last tokens, `[captions, hidden]`, to vectors of length one, `[captions, 128]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn text_vectors(head: &Head, hidden: &Tensor) -> Result<Tensor> {
    unit(&hidden.to_dtype(DType::F32)?.matmul(&head.value(TEXT).t()?)?)
}

/// The logarithm of the learnt temperature, `[1]`.
pub fn log_temperature(head: &Head) -> &Tensor {
    head.value(TEMPERATURE)
}
