//! Products of every level against their definition.

use half::bf16;

use super::*;
use crate::kernel::level::levels;
use crate::kernel::testing::{close, values};

fn run_at<E: Element>(
    level: Level,
    parallel: bool,
    terms: &[Term<'_, E>],
    finish: Finish<'_, E>,
    out: &mut [f32],
    out_stride: usize,
) {
    products_at(level, parallel, vec![Job { terms: terms.to_vec(), finish, out, out_stride, kept: None }]);
}

#[test]
fn products_made_together_are_those_made_alone() {
    // Under AVX2 tiles the panels of the next block are laid out, whichever job that belongs to; few rows have neither.
    let shapes = match cfg!(miri) {
        true => [(17, 5, 7), (5, 3, 2100), (3, 20, 13), (2, 6, 1100), (7, 70, 10), (6, 67, 3), (9, 1, 1)],
        false => [(30, 5, 70), (30, 330, 2100), (3, 200, 33), (30, 64, 4100), (7, 900, 40), (30, 70, 60), (30, 1, 1)],
    };
    let x: Vec<Vec<bf16>> = shapes.iter().map(|(m, _, inner)| values(m * inner, *inner as u64)).collect();
    let weights: Vec<Vec<bf16>> = shapes.iter().map(|(_, n, inner)| values(n * inner, *n as u64)).collect();
    let term = |i: usize| {
        let (m, n, inner) = shapes[i];
        let x = Rows::dense(&x[i], m, inner);
        match i % 2 {
            0 => Term::transposed(x, Rows::dense(&weights[i], n, inner)),
            _ => Term::plain(x, Rows::dense(&weights[i], inner, n)),
        }
    };
    let jobs = |level, out: &mut [Vec<f32>], parallel| {
        let job = |(i, out)| Job {
            terms: vec![term(i)],
            finish: Finish::default(),
            out,
            out_stride: shapes[i].1,
            kept: None,
        };
        let jobs = out.iter_mut().map(Vec::as_mut_slice).enumerate().map(job).collect();
        products_at(level, parallel, jobs);
    };
    for (level, parallel) in levels().into_iter().flat_map(|level| [(level, false), (level, true)]) {
        let mut together: Vec<Vec<f32>> = shapes.iter().map(|(m, n, _)| vec![0.0; m * n]).collect();
        jobs(level, &mut together, parallel);
        for (i, together) in together.iter().enumerate() {
            let mut alone = vec![0f32; together.len()];
            run_at(Level::Plain, false, &[term(i)], Finish::default(), &mut alone, shapes[i].1);
            close(together, &alone, 1e-3);
        }
    }
}

/// One product by its definition; `at` reads the matrix at (inner, column).
fn slow<E: Element>(x: Rows<'_, E>, n: usize, at: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.count() * n);
    for i in 0..x.count() {
        for j in 0..n {
            let sum: f64 = x.row(i).iter().enumerate().map(|(k, v)| f64::from(v.widen()) * f64::from(at(k, j))).sum();
            out.push(sum as f32);
        }
    }
    out
}

/// Rows, inner steps and columns: odd ones, one row, one column, more than a chunk, more than a block of rows.
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 7, 5),
    (3, 33, 70),
    (13, 64, 33),
    (17, 65, 129),
    (25, 2100, 65),
    (9, 1, 1),
    (16, 129, 67),
    (100, 31, 130),
    (5, 2, 64),
    (800, 3, 2),
];

/// The same kinds, of which an interpreter makes some minutes.
const SMALL_SHAPES: &[(usize, usize, usize)] =
    &[(1, 7, 5), (3, 33, 70), (17, 6, 67), (5, 2100, 3), (9, 1, 1), (5, 2, 64), (780, 3, 2)];

fn shapes() -> impl Iterator<Item = (usize, usize, usize)> {
    if cfg!(miri) { SMALL_SHAPES } else { SHAPES }.iter().copied()
}

fn agree<E: Element>() {
    for level in levels() {
        for (m, inner, n) in shapes() {
            let x: Vec<E> = values(m * (inner + 3), 1);
            let weight: Vec<E> = values(n * (inner + 1), 2);
            let plain: Vec<E> = values(inner * (n + 2), 3);
            let x = Rows::new(&x, m, inner, inner + 3);
            let (weight, plain) = (Rows::new(&weight, n, inner, inner + 1), Rows::new(&plain, inner, n, n + 2));
            let forward = slow(x, n, |k, j| weight.row(j)[k].widen());
            let backward = slow(x, n, |k, j| plain.row(k)[j].widen());
            let both: Vec<f32> = forward.iter().zip(&backward).map(|(a, b)| a + b).collect();
            let bound = 1e-5 * (inner as f32).sqrt().max(1.0) * 4.0;
            for parallel in [true, false] {
                let run = |terms: &[Term<'_, E>]| {
                    let stride = n + 5;
                    let mut out = vec![9f32; m * stride];
                    run_at(level, parallel, terms, Finish::default(), &mut out, stride);
                    let gap = out.chunks(stride).all(|row| row[n..].iter().all(|v| *v == 9.0));
                    assert!(gap, "{level:?} wrote between the rows");
                    out.chunks(stride).flat_map(|row| row[..n].to_vec()).collect::<Vec<f32>>()
                };
                let (t, p) = (Term::transposed(x, weight), Term::plain(x, plain));
                close(&run(&[t]), &forward, bound);
                close(&run(&[p]), &backward, bound);
                close(&run(&[p, t]), &both, bound * 2.0);
            }
        }
    }
}

#[test]
fn every_level_agrees_with_the_definition_in_f32() {
    agree::<f32>();
}

#[test]
fn every_level_agrees_with_the_definition_in_bf16() {
    agree::<bf16>();
}

#[test]
fn what_is_added_is_added_before_rounding() {
    for level in levels() {
        for (m, inner, n) in [(2, 40, 70), (23, 40, 70)] {
            let (x, weight): (Vec<bf16>, Vec<bf16>) = (values(m * inner, 1), values(n * inner, 2));
            let (bias, add): (Vec<bf16>, Vec<bf16>) = (values(n, 3), values(m * n, 4));
            let (left, right) = (values::<f32>(m * 3, 5), values::<f32>(3 * n, 6));
            let x = Rows::dense(&x, m, inner);
            let finish = Finish {
                factor: 0.5,
                bias: Some(&bias),
                low_rank: Some((Rows::dense(&left, m, 3), Rows::dense(&right, 3, n))),
                add: Some(Rows::dense(&add, m, n)),
                accumulate: true,
                ..Finish::default()
            };
            let mut out: Vec<f32> = vec![0.25; m * n];
            let weight = Rows::dense(&weight, n, inner);
            run_at(level, true, &[Term::transposed(x, weight)], finish, &mut out, n);
            let mut expected = slow(x, n, |k, j| weight.row(j)[k].widen());
            for (at, value) in expected.iter_mut().enumerate() {
                let (i, j) = (at / n, at % n);
                let low: f32 = (0..3).map(|r| left[i * 3 + r] * right[r * n + j]).sum();
                *value = *value * 0.5 + bias[j].widen() + low + add[at].widen() + 0.25;
            }
            close(&out, &expected, 1e-5);
        }
    }
}

#[test]
fn sums_do_not_depend_on_rows_or_threads() {
    let (m, inner, n) = if cfg!(miri) { (38, 30, 70) } else { (50, 300, 90) };
    let (x, weight): (Vec<bf16>, Vec<bf16>) = (values(m * inner, 1), values(n * inner, 2));
    let weight = Rows::dense(&weight, n, inner);
    let run = |x: Rows<'_, bf16>, parallel: bool| {
        let mut out = vec![0f32; x.count() * n];
        run_at(level(), parallel, &[Term::transposed(x, weight)], Finish::default(), &mut out, n);
        out
    };
    let x = Rows::dense(&x, m, inner);
    let whole = run(x, true);
    assert_eq!(whole, run(x, false));
    assert_eq!(whole[20 * n..], run(x.part(20..m, 0..inner), true));
}

#[test]
fn nothing_times_anything_is_zero() {
    let empty: Vec<f32> = Vec::new();
    let mut out = vec![1f32; 6];
    product(&[Term::plain(Rows::new(&empty, 2, 0, 0), Rows::new(&empty, 0, 3, 3))], Finish::default(), &mut out, 3);
    assert_eq!(out, [0.0; 6]);
    product(&[Term::plain(Rows::new(&empty, 0, 4, 4), Rows::dense(&[1.0; 12], 4, 3))], Finish::default(), &mut out, 3);
    assert_eq!(out, [0.0; 6]);
}

#[test]
fn a_weight_in_bf16_under_f32_values_is_the_same_weight_in_f32() {
    for (level, (m, inner, n)) in levels().into_iter().flat_map(|level| shapes().map(move |shape| (level, shape))) {
        let x: Vec<f32> = values(m * (inner + 3), 1);
        let x = Rows::new(&x, m, inner, inner + 3);
        let (weight, plain): (Vec<bf16>, Vec<bf16>) = (values(n * (inner + 1), 2), values(inner * (n + 2), 3));
        let wide = |values: &[bf16]| values.iter().map(|value| value.widen()).collect::<Vec<f32>>();
        let (wide_weight, wide_plain) = (wide(&weight), wide(&plain));
        let narrow = [
            Term::transposed(x, Weights::half(Rows::new(&weight, n, inner, inner + 1))),
            Term::plain(x, Weights::half(Rows::new(&plain, inner, n, n + 2))),
        ];
        let wide = [
            Term::transposed(x, Rows::new(&wide_weight, n, inner, inner + 1)),
            Term::plain(x, Rows::new(&wide_plain, inner, n, n + 2)),
        ];
        for (narrow, wide) in narrow.into_iter().zip(wide) {
            let [narrow, wide] = [narrow, wide].map(|term| {
                let mut out = vec![0f32; m * n];
                run_at(level, true, &[term], Finish::default(), &mut out, n);
                out.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            });
            assert!(narrow == wide, "{level:?} {m} {inner} {n}");
        }
    }
}
