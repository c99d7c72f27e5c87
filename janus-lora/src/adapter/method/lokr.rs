//! Kronecker products: the weight is shifted by `scale · W1 ⊗ W2`, either factor dense or a low-rank product.
//! Source of names, shapes and first values: PEFT 0.21.2, `tuners/lokr/layer.py`.

use candle_core::Tensor;
use janus_core::site::{Base, Correction, Kronecker, Site, SiteKind, Term};

use super::loha::with_core;
use super::{At, Beginning, Form, Own, Values, is_all};
use crate::adapter::error::AdapterError;

const W1: &str = "lokr_w1";
const W1_A: &str = "lokr_w1_a";
const W1_B: &str = "lokr_w1_b";
const W2: &str = "lokr_w2";
const W2_A: &str = "lokr_w2_a";
const W2_B: &str = "lokr_w2_b";
const T2: &str = "lokr_t2";

pub(super) struct Lokr {
    pub(super) decompose_both: bool,
    pub(super) decompose_factor: i64,
    pub(super) effective: bool,
}

/// How the weight of a site is taken apart.
struct Parts {
    /// Outputs and inputs of the left factor.
    left: [usize; 2],
    /// Outputs and inputs of the right one.
    right: [usize; 2],
    is_left_dense: bool,
    is_right_dense: bool,
    has_core: bool,
}

impl Lokr {
    fn parts(&self, site: &Site, rank: usize) -> Parts {
        let (o1, o2) = factorization(site.output, self.decompose_factor);
        let (i1, i2) = factorization(site.input, self.decompose_factor);
        let half = |a: usize, b: usize| 2 * rank < a.max(b);
        let kernel = match site.kind {
            SiteKind::Conv2d { kernel, .. } => kernel,
            SiteKind::Linear | SiteKind::Embedding => 1,
        };
        let is_right_dense = !half(o2, i2);
        Parts {
            left: [o1, i1],
            right: [o2, i2],
            is_left_dense: !(self.decompose_both && half(o1, i1)),
            is_right_dense,
            has_core: self.effective && kernel > 1 && !is_right_dense,
        }
    }
}

/// Two factors of a dimension: `factor` and the rest where it divides; else the largest divisor of at most `factor` (-1: any)
/// that is no larger than the rest, and the rest.
fn factorization(dimension: usize, factor: i64) -> (usize, usize) {
    let wanted = usize::try_from(factor).ok().filter(|factor| *factor > 0);
    let divides = |divisor: &usize| dimension.is_multiple_of(*divisor);
    if let Some(factor) = wanted.filter(divides) {
        return (factor, dimension / factor);
    }
    let candidates = (1..=wanted.unwrap_or(dimension)).take_while(|divisor| divisor * divisor <= dimension);
    let smaller = candidates.filter(divides).last().unwrap_or(1);
    (smaller, dimension / smaller)
}

impl Form for Lokr {
    fn tensors(&self, at: At<'_>) -> Vec<(&'static str, Vec<usize>)> {
        let Parts { left: [o1, i1], right: [o2, i2], is_left_dense, is_right_dense, has_core } =
            self.parts(at.site, at.rank);
        let kernel = at.site.weight_shape().split_off(2);
        let area: usize = kernel.iter().product();
        let mut tensors = match is_left_dense {
            true => vec![(W1, vec![o1, i1])],
            false => vec![(W1_A, vec![o1, at.rank]), (W1_B, vec![at.rank, i1])],
        };
        if is_right_dense {
            tensors.push((W2, [vec![o2, i2], kernel].concat()));
        } else if has_core {
            tensors.push((T2, [vec![at.rank, at.rank], kernel].concat()));
            tensors.extend([(W2_A, vec![at.rank, o2]), (W2_B, vec![at.rank, i2])]);
        } else {
            tensors.extend([(W2_A, vec![o2, at.rank]), (W2_B, vec![at.rank, i2 * area])]);
        }
        tensors
    }

    fn first(&self, _at: At<'_>, ending: &str, beginning: &Beginning<'_>) -> Result<Tensor, AdapterError> {
        if [W1, W1_A].contains(&ending) { beginning.full(0.0) } else { beginning.kaiming() }
    }

    fn acts(&self, values: &Values<'_>) -> Result<bool, AdapterError> {
        let zero = values.values().map(|value| is_all(value, 0.0)).collect::<Result<Vec<_>, _>>()?;
        Ok(!zero.contains(&true))
    }

    fn correction(&self, own: &Own<'_>, _base: &dyn Base) -> Result<Correction, AdapterError> {
        let Parts { right: [o2, i2], is_left_dense, is_right_dense, has_core, .. } =
            self.parts(own.at.site, own.at.rank);
        let value = own.value;
        let left = if is_left_dense { value(W1) } else { value(W1_A).matmul(&value(W1_B))? };
        let right = if is_right_dense {
            value(W2)
        } else if has_core {
            with_core(&value(T2), &value(W2_A), &value(W2_B))?
        } else {
            let shape = [vec![o2, i2], own.at.site.weight_shape().split_off(2)].concat();
            value(W2_A).matmul(&value(W2_B))?.reshape(shape)?
        };
        Ok(Correction::of_terms([Term::Kronecker(Kronecker { left, right, scale: own.scale })]))
    }
}

#[cfg(test)]
mod tests {
    use super::factorization;

    #[test]
    fn dimensions_are_taken_apart_as_peft_does() {
        for (dimension, factor, expected) in [
            (127, -1, (1, 127)),
            (128, -1, (8, 16)),
            (250, -1, (10, 25)),
            (360, -1, (18, 20)),
            (512, -1, (16, 32)),
            (1024, -1, (32, 32)),
            (2048, -1, (32, 64)),
            (127, 4, (1, 127)),
            (128, 4, (4, 32)),
            (250, 4, (2, 125)),
            (360, 4, (4, 90)),
            (512, 4, (4, 128)),
            (1, -1, (1, 1)),
            (5632, 8, (8, 704)),
            (8, 4, (4, 2)),
            (12, 5, (3, 4)),
        ] {
            assert_eq!(factorization(dimension, factor), expected, "{dimension} by {factor}");
        }
    }
}
