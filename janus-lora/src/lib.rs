//! LoRA for Janus.
pub mod data;
mod nearest;
pub mod recipe;
pub mod target;
