//! What is known of a run before its first step: sites, sizes, rows, steps, memory, time.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device};
use janus_core::Parts;
use janus_core::checkpoint::expected_tensors;
use janus_core::config::JanusConfig;
use janus_core::model::vision::VisionPoint;
use janus_core::site::Site;
use serde::Serialize;

use super::TrainError;
use super::memory::{Memory, PredictedMemory};
use super::metrics::{peak_rss_bytes, rss_bytes};
use super::mixture::Mixer;
use super::prefetch::{row_threads, rows_ahead};
use super::rehearsal::operations_per_second;
use super::sites::{self, ChosenSites};
use super::stages::{self, Stage};
use super::tables::RecipeTable;
use super::workload::{TableLoad, encoder_operations, loads, step_operations};
use crate::adapter::{Adapter, AdapterSpec, has_bias, trained_values};
use crate::allocator;
use crate::available_memory::available_bytes;
use crate::base::Base;
use crate::cache::CacheSettings;
use crate::dynamic::{self, Paths};
use crate::error::Result;
use crate::heads::{self, HeadKind};
use crate::mifs;
use crate::recipe::{BaseDtype, DynamicPlace, Recipe, Recompute};
use crate::tasks::CODE_PATHS;

/// Values of the largest base whose batches are computed side by side: above it a batch alone has work for all threads.
const SMALL_PARAMETERS: u64 = 30_000_000;

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

/// One stage of a run.
#[derive(Debug, Clone, Serialize)]
pub struct StagePlan {
    /// Its name.
    pub name: String,
    /// Its optimiser steps.
    pub steps: u64,
    /// Values that it moves.
    pub trainable_parameters: u64,
    /// The tables that it learns from.
    pub tables: Vec<String>,
    /// Estimate of its largest resident memory.
    pub predicted_peak_bytes: u64,
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
    /// Whether two batches of a step are computed at once, each on a part of the threads.
    pub side_by_side: bool,
    /// Estimate of the largest resident memory.
    pub predicted_peak_bytes: u64,
    /// The same by what holds it.
    pub predicted_memory: PredictedMemory,
    /// Memory that there was for the run when it was planned; absent where nobody tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Changes of the recipe that would make a run fit that does not, with what it would take then.
    #[serde(skip)]
    pub remedies: Vec<String>,
    /// Floating-point operations of a step's matrix products and of encoding its pictures, on average.
    pub predicted_step_operations: f64,
    /// Seconds of a step, an estimate: its operations at the rate of a rehearsal on this machine, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_step_seconds: Option<f64>,
    /// What the rows of each table come to.
    #[serde(skip)]
    pub(super) loads: Vec<TableLoad>,
    /// Each table.
    pub tables: Vec<TablePlan>,
    /// Paths that the adapter has tensors at.
    #[serde(skip)]
    pub sites: Vec<Arc<str>>,
    /// Other ranks than the recipe's, by path.
    #[serde(skip)]
    pub ranks: BTreeMap<Arc<str>, usize>,
    /// Other alphas than the recipe's, by path.
    #[serde(skip)]
    pub alphas: BTreeMap<Arc<str>, f64>,
    /// Paths that a preset names but no task of the recipe uses: nothing is created there.
    #[serde(skip)]
    pub unused_sites: Vec<Arc<str>>,
    /// Parameters that are trained as copies.
    pub saved_parameters: Vec<String>,
    /// Paths with factors of a dynamic visual encoder, absent without one.
    #[serde(skip)]
    pub dynamic: Option<Paths>,
    /// Values of its tokens, generator, gates and projection.
    pub dynamic_parameters: u64,
    /// Task heads by name.
    #[serde(skip)]
    pub heads: Vec<(String, HeadKind)>,
    /// Values of all heads.
    pub head_parameters: u64,
    /// Rows per step and table, on average.
    pub rows_per_step: Vec<f64>,
    /// What is computed once of each image and kept in the cache.
    pub cached: Vec<String>,
    /// The stages, empty where the run has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StagePlan>,
}

/// The type of a recipe.
pub fn compute_type(recipe: &Recipe) -> DType {
    match recipe.base.dtype {
        BaseDtype::F32 => DType::F32,
        BaseDtype::Bf16 => DType::BF16,
    }
}

/// Parts of the model that a recipe uses.
pub fn parts(recipe: &Recipe, tables: &[RecipeTable]) -> Parts {
    let mut used = if recipe.mifs.is_some() { mifs::PARTS } else { Parts::default() };
    if tables.iter().any(|table| table.section.eval_pictures.is_some_and(|count| count > 0) && table.eval.is_some()) {
        // What is drawn is looked at, too.
        used = used.union(Parts { text_head: true, vision: true, ..Parts::default() });
    }
    tables.iter().fold(used, |parts, table| parts.union(table.task.parts()))
}

impl Plan {
    /// Works out a run on `device`.
    ///
    /// # Errors
    /// Targets that match nothing, that no task uses, or that leave nothing to train; a limit of the cache that is none.
    pub fn new(recipe: &Recipe, base: &Base, tables: &[RecipeTable], device: &Device) -> Result<Self> {
        let config = base.config();
        let reached = |path: &str| tables.iter().any(|table| table.task.reaches(path));
        let task_names = || {
            let mut names: Vec<String> = recipe.data.iter().map(|section| section.task.to_string()).collect();
            names.dedup();
            names
        };
        let ChosenSites { sites: at, unused, mut unreached, ranks, alphas } =
            sites::choose(&recipe.adapter, config, &reached)?;
        let chosen: Vec<Arc<str>> = at.iter().map(|site| site.path.clone()).collect();
        let method = sites::method_at(&recipe.adapter, &chosen);
        let saved = saved_parameters(config, &recipe.adapter.modules_to_save)?;
        unreached.extend(saved.iter().filter(|name| !reached(name)).cloned());
        if !unreached.is_empty() {
            return Err(TrainError::Unreached { paths: unreached, tasks: task_names() }.into());
        }
        let dynamic = recipe.dynamic().map(|dynamic| {
            let path = |place: DynamicPlace, paths: Paths| {
                let wanted = dynamic.places.contains(&place);
                wanted && dynamic::places(config, paths).iter().any(|place| reached(place))
            };
            Paths {
                vision: path(DynamicPlace::Vision, Paths { vision: true, generation: false }),
                generation: path(DynamicPlace::Generation, Paths { vision: false, generation: true }),
            }
        });
        let dynamic = dynamic.filter(|paths| paths.any());
        let named = |table: &RecipeTable| Some((table.section.name.clone(), table.task.head()?));
        let heads: Vec<(String, HeadKind)> = tables.iter().filter_map(named).collect();
        if chosen.is_empty() && saved.is_empty() && dynamic.is_none() && heads.is_empty() {
            let targets = recipe.adapter.targets.clone();
            return Err(TrainError::NothingToTrain { targets, tasks: task_names() }.into());
        }

        let moving = |path: &str| CODE_PATHS.iter().any(|prefix| path.starts_with(prefix));
        let mut trained = chosen.iter().map(AsRef::as_ref).chain(saved.iter().map(String::as_str));
        let learns_codes = |table: &&RecipeTable| table.section.task.draws() || recipe.mifs.is_some();
        if let (Some(table), Some(name)) = (tables.iter().find(learns_codes), trained.find(|path| moving(path))) {
            return Err(TrainError::MovingCodes { table: table.section.name.clone(), name: name.into() }.into());
        }
        let multiplied = dynamic.map(|paths| dynamic::places(config, paths)).unwrap_or_default();
        if recipe.mifs.is_some() {
            let trained = chosen.iter().map(AsRef::as_ref);
            let mut trained = trained.chain(saved.iter().chain(&multiplied).map(String::as_str));
            if !trained.any(mifs::reaches) {
                return Err(TrainError::NothingToAlign.into());
            }
        }
        let rank_at = |path: &str| ranks.get(path).copied().unwrap_or(recipe.adapter.rank as usize);
        let rank = chosen.iter().map(|path| method.held_rank(rank_at(path))).max().unwrap_or(0) as u64;
        // What pairs began with stands beside them.
        let begins_with_weight = sites::init(&recipe.adapter).is_of_weight();
        let rank = if begins_with_weight { 2 * rank } else { rank };
        let shape_of = expected_tensors(config, !base.checkpoint().is_tied());
        let elements = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
        let of_site = |site: &Site| {
            let has_bias = has_bias(config, &site.path);
            trained_values(&method, site, rank_at(&site.path), has_bias) as u64
        };
        let pair_values: u64 = at.iter().map(of_site).sum();
        let saved_values: u64 = shape_of.iter().filter(|t| saved.contains(&t.name)).map(|t| elements(&t.shape)).sum();
        let total_parameters = shape_of.iter().map(|t| elements(&t.shape)).sum();
        let dynamic_shapes = dynamic.map(|paths| dynamic::shapes(config, paths)).unwrap_or_default();
        let dynamic_values: u64 = dynamic_shapes.iter().map(|(_, shape)| elements(shape)).sum();
        let head_values: u64 = heads.iter().map(|(_, kind)| heads::parameter_count(config, kind)).sum();
        let temperatures = u64::from(recipe.mifs.is_some());
        let trainable_parameters = pair_values + saved_values + dynamic_values + head_values + temperatures;

        let weights: Vec<f64> = tables.iter().map(|table| table.section.weight).collect();
        let mixer = Mixer::new(recipe.train.mixture, &weights);
        let rows_in_step = (recipe.train.batch_size * recipe.train.grad_accumulation) as usize;
        let rows_per_step: Vec<f64> = (0..tables.len()).map(|i| mixer.rows_per_step(i, rows_in_step)).collect();
        let steps = match (recipe.train.steps, recipe.train.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => {
                let (rows, per_step) =
                    largest(tables.iter().map(|table| table.train.index.accepted_rows()), &rows_per_step);
                (epochs.unwrap_or(1) as f64 * rows as f64 / per_step).ceil().max(1.0) as u64
            }
        };
        let touched = chosen.iter().map(AsRef::as_ref).chain(saved.iter().chain(&multiplied).map(String::as_str));
        let point = VisionPoint::highest(config.vision.num_hidden_layers, touched);
        let cache_is_on = CacheSettings::from_environment()?.is_on();
        let cached = if cache_is_on { cached(parts(recipe, tables), point) } else { Vec::new() };
        let loads = loads(recipe, base, tables, &rows_per_step, steps)?;
        for (table, load) in tables.iter().zip(&loads) {
            if table.task.head().is_some_and(|kind| kind.form().is_contrastive()) && load.rows < 2 {
                return Err(TrainError::NothingToHoldAgainst { table: table.section.name.clone() }.into());
            }
        }
        if recipe.mifs.is_some() && !loads.iter().any(|load| load.rows * load.images.max(1) >= 2) {
            return Err(TrainError::TooFewToAlign.into());
        }
        let vision_blocks = match point {
            _ if !parts(recipe, tables).vision => 0,
            None => config.vision.num_hidden_layers,
            Some(VisionPoint::Blocks(count)) => config.vision.num_hidden_layers.saturating_sub(count),
            Some(VisionPoint::Tower | VisionPoint::Aligner) => 0,
        } as u64;
        let trained =
            |path: &str| chosen.iter().any(|site| **site == *path) || saved.iter().any(|n| n.starts_with(path));
        let in_blocks = chosen.iter().filter(|path| path.starts_with("model.language_model.layers.")).count();
        // What the first looks at the rows left behind is none of the program's.
        allocator::give_back();
        let memory = Memory {
            config,
            program_bytes: rss_bytes(),
            planned_peak_bytes: peak_rss_bytes(),
            parts: parts(recipe, tables),
            value_bytes: compute_type(recipe).size_in_bytes() as u64,
            narrow: Arc::new(base.narrow_weights(compute_type(recipe), device)),
            trainable: trainable_parameters,
            beside: if begins_with_weight { pair_values } else { 0 },
            rank,
            sites_per_block: in_blocks.div_ceil(config.text.num_hidden_layers.max(1)) as u64,
            vision_blocks,
            trained_heads: [trained("lm_head"), trained("model.generation_head.vision_head")],
            accumulates: recipe.train.grad_accumulation > 1 || tables.len() > 1,
            recompute: recipe.train.recompute == Recompute::On,
            side_by_side: false,
            repeats_tables: tables.len() == 1 || recipe.train.grad_accumulation > 1,
            batch_size: recipe.train.batch_size,
            evaluates_between: [recipe.train.eval_every, recipe.train.sample_every]
                .iter()
                .any(|every| (1..steps).contains(every)),
            rows_ahead: rows_ahead(recipe) as u64,
            row_threads: row_threads() as u64,
            loads,
        };
        let available_bytes = available_bytes()?;
        let fits = |memory: &Memory<'_>| available_bytes.is_none_or(|room| memory.predicted().peak_bytes() <= room);
        // Where this machine tells, only a run that would not fit otherwise pays for computing twice.
        let is_tight = recipe.train.recompute == Recompute::Auto && !fits(&memory);
        let memory = Memory { recompute: memory.recompute || is_tight, ..memory };
        let recompute = memory.recompute;
        // Only where it costs no recompute, and threads of the processor wait more than they compute.
        let wider = Memory { side_by_side: true, ..memory.clone() };
        let is_small = device.is_cpu() && total_parameters <= SMALL_PARAMETERS && rayon::current_num_threads() > 1;
        let memory = if is_small && memory.accumulates && !recompute && fits(&wider) { wider } else { memory };
        let side_by_side = memory.side_by_side;
        let predicted_memory = memory.predicted();
        let remedies = if fits(&memory) { Vec::new() } else { memory.remedies(&fits) };
        let read: f64 = rows_per_step.iter().sum::<f64>() * steps as f64;
        let rows = tables.iter().map(|table| table.train.index.accepted_rows()).sum::<usize>() as f64;
        let pictures_anew = if cache_is_on { (rows / read.max(1.0)).min(1.0) } else { 1.0 };
        let loads = memory.loads;
        let drawn = loads.iter().filter(|load| load.is_generation).map(|load| load.rows_per_step).sum::<f64>();
        let predicted_step_operations = step_operations(config, &loads, recompute, vision_blocks, pictures_anew)
            + drawn * pictures_anew * encoder_operations(config);
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
            side_by_side,
            predicted_peak_bytes: predicted_memory.peak_bytes(),
            predicted_memory,
            available_bytes,
            remedies,
            predicted_step_operations,
            predicted_step_seconds: None,
            loads,
            tables,
            sites: chosen,
            ranks,
            alphas,
            unused_sites: unused,
            saved_parameters: saved,
            dynamic,
            dynamic_parameters: dynamic_values,
            heads,
            head_parameters: head_values,
            rows_per_step,
            cached,
            stages: Vec::new(),
        })
    }

    /// The stages of a recipe together: steps and rows are added up, memory is that of the stage that needs most.
    ///
    /// # Errors
    /// What two stages train in ways that exclude each other.
    pub(super) fn whole(recipe: &Recipe, base: &Base, tables: &[RecipeTable], stages: &[Stage]) -> Result<Self> {
        let plans = || stages.iter().map(|stage| &stage.plan);
        let largest = plans().max_by_key(|plan| plan.predicted_peak_bytes).expect("a run has a stage");
        let mut whole = largest.clone();
        if stages.len() == 1 {
            return Ok(whole);
        }
        let spec = stages::whole_spec(recipe, base, stages);
        let adapter = Adapter::blank(base.config(), base.checkpoint().is_tied(), &spec)?;
        let values = |kept: &dyn Fn(&str) -> bool| -> u64 {
            let extras = adapter.extras();
            extras.iter().filter(|(name, _)| kept(name)).map(|(_, value)| value.elem_count() as u64).sum()
        };
        whole.trainable_parameters = adapter.parameter_count() as u64 + u64::from(spec.aligns);
        whole.dynamic_parameters = values(&|name| name.starts_with(dynamic::PREFIX));
        whole.head_parameters =
            adapter.heads.values().flat_map(|head| head.values().values()).map(|v| v.elem_count() as u64).sum();
        whole.sites = spec.sites;
        whole.saved_parameters = adapter.saved.keys().map(ToString::to_string).collect();
        (whole.dynamic, whole.heads) = (spec.dynamic, spec.heads);
        whole.steps = plans().map(|plan| plan.steps).sum();
        whole.unused_sites.clear();
        let of_table = |table: &RecipeTable| {
            let mut all = plans().flat_map(|plan| &plan.tables);
            all.find(|plan| plan.name == table.section.name).cloned()
        };
        whole.tables = tables.iter().filter_map(of_table).collect();
        whole.rows = whole.tables.iter().map(|table| table.rows).sum();
        let mut cached: Vec<String> = plans().flat_map(|plan| plan.cached.clone()).collect();
        cached.sort();
        cached.dedup();
        whole.cached = cached;
        whole.recompute = plans().any(|plan| plan.recompute);
        whole.side_by_side = plans().any(|plan| plan.side_by_side);
        whole.stages = stages
            .iter()
            .map(|stage| StagePlan {
                name: stage.name.clone().unwrap_or_default(),
                steps: stage.plan.steps,
                trainable_parameters: stage.plan.trainable_parameters,
                tables: stage.plan.tables.iter().map(|table| table.name.clone()).collect(),
                predicted_peak_bytes: stage.plan.predicted_peak_bytes,
            })
            .collect();
        let all_steps = whole.steps.max(1) as f64;
        whole.predicted_step_operations =
            plans().map(|plan| plan.predicted_step_operations * plan.steps as f64).sum::<f64>() / all_steps;
        Ok(whole)
    }

    /// Works out how long a step takes, from steps over a model of few blocks on this machine now: a second or two, at full
    /// size the time of about two blocks in a step.
    ///
    /// # Errors
    /// Rows that cannot be read, or the tensor engine's.
    pub fn estimate_time(&mut self, recipe: &Recipe, base: &Base, tables: &[RecipeTable]) -> Result<()> {
        let spec = self.adapter_spec(recipe, base);
        let rate = operations_per_second(recipe, base, tables, &self.loads, spec, [self.recompute, self.side_by_side])?;
        self.predicted_step_seconds = rate.map(|rate| self.predicted_step_operations / rate.max(f64::MIN_POSITIVE));
        Ok(())
    }

    /// Steps of one pass over the largest table, a part of one where a step draws its rows more than once.
    pub fn steps_per_epoch(&self) -> f64 {
        let (rows, per_step) = largest(self.tables.iter().map(|table| table.rows), &self.rows_per_step);
        rows as f64 / per_step
    }

    /// The same as runs of before counted it: a step was one pass at most, and of several tables that counted which takes longest.
    pub fn steps_per_epoch_of_before(&self) -> f64 {
        let passes = self.tables.iter().zip(&self.rows_per_step).map(|(table, rows)| table.rows as f64 / rows);
        passes.fold(1.0, f64::max)
    }

    /// Tables of which a step draws rows more than once, with how many of their rows it draws.
    pub fn repeated(&self) -> impl Iterator<Item = (&TablePlan, f64)> {
        let drawn = self.tables.iter().zip(self.rows_per_step.iter().copied());
        drawn.filter(|(table, drawn)| *drawn > table.rows as f64)
    }

    /// Refuses a run that needs more memory than there was when it was planned.
    ///
    /// # Errors
    /// [`TrainError::NoRoom`].
    pub fn require_room(&self) -> Result<()> {
        match self.available_bytes {
            Some(available_bytes) if available_bytes < self.predicted_peak_bytes => {
                let (predicted_bytes, remedies) = (self.predicted_peak_bytes, self.remedies.clone());
                Err(TrainError::NoRoom { predicted_bytes, available_bytes, remedies }.into())
            }
            _ => Ok(()),
        }
    }

    /// What the adapter of this plan is made of.
    pub fn adapter_spec(&self, recipe: &Recipe, base: &Base) -> AdapterSpec {
        AdapterSpec {
            method: sites::method_at(&recipe.adapter, &self.sites),
            rank: recipe.adapter.rank as usize,
            alpha: recipe.adapter.effective_alpha(),
            rslora: recipe.adapter.rslora,
            init: sites::init(&recipe.adapter),
            ranks: self.ranks.clone(),
            alphas: self.alphas.clone(),
            dropout: recipe.adapter.dropout,
            sites: self.sites.clone(),
            modules_to_save: recipe.adapter.modules_to_save.clone(),
            dynamic: self.dynamic,
            heads: self.heads.clone(),
            aligns: recipe.mifs.is_some(),
            base_name: Some(base.name().to_owned()),
            dtype: compute_type(recipe),
        }
    }
}

/// Rows of the largest of some tables, and how many of them a step draws.
fn largest(rows: impl Iterator<Item = usize>, rows_per_step: &[f64]) -> (usize, f64) {
    rows.zip(rows_per_step.iter().copied()).max_by_key(|(rows, _)| *rows).unwrap_or((0, 1.0))
}

/// What of a recipe's images is kept, in words.
fn cached(parts: Parts, point: Option<VisionPoint>) -> Vec<String> {
    let features = point.filter(|_| parts.vision).map(|point| format!("vision features at {point}"));
    features.into_iter().chain(parts.generation.then(|| "image codes".to_owned())).collect()
}

/// Native names of the parameters of modules, matched by trailing whole segments as PEFT does.
pub(super) fn saved_parameters(config: &JanusConfig, modules: &[String]) -> Result<Vec<String>> {
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
