//! Products with thin f32 factors beside values of either type.
//!
//! With bf16 values an f32 factor is split into its bf16 rounding and the rounding of what is left: sixteen bits of
//! mantissa, so that the factor loses nothing that the values have, and the bf16 product serves.

use half::bf16;

use super::element::Element;
use super::product::{Finish, Term, product};
use super::rows::Rows;

/// `x·Aᵀ` in f32: `x: [m, width]`, `a: [rank, width]`; returns `[m, rank]`.
pub(crate) fn down<E: Element>(x: Rows<'_, E>, a: Rows<'_, f32>) -> Vec<f32> {
    let (m, rank) = (x.count(), a.count());
    let split = Split::<E>::of(a);
    let mut out = vec![0f32; m * split.parts * rank];
    product(&[Term::transposed(x, split.rows())], Finish::default(), &mut out, split.parts * rank);
    split.join_columns(out, m, rank)
}

/// `uᵀ·x` in f32: `u: [m, rank]`, `x: [m, width]`; returns `[rank, width]`.
pub(crate) fn outer<E: Element>(u: Rows<'_, f32>, x: Rows<'_, E>) -> Vec<f32> {
    let (m, rank, width) = (u.count(), u.width(), x.width());
    let turned = transposed(u);
    let split = Split::<E>::of(Rows::dense(&turned, rank, m));
    let mut out = vec![0f32; split.parts * rank * width];
    product(&[Term::plain(split.rows(), x)], Finish::default(), &mut out, width);
    if split.parts == 2 {
        let (high, low) = out.split_at_mut(rank * width);
        high.iter_mut().zip(low).for_each(|(h, l)| *h += *l);
        out.truncate(rank * width);
    }
    out
}

/// The rows of a matrix as columns, without gaps.
pub(crate) fn transposed(matrix: Rows<'_, f32>) -> Vec<f32> {
    let (count, width) = (matrix.count(), matrix.width());
    let mut turned = vec![0f32; count * width];
    for i in 0..count {
        for (j, value) in matrix.row(i).iter().enumerate() {
            turned[j * count + i] = *value;
        }
    }
    turned
}

/// A factor in the type of the values it meets: as it is, or its high rows and then its low rows.
struct Split<E> {
    values: Vec<E>,
    parts: usize,
    count: usize,
    width: usize,
}

impl<E: Element> Split<E> {
    fn of(factor: Rows<'_, f32>) -> Self {
        let (count, width) = (factor.count(), factor.width());
        let all = || (0..count).flat_map(|i| factor.row(i));
        let mut values: Vec<E> = all().map(|v| E::narrow(*v)).collect();
        let parts = if E::PAIRED { 2 } else { 1 };
        if parts == 2 {
            values.extend(all().map(|v| E::narrow(v - bf16::narrow(*v).widen())));
        }
        Self { values, parts, count, width }
    }

    fn rows(&self) -> Rows<'_, E> {
        Rows::dense(&self.values, self.parts * self.count, self.width)
    }

    /// Adds the low columns to the high ones.
    fn join_columns(&self, out: Vec<f32>, m: usize, rank: usize) -> Vec<f32> {
        if self.parts == 1 {
            return out;
        }
        let mut joined = Vec::with_capacity(m * rank);
        for row in out.chunks_exact((2 * rank).max(1)) {
            let (high, low) = row.split_at(rank);
            joined.extend(high.iter().zip(low).map(|(h, l)| h + l));
        }
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{close, values};

    fn truth(left: &[f32], right: &[f32], m: usize, n: usize, inner: usize) -> Vec<f32> {
        let at = |i: usize, j: usize| (0..inner).map(|k| left[i * inner + k] * right[k * n + j]).sum();
        (0..m * n).map(|at_| at(at_ / n, at_ % n)).collect()
    }

    fn both<E: Element>(bound: f32) {
        let (m, width, rank) = (29, 67, 5);
        let x: Vec<E> = values(m * width, 1);
        let wide: Vec<f32> = x.iter().map(|v| v.widen()).collect();
        let (a, u) = (values::<f32>(rank * width, 2), values::<f32>(m * rank, 3));
        let a_turned = transposed(Rows::dense(&a, rank, width));
        let got = down(Rows::dense(&x, m, width), Rows::dense(&a, rank, width));
        close(&got, &truth(&wide, &a_turned, m, rank, width), bound);
        let u_turned = transposed(Rows::dense(&u, m, rank));
        let got = outer(Rows::dense(&u, m, rank), Rows::dense(&x, m, width));
        close(&got, &truth(&u_turned, &wide, rank, width, m), bound);
    }

    #[test]
    fn thin_factors_keep_their_f32_digits() {
        both::<f32>(1e-5);
        // Sixteen bits of mantissa over 67 products of values below one; the bf16 rounding alone would be 0.01 off.
        both::<bf16>(2e-4);
    }
}
