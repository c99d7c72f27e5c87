use candle_core::{DType, Device, Tensor};
use janus_core::noise;
use janus_core::pass::Part;
use janus_core::site::{Correction, LowRank, Site, SiteKind, Term};

use super::*;
use crate::error::Error;

/// One site of each kind: input, output, rank and kernel all differ.
fn cases() -> [Site; 3] {
    let site = |path: &str, kind, input, output| Site { path: path.into(), part: Part::Decoder, kind, input, output };
    [
        site("linear", SiteKind::Linear, 7, 5),
        site("conv", SiteKind::Conv2d { kernel: 2, stride: 1, padding: 0 }, 4, 6),
        site("embedding", SiteKind::Embedding, 9, 5),
    ]
}

fn drawn(name: &str, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let key = noise::key_of(name);
    let values: Vec<f32> = (0..count).map(|i| noise::normal(key, i as u64) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn shape(site: &Site) -> Vec<usize> {
    match site.kind {
        SiteKind::Linear => vec![site.output, site.input],
        SiteKind::Conv2d { kernel, .. } => vec![site.output, site.input, kernel, kernel],
        SiteKind::Embedding => vec![site.input, site.output],
    }
}

fn term(site: &Site, rank: usize, scale: f64) -> LowRank {
    let (a, b) = match site.kind {
        SiteKind::Conv2d { kernel, .. } => (vec![rank, site.input, kernel, kernel], vec![site.output, rank, 1, 1]),
        _ => (vec![rank, site.input], vec![site.output, rank]),
    };
    let name = |factor: &str| format!("{} {rank} {factor}", site.path);
    LowRank { a: drawn(&name("a"), &a), b: drawn(&name("b"), &b), scale, dropout: 0.0 }
}

fn correction(terms: &[LowRank]) -> Correction {
    Correction::of_terms(terms.iter().cloned().map(Term::LowRank))
}

/// `scale · B·A` value by value, in the weight's order.
fn shift_by_definition(site: &Site, term: &LowRank) -> Vec<f64> {
    let (a, b) = (values(&term.a).unwrap(), values(&term.b).unwrap());
    let rank = term.a.dim(0).unwrap();
    let (a_width, mut shift) = (a.len() / rank, Vec::new());
    let product = |row: usize, column: usize| -> f64 {
        let terms = (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * a_width + column]));
        term.scale * terms.sum::<f64>()
    };
    match site.kind {
        SiteKind::Embedding => {
            for row in 0..site.input {
                shift.extend((0..site.output).map(|column| product(column, row)));
            }
        }
        _ => {
            for row in 0..site.output {
                shift.extend((0..a_width).map(|column| product(row, column)));
            }
        }
    }
    shift
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn near(what: &str, got: f64, expected: f64, bound: f64) {
    assert!((got - expected).abs() <= bound * expected.abs().max(1.0), "{what}: {got}, expected {expected}");
}

#[test]
fn every_kind_of_site_in_pieces_of_any_size() {
    for site in cases() {
        let terms = [term(&site, 2, 0.7), term(&site, 3, -1.5)];
        let (weight, copy) = (drawn("w", &shape(&site)), drawn("copy", &shape(&site)));
        let shifts: Vec<Vec<f64>> = terms.iter().map(|term| shift_by_definition(&site, term)).collect();
        let correction = correction(&terms);
        for copy in [None, Some(&copy)] {
            let fold = Fold { name: "t", copy, correction: Some((&site, &correction)), dtype: DType::F32 };
            let base = values(&weight).unwrap();
            let start: Vec<f64> = values(copy.unwrap_or(&weight)).unwrap().into_iter().map(f64::from).collect();
            let expected: Vec<f64> = start.iter().enumerate().map(|(i, w)| w + shifts[0][i] + shifts[1][i]).collect();
            for piece in [1, 11, 17, 1 << 18] {
                let (merged, sums) = fold.in_pieces(&weight, piece).unwrap();
                assert_eq!(merged.dims(), weight.dims());
                for (index, (got, expected)) in values(&merged).unwrap().iter().zip(&expected).enumerate() {
                    near(&format!("{site:?}, pieces of {piece}, {index}"), f64::from(*got), *expected, 2e-6);
                }
                let change = sums.change();
                assert_eq!((change.values, change.shifted_values), (base.len() as u64, base.len() as u64));
                let moved = expected.iter().zip(&base).map(|(goal, w)| goal - f64::from(*w));
                near("delta", change.delta_norm, norm(moved), 1e-6);
                near("weight", change.weight_norm, norm(base.iter().map(|w| f64::from(*w))), 1e-6);
                assert!(change.rounding_loss.unwrap() < 1e-6, "{change:?}");
                assert_eq!(change.unmoved_values, 0);
            }
        }
    }
}

#[test]
fn what_rounding_loses() {
    // Beside 1, bf16 has steps of 1/128: the first delta vanishes, the second stays, the third is rounded up by a quarter
    // step; the fourth value has none.
    let weight = Tensor::new(&[[1f32, 1.0], [1.0, 1.0]], &Device::Cpu).unwrap();
    let step = 1.0 / 128.0;
    let deltas = [0.25 * step, 2.0 * step, 1.75 * step, 0.0];
    let copy = Tensor::new(deltas.map(|delta| 1.0 + delta as f32).as_slice(), &Device::Cpu).unwrap();
    let copy = copy.reshape((2, 2)).unwrap();
    let fold = |dtype| Fold { name: "t", copy: Some(&copy), correction: None, dtype };
    let stored = weight.to_dtype(DType::BF16).unwrap();
    let (merged, sums) = fold(DType::BF16).run(&stored).unwrap();
    assert_eq!(merged.dtype(), DType::BF16);
    assert_eq!(values(&merged).unwrap(), [1.0, 1.0 + 2.0 / 128.0, 1.0 + 2.0 / 128.0, 1.0]);
    let change = sums.change();
    near(
        "loss",
        change.rounding_loss.unwrap(),
        norm([0.25, 0.0, 0.25].into_iter()) / norm([0.25, 2.0, 1.75].into_iter()),
        1e-9,
    );
    near("change", change.relative_change.unwrap(), norm(deltas.into_iter()) / 2.0, 1e-9);
    assert_eq!((change.values, change.shifted_values, change.unmoved_values), (4, 3, 1));
    assert!(!change.is_swallowed());

    let (_, exact) = fold(DType::F32).run(&stored).unwrap();
    assert_eq!((exact.change().rounding_loss, exact.change().unmoved_values), (Some(0.0), 0));
}

#[test]
fn figures_that_do_not_exist_are_absent() {
    let zeros = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    let ones = zeros.ones_like().unwrap();
    let run = |copy: &Tensor, stored: &Tensor| {
        Fold { name: "t", copy: Some(copy), correction: None, dtype: DType::F32 }.run(stored).unwrap().1.change()
    };
    assert_eq!(run(&ones, &zeros).relative_change, None);
    let same = run(&ones, &ones);
    assert_eq!((same.delta_norm, same.rounding_loss, same.shifted_values), (0.0, None, 0));
    assert!(!same.is_swallowed() && same.unmoved_share() == 0.0);
}

#[test]
fn values_that_the_type_cannot_hold() {
    let weight = Tensor::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
    let refusal = |value: f32, dtype| {
        let copy = Tensor::new(&[[1f32, 2.0, 3.0], [4.0, value, 6.0]], &Device::Cpu).unwrap();
        Fold { name: "t", copy: Some(&copy), correction: None, dtype }.in_pieces(&weight, 2).map(|(_, sums)| sums)
    };
    for (value, dtype) in [(7e4, DType::F16), (f32::INFINITY, DType::F32), (f32::MAX, DType::BF16)] {
        match refusal(value, dtype) {
            Err(Error::Merge(MergeError::NotFinite { index: 4, weight: 5.0, dtype: told, .. })) => {
                assert_eq!(told, dtype)
            }
            other => panic!("{value} as {dtype:?}: {other:?}"),
        }
    }
    assert!(refusal(7e4, DType::BF16).is_ok());
    let narrow = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    let error = Fold { name: "t", copy: Some(&narrow), correction: None, dtype: DType::F32 }.run(&weight).unwrap_err();
    assert!(matches!(error, Error::Adapter(AdapterError::Shape { .. })), "{error}");
}
