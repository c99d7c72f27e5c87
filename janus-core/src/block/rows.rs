//! Norms, activations and rotation, row by row over the threads, forward and backward.

use rayon::prelude::*;

use super::view::NormView;
use crate::kernel::vector::{normal_cdf, normal_density, sigmoid, sum, vectorized};
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
    let mut y = Matrix::new(x.count(), x.width());
    each_row(&mut y, |i, y| match norm.bias {
        Some(bias) => layer_norm_row(x.row(i), norm.weight, bias, norm.eps, y),
        None => rms_norm_row(x.row(i), norm.weight, norm.eps, y),
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

vectorized! {
    /// `y = g · x / sqrt(mean(x²) + eps)`.
    fn rms_norm_row<E>(x: &[E], weight: &[f32], eps: f32, y: &mut [E]) {
        let scale = rms_scale(x, eps);
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = E::narrow(x.widen() * scale * w);
        }
    }

    /// With `s = 1/sqrt(mean(x²)+eps)`, `n = x·s`: `dx = up + s·(g·dy - n·mean(g·dy·n))`.
    fn rms_norm_backward_row<E>(x: &[E], weight: &[f32], eps: f32, dy: &[E], upstream: &[E], dx: &mut [E]) {
        let width = x.len();
        let (weight, dy, upstream, dx) = (&weight[..width], &dy[..width], &upstream[..width], &mut dx[..width]);
        let scale = rms_scale(x, eps);
        let mean = sum(width, |i| x[i].widen() * dy[i].widen() * weight[i]) * scale / width as f32;
        for i in 0..width {
            let d = scale * (dy[i].widen() * weight[i] - x[i].widen() * scale * mean);
            dx[i] = E::narrow(upstream[i].widen() + d);
        }
    }

    /// `y = g · (x - mean) / sqrt(var + eps) + b`.
    fn layer_norm_row<E>(x: &[E], weight: &[f32], bias: &[f32], eps: f32, y: &mut [E]) {
        let (mean, scale) = layer_scale(x, eps);
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = E::narrow((x.widen() - mean) * scale * w + b);
        }
    }

    /// With `n = (x - mean)·s`: `dx = up + s·(g·dy - mean(g·dy) - n·mean(g·dy·n))`.
    fn layer_norm_backward_row<E>(x: &[E], weight: &[f32], eps: f32, dy: &[E], upstream: &[E], dx: &mut [E]) {
        let width = x.len();
        let (weight, dy, upstream, dx) = (&weight[..width], &dy[..width], &upstream[..width], &mut dx[..width]);
        let (mean, scale) = layer_scale(x, eps);
        let first = sum(width, |i| dy[i].widen() * weight[i]) / width as f32;
        let dot = |i: usize| dy[i].widen() * weight[i] * (x[i].widen() - mean);
        let second = sum(width, dot) * scale / width as f32;
        for i in 0..width {
            let d = scale * (dy[i].widen() * weight[i] - first - (x[i].widen() - mean) * scale * second);
            dx[i] = E::narrow(upstream[i].widen() + d);
        }
    }

    /// With n as above: `dg += dy·n`, `db += dy`.
    fn norm_gradients_row<E>(x: &[E], centred: bool, eps: f32, dy: &[E], d_weight: &mut [f32], d_bias: &mut [f32]) {
        let (mean, scale) = if centred { layer_scale(x, eps) } else { (0.0, rms_scale(x, eps)) };
        for (((x, dy), d_weight), d_bias) in x.iter().zip(dy).zip(d_weight).zip(d_bias) {
            *d_weight += dy.widen() * (x.widen() - mean) * scale;
            *d_bias += dy.widen();
        }
    }

    /// `silu(gate)·up`.
    fn silu_gate_row<E>(gate: &[E], up: &[E], y: &mut [E]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            let g = g.widen();
            *y = E::narrow(g * sigmoid(g) * u.widen());
        }
    }

    /// `dy·up·σ(g)·(1 + g·(1 - σ(g)))`.
    fn silu_gate_d_gate_row<E>(gate: &[E], up: &[E], dy: &[E], d_gate: &mut [E]) {
        for (((d, g), u), dy) in d_gate.iter_mut().zip(gate).zip(up).zip(dy) {
            let g = g.widen();
            let s = sigmoid(g);
            *d = E::narrow(dy.widen() * u.widen() * s * (1.0 + g * (1.0 - s)));
        }
    }

    /// `x·Φ(x)`.
    fn gelu_row<E>(x: &[E], y: &mut [E]) {
        for (y, x) in y.iter_mut().zip(x) {
            let x = x.widen();
            *y = E::narrow(x * normal_cdf(x));
        }
    }

    /// `dy·(Φ(x) + x·φ(x))`.
    fn gelu_backward_row<E>(x: &[E], dy: &[E], dx: &mut [E]) {
        for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
            let x = x.widen();
            *dx = E::narrow(dy.widen() * (normal_cdf(x) + x * normal_density(x)));
        }
    }

    /// Pairs (j, j + half) turned by their angles.
    fn rotate_head<E>(head: &mut [E], cosines: &[f32], sines: &[f32], sign: f32) {
        let (first, second) = head.split_at_mut(cosines.len());
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            let (x, y, s) = (a.widen(), b.widen(), s * sign);
            (*a, *b) = (E::narrow(x * c - y * s), E::narrow(y * c + x * s));
        }
    }
}

#[inline(always)]
fn rms_scale<E: Element>(x: &[E], eps: f32) -> f32 {
    let mean = sum(x.len(), |i| x[i].widen() * x[i].widen()) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

#[inline(always)]
fn layer_scale<E: Element>(x: &[E], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(x.len(), |i| x[i].widen()) / count;
    let variance = sum(x.len(), |i| (x[i].widen() - mean) * (x[i].widen() - mean)) / count;
    (mean, 1.0 / (variance + eps).sqrt())
}
