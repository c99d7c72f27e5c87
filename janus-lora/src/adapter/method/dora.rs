//! Low-rank pairs and magnitudes: the rows of `W + scale · B·A` are turned to unit length and multiplied by a trained magnitude
//! each. The length takes part in no gradient (section 4.3 of the paper).
//! Source of names, shapes and first values: PEFT 0.21.2, `tuners/lora/dora.py`.

use candle_core::Tensor;
use janus_core::site::{Base, Correction, LowRank, Site, SiteKind, Term};

use super::{At, Beginning, Form, Own, Values, lora};
use crate::adapter::error::AdapterError;

const MAGNITUDE: &str = "lora_magnitude_vector";

pub(super) struct Dora;

impl Form for Dora {
    fn tensors(&self, at: At<'_>) -> Vec<(&'static str, Vec<usize>)> {
        let mut tensors = lora::pair(at);
        let shape = match at.site.kind {
            SiteKind::Linear | SiteKind::Embedding => vec![at.site.output],
            SiteKind::Conv2d { .. } => vec![1, at.site.output, 1, 1],
        };
        tensors.push((MAGNITUDE, shape));
        tensors
    }

    fn first(&self, at: At<'_>, ending: &str, beginning: &Beginning<'_>) -> Result<Tensor, AdapterError> {
        if ending != MAGNITUDE {
            return lora::first(at, ending, beginning);
        }
        // The shift is nothing at first: the length is the base's own.
        let lengths = beginning.base.squares(at.site)?.sqrt()?;
        if lengths.to_vec1::<f32>()?.contains(&0.0) {
            return Err(AdapterError::ZeroLength { path: at.site.path.to_string() });
        }
        Ok(lengths.reshape(beginning.shape)?)
    }

    fn acts(&self, _values: &Values<'_>) -> Result<bool, AdapterError> {
        // The magnitudes alone do not tell whether they are the base's lengths.
        Ok(true)
    }

    fn correction(&self, own: &Own<'_>, base: &dyn Base) -> Result<Correction, AdapterError> {
        let site = own.at.site;
        let term = lora::term(own);
        let magnitude = (own.value)(MAGNITUDE).flatten_all()?;
        let output = (magnitude / lengths(site, &term, base)?)?;
        let b = match site.kind {
            SiteKind::Conv2d { .. } => term.b.broadcast_mul(&output.reshape((site.output, 1, 1, 1))?)?,
            SiteKind::Linear | SiteKind::Embedding => term.b.broadcast_mul(&output.unsqueeze(1)?)?,
        };
        let terms = vec![Term::LowRank(LowRank { b, ..term })];
        Ok(Correction { output: Some(output), terms, ..Correction::default() })
    }
}

/// Lengths of the rows (of a table, of the columns) of `W + scale · B·A`, without graph, `[output]`.
///
/// `‖w + s·BA‖² = ‖w‖² + 2s·B·(A·w) + s²·B·(A·Aᵀ)·Bᵀ`: the sum itself is never made.
fn lengths(site: &Site, term: &LowRank, base: &dyn Base) -> Result<Tensor, AdapterError> {
    let squares = base.squares(site)?;
    let (a, b) = (term.a.detach().flatten_from(1)?, term.b.detach().flatten_from(1)?);
    let products = base.products(site, &a)?;
    let crossed = ((&b * products)?.sum(1)? * (2.0 * term.scale))?;
    let own = (b.matmul(&a.matmul(&a.t()?)?)? * &b)?.sum(1)?;
    Ok(((squares + crossed)? + (own * term.scale.powi(2))?)?.sqrt()?)
}
