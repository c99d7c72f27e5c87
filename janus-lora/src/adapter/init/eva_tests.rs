#![allow(clippy::unwrap_used)]

use janus_core::noise;

use super::*;
use crate::svd::svd_of_matrix;

/// Rows with a mean and a few strong directions.
fn rows(count: usize, width: usize, seed: u64) -> Vec<f32> {
    let strong = |row: usize, column: usize| {
        let of = |part: u64| noise::normal(seed + part, row as u64) * noise::normal(99 + part, column as u64);
        6.0 * of(1) + 3.0 * of(2) + 1.5 * of(3)
    };
    let value = |row: usize, column: usize| {
        0.5 + strong(row, column) + 0.2 * noise::normal(seed, (row * width + column) as u64)
    };
    (0..count).flat_map(|row| (0..width).map(move |column| value(row, column) as f32)).collect()
}

#[test]
fn rows_in_pieces_have_the_directions_of_all_rows() {
    let (count, width) = (300, 40);
    let all = rows(count, width, 5);
    let mut directions = Directions::new(12, width);
    for piece in all.chunks(60 * width) {
        assert!(!directions.are_found(3) || directions.rows > 60);
        let piece = Tensor::from_vec(piece.to_vec(), (piece.len() / width, width), &Device::Cpu).unwrap();
        directions.add(&piece).unwrap();
    }
    let whole = Tensor::from_vec(all, (count, width), &Device::Cpu).unwrap();
    let mean = whole.mean_keepdim(0).unwrap();
    let centred = whole.broadcast_sub(&mean).unwrap();
    let svd = svd_of_matrix(&centred, width).unwrap();
    let energy: f64 = svd.energy(width);
    for place in 0..3 {
        let cosine: f64 = svd.right[place].iter().zip(&directions.lines[place]).map(|(a, b)| a * b).sum();
        assert!(cosine.abs() > 0.9999, "{place}: {cosine}");
        let (expected, got) = (svd.values[place] * svd.values[place] / energy, directions.explained()[place]);
        assert!((expected - got).abs() < 1e-3 * expected, "{place}: {expected} {got}");
    }
    assert!(directions.are_found(3) && directions.is_finite());
    // Fewer rows than are wanted: the rest is drawn.
    let mut few = Directions::new(4, width);
    few.add(&whole.narrow(0, 0, 3).unwrap()).unwrap();
    let drawn = Tensor::full(7f32, (4, width), &Device::Cpu).unwrap();
    let a: Vec<Vec<f32>> = few.as_a(&drawn).unwrap().to_vec2().unwrap();
    assert_eq!(a[3], vec![7f32; width]);
    assert!((a[0].iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-4);
    assert!(!few.are_found(1), "nothing was seen before");
    few.add(&Tensor::full(f32::NAN, (2, width), &Device::Cpu).unwrap()).unwrap();
    assert!(!few.is_finite());
}

#[test]
fn ranks_go_where_they_explain_most() {
    let candidate = |path: &str, rank: usize, most: usize, explained: &[f64]| Candidate {
        path: path.into(),
        rank,
        most,
        explained: explained.to_vec(),
    };
    let given = |rho: usize| {
        let all = [
            candidate("a", 2, 2 * rho, &[0.5, 0.4, 0.3, 0.2]),
            candidate("b", 2, 2 * rho, &[0.35, 0.1, 0.05, 0.01]),
            candidate("c", 2, 2 * rho, &[]),
        ];
        ranks(&all).into_values().collect::<Vec<_>>()
    };
    assert_eq!(given(1), [2, 2, 2], "nothing to give away");
    assert_eq!(given(2), [3, 1, 2], "what saw no input keeps its rank");
}
