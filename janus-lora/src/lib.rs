//! LoRA for Janus.
pub mod adapter;
pub mod data;
mod nearest;
pub mod recipe;
pub mod target;
