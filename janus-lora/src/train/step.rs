//! One optimiser step: forward and backward over its batches, token-weighted sums, clipping, update.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;
use janus_core::Janus;
use janus_core::ops::on_pool;
use janus_core::pass::{NoiseKey, Pass};
use rayon::prelude::*;

use super::TrainError;
use super::codebook::{Codebook, CodebookUse};
use super::optimizer::{self, AdamW};
use super::side_by_side::SideBySide;
use super::signals;
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

/// What a batch gave beside its gradients.
struct OfBatch {
    /// Its share of its table's loss.
    loss: f64,
    alignment: Option<f64>,
    coded: Option<Coded>,
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
        self.trainables.renew(model)?;
        let heads = self.trainables.heads();
        let mut supervised = vec![0usize; self.tables.len()];
        let mut counts = vec![0usize; self.tables.len()];
        for batch in batches {
            supervised[batch.table] += batch.batch.supervised();
            counts[batch.table] += 1;
        }
        let log_temperature = self.trainables.log_temperature();
        let alignments = batches.iter().filter(|batch| batch.aligned.is_some()).count();
        let mut alignment: Option<f64> = None;
        let mut sums: Vec<Option<Vec<f32>>> = vec![None; self.trainables.len()];
        let mut losses: Vec<Option<f64>> = vec![None; self.tables.len()];
        let of_batch = |number: usize, sums: &mut [Option<Vec<f32>>]| -> Result<Option<OfBatch>> {
            let TableBatch { table, batch, aligned } = &batches[number];
            if number > 0 {
                signals::check()?;
            }
            let noise = NoiseKey { seed: self.seed, step, micro_batch: number as u64 };
            let mut pass = Pass::training(noise);
            pass.recompute = self.recompute;
            let own = batch.supervised();
            if own == 0 {
                return Ok(None);
            }
            let share = match self.accumulation {
                // Pairs are held against those of their batch alone: more batches are no larger one.
                _ if batch.is_contrastive() => 1.0 / (own * counts[*table]) as f64,
                Accumulation::Tokens => 1.0 / supervised[*table] as f64,
                Accumulation::Mean => 1.0 / (own * counts[*table]) as f64,
            };
            let loss = batch.loss(model, &pass, &heads)?;
            let value = f64::from(loss.sum.to_scalar::<f32>()?) * share;
            let table_loss = &self.tables[*table];
            let not_finite = |what: String| TrainError::NotFinite {
                table: table_loss.name.clone(),
                what,
                step: self.first_step.saturating_add(step),
                batch: Some(number),
            };
            if !value.is_finite() {
                return Err(not_finite(format!("the loss is {value}")).into());
            }
            let mut done = OfBatch { loss: value, alignment: None, coded: loss.coded };
            let mut sum = (loss.sum * (share * table_loss.loss_weight))?;
            if let (Some(aligned), Some(log_temperature)) = (aligned, &log_temperature) {
                // Held against those of their batch alone, as pairs of a contrastive task.
                let share = 1.0 / (aligned.len() * alignments) as f64;
                let contrast = aligned.loss(model, &pass, log_temperature)?;
                let value = f64::from(contrast.sum.to_scalar::<f32>()?) * share;
                if !value.is_finite() {
                    return Err(not_finite(format!("the loss of the alignment is {value}")).into());
                }
                done.alignment = Some(value);
                sum = (sum + (contrast.sum * (share * self.alignment_weight))?)?;
            }
            let mut gradients = on_pool(sum.device(), || sum.backward())?;
            let taken: Vec<Option<Tensor>> =
                self.trainables.iter().map(|trainable| gradients.remove(trainable.var.as_tensor())).collect();
            let taken: Vec<Result<Option<Gradient>>> =
                taken.into_par_iter().map(|tensor| tensor.map(Gradient::of).transpose()).collect();
            for ((sum, trainable), gradient) in sums.iter_mut().zip(self.trainables.iter()).zip(taken) {
                let Some(Gradient { values, stray }) = gradient? else { continue };
                if let Some(value) = stray {
                    return Err(not_finite(format!("the gradient of `{}` has a {value}", trainable.name)).into());
                }
                add(sum, values);
            }
            Ok(Some(done))
        };
        let mut collect = |number: usize, done: Option<OfBatch>| {
            let Some(OfBatch { loss, alignment: of_alignment, coded: of_batch }) = done else { return };
            *losses[batches[number].table].get_or_insert(0.0) += loss;
            if let Some(value) = of_alignment {
                *alignment.get_or_insert(0.0) += value;
            }
            coded.extend(of_batch);
        };
        match &self.side_by_side {
            Some(side_by_side) if batches.len() > 1 => {
                let (tensors, failed) = (sums.len(), AtomicBool::new(false));
                let of_one = |number: usize| {
                    // What follows a failure is for nothing.
                    if failed.load(Ordering::Relaxed) {
                        return Ok((None, Vec::new()));
                    }
                    let mut own = vec![None; tensors];
                    let done = of_batch(number, &mut own).map(|done| (done, own));
                    failed.fetch_or(done.is_err(), Ordering::Relaxed);
                    done
                };
                let mut first_failure = Ok(());
                side_by_side.each(batches.len(), of_one, |number, result| match result {
                    Ok((done, own)) => {
                        collect(number, done);
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
                for number in 0..batches.len() {
                    collect(number, of_batch(number, &mut sums)?);
                }
            }
        }
        let weighted = losses.iter().zip(&self.tables).filter_map(|(loss, table)| Some((*loss)? * table.loss_weight));
        let loss = weighted.sum::<f64>() + alignment.unwrap_or(0.0) * self.alignment_weight;
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
        Ok((sums, StepReport { loss, losses, alignment, grad_norm, clip_factor, supervised, codebook: None }))
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// As [`Stepper::gradients`]; nothing has moved then.
    pub fn step(&mut self, model: &Janus, step: u64, learning_rate: f64, batches: &[TableBatch]) -> Result<StepReport> {
        let mut coded = Vec::new();
        let (gradients, mut report) = self.gradients_and_codes(model, step, batches, &mut coded)?;
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
        if let Some(codebook) = &mut self.codebook {
            report.codebook = Some(codebook.stepped(step, &coded, &self.trainables)?);
        }
        Ok(report)
    }
}

/// One tensor's gradient of one batch.
struct Gradient {
    values: Vec<f32>,
    /// The first value that is no number.
    stray: Option<f32>,
}

impl Gradient {
    fn of(tensor: Tensor) -> Result<Self> {
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        let stray = values.iter().copied().find(|value| !value.is_finite());
        Ok(Self { values, stray })
    }
}

fn add(sum: &mut Option<Vec<f32>>, gradient: Vec<f32>) {
    match sum {
        Some(sum) => sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g),
        None => *sum = Some(gradient),
    }
}
