//! Where the weights of a model come from: a folder, or nowhere at all.

use candle_core::{DType, Tensor};

use super::{Checkpoint, RandomWeights};
use crate::config::JanusConfig;
use crate::error::Result;

/// A model's weights by native name.
pub trait WeightSource {
    /// Sizes and constants.
    fn config(&self) -> &JanusConfig;

    /// Whether the head is the embedding table.
    fn is_tied(&self) -> bool;

    /// The type that holds a tensor of native name exactly and in the fewest bytes: what it is stored in, or f32.
    fn exact_dtype(&self, native_name: &str) -> DType;

    /// A tensor of native name and shape on the CPU, as `dtype`.
    ///
    /// # Errors
    /// No such tensor, another type than weights can have, or the system's.
    fn read(&self, native_name: &str, dtype: DType) -> Result<Tensor>;
}

impl WeightSource for Checkpoint {
    fn config(&self) -> &JanusConfig {
        self.config()
    }

    fn is_tied(&self) -> bool {
        self.is_tied()
    }

    fn exact_dtype(&self, native_name: &str) -> DType {
        self.exact_dtype(native_name)
    }

    fn read(&self, native_name: &str, dtype: DType) -> Result<Tensor> {
        Ok(self.read(native_name, dtype)?)
    }
}

impl WeightSource for RandomWeights {
    fn config(&self) -> &JanusConfig {
        self.config()
    }

    fn is_tied(&self) -> bool {
        self.is_tied()
    }

    fn exact_dtype(&self, _native_name: &str) -> DType {
        DType::F32
    }

    fn read(&self, native_name: &str, dtype: DType) -> Result<Tensor> {
        self.read(native_name, dtype)
    }
}
