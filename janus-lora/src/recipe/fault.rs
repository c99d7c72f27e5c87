//! What can be wrong in a recipe, each with its place, gathered so that all are told at once.

use std::fmt;

use janus_core::home::HomeError;

use super::location::{Location, Sources};
use super::tree::{Place, Table};
use crate::beginning::beginning;
use crate::target::TargetError;
use crate::visible::one_line;

/// More faults than these are not gathered: nobody reads them, and a hostile file could hold hundreds of thousands.
const MAX_FAULTS: usize = 100;
/// Names and values from the file are shown up to this length.
const MAX_QUOTED_CHARS: usize = 60;

/// One thing wrong in a recipe.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Not TOML.
    #[error("{message}")]
    Syntax {
        /// What the parser says.
        message: String,
    },
    /// A key that no recipe has there.
    #[error("unknown key `{key}` in {table}{}", did_you_mean(nearest.as_deref()))]
    UnknownKey {
        /// The key as written.
        key: String,
        /// The table it is in, as it is headed in a file.
        table: String,
        /// The legal key that may have been meant.
        nearest: Option<String>,
        /// All legal keys there.
        legal: Vec<&'static str>,
    },
    /// A value of another type.
    #[error("`{key}` must be {expected}, got {got}")]
    WrongType {
        /// The key, from the root.
        key: String,
        /// What it takes.
        expected: String,
        /// What it was given.
        got: &'static str,
        /// Whether it stood on the command line and was no TOML, so that it counts as a string.
        taken_as_text: bool,
    },
    /// A value of the right type beyond what is possible.
    #[error("`{key}` must be {expected}, got `{got}`")]
    OutOfRange {
        /// The key, from the root.
        key: String,
        /// What it takes.
        expected: String,
        /// What it was given.
        got: String,
    },
    /// A word that is none of the possible ones.
    #[error("unknown value `{got}` for `{key}`{}", did_you_mean(nearest.as_deref()))]
    UnknownValue {
        /// The key, from the root.
        key: String,
        /// What it was given.
        got: String,
        /// The possible value that may have been meant.
        nearest: Option<String>,
        /// All possible values.
        legal: Vec<&'static str>,
    },
    /// A feature that the recipe format has and this version does not.
    #[error("{what} is not supported by this version yet")]
    NotSupported {
        /// The table, or the key with its value, in backticks.
        what: String,
    },
    /// A key without which there is no recipe.
    #[error("missing key `{key}`")]
    Missing {
        /// The key, from the root.
        key: String,
        /// What it is.
        meaning: String,
    },
    /// No `[[data]]` at all.
    #[error("no [[data]] table: a recipe needs at least one")]
    NoData,
    /// Two keys that exclude each other.
    #[error("`{second}` cannot stand beside `{first}`: give one of them")]
    Conflict {
        /// The one key.
        first: String,
        /// The other, which is where the fault is shown.
        second: String,
    },
    /// A column role that the task does not have.
    #[error("task `{task}` reads no column `{role}`{}", did_you_mean(nearest.as_deref()))]
    UnknownRole {
        /// The role as written.
        role: String,
        /// The task.
        task: &'static str,
        /// The role that may have been meant.
        nearest: Option<String>,
        /// All roles of the task.
        legal: Vec<&'static str>,
    },
    /// A key that only other tasks have.
    #[error("`{key}` has no meaning for task `{task}`")]
    NotForTask {
        /// The key, from the root.
        key: String,
        /// The task of the table.
        task: &'static str,
        /// The task it belongs to.
        belongs_to: &'static str,
    },
    /// A metric of an evaluation that the recipe does not have.
    #[error("`train.early_stopping.metric` is `{metric}`, but {problem}")]
    NoEvaluation {
        /// The metric.
        metric: String,
        /// What keeps it from being there.
        problem: String,
    },
    /// A figure that evaluations of a table do not have.
    #[error("`train.early_stopping.metric` is `{metric}`, and task `{task}` has no such figure")]
    NoFigure {
        /// The metric.
        metric: String,
        /// The table's task.
        task: &'static str,
        /// Those that there are, the nearest first.
        names: Vec<String>,
    },
    /// A key of a run as a whole, which stages are not.
    #[error("`{key}` does not go together with stages, each of which takes the steps that it says")]
    NotWithStages {
        /// The key.
        key: String,
        /// Whether it is the rule that stops a run early, not its length.
        stops: bool,
    },
    /// A key of `[adapter]` that says nothing of its method.
    #[error("`{key}` says nothing of the method `{method}`")]
    NotForMethod {
        /// The key.
        key: String,
        /// The method.
        method: &'static str,
        /// Methods that it does say something of.
        takers: Vec<&'static str>,
    },
    /// A beginning that goes with plain pairs alone.
    #[error("`adapter.init` = `{init}` is for the pairs of the method `lora` without a bias, and {why}")]
    NotWithInit {
        /// The beginning.
        init: &'static str,
        /// What is in its way.
        why: &'static str,
    },
    /// A key of pairs that begin with what their sites see.
    #[error("`{key}` says nothing of `adapter.init` = `{init}`")]
    OnlyWithEva {
        /// The key.
        key: String,
        /// The beginning.
        init: &'static str,
    },
    /// Two data tables of one name.
    #[error("the name `{name}` is taken by `{first}`")]
    DuplicateName {
        /// The name.
        name: String,
        /// The key of the table that has it, `data.0`.
        first: String,
    },
    /// A stage that names no table, or a table that no stage names.
    #[error("{what}; the tables are {}", tables.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))]
    StageTables {
        /// What is wrong.
        what: String,
        /// The tables.
        tables: Vec<String>,
    },
    /// Stages whose pairs differ in what they all share.
    #[error(
        "`{key}` is {got} in the stage `{stage}`, but {expected} in one before it: the pairs of all stages are of one form"
    )]
    OtherPairs {
        /// The key of `[adapter]`.
        key: &'static str,
        /// The stage.
        stage: String,
        /// Its value.
        got: String,
        /// The value before.
        expected: String,
    },
    /// Nothing to train.
    #[error("`adapter.targets` and `adapter.modules_to_save` are both empty: nothing would be trained")]
    NothingToTrain,
    /// A target that is no pattern.
    #[error("{0}")]
    Target(TargetError),
    /// A data source of an unknown kind.
    #[error("`{key}` names a source of kind `{scheme}`, which is not known")]
    UnknownScheme {
        /// The key, from the root.
        key: String,
        /// What stands before `://`.
        scheme: String,
    },
    /// An override without `=`.
    #[error("an override is written `key=value`, got `{text}`")]
    NoValue {
        /// The argument.
        text: String,
    },
    /// An override's key with nothing between two dots.
    #[error("a part of the key is empty")]
    EmptyKey,
    /// An override's key that goes deeper than any recipe.
    #[error("the key has {parts} parts, no recipe key has more than {limit}")]
    KeyTooDeep {
        /// Parts between dots.
        parts: usize,
        /// The limit.
        limit: usize,
    },
    /// An override's key that goes through a value without keys.
    #[error("`{key}` is {kind}, it has no keys")]
    NotATable {
        /// The key up to there.
        key: String,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// An override's key that goes into a list without a number.
    #[error("`{key}` is a list: write `{key}.0` for its first entry")]
    NotANumber {
        /// The list.
        key: String,
    },
    /// An override's key with a number beyond the list's end.
    #[error("the recipe has no `{key}.{index}`: {}", list_length(key, *length))]
    NoSuchEntry {
        /// The list.
        key: String,
        /// The number asked for.
        index: String,
        /// How many it has.
        length: usize,
    },
    /// A path that begins with a home folder that is not known here.
    #[error("`{key}`: {error}")]
    Home {
        /// The key, from the root.
        key: String,
        /// Why not.
        error: HomeError,
    },
    /// The folder that a relative path starts from has no name in UTF-8.
    #[error("`{key}` is relative to a folder whose path is not UTF-8, so it cannot be written down")]
    FolderNotUtf8 {
        /// The key, from the root.
        key: String,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

fn list_length(key: &str, length: usize) -> String {
    match length {
        0 => format!("`{key}` has no entries"),
        1 => format!("`{key}` has one entry, `{key}.0`"),
        n => format!("`{key}` has {n} entries, `{key}.0` to `{key}.{}`", n - 1),
    }
}

fn quoted_list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl Problem {
    /// What would help, beyond what the message says.
    pub fn hint(&self) -> Option<String> {
        match self {
            Problem::UnknownKey { table, legal, .. } => Some(format!("{table} takes {}", quoted_list(legal))),
            Problem::UnknownValue { key, got, .. } if key == "adapter.method" && key_of_method(got).is_some() => {
                Some(format!("set {} with `adapter.method = \"lora\"`", key_of_method(got)?))
            }
            Problem::UnknownValue { key, legal, .. } => Some(format!("`{key}` is one of {}", quoted_list(legal))),
            Problem::UnknownRole { task, legal, .. } => Some(format!("task `{task}` reads {}", quoted_list(legal))),
            Problem::WrongType { key, taken_as_text: true, .. } => Some(format!(
                "the value given for `{key}` is not TOML and so counts as a string; a shell removes quotes, so put the whole argument in single ones"
            )),
            Problem::Missing { key, meaning } => Some(format!("`{key}`: {meaning}")),
            Problem::OutOfRange { key, expected, .. } => {
                Some(format!("set `{key}` to {expected}, or leave it out for its default"))
            }
            Problem::Conflict { first, second } => Some(format!("leave `{first}` or `{second}` out")),
            Problem::NoData => Some("add a [[data]] table with `task` and `train`".into()),
            Problem::NotForTask { key, belongs_to, .. } => Some(format!("`{key}` is for task `{belongs_to}`")),
            Problem::NoEvaluation { .. } => {
                Some("name a metric as `table.metric`, for a table with `eval`, and set `train.eval_every`".into())
            }
            Problem::NoFigure { names, .. } => {
                let (first, rest) = names.split_first()?;
                let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
                Some(format!("name one of `{first}`, {}", quoted_list(&rest)))
            }
            Problem::NotWithStages { key, stops: false } => Some(format!("leave `{key}` out")),
            Problem::NotWithStages { key, stops: true } => Some(format!(
                "leave `{key}` out: `train.eval_every` tells the figures on the way, and any checkpoint can be used; or train what is to stop early as a run of its own, without `[[stage]]`, over the base that `janus merge` makes of the run before"
            )),
            Problem::NotForMethod { key, takers, .. } => {
                Some(format!("leave `{key}` out, or set `adapter.method` to {}", quoted_list(takers)))
            }
            Problem::NotWithInit { .. } => {
                Some("leave `adapter.init` out, or take `adapter.method` = `lora` without `adapter.bias`".into())
            }
            Problem::OnlyWithEva { key, .. } => Some(format!("leave `{key}` out, or set `adapter.init` to `eva`")),
            Problem::DuplicateName { .. } => Some("give each [[data]] table a `name` of its own".into()),
            Problem::UnknownScheme { .. } => Some(
                "a source is a path, a glob, a folder, `hf://datasets/owner/name/...` or `synth:name?rows=512&seed=1`"
                    .into(),
            ),
            Problem::Home { error, .. } => janus_core::Diagnose::hints(error).into_iter().next(),
            Problem::Target(error) => janus_core::Diagnose::hints(error).into_iter().next(),
            Problem::NoValue { .. } | Problem::EmptyKey | Problem::KeyTooDeep { .. } => {
                Some("an override is written as `train.learning_rate=1e-4` or `data.0.train=x.parquet`".into())
            }
            Problem::Syntax { .. } => {
                Some("a recipe is TOML, see https://toml.io; `janus recipe copy understand mine.toml` writes one to begin with".into())
            }
            Problem::WrongType { key, .. } => Some(format!("`janus recipe schema --markdown` tells what `{key}` takes")),
            Problem::NotSupported { .. } => Some("leave it out, or use a newer version of this program".into()),
            Problem::StageTables { .. } => {
                Some("`tables` of a `[[stage]]` has names of [[data]] tables, and every table is in a stage".into())
            }
            Problem::OtherPairs { key, .. } => Some(format!("set `{key}` once, in `[adapter]`")),
            Problem::NothingToTrain => Some("for example `adapter.targets = [\"decoder\"]`".into()),
            Problem::NotATable { .. } | Problem::NotANumber { .. } | Problem::NoSuchEntry { .. } => {
                Some("`janus recipe check RECIPE` prints the recipe with all its keys".into())
            }
            Problem::FolderNotUtf8 { .. } => Some("move the recipe into a folder with a name in UTF-8".into()),
        }
    }
}

/// A problem and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeFault {
    /// Where; absent for what is missing altogether.
    pub location: Option<Location>,
    /// What.
    pub problem: Problem,
}

impl fmt::Display for RecipeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(location) => location.write(f, &self.problem),
            None => self.problem.fmt(f),
        }
    }
}

/// The faults found so far.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    syntax: Vec<(Place, String)>,
    found: Vec<(Option<Place>, Problem)>,
}

impl Faults {
    pub(crate) fn push(&mut self, place: Option<Place>, problem: Problem) {
        if self.found.len() < MAX_FAULTS {
            self.found.push((place, problem));
        }
    }

    pub(crate) fn push_syntax(&mut self, place: Place, message: String) {
        self.syntax.push((place, message));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.syntax.is_empty() && self.found.is_empty()
    }

    /// The faults in the order in which they are written, those of the command line last.
    ///
    /// What does not parse is told once a line. What was understood of such a file is told as well, but for what may
    /// follow from the syntax: other faults on those lines, keys missing, and everything below a broken table header.
    pub(crate) fn located(mut self, sources: &Sources<'_>) -> Vec<RecipeFault> {
        self.syntax.sort_by_key(|(place, _)| place.span.start);
        let end = sources.end();
        let mut broken_lines: Vec<usize> = Vec::new();
        let mut all: Vec<(Option<Place>, Problem)> = Vec::new();
        for (place, message) in self.syntax {
            let line = sources.line_of(place.span.start.min(end));
            if broken_lines.last() != Some(&line) {
                broken_lines.push(line);
                if all.len() < MAX_FAULTS {
                    all.push((Some(place), Problem::Syntax { message }));
                }
            }
        }
        let broken_header =
            broken_lines.iter().copied().find(|line| sources.line_text(*line).trim_start().starts_with('['));
        let trusted = |place: &Option<Place>, problem: &Problem| {
            if broken_lines.is_empty() {
                return true;
            }
            match place {
                _ if matches!(problem, Problem::Missing { .. } | Problem::NoData | Problem::NothingToTrain) => false,
                None => true,
                Some(place) if place.is_override() => !matches!(problem, Problem::NoSuchEntry { .. }),
                Some(place) => {
                    let line = sources.line_of(place.span.start);
                    broken_lines.binary_search(&line).is_err() && broken_header.is_none_or(|header| line < header)
                }
            }
        };
        all.extend(self.found.into_iter().filter(|(place, problem)| trusted(place, problem)));
        all.sort_by_key(|(place, _)| match place {
            Some(place) => (place.source, place.span.start),
            None => (0, usize::MAX),
        });
        all.truncate(MAX_FAULTS);
        all.into_iter()
            .map(|(place, problem)| RecipeFault { location: place.map(|place| sources.locate(&place)), problem })
            .collect()
    }
}

/// The table parsed from the file; what does not parse goes to `faults`.
pub(crate) fn parse_file(text: &str, faults: &mut Faults) -> Table {
    let (parsed, errors) = toml::de::DeTable::parse_recoverable(text);
    for error in errors {
        // Only the bound on nesting is reported without a place.
        let span = error.span().unwrap_or(0..0);
        faults.push_syntax(Place { source: 0, span }, error.message().to_owned());
    }
    super::tree::table_from(parsed.get_ref(), 0, 0)
}

/// A name or value from the file, fit to be quoted in a message.
pub(crate) fn quotable(text: &str) -> String {
    one_line(&beginning(text, MAX_QUOTED_CHARS)).into_owned()
}

/// The key that a method which is `lora` with a key of its own is asked for by.
fn key_of_method(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "rslora" => "`adapter.rslora = true`",
        "pissa" => "`adapter.init = \"pissa\"`",
        "olora" => "`adapter.init = \"olora\"`",
        "eva" => "`adapter.init = \"eva\"`",
        "lora+" | "loraplus" => "`train.lora_plus_ratio`",
        _ => return None,
    })
}
