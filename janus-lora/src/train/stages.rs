//! The stages of a run: what each trains, on which tables, from where to where; a run without stages is one of them.
//!
//! All stages share one adapter, which holds whatever any of them trains. A stage moves its own part of it; copies that others
//! have trained stand in the base's place ([`Base::with_values`]), pairs and heads go on as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use janus_core::checkpoint::tensor_digest;
use janus_core::{Janus, Parts};
use sha2::{Digest, Sha256};

use super::TrainError;
use super::checkpoint::hex;
use super::plan::{Plan, compute_type, parts};
use super::run::stepper;
use super::step::Stepper;
use super::tables::RecipeTable;
use super::trainable::Trainables;
use crate::adapter::{Adapter, AdapterSpec};
use crate::base::Base;
use crate::cache::CacheSettings;
use crate::dynamic::Paths;
use crate::error::Result;
use crate::recipe::{Recipe, Stage as StageRecipe};
use crate::status::Status;

/// Native names of the parameters on which image codes depend.
const CODES: &str = "model.vqmodel.";

/// One stage, worked out.
#[derive(Debug)]
pub struct Stage {
    /// Its name, absent where the run has no stages.
    pub name: Option<String>,
    /// What holds in it.
    pub recipe: Recipe,
    /// The tables that it learns from.
    pub tables: Vec<RecipeTable>,
    /// Their numbers among the recipe's.
    pub numbers: Vec<usize>,
    /// What it will do.
    pub plan: Plan,
    /// Steps of the run before it.
    pub first_step: u64,
}

impl Stage {
    /// Steps of the run up to its end.
    pub fn end(&self) -> u64 {
        self.first_step + self.plan.steps
    }

    /// A figure of each of its tables among all of the recipe's.
    pub(super) fn among_all<T: Clone>(&self, own: &[Option<T>], all: usize) -> Vec<Option<T>> {
        let mut spread = vec![None; all];
        for (number, value) in self.numbers.iter().zip(own) {
            if let Some(place) = spread.get_mut(*number) {
                place.clone_from(value);
            }
        }
        spread
    }
}

/// Works out every stage of a recipe.
///
/// # Errors
/// As [`Plan::new`].
pub(super) fn stages(recipe: &Recipe, base: &Base, tables: &[RecipeTable], device: &Device) -> Result<Vec<Stage>> {
    let whole = |recipe: &Recipe| StageRecipe { name: String::new(), recipe: recipe.clone() };
    let recipes = if recipe.stages.is_empty() { vec![whole(recipe)] } else { recipe.stages.clone() };
    let mut first_step = 0;
    let mut stages = Vec::with_capacity(recipes.len());
    for StageRecipe { name, recipe } in recipes {
        let is_own = |table: &RecipeTable| recipe.data.iter().any(|own| own.name == table.section.name);
        let numbers: Vec<usize> = (0..tables.len()).filter(|number| is_own(&tables[*number])).collect();
        let tables: Vec<RecipeTable> = numbers.iter().map(|number| tables[*number].clone()).collect();
        let plan = Plan::new(&recipe, base, &tables, device)?;
        let name = (!name.is_empty()).then_some(name);
        let stage = Stage { name, recipe, tables, numbers, plan, first_step };
        first_step = stage.end();
        stages.push(stage);
    }
    require_one_form(base, &stages)?;
    Ok(stages)
}

/// Refuses a site that stages give different ranks or scales: it has one pair in the adapter.
fn require_one_form(base: &Base, stages: &[Stage]) -> Result<()> {
    let mut forms: BTreeMap<Arc<str>, (usize, f64)> = BTreeMap::new();
    for stage in stages {
        let spec = stage.plan.adapter_spec(&stage.recipe, base);
        for site in &spec.sites {
            let rank = spec.ranks.get(site).copied().unwrap_or(spec.rank);
            let now = (rank, spec.alphas.get(site).copied().unwrap_or(spec.alpha));
            let was = *forms.entry(site.clone()).or_insert(now);
            if was != now {
                let (path, stage) = (site.to_string(), stage.name.clone().unwrap_or_default());
                return Err(TrainError::OtherForm { path, stage, was, now }.into());
            }
        }
    }
    Ok(())
}

/// What the adapter of all stages is made of.
pub(super) fn whole_spec(recipe: &Recipe, base: &Base, stages: &[Stage]) -> AdapterSpec {
    let mut specs = stages.iter().map(|stage| stage.plan.adapter_spec(&stage.recipe, base));
    let mut whole = specs.next().unwrap_or_else(|| AdapterSpec {
        rank: recipe.adapter.rank as usize,
        alpha: recipe.adapter.effective_alpha(),
        dropout: recipe.adapter.dropout,
        ..AdapterSpec::default()
    });
    for spec in specs {
        if whole.sites.is_empty() {
            // The form is that of the stages with sites.
            let (sites, modules_to_save) = (Vec::new(), std::mem::take(&mut whole.modules_to_save));
            let (dynamic, heads) = (whole.dynamic, std::mem::take(&mut whole.heads));
            let (aligns, base_name) = (whole.aligns, whole.base_name.clone());
            whole = AdapterSpec { sites, modules_to_save, dynamic, heads, aligns, base_name, ..spec.clone() };
        }
        whole.method = whole.method.with_sites_of(&spec.method);
        whole.ranks.extend(spec.ranks);
        whole.alphas.extend(spec.alphas);
        let known: BTreeSet<Arc<str>> = whole.sites.iter().cloned().collect();
        whole.sites.extend(spec.sites.into_iter().filter(|site| !known.contains(site)));
        for module in spec.modules_to_save {
            if !whole.modules_to_save.contains(&module) {
                whole.modules_to_save.push(module);
            }
        }
        let either =
            |a: Paths, b: Paths| Paths { vision: a.vision || b.vision, generation: a.generation || b.generation };
        whole.dynamic = match (whole.dynamic, spec.dynamic) {
            (Some(a), Some(b)) => Some(either(a, b)),
            (a, b) => a.or(b),
        };
        for (name, kind) in spec.heads {
            if !whole.heads.iter().any(|(known, _)| *known == name) {
                whole.heads.push((name, kind));
            }
        }
        whole.aligns |= spec.aligns;
    }
    whole
}

/// Parts of the model that some stage, or an evaluation of all tables, uses.
pub(super) fn whole_parts(recipe: &Recipe, stages: &[Stage], tables: &[RecipeTable]) -> Parts {
    stages.iter().fold(parts(recipe, tables), |all, stage| all.union(parts(&stage.recipe, &stage.tables)))
}

/// What a stage computes with.
pub(super) struct Opened {
    /// The base as the stages before left it.
    pub(super) base: Base,
    /// Its model.
    pub(super) model: Janus,
    /// What moves in it.
    pub(super) stepper: Stepper,
}

/// A base with what an adapter's copies have become, and a model of it.
pub(super) fn with_copies(base: &Base, fingerprint: &str, adapter: &Adapter, settings: &CacheSettings) -> Result<Base> {
    let mut changed: BTreeMap<&str, &Tensor> = BTreeMap::new();
    let mut digests = [Sha256::new(), Sha256::new()];
    for (name, value) in &adapter.saved {
        if base.checkpoint().matches(name, value)? {
            continue;
        }
        changed.insert(name, value);
        let digest = &mut digests[usize::from(name.starts_with(CODES))];
        digest.update(name.as_bytes());
        digest.update(tensor_digest(value)?);
    }
    if changed.is_empty() {
        return Ok(base.clone());
    }
    let is_code = |name: &&str| name.starts_with(CODES);
    let counts = [changed.keys().any(|name| !is_code(name)), changed.keys().any(is_code)];
    let known: Vec<String> = digests
        .into_iter()
        .zip(counts)
        .map(|(digest, any)| match any {
            true => format!("{fingerprint} with {}", hex(&digest.finalize())),
            false => fingerprint.to_owned(),
        })
        .collect();
    let base = base.with_values(changed.into_iter())?;
    if let ([features, codes], true) = (known.as_slice(), settings.is_on()) {
        base.cache().keep_by(features, codes, settings);
    }
    Ok(base)
}

impl Stage {
    /// Opens the stage's model with the adapter as the stages before left it. `base` has the adapter's copies in their place.
    ///
    /// # Errors
    /// A file that cannot be read, or what the adapter reports.
    pub(super) fn open(
        &self,
        number: usize,
        base: Base,
        adapter: Adapter,
        device: &Device,
        status: &dyn Status,
    ) -> Result<Opened> {
        let model = base.model(compute_type(&self.recipe), device, parts(&self.recipe, &self.tables), status)?;
        let spec = self.plan.adapter_spec(&self.recipe, &base);
        let own = Adapter::blank(base.config(), base.checkpoint().is_tied(), &spec)?;
        let names: BTreeSet<String> = own.tensors().into_iter().chain(own.extras()).map(|(name, _)| name).collect();
        let trainables = Trainables::attach_some(&model, adapter, &|name| names.contains(name))?;
        base.cache().move_with(trainables.moving(&model));
        let trainables = trainables.with_rates(&self.recipe.train.rates)?;
        let trainables = trainables.with_lora_plus(self.recipe.train.lora_plus_ratio);
        let stepper = stepper(&self.recipe, &self.tables, trainables, number)
            .with_recompute(self.plan.recompute)
            .with_side_by_side(self.plan.side_by_side)
            .with_first_step(self.first_step);
        Ok(Opened { base, model, stepper })
    }
}
