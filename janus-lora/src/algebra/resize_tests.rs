#![allow(clippy::unwrap_used)]

use super::super::factors::Kind;
use super::super::testing::{apart, factors, read, shift};
use super::*;
use crate::status::Silent;

fn adapter() -> AdapterFolder {
    read(&[
        ("m.q_proj", factors(Kind::Linear, [12, 10], 4, 2.0, 1)),
        ("m.conv", factors(Kind::Convolution, [7, 18], 4, -0.5, 2)),
        ("m.embed_tokens", factors(Kind::Embedding, [6, 20], 4, 2.0, 3)),
    ])
}

#[test]
fn a_greater_rank_changes_nothing_and_can_be_trained() {
    let adapter = adapter();
    let (resized, told) = resize(&adapter, Size::Rank(7), &Silent).unwrap();
    for (path, factors) in &resized.sites {
        let before = &adapter.sites[path];
        assert_eq!((factors.rank(), factors.scale), (7, before.scale), "{path}");
        assert!(apart(&shift(factors), &shift(before)) < 2e-5, "{path}");
        // Of what is beyond, one side is drawn and the other zero, as in a new adapter.
        let a = factors.a.flatten_from(1).unwrap().narrow(0, 6, 1).unwrap();
        let b = factors.b.flatten_from(1).unwrap().narrow(1, 6, 1).unwrap();
        let is_zero =
            |tensor: &candle_core::Tensor| tensor.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() == 0.0;
        assert_eq!(
            [is_zero(&a), is_zero(&b)],
            [factors.kind == Kind::Embedding, factors.kind != Kind::Embedding],
            "{path}"
        );
    }
    assert!(told.iter().all(|site| (site.kept - 1.0).abs() < 1e-12));
    assert!((kept_of_all(&told) - 1.0).abs() < 1e-12);
}

/// No other factors of the rank come nearer: what is lost are the singular values left out (Eckart and Young).
#[test]
fn a_smaller_rank_loses_the_least() {
    let adapter = adapter();
    let (resized, told) = resize(&adapter, Size::Rank(2), &Silent).unwrap();
    for (site, told) in resized.sites.iter().zip(&told) {
        let before = shift(&adapter.sites[site.0]);
        let lost: f64 = before.iter().zip(shift(site.1)).map(|(one, other)| f64::from(one - other).powi(2)).sum();
        let whole: f64 = before.iter().map(|value| f64::from(*value).powi(2)).sum();
        assert!((1.0 - lost / whole - told.kept).abs() < 1e-5, "{}: {} {}", site.0, 1.0 - lost / whole, told.kept);
        assert!(told.kept < 1.0 && told.rank_before == 4);
    }
}

#[test]
fn a_share_of_the_variance_asks_for_the_least_rank_that_has_it() {
    let adapter = adapter();
    let (resized, told) = resize(&adapter, Size::Variance(0.8), &Silent).unwrap();
    for site in &told {
        assert!(site.kept >= 0.8 && site.rank < 4, "{site:?}");
        let (_, one_less) = resize(&adapter, Size::Rank((site.rank - 1).max(1)), &Silent).unwrap();
        let one_less = one_less.iter().find(|other| other.path == site.path).unwrap();
        assert!(site.rank == 1 || one_less.kept < 0.8, "{one_less:?}");
    }
    assert_eq!(
        resized.sites.values().map(Factors::rank).collect::<Vec<_>>(),
        told.iter().map(|site| site.rank).collect::<Vec<_>>()
    );
    let (_, all) = resize(&adapter, Size::Variance(1.0), &Silent).unwrap();
    assert!(all.iter().all(|site| site.rank == 4), "{all:?}");
}

#[test]
fn sizes_out_of_range_are_refused_and_zero_has_one_direction() {
    let adapter = adapter();
    for size in [Size::Rank(0), Size::Rank(21), Size::Variance(0.0), Size::Variance(1.01), Size::Variance(f64::NAN)] {
        assert!(resize(&adapter, size, &Silent).is_err(), "{size:?}");
    }
    let mut zero = factors(Kind::Linear, [5, 4], 3, 1.0, 1);
    zero.b = zero.b.zeros_like().unwrap();
    let (_, told) = resize(&read(&[("m.q_proj", zero)]), Size::Variance(0.9), &Silent).unwrap();
    assert_eq!((told[0].rank, told[0].kept), (1, 1.0));
}
