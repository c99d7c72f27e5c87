//! LoRA for Janus.
pub mod adapter;
pub mod data;
pub mod error;
pub mod eval;
pub mod merge;
mod nearest;
pub mod probe;
pub mod recipe;
pub mod status;
pub mod target;
pub mod tasks;
pub mod train;

pub use error::{Error, Result};
