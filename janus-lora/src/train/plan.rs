//! What is known of a run before its first step: sites, sizes, rows, steps, memory.

use std::sync::Arc;

use candle_core::DType;
use janus_core::Parts;
use janus_core::checkpoint::expected_tensors;
use janus_core::config::JanusConfig;
use janus_core::model::vision::VisionPoint;
use janus_core::site::{Site, SiteKind, sites};
use serde::Serialize;

use super::TrainError;
use super::mixture::Mixer;
use super::tables::RecipeTable;
use crate::adapter::AdapterSpec;
use crate::base::Base;
use crate::cache::CacheSettings;
use crate::error::Result;
use crate::recipe::{BaseDtype, Recipe, Recompute};
use crate::target::{self, Origin};

/// Rows of one table.
#[derive(Debug, Clone, Serialize)]
pub struct TablePlan {
    /// Its name.
    pub name: String,
    /// Its task.
    pub task: String,
    /// Good rows to train on.
    pub rows: usize,
    /// Rows left out of them.
    pub rejected: usize,
    /// Good rows to evaluate on.
    pub eval_rows: usize,
}

/// What a run will do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Values that training moves.
    pub trainable_parameters: u64,
    /// Values of the base.
    pub total_parameters: u64,
    /// Good rows of all training tables.
    pub rows: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Whether blocks compute again in the backward what they would have kept.
    pub recompute: bool,
    /// Estimate of the largest resident memory.
    pub predicted_peak_bytes: u64,
    /// The same by what holds it.
    pub predicted_memory: PredictedMemory,
    /// Each table.
    pub tables: Vec<TablePlan>,
    /// Paths that get a low-rank pair.
    #[serde(skip)]
    pub sites: Vec<Arc<str>>,
    /// Paths that a preset names but no task of the recipe uses: nothing is created there.
    #[serde(skip)]
    pub unused_sites: Vec<Arc<str>>,
    /// Parameters that are trained as copies.
    pub saved_parameters: Vec<String>,
    /// Rows per step and table, on average.
    pub rows_per_step: Vec<f64>,
    /// What is computed once of each image and kept in the cache.
    pub cached: Vec<String>,
}

/// Predicted resident memory by what holds it, in bytes; the parts add up to the predicted peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PredictedMemory {
    /// The program before anything is loaded.
    pub program: u64,
    /// Frozen weights.
    pub base: u64,
    /// Trainable values with their gradients of a micro-batch and of a step.
    pub adapters: u64,
    /// The optimiser's two moments.
    pub moments: u64,
    /// What the blocks of a micro-batch keep, and what one of them holds while it is computed.
    pub activations: u64,
    /// What is needed beyond that to fill the cache of image codes.
    pub cache: u64,
}

impl PredictedMemory {
    /// The parts with their names, in the order in which a run takes them.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        let Self { program, base, adapters, moments, activations, cache } = *self;
        [
            ("program", program),
            ("base", base),
            ("adapters", adapters),
            ("moments", moments),
            ("activations", activations),
            ("cache", cache),
        ]
    }
}

/// The type of a recipe.
pub fn compute_type(recipe: &Recipe) -> DType {
    match recipe.base.dtype {
        BaseDtype::F32 => DType::F32,
        BaseDtype::Bf16 => DType::BF16,
    }
}

/// Parts of the model that the tasks of a recipe use.
pub fn parts(tables: &[RecipeTable]) -> Parts {
    tables.iter().fold(Parts::default(), |parts, table| parts.union(table.task.parts()))
}

impl Plan {
    /// Works out a run.
    ///
    /// # Errors
    /// Targets that match nothing, that no task uses, or that leave nothing to train; a limit of the cache that is none.
    pub fn new(recipe: &Recipe, base: &Base, tables: &[RecipeTable]) -> Result<Self> {
        let config = base.config();
        let all_sites = sites(config);
        let reached = |path: &str| tables.iter().any(|table| table.task.reaches(path));
        let task_names = || {
            let mut names: Vec<String> = recipe.data.iter().map(|section| section.task.to_string()).collect();
            names.dedup();
            names
        };
        let selection = target::select(&recipe.adapter.targets, all_sites.iter().map(|site| site.path.as_ref()))?;
        let (mut chosen, mut unused, mut unreached) = (Vec::new(), Vec::new(), Vec::new());
        for site in &selection.sites {
            match (reached(&site.path), &site.origin) {
                (true, _) => chosen.push(Arc::<str>::from(site.path.as_str())),
                (false, Origin::Preset(_)) => unused.push(Arc::<str>::from(site.path.as_str())),
                (false, Origin::Pattern(_)) => unreached.push(site.path.clone()),
            }
        }
        let saved = saved_parameters(config, &recipe.adapter.modules_to_save)?;
        unreached.extend(saved.iter().filter(|name| !reached(name)).cloned());
        if !unreached.is_empty() {
            return Err(TrainError::Unreached { paths: unreached, tasks: task_names() }.into());
        }
        if chosen.is_empty() && saved.is_empty() {
            let targets = recipe.adapter.targets.clone();
            return Err(TrainError::NothingToTrain { targets, tasks: task_names() }.into());
        }

        let rank = recipe.adapter.rank;
        let by_path = |path: &Arc<str>| all_sites.iter().find(|site| site.path == *path);
        let shape_of = expected_tensors(config, !base.checkpoint().is_tied());
        let elements = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
        let pair_values: u64 = chosen.iter().filter_map(by_path).map(|site| pair_parameters(site, rank)).sum();
        let saved_values: u64 = shape_of.iter().filter(|t| saved.contains(&t.name)).map(|t| elements(&t.shape)).sum();
        let total_parameters = shape_of.iter().map(|t| elements(&t.shape)).sum();
        let trainable_parameters = pair_values + saved_values;

        let weights: Vec<f64> = tables.iter().map(|table| table.section.weight).collect();
        let mixer = Mixer::new(recipe.train.mixture, &weights);
        let rows_in_step = (recipe.train.batch_size * recipe.train.grad_accumulation) as usize;
        let rows_per_step: Vec<f64> = (0..tables.len()).map(|i| mixer.rows_per_step(i, rows_in_step)).collect();
        let steps = match (recipe.train.steps, recipe.train.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => {
                let largest = (0..tables.len()).max_by_key(|i| tables[*i].train.index.accepted_rows()).unwrap_or(0);
                let rows = tables.get(largest).map_or(0, |table| table.train.index.accepted_rows());
                let per_step = rows_per_step.get(largest).copied().unwrap_or(1.0);
                (epochs.unwrap_or(1) as f64 * rows as f64 / per_step).ceil().max(1.0) as u64
            }
        };
        let touched = chosen.iter().map(AsRef::as_ref).chain(saved.iter().map(String::as_str));
        let point = VisionPoint::highest(config.vision.num_hidden_layers, touched);
        let cached = if CacheSettings::from_environment()?.is_on() { cached(parts(tables), point) } else { Vec::new() };
        let memory = Memory::of(recipe, config, parts(tables), trainable_parameters, &chosen);
        let recompute = match recipe.train.recompute {
            Recompute::On => true,
            Recompute::Off => false,
            // Where this machine tells, only a run that would not fit otherwise pays for computing twice.
            Recompute::Auto => available_bytes().is_some_and(|available| memory.peak_bytes(false) > available),
        };
        let predicted_peak_bytes = memory.peak_bytes(recompute);
        let tables: Vec<TablePlan> = tables
            .iter()
            .map(|table| TablePlan {
                name: table.section.name.clone(),
                task: table.section.task.to_string(),
                rows: table.train.index.accepted_rows(),
                rejected: table.train.index.rejected_rows(),
                eval_rows: table.eval.as_ref().map_or(0, |source| source.index.accepted_rows()),
            })
            .collect();
        Ok(Self {
            trainable_parameters,
            total_parameters,
            rows: tables.iter().map(|table| table.rows).sum(),
            steps,
            recompute,
            predicted_peak_bytes,
            predicted_memory: memory.predicted(recompute),
            tables,
            sites: chosen,
            unused_sites: unused,
            saved_parameters: saved,
            rows_per_step,
            cached,
        })
    }

    /// What the adapter of this plan is made of.
    pub fn adapter_spec(&self, recipe: &Recipe, base: &Base) -> AdapterSpec {
        AdapterSpec {
            rank: recipe.adapter.rank as usize,
            alpha: recipe.adapter.effective_alpha(),
            dropout: recipe.adapter.dropout,
            sites: self.sites.clone(),
            modules_to_save: recipe.adapter.modules_to_save.clone(),
            base_name: Some(base.name().to_owned()),
        }
    }
}

/// What of a recipe's images is kept, in words.
fn cached(parts: Parts, point: Option<VisionPoint>) -> Vec<String> {
    let features = point.filter(|_| parts.vision).map(|point| format!("vision features at {point}"));
    features.into_iter().chain(parts.generation.then(|| "image codes".to_owned())).collect()
}

/// Values of one low-rank pair.
fn pair_parameters(site: &Site, rank: u64) -> u64 {
    let kernel = match site.kind {
        SiteKind::Conv2d { kernel, .. } => (kernel * kernel) as u64,
        SiteKind::Linear | SiteKind::Embedding => 1,
    };
    rank * (site.input as u64 * kernel + site.output as u64)
}

/// Native names of the parameters of modules, matched by trailing whole segments as PEFT does.
fn saved_parameters(config: &JanusConfig, modules: &[String]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for module in modules {
        let before = names.len();
        for tensor in expected_tensors(config, true) {
            let mut stem = tensor.name.as_str();
            let belongs = loop {
                let Some((parent, _)) = stem.rsplit_once('.') else { break false };
                stem = parent;
                if stem == module || stem.ends_with(&format!(".{module}")) {
                    break true;
                }
            };
            if belongs && !names.contains(&tensor.name) {
                names.push(tensor.name);
            }
        }
        if names.len() == before {
            return Err(TrainError::UnknownModule { module: module.clone() }.into());
        }
    }
    Ok(names)
}

/// Resident memory of a run by what holds it, in bytes.
struct Memory {
    /// The process before anything is loaded.
    process: u64,
    /// Parameters of the parts that are loaded.
    weights: u64,
    /// Trainable values, their gradients of the micro-batch and of the step, and two moments.
    state: u64,
    /// What the blocks of one micro-batch keep for their backward.
    kept: u64,
    /// The inputs of the same blocks, which stay in any case.
    inputs: u64,
    /// What one block holds while it is computed.
    block: u64,
    /// What the image tokenizer holds while it encodes an image.
    tokenizer: u64,
}

impl Memory {
    fn of(recipe: &Recipe, config: &JanusConfig, parts: Parts, trainable: u64, chosen: &[Arc<str>]) -> Self {
        // A guess at the text around an image; lengths are only known when rows are read.
        const TEXT_TOKENS: u64 = 64;
        // No part of the model: opened for the codes of images that the cache does not have yet.
        let parts = Parts { image_tokenizer: parts.generation, ..parts };
        let size = compute_type(recipe).size_in_bytes() as u64;
        let expected = expected_tensors(config, true);
        let weights = expected.iter().map(|tensor| loaded_bytes(&tensor.name, &tensor.shape, parts, size));
        let patches = config.vision.num_patches() as u64;
        let rows = recipe.train.batch_size;
        let (text, vision) = (&config.text, &config.vision);
        let (hidden, inner) = (text.hidden_size as u64, text.intermediate_size as u64);
        let kv = (text.num_key_value_heads * text.head_dim) as u64;
        let decoder_tokens = rows * (patches + TEXT_TOKENS) * size;
        // Queries, keys, values, attention's output, the second norm's input, gate and up.
        let mut kept = decoder_tokens * text.num_hidden_layers as u64 * (3 * hidden + 2 * kv + 2 * inner);
        let mut inputs = decoder_tokens * text.num_hidden_layers as u64 * hidden;
        // Their gradients, the activation, the normed input, and the slack of buffers that wait.
        let block = decoder_tokens * (8 * hidden + 2 * kv + 5 * inner);
        if chosen.iter().any(|path| path.starts_with("model.vision_model.")) {
            let (width, inner) = (vision.hidden_size as u64, vision.intermediate_size as u64);
            let tokens = rows * patches * size * vision.num_hidden_layers as u64;
            kept += tokens * (5 * width + inner);
            inputs += tokens * width;
        }
        let pixels = (vision.image_size * vision.image_size) as u64;
        // The finest level in f32: about six of its tensors at once.
        let tokenizer = if parts.image_tokenizer { 6 * 4 * pixels * config.vq.base_channels as u64 } else { 0 };
        Self { process: 64 << 20, weights: weights.sum(), state: trainable * 4 * 5, kept, inputs, block, tokenizer }
    }

    fn peak_bytes(&self, recompute: bool) -> u64 {
        self.predicted(recompute).parts().iter().map(|(_, bytes)| bytes).sum()
    }

    fn predicted(&self, recompute: bool) -> PredictedMemory {
        // With recomputation one block's share of what is kept exists at a time, which `block` leaves room for.
        let kept = if recompute { self.block / 2 } else { self.kept };
        let activations = self.inputs + kept + self.block;
        // Of the five copies of the trainable values that `state` counts, two are moments.
        let moments = self.state / 5 * 2;
        PredictedMemory {
            program: self.process,
            base: self.weights,
            adapters: self.state - moments,
            moments,
            activations,
            cache: self.tokenizer.saturating_sub(activations),
        }
    }
}

/// Bytes of one parameter in memory, none where its part is not loaded.
fn loaded_bytes(name: &str, shape: &[usize], parts: Parts, size: u64) -> u64 {
    let (loaded, size) = if name.starts_with("model.vqmodel.") {
        (parts.image_tokenizer, 4)
    } else if name.starts_with("model.vision_model.") || name.starts_with("model.aligner.") {
        (parts.vision, size)
    } else if name.starts_with("model.generation_") {
        (parts.generation, size)
    } else if name == "lm_head.weight" {
        (parts.text_head, size)
    } else {
        (true, size)
    };
    if loaded { shape.iter().map(|n| *n as u64).product::<u64>() * size } else { 0 }
}

/// Memory that the machine can give without swapping, where it tells (`MemAvailable` of proc(5)).
fn available_bytes() -> Option<u64> {
    let told = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
