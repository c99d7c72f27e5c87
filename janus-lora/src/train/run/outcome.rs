//! A run that is over: what it came to, and what can be done after it.

use std::path::Path;

use janus_core::directory::Directory;
use serde_json::Value;

use super::super::TrainError;
use super::super::error::shell_word;
use super::super::files::RECIPE_FILE;
use super::super::folder::is_finished;
use super::super::identity::recipe_differences;
use crate::adapter::{Note, as_argument};
use crate::error::Result;
use crate::recipe::{Recipe, to_toml};

/// A run that is over.
#[derive(Debug)]
pub struct Finished {
    /// What it came to, as in `janus_adapter.json`.
    pub metrics: Value,
    /// Whether the recipe names the same number of steps or epochs; otherwise the plan tells whether it asks for more.
    pub same_length: bool,
}

impl Finished {
    /// Steps that it was planned to have.
    pub fn steps(&self) -> Option<u64> {
        self.metrics.get("planned_steps").or_else(|| self.metrics.get("steps"))?.as_u64()
    }
}

/// What the run in the folder of a recipe came to, if it is over.
///
/// # Errors
/// [`TrainError::OtherRun`] where it was a run of another recipe.
pub fn finished(recipe: &Recipe) -> Result<Option<Finished>> {
    let folder = recipe.output.dir.as_path();
    if !is_finished(folder) {
        return Ok(None);
    }
    let run = Directory::open(folder).map_err(|source| TrainError::Read { path: folder.to_path_buf(), source })?;
    let note = Note::read(&run)?.unwrap_or_default();
    let mut same_length = true;
    if let Some(was) = &note.recipe {
        let now = to_toml(recipe);
        let differences = recipe_differences(was, &now);
        if !differences.is_empty() {
            let folder = folder.to_path_buf();
            return Err(TrainError::OtherRun { folder, differences, instead: Vec::new() }.into());
        }
        same_length = length(was) == length(&now);
    }
    Ok(Some(Finished { metrics: note.metrics.unwrap_or_default(), same_length }))
}

/// How long a recipe says its run is: `train.steps` and `train.epochs`.
fn length(recipe: &str) -> Option<[Option<i64>; 2]> {
    let recipe: toml::Table = recipe.parse().ok()?;
    let train = recipe.get("train")?;
    Some(["steps", "epochs"].map(|key| train.get(key).and_then(toml::Value::as_integer)))
}

/// What can be done where a run cannot be given other steps, for its rate falls over all of them.
pub(super) fn instead_of_steps(recipe: &Recipe, steps: u64) -> Vec<String> {
    let folder = recipe.output.dir.as_path();
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = |what: &str| shell_word(&folder.with_file_name(format!("{name}-{what}")));
    let kept = shell_word(&folder.join(RECIPE_FILE));
    let mut hints = Vec::new();
    if recipe.stages.is_empty() {
        let other = beside(&steps.to_string());
        hints.push(format!("a new run of {steps} steps: `janus train {kept} train.steps={steps} output.dir={other}`"));
    }
    // A head is no part of what is merged: such a run would begin with a new one.
    let has_heads = recipe.data.iter().any(|table| table.task.has_head());
    if is_finished(folder) && !has_heads {
        let (base, merged) = (shell_word(Path::new(&recipe.base.path)), beside("merged"));
        let adapter = shell_word(&as_argument(folder));
        hints.push(format!(
            "a run that begins where this one ended: `janus merge --base {base} --adapter {adapter} --dtype f32 --out \
             {merged} && janus train {kept} base.path={merged} base.dtype=f32 output.dir={}`",
            beside("more")
        ));
    }
    hints.push("a run with `train.schedule = \"constant\"` can be given more steps at any time".into());
    hints
}
