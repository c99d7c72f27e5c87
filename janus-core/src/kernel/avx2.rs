//! Panels, tiles and dot products by AVX2 and FMA: for processors without AVX-512, and for bf16 values wherever there is no
//! bf16 dot product. All is computed in f32; bf16 values are widened as they are read.

use std::arch::x86_64::*;
use std::ops::Range;

use super::element::Element;
use super::panel::{LANES, LINES, Layout, Line, Panel, Side};
use super::rows::Rows;

/// Rows of a tile: 12 sums of 8 lanes, two panel registers and a broadcast value fill 15 of the 16 registers.
pub(super) const TILE_ROWS: usize = 6;

/// Inner steps between two counts of a tile's loop.
const STEPS: usize = 4;

/// `c[i][j] (+)= Σ_k a[i][k] · panel[k][j]` for rows of `panel.depth` values, one half of the columns after the other.
///
/// # Safety
/// The processor has AVX2 and FMA.
pub(super) unsafe fn tiles(
    rows: usize,
    a: &[f32],
    a_stride: usize,
    panel: Panel<'_>,
    c: &mut [f32],
    c_stride: usize,
    add: bool,
) {
    let Panel { lines, layout, depth } = panel;
    if rows == 0 {
        return;
    }
    assert!((rows - 1) * a_stride + depth <= a.len() && (rows - 1) * c_stride + LANES <= c.len());
    assert!(depth == 0 || (depth - 1) * layout.step + (LINES - 1) * layout.half < lines.len());
    for half in 0..LINES {
        let lanes = lines.as_ptr().wrapping_add(half * layout.half).cast::<f32>();
        for start in (0..rows).step_by(TILE_ROWS) {
            let a = a[start * a_stride..].as_ptr();
            let c = c[start * c_stride + half * 16..].as_mut_ptr();
            macro_rules! of {
                ($($count:literal)*) => {
                    match TILE_ROWS.min(rows - start) {
                        // SAFETY: the assertions keep `rows` rows of `depth` values of `a`, of one panel row of `c`, and
                        // the panel's lines inside their slices; the processor is the caller's word.
                        $($count => unsafe {
                            if layout.step == 1 {
                                tile::<$count, 1>(a, a_stride, lanes, depth, c, c_stride, add, half == 0)
                            } else {
                                assert_eq!(layout.step, LINES);
                                tile::<$count, LINES>(a, a_stride, lanes, depth, c, c_stride, add, half == 0)
                            }
                        },)*
                        _ => unreachable!("a tile has 1 to 6 rows"),
                    }
                };
            }
            of!(1 2 3 4 5 6)
        }
    }
}

/// `M` rows times 16 lanes of a panel, `STEP` lines from one step to the next. `bring` asks for the rows of the next tile.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize, const STEP: usize>(
    a: *const f32,
    a_stride: usize,
    lanes: *const f32,
    depth: usize,
    c: *mut f32,
    c_stride: usize,
    add: bool,
    bring: bool,
) {
    // SAFETY: see `tiles`; a prefetch touches nothing, whatever its address.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        if add {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (l, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_loadu_ps(c.add(i * c_stride + l * 8));
                }
            }
        }
        let mut step = |k: usize| {
            let lanes = lanes.add(k * STEP * 16);
            let panel = [_mm256_load_ps(lanes), _mm256_load_ps(lanes.add(8))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let value = _mm256_broadcast_ss(&*a.add(i * a_stride + k));
                for (sum, panel) in sums.iter_mut().zip(panel) {
                    *sum = _mm256_fmadd_ps(value, panel, *sum);
                }
            }
        };
        let whole = depth - depth % STEPS;
        for k in (0..whole).step_by(STEPS) {
            if bring && M == TILE_ROWS {
                // A line holds the values of four counts, in which two rows each are asked for, the last two twice.
                let row = (2 * (k / STEPS % 4)).min(TILE_ROWS - 2);
                for row in [row, row + 1] {
                    _mm_prefetch::<_MM_HINT_T1>(a.wrapping_add((TILE_ROWS + row) * a_stride + k).cast());
                }
            }
            for within in 0..STEPS {
                step(k + within);
            }
        }
        for k in whole..depth {
            step(k);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (l, sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(c.add(i * c_stride + l * 8), *sum);
            }
        }
    }
}

/// Eight values as f32.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load<E: Element>(from: *const E) -> __m256 {
    // SAFETY: the caller vouches for eight values; bf16 are the upper halves of f32.
    unsafe {
        if E::PAIRED {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
        } else {
            _mm256_loadu_ps(from.cast())
        }
    }
}

/// The first `count` ≤ 8 values as f32, zeros behind them.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_some<E: Element>(from: *const E, count: usize) -> __m256 {
    if count >= 8 {
        // SAFETY: as the caller's.
        return unsafe { load(from) };
    }
    let mut values = [E::default(); 8];
    // SAFETY: the caller vouches for `count` values.
    unsafe {
        std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count);
        load(values.as_ptr())
    }
}

/// Lays out a block of a matrix as an f32 panel, or as some steps of one.
///
/// # Safety
/// The processor has AVX2 and FMA; the block lies inside the matrix; `lines` hold the steps.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pack<E: Element>(
    matrix: &[E],
    stride: usize,
    side: Side,
    inner: Range<usize>,
    columns: Range<usize>,
    lines: &mut [Line],
    layout: Layout,
) {
    for part in (0..LANES).step_by(8) {
        let count = columns.len().saturating_sub(part).min(8);
        let lanes = lines[part / 16 * layout.half..].as_mut_ptr().cast::<f32>().wrapping_add(part % 16);
        let column = columns.start + part.min(columns.len());
        // SAFETY: as this function's own.
        unsafe {
            match side {
                Side::Transposed => {
                    let first = matrix.as_ptr().wrapping_add(column * stride + inner.start);
                    pack_transposed(first, stride, inner.len(), count, lanes, layout.step * 16);
                }
                Side::Plain => {
                    let first = matrix.as_ptr().wrapping_add(inner.start * stride + column);
                    pack_plain(first, stride, inner.len(), count, lanes, layout.step * 16);
                }
            }
        }
    }
}

/// Rows of the matrix are result columns: 8 x 8 values are turned at a time.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_transposed<E: Element>(
    first: *const E,
    stride: usize,
    inner: usize,
    count: usize,
    lanes: *mut f32,
    step: usize,
) {
    for start in (0..inner).step_by(8) {
        let values = (inner - start).min(8);
        // SAFETY: `count` rows of `values` values from here on lie inside the matrix, and `lanes` hold the steps.
        unsafe {
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, row) in rows.iter_mut().enumerate().take(count) {
                *row = load_some(first.add(i * stride + start), values);
            }
            for (k, row) in transpose(rows).iter().enumerate().take(values) {
                _mm256_store_ps(lanes.add((start + k) * step), *row);
            }
        }
    }
}

/// Rows of the matrix are inner steps and are copied.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_plain<E: Element>(
    first: *const E,
    stride: usize,
    inner: usize,
    count: usize,
    lanes: *mut f32,
    step: usize,
) {
    for k in 0..inner {
        // SAFETY: `count` values of each of the rows lie inside the matrix, and `lanes` hold the steps.
        unsafe {
            let values = if count == 0 { _mm256_setzero_ps() } else { load_some(first.add(k * stride), count) };
            _mm256_store_ps(lanes.add(k * step), values);
        }
    }
}

/// Turns 8 x 8 values over their diagonal.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256; 8]) -> [__m256; 8] {
    let mut pairs = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    // Quad k of a group of four rows holds values k and k + 4 of them in its two halves.
    let mut quads = [_mm256_setzero_ps(); 8];
    for i in 0..2 {
        let at = 4 * i;
        quads[at] = _mm256_shuffle_ps::<0x44>(pairs[at], pairs[at + 2]);
        quads[at + 1] = _mm256_shuffle_ps::<0xee>(pairs[at], pairs[at + 2]);
        quads[at + 2] = _mm256_shuffle_ps::<0x44>(pairs[at + 1], pairs[at + 3]);
        quads[at + 3] = _mm256_shuffle_ps::<0xee>(pairs[at + 1], pairs[at + 3]);
    }
    let mut turned = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        turned[i] = _mm256_permute2f128_ps::<0x20>(quads[i], quads[i + 4]);
        turned[i + 4] = _mm256_permute2f128_ps::<0x31>(quads[i], quads[i + 4]);
    }
    turned
}

/// Values met at a time by a dot product: two registers of f32.
const STEP: usize = 16;

/// Rows of x whose running sums fit the registers beside those of [`TOGETHER`] weight rows.
const GROUP: usize = 3;

/// Weight rows met at a time.
const TOGETHER: usize = 4;

/// Sixteen values as f32 in two registers: as they lie, or, of bf16 values that meet bf16 values (`X`), those at even places and
/// those at odd ones, which takes no shuffle.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn split<E: Element, X: Element>(from: *const E) -> [__m256; 2] {
    // SAFETY: the caller vouches for sixteen values.
    unsafe {
        if E::PAIRED && X::PAIRED {
            let pairs = _mm256_loadu_si256(from.cast());
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(odd)]
        } else {
            [load(from), load(from.add(8))]
        }
    }
}

/// The last values of a row, fewer than [`STEP`], with zeros behind them.
fn padded<E: Element>(values: &[E]) -> [E; STEP] {
    let mut padded = [E::default(); STEP];
    padded[..values.len()].copy_from_slice(values);
    padded
}

/// Dot products of rows with weight rows.
///
/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dots<E: Element, W: Element>(
    x: Rows<'_, E>,
    rows: Range<usize>,
    weight: Rows<'_, W>,
    columns: Range<usize>,
    sums: &mut [f32],
    stride: usize,
    add: bool,
) {
    assert_eq!(x.width(), weight.width());
    // Rows of x meet many weight rows: they are widened once, in the order of `split`.
    let width = x.width().next_multiple_of(STEP).max(STEP);
    let mut wide = vec![0f32; rows.len() * width];
    for (row, wide) in rows.clone().zip(wide.chunks_exact_mut(width)) {
        for (values, wide) in x.row(row).chunks(STEP).zip(wide.chunks_exact_mut(STEP)) {
            // SAFETY: `padded` has sixteen values, and so has `wide`.
            unsafe {
                for (part, values) in split::<E, E>(padded(values).as_ptr()).into_iter().enumerate() {
                    _mm256_storeu_ps(wide.as_mut_ptr().add(part * 8), values);
                }
            }
        }
    }
    let x = |row: usize| &wide[row * width..][..width];
    for first in columns.clone().step_by(TOGETHER) {
        // The last weight row stands in for those that are not there; their dot products are dropped.
        let weights: [&[W]; TOGETHER] = std::array::from_fn(|r| weight.row((first + r).min(columns.end - 1)));
        let ahead = weight.row((first + TOGETHER).min(columns.end - 1)).as_ptr();
        let sums = &mut sums[first - columns.start..];
        let kept = TOGETHER.min(columns.end - first);
        for start in (0..rows.len()).step_by(GROUP) {
            let sums = &mut sums[start * stride..];
            macro_rules! of {
                ($($count:literal)*) => {
                    match GROUP.min(rows.len() - start) {
                        $($count => {
                            let x: [&[f32]; $count] = std::array::from_fn(|i| x(start + i));
                            // SAFETY: weight rows have one length, and rows of x that length made a multiple of `STEP`.
                            let dots = unsafe { block::<E, W, $count>(&x, &weights, ahead, weight.stride()) };
                            for (i, dots) in dots.iter().enumerate() {
                                for (sum, dot) in sums[i * stride..].iter_mut().zip(&dots[..kept]) {
                                    *sum = if add { *sum + dot } else { *dot };
                                }
                            }
                        })*
                        _ => unreachable!("a group has 1 to 3 rows"),
                    }
                };
            }
            of!(1 2 3)
        }
    }
}

/// # Safety
/// Weight rows are of one length, rows of x at least as long with zeros up to a multiple of [`STEP`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn block<E: Element, W: Element, const M: usize>(
    x: &[&[f32]; M],
    weight: &[&[W]; TOGETHER],
    ahead: *const W,
    ahead_stride: usize,
) -> [[f32; TOGETHER]; M] {
    let length = weight[0].len();
    let mut sums = [[_mm256_setzero_ps(); TOGETHER]; M];
    let mut step = |k: usize, weight: [*const W; TOGETHER]| {
        for (r, weight) in weight.into_iter().enumerate() {
            // SAFETY: callers of this closure give sixteen values of each row from `k` on.
            unsafe {
                let weight = split::<W, E>(weight);
                for (x, sums) in x.iter().zip(&mut sums) {
                    for (part, weight) in weight.into_iter().enumerate() {
                        let x = _mm256_loadu_ps(x.as_ptr().add(k + part * 8));
                        sums[r] = _mm256_fmadd_ps(x, weight, sums[r]);
                    }
                }
            }
        }
    };
    let whole = length - length % STEP;
    for k in (0..whole).step_by(STEP) {
        if (k * size_of::<W>()).is_multiple_of(64) {
            for r in 0..TOGETHER {
                // A weight row is often one page, where the hardware's own prefetching ends.
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(r * ahead_stride + k).cast());
            }
        }
        step(k, std::array::from_fn(|r| weight[r][k..].as_ptr()));
    }
    if whole < length {
        let last: [[W; STEP]; TOGETHER] = std::array::from_fn(|r| padded(&weight[r][whole..]));
        step(whole, std::array::from_fn(|r| last[r].as_ptr()));
    }
    sums.map(|sums| sums.map(|sum| total(sum)))
}

/// The sum of eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn total(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}
