//! From tokens, generator, gates and P to the factors.

use candle_core::{Result, Tensor};

use super::{Dynamic, FC1_BIAS, FC1_WEIGHT, FC2_BIAS, FC2_WEIGHT, GATES, GENERATE, PROJECTION, UNDERSTAND};

/// Factors of a dynamic encoder, f32 and with the graph of its values.
#[derive(Debug, Clone, Default)]
pub struct Factors {
    /// Of the tower's norms, two after each other for each block: `[2 · blocks, width]`.
    pub(crate) norms: Option<Tensor>,
    /// Of the output of `generation_aligner`: `[hidden]`.
    pub(crate) generation: Option<Tensor>,
}

impl Factors {
    /// Those of an encoder.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn of(dynamic: &Dynamic) -> Result<Self> {
        let mut factors = Self::default();
        if dynamic.paths.vision {
            let gates = dynamic.value(GATES).reshape(((), 1))?;
            factors.norms = Some((gates.broadcast_mul(&gamma(dynamic, UNDERSTAND)?.t()?)? + 1.0)?);
        }
        if dynamic.paths.generation {
            let shift = dynamic.value(PROJECTION).matmul(&gamma(dynamic, GENERATE)?)?.flatten_all()?;
            factors.generation = Some((shift + 1.0)?);
        }
        Ok(factors)
    }
}

/// W2·relu(W1·z + b1) + b2, `[width, 1]`.
fn gamma(dynamic: &Dynamic, token: &str) -> Result<Tensor> {
    let column = |name: &str| dynamic.value(name).reshape(((), 1));
    let inner = (dynamic.value(FC1_WEIGHT).matmul(&column(token)?)? + column(FC1_BIAS)?)?.relu()?;
    dynamic.value(FC2_WEIGHT).matmul(&inner)? + column(FC2_BIAS)?
}
