//! Norms, activations and rotation, row by row over the threads, forward and backward.

use rayon::prelude::*;

use super::view::NormView;
use crate::kernel::row_math::{
    gelu_backward_row, gelu_row, layer_norm_backward_row, layer_norm_row, norm_gradients_row, rms_norm_backward_row,
    rms_norm_row, rotate_head, silu_gate_d_gate_row, silu_gate_row,
};
use crate::kernel::{Element, Matrix, Rows};

/// Rows of a parallel piece.
const ROWS: usize = 16;

/// Rows whose share of a parameter's gradient is summed in one piece.
const SUMMED_ROWS: usize = 64;

/// Calls `f(i, row)` for every row of a matrix, spread over the threads.
fn each_row<E: Element>(matrix: &mut Matrix<E>, f: impl Fn(usize, &mut [E]) + Sync) {
    let (stride, width, rows) = (matrix.stride().max(1), matrix.width(), matrix.rows());
    if rows <= ROWS {
        // Waking other threads costs more than this.
        matrix.values_mut().chunks_mut(stride).enumerate().for_each(|(i, row)| f(i, &mut row[..width]));
        return;
    }
    matrix.values_mut().par_chunks_mut(stride * ROWS).enumerate().for_each(|(piece, rows)| {
        for (i, row) in rows.chunks_mut(stride).enumerate() {
            f(piece * ROWS + i, &mut row[..width]);
        }
    });
}

/// The norm of every row.
pub(super) fn norm<E: Element>(x: Rows<'_, E>, norm: &NormView<'_>) -> Matrix<E> {
    norm_by_row(x, |_| norm)
}

/// The norm of every row, each with parameters of its own.
pub(super) fn norm_by_row<'a, E: Element>(
    x: Rows<'_, E>,
    of_row: impl Fn(usize) -> &'a NormView<'a> + Sync,
) -> Matrix<E> {
    let mut y = Matrix::new(x.count(), x.width());
    each_row(&mut y, |i, y| {
        let norm = of_row(i);
        match norm.bias {
            Some(bias) => layer_norm_row(x.row(i), norm.weight, bias, norm.eps, y),
            None => rms_norm_row(x.row(i), norm.weight, norm.eps, y),
        }
    });
    y
}

/// `dx = upstream + (gradient of the norm's input from that of its output)`.
pub(super) fn norm_backward<E: Element>(
    x: Rows<'_, E>,
    norm: &NormView<'_>,
    dy: Rows<'_, E>,
    upstream: Rows<'_, E>,
) -> Matrix<E> {
    let mut dx = Matrix::new(x.count(), x.width());
    each_row(&mut dx, |i, dx| match norm.bias {
        Some(_) => layer_norm_backward_row(x.row(i), norm.weight, norm.eps, dy.row(i), upstream.row(i), dx),
        None => rms_norm_backward_row(x.row(i), norm.weight, norm.eps, dy.row(i), upstream.row(i), dx),
    });
    dx
}

/// Adds the gradients of weight and bias to the flat gradient, those of them that are trained. Pieces of rows are summed
/// apart and then in their order, so that the threads change nothing.
pub(super) fn norm_gradients<E: Element>(x: Rows<'_, E>, norm: &NormView<'_>, dy: Rows<'_, E>, flat: &mut [f32]) {
    if !norm.is_trained() {
        return;
    }
    let (width, centred) = (x.width(), norm.bias.is_some());
    let pieces: Vec<Vec<f32>> = (0..x.count().div_ceil(SUMMED_ROWS))
        .into_par_iter()
        .map(|piece| {
            let mut sums = vec![0f32; 2 * width];
            let (of_weight, of_bias) = sums.split_at_mut(width);
            for i in piece * SUMMED_ROWS..x.count().min((piece + 1) * SUMMED_ROWS) {
                norm_gradients_row(x.row(i), centred, norm.eps, dy.row(i), of_weight, of_bias);
            }
            sums
        })
        .collect();
    for (place, start) in norm.gradients.iter().zip([0, width]).filter_map(|(place, start)| Some(((*place)?, start))) {
        for sums in &pieces {
            let gradient = flat[place..place + width].iter_mut();
            gradient.zip(&sums[start..start + width]).for_each(|(gradient, sum)| *gradient += sum);
        }
    }
}

/// `silu(gate)·up`.
pub(super) fn silu_gate<E: Element>(gate: Rows<'_, E>, up: Rows<'_, E>) -> Matrix<E> {
    let mut y = Matrix::new(gate.count(), gate.width());
    each_row(&mut y, |i, y| silu_gate_row(gate.row(i), up.row(i), y));
    y
}

/// Gradients of gate and up.
pub(super) fn silu_gate_backward<E: Element>(gate: Rows<'_, E>, up: Rows<'_, E>, dy: Rows<'_, E>) -> [Matrix<E>; 2] {
    let mut d_gate = Matrix::new(gate.count(), gate.width());
    let mut d_up = Matrix::new(gate.count(), gate.width());
    each_row(&mut d_gate, |i, d| silu_gate_d_gate_row(gate.row(i), up.row(i), dy.row(i), d));
    each_row(&mut d_up, |i, d| silu_gate_row(gate.row(i), dy.row(i), d));
    [d_gate, d_up]
}

/// `x·Φ(x)`.
pub(super) fn gelu<E: Element>(x: Rows<'_, E>) -> Matrix<E> {
    let mut y = Matrix::new(x.count(), x.width());
    each_row(&mut y, |i, y| gelu_row(x.row(i), y));
    y
}

/// Gradient of gelu's input.
pub(super) fn gelu_backward<E: Element>(x: Rows<'_, E>, dy: Rows<'_, E>) -> Matrix<E> {
    let mut dx = Matrix::new(x.count(), x.width());
    each_row(&mut dx, |i, dx| gelu_backward_row(x.row(i), dy.row(i), dx));
    dx
}

/// Rotates the heads of every row by the cosines and sines of its token, `[tokens, head_dim / 2]`; `sign` -1 turns back.
pub(super) fn rotate<E: Element>(x: &mut Matrix<E>, head_dim: usize, cosines: &[f32], sines: &[f32], sign: f32) {
    let half = head_dim / 2;
    each_row(x, |i, row| {
        let token = i * half..(i + 1) * half;
        for head in row.chunks_exact_mut(head_dim) {
            rotate_head(head, &cosines[token.clone()], &sines[token.clone()], sign);
        }
    });
}

/// Some rows of a matrix.
pub(super) fn gather<E: Element>(x: Rows<'_, E>, rows: &[u32]) -> Matrix<E> {
    let mut some = Matrix::new(rows.len(), x.width());
    each_row(&mut some, |i, row| row.copy_from_slice(x.row(rows[i] as usize)));
    some
}

/// Adds rows back where they came from; zeros elsewhere.
pub(super) fn scatter<E: Element>(some: Rows<'_, E>, rows: &[u32], count: usize) -> Matrix<E> {
    let mut all = Matrix::zeros(count, some.width());
    let stride = all.stride();
    for (i, row) in rows.iter().enumerate() {
        let target: &mut [E] = &mut all.values_mut()[*row as usize * stride..][..some.width()];
        target.iter_mut().zip(some.row(i)).for_each(|(t, s)| *t = E::narrow(t.widen() + s.widen()));
    }
    all
}
