//! What a merge refuses.

use candle_core::DType;
use janus_core::{Diagnose, Fault};

/// Adapters that must not be merged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// One adapter that shifts no weight, and that copies nothing.
    #[error("adapter {number} of {count} changes nothing: the shift of every weight is zero")]
    NoOp {
        /// Which one, from 1.
        number: usize,
        /// How many were given.
        count: usize,
    },
    /// Adapters that together leave every weight as it is.
    #[error("the merge changes nothing: the sum of all adapters is zero at each of {tensors} tensors")]
    NothingChanged {
        /// Tensors they speak of.
        tensors: usize,
    },
    /// A bias that an adapter adds where the base has none to add it to.
    #[error("`{path}` has no bias in the base, and an adapter adds one (`lora_bias`)")]
    NoBias {
        /// The site.
        path: String,
    },
    /// A merged value that is infinite or no number.
    #[error("`{tensor}` is not finite once merged: {weight:e} + {delta:e} at value {index} does not fit {dtype:?}")]
    NotFinite {
        /// Native name of the tensor.
        tensor: String,
        /// Position among its values, row by row, from 0.
        index: usize,
        /// What the base has there.
        weight: f64,
        /// What the adapters add.
        delta: f64,
        /// Type the tensor is written in.
        dtype: DType,
    },
    /// A comparison that came to infinite logits or none.
    #[error("logits of {which} are not finite on the probe input of the {head} head, computed in f32")]
    Logits {
        /// `base + adapters` or `the merged checkpoint`.
        which: &'static str,
        /// `text` or `image`.
        head: &'static str,
    },
}

impl Diagnose for MergeError {
    fn fault(&self) -> Fault {
        Fault::Input
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            MergeError::NoOp { .. } | MergeError::NothingChanged { .. } => {
                "an untrained adapter does this, and a scale of 0 (`DIR:SCALE`); `janus base convert` copies a base as it is"
            }
            MergeError::NoBias { .. } => "use the adapter beside the base, with `--adapter`",
            MergeError::NotFinite { dtype: DType::F16, .. } => {
                "f16 ends at 65504: give `--dtype bf16` or `--dtype f32`, or a smaller scale (`DIR:SCALE`)"
            }
            MergeError::NotFinite { .. } | MergeError::Logits { .. } => {
                "the adapter may be of a run that diverged: take an earlier checkpoint or a smaller scale (`DIR:SCALE`)"
            }
        };
        vec![hint.to_owned()]
    }
}
