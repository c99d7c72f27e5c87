//! The tensors that training moves: an adapter's factors, saved modules, dynamic encoder and heads as variables, in the
//! adapter's order.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use janus_core::Janus;
use janus_core::noise;

use super::TrainError;
use crate::adapter::{Adapter, KEY_PREFIX, Placed, place};
use crate::dynamic;
use crate::error::Result;
use crate::heads::{Head, Heads};
use crate::mifs;
use crate::recipe::Rates;

/// One variable.
#[derive(Debug)]
pub struct Trainable {
    /// Its key in the adapter's files.
    pub name: String,
    /// The value, f32.
    pub var: Var,
    /// Factor on the learning rate.
    pub rate: f64,
}

/// An adapter under training, attached to a model.
#[derive(Debug)]
pub struct Trainables {
    adapter: Adapter,
    /// On all that the adapter shifts.
    factor: f64,
    list: Vec<Trainable>,
    vars: BTreeMap<String, Tensor>,
}

/// Whether a pass leaves a graph for a backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Graph {
    Kept,
    None,
}

impl Trainables {
    /// Turns every tensor of the adapter into a variable on the model's device and attaches them all, with the adapter's
    /// dropout.
    ///
    /// # Errors
    /// A site or parameter that the model lacks.
    pub fn attach(model: &Janus, adapter: Adapter) -> Result<Self> {
        Self::attach_with(model, adapter, 1.0, &|_| true)
    }

    /// As [`Trainables::attach`], with a factor on all that the adapter shifts.
    ///
    /// # Errors
    /// As [`Trainables::attach`].
    pub fn attach_scaled(model: &Janus, adapter: Adapter, factor: f64) -> Result<Self> {
        Self::attach_with(model, adapter, factor, &|_| true)
    }

    /// As [`Trainables::attach`], of which only tensors of some names are to move. Copies that do not move are left to the
    /// base; of pairs that do not, those are attached whose site the model has.
    ///
    /// # Errors
    /// As [`Trainables::attach`].
    pub fn attach_some(model: &Janus, adapter: Adapter, moves: &dyn Fn(&str) -> bool) -> Result<Self> {
        Self::attach_with(model, adapter, 1.0, moves)
    }

    fn attach_with(model: &Janus, adapter: Adapter, factor: f64, moves: &dyn Fn(&str) -> bool) -> Result<Self> {
        let mut list = Vec::new();
        let mut vars = BTreeMap::new();
        for (name, tensor) in adapter.tensors().into_iter().chain(adapter.extras()) {
            let value = tensor.to_device(model.device())?.to_dtype(DType::F32)?.contiguous()?;
            if moves(&name) && !adapter.is_fixed(&name) {
                let var = Var::from_tensor(&value)?;
                vars.insert(name.clone(), var.as_tensor().clone());
                list.push(Trainable { name, var, rate: 1.0 });
            } else {
                vars.insert(name, value.detach());
            }
        }
        let trainables = Self { adapter, factor, list, vars };
        trainables.place(model, Graph::Kept)?;
        Ok(trainables)
    }

    /// With a factor on the learning rate of the dynamic encoder's values.
    #[must_use]
    pub fn with_dynamic_rate(mut self, rate: f64) -> Self {
        let dynamic = |trainable: &&mut Trainable| trainable.name.starts_with(dynamic::PREFIX);
        self.list.iter_mut().filter(dynamic).for_each(|trainable| trainable.rate = rate);
        self
    }

    /// With a factor on the learning rate of each B of a low-rank pair.
    #[must_use]
    pub fn with_lora_plus(mut self, ratio: f64) -> Self {
        let is_b = |trainable: &&mut Trainable| {
            [".lora_B.weight", ".lora_embedding_B"].iter().any(|ending| trainable.name.ends_with(ending))
        };
        self.list.iter_mut().filter(is_b).for_each(|trainable| trainable.rate *= ratio);
        self
    }

    /// With factors on the learning rates of modules; the first whose segments a name has counts.
    ///
    /// # Errors
    /// A module of which nothing moves.
    pub fn with_rates(mut self, rates: &Rates) -> Result<Self> {
        let mut used = vec![false; rates.0.len()];
        for trainable in &mut self.list {
            let name = format!(".{}.", trainable.name);
            let found = rates.0.iter().position(|(module, _)| name.contains(&format!(".{module}.")));
            if let Some((number, (_, factor))) = found.and_then(|number| Some((number, rates.0.get(number)?))) {
                trainable.rate *= factor;
                used[number] = true;
            }
        }
        match rates.0.iter().zip(used).find(|(_, used)| !used) {
            Some(((module, _), _)) => Err(TrainError::UnusedRate { module: module.clone() }.into()),
            None => Ok(self),
        }
    }

    fn var(&self, name: &str, graph: Graph) -> Tensor {
        let var = self.vars.get(name).expect("an adapter lists its own tensors");
        if graph == Graph::Kept { var.clone() } else { var.detach() }
    }

    fn is_moving(&self, name: &str) -> bool {
        self.list.iter().any(|trainable| trainable.name == name)
    }

    /// Whether anything is under training at a site.
    fn moves_at(&self, path: &str) -> bool {
        let own = self.adapter.sites.get(path).into_iter().flat_map(|site| site.tensors());
        own.into_iter().any(|(key, _)| self.is_moving(&key))
    }

    /// Puts everything that is under training into the model, as the variables are now.
    fn place(&self, model: &Janus, graph: Graph) -> Result<()> {
        // Where nothing of a site moves, it may be of a part that this stage's tasks do not use.
        let absent = |path: &&Arc<str>| model.projections().get(path).is_none() && self.moves_at(path);
        if let Some(path) = self.adapter.sites.keys().find(absent) {
            return Err(janus_core::ModelError::UnknownParameter { name: path.to_string() }.into());
        }
        let placed = Placed {
            adapter: &self.adapter,
            factor: self.factor,
            value: Rc::new(|name: &str| self.var(name, graph)),
            dropout: self.adapter.config.dropout,
            takes_copy: &|name| self.is_moving(&format!("{KEY_PREFIX}{name}")),
        };
        Ok(place(model, &[placed])?)
    }

    /// The heads as the variables are now.
    pub fn heads(&self) -> Heads {
        self.heads_with(Graph::Kept)
    }

    fn heads_with(&self, graph: Graph) -> Heads {
        let head = |(name, head): (&Arc<str>, &Head)| (name.clone(), head.with_values(|name| self.var(name, graph)));
        self.adapter.heads.iter().map(head).collect()
    }

    /// The logarithm of the temperature of the mid features' alignment, where that is under training.
    pub fn log_temperature(&self) -> Option<Tensor> {
        self.adapter.alignment.as_ref().map(|_| self.var(mifs::TEMPERATURE, Graph::Kept))
    }

    /// Makes anew what the model computes with that is no variable itself. To be called after the variables moved.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn renew(&self, model: &Janus) -> Result<()> {
        let is_made = self.adapter.dynamic.is_some() || self.factor != 1.0 || !self.adapter.config.method.is_direct();
        if is_made { self.place(model, Graph::Kept) } else { Ok(()) }
    }

    /// Native names of the parameters whose copies move.
    pub fn moving(&self, model: &Janus) -> BTreeSet<Arc<str>> {
        let names = model.parameters().iter().filter(|parameter| parameter.copy().is_some());
        names.map(|parameter| parameter.name().clone()).collect()
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
        let own: BTreeMap<String, Tensor> = adapter.tensors().into_iter().chain(adapter.extras()).collect();
        let value = |name: &str| {
            let value = values.get(name).or_else(|| own.get(name));
            value.cloned().expect("an adapter lists its own tensors")
        };
        for site in adapter.sites.values_mut() {
            let own = site.values.keys().map(|ending| (*ending, value(&site.key(ending)))).collect();
            site.values = own;
        }
        for (name, copy) in &mut adapter.saved {
            *copy = value(&format!("{KEY_PREFIX}{name}"));
        }
        adapter.dynamic = adapter.dynamic.map(|dynamic| dynamic.with_values(value));
        adapter.heads.values_mut().for_each(|head| *head = head.with_values(value));
        adapter.alignment = adapter.alignment.map(|_| value(mifs::TEMPERATURE));
        Ok(adapter)
    }

    /// Runs `f`, which is given the heads, while nothing carries a graph, on the variables' own values: nothing is kept for a
    /// backward that does not come.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn untracked<T>(&self, model: &Janus, f: impl FnOnce(&Heads) -> Result<T>) -> Result<T> {
        self.place(model, Graph::None)?;
        let outcome = f(&self.heads_with(Graph::None));
        self.place(model, Graph::Kept)?;
        outcome
    }

    /// Gives every variable the value that it has in `adapter`, which may come from files.
    ///
    /// # Errors
    /// What does not fit; nothing has changed then.
    pub fn set(&self, adapter: Adapter) -> std::result::Result<(), String> {
        let adapter = adapter.in_form_of(&self.adapter).map_err(|error| error.to_string())?;
        let values: BTreeMap<String, Tensor> = adapter.tensors().into_iter().chain(adapter.extras()).collect();
        if values.len() != self.vars.len() {
            return Err(format!("its adapter has {} tensors, expected {}", values.len(), self.vars.len()));
        }
        let mut fitting = Vec::with_capacity(self.list.len());
        for Trainable { name, var, .. } in &self.list {
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
    use crate::dynamic::Paths;
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
            dynamic: None,
            heads: Vec::new(),
            aligns: false,
            base_name: None,
            ..AdapterSpec::default()
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
        let untracked = trainables.untracked(&model, |_| hidden()).unwrap();
        assert!(tracked.track_op() && !untracked.track_op());
        assert_eq!(values(&untracked), values(&tracked));
        assert_ne!(values(&untracked), values(&before));
        assert!(hidden().unwrap().track_op());
        let failed = |_: &Heads| Err(Error::Usage { message: String::new(), hint: String::new() });
        assert!(trainables.untracked::<()>(&model, failed).is_err());
        assert!(hidden().unwrap().track_op());
    }

    #[test]
    fn a_factor_is_on_all_that_an_adapter_shifts() {
        let config = JanusConfig::shape("janus-tiny").unwrap();
        let weights = RandomWeights::new(&config, 3);
        let parts = Parts { vision: true, generation: true, ..Parts::default() };
        let model = Janus::open(&weights, DType::F32, &Device::Cpu, parts, &mut |_| ()).unwrap();
        let paths = Paths { vision: true, generation: true };
        let spec = AdapterSpec {
            rank: 3,
            alpha: 6.0,
            dropout: 0.0,
            sites: vec!["model.generation_aligner.hidden_layers.0".into()],
            modules_to_save: vec!["encoder.layers.0.layer_norm2".into(), "generation_aligner.fc1".into()],
            dynamic: Some(paths),
            heads: Vec::new(),
            aligns: false,
            base_name: None,
            ..AdapterSpec::default()
        };
        let read = |name: &str| weights.read(name, DType::F32);
        let mut adapter = Adapter::new(&config, model.is_tied(), &spec, 1, &read).unwrap();
        for site in adapter.sites.values_mut() {
            let [_, b] = site.pair_mut().unwrap();
            *b = Tensor::full(0.05f32, b.dims(), &Device::Cpu).unwrap();
        }
        for copy in adapter.saved.values_mut() {
            *copy = (&*copy * 1.25).unwrap();
        }
        adapter.dynamic = Some(crate::dynamic::tests::trained(&config, paths, 1));
        let value = || loss(&model).to_scalar::<f32>().unwrap();
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * a.abs().max(b.abs()).max(1.0);
        crate::adapter::attach(&model, &[(&adapter, 0.5)]).unwrap();
        let half = value();
        crate::adapter::attach(&model, &[(&adapter, 1.0)]).unwrap();
        assert!(!near(half, value()));
        crate::adapter::detach(&model);
        let trainables = Trainables::attach_scaled(&model, adapter, 0.5).unwrap();
        assert!(near(value(), half), "{} and {half}", value());
        let gradients = loss(&model).backward().unwrap();
        let name = format!("{KEY_PREFIX}model.generation_aligner.fc1.weight");
        let trainable = trainables.list.iter().find(|trainable| trainable.name == name).unwrap();
        let gradient: Vec<f32> = gradients.get(&trainable.var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let place = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
        let start: Vec<f32> = trainable.var.as_detached_tensor().flatten_all().unwrap().to_vec1().unwrap();
        let at = |shift: f32| {
            let mut values = start.clone();
            values[place] += shift;
            trainable.var.set(&Tensor::from_vec(values, trainable.var.dims(), &Device::Cpu).unwrap()).unwrap();
            trainables.renew(&model).unwrap();
            value()
        };
        let difference = (at(0.01) - at(-0.01)) / 0.02;
        assert!(
            (gradient[place] - difference).abs() < 0.05 * difference.abs() + 5e-3,
            "{} {difference}",
            gradient[place]
        );
    }

    /// The image loss of a prompt and the text loss of a picture's tower, through both paths of a dynamic encoder.
    fn loss(model: &Janus) -> Tensor {
        let (pass, side) = (Pass::inference(), model.config().vision.image_size);
        let pixels: Vec<f32> = (0..3 * side * side).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
        let pixels = Tensor::from_vec(pixels, (1, 3, side, side), &Device::Cpu).unwrap();
        let features = model.vision().unwrap().forward(&pass, &pixels).unwrap();
        let codes = model.generation().unwrap().embed(&pass, &[1, 5, 7, 2, 9], 1).unwrap();
        let uneven = |x: &Tensor| {
            let weights: Vec<f32> = (0..x.elem_count() as u64).map(|i| noise::normal(3, i) as f32).collect();
            let weights = Tensor::from_vec(weights, x.dims(), &Device::Cpu).unwrap();
            (x * weights).unwrap().sum_all().unwrap()
        };
        (uneven(&features) + uneven(&codes)).unwrap()
    }

    #[test]
    fn the_dynamic_encoder_has_the_gradients_of_differences() {
        let config = JanusConfig::shape("janus-tiny").unwrap();
        let weights = RandomWeights::new(&config, 3);
        let parts = Parts { vision: true, generation: true, ..Parts::default() };
        let model = Janus::open(&weights, DType::F32, &Device::Cpu, parts, &mut |_| ()).unwrap();
        let paths = Paths { vision: true, generation: true };
        // A pair and copies where the encoder has factors, too.
        let spec = AdapterSpec {
            rank: 3,
            alpha: 6.0,
            dropout: 0.0,
            sites: vec!["model.generation_aligner.hidden_layers.0".into()],
            modules_to_save: vec!["encoder.layers.0.layer_norm2".into()],
            dynamic: Some(paths),
            heads: Vec::new(),
            aligns: false,
            base_name: None,
            ..AdapterSpec::default()
        };
        let read = |name: &str| weights.read(name, DType::F32);
        let mut adapter = Adapter::new(&config, model.is_tied(), &spec, 1, &read).unwrap();
        for site in adapter.sites.values_mut() {
            let [_, b] = site.pair_mut().unwrap();
            *b = Tensor::full(0.05f32, b.dims(), &Device::Cpu).unwrap();
        }
        adapter.dynamic = Some(crate::dynamic::tests::trained(&config, paths, 1));
        let trainables = Trainables::attach(&model, adapter).unwrap();
        let gradients = loss(&model).backward().unwrap();
        assert_eq!(trainables.list.iter().filter(|t| t.name.starts_with(dynamic::PREFIX)).count(), 8);
        for Trainable { name, var, .. } in &trainables.list {
            let gradient: Vec<f32> =
                gradients.get(var).unwrap_or_else(|| panic!("{name}")).flatten_all().unwrap().to_vec1().unwrap();
            let largest = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
            assert!(gradient[largest].abs() > 1e-3, "{name}");
            let start = var.as_detached_tensor().copy().unwrap();
            for place in [largest, gradient.len() / 2] {
                let step = 1e-2f32;
                let at = |shift: f32| {
                    let mut values: Vec<f32> = start.flatten_all().unwrap().to_vec1().unwrap();
                    values[place] += shift;
                    var.set(&Tensor::from_vec(values, start.dims(), &Device::Cpu).unwrap()).unwrap();
                    trainables.renew(&model).unwrap();
                    loss(&model).to_scalar::<f32>().unwrap()
                };
                let difference = (at(step) - at(-step)) / (2.0 * step);
                let slack = 0.02 * gradient[largest].abs() + 5e-3;
                let got = gradient[place];
                assert!((got - difference).abs() < slack, "{name}, {place}: {got}, by differences {difference}");
            }
            var.set(&start).unwrap();
        }
        trainables.renew(&model).unwrap();
        let moving = trainables.moving(&model);
        assert_eq!(moving.len(), 4 * config.vision.num_hidden_layers);
        let value = loss(&model).to_scalar::<f32>().unwrap();
        let untracked = trainables.untracked(&model, |_| Ok(loss(&model))).unwrap();
        assert!(!untracked.track_op() && loss(&model).track_op());
        assert_eq!(untracked.to_scalar::<f32>().unwrap(), value);
        assert_eq!(trainables.adapter().unwrap().extras().len(), 8);
    }
}
