//! Loads parameters and gives birth to projections at their checkpoint paths: the one place where a path becomes a layer.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device};

use crate::checkpoint::{EMBED_TOKENS, LM_HEAD, WeightSource};
use crate::error::{ModelError, Result};
use crate::ops::Weight;
use crate::ops::weight::meets;
use crate::parameter::{Parameter, Parameters};
use crate::site::{Projection, Projections, Site, SiteKind, sites};

/// The type that a site's weight is held in for values of a type: on the processor, products of f32 values take bf16 weights as
/// they are stored, in half the memory and to the same bits.
pub fn held_dtype(weights: &dyn WeightSource, site: &Site, dtype: DType, device: &Device) -> DType {
    let is_product = !matches!(site.kind, SiteKind::Conv2d { .. });
    let exact = weights.exact_dtype(&format!("{}.weight", site.path));
    if is_product && device.is_cpu() && meets(dtype, exact) { exact } else { dtype }
}

/// What has been loaded so far.
pub(crate) struct Loader<'a> {
    weights: &'a dyn WeightSource,
    device: Device,
    sites: HashMap<Arc<str>, Site>,
    progress: &'a mut dyn FnMut(u64),
    /// Every parameter by name.
    pub(crate) parameters: Parameters,
    /// Every projection by path.
    pub(crate) projections: Projections,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(weights: &'a dyn WeightSource, device: &Device, progress: &'a mut dyn FnMut(u64)) -> Self {
        let sites = sites(weights.config()).into_iter().map(|site| (site.path.clone(), site)).collect();
        Self {
            weights,
            device: device.clone(),
            sites,
            progress,
            parameters: Parameters::default(),
            projections: Projections::default(),
        }
    }

    /// The parameter of a native name; a tied head is the embedding table itself.
    pub(crate) fn parameter(&mut self, name: &str, dtype: DType) -> Result<Arc<Parameter>> {
        self.parameter_as(name, dtype, Parameter::new)
    }

    /// The parameter of a native name, in which rows may differ by their routes.
    pub(crate) fn routed_parameter(&mut self, name: &str, dtype: DType) -> Result<Arc<Parameter>> {
        self.parameter_as(name, dtype, Parameter::routed)
    }

    fn parameter_as(&mut self, name: &str, dtype: DType, of: fn(&str, Weight) -> Parameter) -> Result<Arc<Parameter>> {
        let name = if name == LM_HEAD && self.weights.is_tied() { EMBED_TOKENS } else { name };
        if let Some(parameter) = self.parameters.get(name) {
            return Ok(parameter.clone());
        }
        let value = Weight::from(self.weights.read(name, dtype)?.to_device(&self.device)?);
        (self.progress)(value.bytes() as u64);
        let parameter = Arc::new(of(name, value));
        self.parameters.insert(parameter.clone());
        Ok(parameter)
    }

    /// The projection at a native path.
    pub(crate) fn projection(&mut self, path: &str, bias: bool, dtype: DType) -> Result<Arc<Projection>> {
        let site = self.sites.get(path).cloned().ok_or_else(|| ModelError::UnknownParameter { name: path.into() })?;
        let held = held_dtype(self.weights, &site, dtype, &self.device);
        let weight = self.parameter(&format!("{path}.weight"), held)?;
        let bias = if bias { Some(self.parameter(&format!("{path}.bias"), dtype)?) } else { None };
        let projection = Arc::new(Projection::new(site, weight, bias).computing_in(dtype));
        self.projections.insert(projection.clone());
        Ok(projection)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::*;
    use crate::config::JanusConfig;
    use crate::model::decoder::Placement;
    use crate::pass::Pass;
    use crate::testing::Rounded;
    use crate::{Janus, Parts};

    #[test]
    fn f32_values_meet_bf16_weights_as_they_are_stored_and_to_the_same_bits() {
        let config = JanusConfig::shape("janus-tiny").unwrap();
        let open = |stored: DType| {
            let parts = Parts::all();
            Janus::open(&Rounded(config.clone(), stored), DType::F32, &Device::Cpu, parts, &mut |_| {}).unwrap()
        };
        let (narrow, wide) = (open(DType::BF16), open(DType::F32));
        for (projection, other) in narrow.projections().iter().zip(wide.projections().iter()) {
            let is_product = !matches!(projection.site().kind, SiteKind::Conv2d { .. });
            let held = projection.weight().frozen();
            assert_eq!(held.dtype(), if is_product { DType::BF16 } else { DType::F32 }, "{}", projection.site().path);
            assert_eq!(other.weight().frozen().dtype(), DType::F32);
            assert!(projection.bias().is_none_or(|bias| bias.frozen().dtype() == DType::F32));
        }
        // One row, few rows and many.
        for (rows, tokens) in [(1, 1), (3, 2), (2, 19)] {
            let bits = |model: &Janus| {
                let (pass, decoder) = (Pass::inference(), model.decoder());
                let ids: Vec<u32> = (0..(rows * tokens) as u32).map(|id| id * 7 % 300).collect();
                let embeds = decoder.embed(&pass, &ids, rows).unwrap();
                assert_eq!(embeds.dtype(), DType::F32);
                let mask = vec![vec![true; tokens]; rows];
                let mut cache = decoder.cache(tokens);
                let placement = Placement::continued(&mask, tokens);
                let hidden = decoder.forward_last(&pass, &embeds, &placement, &mut cache).unwrap();
                let logits: Tensor = decoder.text_logits(&pass, &hidden).unwrap();
                let logits: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
                logits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(bits(&narrow) == bits(&wide), "{rows} rows of {tokens}");
        }
    }
}
