//! What the tests of this crate share.

pub mod base;
pub mod compare;
pub mod expected;
pub mod failing_device;
pub mod hub;
pub mod joint;
pub mod program;
pub mod rows;
pub mod tiny;

use std::path::{Path, PathBuf};

/// The folder of parity fixtures: a tiny Janus and what transformers and PEFT give on it.
///
/// Taken from the environment variable `JANUS_FIXTURES`, else looked for beside the workspace in
/// `../shared/fixtures/tiny-janus`. Where it is absent a note is printed, and the caller has nothing to check.
#[allow(clippy::print_stdout)]
pub fn fixtures() -> Option<PathBuf> {
    let folder = match std::env::var_os("JANUS_FIXTURES") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/tiny-janus"),
    };
    if folder.join("manifest.json").is_file() {
        return Some(folder);
    }
    println!("note: no parity fixtures at `{}` (set JANUS_FIXTURES): nothing is checked", folder.display());
    None
}

/// The JSON file `name` of `folder`.
///
/// # Panics
/// It is not there or not JSON: the test fails.
pub fn json(folder: &Path, name: &str) -> serde_json::Value {
    let path = folder.join(name);
    let text = fs_err::read_to_string(&path).unwrap_or_else(|e| panic!("{e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()))
}
