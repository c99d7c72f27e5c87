//! From tokens, generator, gates and P to the factors.

use candle_core::{Result, Tensor};

use super::{Dynamic, FC1_BIAS, FC1_WEIGHT, FC2_BIAS, FC2_WEIGHT, GATES, GENERATE, PROJECTION, UNDERSTAND};

/// Factors of one or several dynamic encoders, f32 and with the graph of their values.
#[derive(Debug, Clone, Default)]
pub struct Factors {
    /// Of the tower's norms, two after each other for each block: `[2 · blocks, width]`.
    pub(super) norms: Option<Tensor>,
    /// Of the output of `generation_aligner`: `[hidden]`.
    pub(super) generation: Option<Tensor>,
}

impl Factors {
    /// 1 + Σ scale · shift over encoders, each with its scale.
    ///
    /// # Errors
    /// Encoders for models of different sizes.
    pub fn of<'a>(encoders: impl IntoIterator<Item = (&'a Dynamic, f64)>) -> Result<Self> {
        let mut factors = Self::default();
        for (dynamic, scale) in encoders {
            if dynamic.paths.vision {
                let gates = dynamic.value(GATES).reshape(((), 1))?;
                let shift = gates.broadcast_mul(&gamma(dynamic, UNDERSTAND)?.t()?)?;
                add(&mut factors.norms, (shift * scale)?)?;
            }
            if dynamic.paths.generation {
                let shift = dynamic.value(PROJECTION).matmul(&gamma(dynamic, GENERATE)?)?.flatten_all()?;
                add(&mut factors.generation, (shift * scale)?)?;
            }
        }
        Ok(factors)
    }

    /// The same without graph.
    #[must_use]
    pub fn detached(&self) -> Self {
        let detached = |factors: &Option<Tensor>| factors.as_ref().map(Tensor::detach);
        Self { norms: detached(&self.norms), generation: detached(&self.generation) }
    }
}

/// Adds a shift to factors, which begin at one.
fn add(factors: &mut Option<Tensor>, shift: Tensor) -> Result<()> {
    *factors = Some(match factors.take() {
        Some(factors) => (factors + shift)?,
        None => (shift + 1.0)?,
    });
    Ok(())
}

/// W2·relu(W1·z + b1) + b2, `[width, 1]`.
fn gamma(dynamic: &Dynamic, token: &str) -> Result<Tensor> {
    let column = |name: &str| dynamic.value(name).reshape(((), 1));
    let inner = (dynamic.value(FC1_WEIGHT).matmul(&column(token)?)? + column(FC1_BIAS)?)?.relu()?;
    dynamic.value(FC2_WEIGHT).matmul(&inner)? + column(FC2_BIAS)?
}
