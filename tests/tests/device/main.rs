//! What is computed on a device (`JANUS_TEST_DEVICE`) against the processor's own code. Without a device the composed operations,
//! which are a device's, stand in its place.
#![allow(clippy::unwrap_used)]

mod adapters;
mod operations;

use candle_core::{Device, Tensor};
use janus_core::noise;
use janus_core::ops::with_composed;

/// Normal numbers of a seed.
fn drawn(shape: &[usize], seed: u64, device: &Device) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count as u64).map(|i| noise::normal(seed, i) as f32).collect();
    Tensor::from_vec(values, shape, device).unwrap()
}

/// Runs `f` as on a device.
fn as_on<T>(device: &Device, f: impl FnOnce() -> T) -> T {
    if device.is_cpu() { with_composed(f) } else { f() }
}
