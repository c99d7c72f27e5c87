//! Which tensors of a base change under adapters, and by what.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use janus_core::site::{Site, sites};

use super::error::MergeError;
use super::fold::Fold;
use super::receipt::Sums;
use crate::adapter::{OnBias, Together};
use crate::base::{Base, StoredSite};
use crate::error::Result;

/// The tensors that change.
pub(super) struct Sources<'a> {
    base: &'a Base,
    together: Together<'a>,
    /// Sites that are corrected, by native path.
    sites: BTreeMap<String, Site>,
    /// Parameters that something stands in for.
    parameters: BTreeSet<String>,
    /// Biases that corrections change.
    biases: BTreeSet<String>,
}

impl<'a> Sources<'a> {
    /// Those of adapters over a base.
    ///
    /// # Errors
    /// A bias for a map that has none, or what reading reports.
    pub(super) fn of(base: &'a Base, together: Together<'a>) -> Result<Self> {
        let paths = together.sites();
        let corrected = sites(base.config()).into_iter().filter(|site| paths.contains(&*site.path));
        let sites: BTreeMap<String, Site> = corrected.map(|site| (site.path.to_string(), site)).collect();
        let mut biases = BTreeSet::new();
        for site in sites.values() {
            let name = format!("{}.bias", site.path);
            let is_there = base.checkpoint().tensors().any(|tensor| tensor.name == name);
            match together.bias(site) {
                OnBias::Shifted if !is_there => {
                    return Err(MergeError::NoBias { path: site.path.to_string() }.into());
                }
                OnBias::Shifted | OnBias::Scaled if is_there => drop(biases.insert(name)),
                _ => {}
            }
        }
        let parameters = together.parameters();
        Ok(Self { base, together, sites, parameters, biases })
    }

    fn site_of(&self, name: &str, part: &str) -> Option<&Site> {
        self.sites.get(name.strip_suffix(part)?)
    }

    /// Whether a tensor changes.
    pub(super) fn differs(&self, name: &str) -> bool {
        self.site_of(name, ".weight").is_some() || self.parameters.contains(name) || self.biases.contains(name)
    }

    /// The tensor to write for the base's `stored`, and what became of its values.
    ///
    /// # Errors
    /// What reading reports, copies of another shape, and sums that are not finite.
    pub(super) fn fold(&self, name: &str, stored: &Tensor, dtype: DType) -> Result<(Tensor, Sums)> {
        let frozen = || Ok(stored.to_dtype(DType::F32)?);
        let mut stands_in = self.together.parameter(name, &frozen)?;
        let mut correction = None;
        if let Some(site) = self.site_of(name, ".weight") {
            correction = Some((site, self.together.correction(site, &StoredSite { base: self.base, site })?));
        } else if let Some(site) = self.site_of(name, ".bias").filter(|_| self.biases.contains(name)) {
            let bias = self.together.correction(site, &StoredSite { base: self.base, site })?.bias;
            stands_in = bias.or(stands_in);
        }
        let correction = correction.as_ref().map(|(site, correction)| (*site, correction));
        Fold { name, copy: stands_in.as_ref(), correction, dtype }.run(stored)
    }
}
