//! A step where the model lies on a device: gradients stay there, and the processor waits once, for the losses and the norm.

use candle_core::Tensor;
use janus_core::Janus;

use super::walk::{OfBatch, Totals, Walk};
use super::{StepReport, Stepper, TableBatch};
use crate::error::Result;
use crate::tasks::Coded;
use crate::train::optimizer;
use crate::train::trainable::Trainable;

impl Stepper {
    /// As on the processor, up to rounding. `None` where a loss or the norm is not finite in f32: nothing has moved then, and the
    /// way by the processor finds out which batch and which tensor it is of, or that it is within f64.
    ///
    /// # Errors
    /// As [`Stepper::step`].
    pub(super) fn step_on_device(
        &mut self,
        model: &Janus,
        step: u64,
        learning_rate: f64,
        batches: &[TableBatch],
        coded: &mut Vec<Coded>,
    ) -> Result<Option<StepReport>> {
        let walk = Walk::new(self, model, step, batches)?;
        let mut sums: Vec<Option<Tensor>> = vec![None; self.trainables.len()];
        let (mut readings, mut shares, mut done) = (Vec::new(), Vec::new(), Vec::new());
        for (number, batch) in batches.iter().enumerate() {
            let Some(forwarded) = walk.forward(number)? else { continue };
            for (sum, gradient) in sums.iter_mut().zip(walk.backward(&forwarded.total)?) {
                let Some(gradient) = gradient else { continue };
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + gradient)?,
                    None => gradient,
                });
            }
            done.push((batch.table, forwarded.alignment.is_some(), forwarded.coded));
            for (sum, share) in std::iter::once(forwarded.loss).chain(forwarded.alignment) {
                readings.push(sum);
                shares.push(share);
            }
        }
        let supervised = walk.supervised;
        let trainables: Vec<&Trainable> = self.trainables.iter().collect();
        let gradients = self.optimizer.gathered(&trainables, &sums)?;
        drop(sums);
        let squares = gradients.squares()?;
        readings.extend(squares.clone());
        let values: Vec<f32> = if readings.is_empty() { Vec::new() } else { Tensor::stack(&readings, 0)?.to_vec1()? };
        if values.iter().any(|value| !value.is_finite()) {
            return Ok(None);
        }
        let (losses, squares) = values.split_at(shares.len());
        let mut losses = losses.iter().zip(shares).map(|(sum, share)| f64::from(*sum) * share);
        let mut totals = Totals::new(self);
        for (table, is_aligned, of_batch) in done {
            let loss = losses.next().unwrap_or_default();
            let alignment = if is_aligned { losses.next() } else { None };
            totals.add(table, Some(OfBatch { loss, alignment, coded: of_batch }), coded);
        }
        let norm = squares.first().map_or(0.0, |squares| f64::from(*squares).sqrt());
        let factor = optimizer::clip_factor(norm, self.clip_norm);
        self.optimizer.step_on_device(&trainables, gradients, factor, learning_rate)?;
        Ok(Some(totals.report(self, supervised, norm, factor)))
    }
}
