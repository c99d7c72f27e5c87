//! The settings of one JSON file of a checkpoint folder.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Result;
use super::error::ProcessingError;
use super::tokenizer::read_json;

/// A file's settings by their keys.
pub(super) struct Settings {
    pub(super) path: PathBuf,
    pub(super) values: Map<String, Value>,
}

impl Settings {
    /// The settings of a file, `None` where there is none.
    pub(super) fn read(folder: &Path, file: &str) -> Result<Option<Self>> {
        let path = folder.join(file);
        match read_json(folder, file)? {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Self { path, values })),
            Some(other) => Err(setting(&path, "the whole file", "an object", &other)),
        }
    }

    /// A value that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, key: &str, expected: &str) -> ProcessingError {
        setting(&self.path, key, expected, self.get(key).unwrap_or(&Value::Null))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number"))
    }
}

/// A setting that is not what it can be.
pub(super) fn setting(path: &Path, key: &str, expected: &str, got: &Value) -> ProcessingError {
    ProcessingError::Setting { path: path.to_path_buf(), key: key.into(), expected: expected.into(), got: shown(got) }
}

/// A value as it goes into a message, shortened where it is long.
fn shown(value: &Value) -> String {
    const LIMIT: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("`{}...`", &text[..end]),
        None => format!("`{text}`"),
    }
}
