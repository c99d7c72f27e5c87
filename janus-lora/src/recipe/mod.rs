//! Recipes: what is trained, from what, on what and how, as a TOML file that the command line may override.
//!
//! [`load`] reads a file and its overrides into one tree of values that know where they were written (`tree`,
//! `overrides`), checks every key and value against the sections declared in `types` (`value`, `read`), makes input
//! paths absolute (`resolve`) and gives a [`Recipe`], or every fault at once, each with its line and what is wrong in it
//! (`fault`, `location`, `error`). [`to_toml`] writes a recipe that reads back equal; [`catalog()`] lists a folder's,
//! [`shipped_catalog`] those that the program carries.
//! [`json_schema()`] and [`reference_page`] tell of the same keys to editors and readers.

mod adapter;
mod catalog;
mod error;
mod fault;
mod json_schema;
mod location;
mod overrides;
mod read;
mod reference;
mod resolve;
pub mod schema;
mod shipped;
mod stages;
mod tree;
mod types;
mod value;
mod write;

#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::Path;

pub use adapter::{AdapterInit, AdapterMethod, AdapterSection, Patterns};
pub use catalog::{CatalogEntry, catalog};
pub use error::RecipeError;
pub use fault::{Problem, RecipeFault};
pub use json_schema::json_schema;
pub use location::{Location, Origin};
pub use reference::markdown as reference_page;
pub use shipped::{SHIPPED, ShippedRecipe, shipped, shipped_catalog};
pub use types::{
    Accumulation, BaseDtype, BaseSection, BoxFormat, Columns, DataLimits, DataSection, DynamicPlace, DynamicSection,
    EarlyStopping, Goal, MifsSection, Mixture, Orientation, OutputSection, Rates, Recipe, Recompute, Schedule, Stage,
    StageSection, Task, TooLong, TrainSection,
};
pub use write::to_toml;

/// Larger files are no recipes.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// What lies beside the recipe of a run, and beside that of a finished adapter.
const RUN_FILES: &[&str] = &["metrics.jsonl", "janus_adapter.json"];

/// Reads a recipe with overrides (`key=value`, later ones over earlier ones), checks it and makes its paths absolute.
///
/// Inputs named in the file are relative to its folder, those named in overrides and all outputs to `current_folder`.
/// No input but the recipe is opened. A `recipe.toml` in the folder of a run is that run's: where it does not say which way
/// up pictures are read, it is from before there was a choice, and they are read as stored.
///
/// # Errors
/// [`RecipeError::Faults`] with every fault of file and overrides; a file that cannot be read, is no text or too large.
pub fn load(path: &Path, overrides: &[String], current_folder: &Path) -> Result<Recipe, RecipeError> {
    let beside = |name: &&str| current_folder.join(path).with_file_name(name).is_file();
    let is_of_run = path.file_name().is_some_and(|name| name == "recipe.toml") && RUN_FILES.iter().any(beside);
    let orientation = if is_of_run { Orientation::Stored } else { Orientation::Upright };
    load_oriented(path, overrides, current_folder, orientation)
}

/// As [`load`], where pictures of tables that do not say it are read this way up.
///
/// # Errors
/// As [`load`].
pub fn load_oriented(
    path: &Path,
    overrides: &[String],
    current_folder: &Path,
    orientation: Orientation,
) -> Result<Recipe, RecipeError> {
    load_text(path, &read_text(path, current_folder)?, overrides, current_folder, orientation)
}

/// As [`load_oriented`], of the text of a file that may or may not be there.
fn load_text(
    path: &Path,
    text: &str,
    overrides: &[String],
    current_folder: &Path,
    orientation: Orientation,
) -> Result<Recipe, RecipeError> {
    let folders = resolve::Folders::new(path, current_folder)
        .map_err(|source| RecipeError::Io { path: current_folder.to_path_buf(), source })?;
    let mut faults = fault::Faults::default();
    let mut root = fault::parse_file(text, &mut faults);
    overrides::apply(&mut root, overrides, &mut faults);
    let recipe = read::read_recipe(&root, &folders, &mut faults);
    match recipe {
        Some(mut recipe) if faults.is_empty() => {
            let of_stages = recipe.stages.iter_mut().flat_map(|stage| &mut stage.recipe.data);
            for table in recipe.data.iter_mut().chain(of_stages).filter(|table| table.task != Task::Text) {
                table.orientation.get_or_insert(orientation);
            }
            Ok(recipe)
        }
        _ => {
            let sources = location::Sources::new(path, text, overrides);
            Err(RecipeError::Faults { path: path.to_path_buf(), faults: faults.located(&sources) })
        }
    }
}

/// The text of a recipe file; errors name it as `path` does.
fn read_text(path: &Path, current_folder: &Path) -> Result<String, RecipeError> {
    let io_error = |source| RecipeError::Io { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    let file = janus_core::input::open(&current_folder.join(path)).map_err(io_error)?;
    file.take(MAX_RECIPE_BYTES + 1).read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.len() as u64 > MAX_RECIPE_BYTES {
        return Err(RecipeError::TooLarge { path: path.to_path_buf(), limit_bytes: MAX_RECIPE_BYTES });
    }
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(RecipeError::Utf16 { path: path.to_path_buf() });
    }
    let bytes = janus_core::input::without_mark(bytes);
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let line = bytes.iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
        RecipeError::NotUtf8 { path: path.to_path_buf(), line, byte: bytes.get(valid).copied().unwrap_or(0) }
    })
}
