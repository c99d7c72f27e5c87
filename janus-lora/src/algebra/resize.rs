//! An adapter of another rank: at every site the best approximation of B·A.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use super::error::AlgebraError;
use super::factors::{Factors, Product, Rest, check_rank};
use super::folder::{AdapterFolder, NewAdapter};
use crate::error::Result;
use crate::status::Bar;
use crate::svd::{Svd, svd_of_product};

/// How large the new factors are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// This rank at every site.
    Rank(usize),
    /// At every site the least rank that keeps this share of the sum of squared singular values, in (0, 1].
    Variance(f64),
}

/// What became of a site.
#[derive(Debug, Clone, Serialize)]
pub struct Resized {
    /// Its native path.
    pub path: String,
    /// Rank before.
    pub rank_before: usize,
    /// Rank now.
    pub rank: usize,
    /// Share of the shift's squared norm that is kept; 1 of a shift that is zero.
    pub kept: f64,
    /// Squared norm of the shift before.
    #[serde(skip)]
    energy: f64,
}

/// The share of the squared norm of all shifts together that is kept.
pub fn kept_of_all(sites: &[Resized]) -> f64 {
    let all: f64 = sites.iter().map(|site| site.energy).sum();
    if all == 0.0 { 1.0 } else { sites.iter().map(|site| site.kept * site.energy).sum::<f64>() / all }
}

/// The adapter with factors of another size. Every scale stays what it was, alpha being scale · rank, without rslora; both
/// factors get the root of each singular value. Where the rank exceeds that of the shift, the rest is what a new adapter begins
/// with. Copies, dynamic encoder and heads are taken over.
///
/// # Errors
/// A rank that no site can have, a share out of range, an adapter without pairs, or values that f32 does not hold.
pub fn resize(adapter: &AdapterFolder, size: Size, bar: &dyn Bar) -> Result<(NewAdapter, Vec<Resized>)> {
    if adapter.sites.is_empty() {
        return Err(AlgebraError::NoPairs { folder: adapter.path.clone() }.into());
    }
    match size {
        Size::Rank(rank) => check_rank(rank, adapter.sites.values().map(Factors::sides))?,
        Size::Variance(share) if !(share > 0.0 && share <= 1.0) => {
            let (value, expected) = (share.to_string(), "a share above 0 and at most 1");
            return Err(AlgebraError::Range { option: "--variance", value, expected }.into());
        }
        Size::Variance(_) => {}
    }
    let one = |(path, factors): (&String, &Factors)| -> Result<(String, Factors, Resized)> {
        let product = Product::of(&factors.a, &factors.b, 1.0)?;
        let svd = svd_of_product(product.left, product.right);
        let rank = match size {
            Size::Rank(rank) => rank,
            Size::Variance(share) => rank_that_keeps(&svd, share),
        };
        let whole = svd.energy(svd.values.len());
        let kept = if whole == 0.0 { 1.0 } else { svd.energy(rank) / whole };
        let rest = Rest::Fresh { site: path };
        let mut resized = Factors::from_svd(factors.kind, &factors.shape(), &svd, rank, 0.5, rest)?;
        resized.scale = factors.scale;
        bar.advance(1);
        let energy = whole * factors.scale * factors.scale;
        let told = Resized { path: path.clone(), rank_before: factors.rank(), rank, kept, energy };
        Ok((path.clone(), resized, told))
    };
    let done: Vec<(String, Factors, Resized)> = adapter.sites.par_iter().map(one).collect::<Result<_>>()?;
    let (mut sites, mut told) = (BTreeMap::new(), Vec::new());
    for (path, factors, resized) in done {
        sites.insert(path, factors);
        told.push(resized);
    }
    let mut note = adapter.note.clone().unwrap_or_default();
    // They are of the adapter before.
    note.metrics = None;
    let how = match size {
        Size::Rank(rank) => json!({ "rank": rank }),
        Size::Variance(share) => json!({ "variance": share }),
    };
    note.other.insert("resized".into(), how);
    let new = NewAdapter {
        json: adapter.json.clone(),
        sites,
        copies: adapter.copies.clone(),
        modules_to_save: adapter.config.modules_to_save.clone(),
        extras_of: adapter.has_extras.then(|| adapter.path.clone()),
        note,
    };
    new.require_finite("its factors are too large for f32")?;
    Ok((new, told))
}

/// The least rank, at least 1, whose triples hold this share of all energy.
fn rank_that_keeps(svd: &Svd, share: f64) -> usize {
    let whole = svd.energy(svd.values.len());
    // Sums in another order differ in the last digits: with the share 1 nothing may be asked for that is not there.
    let wanted = share * whole * (1.0 - 1e-12);
    (1..=svd.values.len()).find(|rank| svd.energy(*rank) >= wanted).unwrap_or(1)
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
