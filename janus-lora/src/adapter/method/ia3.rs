//! Factors on every output of a site, or, at sites of the feed-forward kind, on every input.
//! Source of names, shapes and first values: PEFT 0.21.2, `tuners/ia3/layer.py`.

use candle_core::{DType, Tensor};
use janus_core::site::{Base, Correction, SiteKind};

use super::{At, Beginning, Form, Own, Values, is_all};
use crate::adapter::error::AdapterError;

const FACTORS: &str = "ia3_l";

pub(super) struct Ia3;

impl Form for Ia3 {
    fn tensors(&self, at: At<'_>) -> Vec<(&'static str, Vec<usize>)> {
        let length = if at.is_feedforward { at.site.input } else { at.site.output };
        let shape = match (at.site.kind, at.is_feedforward) {
            (SiteKind::Conv2d { .. }, _) => vec![1, length, 1, 1],
            (_, true) => vec![1, length],
            (_, false) => vec![length, 1],
        };
        vec![(FACTORS, shape)]
    }

    fn first(&self, _at: At<'_>, _ending: &str, beginning: &Beginning<'_>) -> Result<Tensor, AdapterError> {
        beginning.full(1.0)
    }

    fn acts(&self, values: &Values<'_>) -> Result<bool, AdapterError> {
        let one = values.values().map(|value| is_all(value, 1.0)).collect::<Result<Vec<_>, _>>()?;
        Ok(one.contains(&false))
    }

    fn correction(&self, own: &Own<'_>, base: &dyn Base) -> Result<Correction, AdapterError> {
        let factors = (own.value)(FACTORS).flatten_all()?;
        if own.at.is_feedforward {
            return Ok(Correction { input: Some(factors), ..Correction::default() });
        }
        let bias = match base.bias()? {
            Some(bias) => Some((bias.to_dtype(DType::F32)? * &factors)?),
            None => None,
        };
        Ok(Correction { output: Some(factors), bias, ..Correction::default() })
    }
}
