//! The batches of a step one by one: forward, backward, and what is read of them.

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use janus_core::Janus;
use janus_core::ops::on_pool;
use janus_core::pass::{NoiseKey, Pass};
use rayon::prelude::*;

use super::{StepReport, Stepper, TableBatch, add};
use crate::error::Result;
use crate::heads::Heads;
use crate::recipe::Accumulation;
use crate::tasks::Coded;
use crate::train::{TrainError, signals};

/// A step's way through its batches.
pub(super) struct Walk<'a> {
    stepper: &'a Stepper,
    model: &'a Janus,
    step: u64,
    batches: &'a [TableBatch],
    heads: Heads,
    log_temperature: Option<Tensor>,
    /// Supervised tokens of each table.
    pub(super) supervised: Vec<usize>,
    /// Batches of each table.
    counts: Vec<usize>,
    /// Batches whose mid features are aligned.
    alignments: usize,
}

/// A batch's forward pass, where the model computes.
pub(super) struct Forwarded {
    /// Summed loss of its rows, a scalar in f32, and what that counts.
    pub(super) loss: (Tensor, f64),
    /// The same of the alignment.
    pub(super) alignment: Option<(Tensor, f64)>,
    pub(super) coded: Option<Coded>,
    /// What the gradients are of.
    pub(super) total: Tensor,
}

/// What a batch gave beside its gradients.
pub(super) struct OfBatch {
    /// Its share of its table's loss.
    pub(super) loss: f64,
    pub(super) alignment: Option<f64>,
    pub(super) coded: Option<Coded>,
}

impl<'a> Walk<'a> {
    /// # Errors
    /// The tensor engine's.
    pub(super) fn new(stepper: &'a Stepper, model: &'a Janus, step: u64, batches: &'a [TableBatch]) -> Result<Self> {
        stepper.trainables.renew(model)?;
        let mut supervised = vec![0usize; stepper.tables.len()];
        let mut counts = vec![0usize; stepper.tables.len()];
        for batch in batches {
            supervised[batch.table] += batch.batch.supervised();
            counts[batch.table] += 1;
        }
        Ok(Self {
            stepper,
            model,
            step,
            batches,
            heads: stepper.trainables.heads(),
            log_temperature: stepper.trainables.log_temperature(),
            supervised,
            counts,
            alignments: batches.iter().filter(|batch| batch.aligned.is_some()).count(),
        })
    }

    /// Computes a batch's losses; `None` where nothing of it is supervised.
    ///
    /// # Errors
    /// A batch that does not fit the model; a signal, but before the first batch.
    pub(super) fn forward(&self, number: usize) -> Result<Option<Forwarded>> {
        let Self { stepper, model, .. } = self;
        let TableBatch { table, batch, aligned } = &self.batches[number];
        if number > 0 {
            signals::check()?;
        }
        let noise = NoiseKey { seed: stepper.seed, step: self.step, micro_batch: number as u64 };
        let mut pass = Pass::training(noise);
        pass.recompute = stepper.recompute;
        let own = batch.supervised();
        if own == 0 {
            return Ok(None);
        }
        let share = match stepper.accumulation {
            // Pairs are held against those of their batch alone: more batches are no larger one.
            _ if batch.is_contrastive() => 1.0 / (own * self.counts[*table]) as f64,
            Accumulation::Tokens => 1.0 / self.supervised[*table] as f64,
            Accumulation::Mean => 1.0 / (own * self.counts[*table]) as f64,
        };
        let loss = batch.loss(model, &pass, &self.heads)?;
        let mut total = (&loss.sum * (share * stepper.tables[*table].loss_weight))?;
        let mut alignment = None;
        if let (Some(aligned), Some(log_temperature)) = (aligned, &self.log_temperature) {
            // Held against those of their batch alone, as pairs of a contrastive task.
            let share = 1.0 / (aligned.len() * self.alignments) as f64;
            let contrast = aligned.loss(model, &pass, log_temperature)?;
            total = (total + (&contrast.sum * (share * stepper.alignment_weight))?)?;
            alignment = Some((contrast.sum.detach(), share));
        }
        Ok(Some(Forwarded { loss: (loss.sum.detach(), share), alignment, coded: loss.coded, total }))
    }

    /// The gradients of a forward pass, in the order of the tensors under training.
    ///
    /// # Errors
    /// The tensor engine's.
    pub(super) fn backward(&self, total: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut gradients: GradStore = on_pool(total.device(), || total.backward())?;
        let trainables = self.stepper.trainables.iter();
        Ok(trainables.map(|trainable| gradients.remove(trainable.var.as_tensor())).collect())
    }

    /// Adds a batch's gradients to sums on the processor.
    ///
    /// # Errors
    /// As [`Walk::forward`]; a loss or a gradient that is not finite, with the number of the batch.
    pub(super) fn added(&self, number: usize, sums: &mut [Option<Vec<f32>>]) -> Result<Option<OfBatch>> {
        let Some(forwarded) = self.forward(number)? else { return Ok(None) };
        let read = |(sum, share): &(Tensor, f64), name: &str| -> Result<f64> {
            let value = f64::from(sum.to_scalar::<f32>()?) * share;
            match value.is_finite() {
                true => Ok(value),
                false => Err(self.not_finite(number, format!("{name} is {value}")).into()),
            }
        };
        let loss = read(&forwarded.loss, "the loss")?;
        let alignment = forwarded.alignment.as_ref().map(|sum| read(sum, "the loss of the alignment")).transpose()?;
        let taken = self.backward(&forwarded.total)?;
        let taken: Vec<Result<Option<Gradient>>> =
            taken.into_par_iter().map(|tensor| tensor.map(Gradient::of).transpose()).collect();
        for ((sum, trainable), gradient) in sums.iter_mut().zip(self.stepper.trainables.iter()).zip(taken) {
            let Some(Gradient { values, stray }) = gradient? else { continue };
            if let Some(value) = stray {
                let what = format!("the gradient of `{}` has a {value}", trainable.name);
                return Err(self.not_finite(number, what).into());
            }
            add(sum, values);
        }
        Ok(Some(OfBatch { loss, alignment, coded: forwarded.coded }))
    }

    fn not_finite(&self, number: usize, what: String) -> TrainError {
        let table = self.batches.get(number).and_then(|batch| self.stepper.tables.get(batch.table));
        TrainError::NotFinite {
            table: table.map(|table| table.name.clone()).unwrap_or_default(),
            what,
            step: self.stepper.first_step.saturating_add(self.step),
            batch: Some(number),
        }
    }
}

/// One tensor's gradient of one batch.
struct Gradient {
    values: Vec<f32>,
    /// The first value that is not finite.
    stray: Option<f32>,
}

impl Gradient {
    fn of(tensor: Tensor) -> Result<Self> {
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        let stray = values.iter().copied().find(|value| !value.is_finite());
        Ok(Self { values, stray })
    }
}

/// Losses of a step's batches so far.
pub(super) struct Totals {
    losses: Vec<Option<f64>>,
    alignment: Option<f64>,
}

impl Totals {
    pub(super) fn new(stepper: &Stepper) -> Self {
        Self { losses: vec![None; stepper.tables.len()], alignment: None }
    }

    /// Takes in what a batch of a table gave.
    pub(super) fn add(&mut self, table: usize, done: Option<OfBatch>, coded: &mut Vec<Coded>) {
        let Some(OfBatch { loss, alignment, coded: of_batch }) = done else { return };
        *self.losses[table].get_or_insert(0.0) += loss;
        if let Some(value) = alignment {
            *self.alignment.get_or_insert(0.0) += value;
        }
        coded.extend(of_batch);
    }

    pub(super) fn report(
        self,
        stepper: &Stepper,
        supervised: Vec<usize>,
        grad_norm: f64,
        clip_factor: f64,
    ) -> StepReport {
        let Self { losses, alignment } = self;
        let of_tables = losses.iter().zip(&stepper.tables);
        let weighted = of_tables.filter_map(|(loss, table)| Some((*loss)? * table.loss_weight));
        let loss = weighted.sum::<f64>() + alignment.unwrap_or(0.0) * stepper.alignment_weight;
        StepReport { loss, losses, alignment, grad_norm, clip_factor, supervised, codebook: None }
    }
}
