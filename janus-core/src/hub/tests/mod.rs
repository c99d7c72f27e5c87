mod datasets;
mod faults;
mod kept;
mod limits;
mod names;
mod server;
mod transfers;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use server::Hub;

/// A [`Progress`] that remembers.
#[derive(Default)]
struct Remembered {
    /// Name, total and already present bytes of each file begun.
    files: RefCell<Vec<(String, Option<u64>, u64)>>,
    /// Bytes of the file in work.
    have_bytes: RefCell<u64>,
    /// Bytes each file had when it was finished.
    finished_bytes: RefCell<Vec<u64>>,
    notes: RefCell<Vec<String>>,
}

impl Progress for Remembered {
    fn file(&self, name: &str, total_bytes: Option<u64>, already_bytes: u64) {
        self.files.borrow_mut().push((name.to_string(), total_bytes, already_bytes));
        *self.have_bytes.borrow_mut() = already_bytes;
    }

    fn advance(&self, bytes: u64) {
        *self.have_bytes.borrow_mut() += bytes;
    }

    fn finish(&self) {
        self.finished_bytes.borrow_mut().push(*self.have_bytes.borrow());
    }

    fn note(&self, message: &str) {
        self.notes.borrow_mut().push(message.to_string());
    }
}

/// Bytes without a short period, so that a part at the wrong place is seen.
fn weights(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

fn options(hub: &Hub, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: hub.endpoint(),
        patience: Patience { attempts: 3, first_wait: Duration::from_millis(1), silence: Duration::from_millis(2000) },
        ..HubOptions::new(cache)
    }
}

fn repository() -> RepoId {
    "owner/name".parse().unwrap()
}

/// The hub most tests use: a base with one weights file of `bytes`.
fn simple_hub(bytes: &[u8]) -> Hub {
    Hub::start(&[("config.json", b"{}"), ("tokenizer.json", b"[1]"), ("model.safetensors", bytes)])
}

/// Every path below `folder` that is no folder, relative to it, sorted.
fn tree(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, base: &Path, found: &mut Vec<String>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), base, found);
            } else {
                let path = entry.path();
                found.push(path.strip_prefix(base).unwrap().to_str().unwrap().replace('\\', "/"));
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

fn in_repository(cache: &Path, name: &str) -> PathBuf {
    cache.join("models--owner--name").join(name)
}
