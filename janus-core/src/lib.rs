//! The frozen Janus: DeepSeek's multimodal models (Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B) on candle.
//!
//! The way of the data is the order of the rooms:
//!
//! 1. [`hub`] turns what the user calls a base into a folder, [`config`] and [`checkpoint`] open it in either layout;
//! 2. [`processing`] turns pictures and chat text into tensors;
//! 3. [`model`] computes: vision tower, aligners, decoder, heads, image tokenizer, on the operations of [`ops`];
//! 4. [`sample`] draws answers and image codes.
//!
//! The base never changes. [`site`] is the seam through which others change what it computes: every linear map,
//! convolution and embedding table has a slot for a [`site::Correction`]; [`parameter`] hands out trainable copies of
//! any parameter by name; [`pass`] says what one forward pass is told. [`noise`] holds the random numbers that can be
//! drawn again, [`output`] writes files that are whole or absent.

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod hub;
mod kernel;
pub mod model;
pub mod noise;
pub mod ops;
pub mod output;
pub mod parameter;
pub mod pass;
pub mod processing;
pub mod sample;
pub mod site;
#[cfg(test)]
mod testing;

pub use error::{Diagnose, Error, Fault, ModelError, Result};
pub use model::{Janus, Parts};
