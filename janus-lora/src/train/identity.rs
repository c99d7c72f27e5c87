//! What a run is made of, kept in its checkpoints: a run is only resumed where all of this is still the same.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::TrainError;
use super::checkpoint::hex;
use super::plan::Plan;
use super::tables::{RecipeTable, Source};
use crate::data::FileSource;
use crate::error::Result;
use crate::recipe::{Recipe, Schedule, to_toml};

/// Keys that may change when a run is resumed, under way or finished: they say where files lie, how often something is
/// written, or how the same bits are computed. Files and base are compared by what is in them, epochs and steps by the steps
/// they come to. `docs/guide/tune.md` has the same list.
pub const FREE_KEYS: &[&str] = &[
    "adapter.start_from",
    "base.path",
    "data_limits.max_bad_rows",
    "data_limits.max_download_bytes",
    "data_limits.max_page_bytes",
    "output.dir",
    "train.checkpoint_every",
    "train.epochs",
    "train.eval_every",
    "train.keep_checkpoints",
    "train.max_skipped_steps",
    "train.recompute",
    "train.sample_every",
    "train.steps",
];

/// Keys of a `[[data]]` table of which the same holds.
pub const FREE_TABLE_KEYS: &[&str] = &["train", "eval", "image_root"];

/// Keys of a `[[data]]` table that came later than the first runs, each with what happened before, as TOML. Recipes in run
/// folders have had the key since, for the tasks that it is for: one that lacks it is of a run of before.
const LATER_TABLE_KEYS: &[(&str, &str)] =
    &[("orientation", "\"stored\""), ("too_long", "\"reject\""), ("box_format", "\"xyxy\""), ("normalised", "false")];

/// Bytes at the end of a Parquet file that give the footer's length and the format's mark.
const TAIL_BYTES: u64 = 8;

/// Longest footer that is hashed.
const FOOTER_LIMIT_BYTES: u64 = 1 << 30;

/// What a run was started with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunIdentity {
    /// The resolved recipe, TOML.
    pub recipe: String,
    /// Optimiser steps of the whole run.
    pub steps: u64,
    /// The base's fingerprint.
    pub base: String,
    /// The tables.
    pub tables: Vec<TableIdentity>,
    /// SHA-256 of the adapter that it began from; absent where it began from nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
}

/// What the files of a table are known by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableIdentity {
    /// Its name.
    pub name: String,
    /// Rows to train on.
    pub train: SourceIdentity,
    /// Rows to evaluate on.
    pub eval: Option<SourceIdentity>,
}

/// Files in their order, and what was found good in them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceIdentity {
    /// The files.
    pub files: Vec<FileIdentity>,
    /// Good rows.
    pub accepted_rows: usize,
    /// Bad rows.
    pub rejected_rows: usize,
}

/// A Parquet file, wherever it lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// Its name, for messages.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// SHA-256 of its footer, which gives place, size and statistics of every column chunk; of a file on a hub its name and commit.
    pub footer: String,
    /// What each row group is known by: SHA-256 of what was read of it. Checkpoints of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contents: Vec<String>,
}

/// A row group that is not what the run began with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedRows {
    /// The table, and which part of it.
    pub table: String,
    /// The name of the file.
    pub file: String,
    /// The row group, from 0.
    pub row_group: usize,
    /// How many row groups of all tables are others, this one among them.
    pub count: usize,
}

impl fmt::Display for ChangedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, file, row_group, count } = self;
        write!(f, "row group {row_group} of the file `{file}` of {table} holds other bytes than it did")?;
        match count {
            1 => Ok(()),
            count => write!(f, ", as do {} more", count - 1),
        }
    }
}

impl RunIdentity {
    /// Of a recipe with its tables; the base's fingerprint is yet to be filled in.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub fn new(recipe: &Recipe, plan: &Plan, tables: &[RecipeTable]) -> Result<Self> {
        let table = |table: &RecipeTable| {
            let eval = table.eval.as_ref().map(source_identity).transpose()?;
            Ok(TableIdentity { name: table.section.name.clone(), train: source_identity(&table.train)?, eval })
        };
        let tables = tables.iter().map(table).collect::<Result<_>>()?;
        Ok(Self { recipe: to_toml(recipe), steps: plan.steps, base: String::new(), tables, start: None })
    }

    /// How many rows of the same files are good and bad now, where that differs, if `self` is of a version before.
    pub fn rows_of_before(&self, now: &Self) -> Vec<String> {
        if !is_of_before(&self.recipe) {
            return Vec::new();
        }
        let differences = self.sources(now).into_iter().filter(|(_, was, is)| was.same_files(is));
        differences.filter_map(|(what, was, is)| source_difference(&what, was, is)).collect()
    }

    /// The sources of both, each with how messages name it.
    fn sources<'a>(&'a self, now: &'a Self) -> Vec<(String, &'a SourceIdentity, &'a SourceIdentity)> {
        let tables = self.tables.iter().zip(&now.tables);
        let sources = tables.flat_map(|(was, is)| {
            let train = Some((format!("`{}`", was.name), &was.train, &is.train));
            let eval = was.eval.as_ref().zip(is.eval.as_ref());
            [train, eval.map(|(before, now)| (format!("the evaluation of `{}`", was.name), before, now))]
        });
        sources.flatten().collect()
    }

    /// The first row group of a file of the same length and footer that holds other bytes now.
    pub fn changed_rows(&self, now: &Self) -> Option<ChangedRows> {
        let mut first = None;
        let mut count = 0;
        for (table, was, is) in self.sources(now) {
            for (was, is) in was.files.iter().zip(&is.files).filter(|(was, is)| was.has_form_of(is)) {
                let changed = was.contents.iter().zip(&is.contents).enumerate().filter(|(_, (was, is))| was != is);
                for (row_group, _) in changed {
                    count += 1;
                    first.get_or_insert_with(|| (table.clone(), is.name.clone(), row_group));
                }
            }
        }
        first.map(|(table, file, row_group)| ChangedRows { table, file, row_group, count })
    }

    /// Tables with rows of which nothing is known but length and footer, as in checkpoints of earlier versions.
    pub fn unknown_rows(&self) -> Vec<&str> {
        let is_unknown =
            |source: &SourceIdentity| source.files.iter().any(|file| file.rows > 0 && file.contents.is_empty());
        let tables = self.tables.iter();
        let unknown = tables.filter(|table| is_unknown(&table.train) || table.eval.as_ref().is_some_and(is_unknown));
        unknown.map(|table| table.name.as_str()).collect()
    }

    /// Whether a run that began as `self` and has done `step` steps may go on as `now`; what differs, otherwise.
    pub fn differences(&self, now: &Self, schedule: Schedule, step: u64) -> Vec<String> {
        let mut differences = recipe_differences(&self.recipe, &now.recipe);
        if self.steps != now.steps && (schedule != Schedule::Constant || now.steps < step) {
            let why = match schedule {
                Schedule::Constant => format!("{step} are done"),
                schedule => format!("the schedule `{schedule}` spreads over all of them"),
            };
            differences.push(format!("it was to have {} steps and now {}, but {why}", self.steps, now.steps));
        }
        if self.base != now.base {
            differences.push(format!("the base had fingerprint `{}` and has `{}`", self.base, now.base));
        }
        for (was, is) in self.tables.iter().zip(&now.tables) {
            differences.extend(source_difference(&format!("`{}`", was.name), &was.train, &is.train));
            let what = format!("the evaluation of `{}`", was.name);
            match (&was.eval, &is.eval) {
                (Some(was), Some(is)) => differences.extend(source_difference(&what, was, is)),
                (None, None) => {}
                (Some(_), None) => differences.push(format!("{what} had rows and has none")),
                (None, Some(_)) => differences.push(format!("{what} had no rows and has some")),
            }
        }
        differences
    }
}

/// Keys of two recipes that differ, with both values, but for those that may.
pub(super) fn recipe_differences(was: &str, is: &str) -> Vec<String> {
    let (Ok(was), Ok(is)) = (toml::from_str::<toml::Table>(was), toml::from_str::<toml::Table>(is)) else {
        return vec!["its recipe cannot be read".into()];
    };
    let (mut old, mut new) = (Vec::new(), Vec::new());
    flatten("", &toml::Value::Table(was), &mut old);
    flatten("", &toml::Value::Table(is), &mut new);
    let is_free = |key: &str| {
        let of_table = key.strip_prefix("data.").and_then(|rest| rest.split_once('.'));
        let of_stage = key.strip_prefix("stage.").and_then(|rest| rest.split_once('.')).map(|(_, key)| key);
        // A stage's steps are its own key, which is not free.
        FREE_KEYS.contains(&key)
            || of_stage.is_some_and(|key| FREE_KEYS.contains(&key))
            || of_table.is_some_and(|(_, key)| FREE_TABLE_KEYS.contains(&key))
    };
    let value =
        |list: &[(String, String)], key: &str| list.iter().find(|(other, _)| other == key).map(|(_, v)| v.clone());
    let has = |section: &str| old.iter().any(|(key, _)| key.starts_with(&format!("{section}.")));
    let then =
        |key: &str| key.rsplit_once('.').filter(|(section, _)| has(section)).and_then(|(s, name)| meant(s, name));
    let told = |value: Option<String>| value.unwrap_or_else(|| "absent".to_owned());
    let mut keys: Vec<&String> = old.iter().map(|(key, _)| key).collect();
    keys.extend(new.iter().map(|(key, _)| key).filter(|key| !old.iter().any(|(other, _)| other == *key)));
    keys.into_iter()
        .filter(|key| !is_free(key))
        .map(|key| (key, value(&old, key).or_else(|| then(key)), value(&new, key)))
        .filter(|(_, was, is)| was != is)
        .map(|(key, was, is)| (key, told(was), told(is)))
        .map(|(key, was, is)| format!("`{key}` was {was} and is {is}"))
        .collect()
}

/// Whether a resolved recipe is of a version before the one that knows placeholders of other toolkits, values of masks and the
/// base's positions: every one since has the key.
pub fn is_of_before(recipe: &str) -> bool {
    let Ok(recipe) = recipe.parse::<toml::Table>() else { return false };
    recipe.contains_key("data") && recipe.get("data_limits").and_then(|limits| limits.get("max_page_bytes")).is_none()
}

/// What a section of a recipe of before that lacks a key meant by it, as TOML: what happened then, or what happens without
/// the key today.
fn meant(section: &str, key: &str) -> Option<String> {
    let section = section.rsplit('.').find(|part| part.parse::<usize>().is_err())?;
    if section == "data"
        && let Some((_, then)) = LATER_TABLE_KEYS.iter().find(|(later, _)| *later == key)
    {
        return Some((*then).to_owned());
    }
    let section = Recipe::SECTIONS.iter().find(|other| other.name == section)?;
    let default = (section.fields.iter().find(|field| field.name == key)?.default)()?;
    let table: toml::Table = format!("value = {default}").parse().ok()?;
    table.get("value").map(ToString::to_string)
}

/// Every value by its full key.
fn flatten(key: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    let below = |part: &str| if key.is_empty() { part.to_owned() } else { format!("{key}.{part}") };
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(name, value)| flatten(&below(name), value, out)),
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            items.iter().enumerate().for_each(|(number, item)| flatten(&below(&number.to_string()), item, out));
        }
        value => out.push((key.to_owned(), value.to_string())),
    }
}

impl SourceIdentity {
    /// Whether the files are of the same form, wherever they lie.
    fn same_files(&self, other: &Self) -> bool {
        self.files.len() == other.files.len()
            && self.files.iter().zip(&other.files).all(|(was, is)| was.has_form_of(is))
    }
}

impl FileIdentity {
    /// Whether another file has the same length and describes itself as this one does.
    fn has_form_of(&self, other: &Self) -> bool {
        (self.bytes, self.rows, &self.footer) == (other.bytes, other.rows, &other.footer)
    }
}

fn source_difference(what: &str, was: &SourceIdentity, is: &SourceIdentity) -> Option<String> {
    if was.files.len() != is.files.len() {
        return Some(format!("{what} had {} files and has {}", was.files.len(), is.files.len()));
    }
    if let Some((was, is)) = was.files.iter().zip(&is.files).find(|(was, is)| !was.has_form_of(is)) {
        return Some(format!(
            "{what} had the file `{}` of {} bytes and {} rows, and in its place is `{}` of {} bytes and {} rows with other content",
            was.name, was.bytes, was.rows, is.name, is.bytes, is.rows
        ));
    }
    let rows = |source: &SourceIdentity| (source.accepted_rows, source.rejected_rows);
    (rows(was) != rows(is)).then(|| {
        let ((was_good, was_bad), (good, bad)) = (rows(was), rows(is));
        format!("{what} had {was_good} good rows and {was_bad} bad ones and has {good} and {bad}")
    })
}

fn source_identity(from: &Source) -> Result<SourceIdentity> {
    let file = |(number, (source, bytes, rows)): (usize, (&FileSource, u64, u64))| {
        let contents = from.index.contents(number).iter().map(|digest| hex(digest)).collect();
        match source {
            FileSource::Local(path) => {
                let (bytes, footer) =
                    footer(path).map_err(|error| TrainError::Read { path: path.clone(), source: error })?;
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                Ok(FileIdentity { name, bytes, rows, footer, contents })
            }
            // A commit does not change.
            FileSource::Hub(shard) => {
                let footer = format!("{} at commit {}", shard.name(), shard.repository().commit());
                Ok(FileIdentity { name: shard.name().to_owned(), bytes, rows, footer, contents })
            }
        }
    };
    let files = from.table.sources().enumerate().map(file).collect::<Result<_>>()?;
    let index = &from.index;
    Ok(SourceIdentity { files, accepted_rows: index.accepted_rows(), rejected_rows: index.rejected_rows() })
}

/// Length of a file, and the hash of its footer.
fn footer(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = fs::File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut tail = [0; TAIL_BYTES as usize];
    file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES)))?;
    file.read_exact(&mut tail)?;
    let claimed = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    let footer = claimed.saturating_add(TAIL_BYTES).min(bytes).min(FOOTER_LIMIT_BYTES);
    file.seek(SeekFrom::Start(bytes - footer))?;
    let mut hasher = Sha256::new();
    let mut rest = file.take(footer);
    std::io::copy(&mut rest, &mut HashWriter(&mut hasher))?;
    Ok((bytes, hex(&hasher.finalize())))
}

/// Hashes what is written to it.
pub(super) struct HashWriter<'a>(pub(super) &'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::readings::is_of_stored_pictures;

    fn identity(recipe: &str, steps: u64) -> RunIdentity {
        RunIdentity { recipe: recipe.into(), steps, base: "ab".into(), tables: Vec::new(), start: None }
    }

    #[test]
    fn what_matters_is_told_by_key_and_the_rest_is_free() {
        let was =
            "[base]\npath = \"a\"\n[[data]]\ntrain = \"x\"\nweight = 1.0\n[train]\nlearning_rate = 0.005\nsteps = 9\n";
        let moved = was.replace("\"a\"", "\"b\"").replace("\"x\"", "\"y\"").replace("steps = 9", "epochs = 1");
        assert_eq!(recipe_differences(was, &moved), Vec::<String>::new());
        let other = was.replace("0.005", "0.001").replace("weight = 1.0\n", "") + "seed = 3\n";
        let expected = [
            "`data.0.weight` was 1.0 and is absent",
            "`train.learning_rate` was 0.005 and is 0.001",
            "`train.seed` was 42 and is 3",
        ];
        let mut differences = recipe_differences(was, &other);
        differences.sort();
        assert_eq!(differences, expected);
    }

    /// The guide has the list that the check goes by.
    #[test]
    fn the_guide_lists_what_may_change() {
        let guide = include_str!("../../../docs/guide/tune.md");
        let (_, rest) = guide.split_once("Free are ").unwrap();
        let (list, _) = rest.split_once("* **").unwrap();
        let keys = FREE_KEYS.iter().map(|key| format!("`{key}`"));
        for key in keys.chain(FREE_TABLE_KEYS.iter().map(|key| format!("`data.N.{key}`"))) {
            assert!(list.contains(&key), "no {key} in: {list}");
        }
        // `adapter.start_from`, `base.path` and `output.dir` aside, and nothing besides.
        let listed = list.matches("`train.").count() + list.matches("`data").count() + 3;
        assert_eq!(listed, FREE_KEYS.len() + FREE_TABLE_KEYS.len());
    }

    #[test]
    fn pictures_of_before_lay_as_they_were_stored() {
        let was = "[[data]]\ntask = \"classify\"\ntrain = \"x\"\n[[data]]\ntask = \"text\"\ntrain = \"y\"\n";
        let now = |way: &str| was.replace("\"x\"\n", &format!("\"x\"\norientation = \"{way}\"\n"));
        assert_eq!(recipe_differences(was, &now("stored")), Vec::<String>::new());
        let turned = recipe_differences(was, &now("upright"));
        assert_eq!(turned, ["`data.0.orientation` was \"stored\" and is \"upright\""]);
        assert_eq!(recipe_differences(&now("upright"), &now("stored")).len(), 1);
        // What happens without a key may be written out.
        let written = was.replace("\"x\"\n", "\"x\"\nbox_format = \"xyxy\"\nnormalised = false\n");
        let written = written.replace("\"y\"\n", "\"y\"\ntoo_long = \"reject\"\n");
        assert_eq!(recipe_differences(was, &written), Vec::<String>::new());
        let other = written.replace("xyxy", "xywh").replace("false", "true").replace("reject", "truncate");
        assert_eq!(recipe_differences(was, &other).len(), 3);
        for (recipe, expected) in [
            (was, true),
            (&now("stored"), true),
            (&now("upright"), false),
            ("[[data]]\ntask = \"text\"\n", false),
            ("no recipe", false),
        ] {
            assert_eq!(is_of_stored_pictures(recipe), expected, "{recipe}");
        }
        // Of any other key the default holds, in a section that is there.
        let train = "[train]\nlearning_rate = 0.1\n";
        let new = format!("{train}shuffle = true\nbetas = [0.9, 0.999]\nschedule = \"cosine\"\n");
        assert_eq!(recipe_differences(train, &new), Vec::<String>::new());
        let other = new.replace("true", "false");
        assert_eq!(recipe_differences(train, &other), ["`train.shuffle` was true and is false"]);
        let dynamic = format!("{train}[dynamic]\nenabled = true\n");
        assert_eq!(recipe_differences(train, &dynamic), ["`dynamic.enabled` was absent and is true"]);
    }

    #[test]
    fn only_a_constant_rate_can_go_on_for_longer() {
        let (was, longer) = (identity("", 10), identity("", 20));
        assert!(was.differences(&longer, Schedule::Constant, 10).is_empty());
        assert_eq!(longer.differences(&was, Schedule::Constant, 11).len(), 1, "steps cannot be undone");
        assert_eq!(was.differences(&longer, Schedule::Cosine, 5).len(), 1);
        assert!(was.differences(&was, Schedule::Cosine, 5).is_empty());
        let other = RunIdentity { base: "cd".into(), ..was.clone() };
        assert!(was.differences(&other, Schedule::Constant, 5)[0].contains("fingerprint `ab`"));
    }
}
