//! `janus recipe`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use janus_core::input::read_named;
use janus_core::output::{require_file, write_file};
use serde_json::json;

use super::out::{done, result};
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use crate::data::resolve;
use crate::error::{Error, Result};
use crate::nearest::nearest;
use crate::recipe::{CatalogEntry, Recipe, catalog, json_schema, reference_page, shipped, shipped_catalog, to_toml};
use crate::report::expected::curve_path;
use crate::status::Status;
use crate::train::shell_word;

/// Where recipes are looked for beside those that the program carries.
const USUAL_FOLDER: &str = "recipes";

#[derive(Debug, Subcommand)]
pub(super) enum RecipeCommand {
    /// List the recipes that the program carries, and those of the folder `recipes` where there is one
    #[command(after_help = "Examples:
  janus recipe list
  janus recipe list my-recipes --json")]
    List {
        /// Folder of recipes to list instead
        folder: Option<PathBuf>,
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
  janus recipe copy understand inspection.toml --folder my-recipes")]
    Copy {
        /// The recipe's name, as `janus recipe list` has it
        name: String,
        /// File to write, which must be new
        out: PathBuf,
        /// Folder of recipes to look in instead
        #[arg(long)]
        folder: Option<PathBuf>,
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
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        match self {
            RecipeCommand::Copy { out, .. } => Writes::output(out),
            RecipeCommand::List { .. } | RecipeCommand::Check { .. } | RecipeCommand::Schema { .. } => {
                Writes::nothing()
            }
        }
    }

    pub(super) fn run(self) -> Result<()> {
        match self {
            RecipeCommand::List { folder, json } => list(folder.as_deref(), json),
            RecipeCommand::Check { recipe, overrides } => {
                let recipe = super::train::load(&recipe, &overrides)?;
                result!("{}", to_toml(&recipe).trim_end());
                Ok(())
            }
            RecipeCommand::Copy { name, out, folder } => copy(&name, &out, folder.as_deref()),
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

/// Recipes by name: those of a folder, or where none is given those of `recipes` and, of names that it does not have, those
/// that the program carries.
fn entries(folder: Option<&Path>) -> Result<Vec<CatalogEntry>> {
    let here = Path::new(".");
    if let Some(folder) = folder {
        return Ok(catalog(folder, here)?);
    }
    let usual = Path::new(USUAL_FOLDER);
    let mut entries = if usual.is_dir() { catalog(usual, here)? } else { Vec::new() };
    for carried in shipped_catalog(here) {
        if !entries.iter().any(|entry| entry.name == carried.name) {
            entries.push(carried);
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Copies a recipe as it stands, comments included but with the copy's own path in its command, with the losses that it expects, and tells which inputs are found elsewhere
/// from there.
fn copy(name: &str, out: &Path, folder: Option<&Path>) -> Result<()> {
    let entries = entries(folder)?;
    let Some(entry) = entries.iter().find(|entry| entry.name == name) else {
        let place = folder.map_or_else(|| "the program".to_owned(), |folder| format!("`{}`", folder.display()));
        let message = format!("{place} has no recipe `{name}`");
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let hint = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("recipes: {}", names.join(", ")),
        };
        return Err(Error::Usage { message, hint });
    };
    let place = require_file(out)?;
    let (text, curve) = contents(entry)?;
    let curve_out = curve_path(out);
    for path in std::iter::once(out).chain(curve.is_some().then_some(curve_out.as_path())) {
        if path.symlink_metadata().is_ok() {
            let message = format!("`{}` exists", path.display());
            return Err(Error::Usage { message, hint: "give the path of a new file".into() });
        }
    }
    let text = with_own_command(&text, out);
    write_file(&place, |file| file.write_all(&text))?;
    if let Some(curve) = &curve {
        write_file(&curve_out, |file| file.write_all(curve))?;
    }
    done!("{}", out.display());
    explain_inputs(entry, out);
    Ok(())
}

/// Longest recipe, or file of the losses that one expects, that is copied.
const MAX_COPIED_BYTES: u64 = 1 << 20;

/// A recipe whose first line, `# janus train RECIPE …`, names the file that it goes to.
fn with_own_command(text: &[u8], out: &Path) -> Vec<u8> {
    const COMMAND: &[u8] = b"# janus train ";
    // A line of its own could be anything else.
    let is_one_line = out.to_str().is_some_and(|path| !path.contains(char::is_control));
    let Some(rest) = text.strip_prefix(COMMAND).filter(|_| is_one_line) else { return text.to_vec() };
    let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
    [COMMAND, shell_word(out).as_bytes(), &rest[end..]].concat()
}

/// The bytes of a recipe and of the losses that it expects, where there are such.
fn contents(entry: &CatalogEntry) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
    let Some(path) = &entry.path else {
        let carried = shipped(&entry.name);
        let text = carried.map_or("", |recipe| recipe.text);
        return Ok((text.into(), carried.and_then(|recipe| recipe.curve).map(Into::into)));
    };
    let read = |path: &Path| {
        read_named(path, MAX_COPIED_BYTES).map_err(|e| Error::Usage {
            message: format!("cannot read the recipe: {e}"),
            hint: "`janus recipe list` tells which recipes can be read".into(),
        })
    };
    let curve = curve_path(path);
    Ok((read(path)?, curve.is_file().then(|| read(&curve)).transpose()?))
}

/// Tells where a copy looks for its inputs: of a file's, what it finds elsewhere than that file; of a carried recipe's, what
/// is not there.
fn explain_inputs(entry: &CatalogEntry, out: &Path) {
    let Ok(after) = super::train::load(out, &[]) else { return };
    let inputs = |recipe: &Recipe| {
        let mut inputs = vec![("base.path".to_owned(), recipe.base.path.clone())];
        for (number, data) in recipe.data.iter().enumerate() {
            inputs.push((format!("data.{number}.train"), data.train.clone()));
            inputs.push((format!("data.{number}.eval"), data.eval.clone().unwrap_or_default()));
        }
        inputs
    };
    let before = entry.path.as_ref().and_then(|path| super::train::load(path, &[]).ok());
    let before = before.as_ref().map(inputs);
    for (number, (key, now)) in inputs(&after).into_iter().enumerate() {
        match &before {
            Some(before) if before.get(number).is_some_and(|(_, was)| *was != now) => {
                let was = &before[number].1;
                Terminal.note(&format!("`{key}` reads `{now}` now, not `{was}`"));
            }
            None if Path::new(&now).is_absolute() && resolve(&now, Path::new("")).is_err() => {
                Terminal.note(&format!("`{key}` reads `{now}`, where nothing is yet: put rows there or set `{key}`"));
            }
            _ => {}
        }
    }
}

fn list(folder: Option<&Path>, json: bool) -> Result<()> {
    let entries = entries(folder)?;
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
