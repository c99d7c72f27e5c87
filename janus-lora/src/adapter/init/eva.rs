//! Pairs that begin with what their sites see (EVA; Paischer et al., arXiv:2410.07170): A has the right singular vectors of a
//! site's inputs over the run's own rows, and ranks go where they explain most.
//! Source of the rules: PEFT 0.21.2, `tuners/lora/eva.py` and `utils/incremental_pca.py`.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use crate::svd::{Lines, leading, lines_of, tensor_of};

/// Cosine between a direction and what it was before the last inputs, from which on it counts as found.
pub(crate) const FOUND: f64 = 0.99;

/// The greatest singular values and right singular vectors of a site's inputs less their mean, whose rows come one after
/// the other: what is kept of those before is as many lines as are wanted.
#[derive(Debug)]
pub(crate) struct Directions {
    wanted: usize,
    width: usize,
    rows: usize,
    mean: Vec<f64>,
    /// Sum over all rows of the squares of what is left of the mean.
    energy: f64,
    values: Vec<f64>,
    lines: Lines,
    /// Cosine of each line with what it was before.
    cosines: Vec<f64>,
}

impl Directions {
    /// As many as `wanted` of inputs of `width` features.
    pub(crate) fn new(wanted: usize, width: usize) -> Self {
        let (mean, values, lines, cosines) = (vec![0.0; width], Vec::new(), Vec::new(), Vec::new());
        Self { wanted, width, rows: 0, mean, energy: 0.0, values, lines, cosines }
    }

    /// Takes in more rows, `[rows, width]`.
    pub(crate) fn add(&mut self, rows: &Tensor) -> Result<()> {
        let rows = rows.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let count = rows.dim(0)?;
        if count == 0 {
            return Ok(());
        }
        let values: Vec<f32> = rows.flatten_all()?.to_vec1()?;
        let mut mean = vec![0.0; self.width];
        for row in values.chunks_exact(self.width) {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        mean.iter_mut().for_each(|sum| *sum /= count as f64);
        let mut stacked: Vec<f32> = Vec::with_capacity((self.lines.len() + count + 1) * self.width);
        for (line, value) in self.lines.iter().zip(&self.values) {
            stacked.extend(line.iter().map(|part| (part * value) as f32));
        }
        let mut own = 0.0;
        for row in values.chunks_exact(self.width) {
            stacked.extend(row.iter().zip(&mean).map(|(value, mean)| {
                let left = f64::from(*value) - mean;
                own += left * left;
                left as f32
            }));
        }
        let (before, now) = (self.rows as f64, count as f64);
        // What the two means differ by is a row of its own.
        let share = (before * now / (before + now)).sqrt();
        let apart: Vec<f64> = self.mean.iter().zip(&mean).map(|(was, is)| share * (was - is)).collect();
        self.energy += own + apart.iter().map(|value| value * value).sum::<f64>();
        stacked.extend(apart.iter().map(|value| *value as f32));
        self.mean.iter_mut().zip(&mean).for_each(|(was, is)| *was += (is - *was) * (now / (before + now)));
        self.rows += count;

        let lines = stacked.len() / self.width.max(1);
        let svd = leading(&Tensor::from_vec(stacked, (lines, self.width), &Device::Cpu)?, self.wanted)?;
        let cosine =
            |(one, other): (&Vec<f64>, &Vec<f64>)| one.iter().zip(other).map(|(a, b)| a * b).sum::<f64>().abs();
        self.cosines = svd.right.iter().zip(&self.lines).map(cosine).collect();
        (self.values, self.lines) = (svd.values, svd.right);
        Ok(())
    }

    /// Share of the inputs' energy that each direction explains, the greatest first.
    pub(crate) fn explained(&self) -> Vec<f64> {
        let share = |value: &f64| if self.energy > 0.0 { value * value / self.energy } else { 0.0 };
        self.values.iter().map(share).collect()
    }

    /// Whether all that was seen is finite.
    pub(crate) fn is_finite(&self) -> bool {
        self.energy.is_finite()
    }

    /// Whether the first `rank` directions no longer turn.
    pub(crate) fn are_found(&self, rank: usize) -> bool {
        self.cosines.len() >= rank && self.cosines.iter().take(rank).all(|cosine| *cosine >= FOUND)
    }

    /// The first directions as A, `[rank, width]`; rows of `drawn` where there are fewer.
    pub(crate) fn as_a(&self, drawn: &Tensor) -> Result<Tensor> {
        let rank = drawn.dim(0)?;
        let drawn = lines_of(drawn)?;
        let rows = self.lines.iter().take(rank).chain(drawn.iter().skip(self.lines.len()));
        tensor_of(&rows.cloned().collect(), self.width)
    }
}

/// What each site may have and explains.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// Its path.
    pub(crate) path: Arc<str>,
    /// The rank that the recipe gives it.
    pub(crate) rank: usize,
    /// The most that it may get.
    pub(crate) most: usize,
    /// Share that each direction explains.
    pub(crate) explained: Vec<f64>,
}

/// The ranks of all sites: as many directions as their ranks add up to, those first that explain the greatest share at their site.
/// Sites that saw no input keep theirs.
pub(crate) fn ranks(candidates: &[Candidate]) -> BTreeMap<Arc<str>, usize> {
    let (seen, unseen): (Vec<&Candidate>, Vec<&Candidate>) =
        candidates.iter().partition(|candidate| !candidate.explained.is_empty());
    let budget: usize = seen.iter().map(|candidate| candidate.rank).sum();
    let of_site = |candidate: &&Candidate| -> Vec<(f64, Arc<str>)> {
        // Directions that the inputs do not take explain nothing, and come last.
        let shares = candidate.explained.iter().copied().chain(std::iter::repeat(0.0)).take(candidate.most);
        shares.map(|share| (share, candidate.path.clone())).collect()
    };
    let mut all: Vec<(f64, Arc<str>)> = seen.iter().flat_map(of_site).collect();
    all.sort_by(|one, other| other.0.total_cmp(&one.0));
    let kept = |candidate: &&Candidate| (candidate.path.clone(), candidate.rank);
    let mut ranks: BTreeMap<Arc<str>, usize> = unseen.iter().map(kept).collect();
    ranks.extend(seen.iter().map(|candidate| (candidate.path.clone(), 0)));
    for (_, path) in all.into_iter().take(budget) {
        *ranks.entry(path).or_default() += 1;
    }
    ranks
}

#[cfg(test)]
#[path = "eva_tests.rs"]
mod tests;
