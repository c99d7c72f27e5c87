//! `janus eval`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use janus_core::ModelError;
use janus_core::output::require_file;
use serde::Serialize;
use serde_json::{Value, json};

use super::arguments::{DeviceArgument, attach, read_adapter};
use super::out::result;
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use crate::adapter::Adapter;
use crate::cache::CacheSettings;
use crate::culprit::explain;
use crate::error::{Error, Result};
use crate::eval::predictions::{self, Format};
use crate::eval::{Metrics, Networks, Settings, evaluate};
use crate::heads::Heads;
use crate::recipe::Recipe;
use crate::status::Status;
use crate::train::plan::{compute_type, parts};
use crate::train::readings::Reading;
use crate::train::run;

/// Evaluate a recipe's eval split, without and with an adapter; of tables that the adapter was not trained on, what it cost them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus eval recipes/quickstart.toml
  janus eval recipes/quickstart.toml --adapter runs/quickstart --json
  janus eval both.toml --adapter runs/questions-alone
  janus eval recipes/quickstart.toml --adapter runs/quickstart --predictions answers.jsonl
  janus eval recipes/creative.toml --adapter runs/creative --lpips lpips-vgg.pth --inception pt_inception-2015-12-05.pth")]
pub(super) struct Eval {
    /// Recipe file
    recipe: PathBuf,
    /// Keys of the recipe to set, as `section.key=value`
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Adapter folder, with a factor on its scale after a colon; several add up
    #[arg(long = "adapter", value_name = "DIR[:SCALE]")]
    adapters: Vec<String>,
    /// Weights of LPIPS with VGG-16 or AlexNet, to measure drawn pictures with (safetensors, or as PyTorch saved them)
    #[arg(long, value_name = "FILE")]
    lpips: Option<PathBuf>,
    /// Weights of the Inception-v3 that Fréchet distances are measured with, likewise
    #[arg(long, value_name = "FILE")]
    inception: Option<PathBuf>,
    /// Where what is answered to each row goes, without and with the adapter: `.parquet` or `.jsonl`
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgument,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        let outputs = self.predictions.clone().into_iter().collect();
        Writes { on_device: self.device.may_be_gpu(), outputs }
    }

    pub(super) fn run(self) -> Result<()> {
        let recipe = super::train::load(&self.recipe, &self.overrides)?;
        if recipe.data.iter().all(|section| section.eval.is_none()) {
            let message = format!("`{}` names no rows to evaluate", self.recipe.display());
            return Err(Error::Usage { message, hint: "set `eval` in a `[[data]]` section".into() });
        }
        let predictions_file = self.predictions.as_deref().map(predictions_file).transpose()?;
        let networks = Networks::open(self.lpips.as_deref(), self.inception.as_deref())?;
        let device = self.device.open()?;
        let run::Prepared { recipe, base, tables, .. } = run::prepare(recipe, &device, &Terminal)?;
        let adapters = self.adapters.iter().map(|a| read_adapter(a, &base, &Terminal)).collect::<Result<Vec<_>>>()?;
        for (name, what) in read_otherwise(&adapters, &recipe) {
            Terminal.warn(&format!("`{name}`: {what}"));
        }
        let parts = parts(&recipe, &tables);
        let settings = CacheSettings::from_environment()?;
        if settings.is_on() && (parts.vision || parts.generation) {
            base.cache().keep(&base.fingerprint(&Terminal)?, &settings);
        }
        let model = base.model(compute_type(&recipe), &device, parts, &Terminal)?;
        let (batch_size, answered) = (recipe.train.batch_size as usize, RefCell::default());
        let settings = Settings { batch_size, networks, predictions: self.predictions.is_some().then_some(&answered) };
        let before = evaluate(&model, &base, &Heads::new(), &tables, &settings, &Terminal)?;
        let without = answered.take();
        let after = if adapters.is_empty() {
            Metrics::new()
        } else {
            let heads = attach(&model, &adapters)?;
            evaluate(&model, &base, &heads, &tables, &settings, &Terminal)?
        };
        base.cache().tell(&Terminal);
        require_losses(&before).map_err(|error| explain(error, &base, &[]))?;
        require_losses(&after).map_err(|error| explain(error, &base, &adapters))?;
        if let Some((path, format)) = &predictions_file {
            predictions::write(path, *format, &without, &answered.take())?;
        }
        let forgotten = forgetting(&adapters, &before, &after);
        if self.json {
            let mut result = json!({ "before": before });
            if !adapters.is_empty() {
                result["after"] = json!(after);
                result["forgetting"] = json!(forgotten);
            }
            report::json(&result);
        } else {
            result!("{}", table(&before, &after));
            for (name, Change { before, after }) in &forgotten {
                let (word, change) = (if after > before { "lost" } else { "kept" }, after - before);
                result!("not trained on: {name} {word}: loss {before:.4} without the adapter, {change:+.4} with it");
            }
        }
        Ok(())
    }
}

/// Where answers go, and in which format.
fn predictions_file(path: &Path) -> Result<(PathBuf, Format)> {
    let Some(format) = Format::of(path) else {
        let message = format!("`--predictions {}` is named neither `.parquet` nor `.jsonl`", path.display());
        return Err(Error::Usage { message, hint: "the name says the format".into() });
    };
    if path.symlink_metadata().is_ok() {
        let message = format!("`{}` is there already", path.display());
        return Err(Error::Usage { message, hint: "name another file, or move this one away".into() });
    }
    Ok((require_file(path)?, format))
}

/// Tables whose pictures an adapter saw otherwise, with the key and both values.
fn read_otherwise(adapters: &[(Adapter, f64)], recipe: &Recipe) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for was in adapters.iter().filter_map(|(adapter, _)| adapter.note.as_ref()?.recipe.as_deref()) {
        let trained = Reading::all(was);
        for now in recipe.data.iter().filter_map(Reading::of) {
            let differences = now.differences(&trained, "an adapter was trained with", "the recipe has");
            found.extend(differences.into_iter().map(|difference| (now.table.clone(), difference)));
        }
    }
    found
}

/// Refuses figures of a model whose losses are not finite: JSON would print `null`.
fn require_losses(metrics: &Metrics) -> Result<()> {
    let is_lost = |figures: &Value| figures.get("loss").is_some_and(Value::is_null);
    match metrics.values().position(is_lost) {
        None => Ok(()),
        Some(row) => Err(ModelError::NotFinite { what: "losses of the tables", row, value: f32::NAN }.into()),
    }
}

/// The loss of rows that an adapter was not trained on.
#[derive(Debug, Serialize)]
struct Change {
    before: f64,
    after: f64,
}

/// What became of the tables that no adapter says it was trained on: of a joint recipe, usually the other modality.
fn forgetting(adapters: &[(Adapter, f64)], before: &Metrics, after: &Metrics) -> BTreeMap<String, Change> {
    let recipes = adapters.iter().filter_map(|(adapter, _)| adapter.note.as_ref()?.recipe.as_deref());
    let mut trained = BTreeSet::new();
    for recipe in recipes {
        let Ok(recipe) = recipe.parse::<toml::Table>() else { return BTreeMap::new() };
        let tables = recipe.get("data").and_then(toml::Value::as_array).into_iter().flatten();
        trained.extend(tables.filter_map(|table| Some(table.get("name")?.as_str()?.to_owned())));
    }
    if trained.is_empty() {
        // No adapter says anything.
        return BTreeMap::new();
    }
    let loss = |metrics: &Metrics, name: &str| metrics.get(name)?.get("loss")?.as_f64();
    let change = |name: &String| {
        let change = Change { before: loss(before, name)?, after: loss(after, name)? };
        Some((name.clone(), change))
    };
    before.keys().filter(|name| !trained.contains(*name)).filter_map(change).collect()
}

/// Metrics without and with the adapter, a line each; `after` may be empty.
pub(super) fn table(before: &Metrics, after: &Metrics) -> String {
    let mut rows = Vec::new();
    let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
    for name in names {
        let figures = [before, after].map(|metrics| metrics.get(name));
        let Some(metrics) = figures[0].or(figures[1]) else { continue };
        for (metric, _) in metrics.as_object().into_iter().flatten().filter(|(_, value)| value.is_number()) {
            let figure = |value: &serde_json::Value| match value.as_f64() {
                Some(_) if value.is_u64() => value.to_string(),
                Some(figure) => format!("{figure:.4}"),
                None => String::new(),
            };
            let own = |metrics: Option<&serde_json::Value>| metrics.and_then(|m| m.get(metric)).map(figure);
            let mut row = vec![format!("{name} {}", metric.replace('_', " ")), own(figures[0]).unwrap_or_default()];
            row.extend(own(figures[1]));
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return "no rows to evaluate".into();
    }
    if after.is_empty() {
        report::table(&["metric", "base"], &rows)
    } else {
        report::table(&["metric", "base", "with adapter"], &rows)
    }
}
