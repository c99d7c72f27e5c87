//! Terms for single requests: a table says which token rows are whose.

use super::*;
use crate::error::Error;
use crate::pass::Route;
use crate::testing::{largest_difference, same_bits};

fn routed(site: &Site, request: u32) -> LowRank {
    LowRank { request: Some(request), ..term(site, 2, 0.7, u64::from(request)) }
}

fn pass(part: Part, routes: &[(std::ops::Range<usize>, u32)]) -> Pass {
    let routes = routes.iter().map(|(tokens, request)| Route { tokens: tokens.clone(), request: *request }).collect();
    Pass::inference().with_routes(part, routes)
}

/// Rows `[rows, output]` of the eight tokens.
fn rows(y: &Tensor) -> Tensor {
    y.reshape((8, ())).unwrap()
}

fn token_sites() -> [Site; 2] {
    [linear(), embedding()]
}

/// Ranges that cross the batch's rows; tokens 0, 4 and 5 belong to a request without a term.
const ROUTES: [(std::ops::Range<usize>, u32); 4] = [(1..3, 1), (3..4, 2), (4..6, 9), (6..8, 1)];

#[test]
fn rows_of_other_requests_keep_every_bit() {
    for site in token_sites() {
        let (projection, x) = (projection(&site), input(&site));
        let base = rows(&projection.forward(&Pass::inference(), &x).unwrap());
        let terms = [routed(&site, 1), routed(&site, 2)];
        let y = rows(&with_terms(&projection, &pass(Part::Decoder, &ROUTES), &x, &terms));
        let by_row = |t: &Tensor, row: usize| t.get(row).unwrap();
        for row in [0, 4, 5] {
            same_bits(&by_row(&y, row), &by_row(&base, row));
        }
        for (row, term) in [(1, &terms[0]), (2, &terms[0]), (3, &terms[1]), (6, &terms[0]), (7, &terms[0])] {
            let term = LowRank { request: None, ..term.clone() };
            let alone = rows(&with_terms(&projection, &Pass::inference(), &x, &[term]));
            check::close(&by_row(&y, row), &by_row(&alone, row), 1e-6);
            assert!(largest_difference(&by_row(&y, row), &by_row(&base, row)) > 0.05, "row {row}");
        }
    }
}

#[test]
fn two_requests_in_one_pass_equal_two_passes() {
    for site in token_sites() {
        let (projection, x) = (projection(&site), input(&site));
        let terms = [routed(&site, 1), routed(&site, 2), term(&site, 3, -0.4, 3)];
        let together = with_terms(&projection, &pass(Part::Decoder, &[(0..4, 1), (4..8, 2)]), &x, &terms);
        for (row, request) in [(0, 1), (1, 2)] {
            let x = x.narrow(0, row, 1).unwrap();
            let alone = with_terms(&projection, &pass(Part::Decoder, &[(0..4, request)]), &x, &terms);
            same_bits(&together.narrow(0, row, 1).unwrap(), &alone);
        }
    }
}

#[test]
fn a_term_that_is_no_number_reaches_its_own_rows_only() {
    for site in token_sites() {
        let (projection, x) = (projection(&site), input(&site));
        let base = rows(&projection.forward(&Pass::inference(), &x).unwrap());
        let whole = routed(&site, 1);
        let nan = |t: &Tensor| Tensor::full(f32::NAN, t.dims(), &Device::Cpu).unwrap();
        for broken in [LowRank { a: nan(&whole.a), ..whole.clone() }, LowRank { b: nan(&whole.b), ..whole.clone() }] {
            let y = rows(&with_terms(&projection, &pass(Part::Decoder, &[(2..5, 1)]), &x, &[broken]));
            for row in [0, 1, 5, 6, 7] {
                same_bits(&y.get(row).unwrap(), &base.get(row).unwrap());
            }
            let own: Vec<f32> = y.narrow(0, 2, 3).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(own.iter().all(|v| v.is_nan()), "{own:?}");
        }
    }
}

#[test]
fn the_sign_of_zero_survives_in_other_rows() {
    let site = embedding();
    let negative_zero = Tensor::full(-0f32, site.weight_shape(), &Device::Cpu).unwrap();
    let projection = projection_of(&site, negative_zero);
    let terms = [routed(&site, 1), routed(&site, 2)];
    let y = rows(&with_terms(&projection, &pass(Part::Decoder, &[(0..1, 1), (1..2, 2)]), &input(&site), &terms));
    let untouched: Vec<f32> = y.narrow(0, 2, 6).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert!(untouched.iter().all(|v| v.to_bits() == (-0f32).to_bits()), "{untouched:?}");
}

#[test]
fn a_table_of_another_part_routes_nothing_here() {
    for site in token_sites() {
        let (projection, x) = (projection(&site), input(&site));
        let base = projection.forward(&Pass::inference(), &x).unwrap();
        let term = [routed(&site, 1)];
        same_bits(&with_terms(&projection, &pass(Part::Vision, &[(0..8, 1)]), &x, &term), &base);
        same_bits(&with_terms(&projection, &Pass::inference(), &x, &term), &base);
    }
}

#[test]
fn a_range_beyond_the_rows_is_an_error() {
    for site in token_sites() {
        let projection = projection(&site);
        projection.attach(of_low_rank(vec![routed(&site, 1)])).unwrap();
        let error = projection.forward(&pass(Part::Decoder, &[(0..9, 1)]), &input(&site)).unwrap_err();
        assert!(matches!(error, Error::Model(ModelError::Shape { what: "routes", .. })), "{error}");
    }
}

#[test]
fn a_convolution_refuses_a_term_of_one_request() {
    let site = conv(3, 1, 1);
    let projection = projection(&site);
    projection.attach(of_low_rank(vec![routed(&site, 1)])).unwrap();
    let error = projection.forward(&Pass::inference(), &input(&site)).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::RoutedConvolution { .. })), "{error}");
    assert!(error.to_string().contains("a.convolution"), "{error}");
}
