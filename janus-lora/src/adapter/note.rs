//! `janus_adapter.json`: what PEFT has no place for. Its absence makes an adapter no worse, only less known.

use janus_core::directory::Place;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::AdapterError;
use super::file::read_json_text;

/// File name in an adapter folder.
pub const NOTE_FILE: &str = "janus_adapter.json";

/// The version written, and the latest one read.
pub const NOTE_VERSION: u32 = 1;

/// Longest file that is read; recipe and metrics are kilobytes.
const LIMIT_BYTES: u64 = 8 << 20;

/// Where an adapter comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Version of this file's format.
    pub version: u32,
    /// The base it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseNote>,
    /// The resolved recipe, TOML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// What training measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Value>,
    /// Anything else the file holds, kept when it is written again.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The base an adapter was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseNote {
    /// What the user called it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its fingerprint, lower-case hexadecimal.
    pub fingerprint: String,
}

/// What an adapter says of the base it is used with, unless it says that it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FingerprintVerdict {
    /// It was made for this base.
    Same,
    /// It does not say: worth a warning.
    Unknown,
}

impl Note {
    /// A note that says nothing yet.
    pub fn new() -> Self {
        Self { version: NOTE_VERSION, base: None, recipe: None, metrics: None, other: Map::new() }
    }

    /// Reads the note of an adapter folder, if there is one.
    ///
    /// # Errors
    /// Broken JSON, a later version, or the system's.
    pub fn read<'a>(folder: impl Into<Place<'a>>) -> Result<Option<Self>, AdapterError> {
        let Some(text) = read_json_text(folder.into(), NOTE_FILE, LIMIT_BYTES)? else { return Ok(None) };
        // The version alone first: what else a later version holds may be of other types.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let broken = |source| AdapterError::Json { file: NOTE_FILE, source };
        let Version { version } = serde_json::from_str(&text).map_err(broken)?;
        if version > NOTE_VERSION {
            return Err(AdapterError::NoteVersion { version, supported: NOTE_VERSION });
        }
        serde_json::from_str(&text).map(Some).map_err(broken)
    }

    /// The text of the file.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("JSON values with string keys");
        text.push('\n');
        text
    }
}

impl Default for Note {
    fn default() -> Self {
        Self::new()
    }
}

/// Compares the base an adapter was made for with the fingerprint of the one it is used with.
///
/// # Errors
/// [`AdapterError::OtherBase`].
pub fn check_fingerprint(note: Option<&Note>, base_fingerprint: &str) -> Result<FingerprintVerdict, AdapterError> {
    match note.and_then(|note| note.base.as_ref()) {
        None => Ok(FingerprintVerdict::Unknown),
        Some(base) if base.fingerprint.eq_ignore_ascii_case(base_fingerprint) => Ok(FingerprintVerdict::Same),
        Some(base) => Err(AdapterError::OtherBase {
            name: base.name.clone(),
            expected: base.fingerprint.clone(),
            got: base_fingerprint.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Note>, AdapterError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NOTE_FILE), text).unwrap();
        Note::read(folder.path())
    }

    #[test]
    fn a_note_comes_back_as_it_was_written() {
        let mut note = Note::new();
        note.base = Some(BaseNote { name: Some("janus-tiny".into()), fingerprint: "ab12".into() });
        note.recipe = Some("[train]\nsteps = 3\n".into());
        note.metrics = Some(serde_json::json!({"loss": 1.5}));
        note.other.insert("remark".into(), "kept".into());
        assert_eq!(read(&note.to_json()).unwrap(), Some(note));
        assert_eq!(read(&Note::new().to_json()).unwrap(), Some(Note::new()));
        assert!(Note::read(tempfile::tempdir().unwrap().path()).unwrap().is_none());
    }

    #[test]
    fn broken_and_later_notes_are_refused() {
        assert!(matches!(read("{"), Err(AdapterError::Json { file: NOTE_FILE, .. })));
        assert!(matches!(read("{}"), Err(AdapterError::Json { .. })));
        assert!(matches!(read(r#"{"version": 1, "base": 3}"#), Err(AdapterError::Json { .. })));
        let later = read(r#"{"version": 2, "base": 3}"#).unwrap_err();
        assert_eq!(later.to_string(), "`janus_adapter.json` has version 2, expected at most 1");
    }

    #[test]
    fn another_base_is_an_error_that_names_it() {
        let mut note = Note::new();
        assert_eq!(check_fingerprint(None, "ab").unwrap(), FingerprintVerdict::Unknown);
        assert_eq!(check_fingerprint(Some(&note), "ab").unwrap(), FingerprintVerdict::Unknown);
        note.base = Some(BaseNote { name: Some("janus-small".into()), fingerprint: "ab".into() });
        assert_eq!(check_fingerprint(Some(&note), "ab").unwrap(), FingerprintVerdict::Same);
        let other = check_fingerprint(Some(&note), "cd").unwrap_err().to_string();
        assert!(other.contains("`janus-small`") && other.contains("`ab`") && other.contains("`cd`"), "{other}");
    }
}
