//! What happens to a product's sums before they are rounded and stored.

use std::ops::Range;

use super::blocks::Blocks;
use super::element::Element;
use super::level::Level;
use super::product::BLOCK_COLUMNS;
use super::rows::{Rows, SharedRows};
use super::vector::by_level;

/// What happens to the sums before they are rounded, in this order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish<'a, E> {
    /// Factor on the sums.
    pub(crate) factor: f32,
    /// Factors on the sums by column, `[n]`.
    pub(crate) factors: Option<&'a [f32]>,
    /// `[n]`, added to every row.
    pub(crate) bias: Option<&'a [E]>,
    /// The same in f32.
    pub(crate) wide_bias: Option<&'a [f32]>,
    /// `left: [m, rank]` times `right: [rank, n]`, added.
    pub(crate) low_rank: Option<(Rows<'a, f32>, Rows<'a, f32>)>,
    /// `[m, n]` in f32, added.
    pub(crate) wide_add: Option<Rows<'a, f32>>,
    /// What runs of rows have of their own, in the order of rows; none, or every row in one.
    pub(crate) shares: &'a [Share<'a, E>],
    /// `[m, n]`, added.
    pub(crate) add: Option<Rows<'a, E>>,
    /// Whether what the result held before is added, too.
    pub(crate) accumulate: bool,
}

/// What happens to the sums of some rows, in the places of [`Finish`]'s fields of the same names.
#[derive(Debug)]
pub(crate) struct Share<'a, E> {
    pub(crate) rows: Range<usize>,
    /// Factors on the sums by column, `[n]`.
    pub(crate) factors: Option<&'a [f32]>,
    /// `[n]`, added in the place of the bias.
    pub(crate) wide_bias: Option<&'a [f32]>,
    /// `left: [rows, rank]` times `right: [rank, n]`, added.
    pub(crate) low_rank: Vec<(Rows<'a, f32>, Blocks<'a, E>)>,
}

impl<E> Default for Finish<'_, E> {
    fn default() -> Self {
        Self {
            factor: 1.0,
            factors: None,
            bias: None,
            wide_bias: None,
            low_rank: None,
            wide_add: None,
            shares: &[],
            add: None,
            accumulate: false,
        }
    }
}

impl<E: Element> Finish<'_, E> {
    /// Asks for the factors of the shares' pairs at a block of columns: sixteen rows may have sixteen of them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn bring(&self, rows: &Range<usize>, column: usize) {
        let own = self.shares.iter().filter(|share| share.rows.start < rows.end && rows.start < share.rows.end);
        own.flat_map(|share| &share.low_rank).for_each(|(_, right)| right.bring(column));
    }
}

/// Finishes the sums of some rows of a block, [`BLOCK_COLUMNS`] a row, and writes them, rounded; to `kept` what they are before
/// anything of the result's own shape is added.
///
/// # Safety
/// No one else touches these columns of these rows of `out` and of what is kept.
pub(super) unsafe fn write<E: Element, O: Element>(
    level: Level,
    rows: Range<usize>,
    columns: Range<usize>,
    finish: &Finish<'_, E>,
    sums: &[f32],
    out: &SharedRows<'_, O>,
    kept: Option<&SharedRows<'_, E>>,
) {
    by_level!(level, |fused| fn<E, O>(
        rows: Range<usize>,
        columns: Range<usize>,
        finish: &Finish<'_, E>,
        sums: &[f32],
        out: &SharedRows<'_, O>,
        kept: Option<&SharedRows<'_, E>>,
    ) {
        let mut shares = finish.shares.iter();
        let mut share = shares.next();
        for (row, sums) in rows.zip(sums.chunks_exact(BLOCK_COLUMNS)) {
            while share.is_some_and(|share| share.rows.end <= row) {
                share = shares.next();
            }
            let mut lanes = Lanes::of(&sums[..columns.len()]);
            if finish.factor != 1.0 {
                lanes.0.iter_mut().for_each(|lane| *lane *= finish.factor);
            }
            if let Some(factors) = share.and_then(|share| share.factors).or(finish.factors) {
                lanes.multiply(&factors[columns.clone()]);
            }
            let wide_bias = share.and_then(|share| share.wide_bias).or(finish.wide_bias);
            if let Some(bias) = finish.bias.filter(|_| wide_bias.is_none()) {
                lanes.add(&bias[columns.clone()]);
            }
            if let Some(bias) = wide_bias {
                lanes.add(&bias[columns.clone()]);
            }
            if let Some(share) = share {
                for (left, right) in &share.low_rank {
                    for (factor, values) in left.row(row - share.rows.start).iter().zip(right.at(columns.start)) {
                        lanes.add_product(fused, *factor, values);
                    }
                }
            }
            if let Some((left, right)) = finish.low_rank {
                for (j, factor) in left.row(row).iter().enumerate() {
                    lanes.add_product(fused, *factor, &right.row(j)[columns.clone()]);
                }
            }
            if let Some(add) = finish.wide_add {
                lanes.add(&add.row(row)[columns.clone()]);
            }
            if let Some(kept) = kept {
                // SAFETY: these places are this call's alone.
                lanes.round(unsafe { kept.place(row, columns.clone()) });
            }
            if let Some(add) = finish.add {
                lanes.add(&add.row(row)[columns.clone()]);
            }
            // SAFETY: these places are this call's alone.
            let out = unsafe { out.place(row, columns.clone()) };
            if finish.accumulate {
                lanes.add(out);
            }
            lanes.round(out);
        }
    });
}

/// A row of a block in f32, of a size known to the compiler, so that it stays in registers from its sums to its rounding.
struct Lanes([f32; BLOCK_COLUMNS]);

impl Lanes {
    /// Values of a row, zeros behind them.
    #[inline(always)]
    fn of<E: Element>(values: &[E]) -> Self {
        if let Ok(whole) = <&[E; BLOCK_COLUMNS]>::try_from(values) {
            return Self(whole.map(E::widen));
        }
        let mut lanes = [0f32; BLOCK_COLUMNS];
        lanes.iter_mut().zip(values).for_each(|(lane, value)| *lane = value.widen());
        Self(lanes)
    }

    #[inline(always)]
    fn add<E: Element>(&mut self, values: &[E]) {
        let values = Self::of(values);
        self.0.iter_mut().zip(values.0).for_each(|(lane, value)| *lane += value);
    }

    #[inline(always)]
    fn multiply(&mut self, factors: &[f32]) {
        self.0.iter_mut().zip(factors).for_each(|(lane, factor)| *lane *= factor);
    }

    #[inline(always)]
    fn add_product<E: Element>(&mut self, fused: bool, factor: f32, values: &[E]) {
        for (lane, value) in self.0.iter_mut().zip(Self::of(values).0) {
            *lane = if fused { factor.mul_add(value, *lane) } else { factor * value + *lane };
        }
    }

    #[inline(always)]
    fn round<O: Element>(&self, out: &mut [O]) {
        if let Ok(whole) = <&mut [O; BLOCK_COLUMNS]>::try_from(&mut *out) {
            *whole = self.0.map(O::narrow);
        } else {
            out.iter_mut().zip(self.0).for_each(|(out, lane)| *out = O::narrow(lane));
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernel::level::levels;
    use crate::kernel::testing::values;

    /// Columns of a block before those that are written.
    const BEFORE: usize = BLOCK_COLUMNS;

    /// Written by a level, and value by value with the product that the level has.
    fn both<E: Element, O: Element>(level: Level, m: usize, n: usize, finish: &Finish<'_, E>) -> [Vec<O>; 2] {
        let sums: Vec<f32> = values(m * BLOCK_COLUMNS, 7);
        let (stride, columns) = (BEFORE + n + 9, BEFORE..BEFORE + n);
        let mut out: Vec<O> = values(m * stride, 8);
        let mut slow = out.clone();
        let places = SharedRows::new(&mut out, m, BEFORE + n + 5, stride);
        // SAFETY: one thread writes.
        unsafe { write(level, 0..m, columns.clone(), finish, &sums, &places, None) };
        for (row, column) in (0..m).flat_map(|row| columns.clone().map(move |column| (row, column))) {
            let place = &mut slow[row * stride + column];
            let share = finish.shares.iter().find(|share| share.rows.contains(&row));
            let mut value = sums[row * BLOCK_COLUMNS + column - columns.start] * finish.factor;
            value *= share.and_then(|s| s.factors).or(finish.factors).map_or(1.0, |factors| factors[column]);
            match share.and_then(|share| share.wide_bias).or(finish.wide_bias) {
                Some(bias) => value += bias[column],
                None => value += finish.bias.map_or(0.0, |bias| bias[column].widen()),
            }
            let product = |value: f32, factor: f32, other: f32| {
                if level == Level::Plain { factor * other + value } else { factor.mul_add(other, value) }
            };
            for (left, right) in share.iter().flat_map(|share| &share.low_rank) {
                for (j, factor) in left.row(row - share.unwrap().rows.start).iter().enumerate() {
                    value = product(value, *factor, right.at(BEFORE).nth(j).unwrap()[column - BEFORE].widen());
                }
            }
            if let Some((left, right)) = finish.low_rank {
                for (j, factor) in left.row(row).iter().enumerate() {
                    value = product(value, *factor, right.row(j)[column]);
                }
            }
            value += finish.wide_add.map_or(0.0, |add| add.row(row)[column]);
            value += finish.add.map_or(0.0, |add| add.row(row)[column].widen());
            value += if finish.accumulate { place.widen() } else { 0.0 };
            *place = O::narrow(value);
        }
        [out, slow]
    }

    fn agree<E: Element, O: Element + PartialEq>() {
        // Whole rows of a block and parts of one.
        let shapes = if cfg!(miri) { [(5, 64), (3, 23)].as_slice() } else { &[(11, 64), (4, 64), (3, 64), (6, 23)] };
        for (level, (m, n)) in levels().into_iter().flat_map(|level| shapes.iter().map(move |shape| (level, *shape))) {
            let width = BEFORE + n + 5;
            let blocks = width.next_multiple_of(BLOCK_COLUMNS);
            let (bias, add) = (values::<E>(width, 3), values::<E>(m * (width + 2), 4));
            let (left, right) = (values::<f32>(m * 5, 5), values::<f32>(5 * (width + 1), 6));
            let low_rank = Some((Rows::dense(&left, m, 5), Rows::new(&right, 5, width, width + 1)));
            let add = Some(Rows::new(&add, m, width, width + 2));
            let bias = Some(bias.as_slice());
            let (factors, wide) = (values::<f32>(width, 9), values::<f32>(width, 10));
            let wide_add = values::<f32>(m * width, 11);
            let wide_add = Some(Rows::dense(&wide_add, m, width));
            let (factors, wide_bias) = (Some(factors.as_slice()), Some(wide.as_slice()));
            // Two runs of rows, the second with a bias and two pairs.
            let (own_left, own_right) = (values::<f32>((m - 2) * 4, 12), values::<E>(4 * blocks, 13));
            let own_left = Rows::dense(&own_left, m - 2, 4);
            let pairs = vec![
                (own_left, Blocks::new(&own_right, 4, width)),
                (own_left.part(0..m - 2, 0..3), Blocks::new(&own_right[..3 * blocks], 3, width)),
            ];
            let shares = [
                Share { rows: 0..2, factors, wide_bias: None, low_rank: Vec::new() },
                Share { rows: 2..m, factors: None, wide_bias, low_rank: pairs },
            ];
            for finish in [
                Finish { shares: &shares, ..Finish::default() },
                Finish { shares: &shares, bias, add, wide_add, ..Finish::default() },
                Finish { factors, ..Finish::default() },
                Finish { wide_bias, ..Finish::default() },
                Finish { wide_add, ..Finish::default() },
                Finish { factors, wide_bias, low_rank, add, ..Finish::default() },
                Finish::default(),
                Finish { factor: 0.3, ..Finish::default() },
                Finish { bias, ..Finish::default() },
                Finish { low_rank, ..Finish::default() },
                Finish { add, ..Finish::default() },
                Finish { accumulate: true, ..Finish::default() },
                Finish { factor: -1.7, bias, low_rank, add, accumulate: true, ..Finish::default() },
            ] {
                let [fast, slow] = both::<E, O>(level, m, n, &finish);
                assert!(fast == slow, "{level:?} {m} {n} {finish:?}");
            }
        }
    }

    #[test]
    fn what_is_kept_is_what_stands_before_the_addition() {
        for level in levels() {
            let (m, n) = (5, 40);
            let (sums, add) = (values::<f32>(m * BLOCK_COLUMNS, 7), values::<bf16>(m * n, 4));
            let (mut out, mut kept) = (vec![bf16::ZERO; m * n], vec![bf16::ZERO; m * n]);
            let places = SharedRows::new(&mut out, m, n, n);
            let kept_places = SharedRows::new(&mut kept, m, n, n);
            let finish = Finish { add: Some(Rows::dense(&add, m, n)), ..Finish::default() };
            // SAFETY: one thread writes.
            unsafe { write(level, 0..m, 0..n, &finish, &sums, &places, Some(&kept_places)) };
            for (place, (kept, out)) in kept.iter().zip(&out).enumerate() {
                let sum = sums[place / n * BLOCK_COLUMNS + place % n];
                assert_eq!(*kept, <bf16 as Element>::narrow(sum));
                assert_eq!(*out, <bf16 as Element>::narrow(sum + add[place].widen()));
            }
        }
    }

    #[test]
    fn rows_are_finished_as_value_by_value() {
        agree::<f32, f32>();
        agree::<bf16, bf16>();
        agree::<bf16, f32>();
        agree::<f32, bf16>();
    }

    #[test]
    fn ties_and_values_beyond_numbers_round_as_one_by_one() {
        // Ties above an even and an odd neighbour and what lies beside them, of the least, usual and largest exponents.
        let mantissas = [0, 1, 0x7fff, 0x8000, 0x8001, 0x1_7fff, 0x1_8000, 0x1_8001];
        let highs = [0, 1, 0x7f, 0x80, 0xfe, 0xff, 0x100, 0x17f, 0x1ff];
        let special = highs.iter().flat_map(|high| mantissas.map(|mantissa| f32::from_bits(high << 23 | mantissa)));
        let sums: Vec<f32> = special.cycle().take(4 * BLOCK_COLUMNS).collect();
        for level in levels() {
            let mut out = vec![bf16::ZERO; sums.len()];
            let places = SharedRows::new(&mut out, 4, BLOCK_COLUMNS, BLOCK_COLUMNS);
            let finish = Finish::<bf16>::default();
            // SAFETY: one thread writes.
            unsafe { write(level, 0..4, 0..BLOCK_COLUMNS, &finish, &sums, &places, None) };
            for (got, value) in out.iter().zip(&sums) {
                assert_eq!(got.to_bits(), <bf16 as Element>::narrow(*value).to_bits(), "{level:?} {value:e}");
            }
        }
    }
}
