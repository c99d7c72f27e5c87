//! The run: everything that can be known is checked, then the run folder appears, then the steps.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use fs_err as fs;
use janus_core::Janus;
use janus_core::output::{StagedFolder, require_new_folder, write_file};
use serde_json::json;

use super::TrainError;
use super::coverage::require_gradients;
use super::metrics::{MetricsFile, StepLine, peak_rss_bytes};
use super::mixture::Mixer;
use super::optimizer::AdamWConfig;
use super::plan::{Plan, compute_type, parts};
use super::plot::{Curve, loss_plot};
use super::schedule::LearningRate;
use super::step::{Stepper, TableBatch, TableLoss};
use super::tables::{RecipeTable, SampleStream, open_tables};
use super::trainable::Trainables;
use crate::adapter::{Adapter, BaseNote, Note};
use crate::base::Base;
use crate::cache::CacheSettings;
use crate::data::rejected::write_rejected;
use crate::error::Result;
use crate::eval::{Metrics, evaluate};
use crate::fingerprint::PendingFingerprint;
use crate::recipe::{Recipe, to_toml};
use crate::report::Sight;
use crate::status::Status;
use crate::tasks::Batch;

/// A recipe whose base and tables are open and whose run is worked out.
#[derive(Debug)]
pub struct Prepared {
    /// The recipe.
    pub recipe: Recipe,
    /// Its base.
    pub base: Base,
    /// Its tables.
    pub tables: Vec<RecipeTable>,
    /// What will be done.
    pub plan: Plan,
}

/// What a run came to.
#[derive(Debug)]
pub struct Summary {
    /// The run folder.
    pub folder: PathBuf,
    /// Optimiser steps.
    pub steps: u64,
    /// Metrics without the adapter.
    pub before: Metrics,
    /// Metrics with it.
    pub after: Metrics,
    /// Largest resident memory.
    pub peak_rss_bytes: u64,
    /// Seconds of the steps alone.
    pub training_seconds: f64,
}

/// Opens what a recipe names and works out its run. Writes nothing.
///
/// # Errors
/// Anything wrong with base, data or targets.
pub fn prepare(recipe: Recipe, status: &dyn Status) -> Result<Prepared> {
    let base = Base::open(&recipe.base.path, status)?;
    let tables = open_tables(&recipe, &base, status)?;
    let plan = Plan::new(&recipe, &base, &tables)?;
    Ok(Prepared { recipe, base, tables, plan })
}

/// Runs a recipe on `device`, from the first step to the saved adapter.
///
/// # Errors
/// Before the first step: anything wrong with the input, and nothing is written. Later: what the step met.
pub fn train(prepared: &Prepared, device: &Device, status: &dyn Status) -> Result<Summary> {
    let Prepared { recipe, base, tables, plan } = prepared;
    let folder = recipe.output.dir.as_path();
    require_new_folder(folder)?;
    let cache_settings = CacheSettings::from_environment()?;
    let model = base.model(compute_type(recipe), device, parts(tables), status)?;
    let fingerprint = base.start_fingerprint();
    let own_parts = parts(tables);
    if cache_settings.is_on() && (own_parts.vision || own_parts.generation) {
        // What is kept of images is known by it.
        base.cache().keep(fingerprint.wait(status)?, &cache_settings);
    }

    let read = |name: &str| Ok(base.checkpoint().read(name, DType::F32)?);
    let spec = plan.adapter_spec(recipe, base);
    let mut adapter = Adapter::new(base.config(), base.checkpoint().is_tied(), &spec, recipe.train.seed, &read)?;
    let mut note = Note::new();
    note.recipe = Some(to_toml(recipe));
    adapter.note = Some(note);
    let mut stepper = stepper(recipe, tables, Trainables::attach(&model, adapter)?).with_recompute(plan.recompute);
    check_coverage(recipe, base, tables, &model, &stepper)?;

    let mut files = RunFiles::create(folder, recipe, tables)?;
    let mut sight = Sight::open(folder, recipe, plan, tables, 0, device, status)?;
    let batch_size = recipe.train.batch_size as usize;
    let before = evaluate(&model, base, tables, batch_size, status)?;
    if !before.is_empty() {
        files.metrics.write(&json!({ "step": 0, "eval": { "before": before } }))?;
        files.evaluated(0, &before);
        sight.evaluated(0, false, &before, status);
    }
    sight.sample(0, &model, base, &mut files.metrics, status)?;

    let started = Instant::now();
    let mut feeder = Feeder::new(recipe, tables)?;
    let rate = LearningRate {
        peak: recipe.train.learning_rate,
        schedule: recipe.train.schedule,
        warmup_steps: recipe.train.warmup_steps,
        steps: plan.steps,
    };
    let epoch_rows = plan.tables.iter().zip(&plan.rows_per_step).map(|(table, rows)| table.rows as f64 / rows);
    let steps_per_epoch = epoch_rows.fold(1.0, f64::max);
    base.cache().warn(status);
    let live = status.training(plan.steps, 0, plan.predicted_peak_bytes);
    for step in 0..plan.steps {
        let clock = Instant::now();
        let (batches, tokens) = feeder.next(base, &model)?;
        let learning_rate = rate.at(step);
        let report = stepper.step(&model, step, learning_rate, &batches)?;
        base.cache().warn(status);
        let tokens_per_second = tokens as f64 / clock.elapsed().as_secs_f64();
        let losses = tables.iter().zip(&report.losses);
        let line = StepLine {
            step: step + 1,
            epoch: (step + 1) as f64 / steps_per_epoch,
            loss: report.loss,
            lr: learning_rate,
            grad_norm: report.grad_norm,
            tokens,
            tokens_per_second,
            peak_rss_bytes: peak_rss_bytes(),
            losses: losses.filter_map(|(table, loss)| Some((table.section.name.clone(), json!((*loss)?)))).collect(),
        };
        files.stepped(step + 1, &report.losses);
        files.metrics.write(&line)?;
        sight.stepped(&line, status);
        live.stepped(&line);
        let due = |every: u64| every > 0 && (step + 1) % every == 0 && step + 1 < plan.steps;
        if due(recipe.train.checkpoint_every) {
            let adapter = trained(&stepper, base, &fingerprint, status)?;
            save_checkpoint(folder, step + 1, &adapter)?;
            sight.report(status);
        }
        if due(recipe.train.eval_every) {
            let now = evaluate(&model, base, tables, batch_size, status)?;
            files.metrics.write(&json!({ "step": step + 1, "eval": { "after": now } }))?;
            files.evaluated(step + 1, &now);
            sight.evaluated(step + 1, true, &now, status);
        }
        if step + 1 < plan.steps {
            sight.sample(step + 1, &model, base, &mut files.metrics, status)?;
        }
    }
    live.finish();
    let training_seconds = started.elapsed().as_secs_f64();

    base.verify(&model, status)?;
    let after = evaluate(&model, base, tables, batch_size, status)?;
    if !after.is_empty() {
        files.metrics.write(&json!({ "step": plan.steps, "eval": { "before": before, "after": after } }))?;
        files.evaluated(plan.steps, &after);
        sight.evaluated(plan.steps, true, &after, status);
    }
    sight.sample(plan.steps, &model, base, &mut files.metrics, status)?;
    base.cache().tell(status);
    let mut adapter = trained(&stepper, base, &fingerprint, status)?;
    if let Some(note) = &mut adapter.note {
        note.metrics = Some(json!({ "steps": plan.steps, "before": before, "after": after }));
    }
    adapter.write(folder)?;
    loss_plot(&files.curves, &folder.join("loss.png"))?;
    let peak_rss_bytes = peak_rss_bytes();
    sight.finish(peak_rss_bytes, status)?;
    let folder = folder.to_path_buf();
    Ok(Summary { folder, steps: plan.steps, before, after, peak_rss_bytes, training_seconds })
}

/// The adapter as it stands, with a note of its base: here at the latest the fingerprint has to be known.
fn trained(stepper: &Stepper, base: &Base, fingerprint: &PendingFingerprint, status: &dyn Status) -> Result<Adapter> {
    let mut adapter = stepper.trainables.adapter()?;
    let fingerprint = fingerprint.wait(status)?.to_owned();
    let note = adapter.note.get_or_insert_default();
    note.base = Some(BaseNote { name: Some(base.name().to_owned()), fingerprint });
    Ok(adapter)
}

fn stepper(recipe: &Recipe, tables: &[RecipeTable], trainables: Trainables) -> Stepper {
    let train = &recipe.train;
    let config = AdamWConfig { betas: train.betas, eps: train.eps, weight_decay: train.weight_decay };
    let losses = tables
        .iter()
        .map(|table| TableLoss { name: table.section.name.clone(), loss_weight: table.section.loss_weight })
        .collect();
    Stepper::new(trainables, config, losses, train.accumulation, train.clip_norm, train.seed)
}

/// One row of each table must give every trainable tensor a gradient.
fn check_coverage(
    recipe: &Recipe,
    base: &Base,
    tables: &[RecipeTable],
    model: &Janus,
    stepper: &Stepper,
) -> Result<()> {
    let mut batches = Vec::with_capacity(tables.len());
    for (table, source) in tables.iter().enumerate() {
        if source.section.loss_weight == 0.0 {
            continue;
        }
        let sample = SampleStream::new(source, recipe.train.seed, recipe.train.shuffle)?.next(base, model)?;
        batches.push(TableBatch { table, batch: Batch::collate(base, &[sample])? });
    }
    require_gradients(stepper, model, &batches)
}

fn save_checkpoint(folder: &Path, step: u64, adapter: &Adapter) -> Result<()> {
    let staged = StagedFolder::create(&folder.join("checkpoints").join(format!("step-{step}")))?;
    adapter.write(staged.path())?;
    Ok(staged.commit()?)
}

/// Hands out the batches of each step.
struct Feeder {
    mixer: Mixer,
    streams: Vec<SampleStream>,
    batch_size: usize,
    accumulation: u64,
}

impl Feeder {
    fn new(recipe: &Recipe, tables: &[RecipeTable]) -> Result<Self> {
        let weights: Vec<f64> = tables.iter().map(|table| table.section.weight).collect();
        let stream = |table| SampleStream::new(table, recipe.train.seed, recipe.train.shuffle);
        Ok(Self {
            mixer: Mixer::new(recipe.train.mixture, &weights),
            streams: tables.iter().map(stream).collect::<Result<_>>()?,
            batch_size: recipe.train.batch_size as usize,
            accumulation: recipe.train.grad_accumulation,
        })
    }

    /// The batches of one step and the tokens in them.
    fn next(&mut self, base: &Base, model: &Janus) -> Result<(Vec<TableBatch>, u64)> {
        let (mut batches, mut tokens) = (Vec::new(), 0);
        for _ in 0..self.accumulation {
            for (table, rows) in self.mixer.next(self.batch_size).into_iter().enumerate() {
                if rows == 0 {
                    continue;
                }
                let stream = &mut self.streams[table];
                let samples = (0..rows).map(|_| stream.next(base, model)).collect::<Result<Vec<_>>>()?;
                tokens += samples.iter().map(|sample| sample.len() as u64).sum::<u64>();
                batches.push(TableBatch { table, batch: Batch::collate(base, &samples)? });
            }
        }
        Ok((batches, tokens))
    }
}

/// What a run writes while it goes on.
struct RunFiles {
    metrics: MetricsFile,
    curves: Vec<Curve>,
}

impl RunFiles {
    /// The run folder with the resolved recipe and the rows left out.
    fn create(folder: &Path, recipe: &Recipe, tables: &[RecipeTable]) -> Result<Self> {
        let failed = |source| TrainError::Write { path: folder.to_path_buf(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        write_file(&folder.join("recipe.toml"), |file| file.write_all(to_toml(recipe).as_bytes()))?;
        let sources = tables.iter().flat_map(|table| std::iter::once(&table.train).chain(&table.eval));
        write_rejected(&folder.join("rejected.jsonl"), sources.flat_map(|source| source.index.rejected()))?;
        let curve = |table: &RecipeTable| Curve { name: table.section.name.clone(), ..Curve::default() };
        Ok(Self { metrics: MetricsFile::create(folder)?, curves: tables.iter().map(curve).collect() })
    }

    fn stepped(&mut self, step: u64, losses: &[Option<f64>]) {
        for (curve, loss) in self.curves.iter_mut().zip(losses) {
            curve.points.extend(loss.map(|loss| (step as f64, loss)));
        }
    }

    fn evaluated(&mut self, step: u64, metrics: &Metrics) {
        for curve in &mut self.curves {
            let loss = metrics.get(&curve.name).and_then(|m| m.get("loss")).and_then(serde_json::Value::as_f64);
            curve.evals.extend(loss.map(|loss| (step as f64, loss)));
        }
    }
}
