//! The frozen Janus.
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod hub;
pub mod noise;
pub mod ops;
pub mod output;
pub mod processing;

pub use error::{Diagnose, Error, Fault, ModelError, Result};
