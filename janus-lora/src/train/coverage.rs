//! The proof, before step 1, that every trainable tensor learns: one forward and backward over a batch of each table
//! while no factor is zero, then every tensor must have a gradient that is not. Few tokens of an image are enough for that.

use janus_core::Janus;

use super::TrainError;
use super::stages::{Opened, Stage};
use super::step::{Stepper, TableBatch};
use crate::culprit::blame_base;
use crate::error::{Error, Result};
use crate::mifs::Aligned;
use crate::status::Status;
use crate::tasks::{Batch, Context};

/// Rows that are looked at together until some of them tell a task's whole way.
const MOST_TOLD_ROWS: usize = 4;

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

/// The first rows of each table that can must give every trainable tensor a gradient.
pub(super) fn check_coverage(stage: &Stage, opened: &Opened, status: &dyn Status) -> Result<()> {
    let (Stage { recipe, tables, .. }, Opened { base, model, stepper }) = (stage, opened);
    let mut batches = Vec::with_capacity(tables.len());
    for (table, source) in tables.iter().enumerate() {
        if source.section.loss_weight == 0.0 {
            continue;
        }
        let context = Context { base, model, draw: None };
        let mut samples = Vec::new();
        for row in source.train.rows()? {
            samples.push(source.task.sample(context, &row?)?);
            let batch = Batch::collate(base, &samples)?;
            if batch.is_telling() {
                let aligned = if recipe.mifs.is_some() { Aligned::of(base, model, &samples)? } else { None };
                // Two pictures are aligned at least, where the table has any.
                let has_pictures = samples.iter().any(|sample| !sample.images().is_empty());
                if recipe.mifs.is_none() || aligned.is_some() || !has_pictures {
                    batches.push(TableBatch { table, batch: batch.shortened(), aligned });
                    break;
                }
            }
            // Of a long way to a row that tells something, only the last ones are kept.
            if samples.len() > MOST_TOLD_ROWS {
                samples.remove(0);
            }
        }
    }
    // Over a large base it takes seconds.
    let count = batches.len() as u64;
    let bar = status.items("gradient check", count);
    let checked = require_gradients(stepper, model, &batches);
    bar.set(count, count);
    bar.finish();
    checked.map_err(|error| match error {
        // Nothing has been learnt that could be at fault.
        Error::Train(TrainError::NotFinite { .. }) => blame_base(error, base),
        error => error,
    })
}
