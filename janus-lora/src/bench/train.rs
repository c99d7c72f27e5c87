//! One optimiser step of an adapter: the very step of `janus train`, on a batch that is made up.

use std::sync::Arc;
use std::time::Instant;

use janus_core::Janus;
use janus_core::pass::Pass;
use janus_core::site::sites;
use serde::Serialize;

use super::inputs;
use super::{Figures, Model, SEED};
use crate::adapter::{Adapter, AdapterSpec, Method, ModuleNames};
use crate::cache::Image;
use crate::error::{Error, Result};
use crate::recipe::{Accumulation, AdapterMethod, DataLimits, DataSection, Task as TaskName};
use crate::status::Status;
use crate::target;
use crate::tasks::{self, Batch, Task};
use crate::train::TrainError;
use crate::train::optimizer::AdamWConfig;
use crate::train::step::{StepReport, Stepper, TableBatch, TableLoss};
use crate::train::trainable::Trainables;

/// Rank and alpha of the case of comparison.
const RANK: usize = 8;
const ALPHA: f64 = 16.0;
const LEARNING_RATE: f64 = 1e-4;
/// As `janus train` has them by default.
const ADAMW: AdamWConfig = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
const CLIP_NORM: f64 = 1.0;

/// What is trained.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// What a row teaches.
    pub task: TaskName,
    /// How the adapter corrects a product, each with its settings as a recipe has them by default.
    pub method: AdapterMethod,
    /// Presets or patterns, as in a recipe.
    pub targets: Vec<String>,
    /// Optimiser steps, the first of which is left out; at least 2.
    pub steps: usize,
    /// Rows of each step.
    pub batch: usize,
    /// Image features are computed once, before the first step.
    pub cached_features: bool,
    /// Blocks keep their input alone and compute the rest again in the backward.
    pub recompute: bool,
}

/// What a step costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainReport {
    /// What every measurement tells.
    #[serde(flatten)]
    pub figures: Figures,
    /// The first step, in which memory is touched for the first time.
    pub first_step_seconds: f64,
    /// Steps, the first included.
    pub steps: usize,
    /// What a row teaches.
    pub task: String,
    /// How the adapter corrects a product.
    pub method: &'static str,
    /// Presets or patterns.
    pub targets: Vec<String>,
    /// Whether image features were computed once, before the first step.
    pub cached_features: bool,
    /// Whether blocks computed again in the backward what they would have kept.
    pub recompute: bool,
    /// Rows of a step.
    pub batch: usize,
    /// Tokens of a step.
    pub tokens: usize,
    /// Those in the loss.
    pub supervised_tokens: usize,
    /// Values that training moves.
    pub trainable_parameters: usize,
    /// Loss of the last step.
    pub loss: f64,
}

/// Measures optimiser steps.
///
/// # Errors
/// Targets that match nothing or that the task does not use, and cached features with something to train below them.
pub fn train(model: &Model, options: &TrainOptions, status: &dyn Status) -> Result<TrainReport> {
    let task = task(options.task);
    let sites = chosen_sites(model, options, task.as_ref())?;
    let (janus, opening_seconds) = model.open(task.parts(), status)?;
    let (batch, tokens) = inputs::batch(&model.config, options.task, options.batch, janus.codes_per_image())?;
    let batch = if options.cached_features { with_features(&janus, batch)? } else { batch };
    let supervised_tokens = batch.supervised();

    let method = with_defaults(options.method);
    let spec = AdapterSpec { method, rank: RANK, alpha: ALPHA, dtype: model.dtype, sites, ..AdapterSpec::default() };
    let weights = |name: &str| match janus.parameters().get(name) {
        Some(parameter) => Ok(parameter.frozen().values()),
        None => Err(janus_core::ModelError::UnknownParameter { name: name.into() }.into()),
    };
    let adapter = Adapter::new(&model.config, janus.is_tied(), &spec, SEED, &weights)?;
    let trainable_parameters = adapter.parameter_count();
    let trainables = Trainables::attach(&janus, adapter)?;
    let tables = vec![TableLoss { name: options.task.to_string(), loss_weight: 1.0 }];
    let mut stepper = Stepper::new(trainables, ADAMW, tables, Accumulation::Tokens, CLIP_NORM, SEED)
        .with_recompute(options.recompute);

    let batches = [TableBatch { table: 0, batch, aligned: None }];
    let bar = status.items("training", options.steps as u64);
    let mut seconds = Vec::with_capacity(options.steps);
    let mut last: Option<StepReport> = None;
    for step in 0..options.steps {
        let clock = Instant::now();
        last = Some(stepper.step(&janus, step as u64, LEARNING_RATE, &batches)?);
        seconds.push(clock.elapsed().as_secs_f64());
        bar.advance(1);
    }
    bar.finish();
    Ok(TrainReport {
        figures: Figures::new(model, tokens, seconds.get(1..).unwrap_or_default(), opening_seconds),
        first_step_seconds: seconds.first().copied().unwrap_or_default(),
        steps: options.steps,
        task: options.task.to_string(),
        method: options.method.name(),
        targets: options.targets.clone(),
        cached_features: options.cached_features,
        recompute: options.recompute,
        batch: options.batch,
        tokens,
        supervised_tokens,
        trainable_parameters,
        loss: last.map_or(0.0, |report| report.loss),
    })
}

/// A method with its settings as recipes have them by default.
fn with_defaults(method: AdapterMethod) -> Method {
    match method {
        AdapterMethod::Lora => Method::Lora { bias: false },
        AdapterMethod::Dora => Method::Dora,
        AdapterMethod::Loha => Method::Loha { effective: false },
        AdapterMethod::Lokr => Method::Lokr { decompose_both: false, decompose_factor: -1, effective: false },
        AdapterMethod::Vera => Method::Vera { d_initial: 0.1, projection_seed: 0 },
        AdapterMethod::Ia3 => {
            Method::Ia3 { feedforward: ModuleNames::Suffixes(["down_proj", "fc2"].map(String::from).to_vec()) }
        }
    }
}

/// The task of a table whose columns nobody reads.
fn task(task: TaskName) -> Arc<dyn Task> {
    tasks::task(&DataSection::new(task.name(), task, ""), &[], &DataLimits::default())
}

/// Sites that the targets name and the task uses.
fn chosen_sites(model: &Model, options: &TrainOptions, task: &dyn Task) -> Result<Vec<Arc<str>>> {
    let all = sites(&model.config);
    let selection = target::select(&options.targets, all.iter().map(|site| site.path.as_ref()))?;
    let reached = selection.sites.iter().filter(|site| task.reaches(&site.path));
    let chosen: Vec<Arc<str>> = reached.map(|site| site.path.as_str().into()).collect();
    if chosen.is_empty() {
        let (targets, tasks) = (options.targets.clone(), vec![options.task.to_string()]);
        return Err(TrainError::NothingToTrain { targets, tasks }.into());
    }
    let below = |path: &&Arc<str>| path.starts_with("model.vision_model.") || path.starts_with("model.aligner.");
    if options.cached_features {
        if options.task != TaskName::Understand {
            let message = format!("`--cached-features` with `--task {}`, which sees no image", options.task);
            return Err(Error::Usage { message, hint: "leave `--cached-features` out".into() });
        }
        if let Some(path) = chosen.iter().find(below) {
            let message = format!("`--cached-features` with `{path}` to be trained, which changes the features");
            return Err(Error::Usage {
                message,
                hint: "train `decoder` only, or leave `--cached-features` out".into(),
            });
        }
    }
    Ok(chosen)
}

/// The batch with the features of its images instead of their pixels.
fn with_features(janus: &Janus, batch: Batch) -> Result<Batch> {
    Ok(match batch {
        Batch::Text(mut text) => {
            if let Some(features) = text.features(janus, &Pass::inference())? {
                text.images = Image::each_of_features(&features)?;
            }
            Batch::Text(text)
        }
        codes => codes,
    })
}
