//! One source for every parameter of the model, norms, biases, embeddings and codebook included.
//!
//! A parameter is frozen until a trainable copy is handed in under its name. Layers ask for the current value at each
//! use; a frozen value carries no graph, a copy does.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{DType, Tensor};

use crate::error::{ModelError, Result};
use crate::ops::Weight;
use crate::pass::{Mixture, Slot};

/// A named parameter: the base's value, and perhaps a copy that stands in for it.
#[derive(Debug)]
pub struct Parameter {
    name: Arc<str>,
    frozen: Weight,
    copy: RwLock<Option<Tensor>>,
    /// What each slot of the model has in its place, f32, if anything; absent where rows cannot differ in it.
    slots: Option<RwLock<BTreeMap<Slot, Option<Tensor>>>>,
}

impl Parameter {
    /// A frozen parameter.
    pub(crate) fn new(name: &str, frozen: impl Into<Weight>) -> Self {
        Self { name: name.into(), frozen: frozen.into(), copy: RwLock::new(None), slots: None }
    }

    /// A frozen parameter in which rows may differ by their routes.
    pub(crate) fn routed(name: &str, frozen: impl Into<Weight>) -> Self {
        Self { slots: Some(RwLock::default()), ..Self::new(name, frozen) }
    }

    /// Refuses a value for a slot that does not fit, or of which all rows have the same.
    pub(crate) fn check_slot(&self, value: &Tensor) -> Result<()> {
        if self.slots.is_none() {
            return Err(ModelError::NotRouted { name: self.name.to_string() }.into());
        }
        self.check(value)
    }

    fn check(&self, value: &Tensor) -> Result<()> {
        if value.dims() == self.frozen.dims() {
            return Ok(());
        }
        let expected = format!("{:?} as `{}`", self.frozen.dims(), self.name);
        Err(ModelError::Shape { what: "parameter copy", expected, got: value.dims().to_vec() }.into())
    }

    /// Holds a value in a slot, in the place of what was there.
    pub(crate) fn hold(&self, slot: Slot, value: Option<Tensor>) {
        if let Some(slots) = &self.slots {
            slots.write().unwrap_or_else(PoisonError::into_inner).insert(slot, value);
        }
    }

    /// Empties a slot.
    pub(crate) fn release(&self, slot: Slot) {
        if let Some(slots) = &self.slots {
            slots.write().unwrap_or_else(PoisonError::into_inner).remove(&slot);
        }
    }

    /// Its value under a mixture, f32; `None` where no slot of it has one.
    ///
    /// # Errors
    /// A slot that the model does not hold.
    pub(crate) fn blended(&self, mixture: &Mixture) -> Result<Option<Tensor>> {
        let Some(slots) = &self.slots else { return Ok(None) };
        let slots = slots.read().unwrap_or_else(PoisonError::into_inner);
        let mut sum: Option<Tensor> = None;
        for (slot, factor) in mixture.parts() {
            let held = slots.get(slot).ok_or(ModelError::UnknownSlot { slot: slot.0 })?;
            let Some(value) = held else { continue };
            sum = Some(add_shift(sum, value, *factor, || Ok(self.frozen.to_dtype(DType::F32)?))?);
        }
        Ok(sum)
    }

    /// Its native checkpoint name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The base's value, whatever stands in for it.
    pub fn frozen(&self) -> &Weight {
        &self.frozen
    }

    /// The copy that stands in for the base's value, if any.
    pub fn copy(&self) -> Option<Tensor> {
        self.copy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The base's value, unless a copy stands in for it or it carries a graph of its own.
    pub(crate) fn as_loaded(&self) -> Option<&Weight> {
        (self.copy().is_none() && !self.frozen.is_tracked()).then_some(&self.frozen)
    }

    /// What layers compute with: the copy, or the base's.
    pub(crate) fn current(&self) -> Weight {
        self.copy().map_or_else(|| self.frozen.clone(), Weight::from)
    }

    /// The values that layers compute with, in the type that they are held in.
    pub fn value(&self) -> Tensor {
        self.current().values()
    }
}

/// `sum`, or the base's `own` value without one, and the shift of `value` from `own` times a factor. A first value of factor 1 is
/// taken as it is, to the bit.
///
/// # Errors
/// Those of `own`, and shapes that do not fit.
pub(crate) fn add_shift(
    sum: Option<Tensor>,
    value: &Tensor,
    factor: f64,
    own: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    if sum.is_none() && factor == 1.0 {
        return Ok(value.clone());
    }
    let own = own()?;
    let shift = ((value - &own)? * factor)?;
    Ok((sum.unwrap_or(own) + shift)?)
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
        copy.as_ref().map(|copy| parameter.check(copy)).transpose()?;
        *parameter.copy.write().unwrap_or_else(PoisonError::into_inner) = copy;
        Ok(())
    }
}
