//! Factors in plain weights: of a checkpoint without an encoder that computes the same.

use std::collections::BTreeMap;

use candle_core::Result;
use janus_core::config::JanusConfig;

use super::Factors;
use super::apply::{generation_site, norm_parameters};

impl Factors {
    /// The factor of each row (first axis) of the parameters that change, by native name: weight and bias of the tower's
    /// norms, and of the last map of `generation_aligner` behind whatever else is added to it.
    ///
    /// # Errors
    /// Factors of a model of other sizes.
    pub fn by_row(&self, config: &JanusConfig) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut rows = BTreeMap::new();
        if let Some(factors) = &self.norms {
            for (name, row) in norm_parameters(config) {
                rows.insert(name, factors.get(row)?.to_vec1()?);
            }
        }
        if let Some(factors) = &self.generation {
            let (site, factors) = (generation_site(config), factors.to_vec1::<f32>()?);
            rows.insert(format!("{site}.weight"), factors.clone());
            rows.insert(format!("{site}.bias"), factors);
        }
        Ok(rows)
    }
}
