//! What a run's adapter begins as.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};

use super::super::signals;
use super::directions::directions;
use super::{Prepared, stages, start};
use crate::adapter::{Adapter, AdapterSpec, Init};
use crate::error::Result;
use crate::status::Status;

/// A new adapter, and the digest of the one that it begins from, where it does. Where it begins from the weights themselves or
/// from what sites see, that is shown: over a large base it takes minutes.
///
/// # Errors
/// As [`Adapter::new`], and rows that cannot be read.
pub(super) fn begin(prepared: &Prepared, device: &Device, status: &dyn Status) -> Result<(Adapter, Option<String>)> {
    let Prepared { recipe, base, stages, .. } = prepared;
    let spec = stages::whole_spec(recipe, base, stages);
    let make = |spec: &AdapterSpec, read: &dyn Fn(&str) -> janus_core::Result<Tensor>| {
        Adapter::new(base.config(), base.checkpoint().is_tied(), spec, recipe.train.seed, read)
    };
    let read = |name: &str| Ok(base.checkpoint().read(name, DType::F32)?);
    if let Some(from) = &recipe.adapter.start_from {
        let (start, digest) = start::read(from, base, status)?;
        return Ok((make(&spec, &read)?.starting_from(start)?, Some(digest)));
    }
    let adapter = match spec.init {
        Init::Kaiming | Init::Gaussian => make(&spec, &read)?,
        Init::Pissa | Init::Olora => {
            let count = spec.sites.len() as u64;
            let bar = status.items("decomposing weights", count);
            let begun = Cell::new(0);
            let shown = |name: &str| -> janus_core::Result<Tensor> {
                // One weight is read for each site, before it is decomposed: a place where the run can be left.
                if signals::received().is_some() {
                    return Err(candle_core::Error::msg("the run is left").into());
                }
                bar.set(begun.replace((begun.get() + 1).min(count)), count);
                read(name)
            };
            let adapter = make(&spec, &shown);
            signals::check()?;
            bar.set(count, count);
            bar.finish();
            adapter?
        }
        Init::Eva { .. } => {
            let drawn = make(&spec, &read)?;
            let (spec, found) = directions(prepared, spec, &drawn, device, status)?;
            let mut adapter = make(&spec, &read)?;
            for (path, directions) in found {
                if let Some([a, _]) = adapter.sites.get_mut(&path).and_then(|site| site.pair_mut()) {
                    *a = directions.as_a(a)?;
                }
            }
            adapter
        }
    };
    Ok((adapter, None))
}
