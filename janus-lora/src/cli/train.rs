//! `janus train`.

use std::path::{Path, PathBuf};

use clap::Args;
use janus_core::directory::Directory;
use serde_json::json;

use super::arguments::DeviceArgument;
use super::out::{done, result};
use super::sandbox::Writes;
use super::status::Terminal;
use super::{report, samples};
use crate::base::is_random;
use crate::error::{Error, Result};
use crate::recipe::{self, AdapterMethod, AdapterSection, BaseDtype, Orientation, Recipe};
use crate::report::expected::{ExpectedCurve, Outside};
use crate::report::record::Record;
use crate::status::{Status, duration};
use crate::train::ending::Ending;
use crate::train::folder::{RunFolder, is_run};
use crate::train::readings::is_of_stored_pictures;
use crate::train::run::{self, Finished, Prepared};
use crate::train::signals;

/// A run's recipe is read up to so many bytes, as any is.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// Train an adapter as a recipe says.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus train recipes/quickstart.toml
  janus train recipes/quickstart.toml --dry-run
  janus train recipes/quickstart.toml --resume
  janus train my.toml train.learning_rate=1e-4 adapter.rank=16 data.0.train=rows.parquet output.dir=runs/second")]
pub(super) struct Train {
    /// Recipe file
    recipe: PathBuf,
    /// Keys of the recipe to set, as `section.key=value`
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    #[command(flatten)]
    device: DeviceArgument,
    /// Print the plan and write nothing: of a hub only configurations and the ends of tables are fetched
    #[arg(long)]
    dry_run: bool,
    /// Go on with the run in `output.dir` from its last checkpoint; start where there is none
    #[arg(long)]
    resume: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Reads a recipe with its overrides.
pub(super) fn load(path: &Path, overrides: &[String]) -> Result<Recipe> {
    Ok(recipe::load(path, overrides, Path::new("."))?)
}

impl Train {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        // A recipe that cannot be read is told of by the run itself.
        let outputs = load(&self.recipe, &self.overrides).ok().map(|recipe| recipe.output.dir).into_iter().collect();
        Writes { outputs, on_device: self.device.may_be_gpu() }
    }

    /// The recipe, and the one that the run kept that is resumed; where that run began when pictures were read as stored, one
    /// that reads them so.
    fn read(&self) -> Result<(Recipe, Option<String>)> {
        let recipe = load(&self.recipe, &self.overrides)?;
        if self.resume {
            self.refuse_elsewhere(&recipe.output.dir)?;
        }
        let began =
            |dir: &Path| janus_core::input::read(&Directory::open(dir).ok()?, "recipe.toml", MAX_RECIPE_BYTES).ok()?;
        let was = if self.resume { began(&recipe.output.dir) } else { None };
        let was = was.map(|was| String::from_utf8_lossy(&was).into_owned());
        if !was.as_deref().is_some_and(is_of_stored_pictures) {
            return Ok((recipe, was));
        }
        let as_stored = recipe::load_oriented(&self.recipe, &self.overrides, Path::new("."), Orientation::Stored)?;
        if as_stored != recipe {
            Terminal.warn(&format!(
                "the run in {} reads pictures as they are stored and continues to: `orientation = \"stored\"` in `[[data]]` \
                 says so in the recipe, too",
                recipe.output.dir.display()
            ));
        }
        Ok((as_stored, was))
    }

    /// Refuses the recipe of a run folder that was moved or copied, which names the folder where it lay: that would begin a new
    /// run there, or lengthen another.
    fn refuse_elsewhere(&self, dir: &Path) -> Result<()> {
        let Some(folder) = self.recipe.parent().filter(|_| self.recipe.file_name().is_some_and(|n| n == "recipe.toml"))
        else {
            return Ok(());
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let is_same = fs_err::canonicalize(folder).ok() == fs_err::canonicalize(dir).ok();
        let is_named = self.overrides.iter().any(|key| key.trim_start().starts_with("output.dir"));
        if is_same || is_named || !is_run(folder) {
            return Ok(());
        }
        Err(Error::Usage {
            message: format!(
                "`{}` lies in a run folder, but its `output.dir` is `{}`",
                self.recipe.display(),
                dir.display()
            ),
            hint: format!("`output.dir={}` resumes the run in the folder that it lies in", folder.display()),
        })
    }

    pub(super) fn run(self) -> Result<()> {
        let (recipe, was) = self.read()?;
        let dir = recipe.output.dir.clone();
        let finished = if self.resume && !self.dry_run { run::finished(&recipe)? } else { None };
        if let Some(finished) = finished.as_ref().filter(|finished| finished.same_length) {
            self.tell_finished(&recipe.output.dir, finished);
            return Ok(());
        }
        // Told at once, not after all rows were looked through.
        let folder = match (self.dry_run, self.resume) {
            (true, _) => None,
            (false, false) => Some(RunFolder::fresh(&recipe.output.dir)?),
            // It may have nothing left to do, and its folder may be one that cannot be written to.
            (false, true) if finished.is_some() => None,
            (false, true) => Some(RunFolder::resume(&recipe.output.dir)?),
        };
        let device = self.device.open()?;
        let prepared = match self.dry_run {
            true => run::look(recipe, &device, self.resume, &Terminal),
            false => run::prepare(recipe, &device, &Terminal),
        };
        let mut prepared = prepared.map_err(|error| match &was {
            Some(was) => run::refused_now(error, &dir, was),
            None => error,
        })?;
        if self.dry_run {
            if device.is_cpu() {
                prepared.estimate_time()?;
            }
            if self.json {
                report::json(&prepared.plan);
            } else {
                result!("{}", plan_text(&prepared));
            }
            return if device.is_cpu() { prepared.plan.require_room() } else { Ok(()) };
        }
        if let Some(finished) = finished.filter(|finished| finished.steps() == Some(prepared.plan.steps)) {
            self.tell_finished(&dir, &finished);
            return Ok(());
        }
        let folder = folder.map_or_else(|| RunFolder::resume(&dir), Ok)?;
        Terminal.note(&plan_text(&prepared));
        signals::listen();
        let expected = self.expected()?;
        let summary = run::train(&prepared, folder, &device, &Terminal)?;
        let outside = expected.map(|expected| expected.outside(&summary.folder)).transpose()?;
        if self.json {
            report::json(&json!({
                "dir": summary.folder,
                "steps": summary.steps,
                "ending": summary.ending,
                "resumed_from": summary.resumed_from,
                "skipped_steps": summary.skipped_steps,
                "best": summary.best,
                "before": summary.before,
                "after": summary.after,
                "peak_rss_bytes": summary.peak_rss_bytes,
                "predicted_peak_bytes": prepared.plan.predicted_peak_bytes,
                "opening_seconds": summary.opening_seconds,
                "training_seconds": summary.training_seconds,
                "wait_seconds": summary.wait_seconds,
                "loss_curve": outside.map(|outside| json!({ "inside": outside.is_empty(), "outside": outside })),
            }));
            return Ok(());
        }
        done!("{}", super::eval::table(&summary.before, &summary.after));
        // The run is done and saved: what cannot be shown of it is no failure of it.
        match Record::read(&summary.folder) {
            Ok(record) => samples::text(&record).iter().for_each(|samples| done!("\n{samples}")),
            Err(error) => Terminal.warn(&format!("no samples can be shown: {error}")),
        }
        done!(
            "\nadapter in {}: {} steps in {} ({:.1} % of it waiting for rows), peak memory {} (predicted {})",
            summary.folder.display(),
            summary.steps,
            duration(summary.training_seconds),
            100.0 * summary.wait_seconds / summary.training_seconds.max(f64::MIN_POSITIVE),
            report::bytes(summary.peak_rss_bytes),
            report::bytes(prepared.plan.predicted_peak_bytes)
        );
        if let Some(remark) = summary.ending.remark() {
            done!("{remark}");
        }
        if summary.skipped_steps > 0 {
            done!("{} steps gave no finite loss and gradient and were skipped", summary.skipped_steps);
        }
        if let Some(outside) = outside {
            done!("{}", curve_text(&outside));
        }
        done!("what happened: {}", summary.folder.join("report.html").display());
        Ok(())
    }
}

impl Train {
    fn tell_finished(&self, dir: &Path, Finished { metrics, .. }: &Finished) {
        if self.json {
            report::json(&json!({ "dir": dir, "finished": true, "metrics": metrics }));
        } else {
            done!("the run in {} is finished: nothing to do", dir.display());
            let ending = serde_json::from_value::<Ending>(metrics.clone()).ok();
            ending.and_then(|ending| ending.remark()).iter().for_each(|remark| done!("{remark}"));
        }
    }

    /// The losses that the recipe's runs are expected to have, where it is run as it stands.
    fn expected(&self) -> Result<Option<ExpectedCurve>> {
        let changes_nothing = |key: &String| key.trim_start().starts_with("output.");
        if !self.overrides.iter().all(changes_nothing) {
            return Ok(None);
        }
        Ok(ExpectedCurve::beside(&self.recipe)?)
    }
}

/// Whether losses were as expected, in words.
fn curve_text(outside: &[Outside]) -> String {
    let Some(first) = outside.first() else {
        return "loss curve: inside the range that the recipe expects".into();
    };
    let Outside { table, steps: [from, to], loss, expected: [least, most] } = first;
    let loss = loss.map_or_else(|| "none".to_owned(), |loss| format!("{loss:.4}"));
    let more = if outside.len() > 1 { format!(", and {} places more", outside.len() - 1) } else { String::new() };
    format!(
        "loss curve: outside what the recipe expects: `{table}`, steps {from} to {to}: {loss}, expected {least:.4} to {most:.4}{more}"
    )
}

/// Method, rank and scale, as far as the method has them.
fn form_text(adapter: &AdapterSection) -> String {
    let mut parts = Vec::new();
    if adapter.method != AdapterMethod::Lora {
        parts.push(adapter.method.to_string());
    }
    if adapter.method.takes("rank") {
        parts.push(format!("rank {}", adapter.rank));
    }
    if adapter.method.takes("scale") {
        parts.push(format!("scale {}", adapter.effective_scale()));
    }
    parts.iter().map(|part| format!("{part}, ")).collect()
}

/// The plan in words.
fn plan_text(prepared: &Prepared) -> String {
    let Prepared { recipe, base, plan, .. } = prepared;
    let share = 100.0 * plan.trainable_parameters as f64 / plan.total_parameters as f64;
    let mut lines = vec![
        format!(
            "base       {}, {} parameters{}",
            base.name(),
            report::count(plan.total_parameters),
            if is_random(base.name()) { ", random weights" } else { "" }
        ),
        format!(
            "adapter    {}{} sites, {} trainable parameters ({share:.2} %)",
            form_text(&recipe.adapter),
            plan.sites.len(),
            report::count(plan.trainable_parameters)
        ),
    ];
    for group in groups(&plan.sites.iter().map(AsRef::as_ref).collect::<Vec<_>>()) {
        lines.push(format!("           {group}"));
    }
    if !plan.saved_parameters.is_empty() {
        let copies = groups(&plan.saved_parameters.iter().map(String::as_str).collect::<Vec<_>>());
        for (number, group) in copies.iter().enumerate() {
            lines.push(format!("{:<11}{group}", if number == 0 { "copies" } else { "" }));
        }
    }
    if plan.dynamic.is_some() {
        lines.push(format!("dynamic    {} values of the visual encoder", report::count(plan.dynamic_parameters)));
    }
    if !plan.heads.is_empty() {
        let heads = plan.heads.iter().map(|(name, kind)| format!("{name} ({})", kind.task()));
        let heads: Vec<String> = heads.collect();
        lines.push(format!("heads      {}, {} values", heads.join(", "), report::count(plan.head_parameters)));
    }
    if let Some(mifs) = &recipe.mifs {
        lines.push(format!("alignment  of the mid features of both visual paths, weight {}", mifs.weight));
    }
    if !plan.unused_sites.is_empty() {
        lines.push(format!("left out   {} sites that no task of the recipe uses", plan.unused_sites.len()));
    }
    for table in &plan.tables {
        let rejected = if table.rejected > 0 { format!(", {} left out", table.rejected) } else { String::new() };
        lines.push(format!(
            "data       {} ({}): {} rows{rejected}, {} to evaluate",
            table.name, table.task, table.rows, table.eval_rows
        ));
    }
    for (number, stage) in plan.stages.iter().enumerate() {
        lines.push(format!(
            "{:<11}{}: {} steps of {}, {} trainable parameters",
            if number == 0 { "stages" } else { "" },
            stage.name,
            stage.steps,
            stage.tables.join(", "),
            report::count(stage.trainable_parameters)
        ));
    }
    if !plan.cached.is_empty() {
        lines.push(format!("cached     {}", plan.cached.join(", ")));
    }
    lines.push(format!(
        "run        {} steps, about {} of memory",
        plan.steps,
        report::bytes(plan.predicted_peak_bytes)
    ));
    for stage in &prepared.stages {
        let of_stage = stage.name.as_ref().map(|name| format!(" of stage {name}")).unwrap_or_default();
        for (table, drawn) in stage.plan.repeated() {
            let times = drawn / table.rows as f64;
            lines.push(format!(
                "           a step{of_stage} draws {} rows of `{}`, which has {}: each about {times:.2} times",
                rounded(drawn),
                table.name,
                table.rows
            ));
        }
    }
    let parts = plan.predicted_memory.parts();
    let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
    let parts: Vec<String> = parts.map(|(name, bytes)| format!("{name} {}", report::bytes(*bytes))).collect();
    lines.push(format!("           {}", parts.join(", ")));
    // Weights and what a step keeps are twice as wide then.
    let more_bytes = plan.predicted_memory.base + plan.predicted_memory.activations;
    if recipe.base.dtype == BaseDtype::Bf16
        && let Some(hint) = report::faster_type("base.dtype=f32", Some(more_bytes))
    {
        lines.push(format!("           hint: {hint}"));
    }
    if let Some(seconds) = plan.predicted_step_seconds {
        lines.push(format!(
            "           estimated {} per step, {} for all steps, at the rate of a short rehearsal on this machine now",
            if seconds < 60.0 { format!("{seconds:.2} s") } else { duration(seconds) },
            duration(seconds * plan.steps as f64)
        ));
    }
    lines.push(format!("output     {}", recipe.output.dir.display()));
    lines.join("\n")
}

/// A number with at most two decimals.
fn rounded(value: f64) -> String {
    ((value * 100.0).round() / 100.0).to_string()
}

/// Paths with their numbers replaced by `*`, each once, with how many stand behind it.
fn groups(paths: &[&str]) -> Vec<String> {
    let mut groups: Vec<(String, usize)> = Vec::new();
    for path in paths {
        let segments = path.split('.').map(|s| if s.parse::<usize>().is_ok() { "*" } else { s });
        let name = segments.collect::<Vec<_>>().join(".");
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => groups.push((name, 1)),
        }
    }
    groups.into_iter().map(|(name, count)| if count == 1 { name } else { format!("{name} x {count}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_told_by_group() {
        let paths = ["model.a.0.q_proj", "model.a.1.q_proj", "model.b.fc1"];
        assert_eq!(groups(&paths), ["model.a.*.q_proj x 2", "model.b.fc1"]);
    }

    #[test]
    fn numbers_have_two_decimals_at_most() {
        let told = [80.0 / 11.0, 16.0, 2.5, 1e9, 0.005_1].map(rounded);
        assert_eq!(told, ["7.27", "16", "2.5", "1000000000", "0.01"]);
    }
}
