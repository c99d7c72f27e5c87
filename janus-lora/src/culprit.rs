//! After a model has computed NaN or infinity: whether its base or an adapter brought it in.

use candle_core::{DType, Device, Tensor};
use janus_core::ModelError;

use crate::adapter::Adapter;
use crate::base::Base;
use crate::error::{Error, Result};

/// What brought them in, with the value that stands out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Culprit {
    /// The base: its first value that is not finite, or else its largest.
    #[error("base `{base}` has values that no answer can be computed with: `{tensor}` holds {value:e}")]
    Base {
        /// The base's name.
        base: String,
        /// The tensor.
        tensor: String,
        /// The value.
        value: f32,
    },
    /// An adapter: its largest value.
    #[error(
        "the adapter has values that no answer can be computed with: `{tensor}` holds {value:e} at factor {factor}"
    )]
    Adapter {
        /// The site, or the parameter that a copy stands in for.
        tensor: String,
        /// The value.
        value: f32,
        /// What its corrections are multiplied by.
        factor: f64,
    },
}

impl Culprit {
    /// What helps.
    pub(crate) fn hint(&self) -> String {
        match self {
            Culprit::Base { .. } => "take the base from where it was published; `janus base inspect` lists its tensors".into(),
            Culprit::Adapter { .. } => {
                "leave the adapter out, or give it a smaller factor (`--adapter DIR:0.1`); train it with `train.clip_norm` and a \
                 smaller `train.learning_rate`"
                    .into()
            }
        }
    }
}

/// The same error, or for values that are not finite one that names the base or the adapter they come from.
pub(crate) fn explain(error: Error, base: &Base, adapters: &[(Adapter, f64)]) -> Error {
    match error {
        Error::Core(janus_core::Error::Model(ModelError::NotFinite { .. })) => blame(error, base, adapters),
        error => error,
    }
}

/// The error of steps without a finite loss, or one that names the base where its values are what they come from.
pub(crate) fn blame_base(error: Error, base: &Base) -> Error {
    blame(error, base, &[])
}

fn blame(error: Error, base: &Base, adapters: &[(Adapter, f64)]) -> Error {
    match find(base, adapters) {
        Ok(Some(culprit)) => Error::NotFinite { culprit: Box::new(culprit), source: Box::new(error) },
        Ok(None) => error,
        Err(error) => error,
    }
}

/// Beyond this a weight is none: the largest of published models are some hundreds.
const FAR: f32 = 1e9;

/// The value that stands out most: one that is not finite, else the largest that is far from all weights.
fn find(base: &Base, adapters: &[(Adapter, f64)]) -> Result<Option<Culprit>> {
    let mut found: Option<(f32, Culprit)> = None;
    let mut consider = |value: f32, culprit: &dyn Fn() -> Culprit| {
        let size = if value.is_finite() { value.abs() } else { f32::INFINITY };
        if size >= FAR && found.as_ref().is_none_or(|(largest, _)| size > *largest) {
            found = Some((size, culprit()));
        }
    };
    for (adapter, factor) in adapters {
        let own = adapter.sites.iter().flat_map(|(path, site)| site.values.values().map(move |value| (path, value)));
        for (tensor, values) in own.chain(adapter.saved.iter()) {
            let value = most(values)?;
            consider(value, &|| Culprit::Adapter { tensor: tensor.to_string(), value, factor: *factor });
        }
    }
    let checkpoint = base.checkpoint();
    for info in checkpoint.tensors() {
        let value = most(&checkpoint.read(&info.name, DType::F32)?)?;
        consider(value, &|| Culprit::Base { base: base.name().to_owned(), tensor: info.name.clone(), value });
    }
    Ok(found.map(|(_, culprit)| culprit))
}

/// The first value that is not finite, else the one furthest from 0.
fn most(tensor: &Tensor) -> Result<f32> {
    let mut most = 0f32;
    for value in tensor.flatten_all()?.to_vec1::<f32>()? {
        if !value.is_finite() {
            return Ok(value);
        }
        if value.abs() > most.abs() {
            most = value;
        }
    }
    Ok(most)
}

/// Lets through what is finite.
///
/// # Errors
/// [`ModelError::NotFinite`] of the first value that is not.
pub(crate) fn finite(tensor: Tensor, what: &'static str) -> Result<Tensor> {
    let values = tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(tensor),
        Some(place) => {
            // A loss has no rows.
            let rows = tensor.dims().first().copied().unwrap_or(1).max(1);
            let row = place / (values.len() / rows).max(1);
            Err(ModelError::NotFinite { what, row, value: values[place] }.into())
        }
    }
}
