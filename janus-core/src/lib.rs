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
//! convolution and embedding table takes a [`site::Correction`], attached for all rows or held in a slot
//! ([`Janus::hold`]) for rows with a route to it; [`parameter`] hands out trainable copies of any parameter by name;
//! [`pass`] holds the options of one forward pass: training or not, noise, routes. [`noise`] holds the random numbers that can be
//! drawn again, [`directory`] holds folders open, [`output`] writes files that are whole or absent and [`temporary`] clears up
//! after those that were killed, [`input`] reads those of strangers, [`home`] knows the home folder in a path, [`ownership`] whose a folder is, [`guard`] catches what other people's decoders throw, [`device`] opens a GPU or tells why there is none.
//!
//! # Threads
//!
//! This crate starts no threads and makes no pool: it computes in the rayon pool that it is called from (rayon's global
//! one, or the one whose `install` surrounds the call). The same thread count gives the same bits. candle has two pools
//! besides: a barrier pool for its own element-wise operations, whose threads spin between operations (`CANDLE_NUM_THREADS`
//! sizes it; at 1 there are none and the work is done in place), and one for `Device::with_context`, which is not used
//! here. A program that wants one pool sets `CANDLE_NUM_THREADS=1` before its first tensor operation, and
//! `RAYON_NUM_THREADS` to the size of its own pool, as the `janus` binary does for `--threads`.

mod block;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod directory;
pub mod error;
pub mod guard;
pub mod home;
pub mod hub;
pub mod input;
mod kernel;
pub mod model;
pub mod noise;
pub mod ops;
pub mod output;
pub mod ownership;
mod pages;
pub mod parameter;
pub mod pass;
pub mod processing;
pub mod sample;
pub mod site;
pub mod temporary;
#[cfg(test)]
mod testing;

pub use device::{DeviceChoice, DeviceError};
pub use error::{Diagnose, Error, Fault, ModelError, Result};
pub use kernel::{free_spares, prefers_f32};
pub use model::{Janus, Parts};
