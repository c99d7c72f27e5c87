//! AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101) and clipping by the global norm.
//! Source of the order of operations: `torch/optim/adamw.py` and `torch/nn/utils/clip_grad.py` of torch 2.15.
//!
//! Moments are f32 and contiguous, one slot per trainable tensor in the adapter's order. A tensor without a gradient is
//! left alone: no decay, no moment, no count.
//!
//! On the processor each tensor is moved for itself, on other devices [`device`] moves many together.

mod device;

use std::borrow::Cow;

use candle_core::Result;
use rayon::prelude::*;

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of the value taken away each step, times the learning rate.
    pub weight_decay: f64,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    first: Vec<f32>,
    second: Vec<f32>,
    steps: i32,
}

/// What AdamW knows of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments<'a> {
    /// Running mean of the gradient.
    pub first: Cow<'a, [f32]>,
    /// Running mean of its square.
    pub second: Cow<'a, [f32]>,
    /// Updates so far.
    pub steps: i32,
}

/// AdamW over a fixed number of tensors.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    /// Moments that lie on a device; their tensors' slots are empty.
    flats: Vec<device::Flat>,
}

impl AdamW {
    /// For `tensors` tensors.
    pub fn new(config: AdamWConfig, tensors: usize) -> Self {
        Self { config, slots: vec![Slot::default(); tensors], flats: Vec::new() }
    }

    /// Moments and count of one tensor, absent before its first update.
    ///
    /// # Errors
    /// Moments that cannot be brought from their device.
    pub fn state(&self, tensor: usize) -> Result<Option<Moments<'_>>> {
        if let Some(moments) = self.state_on_device(tensor)? {
            return Ok(Some(moments));
        }
        let slot = self.slots.get(tensor).filter(|slot| slot.steps > 0);
        Ok(slot.map(|slot| {
            let (first, second) = (Cow::from(slot.first.as_slice()), Cow::from(slot.second.as_slice()));
            Moments { first, second, steps: slot.steps }
        }))
    }

    /// Puts back what [`AdamW::state`] gave.
    ///
    /// # Errors
    /// Moments of others that cannot be brought from their device.
    pub fn restore(&mut self, tensor: usize, first: Vec<f32>, second: Vec<f32>, steps: i32) -> Result<()> {
        self.dissolve(|number| number == tensor)?;
        if let Some(slot) = self.slots.get_mut(tensor) {
            *slot = Slot { first, second, steps };
        }
        Ok(())
    }

    /// What moves each tensor, in their order.
    pub fn movers(&mut self) -> impl IndexedParallelIterator<Item = Mover<'_>> {
        let config = self.config;
        self.slots.par_iter_mut().map(move |slot| Mover { config, slot })
    }

    #[cfg(test)]
    fn movers_in_order(&mut self) -> impl Iterator<Item = Mover<'_>> {
        let config = self.config;
        self.slots.iter_mut().map(move |slot| Mover { config, slot })
    }
}

/// AdamW of one tensor.
#[derive(Debug)]
pub struct Mover<'a> {
    config: AdamWConfig,
    slot: &'a mut Slot,
}

impl Mover<'_> {
    /// Moves the values against their gradient.
    pub fn update(self, values: &mut [f32], gradient: &[f32], learning_rate: f64) {
        let AdamWConfig { betas: [beta1, beta2], eps, weight_decay } = self.config;
        let slot = self.slot;
        slot.first.resize(values.len(), 0.0);
        slot.second.resize(values.len(), 0.0);
        slot.steps += 1;
        let step_size = (learning_rate / (1.0 - beta1.powi(slot.steps))) as f32;
        let root_correction = (1.0 - beta2.powi(slot.steps)).sqrt() as f32;
        let keep = (1.0 - learning_rate * weight_decay) as f32;
        let (beta1, beta2, eps) = (beta1 as f32, beta2 as f32, eps as f32);
        let (rest1, rest2) = ((1.0 - self.config.betas[0]) as f32, (1.0 - self.config.betas[1]) as f32);
        let state = slot.first.par_iter_mut().zip(&mut slot.second);
        values.par_iter_mut().zip(gradient).zip(state).with_min_len(4096).for_each(|((value, g), (first, second))| {
            *first = beta1 * *first + rest1 * g;
            *second = beta2 * *second + rest2 * g * g;
            let denominator = second.sqrt() / root_correction + eps;
            *value = *value * keep - step_size * *first / denominator;
        });
    }
}

/// Global norm of gradients, and the factor that brings it to at most `limit` (0 = no limit).
pub fn clip(gradients: &[Option<Vec<f32>>], limit: f64) -> (f64, f64) {
    let square = |gradient: &Vec<f32>| gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
    // Each tensor on one thread and the sum in their order: the same bits on any number of threads.
    let squares: Vec<f64> = gradients.par_iter().filter_map(Option::as_ref).map(square).collect();
    let norm = squares.iter().sum::<f64>().sqrt();
    (norm, clip_factor(norm, limit))
}

/// The factor that brings gradients of this norm to at most `limit` (0 = no limit).
pub(super) fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AdamWConfig = AdamWConfig { betas: [0.8, 0.95], eps: 1e-3, weight_decay: 0.3 };

    /// The same by the formulas of the paper in f64.
    fn slow(values: &mut [f64], gradients: &[[f64; 3]], rate: f64) {
        let (mut m, mut v) = ([0f64; 3], [0f64; 3]);
        for (t, g) in gradients.iter().enumerate() {
            for i in 0..3 {
                m[i] = 0.8 * m[i] + 0.2 * g[i];
                v[i] = 0.95 * v[i] + 0.05 * g[i] * g[i];
                let m_hat = m[i] / (1.0 - 0.8f64.powi(t as i32 + 1));
                let v_hat = v[i] / (1.0 - 0.95f64.powi(t as i32 + 1));
                values[i] -= rate * 0.3 * values[i];
                values[i] -= rate * m_hat / (v_hat.sqrt() + 1e-3);
            }
        }
    }

    #[test]
    fn the_update_agrees_with_the_paper() {
        let gradients = [[0.5, -1.0, 0.0], [0.1, 2.0, -0.3], [-0.7, 0.2, 0.9]];
        let mut truth = [1.0, -0.5, 0.25];
        slow(&mut truth, &gradients, 0.01);
        let mut values = [1.0f32, -0.5, 0.25];
        let mut optimizer = AdamW::new(CONFIG, 1);
        for gradient in gradients {
            let mut movers: Vec<Mover<'_>> = optimizer.movers().collect();
            movers.remove(0).update(&mut values, &gradient.map(|g| g as f32), 0.01);
        }
        for (a, b) in values.iter().zip(truth) {
            assert!((f64::from(*a) - b).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn the_clip_is_that_of_the_global_norm() {
        let gradients = [Some(vec![3.0f32, 0.0]), None, Some(vec![4.0])];
        let (norm, factor) = clip(&gradients, 1.0);
        assert_eq!(norm, 5.0);
        assert!((factor - 1.0 / 5.000001).abs() < 1e-12);
        assert_eq!(clip(&gradients, 10.0).1, 1.0);
        assert_eq!(clip(&gradients, 0.0).1, 1.0);
    }
}
