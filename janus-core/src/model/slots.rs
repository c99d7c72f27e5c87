//! Slots of a model: sets of corrections that are held ready, of which each row of a pass may take its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::Janus;
use crate::error::{ModelError, Result};
use crate::parameter::Parameter;
use crate::pass::Slot;
use crate::site::{Correction, Projection, gather};

/// What a slot is to hold.
#[derive(Debug, Clone, Default)]
pub struct SlotContents {
    /// Corrections of sites, by native path.
    pub corrections: BTreeMap<String, Correction>,
    /// What stands in the place of parameters in which rows may differ, the layer norms of the vision tower, by native name.
    pub norms: BTreeMap<String, Tensor>,
}

impl Janus {
    /// Holds corrections in a slot, in the place of what was there, and returns how many bytes they take. They are made ready here,
    /// rounded to the type that is computed in, so that a pass only has to choose. On an error nothing has changed. Between passes
    /// only.
    ///
    /// # Errors
    /// A site or parameter that the model does not have, or one of another shape; a parameter that rows cannot differ in.
    pub fn hold(&self, slot: Slot, contents: &SlotContents) -> Result<usize> {
        let SlotContents { corrections, norms } = contents;
        let unknown = |name: &String| ModelError::UnknownParameter { name: name.clone() };
        if let Some(path) = corrections.keys().find(|path| self.projections.get(path).is_none()) {
            return Err(unknown(path).into());
        }
        let mut values = BTreeMap::new();
        for (name, value) in norms {
            self.parameters.get(name).ok_or_else(|| unknown(name))?.check_slot(value)?;
            let value = value.detach().to_device(&self.device)?.to_dtype(DType::F32)?.contiguous()?;
            values.insert(name.as_str(), value);
        }
        let mut ready = Vec::new();
        for projection in self.projections.iter() {
            ready.push((projection, projection.ready(corrections.get(&*projection.site().path))?));
        }
        gather(ready.iter_mut().map(|(_, ready)| ready))?;
        let of_norms: usize = values.values().map(|value| value.elem_count() * size_of::<f32>()).sum();
        let bytes = of_norms + ready.iter().map(|(_, ready)| ready.bytes()).sum::<usize>();
        for (projection, ready) in ready {
            projection.hold(slot, ready);
        }
        for parameter in self.parameters.iter() {
            parameter.hold(slot, values.remove(&**parameter.name()));
        }
        Ok(bytes)
    }

    /// Empties a slot; a route to it is an error from then on. Between passes only.
    pub fn release(&self, slot: Slot) {
        let (projections, parameters) = (self.projections.iter(), self.parameters.iter());
        projections.for_each(|projection: &Arc<Projection>| projection.release(slot));
        parameters.for_each(|parameter: &Arc<Parameter>| parameter.release(slot));
    }
}
