//! Dropout before A: only in training, a function of the key.

use super::*;
use crate::pass::NoiseKey;
use crate::testing::{largest_difference, same_bits};

const KEY: NoiseKey = NoiseKey { seed: 5, step: 6, micro_batch: 7 };

fn dropping(site: &Site, probability: f64) -> LowRank {
    LowRank { dropout: probability, ..term(site, 2, 0.7, 1) }
}

fn trained(site: &Site, key: NoiseKey, terms: &[LowRank]) -> Tensor {
    with_terms(&projection(site), &Pass::training(key), &input(site), terms)
}

#[test]
fn values_are_dropped_in_training_only() {
    for site in cases() {
        let (term, plain) = (dropping(&site, 0.5), dropping(&site, 0.0));
        let inference = with_terms(&projection(&site), &Pass::inference(), &input(&site), std::slice::from_ref(&term));
        same_bits(&inference, &trained(&site, KEY, &[plain]));
        let training = trained(&site, KEY, &[term]);
        match site.kind {
            SiteKind::Embedding => same_bits(&training, &inference),
            _ => assert!(largest_difference(&training, &inference) > 0.1, "{site:?}"),
        }
    }
}

#[test]
fn equal_keys_drop_the_same_values_and_others_do_not() {
    for site in cases().into_iter().filter(|site| site.kind != SiteKind::Embedding) {
        let term = [dropping(&site, 0.5)];
        let y = trained(&site, KEY, &term);
        same_bits(&trained(&site, KEY, &term), &y);
        let elsewhere = Site { path: "another.path".into(), ..site.clone() };
        for (what, other) in [
            ("seed", trained(&site, NoiseKey { seed: 6, ..KEY }, &term)),
            ("step", trained(&site, NoiseKey { step: 7, ..KEY }, &term)),
            ("micro-batch", trained(&site, NoiseKey { micro_batch: 8, ..KEY }, &term)),
            ("path", trained(&elsewhere, KEY, &term)),
        ] {
            assert!(largest_difference(&other, &y) > 0.1, "{site:?}: another {what} drops the same");
        }
    }
}

#[test]
fn each_term_drops_values_of_its_own() {
    let site = linear();
    let (base, term) = (trained(&site, KEY, &[]), dropping(&site, 0.5));
    let once = (trained(&site, KEY, std::slice::from_ref(&term)) - &base).unwrap();
    let twice = (trained(&site, KEY, &[term.clone(), term]) - &base).unwrap();
    assert!(largest_difference(&twice, &(once * 2.0).unwrap()) > 0.1);
}

#[test]
fn what_is_kept_is_scaled_up_and_the_base_drops_nothing() {
    let site = site("a.square", SiteKind::Linear, 40, 40);
    let weight = Tensor::zeros((40, 40), DType::F32, &Device::Cpu).unwrap();
    let projection = projection_of(&site, weight);
    let eye = Tensor::eye(40, DType::F32, &Device::Cpu).unwrap();
    let term = LowRank { a: eye.clone(), b: eye, scale: 3.0, dropout: 0.2 };
    let x = Tensor::ones((25, 40), DType::F32, &Device::Cpu).unwrap();
    let base = projection.forward(&Pass::inference(), &x).unwrap();
    let delta = (with_terms(&projection, &Pass::training(KEY), &x, &[term]) - base).unwrap();
    let values: Vec<f32> = delta.flatten_all().unwrap().to_vec1().unwrap();
    // 3 / (1 - 0.2)
    assert!(values.iter().all(|v| v.abs() < 1e-6 || (v - 3.75).abs() < 1e-5), "{values:?}");
    let dropped = values.iter().filter(|v| v.abs() < 1e-6).count();
    // 1000 draws at 0.2: five standard deviations are 63.
    assert!((137..=263).contains(&dropped), "{dropped}");
}
