#![allow(clippy::unwrap_used)]

use candle_core::Device;

use super::*;
use crate::jacobi::dot;

fn lines(count: usize, length: usize, seed: u64) -> Lines {
    let line = |line: usize| (0..length).map(|place| noise::normal(seed, (line * length + place) as u64)).collect();
    (0..count).map(line).collect()
}

/// Σ `values[i]` · `left[i]` ⊗ `right[i]`.
fn matrix(values: &[f64], left: &Lines, right: &Lines) -> Tensor {
    let (rows, columns) = (left[0].len(), right[0].len());
    let cell = |row: usize, column: usize| -> f64 {
        values.iter().zip(left.iter().zip(right)).map(|(value, (l, r))| value * l[row] * r[column]).sum()
    };
    let cells: Vec<f32> = (0..rows).flat_map(|row| (0..columns).map(move |column| cell(row, column) as f32)).collect();
    Tensor::from_vec(cells, (rows, columns), &Device::Cpu).unwrap()
}

fn apart(one: &Tensor, other: &Tensor) -> f32 {
    let difference = (one - other).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn the_greatest_singular_values_are_shared_evenly() {
    // Both ways to decompose: exactly, and by iteration.
    for (rows, columns) in [(40, 24), (300, 280)] {
        let (left, right) = (lq(lines(5, rows, 1)).1, lq(lines(5, columns, 2)).1);
        let values = [9.0, 5.0, 2.0, 1.0, 0.5];
        let weight = matrix(&values, &left, &right);
        for scale in [2.0, -0.5] {
            let [a, b] = of_weight(Init::Pissa, &weight, 3, scale, "site").unwrap();
            let product = (b.matmul(&a).unwrap() * scale).unwrap();
            let own = matrix(&values[..3], &left, &right);
            assert!(apart(&product, &own) < 1e-5, "{rows} x {columns}: {}", apart(&product, &own));
            let (a, b) = (lines_of(&a).unwrap(), lines_of(&b.t().unwrap()).unwrap());
            for (place, value) in values[..3].iter().enumerate() {
                let expected = value / f64::abs(scale);
                for line in [&a[place], &b[place]] {
                    assert!((dot(line, line) - expected).abs() < 1e-4 * expected, "{place}: {}", dot(line, line));
                }
            }
        }
        // Of the values that the weight does not have, nothing is added, and all can learn.
        let [a, b] = of_weight(Init::Pissa, &weight, 8, 1.0, "site").unwrap();
        assert!(apart(&b.matmul(&a).unwrap(), &weight) < 1e-5);
        assert_eq!((a.dims(), b.dims()), (&[8, columns][..], &[rows, 8][..]));
        assert!(lines_of(&a).unwrap().iter().all(|line| dot(line, line) > 1e-3));
    }
}

#[test]
fn first_columns_are_made_orthonormal() {
    let (rows, columns, rank) = (30, 20, 4);
    let cells: Vec<f32> = (0..600).map(|place| noise::normal(3, place) as f32).collect();
    let weight = Tensor::from_vec(cells.clone(), (rows, columns), &Device::Cpu).unwrap();
    // The second column is twice the first.
    let mut cells = cells;
    for row in 0..rows {
        cells[row * columns + 1] = 2.0 * cells[row * columns];
    }
    let dependent = Tensor::from_vec(cells, (rows, columns), &Device::Cpu).unwrap();
    for weight in [weight, dependent] {
        let [a, b] = of_weight(Init::Olora, &weight, rank, 2.0, "site").unwrap();
        let turned = b.t().unwrap();
        let square = turned.matmul(&b).unwrap();
        assert!(apart(&square, &Tensor::eye(rank, DType::F32, &Device::Cpu).unwrap()) < 1e-5);
        assert!(apart(&a, &turned.matmul(&weight).unwrap()) < 1e-5);
        // R is zero below its diagonal, so the first columns are whole.
        let first = |of: &Tensor| of.narrow(1, 0, rank).unwrap().contiguous().unwrap();
        assert!(apart(&first(&b.matmul(&a).unwrap()), &first(&weight)) < 1e-5);
    }
}
