//! Adapters in a model: everything is worked out and checked, then everything is put in its place.
//!
//! This is the one way into a model, for training, for answers and for checks. Each adapter is its shift: those of several
//! add up, each times its factor.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::Janus;
use janus_core::checkpoint::{EMBED_TOKENS, LM_HEAD};
use janus_core::model::vision::Vision;
use janus_core::site::{Correction, Projection};

use super::Adapter;
use super::error::AdapterError;
use super::pieces::Together;
use crate::dynamic;
use crate::heads::Heads;

/// An adapter that is to be put into a model or folded into weights.
pub struct Placed<'a> {
    /// It.
    pub adapter: &'a Adapter,
    /// On all that it shifts; heads have none.
    pub factor: f64,
    /// What stands for a tensor of its files, by key, on the device that computes.
    pub value: Rc<dyn Fn(&str) -> Tensor + 'a>,
    /// Share of the inputs' values that is zeroed before A where a pass trains.
    pub dropout: f64,
    /// Whether its copy of a parameter, by native name, takes part.
    pub takes_copy: &'a dyn Fn(&str) -> bool,
}

impl<'a> Placed<'a> {
    /// An adapter with its own values on a device, without dropout.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn own(adapter: &'a Adapter, factor: f64, device: &Device) -> Result<Self, AdapterError> {
        let all = adapter.tensors().into_iter().chain(adapter.extras());
        let on_device = all.map(|(name, value)| Ok((name, value.to_device(device)?)));
        let values = on_device.collect::<Result<BTreeMap<String, Tensor>, AdapterError>>()?;
        let value = move |name: &str| values.get(name).expect("an adapter lists its own tensors").clone();
        Ok(Self { adapter, factor, value: Rc::new(value), dropout: 0.0, takes_copy: &|_| true })
    }
}

/// Lets a model compute with these adapters and no others, each with a factor on all that it shifts: its sites, its copies of
/// parameters (`modules_to_save`) and its dynamic encoder.
///
/// What belongs to a part of the model that was not loaded is left out. On an error the model is as it was.
///
/// # Errors
/// As [`place`].
pub fn attach(model: &Janus, adapters: &[(&Adapter, f64)]) -> Result<(), AdapterError> {
    let placed = adapters.iter().map(|(adapter, factor)| Placed::own(adapter, *factor, model.device()));
    place(model, &placed.collect::<Result<Vec<_>, AdapterError>>()?)
}

/// Puts these adapters into a model and takes all others out.
///
/// # Errors
/// A site or parameter the model lacks or has in another shape, or several adapters with copies; the model is as it was then.
pub fn place(model: &Janus, adapters: &[Placed<'_>]) -> Result<(), AdapterError> {
    let Worked { corrections, parameters } = Worked::of(model, adapters)?;
    detach(model);
    for (projection, correction) in corrections {
        projection.attach(Some(Arc::new(correction)))?;
    }
    for (name, value) in parameters {
        model.parameters().substitute(&name, Some(value))?;
    }
    Ok(())
}

/// What adapters make of a model, worked out and checked, not yet in its place.
pub(super) struct Worked<'m> {
    /// The corrections of sites.
    pub(super) corrections: Vec<(&'m Projection, Correction)>,
    /// What stands in for parameters, by native name.
    pub(super) parameters: Vec<(String, Tensor)>,
}

impl<'m> Worked<'m> {
    /// Of what belongs to a part of the model that was loaded.
    ///
    /// # Errors
    /// As [`place`].
    pub(super) fn of(model: &'m Janus, adapters: &[Placed<'_>]) -> Result<Self, AdapterError> {
        require_known(model, adapters)?;
        let together = Together::of(adapters, model.config())?;
        let mut parameters = Vec::new();
        for name in together.parameters() {
            let Some(parameter) = model.parameters().get(&name) else { continue };
            if let Some(value) = together.parameter(&name, &|| Ok(parameter.frozen().to_dtype(DType::F32)?))? {
                parameters.push((name, value));
            }
        }
        let mut corrections = Vec::new();
        for projection in together.sites().into_iter().filter_map(|path| model.projections().get(path)) {
            corrections.push((&**projection, together.correction(projection.site(), &projection.frozen())?));
        }
        Ok(Self { corrections, parameters })
    }
}

/// Refuses adapters for another model.
fn require_known(model: &Janus, adapters: &[Placed<'_>]) -> Result<(), AdapterError> {
    let mut first_with_copies = None;
    for (number, Placed { adapter, .. }) in adapters.iter().enumerate() {
        for path in adapter.sites.keys().filter(|path| model.projections().get(path).is_none()) {
            if is_loaded(model, path) {
                return Err(AdapterError::UnknownModule { path: path.to_string() });
            }
        }
        if let Some(dynamic) = &adapter.dynamic {
            for (name, shape) in dynamic::shapes(model.config(), dynamic.paths()) {
                let value = dynamic.values().get(name);
                let value = value.ok_or_else(|| AdapterError::UnknownModule { path: name.into() })?;
                check_shape(name, "value", &shape, value)?;
            }
        }
        let form = adapter.config.method.form();
        for site in adapter.sites.values() {
            for (ending, shape) in form.tensors(site.at()) {
                let value = site.values.get(ending);
                let value = value.ok_or_else(|| AdapterError::UnknownModule { path: site.key(ending) })?;
                check_shape(&site.site.path, ending, &shape, value)?;
            }
            if let Some(projection) = model.projections().get(&site.site.path)
                && *projection.site() != site.site
            {
                let (expected, got) = (projection.site().weight_shape(), site.site.weight_shape());
                return Err(AdapterError::Shape { path: site.site.path.to_string(), tensor: "weight", expected, got });
            }
        }
        if adapter.saved.is_empty() {
            continue;
        }
        if let Some(first) = first_with_copies {
            return Err(AdapterError::SeveralCopies { first, second: number + 1 });
        }
        first_with_copies = Some(number + 1);
        for (name, copy) in &adapter.saved {
            if model.is_tied() && [EMBED_TOKENS, LM_HEAD].contains(&&**name) {
                return Err(AdapterError::TiedCopy { name: name.to_string() });
            }
            match model.parameters().get(name) {
                Some(parameter) => check_shape(name, "copy", parameter.frozen().dims(), copy)?,
                None if is_loaded(model, name) => {
                    return Err(AdapterError::UnknownModule { path: name.to_string() });
                }
                None => {}
            }
        }
    }
    Ok(())
}

/// The heads of all adapters, on a device.
///
/// # Errors
/// Two heads of one name.
pub fn heads(adapters: &[(&Adapter, f64)], device: &Device) -> Result<Heads, AdapterError> {
    let mut all = Heads::new();
    for (number, (adapter, _)) in adapters.iter().enumerate() {
        for (name, head) in heads_of(adapter, device)? {
            if all.insert(name.clone(), head).is_some() {
                let first = adapters.iter().position(|(adapter, _)| adapter.heads.contains_key(&name));
                let (first, second) = (first.unwrap_or(0) + 1, number + 1);
                return Err(AdapterError::HeadsClash { name: name.to_string(), first, second });
            }
        }
    }
    Ok(all)
}

/// The heads of one adapter, on a device.
pub(super) fn heads_of(adapter: &Adapter, device: &Device) -> Result<Heads, AdapterError> {
    adapter.heads.iter().map(|(name, head)| Ok((name.clone(), head.to_device(device)?))).collect()
}

/// Takes every correction out and every copy back: the base again. Slots are left alone.
pub fn detach(model: &Janus) {
    for projection in model.projections().iter() {
        projection.attach(None).expect("no correction fits every site");
    }
    let names: BTreeSet<Arc<str>> = model.parameters().iter().map(|parameter| parameter.name().clone()).collect();
    for name in names {
        model.parameters().substitute(&name, None).expect("the model itself gave the name, and no copy has no shape");
    }
}

/// Whether the part of the model that a site or parameter belongs to was loaded.
fn is_loaded(model: &Janus, name: &str) -> bool {
    if name == "lm_head" || name == LM_HEAD {
        // Every Janus has one: it is absent only where it was not asked for.
        false
    } else if name.starts_with("model.language_model.") {
        model.decoder().is_whole()
    } else if name.starts_with("model.vision_model.") || name.starts_with("model.aligner.") {
        model.vision().is_ok_and(Vision::is_whole)
    } else if name.starts_with("model.generation_") {
        model.generation().is_ok()
    } else if name.starts_with("model.vqmodel.") {
        model.image_tokenizer().is_ok()
    } else {
        true
    }
}

fn check_shape(path: &str, tensor: &'static str, expected: &[usize], got: &Tensor) -> Result<(), AdapterError> {
    if got.dims() == expected {
        return Ok(());
    }
    Err(AdapterError::Shape { path: path.into(), tensor, expected: expected.to_vec(), got: got.dims().to_vec() })
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
