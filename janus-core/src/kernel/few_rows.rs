//! One to sixteen rows times a weight: dot products that read each weight row once, at the speed of the memory.

use std::ops::Range;

use super::element::Element;
use super::level::Level;
use super::rows::Rows;
use super::vector::by_level;

/// `sums[i][j] (+)= x[rows.start + i] · weight[columns.start + j]`, rows of `sums` being `stride` apart.
pub(super) fn dots<E: Element>(
    level: Level,
    x: Rows<'_, E>,
    rows: Range<usize>,
    weight: Rows<'_, E>,
    columns: Range<usize>,
    sums: &mut [f32],
    stride: usize,
    add: bool,
) {
    #[cfg(target_arch = "x86_64")]
    {
        if E::PAIRED && level == Level::Avx512Bf16 {
            // SAFETY: the processor has AVX512-BF16.
            return unsafe { super::avx512::dots(x, rows, weight, columns, sums, stride, add) };
        }
    }
    by_level!(level, |fused| fn<E>(
        x: Rows<'_, E>,
        rows: Range<usize>,
        weight: Rows<'_, E>,
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

/// Sum of products over 64 running sums, which the compiler keeps in vector registers.
#[inline(always)]
fn dot<E: Element>(fused: bool, x: &[E], weight: &[E]) -> f32 {
    const LANES: usize = 64;
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
