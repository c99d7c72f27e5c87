//! PIL's bicubic resampling of 8-bit pictures, to the bit.
//!
//! Source of the rules: Pillow's `src/libImaging/Resample.c`. Cubic convolution with a = -1/2; when shrinking, its
//! support widens by the factor of shrinking, so that the picture is low-pass filtered. Two passes, each rounding to
//! 8 bits. Weights are fixed-point numbers of 22 fractional bits.
//!
//! The rows are filtered first, then the columns, but for pictures that lose more than twice as many rows as columns:
//! with these Pillow starts with the columns, since version 13 (python-pillow/Pillow#9549; the rule was confirmed on
//! 2427 pairs of sizes whose result depends on the order). With older versions, pictures taller than about 2:1 differ
//! from ours in the last bits.

use std::ops::Range;

use image::RgbImage;
use rayon::prelude::*;

/// Fractional bits of a weight: 32, less 8 for the value and 2 for the overshoot of the filter.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// How far the cubic reaches on either side, in pixels of the coarser of the two pictures.
const SUPPORT: f64 = 2.0;

/// One half: sums start with it, so that cutting them rounds.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// Multiplications that make up for the cost of another thread.
const PARALLEL_WORK: usize = 1 << 18;

/// A part of a resized picture, in its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Resizes to `width` times `height` pixels, equal to PIL's `resize((width, height), BICUBIC)` in every byte.
///
/// A picture without pixels becomes black.
pub fn resize_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize_bicubic_window(image, width, height, Window { left: 0, top: 0, width, height })
}

/// Resizes to `width` times `height` pixels and keeps `window` of the result; only that part is computed.
///
/// What of the window lies outside of the result stays black.
pub fn resize_bicubic_window(image: &RgbImage, width: u32, height: u32, window: Window) -> RgbImage {
    let mut result = RgbImage::new(window.width, window.height);
    if image.is_empty() {
        return result;
    }
    let columns = Axis::new(image.width(), width, window.left, window.width);
    let rows = Axis::new(image.height(), height, window.top, window.height);
    if columns.taps.is_empty() || rows.taps.is_empty() {
        return result;
    }
    let source_width = image.width() as usize;
    let pixels = if columns_first(image.dimensions(), (width, height)) {
        let span = columns.span();
        let between = filter_columns(image, source_width, span.clone(), &rows, 0);
        filter_rows(&between, span.len(), 0..rows.taps.len(), &columns, span.start)
    } else {
        let span = rows.span();
        let between = filter_rows(image, source_width, span.clone(), &columns, 0);
        filter_columns(&between, columns.taps.len(), 0..columns.taps.len(), &rows, span.start)
    };
    let result_stride = 3 * window.width as usize;
    let stride = 3 * columns.taps.len();
    for (to, from) in result.chunks_exact_mut(result_stride).zip(pixels.chunks_exact(stride)) {
        to[..stride].copy_from_slice(from);
    }
    result
}

/// Whether Pillow starts with the columns.
fn columns_first(from: (u32, u32), to: (u32, u32)) -> bool {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    lost(from.1, to.1) > 0 && lost(from.1, to.1) > 2 * lost(from.0, to.0)
}

/// The pass along the rows: of `data`, pixels `[_, width, 3]`, the rows `rows`, to `[rows, taps, 3]`.
///
/// `data` starts at pixel `shift` of what `axis` was made for.
fn filter_rows(data: &[u8], width: usize, rows: Range<usize>, axis: &Axis, shift: usize) -> Vec<u8> {
    let stride = 3 * axis.taps.len();
    let mut out = vec![0; rows.len() * stride];
    let sources = data[3 * width * rows.start..3 * width * rows.end].par_chunks_exact(3 * width);
    let least_rows = PARALLEL_WORK.div_ceil(axis.work().max(1));
    out.par_chunks_exact_mut(stride).zip(sources).with_min_len(least_rows).for_each(|(out, row)| {
        for (taps, pixel) in axis.taps.iter().zip(out.chunks_exact_mut(3)) {
            let mut sums = [HALF; 3];
            let start = taps.start - shift;
            let source = &row[3 * start..3 * (start + taps.weights.len())];
            for (rgb, weight) in source.chunks_exact(3).zip(&taps.weights) {
                for (sum, &value) in sums.iter_mut().zip(rgb) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (value, sum) in pixel.iter_mut().zip(sums) {
                *value = to_byte(sum);
            }
        }
    });
    out
}

/// The pass along the columns: of `data`, pixels `[_, width, 3]`, the columns `columns`, to `[taps, columns, 3]`.
///
/// `data` starts at row `shift` of what `axis` was made for.
fn filter_columns(data: &[u8], width: usize, columns: Range<usize>, axis: &Axis, shift: usize) -> Vec<u8> {
    /// Values whose sums are kept at a time.
    const BLOCK: usize = 96;
    let stride = 3 * columns.len();
    let mut out = vec![0; axis.taps.len() * stride];
    let least_rows = PARALLEL_WORK.div_ceil((stride * axis.work() / axis.taps.len().max(1)).max(1));
    out.par_chunks_exact_mut(stride).zip(&axis.taps).with_min_len(least_rows).for_each(|(out, taps)| {
        let rows = data.chunks_exact(3 * width).skip(taps.start - shift);
        for (block, values) in out.chunks_mut(BLOCK).enumerate() {
            let mut sums = [HALF; BLOCK];
            let start = 3 * columns.start + block * BLOCK;
            for (row, weight) in rows.clone().zip(&taps.weights) {
                for (sum, &value) in sums.iter_mut().zip(&row[start..start + values.len()]) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (value, sum) in values.iter_mut().zip(sums) {
                *value = to_byte(sum);
            }
        }
    });
    out
}

/// What one pixel of the result is made of, along one axis.
struct Taps {
    /// First pixel of the source.
    start: usize,
    /// Weights of it and of those that follow.
    weights: Vec<i32>,
}

/// How to resample one axis.
struct Axis {
    taps: Vec<Taps>,
}

impl Axis {
    /// From `source` pixels to `size`, of which `count` from `offset` on are wanted.
    fn new(source: u32, size: u32, offset: u32, count: u32) -> Self {
        if source == 0 {
            return Self { taps: Vec::new() };
        }
        let last = u64::from(offset).saturating_add(u64::from(count)).min(u64::from(size)) as u32;
        if source == size {
            // PIL leaves out a pass that changes no size.
            let taps = (offset..last).map(|at| Taps { start: at as usize, weights: vec![1 << PRECISION_BITS] });
            return Self { taps: taps.collect() };
        }
        let scale = f64::from(source) / f64::from(size);
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let inverse = 1.0 / filter_scale;
        let taps = (offset..last).map(|at| {
            let center = (f64::from(at) + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as u32;
            let end = ((center + support + 0.5) as u32).min(source);
            let raw: Vec<f64> = (start..end).map(|x| cubic((f64::from(x) - center + 0.5) * inverse)).collect();
            // Divided one by one, in this order, as in the source: the last bit depends on it.
            let sum: f64 = raw.iter().fold(0.0, |sum, weight| sum + weight);
            let weights =
                raw.iter().map(|&weight| fixed_point(if sum == 0.0 { weight } else { weight / sum })).collect();
            Taps { start: start as usize, weights }
        });
        Self { taps: taps.collect() }
    }

    /// Multiplications for one line of one channel.
    fn work(&self) -> usize {
        self.taps.iter().map(|taps| taps.weights.len()).sum()
    }

    /// The pixels of the source that are read.
    fn span(&self) -> Range<usize> {
        match (self.taps.first(), self.taps.last()) {
            (Some(first), Some(last)) => first.start..last.start + last.weights.len(),
            _ => 0..0,
        }
    }
}

/// The cubic convolution kernel with a = -1/2 (Keys 1981), at `x` pixels from the centre.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < SUPPORT {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Rounds half away from zero.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1_u32 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    type Size = (u32, u32);

    /// Source size, result size, and the FNV-1a checksum of PIL's result; printed by `tests/golden/resize.py`.
    const PIL: &[(Size, Size, u64)] = &[
        ((64, 37), (32, 18), 0xee4d01efffd3cda9),
        ((75, 110), (21, 32), 0xb93dcbf036477561),
        ((200, 30), (32, 14), 0x2bb6fb295ecb2641),
        ((1, 1), (5, 7), 0x9746c9ec74d64e77),
        ((1, 9), (3, 4), 0xbb97aa7d9d423985),
        ((9, 1), (4, 3), 0x209dfccb93d4351e),
        ((5, 5), (1, 1), 0x3ab1461933ba0271),
        ((97, 61), (1, 40), 0x2402bb3a928f3ecc),
        ((97, 61), (40, 1), 0x2ee2fdb297c91cfc),
        ((13, 17), (13, 40), 0xde1abeee52509f0a),
        ((13, 17), (40, 17), 0x566e1247bfeb1a26),
        ((13, 17), (13, 17), 0x76071545d53c6fe8),
        ((7, 5), (384, 274), 0xa3dda2f2db4c7528),
        ((640, 480), (384, 288), 0xa3c6f6b7a2bdcaa8),
        ((1000, 333), (384, 127), 0xa7ca452f7176fb7b),
        ((3, 200), (14, 384), 0x5dce749b2dc48b81),
        ((255, 257), (256, 256), 0x3520f5b7b00595be),
        ((31, 33), (62, 99), 0x858bc427dce7eab7),
        ((2, 2), (3, 3), 0x26663fdf1c22a450),
        ((100, 1), (384, 14), 0xb3e13b59c8173a85),
        ((110, 330), (127, 384), 0x4edb4bab0a2592e7),
        ((300, 900), (128, 384), 0x4c732e7d4e7585ad),
        ((49, 25), (35, 6), 0x35c73ba13bbb99a2),
        ((12, 26), (5, 11), 0x742dc92f3251cb73),
        ((13, 56), (7, 41), 0x7eff7d7d20b9c822),
    ];

    /// The same picture as in `tests/golden/resize.py`.
    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([0, 1, 2].map(|c: u32| {
                if 2 * x >= width {
                    return if (x / 3 + y / 2 + c).is_multiple_of(2) { 255 } else { 0 };
                }
                let term = |a: u32, b: u32| a.wrapping_mul(b);
                let value = term(x, 374_761_393)
                    .wrapping_add(term(y, 668_265_263))
                    .wrapping_add(term(c, 2_246_822_519))
                    .wrapping_add(term(term(x, y), 3_266_489_917));
                (term(value ^ (value >> 15), 2_654_435_761) >> 24) as u8
            }))
        })
    }

    fn checksum(bytes: &[u8]) -> u64 {
        bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |state, &byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    #[test]
    fn every_byte_is_that_of_pil() {
        for &((width, height), (to_width, to_height), expected) in PIL {
            let resized = resize_bicubic(&picture(width, height), to_width, to_height);
            assert_eq!(resized.dimensions(), (to_width, to_height));
            assert_eq!(checksum(&resized), expected, "{width}x{height} to {to_width}x{to_height}");
        }
    }

    #[test]
    fn a_window_is_that_part_of_the_whole() {
        let image = picture(90, 70);
        for (width, height) in [(40, 33), (200, 150), (90, 20), (30, 70)] {
            let whole = resize_bicubic(&image, width, height);
            let window = Window { left: width / 3, top: height / 4, width: width / 2, height: height / 2 };
            let part = image::imageops::crop_imm(&whole, window.left, window.top, window.width, window.height);
            assert_eq!(resize_bicubic_window(&image, width, height, window), part.to_image());
        }
    }

    #[test]
    fn empty_pictures_and_windows_outside_are_black() {
        assert_eq!(resize_bicubic(&RgbImage::new(0, 5), 2, 2), RgbImage::new(2, 2));
        assert_eq!(resize_bicubic(&picture(3, 3), 0, 2), RgbImage::new(0, 2));
        let outside = Window { left: 4, top: 1, width: 3, height: 3 };
        assert_eq!(resize_bicubic_window(&picture(3, 3), 4, 4, outside), RgbImage::new(3, 3));
        let across = Window { left: 2, top: 2, width: 3, height: 3 };
        let part = resize_bicubic_window(&picture(3, 3), 4, 4, across);
        let whole = resize_bicubic(&picture(3, 3), 4, 4);
        assert_eq!(part.get_pixel(1, 1), whole.get_pixel(3, 3));
        assert_eq!(part.get_pixel(2, 2).0, [0; 3]);
    }
}
