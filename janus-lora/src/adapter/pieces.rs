//! What an adapter makes of a base: corrections of its sites, and what stands in for whole parameters.
//!
//! From here everything that an adapter does is derived: a model under training, one that answers, a merged checkpoint. It is
//! worked out site by site and parameter by parameter, so that no more of a base has to be in memory than one of these.

use std::collections::BTreeSet;
use std::rc::Rc;

use candle_core::{DType, Tensor};
use janus_core::config::JanusConfig;
use janus_core::site::{Base, Correction, Site, SiteKind};

use super::Adapter;
use super::error::AdapterError;
use super::method::{OnBias, Own};
use super::place::Placed;
use super::site::{KEY_PREFIX, SHARED_PREFIX};
use crate::dynamic::{self, Factors};

/// An adapter's values at work: its own, or variables that stand for them.
struct Pieces<'a> {
    adapter: &'a Adapter,
    /// The value of a key of the adapter's files.
    value: Rc<dyn Fn(&str) -> Tensor + 'a>,
    /// Whether its copy of a parameter, by native name, takes part.
    takes_copy: &'a dyn Fn(&str) -> bool,
    /// Share of the inputs' values that is zeroed before A where a pass trains.
    dropout: f64,
    /// On all that it shifts.
    factor: f64,
    /// Factors of the dynamic encoder.
    factors: Factors,
    /// The site that has one of these.
    generation_site: Option<String>,
}

impl<'a> Pieces<'a> {
    /// Those of an adapter for a base.
    ///
    /// # Errors
    /// The tensor engine's.
    fn of(placed: &Placed<'a>, base: &JanusConfig) -> Result<Self, AdapterError> {
        let &Placed { adapter, factor, ref value, dropout, takes_copy } = placed;
        let dynamic = adapter.dynamic.as_ref().map(|dynamic| dynamic.with_values(|name| value(name)));
        let factors = match &dynamic {
            Some(dynamic) => Factors::of(dynamic)?,
            None => Factors::default(),
        };
        let generation_site = factors.generation.is_some().then(|| dynamic::generation_site(base));
        Ok(Self { adapter, value: value.clone(), takes_copy, dropout, factor, factors, generation_site })
    }

    /// Native paths of all sites that are corrected.
    fn sites(&self) -> BTreeSet<&str> {
        let own = self.adapter.sites.keys().map(AsRef::as_ref);
        own.chain(self.generation_site.as_deref()).collect()
    }

    /// The correction of a site, with the graph of the values; `None` where the adapter leaves it alone.
    ///
    /// # Errors
    /// What `base` reports, or values of another shape.
    fn correction(&self, site: &Site, base: &dyn Base) -> Result<Option<Correction>, AdapterError> {
        let own = match self.adapter.sites.get(&site.path) {
            Some(adapted) => {
                let own = Own {
                    at: adapted.at(),
                    scale: adapted.scale,
                    dropout: self.dropout,
                    value: &|ending| (self.value)(&adapted.key(ending)),
                    shared: &|name| (self.value)(&format!("{SHARED_PREFIX}{name}")),
                };
                Some(self.adapter.config.method.form().correction(&own, base)?)
            }
            None => None,
        };
        match &self.factors.generation {
            Some(factors) if self.generation_site.as_deref() == Some(&*site.path) => {
                Ok(Some(own.unwrap_or_default().behind(factors, site, base)?))
            }
            _ => Ok(own),
        }
    }

    /// Native names of all parameters that something stands in for.
    fn parameters(&self, base: &JanusConfig) -> BTreeSet<String> {
        let saved = self.adapter.saved.keys().filter(|name| (self.takes_copy)(name)).map(ToString::to_string);
        saved.chain(self.factors.norm_parameters(base).map(|(name, _)| name)).collect()
    }

    /// What stands in for a parameter, f32 with the graph of the values; `None` where nothing does. `frozen` is asked for the
    /// base's value where it is needed.
    fn parameter(
        &self,
        name: &str,
        base: &JanusConfig,
        frozen: &dyn Fn() -> janus_core::Result<Tensor>,
    ) -> Result<Option<Tensor>, AdapterError> {
        let is_saved = self.adapter.saved.contains_key(name) && (self.takes_copy)(name);
        let saved = is_saved.then(|| (self.value)(&format!("{KEY_PREFIX}{name}")));
        let Some((_, row)) = self.factors.norm_parameters(base).find(|(norm, _)| norm == name) else {
            return Ok(saved);
        };
        let value = match saved {
            Some(saved) => saved,
            None => frozen()?.to_dtype(DType::F32)?,
        };
        Ok(self.factors.of_norm(row, &value)?)
    }
}

/// Several adapters over one base: the sum of their shifts, each times its factor.
pub struct Together<'a> {
    base: &'a JanusConfig,
    pieces: Vec<Pieces<'a>>,
}

impl<'a> Together<'a> {
    /// Those of the adapters whose factor is not 0: without what they say, not with shifts of zeros, it is the base to the
    /// bit, whatever the order of sums.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn of(adapters: &[Placed<'a>], base: &'a JanusConfig) -> Result<Self, AdapterError> {
        let acting = adapters.iter().filter(|placed| placed.factor != 0.0);
        let pieces = acting.map(|placed| Pieces::of(placed, base)).collect::<Result<_, _>>()?;
        Ok(Self { base, pieces })
    }

    /// Native paths of all sites that are corrected.
    pub fn sites(&self) -> BTreeSet<&str> {
        self.pieces.iter().flat_map(Pieces::sites).collect()
    }

    /// Native names of all parameters that something stands in for.
    pub fn parameters(&self) -> BTreeSet<String> {
        self.pieces.iter().flat_map(|pieces| pieces.parameters(self.base)).collect()
    }

    /// What becomes of the base's bias at a site.
    pub fn bias(&self, site: &Site) -> OnBias {
        let of = |pieces: &Pieces<'_>| match pieces.adapter.sites.get(&site.path) {
            Some(own) => pieces.adapter.config.method.bias(own),
            None => OnBias::Kept,
        };
        let is_scaled = self.pieces.iter().any(|pieces| pieces.generation_site.as_deref() == Some(&*site.path));
        let least = if is_scaled { OnBias::Scaled } else { OnBias::Kept };
        self.pieces.iter().map(of).max().unwrap_or(OnBias::Kept).max(least)
    }

    /// What stands in for a parameter, f32 with the graph of the values; `None` where nothing does. `frozen` is asked for the
    /// base's value where it is needed.
    ///
    /// # Errors
    /// What `frozen` reports.
    pub fn parameter(
        &self,
        name: &str,
        frozen: &dyn Fn() -> janus_core::Result<Tensor>,
    ) -> Result<Option<Tensor>, AdapterError> {
        let mut sum: Option<Tensor> = None;
        for pieces in &self.pieces {
            let Some(copy) = pieces.parameter(name, self.base, frozen)? else { continue };
            sum = Some(match (&sum, pieces.factor) {
                // With no factor the variable itself stands in, and a step that moves it is seen at once.
                (None, 1.0) => copy,
                (None, factor) => scaled_copy(&frozen()?, &copy, factor)?,
                (Some(sum), factor) => {
                    let shift = (copy.to_dtype(DType::F32)? - frozen()?.to_dtype(DType::F32)?)?;
                    (sum + (shift * factor)?)?
                }
            });
        }
        Ok(sum)
    }

    /// The correction of a site, with the graph of the values: on top of what stands in for its parameters.
    ///
    /// # Errors
    /// What `base` reports, or values of another shape.
    pub fn correction(&self, site: &Site, base: &dyn Base) -> Result<Correction, AdapterError> {
        let mut parts = Vec::with_capacity(self.pieces.len());
        for pieces in &self.pieces {
            if let Some(correction) = pieces.correction(site, base)? {
                parts.push((correction, pieces.factor));
            }
        }
        let parts: Vec<(&Correction, f64)> = parts.iter().map(|(part, factor)| (part, *factor)).collect();
        let mut correction = Correction::sum(site, base, &parts)?;
        let stands_in = |part: &str| {
            let name = format!("{}.{part}", site.path);
            self.pieces.iter().any(|pieces| pieces.parameters(self.base).contains(&name)).then_some(name)
        };
        if correction.is_empty() {
            return Ok(correction);
        }
        if (correction.input.is_some() || correction.output.is_some()) && stands_in("weight").is_some() {
            // Factors are of the base's weight, not of the copy that stands in for it.
            if site.kind == SiteKind::Embedding {
                return Err(AdapterError::CopyUnderFactors { path: site.path.to_string() });
            }
            correction = correction.dense(site, base)?;
        }
        if let (Some(bias), Some(name)) = (&correction.bias, stands_in("bias")) {
            let own = match base.bias()? {
                Some(own) => own,
                None => bias.zeros_like()?,
            };
            if let Some(copy) = self.parameter(&name, &|| Ok(own.clone()))? {
                correction.bias = Some((copy + (bias - own)?)?);
            }
        }
        correction.check(site)?;
        Ok(correction)
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
