//! Steps that moved nothing and losses that jumped, told with their rows.

use super::Run;
use crate::culprit::blame_base;
use crate::data::RowId;
use crate::error::Result;
use crate::train::TrainError;
use crate::train::error::rows_listed;
use crate::train::feeder::FeederState;
use crate::train::guard::Spike;
use crate::train::metrics::SkippedStep;

impl Run<'_> {
    /// Counts a step that moved nothing, and tells of it.
    pub(super) fn skip(&mut self, error: &TrainError, began: &FeederState) -> Result<SkippedStep> {
        let allowed = self.prepared.recipe.train.max_skipped_steps;
        let number = if let TrainError::NotFinite { batch, .. } = error { *batch } else { None };
        let batches = self.feeder.rows_of_step(began).into_iter().enumerate();
        let of_batch = batches.filter(|(batch, _)| number.is_none_or(|number| *batch == number));
        let rows: Vec<RowId> = of_batch.flat_map(|(_, (_, rows))| rows).collect();
        self.progress.skipped_steps += 1;
        let (skipped, reason) = (self.progress.skipped_steps, error.to_string());
        if skipped > allowed {
            let error = TrainError::TooManySkipped { skipped, allowed, reason, rows }.into();
            return Err(blame_base(error, &self.opened.base));
        }
        self.status
            .warn(&format!("{reason}; the step is skipped ({skipped} of at most {allowed}): {}", rows_listed(&rows)));
        Ok(SkippedStep { reason, rows: rows.iter().map(RowId::to_string).collect() })
    }

    /// Losses far above what was usual, told with their rows.
    pub(super) fn spikes(&mut self, losses: &[Option<f64>], began: &FeederState) -> Vec<Spike> {
        let found = self.progress.watch.observe(losses);
        if found.is_empty() {
            return Vec::new();
        }
        let batches = self.feeder.rows_of_step(began);
        let spike = |(number, loss, mean): (usize, f64, f64)| {
            let own = batches.iter().filter(|(table, _)| self.stage.numbers.get(*table) == Some(&number));
            let rows: Vec<RowId> = own.flat_map(|(_, rows)| rows.iter().cloned()).collect();
            let table = self.prepared.tables[number].section.name.clone();
            let (step, listed) = (self.step + 1, rows_listed(&rows));
            self.status
                .warn(&format!("step {step}: the loss of `{table}` is {loss:.4} where {mean:.4} was usual: {listed}"));
            Spike { number, table, loss, mean, rows: rows.iter().map(RowId::to_string).collect() }
        };
        found.into_iter().map(spike).collect()
    }
}
