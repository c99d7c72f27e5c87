//! Vectors around random matrices that all sites share: the weight is shifted by `diag(b)·B·diag(d)·A`, where A and B are the
//! first columns and rows of matrices as large as the largest sites.
//! Source of names, shapes and first values: PEFT 0.21.2, `tuners/vera/model.py` and `layer.py`.

use candle_core::Tensor;
use janus_core::noise;
use janus_core::site::{Base, Correction, LowRank, Term};

use super::{At, Beginning, Form, Own, Values, is_all};
use crate::adapter::error::AdapterError;
use crate::drawn::drawn;

const B: &str = "vera_lambda_b";
const D: &str = "vera_lambda_d";
const SHARED_A: &str = "vera_A";
const SHARED_B: &str = "vera_B";

pub(super) struct Vera {
    pub(super) d_initial: f64,
}

impl Form for Vera {
    fn tensors(&self, at: At<'_>) -> Vec<(&'static str, Vec<usize>)> {
        vec![(B, vec![at.site.output]), (D, vec![at.rank])]
    }

    fn first(&self, _at: At<'_>, ending: &str, beginning: &Beginning<'_>) -> Result<Tensor, AdapterError> {
        beginning.full(if ending == D { self.d_initial } else { 0.0 })
    }

    fn acts(&self, values: &Values<'_>) -> Result<bool, AdapterError> {
        let zero = values.values().map(|value| is_all(value, 0.0)).collect::<Result<Vec<_>, _>>()?;
        Ok(!zero.contains(&true))
    }

    fn correction(&self, own: &Own<'_>, _base: &dyn Base) -> Result<Correction, AdapterError> {
        let site = own.at.site;
        let a = (own.shared)(SHARED_A).narrow(1, 0, site.input)?.contiguous()?;
        let b = (own.shared)(SHARED_B).narrow(0, 0, site.output)?.contiguous()?;
        let a = a.broadcast_mul(&(own.value)(D).unsqueeze(1)?)?;
        let b = b.broadcast_mul(&(own.value)(B).unsqueeze(1)?)?;
        let term = LowRank { a, b, scale: own.scale, dropout: own.dropout };
        Ok(Correction::of_terms([Term::LowRank(term)]))
    }
}

/// The shared matrices: as many rows and columns as the largest of the sites need.
pub(super) fn shared(sites: &[At<'_>]) -> Vec<(&'static str, Vec<usize>)> {
    let largest = |side: fn(&At<'_>) -> usize| sites.iter().map(side).max().unwrap_or(0);
    let rank = largest(|at| at.rank);
    vec![(SHARED_A, vec![rank, largest(|at| at.site.input)]), (SHARED_B, vec![largest(|at| at.site.output), rank])]
}

/// U(±√(6 / fan_in)): torch's `kaiming_uniform_` with a gain of √2. The numbers are our own, which is why they are saved.
pub(super) fn first_shared(name: &str, shape: &[usize], seed: u64) -> Result<Tensor, AdapterError> {
    let bound = (6.0 / shape[1].max(1) as f64).sqrt();
    Ok(drawn(shape, seed, name, |key, index| bound * (2.0 * noise::uniform(key, index) - 1.0))?)
}
