//! First values of what is trained.

use candle_core::{Device, Result, Tensor};
use janus_core::noise;

/// An f32 tensor whose values are `draw(key, index)`, the key a function of `seed` and the tensor's name, so that no other
/// tensor has a say in them.
pub(crate) fn drawn(shape: &[usize], seed: u64, name: &str, draw: impl Fn(u64, u64) -> f64) -> Result<Tensor> {
    let key = noise::combine(seed, noise::key_of(name));
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count as u64).map(|index| draw(key, index) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}
