//! Loads parameters and gives birth to projections at their checkpoint paths: the one place where a path becomes a layer.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::{EMBED_TOKENS, LM_HEAD, WeightSource};
use crate::error::{ModelError, Result};
use crate::parameter::{Parameter, Parameters};
use crate::site::{Projection, Projections, Site, sites};

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

    fn parameter_as(&mut self, name: &str, dtype: DType, of: fn(&str, Tensor) -> Parameter) -> Result<Arc<Parameter>> {
        let name = if name == LM_HEAD && self.weights.is_tied() { EMBED_TOKENS } else { name };
        if let Some(parameter) = self.parameters.get(name) {
            return Ok(parameter.clone());
        }
        let value = self.weights.read(name, dtype)?.to_device(&self.device)?;
        (self.progress)((value.elem_count() * dtype.size_in_bytes()) as u64);
        let parameter = Arc::new(of(name, value));
        self.parameters.insert(parameter.clone());
        Ok(parameter)
    }

    /// The projection at a native path.
    pub(crate) fn projection(&mut self, path: &str, bias: bool, dtype: DType) -> Result<Arc<Projection>> {
        let site = self.sites.get(path).cloned().ok_or_else(|| ModelError::UnknownParameter { name: path.into() })?;
        let weight = self.parameter(&format!("{path}.weight"), dtype)?;
        let bias = if bias { Some(self.parameter(&format!("{path}.bias"), dtype)?) } else { None };
        let projection = Arc::new(Projection::new(site, weight, bias));
        self.projections.insert(projection.clone());
        Ok(projection)
    }
}
