//! `janus recipe`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use janus_core::output::{require_file, write_file};
use serde_json::json;

use super::out::{done, result};
use super::report;
use super::status::Terminal;
use crate::error::{Error, Result};
use crate::nearest::nearest;
use crate::recipe::{catalog, json_schema, reference_page, to_toml};
use crate::status::Status;

#[derive(Debug, Subcommand)]
pub(super) enum RecipeCommand {
    /// List the recipes of a folder
    #[command(after_help = "Examples:
  janus recipe list
  janus recipe list my-recipes --json")]
    List {
        /// Folder
        #[arg(default_value = "recipes")]
        folder: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check a recipe without opening its base or data, and print it with every default filled in
    #[command(after_help = "Examples:
  janus recipe check recipes/quickstart.toml
  janus recipe check my.toml adapter.rank=16 train.steps=100")]
    Check {
        /// Recipe file
        recipe: PathBuf,
        /// Keys of the recipe to set, as `section.key=value`
        #[arg(value_name = "KEY=VALUE")]
        overrides: Vec<String>,
    },
    /// Copy a recipe as a start for one of your own
    #[command(after_help = "Examples:
  janus recipe copy quickstart my.toml
  janus recipe copy understand inspection.toml --folder recipes")]
    Copy {
        /// The recipe's name, as `janus recipe list` has it
        name: String,
        /// File to write, which must be new
        out: PathBuf,
        /// Folder of recipes
        #[arg(long, default_value = "recipes")]
        folder: PathBuf,
    },
    /// Print the keys of a recipe as JSON Schema, for editors
    #[command(after_help = "Examples:
  janus recipe schema > recipe.schema.json
  janus recipe schema --markdown")]
    Schema {
        /// Print the reference page instead
        #[arg(long)]
        markdown: bool,
    },
}

impl RecipeCommand {
    pub(super) fn run(self) -> Result<()> {
        match self {
            RecipeCommand::List { folder, json } => list(&folder, json),
            RecipeCommand::Check { recipe, overrides } => {
                let recipe = super::train::load(&recipe, &overrides)?;
                result!("{}", to_toml(&recipe).trim_end());
                Ok(())
            }
            RecipeCommand::Copy { name, out, folder } => copy(&name, &out, &folder),
            RecipeCommand::Schema { markdown: true } => {
                result!("{}", reference_page().trim_end());
                Ok(())
            }
            RecipeCommand::Schema { markdown: false } => {
                result!("{:#}", json_schema());
                Ok(())
            }
        }
    }
}

/// Copies a recipe as it stands, comments included, and tells which inputs are found elsewhere from there.
fn copy(name: &str, out: &Path, folder: &Path) -> Result<()> {
    let entries = catalog(folder, Path::new("."))?;
    let Some(entry) = entries.iter().find(|entry| entry.name == name) else {
        let message = format!("`{}` has no recipe `{name}`", folder.display());
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let hint = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("recipes: {}", names.join(", ")),
        };
        return Err(Error::Usage { message, hint });
    };
    if out.exists() {
        let message = format!("`{}` exists", out.display());
        return Err(Error::Usage { message, hint: "give the path of a new file".into() });
    }
    let text = fs_err::read(&entry.path).map_err(|e| Error::Usage {
        message: format!("cannot read the recipe: {e}"),
        hint: "`janus recipe list` tells which recipes can be read".into(),
    })?;
    write_file(&require_file(out)?, |file| file.write_all(&text))?;
    done!("{}", out.display());
    if let (Ok(before), Ok(after)) = (super::train::load(&entry.path, &[]), super::train::load(out, &[])) {
        let told = |key: &str, before: &str, after: &str| {
            if before != after {
                Terminal.note(&format!("`{key}` reads `{after}` now, not `{before}`"));
            }
        };
        told("base.path", &before.base.path, &after.base.path);
        for (number, (before, after)) in before.data.iter().zip(&after.data).enumerate() {
            told(&format!("data.{number}.train"), &before.train, &after.train);
            let eval = |data: &crate::recipe::DataSection| data.eval.clone().unwrap_or_default();
            told(&format!("data.{number}.eval"), &eval(before), &eval(after));
        }
    }
    Ok(())
}

fn list(folder: &Path, json: bool) -> Result<()> {
    let entries = catalog(folder, Path::new("."))?;
    if json {
        let recipes: Vec<_> = entries
            .iter()
            .map(|e| {
                let error = e.error.as_ref().map(ToString::to_string);
                json!({ "name": e.name, "path": e.path, "summary": e.summary, "tasks": e.tasks, "base": e.base, "error": error })
            })
            .collect();
        report::json(&json!({ "recipes": recipes }));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|e| {
            let summary = match &e.error {
                Some(error) => format!("cannot be read: {}", error.to_string().lines().next().unwrap_or_default()),
                None => e.summary.clone().unwrap_or_default(),
            };
            vec![e.name.clone(), e.tasks.join(", "), e.base.clone().unwrap_or_default(), summary]
        })
        .collect();
    result!("{}", report::table(&["recipe", "tasks", "base", "summary"], &rows));
    Ok(())
}
