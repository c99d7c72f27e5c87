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

    /// Runs `f` while the pairs carry no graph, on the variables' own values: nothing is kept for a backward that does not
    /// come. Copies of parameters stay as they are: what is kept of pictures is known by them.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn untracked<T>(&self, model: &Janus, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = self.adapter.pairs.keys().filter_map(|path| model.projections().get(path));
        let tracked: Vec<_> = own.map(|projection| (projection, projection.correction())).collect();
        for (projection, correction) in &tracked {
            if let Some(terms) = correction.as_ref().and_then(|correction| correction.terms()) {
                let detached = |term: &LowRank| LowRank { a: term.a.detach(), b: term.b.detach(), ..term.clone() };
                let detached = terms.iter().map(detached).collect();
                projection.attach(Some(Arc::new(LoraCorrection::new(detached))));
            }
        }
        let outcome = f();
        for (projection, correction) in tracked {
            projection.attach(correction);
        }
        outcome
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

#[cfg(test)]
mod tests {
    use janus_core::checkpoint::RandomWeights;
    use janus_core::config::JanusConfig;
    use janus_core::model::decoder::Placement;
    use janus_core::pass::Pass;
    use janus_core::{ModelError, Parts};

    use super::*;
    use crate::adapter::AdapterSpec;
    use crate::error::Error;

    #[test]
    fn without_a_graph_the_pairs_compute_the_same() {
        let config = JanusConfig::shape("janus-tiny").unwrap();
        let weights = RandomWeights::new(&config, 3);
        let model = Janus::open(&weights, DType::F32, &Device::Cpu, Parts::default(), &mut |_| ()).unwrap();
        let layers = "model.language_model.layers";
        let spec = AdapterSpec {
            rank: 3,
            alpha: 6.0,
            dropout: 0.0,
            sites: ["0.mlp.up_proj", "1.self_attn.q_proj"].map(|site| format!("{layers}.{site}").into()).to_vec(),
            modules_to_save: Vec::new(),
            base_name: None,
        };
        let no_copies = |name: &str| Err(ModelError::UnknownParameter { name: name.into() }.into());
        let adapter = Adapter::new(&config, model.is_tied(), &spec, 1, &no_copies).unwrap();
        let trainables = Trainables::attach(&model, adapter).unwrap();
        let hidden = || -> Result<Tensor> {
            let embeds = model.decoder().embed(&Pass::inference(), &[1, 2, 3, 4, 5], 1)?;
            Ok(model.decoder().forward(&Pass::inference(), &embeds, &Placement::plain(1, 0, 5), None)?)
        };
        let values = |hidden: &Tensor| hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let before = hidden().unwrap();
        for trainable in trainables.iter() {
            let moved = Tensor::full(0.1f32, trainable.var.dims(), &Device::Cpu).unwrap();
            trainable.var.set(&moved).unwrap();
        }
        let tracked = hidden().unwrap();
        let untracked = trainables.untracked(&model, hidden).unwrap();
        assert!(tracked.track_op() && !untracked.track_op());
        assert_eq!(values(&untracked), values(&tracked));
        assert_ne!(values(&untracked), values(&before));
        assert!(hidden().unwrap().track_op());
        let failed = || Err(Error::Usage { message: String::new(), hint: String::new() });
        assert!(trainables.untracked::<()>(&model, failed).is_err());
        assert!(hidden().unwrap().track_op());
    }
}
