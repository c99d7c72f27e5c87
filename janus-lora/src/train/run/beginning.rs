//! What a run's adapter begins as.

use std::cell::Cell;

use candle_core::{DType, Tensor};

use crate::adapter::{Adapter, AdapterSpec};
use crate::base::Base;
use crate::error::Result;
use crate::status::Status;

/// A new adapter. Where it begins from the weights themselves, that is shown: over a large base it takes minutes.
///
/// # Errors
/// As [`Adapter::new`].
pub(super) fn begin(spec: &AdapterSpec, base: &Base, seed: u64, status: &dyn Status) -> Result<Adapter> {
    let (config, tied) = (base.config(), base.checkpoint().is_tied());
    let read = |name: &str| Ok(base.checkpoint().read(name, DType::F32)?);
    if !spec.init.is_of_weight() {
        return Ok(Adapter::new(config, tied, spec, seed, &read)?);
    }
    let count = spec.sites.len() as u64;
    let bar = status.items("decomposing weights", count);
    let begun = Cell::new(0);
    let shown = |name: &str| -> janus_core::Result<Tensor> {
        // One weight is read for each site, before it is decomposed.
        bar.set(begun.replace((begun.get() + 1).min(count)), count);
        read(name)
    };
    let adapter = Adapter::new(config, tied, spec, seed, &shown);
    bar.set(count, count);
    bar.finish();
    Ok(adapter?)
}
