//! From streams of samples to the batches of each step.

use std::sync::MutexGuard;

use janus_core::{Janus, noise};
use serde::{Deserialize, Serialize};

use super::mixture::Mixer;
use super::prefetch::{row_threads, rows_ahead};
use super::signals;
use super::step::TableBatch;
use super::tables::{RecipeTable, SampleState, SampleStream};
use crate::base::Base;
use crate::data::RowId;
use crate::error::Result;
use crate::mifs::Aligned;
use crate::recipe::Recipe;
use crate::tasks::Batch;

/// Which rows come next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeederState {
    /// Rows given of each table, as the mixture counts them.
    pub given: Vec<u64>,
    /// The place in each table.
    pub streams: Vec<SampleState>,
}

/// The seed of a stage's rows and noise; of the first, and of a run without stages, the recipe's own.
pub(super) fn stage_seed(recipe: &Recipe, stage: usize) -> u64 {
    if stage == 0 { recipe.train.seed } else { noise::combine(recipe.train.seed, stage as u64) }
}

/// Hands out the batches of each step.
#[derive(Debug)]
pub(super) struct Feeder {
    mixer: Mixer,
    streams: Vec<SampleStream>,
    batch_size: usize,
    accumulation: u64,
    /// Whether mid features are aligned.
    aligns: bool,
}

impl Feeder {
    /// For the stage of this number, whose rows come in an order of its own.
    pub(super) fn new(recipe: &Recipe, tables: &[RecipeTable], stage: usize) -> Result<Self> {
        let weights: Vec<f64> = tables.iter().map(|table| table.section.weight).collect();
        let rows_ahead = rows_ahead(recipe);
        let seed = stage_seed(recipe, stage);
        let stream = |table| {
            let stream = SampleStream::new(table, seed, recipe.train.shuffle)?;
            Ok(stream.with_rows_ahead(rows_ahead, row_threads()))
        };
        Ok(Self {
            mixer: Mixer::new(recipe.train.mixture, &weights),
            streams: tables.iter().map(stream).collect::<Result<_>>()?,
            batch_size: recipe.train.batch_size as usize,
            accumulation: recipe.train.grad_accumulation,
            aligns: recipe.mifs.is_some(),
        })
    }

    /// Seconds that were spent waiting for rows since the last call.
    pub(super) fn take_wait_seconds(&mut self) -> f64 {
        self.streams.iter_mut().map(|stream| stream.take_waited().as_secs_f64()).sum()
    }

    /// Lets the threads that read ahead rest while the guards live, so that what they decode is not beside what an evaluation
    /// holds.
    pub(super) fn pause(&self) -> Vec<MutexGuard<'_, bool>> {
        self.streams.iter().filter_map(SampleStream::pause).collect()
    }

    /// Ends the threads that read ahead, with what they have read: after the last step nobody takes it.
    pub(super) fn stop_reading_ahead(&mut self) {
        self.streams.iter_mut().for_each(SampleStream::stop_reading_ahead);
    }

    /// Where the next step begins.
    pub(super) fn state(&self) -> FeederState {
        let streams = self.streams.iter().map(SampleStream::state).collect();
        FeederState { given: self.mixer.given().to_vec(), streams }
    }

    /// Goes on from a place that [`Feeder::state`] gave; says what is wrong with it otherwise.
    pub(super) fn restore(&mut self, state: &FeederState) -> std::result::Result<(), String> {
        let counts: Vec<u64> = state.streams.iter().map(|stream| stream.count).collect();
        let counted = state.given.iter().all(|rows| *rows == 0) || counts == state.given;
        if counts.len() != self.streams.len() || !counted || !self.mixer.restore(&state.given) {
            return Err(format!("its rows are {:?} of the mixture and {counts:?} of the tables", state.given));
        }
        for (stream, state) in self.streams.iter_mut().zip(&state.streams) {
            stream.restore(*state).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// The batches of one step and the tokens in them.
    ///
    /// # Errors
    /// A row that cannot be read any more; a signal to stop between two batches. The place is somewhere inside the step then.
    pub(super) fn next(&mut self, base: &Base, model: &Janus) -> Result<(Vec<TableBatch>, u64)> {
        let (mut batches, mut tokens) = (Vec::new(), 0);
        for number in 0..self.accumulation {
            if number > 0 {
                signals::check()?;
            }
            for (table, rows) in self.mixer.next(self.batch_size).into_iter().enumerate() {
                if rows == 0 {
                    continue;
                }
                let stream = &mut self.streams[table];
                let samples = (0..rows).map(|_| stream.next(base, model)).collect::<Result<Vec<_>>>()?;
                tokens += samples.iter().map(|sample| sample.len() as u64).sum::<u64>();
                let aligned = if self.aligns { Aligned::of(base, model, &samples)? } else { None };
                batches.push(TableBatch { table, batch: Batch::collate(base, &samples)?, aligned });
            }
        }
        Ok((batches, tokens))
    }

    /// Table and rows of every batch of the step that began at `state`.
    pub(super) fn rows_of_step(&self, state: &FeederState) -> Vec<(usize, Vec<RowId>)> {
        let mut mixer = self.mixer.clone();
        let mut places = state.streams.clone();
        if !mixer.restore(&state.given) {
            return Vec::new();
        }
        // The rows of each table in their order, then cut into batches.
        let counts: Vec<Vec<usize>> = (0..self.accumulation).map(|_| mixer.next(self.batch_size)).collect();
        let ids: Vec<Vec<RowId>> = self
            .streams
            .iter()
            .zip(&mut places)
            .enumerate()
            .map(|(table, (stream, place))| {
                stream.row_ids(*place, counts.iter().filter_map(|counts| counts.get(table)).sum())
            })
            .collect();
        let mut ids: Vec<_> = ids.into_iter().map(Vec::into_iter).collect();
        let mut batches = Vec::new();
        for counts in &counts {
            for (table, rows) in counts.iter().enumerate().filter(|(_, rows)| **rows > 0) {
                batches.push((table, ids[table].by_ref().take(*rows).collect()));
            }
        }
        batches
    }
}
