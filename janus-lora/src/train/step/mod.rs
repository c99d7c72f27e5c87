//! One optimiser step: forward and backward over its batches, token-weighted sums, clipping, update.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;
use janus_core::Janus;
use rayon::prelude::*;

mod device;
mod walk;

use walk::{Totals, Walk};

use super::TrainError;
use super::codebook::{Codebook, CodebookUse};
use super::optimizer::{self, AdamW};
use super::side_by_side::SideBySide;
use super::trainable::{Trainable, Trainables};
use crate::error::Result;
use crate::mifs::Aligned;
use crate::recipe::Accumulation;
use crate::tasks::{Batch, Coded};

/// A batch of one table.
#[derive(Debug)]
pub struct TableBatch {
    /// Which table, an index.
    pub table: usize,
    /// Its rows.
    pub batch: Batch,
    /// Its pictures, where their mid features are aligned.
    pub aligned: Option<Aligned>,
}

/// What a table's loss is called and counts.
#[derive(Debug, Clone)]
pub struct TableLoss {
    /// The table's name.
    pub name: String,
    /// Factor on its loss.
    pub loss_weight: f64,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// `Σ loss_weight · loss` over the tables.
    pub loss: f64,
    /// Loss of each table, `None` where the step had no row of it.
    pub losses: Vec<Option<f64>>,
    /// Mean loss of the mid features' alignment, where there was one.
    pub alignment: Option<f64>,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Factor of the clipping.
    pub clip_factor: f64,
    /// Supervised tokens of each table.
    pub supervised: Vec<usize>,
    /// How the image tokenizer's codes are used, where they are under training.
    pub codebook: Option<CodebookUse>,
}

/// Everything a step changes.
#[derive(Debug)]
pub struct Stepper {
    /// The tensors.
    pub trainables: Trainables,
    /// Their moments.
    pub optimizer: AdamW,
    /// The codebook, where it is one of them.
    pub(super) codebook: Option<Codebook>,
    tables: Vec<TableLoss>,
    accumulation: Accumulation,
    clip_norm: f64,
    seed: u64,
    recompute: bool,
    side_by_side: Option<SideBySide>,
    /// Factor on the alignment's loss.
    alignment_weight: f64,
    /// Steps of the run before the first of its stage.
    first_step: u64,
}

impl Stepper {
    /// For the tables of a recipe.
    pub fn new(
        trainables: Trainables,
        config: optimizer::AdamWConfig,
        tables: Vec<TableLoss>,
        accumulation: Accumulation,
        clip_norm: f64,
        seed: u64,
    ) -> Self {
        let optimizer = AdamW::new(config, trainables.len());
        let codebook = Codebook::of(&trainables, 0, seed);
        Self {
            trainables,
            optimizer,
            codebook,
            tables,
            accumulation,
            clip_norm,
            seed,
            recompute: false,
            side_by_side: None,
            alignment_weight: 0.0,
            first_step: 0,
        }
    }

    /// With this factor on the loss of the mid features' alignment.
    #[must_use]
    pub fn with_alignment_weight(self, alignment_weight: f64) -> Self {
        Self { alignment_weight, ..self }
    }

    /// With so many steps in which the image tokenizer's latents are not quantised.
    #[must_use]
    pub fn with_quantize_from(self, quantize_from: u64) -> Self {
        let codebook = Codebook::of(&self.trainables, quantize_from, self.seed);
        Self { codebook, ..self }
    }

    /// As a stage that begins after so many steps of its run.
    #[must_use]
    pub fn with_first_step(self, first_step: u64) -> Self {
        Self { first_step, ..self }
    }

    /// With blocks that keep their input alone and compute the rest again in the backward: the same bits, less memory.
    pub fn with_recompute(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }

    /// Whether two batches of a step are computed at once, each on a part of the threads: for models so small that threads wait
    /// more than they compute, where the memory of two batches is there. The bits are those of one after the other on so many
    /// threads.
    #[must_use]
    pub fn with_side_by_side(self, at_once: bool) -> Self {
        Self { side_by_side: at_once.then(|| SideBySide::new(2)).flatten(), ..self }
    }

    /// Sums of gradients over `batches` and the losses, without moving anything. `step` counts from the first of the stage.
    ///
    /// The loss of a table is its summed cross-entropy over the step divided by its supervised tokens of the step
    /// (`tokens`), or the mean over its batches of each batch's mean (`mean`).
    ///
    /// # Errors
    /// Batches that do not fit the model; [`TrainError::NotFinite`] with the number of the first batch whose loss or gradient
    /// is no number; [`TrainError::Stopped`] between two batches.
    pub fn gradients(
        &self,
        model: &Janus,
        step: u64,
        batches: &[TableBatch],
    ) -> Result<(Vec<Option<Vec<f32>>>, StepReport)> {
        let mut coded = Vec::new();
        self.gradients_and_codes(model, step, batches, &mut coded)
    }

    /// [`Stepper::gradients`], with what the image tokenizer made of the step's pictures.
    fn gradients_and_codes(
        &self,
        model: &Janus,
        step: u64,
        batches: &[TableBatch],
        coded: &mut Vec<Coded>,
    ) -> Result<(Vec<Option<Vec<f32>>>, StepReport)> {
        let walk = Walk::new(self, model, step, batches)?;
        let mut totals = Totals::new(self);
        let mut sums: Vec<Option<Vec<f32>>> = vec![None; self.trainables.len()];
        match &self.side_by_side {
            Some(side_by_side) if batches.len() > 1 => {
                let (tensors, failed) = (sums.len(), AtomicBool::new(false));
                let of_one = |number: usize| {
                    // What follows a failure is for nothing.
                    if failed.load(Ordering::Relaxed) {
                        return Ok((None, Vec::new()));
                    }
                    let mut own = vec![None; tensors];
                    let done = walk.added(number, &mut own).map(|done| (done, own));
                    failed.fetch_or(done.is_err(), Ordering::Relaxed);
                    done
                };
                let mut first_failure = Ok(());
                side_by_side.each(batches.len(), of_one, |number, result| match result {
                    Ok((done, own)) => {
                        totals.add(batches[number].table, done, coded);
                        for (sum, gradient) in sums.iter_mut().zip(own) {
                            if let Some(gradient) = gradient {
                                add(sum, gradient);
                            }
                        }
                    }
                    Err(error) if first_failure.is_ok() => first_failure = Err(error),
                    Err(_) => {}
                });
                first_failure?;
            }
            _ => {
                for (number, batch) in batches.iter().enumerate() {
                    totals.add(batch.table, walk.added(number, &mut sums)?, coded);
                }
            }
        }
        let (grad_norm, clip_factor) = optimizer::clip(&sums, self.clip_norm);
        if !grad_norm.is_finite() {
            // Each batch is finite, their sum is not.
            let tables: Vec<&str> = self.tables.iter().map(|table| table.name.as_str()).collect();
            let what = format!("the norm of all gradients is {grad_norm}");
            return Err(TrainError::NotFinite {
                table: tables.join("`, `"),
                what,
                step: self.first_step + step,
                batch: None,
            }
            .into());
        }
        Ok((sums, totals.report(self, walk.supervised, grad_norm, clip_factor)))
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// As [`Stepper::gradients`]; nothing has moved then.
    pub fn step(&mut self, model: &Janus, step: u64, learning_rate: f64, batches: &[TableBatch]) -> Result<StepReport> {
        let mut coded = Vec::new();
        let on_device = match model.device().is_cpu() {
            true => None,
            false => self.step_on_device(model, step, learning_rate, batches, &mut coded)?,
        };
        let mut report = match on_device {
            Some(report) => report,
            None => {
                coded.clear();
                self.step_on_processor(model, step, learning_rate, batches, &mut coded)?
            }
        };
        if let Some(codebook) = &mut self.codebook {
            report.codebook = Some(codebook.stepped(step, &coded, &self.trainables)?);
        }
        Ok(report)
    }

    fn step_on_processor(
        &mut self,
        model: &Janus,
        step: u64,
        learning_rate: f64,
        batches: &[TableBatch],
        coded: &mut Vec<Coded>,
    ) -> Result<StepReport> {
        let (gradients, report) = self.gradients_and_codes(model, step, batches, coded)?;
        let factor = report.clip_factor as f32;
        let trainables: Vec<&Trainable> = self.trainables.iter().collect();
        self.optimizer.movers().zip(trainables).zip(gradients).try_for_each(|((mover, trainable), gradient)| {
            let Some(mut gradient) = gradient else { return Ok(()) };
            if factor != 1.0 {
                gradient.iter_mut().for_each(|g| *g *= factor);
            }
            let mut values: Vec<f32> = trainable.var.flatten_all()?.to_vec1()?;
            mover.update(&mut values, &gradient, learning_rate * trainable.rate);
            trainable.var.set(&Tensor::from_vec(values, trainable.var.dims(), trainable.var.device())?)
        })?;
        Ok(report)
    }
}

fn add(sum: &mut Option<Vec<f32>>, gradient: Vec<f32>) {
    match sum {
        Some(sum) => sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g),
        None => *sum = Some(gradient),
    }
}
