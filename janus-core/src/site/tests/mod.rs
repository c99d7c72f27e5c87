//! Tests of the seam: projections of each kind by themselves, then all sites of a small model.

mod composed;
mod corrections;
mod dropout;
mod gradients;
mod loss;
mod model;
mod routes;
mod terms;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::error::{ModelError, Result};
use crate::ops::{HeadLoss, check};
use crate::parameter::Parameter;
use crate::pass::Pass;
use crate::testing::of_low_rank;

fn site(path: &str, kind: SiteKind, input: usize, output: usize) -> Site {
    Site { path: path.into(), part: Part::Decoder, kind, input, output }
}

fn conv(kernel: usize, stride: usize, padding: usize) -> Site {
    site("a.convolution", SiteKind::Conv2d { kernel, stride, padding }, 3, 5)
}

fn linear() -> Site {
    site("a.linear", SiteKind::Linear, 7, 5)
}

fn embedding() -> Site {
    site("an.embedding", SiteKind::Embedding, 11, 6)
}

/// A site of each kind, convolutions with and without overlap, padding and a remainder. No two sizes are equal.
fn cases() -> Vec<Site> {
    vec![linear(), conv(4, 4, 0), conv(3, 1, 1), conv(3, 2, 0), conv(3, 2, 1), conv(1, 1, 0), embedding()]
}

/// Shapes of A and B.
fn factor_shapes(site: &Site, rank: usize) -> (Vec<usize>, Vec<usize>) {
    match site.kind {
        SiteKind::Conv2d { kernel, .. } => (vec![rank, site.input, kernel, kernel], vec![site.output, rank, 1, 1]),
        _ => (vec![rank, site.input], vec![site.output, rank]),
    }
}

fn weight(site: &Site) -> Tensor {
    check::tensor(&site.weight_shape(), 1)
}

/// A projection of this weight, with a bias where the kind has one.
fn projection_of(site: &Site, weight: Tensor) -> Projection {
    let parameter = |name: &str, value| Arc::new(Parameter::new(&format!("{}.{name}", site.path), value));
    let bias = match site.kind {
        SiteKind::Embedding => None,
        _ => Some(parameter("bias", check::tensor(&[site.output], 2))),
    };
    Projection::new(site.clone(), parameter("weight", weight), bias)
}

fn projection(site: &Site) -> Projection {
    projection_of(site, weight(site))
}

/// Values `[2, 4, input]`, pictures `[2, input, 9, 11]` or ids `[2, 4]`, one of them twice.
fn input(site: &Site) -> Tensor {
    match site.kind {
        SiteKind::Linear => check::tensor(&[2, 4, site.input], 3),
        SiteKind::Conv2d { .. } => check::tensor(&[2, site.input, 9, 11], 3),
        SiteKind::Embedding => Tensor::from_slice(&[10u32, 0, 3, 3, 7, 1, 0, 9], (2, 4), &Device::Cpu).unwrap(),
    }
}

/// A term whose A and B are not zero.
fn term(site: &Site, rank: usize, scale: f64, seed: u64) -> LowRank {
    let (a, b) = factor_shapes(site, rank);
    LowRank { a: check::tensor(&a, 10 * seed + 4), b: check::tensor(&b, 10 * seed + 5), scale, dropout: 0.0 }
}

/// What `projection` gives for `x` with these terms in its slot.
fn with_terms(projection: &Projection, pass: &Pass, x: &Tensor, terms: &[LowRank]) -> Tensor {
    projection.attach(of_low_rank(terms.to_vec())).unwrap();
    let y = projection.forward(pass, x).unwrap();
    projection.attach(None).unwrap();
    y
}
