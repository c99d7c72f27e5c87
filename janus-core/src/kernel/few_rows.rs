//! Few rows times a matrix, which is read once where it lies, at the speed of the memory: one to sixteen rows by dot products
//! with its rows, one to four by sums of its rows.

use std::ops::Range;

use super::element::Element;
use super::level::Level;
use super::rows::Rows;
use super::vector::by_level;

/// `sums[i][j] (+)= x[rows.start + i] · weight[columns.start + j]`, rows of `sums` being `stride` apart.
pub(super) fn dots<E: Element, W: Element>(
    level: Level,
    x: Rows<'_, E>,
    rows: Range<usize>,
    weight: Rows<'_, W>,
    columns: Range<usize>,
    sums: &mut [f32],
    stride: usize,
    add: bool,
) {
    #[cfg(target_arch = "x86_64")]
    {
        if E::PAIRED && W::PAIRED && level == Level::Avx512Bf16 {
            // SAFETY: the processor has AVX512-BF16.
            return unsafe { super::avx512::dots(x, rows, weight, columns, sums, stride, add) };
        }
        if level >= Level::Avx2 {
            // SAFETY: the processor has AVX2 and FMA.
            return unsafe { super::avx2::dots(x, rows, weight, columns, sums, stride, add) };
        }
    }
    by_level!(level, |fused| fn<E, W>(
        x: Rows<'_, E>,
        rows: Range<usize>,
        weight: Rows<'_, W>,
        columns: Range<usize>,
        sums: &mut [f32],
        stride: usize,
        add: bool,
    ) {
        for (j, column) in columns.enumerate() {
            let weight = weight.row(column);
            for (i, row) in rows.clone().enumerate() {
                let dot = dot(fused, x.row(row), weight);
                let sum = &mut sums[i * stride + j];
                *sum = if add { *sum + dot } else { dot };
            }
        }
    })
}

/// Running sums that stay in registers.
const LANES: usize = 64;

/// `sums[i][j] (+)= Σ_k x[rows.start + i][k] · matrix[k][columns.start + j]`, rows of `sums` being `stride` apart.
pub(super) fn row_sums<E: Element, W: Element>(
    level: Level,
    x: Rows<'_, E>,
    rows: Range<usize>,
    matrix: Rows<'_, W>,
    columns: Range<usize>,
    sums: &mut [f32],
    stride: usize,
    add: bool,
) {
    by_level!(level, |fused| fn<E, W>(
        x: Rows<'_, E>,
        rows: Range<usize>,
        matrix: Rows<'_, W>,
        columns: Range<usize>,
        sums: &mut [f32],
        stride: usize,
        add: bool,
    ) {
        for (i, row) in rows.enumerate() {
            for start in columns.clone().step_by(LANES) {
                let count = LANES.min(columns.end - start);
                let kept = &mut sums[i * stride + start - columns.start..][..count];
                let mut lanes = [0f32; LANES];
                if add {
                    lanes[..count].copy_from_slice(kept);
                }
                for (k, factor) in x.row(row).iter().enumerate() {
                    let (factor, values) = (factor.widen(), &matrix.row(k)[start..start + count]);
                    if let Ok(values) = <&[W; LANES]>::try_from(values) {
                        weighted(fused, factor, values, &mut lanes);
                    } else {
                        weighted(fused, factor, values, &mut lanes[..count]);
                    }
                }
                kept.copy_from_slice(&lanes[..count]);
            }
        }
    })
}

/// Adds `factor · values` to the sums.
#[inline(always)]
fn weighted<E: Element>(fused: bool, factor: f32, values: &[E], sums: &mut [f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        let value = value.widen();
        *sum = if fused { factor.mul_add(value, *sum) } else { factor * value + *sum };
    }
}

/// Sum of products over 64 running sums, which the compiler keeps in vector registers.
#[inline(always)]
fn dot<E: Element, W: Element>(fused: bool, x: &[E], weight: &[W]) -> f32 {
    let mut sums = [0f32; LANES];
    let (x_blocks, weight_blocks) = (x.chunks_exact(LANES), weight.chunks_exact(LANES));
    let mut total: f32 =
        x_blocks.remainder().iter().zip(weight_blocks.remainder()).map(|(x, w)| x.widen() * w.widen()).sum();
    for (x, weight) in x_blocks.zip(weight_blocks) {
        for ((sum, x), weight) in sums.iter_mut().zip(x).zip(weight) {
            let (x, weight) = (x.widen(), weight.widen());
            *sum = if fused { x.mul_add(weight, *sum) } else { x * weight + *sum };
        }
    }
    total += sums.iter().sum::<f32>();
    total
}
