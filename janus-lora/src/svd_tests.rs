#![allow(clippy::unwrap_used)]

use super::*;
use crate::algebra::testing::{lines, normal};

fn product(left: &Lines, right: &Lines) -> Vec<f64> {
    crossed(left, right).concat()
}

fn apart(one: &[f64], other: &[f64]) -> f64 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max)
}

/// Triples that give the matrix, of orthonormal vectors, in order.
fn check(svd: &Svd, matrix: &[f64], tolerance: f64) {
    let scaled: Lines =
        svd.left.iter().zip(&svd.values).map(|(line, value)| line.iter().map(|part| part * value).collect()).collect();
    assert!(apart(&product(&scaled, &svd.right), matrix) < tolerance, "not the matrix");
    assert!(svd.values.is_sorted_by(|one, other| one >= other), "{:?}", svd.values);
    for vectors in [&svd.left, &svd.right] {
        for (i, one) in vectors.iter().enumerate() {
            for (j, other) in vectors.iter().enumerate() {
                let expected = f64::from(u8::from(i == j));
                assert!((dot(one, other) - expected).abs() < tolerance, "{i} {j}");
            }
        }
    }
}

#[test]
fn products_are_decomposed_without_being_formed() {
    for (rank, rows, columns) in [(1, 1, 1), (3, 7, 11), (4, 4, 9), (6, 5, 40), (9, 3, 3), (12, 30, 4), (20_000, 2, 3)]
    {
        let (left, right) = (lines(rank, rows, 1), lines(rank, columns, 2));
        let svd = svd_of_product(left.clone(), right.clone());
        assert_eq!(svd.values.len(), rank.min(rows).min(columns));
        check(&svd, &product(&left, &right), 1e-10);
        let norm = norm_of_product(left, right);
        assert!((norm * norm - svd.energy(rank)).abs() < 1e-9 * norm * norm);
    }
}

#[test]
fn directions_that_are_not_there_are_left_out() {
    let (mut left, mut right) = (lines(4, 9, 3), lines(4, 8, 4));
    left[2] = left[0].iter().map(|value| 2.0 * value).collect();
    right[3].fill(0.0);
    let svd = svd_of_product(left.clone(), right.clone());
    assert_eq!(svd.values.len(), 2, "{:?}", svd.values);
    check(&svd, &product(&left, &right), 1e-10);
    let zero = svd_of_product(vec![vec![0.0; 5]; 2], lines(2, 5, 1));
    assert!(zero.values.is_empty() && zero.left.is_empty());
    assert!(svd_of_product(Vec::new(), Vec::new()).values.is_empty());
}

/// Of nearly equal products the difference of norms is rounding alone.
#[test]
fn the_norm_of_a_small_difference_is_exact() {
    let (left, right) = (lines(2, 50, 5), lines(2, 60, 6));
    let mut other = left.clone();
    other[0][3] += 1e-9;
    let mut both = left;
    both.extend(other.into_iter().map(|line| line.into_iter().map(|value| -value).collect()));
    let norm = norm_of_product(both, [right.clone(), right.clone()].concat());
    let expected = 1e-9 * dot(&right[0], &right[0]).sqrt();
    assert!((norm / expected - 1.0).abs() < 1e-5, "{norm} {expected}");
}

fn values(matrix: &Tensor) -> Vec<f64> {
    lines_of(matrix).unwrap().concat()
}

#[test]
fn matrices_are_decomposed_whichever_side_is_the_shorter() {
    for (rows, columns) in [(5, 9), (9, 5), (6, 6), (1, 20)] {
        let matrix = normal(&[rows, columns], 7);
        let whole = svd_of_matrix(&matrix, 100).unwrap();
        check(&whole, &values(&matrix), 1e-6);
        let cut = svd_of_matrix(&matrix, 1).unwrap();
        assert_eq!((cut.values.len(), cut.values[0]), (1, whole.values[0]));
    }
    assert!(svd_of_matrix(&normal(&[4, 4], 1).zeros_like().unwrap(), 3).unwrap().values.is_empty());
}

/// A few strong directions, and others that fade slowly, as in a pruned shift.
#[test]
fn large_matrices_give_what_exact_decomposition_gives() {
    let (rows, columns, rank) = (EXACT_SIDE + 4, EXACT_SIDE + 40, 6);
    let strong = normal(&[rows, 8], 1).matmul(&normal(&[8, columns], 2)).unwrap();
    let matrix = (strong + normal(&[rows, columns], 3)).unwrap();
    let truth = exact(&matrix, rank).unwrap();
    let found = svd_of_matrix(&matrix, rank).unwrap();
    let relative = (found.energy(rank) / truth.energy(rank) - 1.0).abs();
    assert!(relative < 1e-7, "{relative}");
    let cut = |svd: &Svd| {
        let scaled: Lines =
            svd.left.iter().zip(&svd.values).map(|(l, v)| l.iter().map(|part| part * v).collect()).collect();
        product(&scaled, &svd.right)
    };
    let largest = cut(&truth).iter().fold(0.0f64, |most, value| most.max(value.abs()));
    assert!(apart(&cut(&found), &cut(&truth)) < 1e-4 * largest);
    let again = svd_of_matrix(&matrix, rank).unwrap();
    assert_eq!((again.values, again.left), (found.values, found.left), "not the same bits");
    // Exactly of low rank, and zero: fewer triples than are asked for.
    let low = normal(&[rows, 2], 1).matmul(&normal(&[2, columns], 2)).unwrap();
    let found = svd_of_matrix(&low, rank).unwrap();
    assert!(found.values[1] > 1.0 && found.values.get(2).is_none_or(|value| *value < 1e-3), "{:?}", found.values);
    assert!(svd_of_matrix(&low.zeros_like().unwrap(), rank).unwrap().values.is_empty());
}

#[test]
fn the_leading_triples_are_those_of_all() {
    // Both ways: few of many directions are iterated, others decomposed.
    for (rank, rows, columns) in [(4, 200, 120), (40, 60, 90)] {
        let (left, right) = (lq(lines(20, rows, 7)).1, lq(lines(20, columns, 8)).1);
        let values: Vec<f64> = (0..20).map(|place| 0.7f64.powi(place)).collect();
        let scaled: Lines =
            left.iter().zip(&values).map(|(line, value)| line.iter().map(|part| part * value).collect()).collect();
        let cells: Vec<f32> = product(&scaled, &right).iter().map(|value| *value as f32).collect();
        let matrix = Tensor::from_vec(cells, (rows, columns), &Device::Cpu).unwrap();
        let found = leading(&matrix, rank).unwrap();
        for (place, value) in values.iter().take(rank).enumerate() {
            assert!((found.values[place] - value).abs() < 1e-5, "{place}: {} {value}", found.values[place]);
            assert!(dot(&found.right[place], &right[place]).abs() > 0.9999);
        }
    }
}
