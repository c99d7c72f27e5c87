//! One object of a `config.json`, read key by key with errors that name the whole path. `null` counts as absent.

use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;

/// A JSON object and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Section<'a> {
    file: &'a Path,
    path: String,
    map: Option<&'a Map<String, Value>>,
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("`{n}`"),
        Value::String(s) => format!("the string `{s}`"),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".into(),
    }
}

impl<'a> Section<'a> {
    /// The file's outermost object.
    pub(super) fn root(file: &'a Path, value: &'a Value) -> Result<Self, ConfigError> {
        let map = value.as_object().ok_or_else(|| ConfigError::WrongType {
            file: file.to_path_buf(),
            key: "(root)".into(),
            expected: "an object",
            got: describe(value),
        })?;
        Ok(Self { file, path: String::new(), map: Some(map) })
    }

    /// The key's path from the root.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map?.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn wrong_type(&self, key: &str, expected: &'static str, value: &Value) -> ConfigError {
        ConfigError::WrongType { file: self.file.to_path_buf(), key: self.key(key), expected, got: describe(value) }
    }

    pub(super) fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { file: self.file.to_path_buf(), key: self.key(key) }
    }

    pub(super) fn unsupported(&self, key: &str, value: impl std::fmt::Display, supported: &'static str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file.to_path_buf(),
            key: self.key(key),
            value: value.to_string(),
            supported,
        }
    }

    /// An object inside; one that is absent reads as empty.
    pub(super) fn section(&self, key: &str) -> Result<Section<'a>, ConfigError> {
        let map = match self.get(key) {
            None => None,
            Some(Value::Object(map)) => Some(map),
            Some(other) => return Err(self.wrong_type(key, "an object", other)),
        };
        Ok(Section { file: self.file, path: self.key(key), map })
    }

    /// An object inside that must be there.
    pub(super) fn required_section(&self, key: &str) -> Result<Section<'a>, ConfigError> {
        if self.has(key) { self.section(key) } else { Err(self.missing(key)) }
    }

    fn as_size(&self, key: &str, value: &Value) -> Result<usize, ConfigError> {
        value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| self.wrong_type(key, "a whole number that is not negative", value))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.get(key).map(|value| self.as_size(key, value)).transpose()
    }

    pub(super) fn size(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    pub(super) fn required_size(&self, key: &str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A side of a square: a number, or a pair of equal ones.
    pub(super) fn side(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        match self.get(key) {
            Some(Value::Array(sides)) => match sides.as_slice() {
                [height, width] if height == width => self.as_size(key, height),
                _ => Err(self.unsupported(
                    key,
                    Value::Array(sides.clone()),
                    "one number or a pair of equal ones (squares)",
                )),
            },
            _ => self.size(key, default),
        }
    }

    pub(super) fn float(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong_type(key, "a number", value)),
        }
    }

    pub(super) fn optional_flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_bool().map(Some).ok_or_else(|| self.wrong_type(key, "true or false", value)),
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.optional_flag(key)?.unwrap_or(default))
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong_type(key, "a string", value)),
        }
    }

    pub(super) fn required_str(&self, key: &str) -> Result<&'a str, ConfigError> {
        self.string(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                items.iter().map(|item| self.as_size(key, item)).collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(self.wrong_type(key, "an array of whole numbers", other)),
        }
    }

    /// A token id. Old Llama files say -1 for "none"; newer ones may list several, of which the first counts.
    pub(super) fn token_id(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        let value = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(ids)) => match ids.first() {
                None => return Ok(None),
                Some(first) => first,
            },
            Some(value) => value,
        };
        if value.as_i64() == Some(-1) {
            return Ok(None);
        }
        match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.wrong_type(key, "a token id", value)),
        }
    }

    /// Refuses a string other than the one supported; absence is fine.
    pub(super) fn only(&self, key: &str, supported: &str, words: &'static str) -> Result<(), ConfigError> {
        match self.string(key)? {
            Some(value) if value != supported => Err(self.unsupported(key, value, words)),
            _ => Ok(()),
        }
    }

    /// Refuses a flag that is set.
    pub(super) fn never(&self, key: &str) -> Result<(), ConfigError> {
        if self.flag(key, false)? { Err(self.unsupported(key, true, "`false`")) } else { Ok(()) }
    }

    /// A whole number of either sign.
    pub(super) fn signed(&self, key: &str, default: i64) -> Result<i64, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_i64().ok_or_else(|| self.wrong_type(key, "a whole number", value)),
        }
    }

    /// Refuses a size that contradicts the one `other` gives for the same thing; absence is fine.
    pub(super) fn same(&self, key: &str, expected: usize, other: &Self, other_key: &str) -> Result<(), ConfigError> {
        match self.optional_size(key)? {
            Some(value) if value != expected => Err(ConfigError::Inconsistent {
                file: self.file.to_path_buf(),
                key: self.key(key).into(),
                value: value.to_string().into(),
                other_key: other.key(other_key).into(),
                other_value: expected.to_string().into(),
                rule: "they must be equal",
            }),
            _ => Ok(()),
        }
    }
}
