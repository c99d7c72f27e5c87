//! `janus recipe`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::report;
use crate::error::Result;
use crate::recipe::{catalog, to_toml};

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
}

impl RecipeCommand {
    pub(super) fn run(self) -> Result<()> {
        match self {
            RecipeCommand::List { folder, json } => list(&folder, json),
            RecipeCommand::Check { recipe, overrides } => {
                let recipe = super::train::load(&recipe, &overrides)?;
                print!("{}", to_toml(&recipe));
                Ok(())
            }
        }
    }
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
    println!("{}", report::table(&["recipe", "tasks", "base", "summary"], &rows));
    Ok(())
}
