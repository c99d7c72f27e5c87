//! Rows of one width, several of them a piece of work: what both norms walk over.

use rayon::prelude::*;

/// Rows of a parallel piece.
const ROWS: usize = 16;

/// `f(row of x, row of y)` for every row of `width` values.
pub(super) fn each_row(x: &[f32], width: usize, y: &mut [f32], f: impl Fn(&[f32], &mut [f32]) + Sync) {
    y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(y, x)| {
        y.chunks_exact_mut(width).zip(x.chunks_exact(width)).for_each(|(y, x)| f(x, y));
    });
}

/// `f(row of x, row of dy, row of dx)` for every row of `width` values; nothing where `dx` is empty.
pub(super) fn each_row_back(
    x: &[f32],
    dy: &[f32],
    width: usize,
    dx: &mut [f32],
    f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) {
    let inputs = x.par_chunks(ROWS * width).zip(dy.par_chunks(ROWS * width));
    dx.par_chunks_mut(ROWS * width).zip(inputs).for_each(|(dx, (x, dy))| {
        let inputs = x.chunks_exact(width).zip(dy.chunks_exact(width));
        dx.chunks_exact_mut(width).zip(inputs).for_each(|(dx, (x, dy))| f(x, dy, dx));
    });
}
