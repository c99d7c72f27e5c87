//! Low-rank pairs that began as a part of the weight, under training: the weight is shifted by `scale · (B·A − B₀·A₀)`, where B₀
//! and A₀ are what B and A began with. In files it is plain LoRA of twice the rank ([`Adapter::plain`](crate::adapter::Adapter)).

use candle_core::Tensor;
use janus_core::site::{Base, Correction, LowRank, Term};

use super::{At, Beginning, Form, Own, Values, lora};
use crate::adapter::error::AdapterError;

/// What A began with; it never moves, and no file has it under this name.
pub(in crate::adapter) const START_A: &str = "lora_A.start";
/// What B began with.
pub(in crate::adapter) const START_B: &str = "lora_B.start";

pub(super) struct Residual;

/// Whether a tensor, by ending or by key, is what another one began with.
pub(in crate::adapter) fn is_start(name: &str) -> bool {
    name.ends_with(START_A) || name.ends_with(START_B)
}

impl Form for Residual {
    fn tensors(&self, at: At<'_>) -> Vec<(&'static str, Vec<usize>)> {
        let pair = lora::pair(at);
        let starts = pair.clone().into_iter().zip([START_A, START_B]).map(|((_, shape), start)| (start, shape));
        pair.iter().cloned().chain(starts).collect()
    }

    fn first(&self, _at: At<'_>, _ending: &str, beginning: &Beginning<'_>) -> Result<Tensor, AdapterError> {
        // All four together come from the weight.
        beginning.full(0.0)
    }

    fn acts(&self, _values: &Values<'_>) -> Result<bool, AdapterError> {
        Ok(true)
    }

    fn correction(&self, own: &Own<'_>, _base: &dyn Base) -> Result<Correction, AdapterError> {
        let [a, b] = [START_A, START_B].map(own.value);
        let start = LowRank { a, b, scale: -own.scale, dropout: 0.0 };
        Ok(Correction::of_terms([Term::LowRank(lora::term(own)), Term::LowRank(start)]))
    }
}
