//! Low-rank terms against the definition of the weight they stand for.

use super::*;
use crate::testing::{largest_difference, same_bits};

/// `scale · Σ_r B[o, r]·A[r, ..]` written out.
fn shift_by_definition(site: &Site, term: &LowRank) -> Tensor {
    let rows = |t: &Tensor| -> Vec<Vec<f32>> { t.flatten_from(1).unwrap().to_vec2().unwrap() };
    let (a, b) = (rows(&term.a), rows(&term.b));
    let cell = |output: usize, inner: usize| -> f32 {
        let sum: f64 = (0..a.len()).map(|r| f64::from(b[output][r]) * f64::from(a[r][inner])).sum();
        (term.scale * sum) as f32
    };
    let inner = a[0].len();
    let values: Vec<f32> = match site.kind {
        SiteKind::Embedding => {
            (0..inner).flat_map(|row| (0..site.output).map(move |o| (o, row))).map(|(o, row)| cell(o, row)).collect()
        }
        _ => (0..site.output).flat_map(|o| (0..inner).map(move |i| (o, i))).map(|(o, i)| cell(o, i)).collect(),
    };
    Tensor::from_vec(values, site.weight_shape(), &Device::Cpu).unwrap()
}

#[test]
fn a_folded_weight_is_the_weight_plus_the_scaled_product() {
    for site in cases() {
        let terms = [term(&site, 2, 0.7, 1), term(&site, 4, -1.5, 2)];
        let folded = of_low_rank(terms.to_vec()).unwrap().fold(&site, weight(&site)).unwrap();
        let shifts = (shift_by_definition(&site, &terms[0]) + shift_by_definition(&site, &terms[1])).unwrap();
        check::close(&folded, &(weight(&site) + shifts).unwrap(), 2e-6);
    }
}

#[test]
fn a_term_computes_what_the_folded_weight_computes() {
    for site in cases() {
        let (x, pass) = (input(&site), Pass::inference());
        let term = term(&site, 2, 0.7, 1);
        let base = projection(&site).forward(&pass, &x).unwrap();
        let attached = with_terms(&projection(&site), &pass, &x, std::slice::from_ref(&term));
        let folded = (weight(&site) + shift_by_definition(&site, &term)).unwrap();
        check::close(&attached, &projection_of(&site, folded).forward(&pass, &x).unwrap(), 1e-5);
        assert!(largest_difference(&attached, &base) > 0.3, "{site:?}: the term does next to nothing");
    }
}

#[test]
fn several_terms_add_up() {
    for site in cases() {
        let (x, pass, projection) = (input(&site), Pass::inference(), projection(&site));
        let (first, second) = (term(&site, 2, 0.7, 1), term(&site, 4, -1.5, 2));
        let base = projection.forward(&pass, &x).unwrap();
        let shift = |terms: &[LowRank]| (with_terms(&projection, &pass, &x, terms) - &base).unwrap();
        let both = [first, second];
        check::close(&shift(&both), &(shift(&both[..1]) + shift(&both[1..])).unwrap(), 1e-5);
    }
}

#[test]
fn without_terms_the_output_is_the_base_s_own() {
    for site in cases() {
        let (x, pass, projection) = (input(&site), Pass::inference(), projection(&site));
        let base = projection.forward(&pass, &x).unwrap();
        same_bits(&with_terms(&projection, &pass, &x, &[]), &base);
        let mut identity = term(&site, 2, 0.7, 1);
        identity.b = identity.b.zeros_like().unwrap();
        same_bits(&with_terms(&projection, &pass, &x, &[identity]), &base);
        same_bits(&projection.forward(&pass, &x).unwrap(), &base);
    }
}

#[test]
fn a_linear_input_may_have_any_number_of_leading_dimensions() {
    let (site, pass) = (linear(), Pass::inference());
    let projection = projection(&site);
    let term = [term(&site, 3, 0.7, 1)];
    let x = input(&site);
    let y = with_terms(&projection, &pass, &x, &term);
    assert_eq!(y.dims(), [2, 4, 5]);
    let flat = with_terms(&projection, &pass, &x.reshape((8, 7)).unwrap(), &term);
    same_bits(&flat.reshape((2, 4, 5)).unwrap(), &y);
}

#[test]
fn a_half_precision_base_adds_the_terms_once_rounded() {
    for site in cases() {
        let half = |t: Tensor| t.to_dtype(DType::BF16).unwrap();
        let pass = Pass::inference();
        let projection = projection_of(&site, half(weight(&site)));
        let x = match site.kind {
            SiteKind::Embedding => input(&site),
            _ => half(input(&site)),
        };
        let term = term(&site, 2, 0.7, 1);
        let y = with_terms(&projection, &pass, &x, std::slice::from_ref(&term));
        assert_eq!(y.dtype(), DType::BF16, "{site:?}");
        let wide = projection_of(&site, half(weight(&site)).to_dtype(DType::F32).unwrap());
        let wide_x = if x.dtype() == DType::BF16 { x.to_dtype(DType::F32).unwrap() } else { x };
        let expected = with_terms(&wide, &pass, &wide_x, &[term]);
        // Values up to 8: three roundings to 8 bits.
        check::close(&y, &expected, 0.1);
    }
}
