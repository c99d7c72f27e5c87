#![allow(clippy::unwrap_used)]

use super::super::factors::Kind;
use super::super::testing::{factors, read, shift};
use super::*;

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn norms_and_cosines_are_those_of_the_products() {
    let (one, other) = (factors(Kind::Linear, [9, 7], 2, 1.5, 1), factors(Kind::Linear, [9, 7], 3, -0.5, 5));
    let conv = factors(Kind::Convolution, [4, 18], 2, 1.0, 9);
    let (a, b) = (read(&[("m.q", one.clone()), ("m.conv", conv.clone())]), read(&[("m.q", other.clone())]));
    let told = diff(&a, &b).unwrap();
    let (one, other) = (shift(&one), shift(&other));
    let difference: Vec<f32> = one.iter().zip(&other).map(|(one, other)| one - other).collect();
    let inner: f64 = one.iter().zip(&other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum();
    let site = &told.sites[1];
    assert_eq!((site.path.as_str(), site.ranks), ("m.q", [Some(2), Some(3)]));
    let near = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-4, "{got} {expected}");
    near(site.norms.norm_a, norm(&one));
    near(site.norms.norm_b, norm(&other));
    near(site.norms.norm_of_difference, norm(&difference));
    near(site.norms.cosine.unwrap(), inner / norm(&one) / norm(&other));
    let conv = norm(&shift(&conv));
    let alone = &told.sites[0];
    assert_eq!((alone.ranks, alone.norms.norm_b, alone.norms.cosine), ([Some(2), None], 0.0, None));
    near(alone.norms.norm_of_difference, conv);
    near(told.total.norm_of_difference, norm(&difference).hypot(conv));
    near(told.total.cosine.unwrap(), inner / norm(&one).hypot(conv) / norm(&other));
    assert!(!told.same && told.config.contains_key("target_modules"));
}

#[test]
fn equal_shifts_are_the_same_and_one_bit_is_not() {
    let one = factors(Kind::Linear, [9, 7], 2, 1.5, 1);
    let told = diff(&read(&[("m.q", one.clone())]), &read(&[("m.q", one.clone())])).unwrap();
    assert!(told.same && told.config.is_empty() && told.sites[0].norms.norm_of_difference == 0.0);
    assert!((told.total.cosine.unwrap() - 1.0).abs() < 1e-12);
    let mut other = one.clone();
    let mut values: Vec<f32> = one.b.flatten_all().unwrap().to_vec1().unwrap();
    values[3] = values[3].next_up();
    other.b = Tensor::from_vec(values, one.b.dims(), one.b.device()).unwrap();
    let told = diff(&read(&[("m.q", one.clone())]), &read(&[("m.q", other)])).unwrap();
    let apart = told.sites[0].norms.norm_of_difference;
    assert!(!told.same && apart > 0.0 && apart < 1e-5, "{apart}");
    let wider = factors(Kind::Linear, [9, 8], 2, 1.5, 1);
    assert!(matches!(
        diff(&read(&[("m.q", one)]), &read(&[("m.q", wider)])),
        Err(crate::Error::Algebra(AlgebraError::SiteShape { .. }))
    ));
}
