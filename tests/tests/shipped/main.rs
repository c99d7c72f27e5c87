//! What lies in the repository ready to use: recipes, the built-in base, adapters.
#![allow(clippy::unwrap_used)]

mod adapters;
mod nano;
mod recipes;

use std::path::{Path, PathBuf};

/// The folder of the whole.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}
