//! Recipes: what is trained, from what, on what and how, as a TOML file that the command line may override.
//!
//! [`load`] reads a file and its overrides into one tree of values that know where they were written (`tree`,
//! `overrides`), checks every key and value against the sections declared in `types` (`value`, `read`), makes input
//! paths absolute (`resolve`) and gives a [`Recipe`], or every fault at once, each with its line and what is wrong in it
//! (`fault`, `location`, `error`). [`to_toml`] writes a recipe that reads back equal; [`catalog()`] lists a folder's.
//! [`json_schema()`] and [`reference_page`] tell of the same keys to editors and readers.

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
mod stages;
mod tree;
mod types;
mod value;
mod write;

#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::Path;

pub use catalog::{CatalogEntry, catalog};
pub use error::RecipeError;
pub use fault::{Problem, RecipeFault};
pub use json_schema::json_schema;
pub use location::{Location, Origin};
pub use reference::markdown as reference_page;
pub use types::{
    Accumulation, AdapterMethod, AdapterSection, BaseDtype, BaseSection, BoxFormat, Columns, DataLimits, DataSection,
    DynamicPlace, DynamicSection, EarlyStopping, Goal, MifsSection, Mixture, Orientation, OutputSection, Rates, Recipe,
    Recompute, Schedule, Stage, StageSection, Task, TooLong, TrainSection,
};
pub use write::to_toml;

/// Larger files are no recipes.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// Reads a recipe with overrides (`key=value`, later ones over earlier ones), checks it and makes its paths absolute.
///
/// Inputs named in the file are relative to its folder, those named in overrides and all outputs to `current_folder`.
/// No input but the recipe is opened.
///
/// # Errors
/// [`RecipeError::Faults`] with every fault of file and overrides; a file that cannot be read, is no text or too large.
pub fn load(path: &Path, overrides: &[String], current_folder: &Path) -> Result<Recipe, RecipeError> {
    let text = read_text(path, current_folder)?;
    let folders = resolve::Folders::new(path, current_folder)
        .map_err(|source| RecipeError::Io { path: current_folder.to_path_buf(), source })?;
    let mut faults = fault::Faults::default();
    let mut root = fault::parse_file(&text, &mut faults);
    overrides::apply(&mut root, overrides, &mut faults);
    let recipe = read::read_recipe(&root, &folders, &mut faults);
    match recipe {
        Some(recipe) if faults.is_empty() => Ok(recipe),
        _ => {
            let sources = location::Sources::new(path, &text, overrides);
            Err(RecipeError::Faults { path: path.to_path_buf(), faults: faults.located(&sources) })
        }
    }
}

/// The text of a recipe file; errors name it as `path` does.
fn read_text(path: &Path, current_folder: &Path) -> Result<String, RecipeError> {
    let io_error = |source| RecipeError::Io { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(current_folder.join(path)).map_err(io_error)?;
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
