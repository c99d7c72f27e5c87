//! Which sites an adapter gets, and in what form at each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use janus_core::config::JanusConfig;
use janus_core::site::{Site, sites};

use super::TrainError;
use crate::adapter::{Init, Method, ModuleNames, has_bias};
use crate::error::Result;
use crate::recipe::{AdapterInit, AdapterMethod, AdapterSection};
use crate::target::{self, Origin, TargetPattern};

/// The sites of a recipe, in the order of the model's modules.
#[derive(Debug, Clone, Default)]
pub(super) struct ChosenSites {
    /// Those that get tensors.
    pub(super) sites: Vec<Site>,
    /// Paths that a preset names but no task of the recipe uses: nothing is made there.
    pub(super) unused: Vec<Arc<str>>,
    /// Paths that a pattern names and no task uses.
    pub(super) unreached: Vec<String>,
    /// Other ranks than the section's, by path.
    pub(super) ranks: BTreeMap<Arc<str>, usize>,
    /// Other alphas than the section's, by path.
    pub(super) alphas: BTreeMap<Arc<str>, f64>,
}

/// Chooses the sites of `section`; `reached` tells whether a task uses a path.
///
/// # Errors
/// Targets, exclusions, layers and patterns that match nothing, and sites that the method has no form for.
pub(super) fn choose(
    section: &AdapterSection,
    config: &JanusConfig,
    reached: &dyn Fn(&str) -> bool,
) -> Result<ChosenSites> {
    let all = sites(config);
    let selection = target::select(&section.targets, all.iter().map(|site| site.path.as_ref()))?;
    let mut targeted = selection.sites;
    let paths: Vec<String> = targeted.iter().map(|site| site.path.clone()).collect();
    let excluded: Vec<TargetPattern> = patterns("adapter.exclude", section.exclude.iter(), &paths)?;
    targeted.retain(|site| !excluded.iter().any(|pattern| pattern.matches(&site.path)));
    require_layers(&section.layers, &targeted.iter().map(|site| site.path.as_str()).collect::<Vec<_>>())?;
    if !section.layers.is_empty() {
        targeted.retain(|site| layer_of(&site.path).is_none_or(|layer| section.layers.contains(&layer)));
    }
    let mut chosen = ChosenSites::default();
    let method = method(section);
    for site in targeted {
        match (reached(&site.path), &site.origin) {
            (true, _) => chosen.sites.extend(all.iter().find(|own| *own.path == *site.path).cloned()),
            (false, Origin::Preset(_)) => chosen.unused.push(Arc::<str>::from(site.path.as_str())),
            (false, Origin::Pattern(_)) => chosen.unreached.push(site.path),
        }
    }
    if let Some(site) = chosen.sites.iter().find(|site| !method.takes(site.kind)) {
        let (path, method) = (site.path.to_string(), method.name());
        return Err(crate::adapter::AdapterError::NotForSite { path, method }.into());
    }
    let is_without = |site: &Site| !has_bias(config, &site.path);
    if section.bias && !chosen.sites.is_empty() && chosen.sites.iter().all(is_without) {
        let path = chosen.sites[0].path.to_string();
        return Err(crate::adapter::AdapterError::NoBias { path }.into());
    }
    let own: Vec<String> = chosen.sites.iter().map(|site| site.path.to_string()).collect();
    let of_rank = patterns("adapter.rank_pattern", section.rank_pattern.0.iter().map(|(p, _)| p), &own)?;
    let of_alpha = patterns("adapter.alpha_pattern", section.alpha_pattern.0.iter().map(|(p, _)| p), &own)?;
    for site in &chosen.sites {
        if let Some(place) = of_rank.iter().position(|pattern| pattern.matches(&site.path)) {
            chosen.ranks.insert(site.path.clone(), section.rank_pattern.0[place].1 as usize);
        }
        if let Some(place) = of_alpha.iter().position(|pattern| pattern.matches(&site.path)) {
            chosen.alphas.insert(site.path.clone(), section.alpha_pattern.0[place].1);
        } else if section.alpha.is_none()
            && let Some(rank) = chosen.ranks.get(&site.path)
        {
            // The scale that the section gives holds for every rank.
            let rank = *rank as f64;
            let divisor = if section.rslora { rank.sqrt() } else { rank };
            chosen.alphas.insert(site.path.clone(), section.effective_scale() * divisor);
        }
    }
    for site in &chosen.sites {
        let rank = chosen.ranks.get(&site.path).copied().unwrap_or(section.rank as usize);
        let divisor = if section.rslora { (rank as f64).sqrt() } else { rank as f64 };
        let alpha = chosen.alphas.get(&site.path).copied().unwrap_or(section.effective_alpha());
        init(section).require(site, rank, alpha / divisor)?;
    }
    Ok(chosen)
}

/// The method of a section; `sites` are those that it gets.
pub(super) fn method_at(section: &AdapterSection, sites: &[Arc<str>]) -> Method {
    match method(section) {
        Method::Ia3 { .. } => {
            let patterns: Vec<TargetPattern> =
                section.feedforward.iter().filter_map(|text| TargetPattern::parse(text).ok()).collect();
            let is_own = |path: &&Arc<str>| patterns.iter().any(|pattern| pattern.matches(path));
            let own: Vec<String> = sites.iter().filter(is_own).map(ToString::to_string).collect();
            let feedforward = if own.is_empty() { ModuleNames::Nothing } else { ModuleNames::Suffixes(own) };
            Method::Ia3 { feedforward }
        }
        method => method,
    }
}

fn method(section: &AdapterSection) -> Method {
    match section.method {
        AdapterMethod::Lora => Method::Lora { bias: section.bias },
        AdapterMethod::Dora => Method::Dora,
        AdapterMethod::Loha => Method::Loha { effective: false },
        AdapterMethod::Lokr => Method::Lokr {
            decompose_both: section.decompose_both,
            decompose_factor: section.decompose_factor,
            effective: false,
        },
        AdapterMethod::Vera => Method::Vera { d_initial: section.d_initial, projection_seed: section.projection_seed },
        AdapterMethod::Ia3 => Method::Ia3 { feedforward: ModuleNames::Nothing },
    }
}

/// How low-rank pairs of a section begin.
pub(super) fn init(section: &AdapterSection) -> Init {
    match section.init {
        AdapterInit::Kaiming => Init::Kaiming,
        AdapterInit::Gaussian => Init::Gaussian,
        AdapterInit::Pissa => Init::Pissa,
        AdapterInit::Olora => Init::Olora,
        AdapterInit::Eva => Init::Eva { rho: section.eva_rho },
    }
}

/// Patterns, each of which must match one of `paths`.
fn patterns<'a>(
    key: &'static str,
    texts: impl Iterator<Item = &'a String>,
    paths: &[String],
) -> Result<Vec<TargetPattern>> {
    let parsed = texts.map(|text| TargetPattern::parse(text)).collect::<std::result::Result<Vec<_>, _>>()?;
    let idle = |pattern: &&TargetPattern| !paths.iter().any(|path| pattern.matches(path));
    match parsed.iter().find(idle) {
        Some(pattern) => Err(TrainError::IdlePattern { key, pattern: pattern.as_str().to_owned() }.into()),
        None => Ok(parsed),
    }
}

/// The number of the layer that a path lies in.
fn layer_of(path: &str) -> Option<u64> {
    let is_layered = path.starts_with("model.language_model.layers.") || path.contains(".encoder.layers.");
    let (_, rest) = path.split_once(".layers.").filter(|_| is_layered)?;
    rest.split('.').next()?.parse().ok()
}

/// Refuses layers of which no target has one.
fn require_layers(layers: &[u64], paths: &[&str]) -> Result<()> {
    let present: BTreeSet<u64> = paths.iter().filter_map(|path| layer_of(path)).collect();
    match layers.iter().find(|layer| !present.contains(layer)) {
        Some(layer) => Err(TrainError::NoLayer { layer: *layer, last: present.last().copied() }.into()),
        None => Ok(()),
    }
}
