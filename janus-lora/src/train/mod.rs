//! Training: a recipe becomes a plan, the plan a run, the run an adapter.
//!
//! The way of one step: [`mixture`] says from which table each row comes, [`tables`] hands out the rows, the tasks make
//! samples and batches of them (`prefetch` reads and decodes ahead), [`step`] runs forward and backward (of small bases two
//! batches `side_by_side`), clips and lets [`optimizer`] move the [`trainable`] tensors at the rate of [`schedule`]. [`plan`] is
//! what is known before the first step ([`memory`] by `workload`, against the memory there is, time by a `rehearsal`),
//! [`stages`] are what it does one after the other, [`coverage`] the proof that every tensor learns, [`run`] the loop with its
//! `files` in a [`folder`] of its own.
//!
//! What makes a run one that can be trusted: [`checkpoint`] writes and reads all that the same bits need (rows by `feeder`,
//! `moments`, the use of a `codebook`, and what the run began with by [`identity`]), [`guard`] watches losses and evaluations, [`signals`] end a run
//! between two steps.

pub mod checkpoint;
mod codebook;
pub mod coverage;
pub mod ending;
mod error;
pub mod feeder;
mod files;
pub mod folder;
pub mod guard;
pub mod identity;
pub mod memory;
pub mod metrics;
pub mod mixture;
mod moments;
pub mod optimizer;
pub mod plan;
mod plot;
mod prefetch;
#[cfg(test)]
mod prefetch_tests;
pub mod readings;
mod rehearsal;
pub mod run;
pub mod schedule;
mod side_by_side;
pub mod signals;
mod sites;
pub mod stages;
pub mod step;
pub mod tables;
pub mod trainable;
mod workload;

pub use error::{TrainError, shell_word};
