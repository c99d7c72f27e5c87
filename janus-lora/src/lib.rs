//! LoRA fine-tuning of DeepSeek Janus models, for image understanding and image generation.
//!
//! The way of the data is the order of the rooms:
//!
//! 1. [`recipe`] says what is trained, from what, on what and how; [`target`] which sites;
//! 2. [`data`] reads rows from Parquet, [`tasks`] makes samples and batches of them and computes their loss, [`survey`]
//!    shows beforehand what they come to;
//! 3. [`adapter`] holds low-rank pairs and copies, reads and writes them as PEFT does, and attaches them to a base
//!    through the core's seam; [`dynamic`] holds the dynamic visual encoder and [`heads`] the task heads
//!    that may stand beside them, [`mifs`] the loss that aligns both visual paths;
//! 4. [`infer`] answers requests of every kind, each with its own adapters;
//! 5. [`train`] moves them, [`eval`] measures them, [`report`] shows what happens and happened;
//! 6. [`batch`] answers whole tables;
//! 7. [`algebra`] makes adapters out of adapters and of checkpoints, [`merge`] folds them into a new checkpoint, [`probe`]
//!    compares with other implementations, [`bench`] measures speed and memory.
//!
//! [`base`] opens a checkpoint with its tokenizer and image processor, [`fingerprint`] names it, [`cache`] keeps what is
//! computed once of each image, [`available_memory`] says how much may be counted on, [`status`] is how long work reports progress,
//! and [`cli`] is the `janus` program.

pub mod adapter;
pub mod algebra;
mod allocator;
pub mod available_memory;
pub mod base;
pub mod batch;
mod beginning;
pub mod bench;
pub mod cache;
pub mod cli;
pub mod culprit;
pub mod data;
pub mod detection;
mod drawn;
pub mod dynamic;
pub mod error;
pub mod eval;
pub mod fingerprint;
pub mod heads;
pub mod infer;
mod jacobi;
pub mod merge;
mod metrics;
pub mod mifs;
mod nearest;
pub mod overlay;
pub mod probe;
pub mod recipe;
pub mod report;
pub mod status;
pub mod survey;
mod svd;
pub mod target;
pub mod tasks;
pub mod train;
mod visible;

pub use allocator::Allocator;
pub use error::{Error, Result};
