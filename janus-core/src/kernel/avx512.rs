//! Panels, tiles and dot products by AVX-512 and AVX512-BF16.
//!
//! One function serves both types: an f32 value and a pair of bf16 values are both four bytes, so packing moves the same
//! words, and a tile differs in one instruction (`vfmadd231ps` or `vdpbf16ps`).

use std::arch::x86_64::*;
use std::mem::size_of;
use std::ops::Range;

use half::bf16;

use super::element::Element;
use super::panel::{LANES, LINES, Line, Panel, Side};
use super::rows::Rows;

/// Rows of a tile: 24 sums of 16 lanes, two panel lines and a broadcast value fill the 32 registers.
pub(super) const TILE_ROWS: usize = 12;

/// Adds lane by lane the product (f32) or the dot product of pairs (bf16) of two words.
#[inline(always)]
unsafe fn multiply_add<E: Element>(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
    if E::PAIRED {
        // SAFETY: callers enable AVX512-BF16 where values are paired; both types are 64 bytes of any bits.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        }
    } else {
        // SAFETY: callers enable AVX-512.
        unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum) }
    }
}

/// `c[i][j] (+)= Σ_k a[i][k] · panel[k][j]` for `rows` ≤ [`TILE_ROWS`] rows of `panel.depth` values.
///
/// # Safety
/// The processor has AVX-512 F and BW, and AVX512-BF16 where values are paired.
pub(super) unsafe fn tile<E: Element>(
    rows: usize,
    a: &[E],
    a_stride: usize,
    panel: Panel<'_>,
    c: &mut [f32],
    c_stride: usize,
    add: bool,
) {
    assert!((1..=TILE_ROWS).contains(&rows));
    assert!((rows - 1) * a_stride + panel.depth <= a.len() && (rows - 1) * c_stride + LANES <= c.len());
    let per_word = 4 / size_of::<E>();
    assert!(panel.depth.div_ceil(per_word) * LINES <= panel.lines.len());
    let (a, c, add) = (a.as_ptr(), c.as_mut_ptr(), add);
    // SAFETY: the assertions keep `rows` rows of `depth` values of `a`, of one panel row of `c`, and the panel's lines
    // inside their slices.
    unsafe {
        if E::PAIRED {
            paired::<E>(rows, a, a_stride, panel, c, c_stride, add);
        } else {
            single::<E>(rows, a, a_stride, panel, c, c_stride, add);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn paired<E: Element>(
    rows: usize,
    a: *const E,
    a_stride: usize,
    panel: Panel<'_>,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    // SAFETY: as the caller's.
    unsafe { by_rows::<E>(rows, a, a_stride, panel, c, c_stride, add) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn single<E: Element>(
    rows: usize,
    a: *const E,
    a_stride: usize,
    panel: Panel<'_>,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    // SAFETY: as the caller's.
    unsafe { by_rows::<E>(rows, a, a_stride, panel, c, c_stride, add) }
}

#[inline(always)]
unsafe fn by_rows<E: Element>(
    rows: usize,
    a: *const E,
    a_stride: usize,
    panel: Panel<'_>,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    macro_rules! of {
        ($($count:literal)*) => {
            match rows {
                // SAFETY: as the caller's.
                $($count => unsafe { fixed::<E, $count>(a, a_stride, panel, c, c_stride, add) },)*
                _ => unreachable!("a tile has 1 to 12 rows"),
            }
        };
    }
    // SAFETY: as the caller's.
    of!(1 2 3 4 5 6 7 8 9 10 11 12)
}

#[inline(always)]
unsafe fn fixed<E: Element, const M: usize>(
    a: *const E,
    a_stride: usize,
    panel: Panel<'_>,
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    let per_word = 4 / size_of::<E>();
    let (words, half) = (panel.depth / per_word, panel.depth % per_word);
    let lines = panel.lines.as_ptr().cast::<__m512i>();
    // SAFETY: see `tile`; a row's words are read unaligned, and its odd last value alone.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); LINES]; M];
        if add {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (l, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(c.add(i * c_stride + l * 16));
                }
            }
        }
        for k in 0..words {
            // One row a step, so that each line of every row is asked for once, four lines ahead.
            if M == TILE_ROWS && k % 16 < M {
                _mm_prefetch::<_MM_HINT_T0>(
                    a.wrapping_add((k % 16) * a_stride).cast::<i32>().wrapping_add(k + 64).cast(),
                );
            }
            let panel = [_mm512_load_si512(lines.add(k * LINES)), _mm512_load_si512(lines.add(k * LINES + 1))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let word = a.add(i * a_stride).cast::<i32>().add(k).read_unaligned();
                let value = _mm512_set1_epi32(word);
                for (sum, panel) in sums.iter_mut().zip(panel) {
                    *sum = multiply_add::<E>(value, panel, *sum);
                }
            }
        }
        if half == 1 {
            let panel = [_mm512_load_si512(lines.add(words * LINES)), _mm512_load_si512(lines.add(words * LINES + 1))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let word = i32::from(a.add(i * a_stride + words * per_word).cast::<u16>().read());
                let value = _mm512_set1_epi32(word);
                for (sum, panel) in sums.iter_mut().zip(panel) {
                    *sum = multiply_add::<E>(value, panel, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (l, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(i * c_stride + l * 16), *sum);
            }
        }
    }
}

/// Lays out a block of a matrix as a panel of words: f32 values, or pairs of adjacent inner bf16 values.
///
/// # Safety
/// The processor has AVX-512 F and BW; the block lies inside the matrix; `lines` hold the panel.
pub(super) unsafe fn pack<E: Element>(
    matrix: &[E],
    stride: usize,
    side: Side,
    inner: Range<usize>,
    columns: Range<usize>,
    lines: &mut [Line],
) {
    // SAFETY: as this function's own.
    unsafe {
        match side {
            Side::Transposed => {
                let first = matrix.as_ptr().add(columns.start * stride + inner.start);
                pack_transposed(first, stride, inner.len(), columns.len(), lines);
            }
            Side::Plain => {
                let first = matrix.as_ptr().add(inner.start * stride + columns.start);
                pack_plain(first, stride, inner.len(), columns.len(), lines);
            }
        }
    }
}

/// Rows of the matrix are result columns: 16 x 16 words are turned at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_transposed<E: Element>(
    first: *const E,
    stride: usize,
    inner: usize,
    columns: usize,
    lines: &mut [Line],
) {
    let per_word = 4 / size_of::<E>();
    let words = inner.div_ceil(per_word);
    for (half, lines) in (0..LINES).map(|half| (half, lines.as_mut_ptr())) {
        let count = columns.saturating_sub(half * 16).min(16);
        for start in (0..words).step_by(16) {
            let values = (inner - start * per_word).min(16 * per_word);
            let steps = 16.min(words - start);
            // SAFETY: `count` rows of `values` values from here on lie inside the matrix; masked loads touch no others.
            unsafe {
                let mut rows = [_mm512_setzero_si512(); 16];
                for (i, row) in rows.iter_mut().enumerate().take(count) {
                    let from = first.add((half * 16 + i) * stride + start * per_word);
                    *row = if values == 16 * per_word {
                        _mm512_loadu_si512(from.cast())
                    } else {
                        load_some::<E>(from, values)
                    };
                }
                let turned = transpose(rows);
                for (k, line) in turned.iter().enumerate().take(steps) {
                    _mm512_store_si512(lines.add((start + k) * LINES + half).cast(), *line);
                }
            }
        }
    }
}

/// Rows asked for ahead of the one that is laid out: lines of rows whole pages apart are foreseen by no hardware.
const PACKED_AHEAD: usize = 32;

/// Rows of the matrix are inner steps: f32 rows are copied, bf16 rows zipped two by two.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_plain<E: Element>(first: *const E, stride: usize, inner: usize, columns: usize, lines: &mut [Line]) {
    let lines = lines.as_mut_ptr();
    // SAFETY: rows of `columns` values from here on lie inside the matrix; masked loads touch no others; `lines` hold the
    // panel.
    unsafe {
        if E::PAIRED {
            let low = _mm512_set_epi16(
                47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2,
                33, 1, 32, 0,
            );
            let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
            let load = |row: usize| match row < inner {
                true if columns == LANES => _mm512_loadu_si512(first.add(row * stride).cast()),
                true => load_some::<E>(first.add(row * stride), columns),
                false => _mm512_setzero_si512(),
            };
            for step in 0..inner.div_ceil(2) {
                let ahead = first.wrapping_add((2 * step + PACKED_AHEAD) * stride);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(stride).cast());
                let (even, odd) = (load(2 * step), load(2 * step + 1));
                _mm512_store_si512(lines.add(step * LINES).cast(), _mm512_permutex2var_epi16(even, low, odd));
                _mm512_store_si512(lines.add(step * LINES + 1).cast(), _mm512_permutex2var_epi16(even, high, odd));
            }
        } else {
            for row in 0..inner {
                for half in 0..LINES {
                    let ahead = first.wrapping_add((row + PACKED_AHEAD) * stride + half * 16);
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    let count = columns.saturating_sub(half * 16).min(16);
                    let values = match count {
                        0 => _mm512_setzero_si512(),
                        _ => load_some::<E>(first.add(row * stride + half * 16), count),
                    };
                    _mm512_store_si512(lines.add(row * LINES + half).cast(), values);
                }
            }
        }
    }
}

/// The first `count` values from `from`, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn load_some<E: Element>(from: *const E, count: usize) -> __m512i {
    // SAFETY: only the masked values are read, and the caller vouches for them.
    unsafe {
        if size_of::<E>() == 2 {
            let mask = if count >= 32 { u32::MAX } else { (1u32 << count) - 1 };
            _mm512_maskz_loadu_epi16(mask, from.cast())
        } else {
            let mask = if count >= 16 { u16::MAX } else { (1u16 << count) - 1 };
            _mm512_maskz_loadu_epi32(mask, from.cast())
        }
    }
}

/// Turns 16 x 16 words over their diagonal.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut quads = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let at = 4 * i;
        quads[at] = _mm512_unpacklo_epi64(pairs[at], pairs[at + 2]);
        quads[at + 1] = _mm512_unpackhi_epi64(pairs[at], pairs[at + 2]);
        quads[at + 2] = _mm512_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        quads[at + 3] = _mm512_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    // Quad i of a group of four rows now holds words i, i+4, i+8, i+12 in its four 128-bit lanes.
    let mut turned = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(quads[i], quads[i + 4]);
        let high = _mm512_shuffle_i32x4::<0x88>(quads[i + 8], quads[i + 12]);
        let low_odd = _mm512_shuffle_i32x4::<0xdd>(quads[i], quads[i + 4]);
        let high_odd = _mm512_shuffle_i32x4::<0xdd>(quads[i + 8], quads[i + 12]);
        turned[i] = _mm512_shuffle_i32x4::<0x88>(low, high);
        turned[i + 8] = _mm512_shuffle_i32x4::<0xdd>(low, high);
        turned[i + 4] = _mm512_shuffle_i32x4::<0x88>(low_odd, high_odd);
        turned[i + 12] = _mm512_shuffle_i32x4::<0xdd>(low_odd, high_odd);
    }
    turned
}

/// Dot products of bf16 rows with weight rows.
///
/// # Safety
/// The processor has AVX512-BF16; both types are bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn dots<E: Element, W: Element>(
    x: Rows<'_, E>,
    rows: Range<usize>,
    weight: Rows<'_, W>,
    columns: Range<usize>,
    sums: &mut [f32],
    stride: usize,
    add: bool,
) {
    assert!(x.width() == weight.width() && size_of::<E>() == size_of::<bf16>() && E::PAIRED == W::PAIRED);
    for start in rows.clone().step_by(GROUP) {
        let sums = &mut sums[(start - rows.start) * stride..];
        macro_rules! of {
            ($($count:literal)*) => {
                match GROUP.min(rows.end - start) {
                    // SAFETY: as this function's own.
                    $($count => unsafe { rows_of::<E, W, $count>(x, start, weight, columns.clone(), sums, stride, add) },)*
                    _ => unreachable!("a group has 1 to 6 rows"),
                }
            };
        }
        of!(1 2 3 4 5 6);
    }
}

/// Rows of x whose running sums fit the registers beside those of [`TOGETHER`] weight rows.
const GROUP: usize = 6;

/// Weight rows met at a time.
const TOGETHER: usize = 4;

/// [`dots`] of `M` rows of x from `start` on.
///
/// # Safety
/// As [`dots`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn rows_of<E: Element, W: Element, const M: usize>(
    x: Rows<'_, E>,
    start: usize,
    weight: Rows<'_, W>,
    columns: Range<usize>,
    sums: &mut [f32],
    stride: usize,
    add: bool,
) {
    let mut x_rows = [std::ptr::null(); M];
    for (i, row) in x_rows.iter_mut().enumerate() {
        *row = x.row(start + i).as_ptr();
    }
    let (length, apart) = (x.width(), weight.stride());
    let mut column = columns.start;
    while column < columns.end {
        let (first, sums) = (weight.row(column).as_ptr().cast::<E>(), &mut sums[column - columns.start..]);
        if columns.end - column >= TOGETHER {
            assert!(column + TOGETHER <= weight.count());
            // SAFETY: the rows of x and so many of the weight have `length` values.
            let dots = unsafe { group::<E, M, TOGETHER>(&x_rows, first, apart, length) };
            put(&dots, sums, stride, add);
            column += TOGETHER;
        } else {
            // SAFETY: as above.
            let dots = unsafe { group::<E, M, 1>(&x_rows, first, apart, length) };
            put(&dots, sums, stride, add);
            column += 1;
        }
    }
}

#[inline(always)]
fn put<const M: usize, const R: usize>(dots: &[[f32; R]; M], sums: &mut [f32], stride: usize, add: bool) {
    for (i, dots) in dots.iter().enumerate() {
        for (sum, dot) in sums[i * stride..][..R].iter_mut().zip(dots) {
            *sum = if add { *sum + dot } else { *dot };
        }
    }
}

/// # Safety
/// The processor has AVX512-BF16; every row of x, and `R` rows from `weight` on, `apart` values from one to the next, have
/// `length` bf16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn group<E: Element, const M: usize, const R: usize>(
    x: &[*const E; M],
    weight: *const E,
    apart: usize,
    length: usize,
) -> [[f32; R]; M] {
    const STEP: usize = 32;
    let mut sums = [[_mm512_setzero_ps(); R]; M];
    // SAFETY: as this function's own; masked loads read no more than the rows.
    unsafe {
        let mut k = 0;
        macro_rules! step {
            ($k:expr) => {
                let mut values = [_mm512_setzero_si512(); M];
                for (values, x) in values.iter_mut().zip(x) {
                    *values = _mm512_loadu_si512(x.add($k).cast());
                }
                for r in 0..R {
                    let at = weight.add(r * apart + $k);
                    let weights = _mm512_loadu_si512(at.cast());
                    for (sums, x) in sums.iter_mut().zip(values) {
                        sums[r] = multiply_add::<E>(x, weights, sums[r]);
                    }
                }
            };
        }
        // The fewer instructions a line takes, the more lines the processor has under way: two steps a turn, and nothing asked
        // for ahead. One row on a Zen 5: 94 % of the memory's bandwidth, 80 with one step and a prefetch for each line.
        while k + 2 * STEP <= length {
            step!(k);
            step!(k + STEP);
            k += 2 * STEP;
        }
        if k + STEP <= length {
            step!(k);
            k += STEP;
        }
        if k < length {
            for (x, sums) in x.iter().zip(&mut sums) {
                let x = load_some::<E>(x.add(k), length - k);
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = multiply_add::<E>(x, load_some::<E>(weight.add(r * apart + k), length - k), *sum);
                }
            }
        }
        let mut dots = [[0f32; R]; M];
        for (dots, sums) in dots.iter_mut().zip(sums) {
            for (dot, sum) in dots.iter_mut().zip(sums) {
                *dot = _mm512_reduce_add_ps(sum);
            }
        }
        dots
    }
}
