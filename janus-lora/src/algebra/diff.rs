//! What two adapters differ by.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::AlgebraError;
use super::factors::{Factors, Product};
use super::folder::AdapterFolder;
use crate::adapter::is_inactive;
use crate::error::Result;
use crate::jacobi::dot;
use crate::svd::norm_of_product;

/// Two adapters beside each other.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// Whether they shift the same and nothing else of them differs; how their configurations say it, and what their notes say of
    /// recipe and metrics, does not count.
    pub same: bool,
    /// Every site that one of them has, by path.
    pub sites: Vec<SiteDifference>,
    /// All shifts together.
    pub total: Norms,
    /// Tensors of `modules_to_save` that differ, by name.
    pub modules_to_save: Vec<TensorDifference>,
    /// Tensors of `janus_extras.safetensors` that differ, by name, and `heads` where tasks or labels do.
    pub extras: Vec<TensorDifference>,
    /// Fields of `adapter_config.json` that differ, with both values.
    pub config: BTreeMap<String, [Value; 2]>,
    /// Fingerprints of the bases, where they say them.
    pub base_fingerprints: [Option<String>; 2],
}

/// Norms of two shifts and of their difference.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Norms {
    /// Frobenius norm of the first adapter's shift.
    pub norm_a: f64,
    /// Of the second one's.
    pub norm_b: f64,
    /// Of the difference.
    pub norm_of_difference: f64,
    /// Cosine of the angle between both; absent where one is zero.
    pub cosine: Option<f64>,
}

/// A site.
#[derive(Debug, Clone, Serialize)]
pub struct SiteDifference {
    /// Its native path.
    pub path: String,
    /// Ranks; absent where an adapter has no pair there.
    pub ranks: [Option<usize>; 2],
    /// Norms; of a site that one does not have, its shift is zero.
    #[serde(flatten)]
    pub norms: Norms,
    /// Product of both shifts, value by value.
    #[serde(skip)]
    inner: f64,
}

/// A tensor that differs.
#[derive(Debug, Clone, Serialize)]
pub struct TensorDifference {
    /// Its name.
    pub name: String,
    /// `a` or `b` where only that adapter has it, else `both`.
    pub of: &'static str,
    /// Frobenius norm of the difference, where both have it in one shape.
    pub norm_of_difference: Option<f64>,
}

/// Compares two adapters.
///
/// # Errors
/// Sites of one path and different shapes, or a file that is broken.
pub fn diff(a: &AdapterFolder, b: &AdapterFolder) -> Result<Difference> {
    let paths: BTreeSet<&String> = a.sites.keys().chain(b.sites.keys()).collect();
    let site = |path: &String| -> Result<SiteDifference> {
        let pair = [a.sites.get(path), b.sites.get(path)];
        if let [Some(one), Some(other)] = pair
            && (one.shape() != other.shape() || one.kind != other.kind)
        {
            let (first, second) = (a.path.clone(), b.path.clone());
            let (first_shape, second_shape, site) = (one.shape(), other.shape(), path.clone());
            return Err(AlgebraError::SiteShape { site, first, first_shape, second, second_shape }.into());
        }
        let (norms, inner) = compare(pair)?;
        Ok(SiteDifference { path: path.clone(), ranks: pair.map(|factors| factors.map(Factors::rank)), norms, inner })
    };
    let sites: Vec<SiteDifference> = paths.into_par_iter().map(site).collect::<Result<_>>()?;
    let total = total(&sites);
    let modules_to_save = tensors(&a.copies, &b.copies)?;
    let ((extras_a, heads_a), (extras_b, heads_b)) = (a.extras()?, b.extras()?);
    let mut extras = tensors(&extras_a, &extras_b)?;
    if heads_a != heads_b {
        extras.push(TensorDifference { name: "heads".into(), of: "both", norm_of_difference: None });
    }
    let base_fingerprints = [a.base_fingerprint(), b.base_fingerprint()];
    let other_bases = matches!(&base_fingerprints, [Some(one), Some(other)] if one != other);
    let same = total.norm_of_difference == 0.0 && modules_to_save.is_empty() && extras.is_empty() && !other_bases;
    Ok(Difference { same, sites, total, modules_to_save, extras, config: fields(a, b), base_fingerprints })
}

/// Norms, and the product of both shifts. The difference is decomposed itself: of norms and product of nearly equal shifts nothing
/// but rounding would be left.
fn compare([a, b]: [Option<&Factors>; 2]) -> candle_core::Result<(Norms, f64)> {
    let product = |factors: Option<&Factors>, sign: f64| match factors {
        Some(factors) => factors.product(sign),
        None => Ok(Product::default()),
    };
    let norm = |product: Product| norm_of_product(product.left, product.right);
    let (norm_a, norm_b) = (norm(product(a, 1.0)?), norm(product(b, 1.0)?));
    let is_same = |a: &Factors, b: &Factors| -> candle_core::Result<bool> {
        Ok(a.scale == b.scale && same_values(&a.a, &b.a)? && same_values(&a.b, &b.b)?)
    };
    let equal = match (a, b) {
        (Some(a), Some(b)) => is_same(a, b)?,
        _ => false,
    };
    let norm_of_difference = if equal { 0.0 } else { norm(product(a, 1.0)?.and(product(b, -1.0)?)) };
    let inner = match (a, b) {
        (Some(a), Some(b)) => inner(&a.product(1.0)?, &b.product(1.0)?),
        _ => 0.0,
    };
    Ok((Norms { norm_a, norm_b, norm_of_difference, cosine: cosine(inner, norm_a, norm_b) }, inner))
}

/// Σ over all values of one product times the other: Σᵢⱼ (leftᵢ·leftⱼ)(rightᵢ·rightⱼ).
fn inner(one: &Product, other: &Product) -> f64 {
    let mut sum = 0.0;
    for (left, right) in one.left.iter().zip(&one.right) {
        for (other_left, other_right) in other.left.iter().zip(&other.right) {
            sum += dot(left, other_left) * dot(right, other_right);
        }
    }
    sum
}

fn cosine(inner: f64, norm_a: f64, norm_b: f64) -> Option<f64> {
    let lengths = norm_a * norm_b;
    (lengths > 0.0).then(|| (inner / lengths).clamp(-1.0, 1.0))
}

fn total(sites: &[SiteDifference]) -> Norms {
    let root = |of: fn(&Norms) -> f64| sites.iter().map(|site| of(&site.norms).powi(2)).sum::<f64>().sqrt();
    let (norm_a, norm_b) = (root(|norms| norms.norm_a), root(|norms| norms.norm_b));
    let cosine = cosine(sites.iter().map(|site| site.inner).sum(), norm_a, norm_b);
    Norms { norm_a, norm_b, norm_of_difference: root(|norms| norms.norm_of_difference), cosine }
}

fn same_values(one: &Tensor, other: &Tensor) -> candle_core::Result<bool> {
    Ok(one.dims() == other.dims() && one.flatten_all()?.to_vec1::<f32>()? == other.flatten_all()?.to_vec1::<f32>()?)
}

/// The tensors that differ.
fn tensors(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> Result<Vec<TensorDifference>> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let mut differing = Vec::new();
    for name in names {
        let (of, norm_of_difference) = match (a.get(name), b.get(name)) {
            (Some(one), Some(other)) if same_values(one, other)? => continue,
            (Some(one), Some(other)) if one.dims() == other.dims() => {
                let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
                let pairs = values(one)?.into_iter().zip(values(other)?);
                let squares = pairs.map(|(one, other)| (f64::from(one) - f64::from(other)).powi(2));
                ("both", Some(squares.sum::<f64>().sqrt()))
            }
            (Some(_), None) => ("a", None),
            (None, Some(_)) => ("b", None),
            _ => ("both", None),
        };
        differing.push(TensorDifference { name: name.clone(), of, norm_of_difference });
    }
    Ok(differing)
}

/// Fields of both configurations that differ; an absent one is null, and so is one that asks for nothing.
fn fields(a: &AdapterFolder, b: &AdapterFolder) -> BTreeMap<String, [Value; 2]> {
    let keys: BTreeSet<&String> = a.json.keys().chain(b.json.keys()).collect();
    let value = |adapter: &AdapterFolder, key: &str| adapter.json.get(key).cloned().unwrap_or(Value::Null);
    let both = keys.into_iter().map(|key| (key.clone(), [value(a, key), value(b, key)]));
    // PEFT writes lists of names in any order, and what asks for nothing as it likes.
    let in_order = |value: &Value| match value.as_array() {
        _ if is_inactive(value) => Value::Null,
        Some(items) if items.iter().all(Value::is_string) => {
            let mut names: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            names.sort_unstable();
            json!(names)
        }
        _ => value.clone(),
    };
    both.filter(|(_, [one, other])| in_order(one) != in_order(other)).collect()
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
