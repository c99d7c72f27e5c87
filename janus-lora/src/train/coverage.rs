//! The proof, before step 1, that every trainable tensor learns: one forward and backward over a batch of each table
//! while no factor is zero, then every tensor must have a gradient that is not.

use janus_core::Janus;

use super::TrainError;
use super::step::{Stepper, TableBatch};
use crate::error::Result;

/// A step after all that is different at the start of a run.
const LATE: u64 = u64::MAX;

/// Runs the check over one batch of each table.
///
/// # Errors
/// [`TrainError::NoGradient`] with the names of the tensors that got none.
pub fn require_gradients(stepper: &Stepper, model: &Janus, batches: &[TableBatch]) -> Result<()> {
    let (gradients, _) = stepper.trainables.perturbed(|| stepper.gradients(model, LATE, batches))?;
    let missing: Vec<String> = stepper
        .trainables
        .iter()
        .zip(&gradients)
        .filter(|(_, gradient)| gradient.as_ref().is_none_or(|g| g.iter().all(|v| *v == 0.0)))
        .map(|(trainable, _)| trainable.name.clone())
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(TrainError::NoGradient { tensors: missing }.into()) }
}
