//! The parameters of one site in a base's checkpoint.

use candle_core::{DType, Tensor};
use janus_core::site::{Base as SiteBase, Site};

use super::Base;

/// What a checkpoint has at a site, read when it is asked for.
#[derive(Clone, Copy)]
pub struct StoredSite<'a> {
    /// The base.
    pub base: &'a Base,
    /// The site.
    pub site: &'a Site,
}

impl SiteBase for StoredSite<'_> {
    fn weight(&self) -> janus_core::Result<Tensor> {
        Ok(self.base.checkpoint().read(&format!("{}.weight", self.site.path), DType::F32)?)
    }

    fn bias(&self) -> janus_core::Result<Option<Tensor>> {
        let name = format!("{}.bias", self.site.path);
        match self.base.checkpoint().tensors().any(|tensor| tensor.name == name) {
            true => Ok(Some(self.base.checkpoint().read(&name, DType::F32)?)),
            false => Ok(None),
        }
    }
}
