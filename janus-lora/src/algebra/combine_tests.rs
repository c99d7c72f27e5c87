#![allow(clippy::unwrap_used)]

use super::super::factors::Kind;
use super::super::testing::{apart, factors, read, shift};
use super::*;
use crate::error::Error;
use crate::status::Silent;

const KINDS: [(&str, Kind, [usize; 2]); 3] = [
    ("m.q_proj", Kind::Linear, [12, 10]),
    ("m.conv", Kind::Convolution, [7, 18]),
    ("m.embed_tokens", Kind::Embedding, [6, 20]),
];

fn options(method: Method) -> CombineOptions {
    CombineOptions { method, rank: None, density: None, majority: MajoritySign::Total, seed: 0 }
}

/// Adapters with a site of every kind, and one site of its own each.
fn two(ranks: [usize; 2]) -> [(AdapterFolder, f64); 2] {
    let adapter = |number: usize, scale: f64| {
        let seed = 100 * (number as u64 + 1);
        let mut sites: Vec<(&str, Factors)> = KINDS
            .iter()
            .map(|(path, kind, sides)| (*path, factors(*kind, *sides, ranks[number], scale, seed)))
            .collect();
        sites.push((
            ["m.only_first", "m.only_second"][number],
            factors(Kind::Linear, [5, 5], ranks[number], scale, seed),
        ));
        read(&sites)
    };
    [(adapter(0, 2.0), 0.7), (adapter(1, -0.5), 1.25)]
}

/// Σ weight · shift at a site.
fn sum(adapters: &[(AdapterFolder, f64)], path: &str) -> Vec<f32> {
    let shifts = adapters.iter().filter_map(|(adapter, weight)| {
        Some(shift(adapter.sites.get(path)?).into_iter().map(|value| value * *weight as f32).collect::<Vec<f32>>())
    });
    shifts.reduce(|one, other| one.iter().zip(other).map(|(one, other)| one + other).collect()).unwrap()
}

#[test]
fn side_by_side_and_truncated_to_all_that_is_there_are_the_sum_of_the_shifts() {
    let adapters = two([2, 3]);
    for (method, rank, expected_rank) in [(Method::Cat, None, 5), (Method::Svd, Some(5), 5)] {
        let combined = combine(&adapters, &CombineOptions { rank, ..options(method) }, &Silent).unwrap();
        assert_eq!(combined.sites.len(), 5);
        for (path, factors) in &combined.sites {
            assert_eq!((factors.rank(), factors.scale), (expected_rank, 1.0), "{path}");
            assert!(apart(&shift(factors), &sum(&adapters, path)) < 2e-5, "{path}");
        }
    }
    // Without one that is asked for, the greatest of the ranks.
    let combined = combine(&adapters, &options(Method::Svd), &Silent).unwrap();
    assert!(combined.sites.values().all(|factors| factors.rank() == 3));
}

#[test]
fn factors_are_summed_with_the_root_of_the_weight_and_its_sign_on_one_side() {
    let adapters = two([3, 3]);
    let combined = combine(&adapters, &options(Method::Linear), &Silent).unwrap();
    let (first, second) = (&adapters[0].0.sites["m.q_proj"], &adapters[1].0.sites["m.q_proj"]);
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (one, other) = (1.4f64.sqrt() as f32, 0.625f64.sqrt() as f32);
    let blend = |a: &Tensor, b: &Tensor, sign: f32| -> Vec<f32> {
        values(a).iter().zip(values(b)).map(|(a, b)| one * a + sign * other * b).collect()
    };
    let got = &combined.sites["m.q_proj"];
    assert!(apart(&values(&got.a), &blend(&first.a, &second.a, -1.0)) < 1e-6);
    assert!(apart(&values(&got.b), &blend(&first.b, &second.b, 1.0)) < 1e-6);
    // At a site of one adapter that is its shift with its weight.
    assert!(apart(&shift(&combined.sites["m.only_second"]), &sum(&adapters, "m.only_second")) < 1e-5);
}

/// The rules of shifts, formed here value by value.
#[test]
fn rules_of_whole_shifts_are_those_of_their_values() {
    let adapters = two([2, 3]);
    for (method, density) in [(Method::TiesSvd, 0.6), (Method::MagnitudePruneSvd, 0.4)] {
        let asked = CombineOptions { rank: Some(12), density: Some(density), ..options(method) };
        let combined = combine(&adapters, &asked, &Silent).unwrap();
        for (path, ..) in KINDS {
            let shifts: Vec<Vec<f32>> = adapters.iter().map(|(adapter, _)| shift(&adapter.sites[path])).collect();
            let kept: Vec<Vec<f32>> = shifts.iter().map(|shift| greatest(shift, density)).collect();
            let expected: Vec<f32> = (0..shifts[0].len())
                .map(|place| {
                    let pairs = [(kept[0][place], 0.7f32), (kept[1][place], 1.25)];
                    let counted: Vec<f32> = match method {
                        Method::TiesSvd => {
                            let sign = if pairs[0].0 + pairs[1].0 >= 0.0 { 1.0 } else { -1.0 };
                            let agree = pairs.iter().filter(|(value, _)| *value * sign > 0.0);
                            agree.map(|(value, weight)| value * weight).collect()
                        }
                        _ => pairs.iter().map(|(value, weight)| value * weight).collect(),
                    };
                    let count = if method == Method::TiesSvd { counted.len().max(1) } else { 1 };
                    counted.iter().sum::<f32>() / count as f32
                })
                .collect();
            let apart = apart(&shift(&combined.sites[path]), &expected);
            assert!(apart < 2e-5, "{} at {path}: {apart}", method.name());
        }
    }
}

fn greatest(values: &[f32], density: f64) -> Vec<f32> {
    let mut sizes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    sizes.sort_by(|one, other| other.total_cmp(one));
    let least = sizes[(density * values.len() as f64) as usize - 1];
    values.iter().map(|value| if value.abs() >= least { *value } else { 0.0 }).collect()
}

#[test]
fn what_is_drawn_depends_on_the_seed_alone() {
    let adapters = two([3, 3]);
    let drawn = |method, seed| {
        let asked = CombineOptions { density: Some(0.5), seed, ..options(method) };
        let combined = combine(&adapters, &asked, &Silent).unwrap();
        combined
            .sites
            .values()
            .flat_map(|f| [&f.a, &f.b].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
            .collect::<Vec<_>>()
    };
    for method in [Method::DareLinear, Method::DareTies, Method::DareLinearSvd, Method::DareTiesSvd] {
        let first = drawn(method, 1);
        assert_eq!(first, drawn(method, 1), "{}", method.name());
        assert_ne!(first, drawn(method, 2), "{}", method.name());
        assert!(first.iter().flatten().all(|value| value.is_finite()));
    }
    // All are kept: nothing is drawn.
    let all = |method| {
        let asked = CombineOptions { density: Some(1.0), ..options(method) };
        shift(&combine(&adapters, &asked, &Silent).unwrap().sites["m.conv"])
    };
    let linear = shift(&combine(&adapters, &options(Method::Linear), &Silent).unwrap().sites["m.conv"]);
    assert_eq!(all(Method::DareLinear), linear);
    assert_eq!(all(Method::MagnitudePrune), linear);
}

#[test]
fn a_single_adapter_is_scaled_and_nothing_else() {
    let [first, _] = two([2, 2]);
    let expected = sum(std::slice::from_ref(&first), "m.q_proj");
    let asked = CombineOptions { density: Some(0.1), ..options(Method::TiesSvd) };
    let combined = combine(&[first], &asked, &Silent).unwrap();
    assert!(apart(&shift(&combined.sites["m.q_proj"]), &expected) < 1e-5);
    let [first, _] = two([2, 2]);
    let refused = combine(&[first], &CombineOptions { rank: Some(1), ..options(Method::Svd) }, &Silent).unwrap_err();
    assert!(refused.to_string().contains("`--rank 1`"), "{refused}");
}

/// Sixteen values whose configuration names a rank that would make a hundred million of them; and sides whose product is no weight.
#[test]
fn neither_a_claimed_rank_nor_long_sides_make_room_for_more_than_there_is() {
    let mut adapters = two([2, 3]);
    adapters[0].0.config.rank_patterns.push(("no_such_site".into(), 1 << 20));
    for method in [Method::Cat, Method::Svd, Method::TiesSvd] {
        let density = method.prunes().then_some(0.5);
        let error = combine(&adapters, &CombineOptions { density, ..options(method) }, &Silent).unwrap_err();
        assert!(matches!(error, Error::Algebra(AlgebraError::ClaimedRank { rank: 1_048_576.., .. })), "{error}");
    }
    // Where a rank is asked for, no claim counts.
    let asked = CombineOptions { rank: Some(2), ..options(Method::Svd) };
    assert!(combine(&adapters, &asked, &Silent).unwrap().sites.values().all(|factors| factors.rank() == 2));

    let long = || read(&[("m.q_proj", factors(Kind::Linear, [1 << 16, 1 << 15], 1, 1.0, 1))]);
    let asked = CombineOptions { density: Some(0.5), ..options(Method::TiesSvd) };
    let error = combine(&[(long(), 1.0), (long(), 1.0)], &asked, &Silent).unwrap_err();
    assert!(matches!(error, Error::Algebra(AlgebraError::WholeShift { rows: 65_536, columns: 32_768, .. })), "{error}");
}
