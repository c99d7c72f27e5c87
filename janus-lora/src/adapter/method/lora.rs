//! Low-rank pairs: the weight is shifted by `scale · B·A`, and, with a bias, the base's by `scale · b_B`.
//! Source of names, shapes and first values: PEFT 0.21.2, `tuners/lora/layer.py`.

use candle_core::{DType, Tensor};
use janus_core::site::{Base, Correction, LowRank, SiteKind, Term};

use super::{At, Beginning, Form, Init, Own, Values, is_all};
use crate::adapter::error::AdapterError;

pub(in crate::adapter) const A: &str = "lora_A.weight";
pub(in crate::adapter) const B: &str = "lora_B.weight";
pub(super) const EMBEDDING_A: &str = "lora_embedding_A";
pub(super) const EMBEDDING_B: &str = "lora_embedding_B";
pub(in crate::adapter) const BIAS: &str = "lora_B.bias";

pub(super) struct Lora {
    pub(super) bias: bool,
}

/// Endings of A and B at a site.
pub(in crate::adapter) fn endings(kind: SiteKind) -> [&'static str; 2] {
    match kind {
        SiteKind::Embedding => [EMBEDDING_A, EMBEDDING_B],
        SiteKind::Linear | SiteKind::Conv2d { .. } => [A, B],
    }
}

/// Endings and shapes of A and B.
pub(super) fn pair(At { site, rank, .. }: At<'_>) -> Vec<(&'static str, Vec<usize>)> {
    let shapes = match site.kind {
        SiteKind::Linear | SiteKind::Embedding => [vec![rank, site.input], vec![site.output, rank]],
        SiteKind::Conv2d { kernel, .. } => [vec![rank, site.input, kernel, kernel], vec![site.output, rank, 1, 1]],
    };
    endings(site.kind).into_iter().zip(shapes).collect()
}

/// First values of A or B.
pub(super) fn first(at: At<'_>, ending: &str, beginning: &Beginning<'_>) -> Result<Tensor, AdapterError> {
    match (ending, beginning.init) {
        (A, Init::Kaiming | Init::Eva { .. }) => beginning.kaiming(),
        (A, Init::Gaussian) => beginning.normal(1.0 / at.rank as f64),
        (EMBEDDING_B, _) => beginning.normal(1.0),
        _ => beginning.full(0.0),
    }
}

/// The low-rank term of a site's A and B.
pub(super) fn term(own: &Own<'_>) -> LowRank {
    let [a, b] = endings(own.at.site.kind).map(own.value);
    LowRank { a, b, scale: own.scale, dropout: own.dropout }
}

impl Form for Lora {
    fn tensors(&self, at: At<'_>) -> Vec<(&'static str, Vec<usize>)> {
        let mut tensors = pair(at);
        if self.bias && at.site.kind != SiteKind::Embedding {
            tensors.push((BIAS, vec![at.site.output]));
        }
        tensors
    }

    fn first(&self, at: At<'_>, ending: &str, beginning: &Beginning<'_>) -> Result<Tensor, AdapterError> {
        first(at, ending, beginning)
    }

    fn acts(&self, value: &Values<'_>) -> Result<bool, AdapterError> {
        let pair = |endings: [&str; 2]| match endings.map(|ending| value.get(ending)) {
            [Some(a), Some(b)] => Ok::<_, AdapterError>(!is_all(a, 0.0)? && !is_all(b, 0.0)?),
            _ => Ok(false),
        };
        let shifts = value.get(BIAS).map(|bias| is_all(bias, 0.0)).transpose()? == Some(false);
        Ok(shifts || pair([A, B])? || pair([EMBEDDING_A, EMBEDDING_B])?)
    }

    fn correction(&self, own: &Own<'_>, base: &dyn Base) -> Result<Correction, AdapterError> {
        let mut correction = Correction::of_terms([Term::LowRank(term(own))]);
        if self.bias && own.at.site.kind != SiteKind::Embedding {
            let shift = ((own.value)(BIAS) * own.scale)?;
            correction.bias = Some(match base.bias()? {
                Some(bias) => (bias.to_dtype(DType::F32)? + shift)?,
                None => shift,
            });
        }
        Ok(correction)
    }
}
