//! Products with thin f32 factors beside values of either type.
//!
//! With bf16 values an f32 factor is split into its bf16 rounding and the rounding of what is left: sixteen bits of
//! mantissa, so that the factor loses nothing that the values have, and the bf16 product serves. Factors that meet the same
//! values lie one behind the other in one product, which reads the values once; products of different values are made
//! together. No group is without factors.

use super::element::Element;
use super::finish::Finish;
use super::product::{Job, SumOrder, Term, products};
use super::rows::Rows;
use super::vector::vectorized;

/// `x·Aᵀ` in f32 of each `x: [m, width]` and each of its `A: [rank, width]`, which may have different ranks; returns one
/// `[m, rank]` for every factor, in their order.
pub(crate) fn down<E: Element>(groups: &[(Rows<'_, E>, Vec<Rows<'_, f32>>)], order: SumOrder) -> Vec<Vec<f32>> {
    let splits: Vec<Split<E>> = groups.iter().map(|(_, factors)| Split::of(factors)).collect();
    let mut outs: Vec<Vec<f32>> =
        groups.iter().zip(&splits).map(|((x, _), split)| vec![0f32; x.count() * split.count()]).collect();
    let jobs = groups.iter().zip(&splits).zip(&mut outs).map(|(((x, _), split), out)| Job {
        terms: vec![Term::transposed(*x, split.rows()).in_order(order)],
        finish: Finish::default(),
        out,
        out_stride: split.count(),
        kept: None,
    });
    products(jobs.collect());
    splits.iter().zip(&outs).flat_map(|(split, out)| split.join_columns(out)).collect()
}

/// `uᵀ·x` in f32 of each `x: [m, width]` and each of its `u: [m, rank]`, which may have different ranks; returns one
/// `[rank, width]` for every factor, in their order.
pub(crate) fn outer<E: Element>(groups: &[(Vec<Rows<'_, f32>>, Rows<'_, E>)]) -> Vec<Vec<f32>> {
    let turned: Vec<Vec<Vec<f32>>> = groups.iter().map(|(us, _)| us.iter().map(Rows::turned).collect()).collect();
    let splits: Vec<Split<E>> = groups
        .iter()
        .zip(&turned)
        .map(|((us, _), turned)| {
            let rows = |(u, turned): (&Rows<'_, f32>, _)| Rows::dense(turned, u.width(), u.count());
            let factors: Vec<Rows<'_, f32>> = us.iter().zip(turned.iter().map(Vec::as_slice)).map(rows).collect();
            Split::of(&factors)
        })
        .collect();
    let mut outs: Vec<Vec<f32>> =
        groups.iter().zip(&splits).map(|((_, x), split)| vec![0f32; split.count() * x.width()]).collect();
    let jobs = groups.iter().zip(&splits).zip(&mut outs).map(|(((_, x), split), out)| Job {
        terms: vec![Term::plain(split.rows(), *x)],
        finish: Finish::default(),
        out,
        out_stride: x.width(),
        kept: None,
    });
    products(jobs.collect());
    let joined = groups.iter().zip(&splits).zip(&outs);
    joined.flat_map(|(((_, x), split), out)| split.join_rows(out, x.width())).collect()
}

/// Factors in the type of the values they meet, one behind the other: as they are, or all high rows and then all low rows.
struct Split<E> {
    values: Vec<E>,
    parts: usize,
    /// Rows of each factor.
    ranks: Vec<usize>,
    width: usize,
}

impl<E: Element> Split<E> {
    fn of(factors: &[Rows<'_, f32>]) -> Self {
        let ranks: Vec<usize> = factors.iter().map(Rows::count).collect();
        let (rank, width) = (ranks.iter().sum::<usize>(), factors.first().map_or(0, Rows::width));
        assert!(factors.iter().all(|factor| factor.width() == width), "factors of different widths");
        let parts = if E::PAIRED { 2 } else { 1 };
        let mut values = E::zeros(parts * rank * width);
        let (high, low) = values.split_at_mut(rank * width);
        let rows = factors.iter().flat_map(|factor| (0..factor.count()).map(|i| factor.row(i)));
        for (i, row) in rows.enumerate() {
            let own = i * width..(i + 1) * width;
            round(row, &mut high[own.clone()]);
            if parts == 2 {
                round_rest(row, &mut low[own]);
            }
        }
        Self { values, parts, ranks, width }
    }

    /// Rows of all factors and parts.
    fn count(&self) -> usize {
        self.parts * self.rank()
    }

    fn rank(&self) -> usize {
        self.ranks.iter().sum()
    }

    fn rows(&self) -> Rows<'_, E> {
        Rows::dense(&self.values, self.count(), self.width)
    }

    /// Of `[m, count]` each factor's `[m, rank]`, the low columns added to the high ones.
    fn join_columns(&self, out: &[f32]) -> Vec<Vec<f32>> {
        let (rank, m) = (self.rank(), out.len() / self.count().max(1));
        let mut first = 0;
        self.ranks
            .iter()
            .map(|own| {
                let high = first..first + own;
                first = high.end;
                let mut joined = Vec::with_capacity(m * own);
                for row in out.chunks_exact(self.count().max(1)) {
                    match self.parts {
                        1 => joined.extend_from_slice(&row[high.clone()]),
                        _ => joined.extend(high.clone().map(|at| row[at] + row[rank + at])),
                    }
                }
                joined
            })
            .collect()
    }

    /// Of `[count, width]` each factor's `[rank, width]`, the low rows added to the high ones.
    fn join_rows(&self, out: &[f32], width: usize) -> Vec<Vec<f32>> {
        let (high, low) = out.split_at(self.rank() * width);
        let mut first = 0;
        self.ranks
            .iter()
            .map(|own| {
                let place = first..first + own * width;
                first = place.end;
                let mut joined = high[place.clone()].to_vec();
                if self.parts == 2 {
                    joined.iter_mut().zip(&low[place]).for_each(|(high, low)| *high += low);
                }
                joined
            })
            .collect()
    }
}

vectorized! {
    /// The values rounded.
    fn round<E>(values: &[f32], rounded: &mut [E]) {
        values.iter().zip(rounded).for_each(|(value, rounded)| *rounded = E::narrow(*value));
    }

    /// What rounding leaves of the values, rounded.
    fn round_rest<E>(values: &[f32], rest: &mut [E]) {
        values.iter().zip(rest).for_each(|(value, rest)| *rest = E::narrow(*value - E::narrow(*value).widen()));
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernel::testing::{close, values};

    fn truth(left: &[f32], right: &[f32], m: usize, n: usize, inner: usize) -> Vec<f32> {
        let at = |i: usize, j: usize| (0..inner).map(|k| left[i * inner + k] * right[k * n + j]).sum();
        (0..m * n).map(|at_| at(at_ / n, at_ % n)).collect()
    }

    fn both<E: Element>(bound: f32) {
        let (m, width, rank) = if cfg!(miri) { (11, 35, 5) } else { (29, 67, 5) };
        let x: Vec<E> = values(m * width, 1);
        let wide: Vec<f32> = x.iter().map(|v| v.widen()).collect();
        let (a, u) = (values::<f32>(rank * width, 2), values::<f32>(m * rank, 3));
        let a_turned = Rows::dense(&a, rank, width).turned();
        let (x, a) = (Rows::dense(&x, m, width), Rows::dense(&a, rank, width));
        // Whole, and as two factors of different ranks that share the values, beside other values of another size.
        let parts = vec![a.part(0..2, 0..width), a.part(2..rank, 0..width)];
        let (other, thinner) = (x.part(0..7, 0..13), a.part(0..3, 0..13));
        let got = down(&[(x, vec![a]), (other, vec![thinner]), (x, parts)], SumOrder::ByCount);
        let expected = truth(&wide, &a_turned, m, rank, width);
        close(&got[0], &expected, bound);
        let columns = |of: std::ops::Range<usize>| -> Vec<f32> {
            expected.chunks_exact(rank).flat_map(|row| row[of.clone()].to_vec()).collect()
        };
        close(&got[2], &columns(0..2), bound);
        close(&got[3], &columns(2..rank), bound);
        assert_eq!((got.len(), got[1].len()), (4, 7 * 3));
        close(&got[1], &down(&[(other, vec![thinner])], SumOrder::ByCount)[0], 0.0);
        let u_turned = Rows::dense(&u, m, rank).turned();
        let u = Rows::dense(&u, m, rank);
        let parts = vec![u.part(0..m, 0..2), u.part(0..m, 2..rank)];
        let got = outer(&[(vec![u], x), (vec![u.part(0..7, 0..3)], other), (parts, x)]);
        let expected = truth(&u_turned, &wide, rank, width, m);
        close(&got[0], &expected, bound);
        close(&got[2], &expected[..2 * width], bound);
        close(&got[3], &expected[2 * width..], bound);
        assert_eq!((got.len(), got[1].len()), (4, 3 * 13));
        close(&got[1], &outer(&[(vec![u.part(0..7, 0..3)], other)])[0], 0.0);
    }

    #[test]
    fn thin_factors_keep_their_f32_digits() {
        both::<f32>(1e-5);
        // Sixteen bits of mantissa over 67 products of values below one; the bf16 rounding alone would be 0.01 off.
        both::<bf16>(2e-4);
    }
}
