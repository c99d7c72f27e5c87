//! What a run writes while it goes on.

use janus_core::directory::Directory;
use janus_core::output::write_below;
use serde_json::Value;

use super::metrics::MetricsFile;
use super::plot::{Curve, loss_plot};
use super::tables::RecipeTable;
use crate::data::rejected::write_rejected;
use crate::error::Result;
use crate::eval::Metrics;
use crate::recipe::{Recipe, to_toml};

/// The resolved recipe.
pub(super) const RECIPE_FILE: &str = "recipe.toml";

/// Files of the run folder beside checkpoints and adapter.
pub(super) struct RunFiles {
    pub(super) metrics: MetricsFile,
    folder: Directory,
    curves: Vec<Curve>,
    /// Step and epoch of the last line of a step that was there.
    pub(super) last_epoch: Option<(u64, f64)>,
}

impl RunFiles {
    /// Writes the resolved recipe and the rows left out, and opens the metrics after their first `metrics_bytes`, what came
    /// later being cut off; lines before that are gone through again for the curves.
    pub(super) fn open(
        folder: &Directory,
        recipe: &Recipe,
        tables: &[RecipeTable],
        metrics_bytes: u64,
    ) -> Result<(Self, bool)> {
        write_below(folder, RECIPE_FILE, |file| file.write_all(to_toml(recipe).as_bytes()))?;
        let sources = tables.iter().flat_map(|table| std::iter::once(&table.train).chain(&table.eval));
        write_rejected(folder, "rejected.jsonl", sources.flat_map(|source| source.index.rejected()))?;
        let curve = |table: &RecipeTable| Curve { name: table.section.name.clone(), ..Curve::default() };
        let mut curves: Vec<Curve> = tables.iter().map(curve).collect();
        let mut last_epoch = None;
        let (metrics, whole) = MetricsFile::open(folder, metrics_bytes, &mut |line| {
            let number = |key| line.get(key).and_then(Value::as_f64);
            last_epoch = line.get("step").and_then(Value::as_u64).zip(number("epoch")).or(last_epoch);
            replay(&mut curves, line);
        })?;
        Ok((Self { metrics, folder: folder.clone(), curves, last_epoch }, whole))
    }

    pub(super) fn stepped(&mut self, step: u64, losses: &[Option<f64>]) {
        for (curve, loss) in self.curves.iter_mut().zip(losses) {
            curve.points.extend(loss.map(|loss| (step as f64, loss)));
        }
    }

    pub(super) fn evaluated(&mut self, step: u64, metrics: &Metrics) {
        evaluated(&mut self.curves, step, metrics);
    }

    /// Makes everything written so far durable; gives the length of the metrics.
    pub(super) fn sync(&mut self) -> Result<u64> {
        self.metrics.sync()
    }

    /// Draws what is drawn at the end; the adapter is that of `adapter_step`.
    pub(super) fn finish(&mut self, adapter_step: u64) -> Result<()> {
        self.sync()?;
        loss_plot(&self.curves, adapter_step, &self.folder, "loss.png")
    }
}

fn evaluated(curves: &mut [Curve], step: u64, metrics: &Metrics) {
    for curve in curves {
        let loss = metrics.get(&curve.name).and_then(|m| m.get("loss")).and_then(Value::as_f64);
        curve.evals.extend(loss.map(|loss| (step as f64, loss)));
    }
}

/// Puts a line of the metrics into the curves.
fn replay(curves: &mut [Curve], line: &Value) {
    let Some(step) = line.get("step").and_then(Value::as_u64) else { return };
    if let Some(eval) = line.get("eval") {
        if let Some(metrics) = eval.get("after").or(eval.get("before")).and_then(Value::as_object) {
            evaluated(curves, step, metrics);
        }
        return;
    }
    for curve in curves {
        let loss = line.get("losses").and_then(|losses| losses.get(&curve.name)).and_then(Value::as_f64);
        curve.points.extend(loss.map(|loss| (step as f64, loss)));
    }
}
