//! Gradients of A, B and the input through a projection, by finite differences, at a B that is not zero.

use super::*;
use crate::pass::NoiseKey;

/// The gradients of `A`, `B` and, where it has one, the input agree with finite differences in `pass`.
fn check_gradients(site: &Site, pass: &Pass, dropout: f64) {
    let rank = 2;
    let (a, b) = factor_shapes(site, rank);
    let term = |a: &Tensor, b: &Tensor| LowRank { a: a.clone(), b: b.clone(), scale: 0.7, dropout };
    match site.kind {
        SiteKind::Embedding => {
            let x = input(site);
            check::gradients(&[&a, &b], |t| Ok(with_terms(&projection(site), pass, &x, &[term(&t[0], &t[1])])));
        }
        SiteKind::Linear => check::gradients(&[&a, &b, &[2, 4, site.input]], |t| {
            Ok(with_terms(&projection(site), pass, &t[2], &[term(&t[0], &t[1])]))
        }),
        SiteKind::Conv2d { .. } => check::gradients(&[&a, &b, &[2, site.input, 5, 6]], |t| {
            Ok(with_terms(&projection(site), pass, &t[2], &[term(&t[0], &t[1])]))
        }),
    }
}

#[test]
fn the_gradients_of_both_factors_and_the_input_agree_with_finite_differences() {
    for site in cases() {
        check_gradients(&site, &Pass::inference(), 0.0);
    }
}

#[test]
fn the_gradients_under_dropout_agree_with_finite_differences() {
    let pass = Pass::training(NoiseKey { seed: 1, step: 2, micro_batch: 3 });
    for site in cases() {
        check_gradients(&site, &pass, 0.4);
    }
}

#[test]
fn a_trainable_weight_and_bias_get_gradients_beside_a_term() {
    for site in cases() {
        let x = input(&site);
        let (pass, term) = (Pass::inference(), [term(&site, 2, 0.7, 1)]);
        let compute = |t: &[Tensor]| {
            let bias = t.get(1).map(|bias| Arc::new(Parameter::new("bias", bias.clone())));
            let projection = Projection::new(site.clone(), Arc::new(Parameter::new("weight", t[0].clone())), bias);
            Ok(with_terms(&projection, &pass, &x, &term))
        };
        match site.kind {
            SiteKind::Embedding => check::gradients(&[&site.weight_shape()], compute),
            _ => check::gradients(&[&site.weight_shape(), &[site.output]], compute),
        }
    }
}
