//! The tensors that training moves: an adapter's factors and saved modules as variables, in the adapter's order.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use janus_core::Janus;
use janus_core::noise;
use janus_core::site::LowRank;

use crate::adapter::{Adapter, KEY_PREFIX, LoraCorrection, pair_keys};
use crate::error::Result;

/// One variable.
#[derive(Debug)]
pub struct Trainable {
    /// Its key in the adapter file.
    pub name: String,
    /// The value, f32.
    pub var: Var,
}

/// An adapter under training, attached to a model.
#[derive(Debug)]
pub struct Trainables {
    adapter: Adapter,
    list: Vec<Trainable>,
}

impl Trainables {
    /// Turns every tensor of the adapter into a variable on the model's device and attaches them all, with the adapter's
    /// dropout.
    ///
    /// # Errors
    /// A site or parameter that the model lacks.
    pub fn attach(model: &Janus, adapter: Adapter) -> Result<Self> {
        let mut list = Vec::new();
        let mut vars = BTreeMap::new();
        for (name, tensor) in adapter.tensors() {
            let var = Var::from_tensor(&tensor.to_device(model.device())?.to_dtype(DType::F32)?.contiguous()?)?;
            vars.insert(name.clone(), var.as_tensor().clone());
            list.push(Trainable { name, var });
        }
        let var = |name: &str| vars.get(name).cloned().expect("an adapter lists its own tensors");
        let dropout = adapter.config.dropout;
        for (path, pair) in &adapter.pairs {
            let (a, b) = pair_keys(&pair.site);
            let term = LowRank { a: var(&a), b: var(&b), dropout, ..pair.low_rank(1.0) };
            let projection = model
                .projections()
                .get(path)
                .ok_or_else(|| janus_core::ModelError::UnknownParameter { name: path.to_string() })?;
            projection.attach(Some(Arc::new(LoraCorrection::new(vec![term]))));
        }
        for name in adapter.saved.keys() {
            model.parameters().substitute(name, Some(var(&format!("{KEY_PREFIX}{name}"))))?;
        }
        Ok(Self { adapter, list })
    }

    /// All variables, in the adapter's order.
    pub fn iter(&self) -> impl Iterator<Item = &Trainable> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The adapter with the variables' present values, on the processor.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn adapter(&self) -> Result<Adapter> {
        let mut adapter = self.adapter.clone();
        let values: BTreeMap<&str, Tensor> = self
            .list
            .iter()
            .map(|t| Ok((t.name.as_str(), t.var.as_detached_tensor().copy()?.to_device(&Device::Cpu)?)))
            .collect::<Result<_>>()?;
        let value = |name: &str| values.get(name).cloned().expect("an adapter lists its own tensors");
        for pair in adapter.pairs.values_mut() {
            let (a, b) = pair_keys(&pair.site);
            (pair.a, pair.b) = (value(&a), value(&b));
        }
        for (name, copy) in &mut adapter.saved {
            *copy = value(&format!("{KEY_PREFIX}{name}"));
        }
        Ok(adapter)
    }

    /// Gives every variable the value that it has in `adapter`.
    ///
    /// # Errors
    /// What does not fit; nothing has changed then.
    pub fn set(&self, adapter: &Adapter) -> std::result::Result<(), String> {
        let values: BTreeMap<String, Tensor> = adapter.tensors().into_iter().collect();
        if values.len() != self.list.len() {
            return Err(format!("its adapter has {} tensors, expected {}", values.len(), self.list.len()));
        }
        let mut fitting = Vec::with_capacity(self.list.len());
        for Trainable { name, var } in &self.list {
            let value = values.get(name).ok_or_else(|| format!("its adapter has no `{name}`"))?;
            if value.dims() != var.dims() {
                return Err(format!("`{name}` has shape {:?}, expected {:?}", value.dims(), var.dims()));
            }
            fitting.push((var, value));
        }
        let set = |(var, value): (&Var, &Tensor)| var.set(&value.to_device(var.device())?.contiguous()?);
        fitting.into_iter().try_for_each(set).map_err(|e| e.to_string())
    }

    /// Runs `f` while every factor that is all zeros holds small random values instead, then puts the zeros back: with
    /// B at zero, A has no gradient, cut graph or not.
    ///
    /// # Errors
    /// Those of `f` and of the tensor engine.
    pub fn perturbed<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut zeros = Vec::new();
        for trainable in &self.list {
            let largest = trainable.var.as_detached_tensor().abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            if largest == 0.0 {
                let key = noise::key_of(&trainable.name);
                let values: Vec<f32> =
                    (0..trainable.var.elem_count() as u64).map(|i| 0.05 * noise::normal(key, i) as f32).collect();
                zeros.push((&trainable.var, trainable.var.as_detached_tensor().zeros_like()?));
                trainable.var.set(&Tensor::from_vec(values, trainable.var.dims(), trainable.var.device())?)?;
            }
        }
        let outcome = f();
        for (var, zero) in zeros {
            var.set(&zero)?;
        }
        outcome
    }
}
