//! Base and tables of a recipe opened, its run worked out, nothing written.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;

use super::super::TrainError;
use super::super::checkpoint;
use super::super::identity::is_of_before;
use super::super::plan::Plan;
use super::super::stages::{self, Stage};
use super::super::tables::{RecipeTable, open_tables};
use super::start;
use crate::base::Base;
use crate::data::DataError;
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::status::Status;

/// A recipe whose base and tables are open and whose run is worked out.
#[derive(Debug)]
pub struct Prepared {
    /// The recipe.
    pub recipe: Recipe,
    /// Its base.
    pub base: Base,
    /// Its tables.
    pub tables: Vec<RecipeTable>,
    /// What will be done, all stages together.
    pub plan: Plan,
    /// The stages, one where the recipe has none.
    pub stages: Vec<Stage>,
    /// When its opening began.
    pub(super) started: Instant,
}

/// Opens what a recipe names and works out its run on `device`. Writes nothing.
///
/// # Errors
/// Anything wrong with base, data or targets.
pub fn prepare(recipe: Recipe, device: &Device, status: &dyn Status) -> Result<Prepared> {
    let started = Instant::now();
    let base = Base::open(&recipe.base.path, status)?;
    prepare_over(base, recipe, device, status, started)
}

/// As [`prepare`], for a look: what is not here is neither made nor fetched, a hub's small files aside. What comes of it cannot
/// be trained. A run that `resumes` does not look at the adapter that it began from.
///
/// # Errors
/// As [`prepare`].
pub fn look(recipe: Recipe, device: &Device, resumes: bool, status: &dyn Status) -> Result<Prepared> {
    let started = Instant::now();
    let base = Base::outline(&recipe.base.path, status)?;
    let prepared = prepare_over(base, recipe, device, status, started)?;
    if !resumes {
        start::check(&prepared.recipe, &prepared.base, &prepared.stages)?;
    }
    Ok(prepared)
}

/// The error of a run that cannot be prepared; where its rows are refused and `kept` is the recipe of an earlier version's run
/// in `folder`, which accepted them, an error that says so.
pub fn refused_now(error: Error, folder: &Path, kept: &str) -> Error {
    let is_of_rows = match &error {
        Error::Task(_) => true,
        Error::Data(error) => matches!(error, DataError::TooManyBadRows { .. } | DataError::NoAcceptedRows { .. }),
        _ => false,
    };
    if !is_of_rows || !is_of_before(kept) || checkpoint::steps(folder).is_empty() {
        return error;
    }
    let (folder, differences) = (folder.to_path_buf(), vec![format!("it accepted them, and now {error}")]);
    TrainError::OfBefore { folder, differences, refused: Some(Box::new(error)) }.into()
}

fn prepare_over(
    base: Base,
    recipe: Recipe,
    device: &Device,
    status: &dyn Status,
    started: Instant,
) -> Result<Prepared> {
    let tables = open_tables(&recipe, &base, status)?;
    let stages = stages::stages(&recipe, &base, &tables, device)?;
    let plan = Plan::whole(&recipe, &base, &tables, &stages)?;
    Ok(Prepared { recipe, base, tables, plan, stages, started })
}

impl Prepared {
    /// Works out how long a step takes, as [`Plan::estimate_time`].
    ///
    /// # Errors
    /// As [`Plan::estimate_time`].
    pub fn estimate_time(&mut self) -> Result<()> {
        let mut seconds = Some(0.0);
        for Stage { recipe, tables, plan, .. } in &mut self.stages {
            plan.estimate_time(recipe, &self.base, tables)?;
            let of_stage = plan.predicted_step_seconds.map(|seconds| seconds * plan.steps as f64);
            seconds = seconds.zip(of_stage).map(|(sum, own)| sum + own);
        }
        self.plan.predicted_step_seconds = seconds.map(|seconds| seconds / self.plan.steps.max(1) as f64);
        Ok(())
    }
}
