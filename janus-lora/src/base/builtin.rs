//! The base that is compiled into the program: found by its name from any folder, without a network.
//!
//! Its files are written into the cache folder on first use and opened there as any other base is. How it was made:
//! `recipes/janus-nano.toml`, `docs/janus-nano.md`.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::short_hash;
use crate::cache::seal;
use crate::error::Result;
use janus_core::input;
use janus_core::output::write_file;

/// Its name.
pub const NAME: &str = "janus-nano";

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../janus-nano/", $name)))),+]
    };
}

/// Its files.
const FILES: &[(&str, &[u8])] = files![
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Its folder below `cache`, if it is there whole.
pub(super) fn kept(cache: &Path) -> Option<PathBuf> {
    let folder = place(cache);
    FILES.iter().all(|(name, bytes)| is_written(&folder.join(name), bytes)).then_some(folder)
}

fn place(cache: &Path) -> PathBuf {
    let hash = short_hash(FILES.iter().flat_map(|(name, bytes)| [name.as_bytes(), *bytes]));
    cache.join("bases").join(format!("{NAME}-{hash}"))
}

/// Whether a file is the one that the program carries, byte for byte.
fn is_written(path: &Path, bytes: &[u8]) -> bool {
    let Ok(mut file) = input::open(path) else { return false };
    if !file.metadata().is_ok_and(|about| about.len() == bytes.len() as u64) {
        return false;
    }
    let mut buffer = vec![0; 256 << 10];
    bytes.chunks(buffer.len()).all(|expected| {
        let found = &mut buffer[..expected.len()];
        file.read_exact(found).is_ok() && found == expected
    })
}

/// Its folder below `cache`. What is missing there, or is anything else, is written.
///
/// # Errors
/// The cache folder cannot be written to.
pub(super) fn folder(cache: &Path) -> Result<PathBuf> {
    let folder = place(cache);
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if !is_written(&path, bytes) {
            seal::require_own_hand(&folder)?;
            write_file(&path, |file| file.write_all(bytes))?;
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_from_the_program_and_a_damaged_one_is_written_again() {
        let cache = tempfile::tempdir().unwrap();
        let folder = super::folder(cache.path()).unwrap();
        let weights = folder.join("model.safetensors");
        let whole = fs_err::read(&weights).unwrap();
        assert!(FILES.iter().any(|(name, bytes)| *name == "model.safetensors" && *bytes == whole));
        fs_err::write(&weights, &whole[..whole.len() / 3]).unwrap();
        fs_err::remove_file(folder.join("config.json")).unwrap();
        assert_eq!(super::folder(cache.path()).unwrap(), folder);
        assert_eq!(fs_err::read(&weights).unwrap(), whole);
        assert!(folder.join("config.json").exists());
        // Of the right length, and planted.
        let tokenizer = folder.join("tokenizer.json");
        let mut planted = fs_err::read(&tokenizer).unwrap();
        let last = planted.len() - 1;
        planted[last] ^= 1;
        fs_err::write(&tokenizer, &planted).unwrap();
        assert_eq!(kept(cache.path()), None);
        super::folder(cache.path()).unwrap();
        planted[last] ^= 1;
        assert_eq!(fs_err::read(&tokenizer).unwrap(), planted);
        assert_eq!(kept(cache.path()), Some(folder));
    }

    #[test]
    fn it_is_small_enough_to_be_carried_along() {
        let bytes: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= 16 << 20, "{bytes}");
    }
}
