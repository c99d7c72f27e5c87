//! One source for every parameter of the model, norms, biases, embeddings and codebook included.
//!
//! A parameter is frozen until a trainable copy is handed in under its name. Layers ask for the current value at each
//! use; a frozen value carries no graph, a copy does.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::Tensor;

use crate::error::{ModelError, Result};

/// A named parameter: the base's value, and perhaps a copy that stands in for it.
#[derive(Debug)]
pub struct Parameter {
    name: Arc<str>,
    frozen: Tensor,
    copy: RwLock<Option<Tensor>>,
}

impl Parameter {
    /// A frozen parameter.
    pub(crate) fn new(name: &str, frozen: Tensor) -> Self {
        Self { name: name.into(), frozen, copy: RwLock::new(None) }
    }

    /// Its native checkpoint name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The base's value, whatever stands in for it.
    pub fn frozen(&self) -> &Tensor {
        &self.frozen
    }

    /// The copy that stands in for the base's value, if any.
    pub fn copy(&self) -> Option<Tensor> {
        self.copy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The base's value, unless a copy stands in for it.
    pub(crate) fn as_loaded(&self) -> Option<Tensor> {
        match self.copy() {
            Some(_) => None,
            None => Some(self.frozen.clone()),
        }
    }

    /// The value layers compute with.
    pub fn value(&self) -> Tensor {
        self.copy().unwrap_or_else(|| self.frozen.clone())
    }
}

/// All parameters that were loaded, in the order of their names.
#[derive(Debug, Default)]
pub struct Parameters(BTreeMap<Arc<str>, Arc<Parameter>>);

impl Parameters {
    pub(crate) fn insert(&mut self, parameter: Arc<Parameter>) {
        self.0.insert(parameter.name().clone(), parameter);
    }

    /// The parameter of a native name.
    pub fn get(&self, name: &str) -> Option<&Arc<Parameter>> {
        self.0.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Parameter>> {
        self.0.values()
    }

    /// Lets `copy` stand in for a parameter, or the base's own value again. Between passes only.
    ///
    /// # Errors
    /// No such parameter, or a copy of another shape.
    pub fn substitute(&self, name: &str, copy: Option<Tensor>) -> Result<()> {
        let parameter = self.get(name).ok_or_else(|| ModelError::UnknownParameter { name: name.into() })?;
        if let Some(copy) = &copy
            && copy.dims() != parameter.frozen.dims()
        {
            return Err(ModelError::Shape {
                what: "parameter copy",
                expected: format!("{:?} as `{name}`", parameter.frozen.dims()),
                got: copy.dims().to_vec(),
            }
            .into());
        }
        *parameter.copy.write().unwrap_or_else(PoisonError::into_inner) = copy;
        Ok(())
    }
}
