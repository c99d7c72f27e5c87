//! The run: everything that can be known is checked, then the run folder appears, then the steps.
//!
//! After each step come, where they are due, the evaluation and then the checkpoint, which knows of it. A run that is gone on
//! with starts at that same place: an evaluation that was due and not done is done first. The last step always leaves a
//! checkpoint, before the final evaluation and the files of the adapter ([`kept`]).

mod beginning;
mod directions;
mod kept;
mod outcome;
mod prepared;
mod start;
mod watched;

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use serde_json::json;

use super::checkpoint::{self, Checkpoint, State};
use super::coverage::check_coverage;
use super::ending::Ending;
use super::error::resume_command;
use super::feeder::{Feeder, stage_seed};
use super::files::RunFiles;
use super::folder::RunFolder;
use super::guard::{Best, Progress, require_metric};
use super::identity::{RunIdentity, is_of_before};
use super::metrics::{self, StepLine, peak_rss_bytes, rss_bytes};
use super::optimizer::AdamWConfig;
use super::plan::{compute_type, parts};
use super::schedule::LearningRate;
use super::stages::{self, Opened, Stage};
use super::step::{StepReport, Stepper, TableLoss};
use super::tables::RecipeTable;
use super::trainable::Trainables;
use super::{TrainError, signals};
use crate::adapter::Note;
use crate::allocator;
use crate::cache::CacheSettings;
use crate::error::{Error, Result};
use crate::eval::{Metrics, Settings, evaluate};
use crate::fingerprint::PendingFingerprint;
use crate::heads::Heads;
use crate::recipe::{Recipe, Schedule, to_toml};
use crate::report::Sight;
use crate::report::samples::Stand;
use crate::status::Status;

use outcome::instead_of_steps;
pub use outcome::{Finished, finished};
pub use prepared::{Prepared, look, prepare, refused_now};

/// What a run came to.
#[derive(Debug)]
pub struct Summary {
    /// The run folder.
    pub folder: PathBuf,
    /// Optimiser steps.
    pub steps: u64,
    /// Why it ended there, and of which step the adapter is.
    pub ending: Ending,
    /// Steps that an earlier process had done and saved.
    pub resumed_from: Option<u64>,
    /// Steps that moved nothing because a loss or gradient was no number.
    pub skipped_steps: u64,
    /// The evaluation that the adapter is of, where the recipe stops by one.
    pub best: Option<Best>,
    /// Metrics without the adapter.
    pub before: Metrics,
    /// Metrics with it.
    pub after: Metrics,
    /// Largest resident memory.
    pub peak_rss_bytes: u64,
    /// Seconds from opening the base to the first pass through the model.
    pub opening_seconds: f64,
    /// Seconds of the steps alone.
    pub training_seconds: f64,
    /// Seconds of them in which steps waited for rows to be read and decoded.
    pub wait_seconds: f64,
}

/// Runs a recipe on `device` into a folder, from the first step, or the last checkpoint of an earlier process, to the saved
/// adapter.
///
/// # Errors
/// Before the first step: anything wrong with the input, or too little memory, and nothing is written. Later: what the step
/// met, the last checkpoint staying as it is; [`TrainError::Stopped`] after [`signals::listen`] and a signal, with a
/// checkpoint of what was done.
pub fn train(prepared: &Prepared, mut folder: RunFolder, device: &Device, status: &dyn Status) -> Result<Summary> {
    let Prepared { recipe, base, tables, plan, stages, .. } = prepared;
    if device.is_cpu() {
        plan.require_room()?;
    }
    let cache_settings = CacheSettings::from_environment()?;
    let fingerprint = base.start_fingerprint()?;
    let mut identity = RunIdentity::new(recipe, plan, tables)?;
    let resumed = match folder.is_resumed() {
        true => checkpoint::newest(folder.directory(), status)?,
        false => None,
    };
    if let Some(checkpoint) = &resumed {
        identity.base = fingerprint.wait(status)?.to_owned();
        identity.start.clone_from(&checkpoint.state.identity.start);
        if let (Some(from), Some(was)) = (&recipe.adapter.start_from, &identity.start) {
            start::tell_changed(from, was, status);
        }
        require_same(checkpoint, &identity, prepared, &folder)?;
        let unknown = checkpoint.state.identity.unknown_rows();
        if !unknown.is_empty() {
            status.warn(&format!(
                "an earlier version wrote the checkpoint, which kept no digests of rows: that those of `{}` are what they were is \
                 known by the length and the footer of their files alone",
                unknown.join("`, `")
            ));
        }
        let claimed = checkpoint.state.metrics_bytes;
        metrics::check(folder.directory(), claimed).map_err(|problem| checkpoint.unusable(problem))?;
    }
    // What is kept of images is known by it.
    let uses_images = stages.iter().any(|stage| {
        let parts = parts(&stage.recipe, &stage.tables);
        parts.vision || parts.generation
    });
    if cache_settings.is_on() && uses_images {
        base.cache().keep(fingerprint.wait(status)?, &cache_settings);
    }
    let mut adapter = match &resumed {
        Some(checkpoint) => checkpoint.adapter(&stages::whole_spec(recipe, base, stages), base)?,
        None => {
            let (adapter, start) = beginning::begin(prepared, device, status)?;
            identity.start = start;
            adapter
        }
    };
    let mut note = Note::new();
    note.recipe = Some(to_toml(recipe));
    adapter.note = Some(note);

    let step = resumed.as_ref().map_or(0, |checkpoint| checkpoint.state.step);
    // A stage that is over has nothing left to go on with.
    let number = stages.iter().position(|stage| step < stage.end()).unwrap_or(stages.len() - 1);
    for (number, stage) in stages.iter().enumerate().filter(|(other, _)| *other != number && step == 0) {
        let opened = stage.open(number, base.clone(), adapter.clone(), device, status)?;
        check_coverage(stage, &opened, status)?;
    }
    let known = if stages.len() > 1 { fingerprint.wait(status)? } else { "" };
    let stage_base = stages::with_copies(base, known, &adapter, &cache_settings)?;
    let mut opened = stages[number].open(number, stage_base, adapter, device, status)?;
    let opening_seconds = prepared.started.elapsed().as_secs_f64();
    check_coverage(&stages[number], &opened, status)?;

    let mut feeder = Feeder::new(&stages[number].recipe, &stages[number].tables, number)?;
    let mut saved_step = None;
    let (step, progress, metrics_bytes) = match resumed {
        Some(checkpoint) => {
            // At the end of a stage before, what is kept beside the adapter is that stage's.
            if step > stages[number].first_step || number == 0 {
                checkpoint.restore(&mut opened.stepper, base)?;
                feeder.restore(&checkpoint.state.feeder).map_err(|problem| checkpoint.unusable(problem))?;
            }
            let State { step, progress, metrics_bytes, .. } = checkpoint.state;
            status.note(&format!("going on after step {step} of {}", plan.steps));
            saved_step = Some(step);
            (step, progress, metrics_bytes)
        }
        None => {
            let before = match stages.len() {
                // Any other adapter is the base at first.
                1 if recipe.adapter.start_from.is_none() => evaluation(prepared, &stages[0], &opened, status)?,
                _ => whole_evaluation(prepared, device, status)?,
            };
            if let Some(rule) = &recipe.train.early_stopping {
                require_metric(rule, &before)?;
            }
            (0, Progress::new(before), 0)
        }
    };
    folder.claim()?;
    if saved_step.is_some() && step < plan.steps {
        folder.reopen()?;
    }
    folder.remarks().iter().for_each(|remark| status.warn(remark));
    let (files, whole) = RunFiles::open(folder.directory(), recipe, tables, metrics_bytes)?;
    if !whole {
        status.warn(
            "`metrics.jsonl` was shorter than when the checkpoint was written: lines of earlier steps are missing",
        );
    }
    let counts_as_before = files.last_epoch.is_some_and(|(step, epoch)| is_counted_as_before(stages, step, epoch));
    if counts_as_before && step < plan.steps {
        status.note("epochs are counted on as the run began to, which an earlier version did otherwise than new runs");
    }
    let sight = Sight::open(folder.directory(), recipe, plan, tables, step, device, status)?;
    let mut run = Run {
        prepared,
        stage: &stages[number],
        opened,
        device,
        cache_settings,
        status,
        folder,
        identity,
        fingerprint,
        feeder,
        files,
        sight,
        step,
        progress,
        saved_step,
        evaluated: None,
        counts_as_before,
        opening_seconds,
    };
    run.whole(number, saved_step)
}

/// Refuses to go on with a checkpoint of another run, or of one that read its rows otherwise.
fn require_same(
    checkpoint: &Checkpoint,
    identity: &RunIdentity,
    prepared: &Prepared,
    folder: &RunFolder,
) -> Result<()> {
    let Prepared { recipe, tables, .. } = prepared;
    let State { identity: was, step, .. } = &checkpoint.state;
    let mut differences = was.differences(identity, recipe.train.schedule, *step);
    let mut rows = was.rows_of_before(identity);
    if is_of_before(&was.recipe) {
        let read = tables.iter().filter_map(|table| Some((table, table.task.read_otherwise_before()?)));
        rows.extend(read.map(|(table, what)| format!("`{}`: {what}", table.section.name)));
    }
    let began = |start: bool| if start { "from an adapter" } else { "from nothing" };
    if was.start.is_some() != recipe.adapter.start_from.is_some() {
        let (then, now) = (began(was.start.is_some()), began(recipe.adapter.start_from.is_some()));
        differences.push(format!("`adapter.start_from`: it began {then} and now would {now}"));
    }
    if !rows.is_empty() {
        let folder = folder.path().to_path_buf();
        return Err(TrainError::OfBefore { folder, differences: rows, refused: None }.into());
    }
    let other_steps = was.steps != identity.steps;
    if other_steps && checkpoint.state.progress.stopped_early {
        differences.push(format!("early stopping ended it after step {step}"));
    }
    if let Some(changed) = was.changed_rows(identity) {
        if differences.is_empty() {
            return Err(TrainError::ChangedRows { folder: folder.path().to_path_buf(), changed }.into());
        }
        differences.push(changed.to_string());
    }
    if differences.is_empty() {
        return Ok(());
    }
    let is_spread = other_steps && recipe.train.schedule != Schedule::Constant;
    let instead = if is_spread { instead_of_steps(recipe, identity.steps) } else { Vec::new() };
    Err(TrainError::OtherRun { folder: folder.path().to_path_buf(), differences, instead }.into())
}

/// A run under way.
struct Run<'a> {
    prepared: &'a Prepared,
    /// The stage that it is in.
    stage: &'a Stage,
    opened: Opened,
    device: &'a Device,
    cache_settings: CacheSettings,
    status: &'a dyn Status,
    folder: RunFolder,
    identity: RunIdentity,
    fingerprint: PendingFingerprint,
    feeder: Feeder,
    files: RunFiles,
    sight: Sight,
    /// Steps done.
    step: u64,
    progress: Progress,
    /// The step of the newest checkpoint.
    saved_step: Option<u64>,
    /// The newest evaluation of this process, and the step it was made after.
    evaluated: Option<(u64, Metrics)>,
    /// Whether `epoch` goes on in the way of an earlier version, which the lines before have.
    counts_as_before: bool,
    opening_seconds: f64,
}

/// Whether the `epoch` of a step's line was counted in the way of an earlier version, where that makes another number.
fn is_counted_as_before(stages: &[Stage], step: u64, epoch: f64) -> bool {
    let Some(stage) = stages.iter().find(|stage| stage.first_step < step && step <= stage.end()) else { return false };
    let in_stage = (step - stage.first_step) as f64;
    let is = |steps_per_epoch: f64| (in_stage / steps_per_epoch - epoch).abs() <= 1e-9 * epoch.abs();
    is(stage.plan.steps_per_epoch_of_before()) && !is(stage.plan.steps_per_epoch())
}

impl Run<'_> {
    /// Everything from here to the summary. On a signal, and there alone, what was done is saved before leaving.
    fn whole(&mut self, first: usize, resumed_from: Option<u64>) -> Result<Summary> {
        let done = self.stages(first).and_then(|()| self.finish(resumed_from));
        match done {
            Err(Error::Train(TrainError::Stopped { signal, .. })) => {
                if self.saved_step != Some(self.step) {
                    self.save()?;
                }
                let folder = checkpoint::folder_of(self.folder.path(), self.step);
                Err(TrainError::Stopped { signal, checkpoint: Some((self.step, folder)) }.into())
            }
            Err(error) => {
                if let Some(step) = self.saved_step {
                    let command = resume_command(self.folder.path());
                    self.status.warn(&format!("the run ends; `{command}` goes on from step {step}"));
                }
                Err(error)
            }
            done => done,
        }
    }

    /// The stages from one of them on.
    fn stages(&mut self, first: usize) -> Result<()> {
        let all = self.prepared.stages.len();
        for number in first..all {
            if number > first {
                self.enter(number)?;
            }
            if let Some(name) = &self.stage.name {
                self.status.note(&format!("stage {} of {all}: {name}, up to step {}", number + 1, self.stage.end()));
            }
            self.steps(number + 1 < all)?;
        }
        Ok(())
    }

    /// Goes over into another stage with what the one before has trained.
    fn enter(&mut self, number: usize) -> Result<()> {
        let Prepared { base, stages, .. } = self.prepared;
        // The next model is opened beside this one, not beside its matrices, too.
        allocator::give_back();
        let adapter = self.opened.stepper.trainables.adapter()?;
        self.opened.base.verify(&self.opened.model, self.status)?;
        self.stage = &stages[number];
        let fingerprint = self.fingerprint.wait(self.status)?;
        let stage_base = stages::with_copies(base, fingerprint, &adapter, &self.cache_settings)?;
        self.opened = self.stage.open(number, stage_base, adapter, self.device, self.status)?;
        self.feeder = Feeder::new(&self.stage.recipe, &self.stage.tables, number)?;
        allocator::give_back();
        Ok(())
    }

    /// The steps of the stage; `goes_on` where another one follows.
    fn steps(&mut self, goes_on: bool) -> Result<()> {
        let (plan, base, stage) = (&self.prepared.plan, self.opened.base.clone(), self.stage);
        let train = &stage.recipe.train;
        if self.saved_step.is_none() && !self.progress.before.is_empty() {
            self.files.metrics.write(&json!({ "step": 0, "eval": { "before": self.progress.before } }))?;
            self.files.evaluated(0, &self.progress.before);
            self.sight.evaluated(0, false, &self.progress.before, self.status);
        }
        let rate = LearningRate {
            peak: train.learning_rate,
            schedule: train.schedule,
            warmup_steps: train.warmup_steps,
            steps: stage.plan.steps,
        };
        base.cache().warn(self.status);
        let live = self.status.training(plan.steps, self.step, plan.predicted_peak_bytes);
        loop {
            signals::check()?;
            let clock = Instant::now();
            let step = self.step;
            let due = |every: u64| every > 0 && step.is_multiple_of(every);
            let ended = self.step >= stage.end();
            if ended {
                self.feeder.stop_reading_ahead();
            }
            let (eval_due, save_due) = (due(train.eval_every) && !ended, due(train.checkpoint_every) || ended);
            let mut best = false;
            let eval_due = eval_due || (ended && goes_on);
            if eval_due && self.step > self.progress.evaluated_step {
                best = self.evaluate()?;
            }
            let ended = ended || self.progress.stopped_early;
            if due(train.sample_every) && !ended && self.progress.sampled_step != Some(self.step) {
                self.sample(self.step)?;
            }
            self.progress.training_seconds += clock.elapsed().as_secs_f64();
            if self.step > 0 && (save_due || best || ended) && self.saved_step != Some(self.step) {
                self.save()?;
            }
            if ended {
                // Also where early stopping ended it.
                self.feeder.stop_reading_ahead();
                break;
            }
            let clock = Instant::now();
            live.stepped(&self.one_step(&rate)?);
            self.progress.training_seconds += clock.elapsed().as_secs_f64();
        }
        live.finish();
        Ok(())
    }

    /// One step; gives its line in the metrics.
    fn one_step(&mut self, rate: &LearningRate) -> Result<StepLine> {
        let Stage { tables, plan, first_step, name, .. } = self.stage;
        let (step, clock) = (self.step, Instant::now());
        let in_stage = step - first_step;
        let learning_rate = rate.at(in_stage);
        let began = self.feeder.state();
        let mut tokens = 0;
        let Opened { base, model, stepper } = &mut self.opened;
        let outcome = self.feeder.next(base, model).and_then(|(batches, counted)| {
            tokens = counted;
            stepper.step(model, in_stage, learning_rate, &batches)
        });
        let (report, skipped) = match outcome {
            Ok(report) => (report, None),
            Err(Error::Train(error @ TrainError::NotFinite { .. })) => {
                let skipped = self.skip(&error, &began)?;
                let none = vec![None; tables.len()];
                let loss = f64::NAN;
                let nothing = StepReport {
                    loss,
                    losses: none,
                    alignment: None,
                    grad_norm: loss,
                    clip_factor: 1.0,
                    supervised: Vec::new(),
                    codebook: None,
                };
                (nothing, Some(skipped))
            }
            Err(error) => {
                if matches!(error, Error::Train(TrainError::Stopped { .. })) {
                    // Left between two batches: the step starts over with the same rows.
                    self.feeder.restore(&began).map_err(|message| Error::Usage { message, hint: String::new() })?;
                }
                return Err(error);
            }
        };
        self.opened.base.cache().warn(self.status);
        let all_losses = self.stage.among_all(&report.losses, self.prepared.tables.len());
        let spikes = self.spikes(&all_losses, &began);
        let tokens_per_second = tokens as f64 / clock.elapsed().as_secs_f64();
        let losses = tables.iter().zip(&report.losses);
        let wait_seconds = self.feeder.take_wait_seconds();
        self.progress.wait_seconds += wait_seconds;
        let steps_per_epoch =
            if self.counts_as_before { plan.steps_per_epoch_of_before() } else { plan.steps_per_epoch() };
        let line = StepLine {
            step: step + 1,
            stage: name.clone(),
            epoch: (in_stage + 1) as f64 / steps_per_epoch,
            loss: report.loss,
            lr: learning_rate,
            grad_norm: report.grad_norm,
            tokens,
            tokens_per_second,
            wait_seconds,
            rss_bytes: rss_bytes(),
            peak_rss_bytes: peak_rss_bytes(),
            alignment: report.alignment,
            codes_alive: report.codebook.map(|codebook| codebook.alive),
            codes_revived: report.codebook.map(|codebook| codebook.revived),
            losses: losses.filter_map(|(table, loss)| Some((table.section.name.clone(), json!((*loss)?)))).collect(),
            skipped,
            spikes,
        };
        self.step += 1;
        self.files.stepped(self.step, &all_losses);
        self.files.metrics.write(&line)?;
        self.sight.stepped(&line, self.status);
        Ok(line)
    }

    /// Answers and pictures of some rows to evaluate, as the adapter stands, which is that of `step`.
    fn sample(&mut self, step: u64) -> Result<()> {
        allocator::give_back();
        let Self { sight, files, opened, stage, status, feeder, .. } = self;
        let Opened { base, model, stepper } = opened;
        let paused = feeder.pause();
        let is_over = stepper.trainables.is_empty();
        let is_own = |name: &str| is_over || stage.tables.iter().any(|table| table.section.name == name);
        let sample = |heads: &Heads| {
            let stand = Stand { model, base, heads, step };
            sight.sample(&stand, &is_own, &mut files.metrics, *status)
        };
        stepper.trainables.untracked(model, sample)?;
        drop(paused);
        allocator::give_back();
        self.progress.sampled_step = Some(self.step);
        Ok(())
    }

    fn evaluation(&self) -> Result<Metrics> {
        evaluation(self.prepared, self.stage, &self.opened, self.status)
    }

    /// An evaluation on the way; whether it is the best so far.
    fn evaluate(&mut self) -> Result<bool> {
        let paused = self.feeder.pause();
        let now = self.evaluation()?;
        drop(paused);
        let mut line = json!({ "step": self.step, "eval": { "after": now } });
        if let Some(name) = &self.stage.name {
            line["stage"] = json!(name);
        }
        self.files.metrics.write(&line)?;
        self.files.evaluated(self.step, &now);
        self.sight.evaluated(self.step, true, &now, self.status);
        self.progress.evaluated_step = self.step;
        let rule = self.prepared.recipe.train.early_stopping.as_ref();
        let is_best = rule.is_some_and(|rule| self.progress.judge(rule, self.step, &now));
        self.evaluated = Some((self.step, now));
        Ok(is_best)
    }
}

/// The metrics of a stage's tables as the adapter stands, with nothing kept for a backward.
fn evaluation(prepared: &Prepared, stage: &Stage, opened: &Opened, status: &dyn Status) -> Result<Metrics> {
    allocator::give_back();
    let Opened { base, model, stepper } = opened;
    // After all stages, of all of them.
    let tables = if stepper.trainables.is_empty() { &prepared.tables } else { &stage.tables };
    let settings = Settings { batch_size: stage.recipe.train.batch_size as usize, ..Settings::default() };
    let evaluated =
        stepper.trainables.untracked(model, |heads| evaluate(model, base, heads, tables, &settings, status));
    // Matrices of an evaluation are of other sizes than those of a step.
    allocator::give_back();
    evaluated
}

/// The metrics of all tables before any stage.
fn whole_evaluation(prepared: &Prepared, device: &Device, status: &dyn Status) -> Result<Metrics> {
    let Prepared { recipe, base, tables, stages, .. } = prepared;
    allocator::give_back();
    let parts = stages::whole_parts(recipe, stages, tables);
    let model = base.model(compute_type(recipe), device, parts, status)?;
    let settings = Settings { batch_size: recipe.train.batch_size as usize, ..Settings::default() };
    evaluate(&model, base, &Heads::new(), tables, &settings, status)
}

/// What moves the tensors as the recipe says.
pub(super) fn stepper(recipe: &Recipe, tables: &[RecipeTable], trainables: Trainables, stage: usize) -> Stepper {
    let train = &recipe.train;
    let trainables = match recipe.dynamic() {
        Some(dynamic) => trainables.with_dynamic_rate(dynamic.learning_rate / train.learning_rate),
        None => trainables,
    };
    let config = AdamWConfig { betas: train.betas, eps: train.eps, weight_decay: train.weight_decay };
    let losses = tables
        .iter()
        .map(|table| TableLoss { name: table.section.name.clone(), loss_weight: table.section.loss_weight })
        .collect();
    let quantize_from = tables.iter().filter_map(|table| table.section.quantize_from).max().unwrap_or(0);
    let seed = stage_seed(recipe, stage);
    Stepper::new(trainables, config, losses, train.accumulation, train.clip_norm, seed)
        .with_quantize_from(quantize_from)
        .with_alignment_weight(recipe.mifs.as_ref().map_or(0.0, |mifs| mifs.weight))
}
