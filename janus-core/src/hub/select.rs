use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::{HubError, RepoId};
use crate::checkpoint::{MAX_INDEX_BYTES, MAX_SHARDS};
use crate::input::{self, InputError};

pub(super) const CONFIG_FILE: &str = "config.json";

const SINGLE_SAFETENSORS: &str = "model.safetensors";
const SHARDED_SAFETENSORS: &str = "model.safetensors.index.json";
const SINGLE_PICKLE: &str = "pytorch_model.bin";
const SHARDED_PICKLE: &str = "pytorch_model.bin.index.json";

/// How a repository holds its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Weights {
    /// One file.
    Single(&'static str),
    /// Files named by an index.
    Sharded {
        /// The index file.
        index: &'static str,
    },
}

/// What of a repository a base needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// Configuration, tokenizer, templates.
    pub(super) side_files: Vec<String>,
    pub(super) weights: Weights,
}

/// Picks what a base needs out of a repository's file names.
pub(super) fn choose_files(id: &RepoId, files: &BTreeSet<String>) -> Result<Choice, HubError> {
    for name in files {
        check_name(name).map_err(|problem| HubError::UnsafeName { id: id.clone(), name: name.clone(), problem })?;
    }
    if !files.contains(CONFIG_FILE) {
        return Err(HubError::MissingFile { id: id.clone(), file: CONFIG_FILE.to_string() });
    }
    let weights = choose_weights(|name| files.contains(name)).ok_or_else(|| HubError::NoWeights {
        id: id.clone(),
        expected: format!("`{SINGLE_SAFETENSORS}`, `{SHARDED_SAFETENSORS}`, `{SINGLE_PICKLE}`, `{SHARDED_PICKLE}`"),
    })?;
    let side_files = files.iter().filter(|name| is_side_file(name)).cloned().collect();
    Ok(Choice { side_files, weights })
}

/// Safetensors before pickles, one file before shards, as transformers looks for them.
fn choose_weights(has: impl Fn(&str) -> bool) -> Option<Weights> {
    [
        Weights::Single(SINGLE_SAFETENSORS),
        Weights::Sharded { index: SHARDED_SAFETENSORS },
        Weights::Single(SINGLE_PICKLE),
        Weights::Sharded { index: SHARDED_PICKLE },
    ]
    .into_iter()
    .find(|weights| match weights {
        Weights::Single(name) | Weights::Sharded { index: name } => has(name),
    })
}

/// Whether a file configures the model, its tokenizer or its processing. Folders hold other things: exports to other
/// engines, copies of the weights in other layouts, pictures.
fn is_side_file(name: &str) -> bool {
    if name.contains('/') || name.starts_with('.') || name.ends_with(".index.json") {
        return false;
    }
    name.ends_with(".json")
        || name.ends_with(".jinja")
        || name.ends_with(".model")
        || name.starts_with("tokenizer")
        || matches!(name, "merges.txt" | "vocab.txt")
}

/// Whether a file of a snapshot is one that a base may have.
pub(super) fn is_of_base(name: &str) -> bool {
    let is_weights = [".safetensors", ".bin", ".index.json"].iter().any(|ending| name.ends_with(ending));
    is_weights || is_side_file(name)
}

/// Refuses a name that could lead out of the folder it is joined to, on any system.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.starts_with('/') {
        return Err("is absolute");
    }
    if name.contains('\\') {
        return Err("holds a backslash");
    }
    if name.chars().any(char::is_control) {
        return Err("holds a control character");
    }
    let mut parts = name.split('/');
    if parts.clone().next().is_some_and(|first| first.as_bytes().get(1) == Some(&b':')) {
        return Err("begins with a drive letter");
    }
    if parts.any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("has an empty, `.` or `..` part");
    }
    Ok(())
}

/// The files that the index at `path` spreads the weights over, sorted.
pub(super) fn shards_of_index(id: &RepoId, index: &str, path: &Path) -> Result<BTreeSet<String>, HubError> {
    let wrong = |problem: String| HubError::Index { id: id.clone(), file: index.to_string(), problem };
    let mut shards = BTreeSet::new();
    for (tensor, shard) in weight_map(id, index, path)? {
        let shard = shard.as_str().ok_or_else(|| wrong(format!("the file of tensor `{tensor}` is not a text")))?;
        check_name(shard).map_err(|problem| wrong(format!("tensor `{tensor}` is in {shard:?}, which {problem}")))?;
        shards.insert(shard.to_string());
    }
    if shards.is_empty() {
        return Err(wrong("`weight_map` is empty".into()));
    }
    if shards.len() > MAX_SHARDS {
        return Err(wrong(format!("it names {} files, expected at most {MAX_SHARDS}", shards.len())));
    }
    Ok(shards)
}

/// The tensors that the index at `path` names.
pub(super) fn tensors_of_index(id: &RepoId, index: &str, path: &Path) -> Result<BTreeSet<String>, HubError> {
    Ok(weight_map(id, index, path)?.into_iter().map(|(tensor, _)| tensor).collect())
}

fn weight_map(id: &RepoId, index: &str, path: &Path) -> Result<serde_json::Map<String, Value>, HubError> {
    let wrong = |problem: String| HubError::Index { id: id.clone(), file: index.to_string(), problem };
    let text = input::read_named(path, MAX_INDEX_BYTES).map_err(|error| match error {
        InputError::Io { path, source } => HubError::Read { path, source },
        error => wrong(error.to_string()),
    })?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    match json {
        Value::Object(mut json) => match json.remove("weight_map") {
            Some(Value::Object(map)) => Ok(map),
            _ => Err(wrong("no object `weight_map`".into())),
        },
        _ => Err(wrong("no object `weight_map`".into())),
    }
}

/// The first file that keeps the folder of a snapshot from being a whole base, `None` if nothing does.
pub(super) fn missing_in_snapshot(id: &RepoId, folder: &Path) -> Option<String> {
    let has = |name: &str| folder.join(name).is_file();
    if !has(CONFIG_FILE) {
        return Some(CONFIG_FILE.to_string());
    }
    match choose_weights(has) {
        None => Some(SINGLE_SAFETENSORS.to_string()),
        Some(Weights::Single(_)) => None,
        Some(Weights::Sharded { index }) => match shards_of_index(id, index, &folder.join(index)) {
            Ok(shards) => shards.into_iter().find(|shard| !has(shard)),
            Err(_) => Some(index.to_string()),
        },
    }
}
