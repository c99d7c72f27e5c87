//! LoRA for Janus.
pub mod data;
pub mod recipe;
