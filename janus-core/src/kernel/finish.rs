//! What happens to a product's sums before they are rounded and stored.

use std::ops::Range;

use super::element::Element;
use super::level::Level;
use super::product::BLOCK_COLUMNS;
use super::rows::{Rows, SharedRows};

/// What happens to the sums before they are rounded, in this order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish<'a, E> {
    /// Factor on the sums.
    pub(crate) factor: f32,
    /// `[n]`, added to every row.
    pub(crate) bias: Option<&'a [E]>,
    /// `left: [m, rank]` times `right: [rank, n]`, added.
    pub(crate) low_rank: Option<(Rows<'a, f32>, Rows<'a, f32>)>,
    /// `[m, n]`, added.
    pub(crate) add: Option<Rows<'a, E>>,
    /// Whether what the result held before is added, too.
    pub(crate) accumulate: bool,
}

impl<E> Default for Finish<'_, E> {
    fn default() -> Self {
        Self { factor: 1.0, bias: None, low_rank: None, add: None, accumulate: false }
    }
}

/// Finishes the sums of some rows of a block, [`BLOCK_COLUMNS`] a row, and writes them, rounded.
///
/// # Safety
/// The processor has the instructions of `level`. No one else touches these columns of these rows of `out`.
pub(super) unsafe fn write<E: Element, O: Element>(
    level: Level,
    rows: Range<usize>,
    columns: Range<usize>,
    finish: &Finish<'_, E>,
    sums: &[f32],
    out: &SharedRows<'_, O>,
) {
    #[cfg(target_arch = "x86_64")]
    {
        if level >= Level::Avx512 {
            // SAFETY: as this function's own.
            return unsafe { avx512(rows, columns, finish, sums, out) };
        }
        if level >= Level::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2(rows, columns, finish, sums, out) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    // SAFETY: as this function's own.
    unsafe { plain(|a, b, c| a * b + c, rows, columns, finish, sums, out) }
}

/// As [`write`], compiled for AVX-512; whole blocks four rows at a time, so that the right factor is read once for all four.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512<E: Element, O: Element>(
    rows: Range<usize>,
    columns: Range<usize>,
    finish: &Finish<'_, E>,
    sums: &[f32],
    out: &SharedRows<'_, O>,
) {
    const TOGETHER: usize = 4;
    let mut rows = rows;
    let mut sums = sums;
    if columns.len() == BLOCK_COLUMNS {
        while rows.len() >= TOGETHER {
            // SAFETY: as this function's own.
            unsafe { whole_rows::<E, O, TOGETHER>(rows.start, columns.clone(), finish, sums, out) };
            rows.start += TOGETHER;
            sums = &sums[TOGETHER * BLOCK_COLUMNS..];
        }
    }
    // SAFETY: as this function's own.
    unsafe { plain(f32::mul_add, rows, columns, finish, sums, out) }
}

/// `M` rows of a whole block, in registers from their sums to their rounding: the arithmetic of [`plain`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn whole_rows<E: Element, O: Element, const M: usize>(
    first: usize,
    columns: Range<usize>,
    finish: &Finish<'_, E>,
    sums: &[f32],
    out: &SharedRows<'_, O>,
) {
    use std::arch::x86_64::*;

    use super::avx512::{load_wide, store_rounded};

    const PARTS: usize = BLOCK_COLUMNS / 16;
    assert!(sums.len() >= M * BLOCK_COLUMNS && columns.len() == BLOCK_COLUMNS);
    let mut lanes = [[_mm512_setzero_ps(); PARTS]; M];
    for (lanes, sums) in lanes.iter_mut().zip(sums.chunks_exact(BLOCK_COLUMNS)) {
        // SAFETY: a block's columns are there.
        *lanes = unsafe { parts(sums) };
    }
    if finish.factor != 1.0 {
        let factor = _mm512_set1_ps(finish.factor);
        lanes.iter_mut().flatten().for_each(|lane| *lane = _mm512_mul_ps(*lane, factor));
    }
    if let Some(bias) = finish.bias {
        // SAFETY: as above.
        let bias = unsafe { parts(&bias[columns.clone()]) };
        lanes.iter_mut().for_each(|lanes| add(lanes, &bias));
    }
    if let Some((left, right)) = finish.low_rank {
        let mut rows = [[].as_slice(); M];
        rows.iter_mut().enumerate().for_each(|(i, row)| *row = left.row(first + i));
        for j in 0..right.count() {
            // SAFETY: as above.
            let values = unsafe { parts(&right.row(j)[columns.clone()]) };
            for (row, lanes) in rows.iter().zip(&mut lanes) {
                let factor = _mm512_set1_ps(row[j]);
                for (lane, value) in lanes.iter_mut().zip(values) {
                    *lane = _mm512_fmadd_ps(factor, value, *lane);
                }
            }
        }
    }
    if let Some(addend) = finish.add {
        for (i, lanes) in lanes.iter_mut().enumerate() {
            // SAFETY: as above.
            let values = unsafe { parts(&addend.row(first + i)[columns.clone()]) };
            add(lanes, &values);
        }
    }
    for (i, lanes) in lanes.iter_mut().enumerate() {
        // SAFETY: these places are this call's alone, and a block's columns are there.
        unsafe {
            let out = out.place(first + i, columns.clone());
            if finish.accumulate {
                add(lanes, &parts(&*out));
            }
            for (part, lane) in lanes.iter().enumerate() {
                store_rounded(*lane, out.as_mut_ptr().add(part * 16));
            }
        }
    }

    /// # Safety
    /// The processor has AVX-512; there are [`BLOCK_COLUMNS`] values.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn parts<E: Element>(values: &[E]) -> [__m512; PARTS] {
        debug_assert!(values.len() == BLOCK_COLUMNS);
        let mut parts = [_mm512_setzero_ps(); PARTS];
        for (i, part) in parts.iter_mut().enumerate() {
            // SAFETY: as this function's own.
            *part = unsafe { load_wide(values.as_ptr().add(i * 16)) };
        }
        parts
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn add(lanes: &mut [__m512; PARTS], values: &[__m512; PARTS]) {
        lanes.iter_mut().zip(values).for_each(|(lane, value)| *lane = _mm512_add_ps(*lane, *value));
    }
}

/// As [`write`], compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<E: Element, O: Element>(
    rows: Range<usize>,
    columns: Range<usize>,
    finish: &Finish<'_, E>,
    sums: &[f32],
    out: &SharedRows<'_, O>,
) {
    // SAFETY: as this function's own.
    unsafe { plain(f32::mul_add, rows, columns, finish, sums, out) }
}

/// As [`write`] with a given fused product: the slow truth.
#[inline(always)]
unsafe fn plain<E: Element, O: Element>(
    fused: impl Fn(f32, f32, f32) -> f32,
    rows: Range<usize>,
    columns: Range<usize>,
    finish: &Finish<'_, E>,
    sums: &[f32],
    out: &SharedRows<'_, O>,
) {
    for (row, sums) in rows.zip(sums.chunks_exact(BLOCK_COLUMNS)) {
        let mut lanes = Lanes::of(&sums[..columns.len()]);
        if finish.factor != 1.0 {
            lanes.0.iter_mut().for_each(|lane| *lane *= finish.factor);
        }
        if let Some(bias) = finish.bias {
            lanes.add(&bias[columns.clone()]);
        }
        if let Some((left, right)) = finish.low_rank {
            for (j, factor) in left.row(row).iter().enumerate() {
                let values = Lanes::of(&right.row(j)[columns.clone()]);
                lanes.0.iter_mut().zip(values.0).for_each(|(lane, value)| *lane = fused(*factor, value, *lane));
            }
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
    fn round<O: Element>(self, out: &mut [O]) {
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

    /// Written by a level, and by the plain loop with the product that the level has.
    fn both<E: Element, O: Element>(level: Level, m: usize, n: usize, finish: &Finish<'_, E>) -> [Vec<O>; 2] {
        let sums: Vec<f32> = values(m * BLOCK_COLUMNS, 7);
        let (stride, columns) = (n + 9, 3..3 + n);
        [true, false].map(|fast| {
            let mut out: Vec<O> = values(m * stride, 8);
            let places = SharedRows::new(&mut out, m, n + 5, stride);
            // SAFETY: one thread writes, and the level is the processor's.
            unsafe {
                match fast {
                    true => write(level, 0..m, columns.clone(), finish, &sums, &places),
                    false if level == Level::Plain => {
                        plain(|a, b, c| a * b + c, 0..m, columns.clone(), finish, &sums, &places);
                    }
                    false => plain(f32::mul_add, 0..m, columns.clone(), finish, &sums, &places),
                }
            }
            out
        })
    }

    fn agree<E: Element, O: Element + PartialEq>() {
        // Whole rows of a block, four and more at a time, and parts of one.
        for (level, (m, n)) in levels().into_iter().flat_map(|l| [(11, 64), (4, 64), (3, 64), (6, 23)].map(|s| (l, s)))
        {
            let (bias, add) = (values::<E>(n + 5, 3), values::<E>(m * (n + 7), 4));
            let (left, right) = (values::<f32>(m * 5, 5), values::<f32>(5 * (n + 6), 6));
            let low_rank = Some((Rows::dense(&left, m, 5), Rows::new(&right, 5, n + 5, n + 6)));
            let add = Some(Rows::new(&add, m, n + 5, n + 7));
            let bias = Some(bias.as_slice());
            for finish in [
                Finish::default(),
                Finish { factor: 0.3, ..Finish::default() },
                Finish { bias, ..Finish::default() },
                Finish { low_rank, ..Finish::default() },
                Finish { add, ..Finish::default() },
                Finish { accumulate: true, ..Finish::default() },
                Finish { factor: -1.7, bias, low_rank, add, accumulate: true },
            ] {
                let [fast, slow] = both::<E, O>(level, m, n, &finish);
                assert!(fast == slow, "{level:?} {m} {n} {finish:?}");
            }
        }
    }

    #[test]
    fn rows_together_are_finished_as_one_by_one() {
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
            // SAFETY: one thread writes, and the level is the processor's.
            unsafe { write(level, 0..4, 0..BLOCK_COLUMNS, &finish, &sums, &places) };
            for (got, value) in out.iter().zip(&sums) {
                assert_eq!(got.to_bits(), <bf16 as Element>::narrow(*value).to_bits(), "{level:?} {value:e}");
            }
        }
    }
}
