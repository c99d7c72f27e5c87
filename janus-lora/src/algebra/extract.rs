//! An adapter out of two checkpoints: what training changed, as far as factors of a rank hold it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Tensor};
use janus_core::checkpoint::{Checkpoint, EMBED_TOKENS, LM_HEAD};
use janus_core::site::{Site, SiteKind, sites};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::error::AlgebraError;
use super::factors::{Factors, Kind, Rest, check_rank};
use super::folder::NewAdapter;
use crate::adapter::{BaseNote, Init, Method, NewConfig, Note, PeftConfig};
use crate::error::Result;
use crate::status::Status;
use crate::svd::svd_of_matrix;
use crate::target;

/// Tensors of other shapes that are named; the others are counted.
const NAMED: usize = 4;

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Extracted {
    /// Targets that changed, by path.
    pub sites: Vec<ExtractedSite>,
    /// Targets at which both checkpoints are equal: the adapter has nothing there.
    pub unchanged_sites: usize,
    /// Tensors that changed and are no target's weight: the adapter leaves them as the base has them.
    pub changed_outside: Vec<String>,
    /// Share of the squared norm of all targets' changes that is kept.
    pub kept: f64,
}

/// A site of the adapter.
#[derive(Debug, Clone, Serialize)]
pub struct ExtractedSite {
    /// Its native path.
    pub path: String,
    /// Its rank.
    pub rank: usize,
    /// Frobenius norm of the change.
    pub norm: f64,
    /// Share of its square that is kept.
    pub kept: f64,
}

/// What is read and written.
#[derive(Debug)]
pub struct ExtractOptions<'a> {
    /// Rank at every site, or the shorter side of a matrix that has no such rank.
    pub rank: usize,
    /// Presets and patterns, as a recipe has them.
    pub targets: &'a [String],
    /// What the base is called.
    pub base_name: &'a str,
    /// Its fingerprint.
    pub base_fingerprint: String,
}

/// The adapter, of scale 1, that comes nearest to turning `base` into `tuned`. Both factors get the root of each singular value. One
/// tensor of each checkpoint is held at a time.
///
/// # Errors
/// Checkpoints of different shapes, values that are not finite, targets that match nothing or where nothing changed, a rank that
/// no site can have, or a file that cannot be read.
pub fn extract(
    base: &Checkpoint,
    tuned: &Checkpoint,
    options: &ExtractOptions<'_>,
    status: &dyn Status,
) -> Result<(NewAdapter, Extracted)> {
    require_same_model(base, tuned)?;
    let all_sites = sites(base.config());
    let selected = target::select(options.targets, all_sites.iter().map(|site| &*site.path))?;
    let selected: BTreeSet<String> = selected.sites.into_iter().map(|site| site.path).collect();
    let targets: BTreeMap<Arc<str>, &Site> =
        all_sites.iter().filter(|site| selected.contains(&*site.path)).map(|site| (site.path.clone(), site)).collect();
    check_rank(options.rank, targets.values().map(|site| sides(site)))?;

    // A head that only one of them stores is held against the table that the other has for it.
    let names: BTreeSet<&str> = base.tensors().chain(tuned.tensors()).map(|tensor| tensor.name.as_str()).collect();
    let bar = status.items("comparing", names.len() as u64);
    let (mut sites, mut told, mut changed_outside) = (BTreeMap::new(), Vec::new(), Vec::new());
    let (mut seen, mut energy, mut kept) = (0, 0.0, 0.0);
    for name in names {
        bar.message(name);
        let difference = (tuned.read(name, DType::F32)? - base.read(name, DType::F32)?)?;
        let squares = energy_of(&difference)?;
        if !squares.is_finite() {
            return Err(AlgebraError::NoNumber { tensor: name.to_owned() }.into());
        }
        let target = name.strip_suffix(".weight").and_then(|path| targets.get(path));
        seen += usize::from(target.is_some());
        match target {
            Some(site) if squares > 0.0 => {
                let (factors, held) = truncate(site, &difference, options.rank)?;
                let path = site.path.to_string();
                let share = (held / squares).min(1.0);
                told.push(ExtractedSite {
                    path: path.clone(),
                    rank: factors.rank(),
                    norm: squares.sqrt(),
                    kept: share,
                });
                sites.insert(path, factors);
                energy += squares;
                kept += share * squares;
            }
            None if squares > 0.0 => changed_outside.push(name.to_owned()),
            _ => {}
        }
        bar.advance(1);
    }
    bar.finish();
    if sites.is_empty() {
        return Err(AlgebraError::NothingChanged { sites: targets.len(), outside: changed_outside.len() }.into());
    }
    let unchanged_sites = seen - sites.len();
    let adapter = new_adapter(sites, options)?;
    adapter.require_finite("the checkpoints differ by too much for f32")?;
    Ok((adapter, Extracted { sites: told, unchanged_sites, changed_outside, kept: kept / energy }))
}

/// Refuses checkpoints whose tensors have other names or shapes; a tied head aside.
fn require_same_model(base: &Checkpoint, tuned: &Checkpoint) -> Result<()> {
    let shapes = |checkpoint: &Checkpoint| -> BTreeMap<String, Vec<usize>> {
        checkpoint.tensors().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect()
    };
    let (mut ours, mut theirs) = (shapes(base), shapes(tuned));
    for (shapes, checkpoint) in [(&mut ours, base), (&mut theirs, tuned)] {
        if let Some(table) = shapes.get(EMBED_TOKENS).cloned().filter(|_| checkpoint.is_tied()) {
            shapes.entry(LM_HEAD.into()).or_insert(table);
        }
    }
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let shape = |shape: Option<&Vec<usize>>| shape.map_or("absent".to_owned(), |shape| format!("{shape:?}"));
    let differing: Vec<String> = names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| {
            format!("`{name}` is {} in the base, {} in the other", shape(ours.get(name)), shape(theirs.get(name)))
        })
        .collect();
    let more = differing.len().saturating_sub(NAMED);
    let mut differences: Vec<String> = differing.into_iter().take(NAMED).collect();
    if more > 0 {
        differences.push(format!("and {more} more"));
    }
    if differences.is_empty() { Ok(()) } else { Err(AlgebraError::Checkpoints { differences }.into()) }
}

/// Rows and columns of a site's B·A.
fn sides(site: &Site) -> (usize, usize) {
    match site.kind {
        SiteKind::Linear | SiteKind::Embedding => (site.output, site.input),
        SiteKind::Conv2d { kernel, .. } => (site.output, site.input * kernel * kernel),
    }
}

/// The factors of a change, and what of its squared norm they hold.
fn truncate(site: &Site, difference: &Tensor, rank: usize) -> Result<(Factors, f64)> {
    let (kind, matrix) = match site.kind {
        SiteKind::Linear => (Kind::Linear, difference.clone()),
        SiteKind::Conv2d { .. } => (Kind::Convolution, difference.flatten_from(1)?),
        SiteKind::Embedding => (Kind::Embedding, difference.t()?.contiguous()?),
    };
    let (rows, columns) = matrix.dims2()?;
    let rank = rank.min(rows).min(columns);
    let svd = svd_of_matrix(&matrix, rank)?;
    let shape = match kind {
        Kind::Convolution => difference.dims().to_vec(),
        Kind::Linear | Kind::Embedding => vec![rows, columns],
    };
    let factors = Factors::from_svd(kind, &shape, &svd, rank, 0.5, Rest::Fresh { site: &site.path })?;
    Ok((factors, svd.energy(rank)))
}

/// Sum of the squares, in f64.
fn energy_of(tensor: &Tensor) -> candle_core::Result<f64> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    Ok(values.iter().map(|value| f64::from(*value).powi(2)).sum())
}

fn new_adapter(sites: BTreeMap<String, Factors>, options: &ExtractOptions<'_>) -> Result<NewAdapter> {
    let targets: Vec<String> = sites.keys().cloned().collect();
    let config = PeftConfig::new(&NewConfig {
        method: &Method::Lora { bias: false },
        rank: options.rank,
        alpha: options.rank as f64,
        rslora: false,
        dropout: 0.0,
        init: Init::Kaiming,
        targets: &targets,
        ranks: &[],
        alphas: &[],
        modules_to_save: &[],
        base_name: Some(options.base_name),
    })?;
    let json: Map<String, Value> = serde_json::from_str(&config.to_json()).expect("a configuration is an object");
    let mut note = Note::new();
    note.base =
        Some(BaseNote { name: Some(options.base_name.to_owned()), fingerprint: options.base_fingerprint.clone() });
    note.other.insert("extracted".into(), json!({ "rank": options.rank, "targets": options.targets }));
    Ok(NewAdapter { json, sites, copies: BTreeMap::new(), modules_to_save: Vec::new(), extras_of: None, note })
}
