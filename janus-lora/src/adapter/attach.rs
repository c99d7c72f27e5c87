//! Adapters in the slots of a loaded model: everything is checked, then everything is attached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use janus_core::Janus;
use janus_core::checkpoint::{EMBED_TOKENS, LM_HEAD};
use janus_core::model::vision::Vision;
use janus_core::site::{Correction, LowRank};

use super::Adapter;
use super::error::AdapterError;
use super::pair::pair_shapes;
use crate::dynamic::{self, Factors};
use crate::heads::Heads;

/// The low-rank terms of one site, of one or several adapters.
#[derive(Debug, Clone)]
pub struct LoraCorrection {
    terms: Vec<LowRank>,
}

impl LoraCorrection {
    /// The sum of `terms`, whose factors may be variables in training.
    pub fn new(terms: Vec<LowRank>) -> Self {
        Self { terms }
    }
}

impl Correction for LoraCorrection {
    fn terms(&self) -> Option<&[LowRank]> {
        Some(&self.terms)
    }
}

/// What stands in for a parameter where its copy has a factor: base + factor · (copy − base), in f32. With 1 it is the copy
/// and with 0 the base, to the bit.
///
/// # Errors
/// The tensor engine's.
pub fn scaled_copy(base: &Tensor, copy: &Tensor, factor: f64) -> candle_core::Result<Tensor> {
    if factor == 1.0 {
        return copy.to_dtype(DType::F32);
    }
    let base = base.to_dtype(DType::F32)?;
    if factor == 0.0 {
        return Ok(base);
    }
    let shift = (copy.to_dtype(DType::F32)? - &base)?;
    &base + (shift * factor)?
}

/// Lets a model compute with these adapters and no others, each with a factor on all that it shifts: its pairs, its copies of
/// parameters (`modules_to_save`) and its dynamic encoder.
///
/// What belongs to a part of the model that was not loaded is left out. On an error the model is as it was.
///
/// # Errors
/// A site or parameter the model lacks or has in another shape, or several adapters with copies.
pub fn attach(model: &Janus, adapters: &[(&Adapter, f64)]) -> Result<(), AdapterError> {
    let mut terms: BTreeMap<Arc<str>, Vec<LowRank>> = BTreeMap::new();
    let mut copies: BTreeMap<Arc<str>, Tensor> = BTreeMap::new();
    let mut first_with_copies = None;
    for (number, (adapter, factor)) in adapters.iter().enumerate() {
        for (path, pair) in &adapter.pairs {
            let Some(projection) = model.projections().get(path) else {
                if is_loaded(model, path) {
                    return Err(AdapterError::UnknownModule { path: path.to_string() });
                }
                continue;
            };
            let (a, b) = pair_shapes(projection.site(), pair.rank);
            check_shape(path, "A", &a, &pair.a)?;
            check_shape(path, "B", &b, &pair.b)?;
            // Without a term, not with one of zeros: the base to the bit, whatever the order of sums.
            if *factor == 0.0 {
                continue;
            }
            let mut term = pair.low_rank(*factor);
            term.a = term.a.to_device(model.device())?;
            term.b = term.b.to_device(model.device())?;
            terms.entry(path.clone()).or_default().push(term);
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
            let Some(parameter) = model.parameters().get(name) else {
                if is_loaded(model, name) {
                    return Err(AdapterError::UnknownModule { path: name.to_string() });
                }
                continue;
            };
            check_shape(name, "copy", parameter.frozen().dims(), copy)?;
            if *factor != 0.0 {
                let copy = copy.to_device(model.device())?;
                copies.insert(name.clone(), scaled_copy(parameter.frozen(), &copy, *factor)?);
            }
        }
    }

    let factors = factors(model, adapters)?;
    copies.extend(factors.norm_copies(model, |name| copies.get(name).cloned())?);
    detach(model);
    for projection in model.projections().iter() {
        let path = &projection.site().path;
        let terms = terms.remove(path);
        let scaled = factors.correction(model, path, terms.clone().unwrap_or_default())?;
        let plain = || terms.map(|terms| Arc::new(LoraCorrection::new(terms)) as Arc<dyn Correction>);
        projection.attach(scaled.or_else(plain));
    }
    for (name, copy) in copies {
        model.parameters().substitute(&name, Some(copy))?;
    }
    Ok(())
}

/// The factors of all dynamic encoders together.
fn factors(model: &Janus, adapters: &[(&Adapter, f64)]) -> Result<Factors, AdapterError> {
    for dynamic in adapters.iter().filter_map(|(adapter, _)| adapter.dynamic.as_ref()) {
        for (name, shape) in dynamic::shapes(model.config(), dynamic.paths()) {
            let value = dynamic.values().get(name);
            let value = value.ok_or_else(|| AdapterError::UnknownModule { path: name.into() })?;
            check_shape(name, "value", &shape, value)?;
        }
    }
    let acting = adapters.iter().filter(|(_, factor)| *factor != 0.0);
    let encoders = acting.filter_map(|(adapter, factor)| Some((adapter.dynamic.as_ref()?, *factor)));
    Ok(Factors::of(encoders)?)
}

/// The heads of all adapters, on a device.
///
/// # Errors
/// Two heads of one name.
pub fn heads(adapters: &[(&Adapter, f64)], device: &Device) -> Result<Heads, AdapterError> {
    let mut all = Heads::new();
    for (number, (adapter, _)) in adapters.iter().enumerate() {
        for (name, head) in &adapter.heads {
            if all.insert(name.clone(), head.to_device(device)?).is_some() {
                let first = adapters.iter().position(|(adapter, _)| adapter.heads.contains_key(name));
                let (first, second) = (first.unwrap_or(0) + 1, number + 1);
                return Err(AdapterError::HeadsClash { name: name.to_string(), first, second });
            }
        }
    }
    Ok(all)
}

/// Empties every slot and takes back every copy: the base again.
pub fn detach(model: &Janus) {
    for projection in model.projections().iter() {
        projection.attach(None);
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
#[path = "attach_tests.rs"]
mod tests;
