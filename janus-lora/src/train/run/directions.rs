//! What the sites of a run see over its own rows before its first step: directions that pairs begin with.
//!
//! Rows come as the run's steps will take them, in the same order; nothing is moved. A site's inputs go into the sum as they
//! pass by, so that no more than those of one site are held at a time, and sites with one input share a sum.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor, TensorId};
use janus_core::Janus;
use janus_core::pass::Pass;
use janus_core::site::{BaseView, Intercept};

use super::super::feeder::Feeder;
use super::super::stages::{Opened, Stage};
use super::super::{TrainError, signals};
use super::Prepared;
use crate::adapter::init::eva::{Candidate, Directions, ranks};
use crate::adapter::{Adapter, AdapterSpec};
use crate::allocator;
use crate::base::Base;
use crate::culprit::blame_base;
use crate::error::Result;
use crate::heads::Heads;
use crate::status::Status;

/// Steps' batches that are looked at; after so many, directions are taken as they are.
const MOST_STEPS: usize = 100;
/// Rows of an input that are taken, evenly spread, at most.
const MOST_ROWS: usize = 2048;

/// Directions of sites by path.
pub(super) type Found = BTreeMap<Arc<str>, Arc<Directions>>;

/// Sees the inputs of sites.
#[derive(Debug, Default)]
struct Watch {
    /// Whether it only looks which sites have one input.
    is_first: bool,
    /// Inputs of the present batch, with the first site of each.
    inputs: Vec<(TensorId, Arc<str>)>,
    /// The site whose input a site shares, perhaps itself.
    leaders: BTreeMap<Arc<str>, Arc<str>>,
    /// Those of leaders.
    directions: BTreeMap<Arc<str>, Directions>,
    /// Leaders whose directions no longer turn.
    settled: BTreeSet<Arc<str>>,
    /// The most directions of each site.
    most: BTreeMap<Arc<str>, usize>,
}

impl Watch {
    fn see(&mut self, path: &Arc<str>, x: &Tensor) -> candle_core::Result<()> {
        if self.is_first {
            let first = self.inputs.iter().find(|(id, _)| *id == x.id()).map(|(_, first)| first.clone());
            if first.is_none() {
                self.inputs.push((x.id(), path.clone()));
            }
            self.leaders.entry(path.clone()).or_insert_with(|| first.unwrap_or_else(|| path.clone()));
            return Ok(());
        }
        let leader = self.leaders.entry(path.clone()).or_insert_with(|| path.clone());
        if leader != path || self.settled.contains(path) {
            return Ok(());
        }
        let width = x.dim(x.rank() - 1)?;
        let wanted =
            self.leaders.iter().filter(|(_, leader)| *leader == path).filter_map(|(own, _)| self.most.get(own));
        let wanted = wanted.max().copied().unwrap_or(0).min(width);
        let own = self.directions.entry(path.clone()).or_insert_with(|| Directions::new(wanted, width));
        own.add(&spread(&x.detach().reshape(((), width))?)?)
    }

    /// The sites' ranks as things stand, and which directions are settled by that.
    fn judge(&mut self, adapter: &Adapter, sites: &[Arc<str>]) -> BTreeMap<Arc<str>, usize> {
        let of = |path: &Arc<str>| self.leaders.get(path).and_then(|leader| self.directions.get(leader));
        let candidate = |path: &Arc<str>| Candidate {
            path: path.clone(),
            rank: adapter.sites.get(path).map_or(0, |site| site.rank),
            most: self.most.get(path).copied().unwrap_or(0),
            explained: of(path).map(Directions::explained).unwrap_or_default(),
        };
        let ranks = ranks(&sites.iter().map(candidate).collect::<Vec<_>>());
        let needed = |leader: &Arc<str>| {
            let own = self.leaders.iter().filter(|(_, other)| *other == leader);
            own.filter_map(|(path, _)| ranks.get(path)).max().copied().unwrap_or(0)
        };
        let settled = self.directions.iter().filter(|(leader, own)| own.are_found(needed(leader)));
        self.settled = settled.map(|(leader, _)| leader.clone()).collect();
        ranks
    }

    fn has_seen(&self, path: &Arc<str>) -> bool {
        self.leaders.get(path).is_some_and(|leader| self.directions.contains_key(leader))
    }

    fn settled_sites(&self, sites: &[Arc<str>]) -> usize {
        let is_settled = |path: &&Arc<str>| self.leaders.get(*path).is_some_and(|leader| self.settled.contains(leader));
        sites.iter().filter(is_settled).count()
    }
}

/// Stands before one site.
#[derive(Debug)]
struct Witness(Arc<Mutex<Watch>>);

impl Intercept for Witness {
    fn apply(&self, _pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> janus_core::Result<Tensor> {
        locked(&self.0).see(&base.site().path, x)?;
        base.forward(x)
    }
}

fn locked(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No more rows than are taken, evenly spread.
fn spread(rows: &Tensor) -> candle_core::Result<Tensor> {
    let count = rows.dim(0)?;
    if count <= MOST_ROWS {
        return Ok(rows.clone());
    }
    let places: Vec<u32> = (0..MOST_ROWS).map(|place| (place * count / MOST_ROWS) as u32).collect();
    rows.contiguous()?.index_select(&Tensor::from_vec(places, MOST_ROWS, rows.device())?, 0)
}

/// The directions of all sites, and the form of the adapter with the ranks that follow from them: sites without a rank are gone,
/// and numerators of scales go with ranks, so that every scale stays. `drawn` is the adapter without such a beginning.
pub(super) fn directions(
    prepared: &Prepared,
    mut spec: AdapterSpec,
    drawn: &Adapter,
    device: &Device,
    status: &dyn Status,
) -> Result<(AdapterSpec, Found)> {
    let mut found = Found::new();
    let mut all_ranks = BTreeMap::new();
    for (number, stage) in prepared.stages.iter().enumerate() {
        let is_new = |path: &&Arc<str>| !all_ranks.contains_key(*path);
        let sites: Vec<Arc<str>> = stage.plan.sites.iter().filter(is_new).cloned().collect();
        if sites.is_empty() {
            continue;
        }
        let opened = stage.open(number, prepared.base.clone(), drawn.clone(), device, status)?;
        let (watch, ranks) = watched(stage, number, &opened, drawn, &sites, &spec, status)?;
        let mut directions: BTreeMap<Arc<str>, Arc<Directions>> =
            watch.directions.into_iter().map(|(path, own)| (path, Arc::new(own))).collect();
        for (path, leader) in &watch.leaders {
            if let Some(own) = directions.get(leader).cloned() {
                directions.insert(path.clone(), own);
            }
        }
        found.extend(directions);
        all_ranks.extend(ranks);
        drop(opened);
        allocator::give_back();
    }
    // A stage of which no site came first would train nothing: its sites keep their ranks.
    for stage in &prepared.stages {
        let sites = &stage.plan.sites;
        if sites.iter().all(|path| all_ranks.get(path) == Some(&0)) {
            all_ranks.extend(sites.iter().filter_map(|path| Some((path.clone(), drawn.sites.get(path)?.rank))));
        }
    }
    for (path, rank) in &all_ranks {
        let Some(site) = drawn.sites.get(path) else { continue };
        if *rank == 0 {
            spec.sites.retain(|site| site != path);
            spec.ranks.remove(path);
            spec.alphas.remove(path);
        } else if *rank != site.rank {
            spec.ranks.insert(path.clone(), *rank);
            spec.alphas.insert(path.clone(), site.alpha * *rank as f64 / site.rank as f64);
        }
    }
    let (least, most) = (all_ranks.values().min().unwrap_or(&0), all_ranks.values().max().unwrap_or(&0));
    let without = all_ranks.values().filter(|rank| **rank == 0).count();
    if least != most {
        status.note(&format!("by what sites see, their ranks are from {least} to {most}; {without} have none"));
    }
    Ok((spec, found))
}

/// Looks at batches of a stage until the directions of its sites are found.
fn watched(
    stage: &Stage,
    number: usize,
    opened: &Opened,
    drawn: &Adapter,
    sites: &[Arc<str>],
    spec: &AdapterSpec,
    status: &dyn Status,
) -> Result<(Watch, BTreeMap<Arc<str>, usize>)> {
    let Opened { base, model, stepper } = opened;
    let most = drawn.sites.values().map(|own| (own.site.path.clone(), spec.init.most_of(own.rank).min(own.site.input)));
    let watch = Arc::new(Mutex::new(Watch { is_first: true, most: most.collect(), ..Watch::default() }));
    for projection in sites.iter().filter_map(|path| model.projections().get(path)) {
        projection.intercept(Some(Arc::new(Witness(watch.clone()))));
    }
    let bar = status.items("directions of inputs", sites.len() as u64);
    let mut feeder = Feeder::new(&stage.recipe, &stage.tables, number)?;
    let mut ranks = BTreeMap::new();
    let look = |heads: &Heads| -> Result<()> {
        for step in 0..=MOST_STEPS {
            signals::check()?;
            forward(&mut feeder, base, model, heads)?;
            let mut watch = locked(&watch);
            watch.inputs.clear();
            if watch.is_first {
                watch.is_first = false;
                continue;
            }
            if let Some((path, _)) = watch.directions.iter().find(|(_, own)| !own.is_finite()) {
                let names: Vec<&str> = stage.recipe.data.iter().map(|own| own.name.as_str()).collect();
                let (table, what) = (names.join("`, `"), format!("the input of `{path}` is not finite"));
                return Err(blame_base(
                    TrainError::NotFinite { table, what, step: u64::MAX, batch: None }.into(),
                    base,
                ));
            }
            ranks = watch.judge(drawn, sites);
            let settled = watch.settled_sites(sites);
            bar.set(settled as u64, sites.len() as u64);
            bar.message(&format!("batch {step}"));
            if settled == sites.len() {
                break;
            }
            if step == MOST_STEPS {
                let (all, unseen) = (sites.len(), sites.iter().filter(|path| !watch.has_seen(path)).count());
                let turning = all - settled - unseen;
                let batches = format!("after the batches of {MOST_STEPS} steps");
                if turning > 0 {
                    status.warn(&format!(
                        "{batches} the directions of {turning} of {all} sites still turn: they begin as they are"
                    ));
                }
                if unseen > 0 {
                    status
                        .warn(&format!("{batches} {unseen} of {all} sites saw no input: they begin as with `kaiming`"));
                }
            }
        }
        Ok(())
    };
    let looked = stepper.trainables.untracked(model, look);
    bar.finish();
    for projection in sites.iter().filter_map(|path| model.projections().get(path)) {
        projection.intercept(None);
    }
    looked?;
    let watch = std::mem::take(&mut *locked(&watch));
    Ok((watch, ranks))
}

fn forward(feeder: &mut Feeder, base: &Base, model: &Janus, heads: &Heads) -> Result<()> {
    for batch in feeder.next(base, model)?.0 {
        batch.batch.loss(model, &Pass::inference(), heads)?;
    }
    Ok(())
}
