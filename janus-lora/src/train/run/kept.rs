//! What a run writes: its checkpoints, and at its end the adapter.

use serde_json::json;

use super::{Prepared, Run, Summary, stepper};
use crate::adapter::{Adapter, BaseNote};
use crate::error::Result;
use crate::report::facts::Left;
use crate::train::TrainError;
use crate::train::checkpoint::{self, State};
use crate::train::ending::Ending;
use crate::train::metrics::peak_rss_bytes;
use crate::train::plan::compute_type;
use crate::train::stages::{self, Opened};
use crate::train::trainable::Trainables;

impl Run<'_> {
    /// Writes a checkpoint of what is done, and removes those that are no longer kept.
    pub(super) fn save(&mut self) -> Result<()> {
        self.identity.base = self.fingerprint.wait(self.status)?.to_owned();
        let metrics_bytes = self.files.sync()?;
        let state =
            State::new(self.step, self.identity.clone(), self.feeder.state(), metrics_bytes, self.progress.clone());
        let adapter = self.adapter()?;
        checkpoint::write(self.folder.directory(), &state, &adapter, &self.opened.stepper)?;
        self.saved_step = Some(self.step);
        checkpoint::prune(self.folder.directory(), self.step, self.prepared.recipe.train.keep_checkpoints)?;
        self.sight.report(self.status);
        Ok(())
    }

    /// After the last of several stages: one model with all that any of them trained, in which nothing moves any more.
    fn gather(&mut self) -> Result<()> {
        let Prepared { recipe, base, tables, stages, .. } = self.prepared;
        let adapter = self.opened.stepper.trainables.adapter()?;
        let fingerprint = self.fingerprint.wait(self.status)?;
        let last = stages::with_copies(base, fingerprint, &adapter, &self.cache_settings)?;
        let parts = stages::whole_parts(recipe, stages, tables);
        let model = last.model(compute_type(recipe), self.device, parts, self.status)?;
        let trainables = Trainables::attach_some(&model, adapter, &|_| false)?;
        let stepper = stepper(recipe, &[], trainables, 0);
        self.opened = Opened { base: last, model, stepper };
        Ok(())
    }

    /// The adapter as it stands, with a note of its base: here at the latest the fingerprint has to be known.
    fn adapter(&self) -> Result<Adapter> {
        let mut adapter = self.opened.stepper.trainables.adapter()?;
        let fingerprint = self.fingerprint.wait(self.status)?.to_owned();
        let note = adapter.note.get_or_insert_default();
        note.base = Some(BaseNote { name: Some(self.prepared.base.name().to_owned()), fingerprint });
        Ok(adapter)
    }

    /// After the last step: the base is compared, the adapter evaluated and written, its weights last of all.
    pub(super) fn finish(&mut self, resumed_from: Option<u64>) -> Result<Summary> {
        let Prepared { recipe, base, stages, .. } = self.prepared;
        self.opened.base.verify(&self.opened.model, self.status)?;
        if stages.len() > 1 {
            self.gather()?;
        }
        // What was just evaluated is shown already; after several stages all tables are, not those of the last alone.
        let known = self.evaluated.take().filter(|(step, _)| *step == self.step && stages.len() == 1);
        let is_shown = known.is_some();
        let mut after = match known {
            Some((_, after)) => after,
            None => self.evaluation()?,
        };
        let before = self.progress.before.clone();
        if !after.is_empty() {
            self.files.metrics.write(&json!({ "step": self.step, "eval": { "before": before, "after": after } }))?;
        }
        if !after.is_empty() && !is_shown {
            self.files.evaluated(self.step, &after);
            self.sight.evaluated(self.step, true, &after, self.status);
        }
        let (planned, rule) = (self.prepared.plan.steps, recipe.train.early_stopping.as_ref());
        let mut best = None;
        if let Some(rule) = rule {
            let evaluated = self.progress.evaluated_step == self.step;
            if !evaluated && self.progress.judge(rule, self.step, &after) {
                self.status.note(&format!("the last evaluation is the best by `{}`", rule.metric));
            }
            best = self.progress.best.clone();
        }
        let mut ending = Ending::new(self.step, planned, rule, best.as_ref());
        let earlier = best.as_ref().filter(|best| best.step != self.step);
        if let Some((step, metrics)) = earlier.map(|best| (best.step, best.metrics.clone())) {
            match checkpoint::open(self.folder.directory(), step) {
                Ok(checkpoint) => {
                    checkpoint.restore_adapter(&self.opened.stepper, base)?;
                    after = metrics;
                }
                Err(stopped @ TrainError::Stopped { .. }) => return Err(stopped.into()),
                Err(error) => {
                    (best, ending) = (None, ending.without_best());
                    self.status.warn(&format!("{error}; the adapter is that of the last step, not the best one"));
                }
            }
        }
        self.sample(ending.step)?;
        self.opened.base.cache().tell(self.status);
        let mut adapter = self.adapter()?;
        // Of the alignment nothing is needed any more.
        adapter.alignment = None;
        let mut metrics = json!(ending);
        metrics["before"] = json!(before);
        metrics["after"] = json!(after);
        if let Some(best) = &best {
            metrics["best_step"] = json!(best.step);
        }
        if let Some(note) = &mut adapter.note {
            note.metrics = Some(metrics);
        }
        self.files.finish(ending.step)?;
        let peak_rss_bytes = peak_rss_bytes();
        let left = Left { ending: ending.clone(), before: before.clone(), after: after.clone() };
        self.sight.finish(left, peak_rss_bytes, self.status)?;
        adapter.write(self.folder.directory())?;
        Ok(Summary {
            folder: self.folder.path().to_path_buf(),
            steps: self.step,
            ending,
            resumed_from,
            skipped_steps: self.progress.skipped_steps,
            best,
            before,
            after,
            peak_rss_bytes,
            opening_seconds: self.opening_seconds,
            training_seconds: self.progress.training_seconds,
            wait_seconds: self.progress.wait_seconds,
        })
    }
}
