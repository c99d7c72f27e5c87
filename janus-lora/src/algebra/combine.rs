//! One adapter out of several: what PEFT's `add_weighted_adapter` makes of them.
//! Source: PEFT 0.21.2, `tuners/lora/model.py`.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use janus_core::noise;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::error::AlgebraError;
use super::factors::{Factors, Product, Rest, check_rank};
use super::folder::{AdapterFolder, NewAdapter};
use super::rules::{MajoritySign, Prune, Rule};
use crate::adapter::{ModuleNames, Note};
use crate::error::Result;
use crate::status::Bar;
use crate::svd::{Svd, svd_of_matrix, svd_of_product};

/// Values of a result that no configuration has to account for: 256 MB.
const FREE_VALUES: usize = 1 << 26;
/// How many times more values than the adapters together a result may have beyond those, at a rank that their configurations name.
const MOST_GROWTH: usize = 64;
/// Values of a shift that is formed whole: twice the largest weight of a Janus.
const MOST_SHIFT_VALUES: usize = 1 << 30;

/// How adapters are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Factors are summed, A with A and B with B.
    Linear,
    /// Factors stand beside each other: the sum of the shifts, exactly, at the sum of the ranks.
    Cat,
    /// The sum of the shifts, truncated.
    Svd,
    /// [`Method::Linear`], of pruned values whose signs agree.
    Ties,
    /// The same of the shifts, truncated.
    TiesSvd,
    /// [`Method::Linear`], of values drawn at random.
    DareLinear,
    /// [`Method::Ties`], of values drawn at random.
    DareTies,
    /// [`Method::DareLinear`] of the shifts, truncated.
    DareLinearSvd,
    /// [`Method::DareTies`] of the shifts, truncated.
    DareTiesSvd,
    /// [`Method::Linear`], of pruned values.
    MagnitudePrune,
    /// The same of the shifts, truncated.
    MagnitudePruneSvd,
}

impl Method {
    /// Every method, by its name on the command line.
    pub const ALL: [(&str, Method); 11] = [
        ("linear", Method::Linear),
        ("cat", Method::Cat),
        ("svd", Method::Svd),
        ("ties", Method::Ties),
        ("ties_svd", Method::TiesSvd),
        ("dare_linear", Method::DareLinear),
        ("dare_ties", Method::DareTies),
        ("dare_linear_svd", Method::DareLinearSvd),
        ("dare_ties_svd", Method::DareTiesSvd),
        ("magnitude_prune", Method::MagnitudePrune),
        ("magnitude_prune_svd", Method::MagnitudePruneSvd),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, method)| *method == self).map_or("linear", |(name, _)| name)
    }

    /// The method of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, method)| *method)
    }

    /// Whether shifts are combined and truncated, not factors.
    pub fn truncates(self) -> bool {
        self.name().ends_with("svd")
    }

    /// Whether it leaves values out.
    pub fn prunes(self) -> bool {
        !matches!(self, Method::Linear | Method::Cat | Method::Svd)
    }

    /// Whether it draws at random.
    pub fn draws(self) -> bool {
        self.name().starts_with("dare")
    }

    /// Whether signs are agreed upon.
    pub fn elects(self) -> bool {
        self.name().contains("ties")
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct CombineOptions {
    /// How.
    pub method: Method,
    /// Rank of the result, where the method truncates; the greatest of the adapters' where absent.
    pub rank: Option<usize>,
    /// Share of values that is kept, in (0, 1], where the method prunes.
    pub density: Option<f64>,
    /// Which sign counts, where signs are agreed upon.
    pub majority: MajoritySign,
    /// What random values are drawn with.
    pub seed: u64,
}

/// One adapter out of several with a weight each, which may be negative. Its scale is 1; it has the sites of all of them.
///
/// A single adapter is scaled, whatever the method. The copies of parameters (`modules_to_save`) are taken over as they are.
///
/// # Errors
/// Adapters of different bases, or whose targets, ranks or shapes do not fit; parts that there is no sum of; options that do not
/// fit the method; a result that f32 does not hold.
pub fn combine(adapters: &[(AdapterFolder, f64)], options: &CombineOptions, bar: &dyn Bar) -> Result<NewAdapter> {
    let rule = check_options(options)?;
    for (adapter, weight) in adapters {
        check_alone(adapter, *weight)?;
    }
    for (number, (adapter, _)) in adapters.iter().enumerate() {
        for (before, _) in adapters.iter().take(number) {
            check_beside(before, adapter)?;
        }
    }
    // PEFT, too, only scales where there is nothing to combine with.
    let method = if adapters.len() == 1 { Method::Linear } else { options.method };
    let rule = if adapters.len() == 1 { Rule { prune: Prune::Nothing, elect: None } } else { rule };
    if let ([_], Some(rank)) = (adapters, options.rank) {
        return Err(AlgebraError::RankOfOne { rank }.into());
    }
    if let Some(rank) = options.rank {
        check_rank(rank, adapters.iter().flat_map(|(adapter, _)| adapter.sites.values()).map(Factors::sides))?;
    }
    let rank = rank_of_result(adapters, method, options.rank)?;
    check_room(adapters, method, rank, options.rank.is_some())?;
    let paths: BTreeSet<&String> = adapters.iter().flat_map(|(adapter, _)| adapter.sites.keys()).collect();
    let one = |path: &String| -> Result<(String, Factors)> {
        let there: Vec<(&Factors, f64)> =
            adapters.iter().filter_map(|(adapter, weight)| Some((adapter.sites.get(path)?, *weight))).collect();
        let key = noise::combine(options.seed, noise::key_of(path));
        let factors = match method {
            Method::Cat => beside_each_other(&there, rank),
            Method::Svd => truncated_sum(&there, rank),
            method if method.truncates() => truncated_rule(&there, &rule, rank, key),
            _ => by_factor(&there, &rule, key),
        }?;
        bar.advance(1);
        Ok((path.clone(), factors))
    };
    // Whole shifts are large, and their products are computed by all threads.
    let sites: Result<BTreeMap<String, Factors>> = match method.truncates() && method != Method::Svd {
        true => paths.into_iter().map(one).collect(),
        false => paths.into_par_iter().map(one).collect(),
    };
    let adapter = put_together(adapters, sites?, options, method);
    adapter.require_finite("the weights are too large for f32")?;
    Ok(adapter)
}

fn check_options(options: &CombineOptions) -> Result<Rule> {
    let method = options.method;
    let name = method.name();
    let density = match options.density {
        None if method.prunes() => return Err(AlgebraError::Needs { method: name, option: "--density" }.into()),
        Some(_) if !method.prunes() => return Err(AlgebraError::Idle { method: name, option: "--density" }.into()),
        Some(density) if !(density > 0.0 && density <= 1.0) => {
            let (value, expected) = (density.to_string(), "a share above 0 and at most 1");
            return Err(AlgebraError::Range { option: "--density", value, expected }.into());
        }
        density => density.unwrap_or(1.0),
    };
    match options.rank {
        Some(_) if !method.truncates() => return Err(AlgebraError::Idle { method: name, option: "--rank" }.into()),
        _ => {}
    }
    let prune = match method {
        _ if !method.prunes() => Prune::Nothing,
        _ if method.draws() => Prune::Random { density },
        _ => Prune::Magnitude { density },
    };
    Ok(Rule { prune, elect: method.elects().then_some(options.majority) })
}

fn check_alone(adapter: &AdapterFolder, weight: f64) -> Result<()> {
    let folder = adapter.path.clone();
    if !weight.is_finite() {
        let (value, expected) = (weight.to_string(), "a finite number");
        return Err(AlgebraError::Range { option: "weight", value, expected }.into());
    }
    let parts = adapter.parts()?;
    if !parts.is_empty() {
        return Err(AlgebraError::Extras { folder, parts }.into());
    }
    if adapter.sites.is_empty() {
        return Err(AlgebraError::NoPairs { folder }.into());
    }
    Ok(())
}

/// What two adapters must have in common.
fn check_beside(first: &AdapterFolder, second: &AdapterFolder) -> Result<()> {
    let (one, other) = (first.path.clone(), second.path.clone());
    if let (Some(first_base), Some(second_base)) = (first.base_fingerprint(), second.base_fingerprint())
        && first_base != second_base
    {
        return Err(AlgebraError::Bases { first: one, first_base, second: other, second_base }.into());
    }
    for (site, factors) in &first.sites {
        let Some(others) = second.sites.get(site) else { continue };
        if factors.shape() != others.shape() || factors.kind != others.kind {
            let (first_shape, second_shape) = (factors.shape(), others.shape());
            let site = site.clone();
            return Err(AlgebraError::SiteShape { site, first: one, first_shape, second: other, second_shape }.into());
        }
    }
    let is_list = |adapter: &AdapterFolder| !matches!(adapter.config.targets, ModuleNames::Expression(_));
    match (is_list(first), is_list(second)) {
        (true, false) => return Err(AlgebraError::TargetKinds { list: one, expression: other }.into()),
        (false, true) => return Err(AlgebraError::TargetKinds { list: other, expression: one }.into()),
        _ => {}
    }
    if let Some(parameter) = first.copies.keys().find(|name| second.copies.contains_key(*name)) {
        return Err(AlgebraError::SharedCopy { first: one, second: other, parameter: parameter.clone() }.into());
    }
    for (pair, copy) in [(first, second), (second, first)] {
        let is_copied = |site: &&String| copy.copies.keys().any(|name| is_within(name, site));
        if let Some(site) = pair.sites.keys().find(is_copied) {
            let (pair, copy) = (pair.path.clone(), copy.path.clone());
            return Err(AlgebraError::PairAndCopy { pair, copy, site: site.clone() }.into());
        }
    }
    Ok(())
}

fn is_within(parameter: &str, module: &str) -> bool {
    parameter.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
}

/// The rank of the result; of a method that sums factors, also at each site.
fn rank_of_result(adapters: &[(AdapterFolder, f64)], method: Method, asked: Option<usize>) -> Result<usize> {
    // As PEFT counts it: the greatest that a site may have.
    let rank_of = |adapter: &AdapterFolder| {
        let patterns = adapter.config.rank_patterns.iter().map(|(_, rank)| *rank);
        patterns.chain([adapter.config.rank]).max().unwrap_or(1)
    };
    let ranks = || adapters.iter().map(|(adapter, _)| rank_of(adapter));
    let largest = ranks().max().unwrap_or(1);
    if method == Method::Cat {
        return Ok(ranks().sum());
    }
    if method.truncates() {
        return Ok(asked.unwrap_or(largest));
    }
    let differing = |first: &AdapterFolder, first_rank, second: &AdapterFolder, second_rank, site| {
        let (first, second) = (first.path.clone(), second.path.clone());
        AlgebraError::Ranks { method: method.name(), first, first_rank, second, second_rank, site }
    };
    let Some(((first, _), others)) = adapters.split_first() else { return Ok(largest) };
    for (other, _) in others {
        if rank_of(first) != rank_of(other) {
            return Err(differing(first, rank_of(first), other, rank_of(other), None).into());
        }
    }
    for (number, (adapter, _)) in adapters.iter().enumerate() {
        for (site, factors) in &adapter.sites {
            let before = adapters.iter().take(number).find_map(|(before, _)| Some((before, before.sites.get(site)?)));
            if let Some((before, known)) = before.filter(|(_, known)| known.rank() != factors.rank()) {
                return Err(differing(before, known.rank(), adapter, factors.rank(), Some(site.clone())).into());
            }
        }
    }
    Ok(largest)
}

/// Refuses what small files ask much room for: a rank that a configuration names and no site has, and sides whose product is no
/// weight of a model.
fn check_room(adapters: &[(AdapterFolder, f64)], method: Method, rank: usize, is_asked: bool) -> Result<()> {
    let all = || adapters.iter().flat_map(|(adapter, _)| &adapter.sites);
    if method.truncates() && method != Method::Svd {
        for (site, factors) in all() {
            let (rows, columns) = factors.sides();
            if rows.saturating_mul(columns) > MOST_SHIFT_VALUES {
                let (method, site) = (method.name(), site.clone());
                return Err(AlgebraError::WholeShift { method, site, rows, columns }.into());
            }
        }
    }
    if is_asked || !(method == Method::Cat || method.truncates()) {
        return Ok(());
    }
    let side = |factors: &Factors| factors.sides().0.saturating_add(factors.sides().1);
    let given = all().map(|(_, factors)| factors.a.elem_count().saturating_add(factors.b.elem_count()));
    let given = given.fold(0, usize::saturating_add);
    // A site of several adapters is as large in each.
    let sides = all().map(|(site, factors)| (site, side(factors))).collect::<BTreeMap<_, _>>();
    let values = sides.into_values().fold(0, usize::saturating_add).saturating_mul(rank);
    if values > given.saturating_mul(MOST_GROWTH).max(FREE_VALUES) {
        return Err(AlgebraError::ClaimedRank { rank, values, given }.into());
    }
    Ok(())
}

/// A rule over A and over B, with the root of the weight on each and its sign on A.
fn by_factor(there: &[(&Factors, f64)], rule: &Rule, key: u64) -> Result<Factors> {
    let weights: Vec<f64> = there.iter().map(|(factors, weight)| weight * factors.scale).collect();
    let halves =
        |half: fn(&Factors) -> &Tensor| there.iter().map(move |(factors, _)| half(factors)).collect::<Vec<_>>();
    let merged = |tensors: Vec<&Tensor>, weights: Vec<f32>, key: u64| -> candle_core::Result<Tensor> {
        let shape = first_shape(&tensors);
        let values = tensors.iter().map(|t| t.flatten_all()?.to_vec1()).collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::from_vec(rule.apply(values, &weights, key), shape, &Device::Cpu)
    };
    let on_a = weights.iter().map(|weight| (weight.abs().sqrt() * weight.signum()) as f32).collect();
    let on_b = weights.iter().map(|weight| weight.abs().sqrt() as f32).collect();
    let a = merged(halves(|factors| &factors.a), on_a, noise::combine(key, 0))?;
    let b = merged(halves(|factors| &factors.b), on_b, noise::combine(key, 1))?;
    Ok(Factors { kind: first(there).kind, a, b, scale: 1.0 })
}

fn first<'a>(there: &[(&'a Factors, f64)]) -> &'a Factors {
    there.first().expect("every site is some adapter's").0
}

fn first_shape(tensors: &[&Tensor]) -> Vec<usize> {
    tensors.first().map(|tensor| tensor.dims().to_vec()).unwrap_or_default()
}

/// All A below each other with the weight on them, all B beside each other, zeros up to the rank.
fn beside_each_other(there: &[(&Factors, f64)], rank: usize) -> Result<Factors> {
    let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
    for (factors, weight) in there {
        all_a.push((&factors.a * (weight * factors.scale))?);
        all_b.push(factors.b.clone());
    }
    let (a, b) = (Tensor::cat(&all_a, 0)?, Tensor::cat(&all_b, 1)?);
    let room = rank.saturating_sub(a.dims().first().copied().unwrap_or(0));
    let (a, b) = (a.pad_with_zeros(0, 0, room)?, b.pad_with_zeros(1, 0, room)?);
    Ok(Factors { kind: first(there).kind, a, b, scale: 1.0 })
}

/// The sum of the shifts, which is itself a product of thin factors.
fn truncated_sum(there: &[(&Factors, f64)], rank: usize) -> Result<Factors> {
    let mut sum = Product::default();
    for (factors, weight) in there {
        sum = sum.and(factors.product(*weight)?);
    }
    truncated(there, &svd_of_product(sum.left, sum.right), rank)
}

/// A rule over the shifts themselves.
fn truncated_rule(there: &[(&Factors, f64)], rule: &Rule, rank: usize, key: u64) -> Result<Factors> {
    let (mut shifts, mut weights, mut sides) = (Vec::new(), Vec::new(), (0, 0));
    for (factors, weight) in there {
        let shift = (factors.b.flatten_from(1)?.matmul(&factors.a.flatten_from(1)?)? * factors.scale)?;
        sides = shift.dims2()?;
        shifts.push(shift.flatten_all()?.to_vec1()?);
        weights.push(*weight as f32);
    }
    let matrix = Tensor::from_vec(rule.apply(shifts, &weights, key), sides, &Device::Cpu)?;
    truncated(there, &svd_of_matrix(&matrix, rank)?, rank)
}

/// As PEFT splits it: the singular values are B's.
fn truncated(there: &[(&Factors, f64)], svd: &Svd, rank: usize) -> Result<Factors> {
    let first = first(there);
    Ok(Factors::from_svd(first.kind, &first.shape(), svd, rank, 1.0, Rest::Zero)?)
}

/// The adapter of these sites, with what all of them say.
fn put_together(
    adapters: &[(AdapterFolder, f64)],
    sites: BTreeMap<String, Factors>,
    options: &CombineOptions,
    method: Method,
) -> NewAdapter {
    let mut note = Note::new();
    // They have been compared: all that say a base say the same.
    let bases = adapters.iter().map(|(adapter, _)| adapter.note.as_ref()?.base.clone());
    note.base = bases.collect::<Option<Vec<_>>>().and_then(|bases| bases.into_iter().next());
    let from: Vec<Value> = adapters
        .iter()
        .map(|(adapter, weight)| {
            let name = adapter.path.file_name().map(|name| name.to_string_lossy().into_owned());
            json!({ "adapter": name, "weight": weight })
        })
        .collect();
    let mut told = Map::from_iter([("method".into(), json!(method.name())), ("from".into(), json!(from))]);
    if method.prunes() {
        told.insert("density".into(), json!(options.density));
    }
    if method.draws() {
        told.insert("seed".into(), json!(options.seed));
    }
    note.other.insert("combined".into(), Value::Object(told));
    let copies = adapters.iter().flat_map(|(adapter, _)| adapter.copies.clone()).collect();
    let saved: BTreeSet<String> =
        adapters.iter().flat_map(|(adapter, _)| adapter.config.modules_to_save.clone()).collect();
    let json = adapters.first().map(|(adapter, _)| adapter.json.clone()).unwrap_or_default();
    NewAdapter { json, sites, copies, modules_to_save: saved.into_iter().collect(), extras_of: None, note }
}

#[cfg(test)]
#[path = "combine_tests.rs"]
mod tests;
