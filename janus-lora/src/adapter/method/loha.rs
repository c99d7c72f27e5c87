//! Products, cell by cell, of two low-rank products: the weight is shifted by `scale · (W1a·W1b) ⊙ (W2a·W2b)`.
//! Source of names and shapes: PEFT 0.21.2, `tuners/loha/layer.py`.

use candle_core::{DType, Result, Tensor};
use janus_core::site::{Base, Correction, Kronecker, LowRank, Site, SiteKind, Term};

use super::{At, Beginning, Form, Own, Values, is_all};
use crate::adapter::error::AdapterError;

const FACTORS: [&str; 4] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"];
const CORES: [&str; 2] = ["hada_t1", "hada_t2"];

pub(super) struct Loha {
    pub(super) effective: bool,
}

impl Loha {
    /// Whether a site's products go through core tensors.
    fn has_cores(&self, site: &Site) -> bool {
        self.effective && matches!(site.kind, SiteKind::Conv2d { kernel, .. } if kernel > 1)
    }
}

/// Values that one output has.
fn row(site: &Site) -> usize {
    site.weight_shape()[1..].iter().product()
}

impl Form for Loha {
    fn tensors(&self, at: At<'_>) -> Vec<(&'static str, Vec<usize>)> {
        let (site, rank) = (at.site, at.rank);
        if !self.has_cores(site) {
            let (a, b) = (vec![site.output, rank], vec![rank, row(site)]);
            return FACTORS.into_iter().zip([a.clone(), b.clone(), a, b]).collect();
        }
        let core = [&[rank, rank], &site.weight_shape()[2..]].concat();
        let (a, b) = (vec![rank, site.output], vec![rank, site.input]);
        let factors = FACTORS.into_iter().zip([a.clone(), b.clone(), a, b]);
        factors.chain(CORES.into_iter().zip([core.clone(), core])).collect()
    }

    fn first(&self, _at: At<'_>, ending: &str, beginning: &Beginning<'_>) -> std::result::Result<Tensor, AdapterError> {
        if ending == FACTORS[3] { beginning.full(0.0) } else { beginning.kaiming() }
    }

    fn acts(&self, values: &Values<'_>) -> std::result::Result<bool, AdapterError> {
        let zero = values.values().map(|value| is_all(value, 0.0)).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(!zero.contains(&true))
    }

    fn correction(&self, own: &Own<'_>, _base: &dyn Base) -> std::result::Result<Correction, AdapterError> {
        let (site, rank) = (own.at.site, own.at.rank);
        let [w1_a, w1_b, w2_a, w2_b] = FACTORS.map(own.value);
        let term = if self.has_cores(site) {
            let [t1, t2] = CORES.map(own.value);
            let shift = (with_core(&t1, &w1_a, &w1_b)? * with_core(&t2, &w2_a, &w2_b)?)?;
            dense(shift, own.scale)?
        } else if rank * rank >= site.output.min(row(site)) {
            let shift = (w1_a.matmul(&w1_b)? * w2_a.matmul(&w2_b)?)?;
            dense(shift.reshape(site.weight_shape())?, own.scale)?
        } else {
            let a = pairs(&w1_b.t()?, &w2_b.t()?)?.t()?.contiguous()?;
            let b = pairs(&w1_a, &w2_a)?;
            let (a, b) = match site.kind {
                SiteKind::Conv2d { kernel, .. } => (
                    a.reshape((rank * rank, site.input, kernel, kernel))?,
                    b.reshape((site.output, rank * rank, 1, 1))?,
                ),
                SiteKind::Linear | SiteKind::Embedding => (a, b),
            };
            Term::LowRank(LowRank { a, b, scale: own.scale, dropout: 0.0 })
        };
        Ok(Correction::of_terms([term]))
    }
}

/// Of `[n, r]` and `[n, r]` the `[n, r²]` products of every column of one with every column of the other.
fn pairs(one: &Tensor, other: &Tensor) -> Result<Tensor> {
    let (n, rank) = one.dims2()?;
    one.contiguous()?.unsqueeze(2)?.broadcast_mul(&other.contiguous()?.unsqueeze(1)?)?.reshape((n, rank * rank))
}

/// A dense shift.
pub(super) fn dense(shift: Tensor, scale: f64) -> Result<Term> {
    let left = Tensor::ones((1, 1), DType::F32, shift.device())?;
    Ok(Term::Kronecker(Kronecker { left, right: shift, scale }))
}

/// A convolution's weight out of its core `t: [r, r, kernel, kernel]`, `a: [r, output]` and `b: [r, input]`:
/// `Σᵢⱼ t[i, j, k, l] · a[i, o] · b[j, c]`, `[output, input, kernel, kernel]`.
pub(super) fn with_core(t: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (rank, _, height, width) = t.dims4()?;
    let (output, input, area) = (a.dim(1)?, b.dim(1)?, height * width);
    let by_output = a.t()?.contiguous()?.matmul(&t.reshape((rank, rank * area))?)?.reshape((output, rank, area))?;
    let turned = by_output.transpose(1, 2)?.contiguous()?.reshape((output * area, rank))?;
    let both = turned.matmul(b)?.reshape((output, area, input))?.transpose(1, 2)?.contiguous()?;
    both.reshape((output, input, height, width))
}
