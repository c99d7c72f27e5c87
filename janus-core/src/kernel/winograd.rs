//! 3 x 3 convolutions with a margin of one, two by two results at a time, by the minimal filtering F(2 x 2, 3 x 3) of Winograd
//! (Lavin and Gray, arXiv:1509.09308).
//!
//! A tile of 4 x 4 pixels and the kernel are brought to 16 components, in which a convolution is one product each: 4
//! multiplications a result instead of 9. The transforms add and halve only, so that a result is as near the truth as a plain
//! sum's; F(4 x 4, 3 x 3) would save another fifth of the decoder's time, but its results are an order of magnitude further
//! off, which codes of pictures do not bear. Where every pixel of the input first becomes four, 7 of the 16 components are
//! zero, and a tile is 3 x 3 pixels of what was there before.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::level::{Level, level};
use super::panel::{LANES, LINES, Layout, Line, Panel, Side, pack};
use super::picture::{Norm, Picture};
use super::rows::{Rows, SPREAD};
use super::tile;
use super::vector::vectorized;

/// Results of a tile on an axis.
const SIDE: usize = 2;

/// Tiles whose components are held at a time, a multiple of the rows of every product's tile: with 128 channels they and a
/// panel nearly fill a core's second-level cache. From 36 to 144 the time hardly moves.
const BLOCK: usize = 96;

/// Values between one component's tiles and the next one's, so that a tile's components lie in sets of their own.
const APART: usize = 16;

/// Input channels whose kernels are turned at a time.
const TURNED: usize = 32;

/// Components of a tile on an axis: plain, and where pixels are doubled.
const PLAIN: usize = 4;
const DOUBLED: usize = 3;

/// A kernel by components: panel by panel of results, for each the panels of all components.
#[derive(Debug)]
pub(crate) struct Kernel {
    lines: Vec<Line>,
    input: usize,
    output: usize,
    doubled: bool,
}

impl Kernel {
    /// From `[output, input, 3, 3]` with at least one input channel; `doubled` for input whose every pixel first becomes two by two.
    pub(crate) fn new(kernel: &[f32], output: usize, input: usize, doubled: bool) -> Self {
        assert!(input > 0 && kernel.len() == output * input * 9, "a kernel of another size");
        let mut kernels = Self { lines: Vec::new(), input, output, doubled };
        let panel_lines = kernels.components() * input * LINES;
        kernels.lines = vec![Line([0; 16]); output.div_ceil(LANES) * panel_lines];
        let (rows, level) = (Rows::dense(kernel, output, input * 9), level());
        kernels.lines.par_chunks_exact_mut(panel_lines).enumerate().for_each(|(number, panels)| {
            let columns = number * LANES..((number + 1) * LANES).min(output);
            let mut taps = vec![Line([0; 16]); TURNED * 9 * LINES];
            for first in (0..input).step_by(TURNED) {
                let channels = first..(first + TURNED).min(input);
                let taps = &mut taps[..channels.len() * 9 * LINES];
                let inner = channels.start * 9..channels.end * 9;
                pack::<f32, _>(level, rows, Side::Transposed, inner, columns.clone(), taps, Layout::TOGETHER);
                turn_kernel::<f32>(taps, channels, input, doubled, panels);
            }
        });
        kernels
    }

    fn components(&self) -> usize {
        if self.doubled { DOUBLED * DOUBLED } else { PLAIN * PLAIN }
    }
}

/// Buffers of one thread, kept from band to band.
#[derive(Default)]
struct Scratch {
    /// The band's pixels with a margin of zeros.
    window: Vec<f32>,
    /// `[components, tiles, input]`.
    components: Vec<f32>,
    /// `[components, tiles, LANES]`.
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Sizes of one convolution.
#[derive(Clone, Copy)]
struct Sizes {
    out_height: usize,
    out_width: usize,
    /// Tiles side by side.
    across: usize,
    /// Values of a pixel in the window, a multiple of 16.
    pixel: usize,
    /// Values of a window's row.
    row: usize,
    /// Window pixels from one tile to the next.
    step: usize,
}

/// `norm`, `x · sigmoid(x)` and doubling where asked for, the convolution, and the sum with `bias: [output]` and with `add`,
/// of the result's shape `[height', width', output]`.
pub(crate) fn convolve(
    picture: Picture<'_>,
    norm: Option<&Norm>,
    kernel: &Kernel,
    bias: Option<&[f32]>,
    add: Option<&[f32]>,
    out: &mut [f32],
) {
    let factor = if kernel.doubled { 2 } else { 1 };
    let (out_height, out_width) = (picture.height * factor, picture.width * factor);
    assert!(picture.channels == kernel.input && out.len() == out_height * out_width * kernel.output);
    assert!(bias.is_none_or(|bias| bias.len() == kernel.output) && add.is_none_or(|add| add.len() == out.len()));
    if out.is_empty() {
        return;
    }
    let (across, down) = (out_width.div_ceil(SIDE), out_height.div_ceil(SIDE));
    let step = SIDE / factor;
    let pixel = picture.channels.next_multiple_of(16);
    let sizes = Sizes { out_height, out_width, across, pixel, row: (across * step + 2) * pixel, step };
    let fair = down.div_ceil(rayon::current_num_threads());
    let band = BLOCK.div_ceil(across).min(fair).max(1);
    let band_values = band * SIDE * out_width * kernel.output;
    let level = level();
    let bias: Vec<f32> = (0..kernel.output.next_multiple_of(LANES))
        .map(|o| bias.and_then(|bias| bias.get(o)).copied().unwrap_or(0.0))
        .collect();
    out.par_chunks_mut(band_values).enumerate().for_each(|(number, out)| {
        let add = add.map(|add| &add[number * band_values..][..out.len()]);
        let tiles = number * band..((number + 1) * band).min(down);
        SCRATCH.with_borrow_mut(|scratch| {
            sizes.fill_window(picture, norm, &tiles, &mut scratch.window);
            sizes.band(level, kernel, &tiles, &bias, add, out, scratch);
        });
    });
}

impl Sizes {
    /// The pixels under some rows of tiles, normed and activated, inside a margin of zeros.
    fn fill_window(&self, picture: Picture<'_>, norm: Option<&Norm>, tiles: &Range<usize>, window: &mut Vec<f32>) {
        let rows = tiles.len() * self.step + 2;
        window.clear();
        window.resize(rows * self.row, 0.0);
        for (i, row) in window.chunks_exact_mut(self.row).enumerate() {
            let Some(y) = (tiles.start * self.step + i).checked_sub(1).filter(|y| *y < picture.height) else {
                continue;
            };
            let pixels = picture.pixels(y, 0, picture.width);
            let row = &mut row[self.pixel..(picture.width + 1) * self.pixel];
            match norm {
                Some(norm) => norm.write(pixels, true, self.pixel, row),
                None if self.pixel == picture.channels => row.copy_from_slice(pixels),
                None => {
                    for (to, from) in row.chunks_exact_mut(self.pixel).zip(pixels.chunks_exact(picture.channels)) {
                        to[..picture.channels].copy_from_slice(from);
                    }
                }
            }
        }
    }

    /// Where the results of one tile begin among those of a band; the last of an odd height or width may be missing.
    fn places(&self, kernel: &Kernel, tile: usize) -> impl Iterator<Item = usize> {
        let (y, x) = (tile / self.across * SIDE, tile % self.across * SIDE);
        let (width, output) = (self.out_width, kernel.output);
        (0..SIDE * SIDE).map(move |i| ((y + i / SIDE) * width + x + i % SIDE) * output)
    }

    /// All results of some rows of tiles, whose pixels are in the window.
    fn band(
        &self,
        level: Level,
        kernel: &Kernel,
        tiles: &Range<usize>,
        bias: &[f32],
        add: Option<&[f32]>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let Scratch { window, components, sums } = scratch;
        let crowded = (self.pixel * size_of::<f32>()).is_multiple_of(2048);
        let stride = if crowded { self.pixel + SPREAD } else { self.pixel };
        let count = tiles.len() * self.across;
        let panel_lines = kernel.input * LINES;
        let gaps = [BLOCK * stride + APART, BLOCK * LANES + APART];
        components.resize(kernel.components() * gaps[0], 0.0);
        sums.resize(kernel.components() * gaps[1], 0.0);
        for first in (0..count).step_by(BLOCK) {
            let block = first..(first + BLOCK).min(count);
            for (i, tile) in block.clone().enumerate() {
                let at = tile / self.across * self.step * self.row + tile % self.across * self.step * self.pixel;
                let components = &mut components[i * stride..];
                turn_pixels::<f32>(&window[at..], self.row, self.pixel, kernel.doubled, components, gaps[0]);
            }
            for (number, panels) in kernel.lines.chunks_exact(kernel.components() * panel_lines).enumerate() {
                let columns = number * LANES..((number + 1) * LANES).min(kernel.output);
                let share = block.len().div_ceil(kernel.components());
                for (component, lines) in panels.chunks_exact(panel_lines).enumerate() {
                    // Results lie far apart: what is written and added comes near while the products keep the core busy.
                    for tile in block.clone().skip(component * share).take(share) {
                        for at in self.places(kernel, tile).map(|at| at + columns.start) {
                            bring(out, at);
                            if let Some(add) = add {
                                bring(add, at);
                            }
                        }
                    }
                    let panel = Panel { lines, layout: Layout::TOGETHER, depth: kernel.input };
                    let x = &components[component * gaps[0]..][..block.len() * stride];
                    let sums = &mut sums[component * gaps[1]..][..block.len() * LANES];
                    tile::wide(level, block.len(), x, stride, panel, sums, LANES, false);
                }
                for (i, tile) in block.clone().enumerate() {
                    let (y, x) = (tile / self.across * SIDE, tile % self.across * SIDE);
                    let inside = [SIDE.min(self.out_height - tiles.start * SIDE - y), SIDE.min(self.out_width - x)];
                    let at = (y * self.out_width + x) * kernel.output + columns.start;
                    turn_back::<f32>(
                        &sums[i * LANES..],
                        gaps[1],
                        kernel.doubled,
                        &bias[columns.start..],
                        add.map(|add| &add[at..]),
                        &mut out[at..],
                        columns.len(),
                        inside,
                        [self.out_width * kernel.output, kernel.output],
                    );
                }
            }
        }
    }
}

/// Asks for the values of a panel's columns from `at` on.
fn bring(values: &[f32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..LINES {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch touches nothing, whatever its address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().wrapping_add(at + line * 16).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, at);
}

/// Adjacent channels of one pixel or component. Loops over them become vector instructions.
type Lanes = [f32; 16];

/// `Bᵀ·d` of the article; doubled, the tile `d` is `e0 e1 e1 e2`, and the third component, zero, is left out.
#[inline(always)]
fn pixels_axis<const N: usize>(d: [f32; N]) -> [f32; N] {
    let mut v = [0.0; N];
    if N == PLAIN {
        v[0] = d[0] - d[2];
        v[1] = d[1] + d[2];
        v[2] = d[2] - d[1];
        v[3] = d[1] - d[3];
    } else {
        v[0] = d[0] - d[1];
        v[1] = d[1] + d[1];
        v[2] = d[1] - d[2];
    }
    v
}

/// `G·g` of the article.
#[inline(always)]
fn kernel_axis<const N: usize>(g: [f32; 3]) -> [f32; N] {
    let mut u = [0.0; N];
    let (ends, middle) = ((g[0] + g[2]) * 0.5, g[1] * 0.5);
    u[0] = g[0];
    u[1] = ends + middle;
    if N == PLAIN {
        u[2] = ends - middle;
    }
    u[N - 1] = g[2];
    u
}

/// `Aᵀ·m` of the article.
#[inline(always)]
fn results_axis<const N: usize>(m: [f32; N]) -> [f32; SIDE] {
    if N == PLAIN { [m[0] + m[1] + m[2], m[1] - m[2] - m[N - 1]] } else { [m[0] + m[1], m[1] - m[2]] }
}

/// One of the maps above on both axes, lane by lane: `from: [FROM, FROM]`, row by row, to `to: [TO, TO]`.
#[inline(always)]
fn both_axes<const FROM: usize, const TO: usize>(
    axis: impl Fn([f32; FROM]) -> [f32; TO],
    from: &[[Lanes; FROM]; FROM],
    to: &mut [[Lanes; TO]; TO],
) {
    for lane in 0..16 {
        let mut half = [[0f32; FROM]; TO];
        for x in 0..FROM {
            let mut column = [0f32; FROM];
            for y in 0..FROM {
                column[y] = from[y][x][lane];
            }
            let column = axis(column);
            for y in 0..TO {
                half[y][x] = column[y];
            }
        }
        for y in 0..TO {
            let row = axis(half[y]);
            for x in 0..TO {
                to[y][x][lane] = row[x];
            }
        }
    }
}

#[inline(always)]
fn turn_pixels_by<const N: usize>(window: &[f32], row: usize, pixel: usize, components: &mut [f32], gap: usize) {
    for c in (0..pixel).step_by(16) {
        let (mut tile, mut turned) = ([[[0f32; 16]; N]; N], [[[0f32; 16]; N]; N]);
        for (y, line) in tile.iter_mut().enumerate() {
            for (x, lanes) in line.iter_mut().enumerate() {
                lanes.copy_from_slice(&window[y * row + x * pixel + c..][..16]);
            }
        }
        both_axes(pixels_axis::<N>, &tile, &mut turned);
        for (i, lanes) in turned.iter().flatten().enumerate() {
            components[i * gap + c..][..16].copy_from_slice(lanes);
        }
    }
}

#[inline(always)]
fn turn_kernel_by<const N: usize>(taps: &[Line], channels: Range<usize>, input: usize, panels: &mut [Line]) {
    for (taps, channel) in taps.chunks_exact(9 * LINES).zip(channels) {
        for half in 0..LINES {
            let (mut kernel, mut turned) = ([[[0f32; 16]; 3]; 3], [[[0f32; 16]; N]; N]);
            for (t, lanes) in kernel.iter_mut().flatten().enumerate() {
                *lanes = taps[t * LINES + half].0.map(f32::from_bits);
            }
            both_axes(kernel_axis::<N>, &kernel, &mut turned);
            for (i, lanes) in turned.iter().flatten().enumerate() {
                panels[(i * input + channel) * LINES + half].0 = lanes.map(f32::to_bits);
            }
        }
    }
}

#[inline(always)]
fn turn_back_by<const N: usize>(sums: &[f32], gap: usize, half: usize) -> [[Lanes; SIDE]; SIDE] {
    let (mut turned, mut results) = ([[[0f32; 16]; N]; N], [[[0f32; 16]; SIDE]; SIDE]);
    for (i, lanes) in turned.iter_mut().flatten().enumerate() {
        lanes.copy_from_slice(&sums[i * gap + half * 16..][..16]);
    }
    both_axes(results_axis::<N>, &turned, &mut results);
    results
}

vectorized! {
    /// Components of the tile at the window's start, `gap` values apart.
    fn turn_pixels<E>(
        window: &[f32],
        row: usize,
        pixel: usize,
        doubled: bool,
        components: &mut [f32],
        gap: usize,
    ) {
        if doubled {
            turn_pixels_by::<DOUBLED>(window, row, pixel, components, gap);
        } else {
            turn_pixels_by::<PLAIN>(window, row, pixel, components, gap);
        }
    }

    /// Components of the kernels of some input channels, nine steps of a panel each, into the panels of all components.
    fn turn_kernel<E>(taps: &[Line], channels: Range<usize>, input: usize, doubled: bool, panels: &mut [Line]) {
        if doubled {
            turn_kernel_by::<DOUBLED>(taps, channels, input, panels);
        } else {
            turn_kernel_by::<PLAIN>(taps, channels, input, panels);
        }
    }

    /// Writes the results of one tile, as many of each axis as are `inside`, from its components.
    fn turn_back<E>(
        sums: &[f32],
        gap: usize,
        doubled: bool,
        bias: &[f32],
        add: Option<&[f32]>,
        out: &mut [f32],
        columns: usize,
        inside: [usize; 2],
        strides: [usize; 2],
    ) {
        for half in 0..LINES {
            let count = columns.saturating_sub(half * 16).min(16);
            if count == 0 {
                break;
            }
            let results = if doubled {
                turn_back_by::<DOUBLED>(sums, gap, half)
            } else {
                turn_back_by::<PLAIN>(sums, gap, half)
            };
            let bias = &bias[half * 16..][..16];
            for (y, row) in results.iter().enumerate().take(inside[0]) {
                for (x, lanes) in row.iter().enumerate().take(inside[1]) {
                    let at = y * strides[0] + x * strides[1] + half * 16;
                    let out = &mut out[at..at + count];
                    for ((out, lane), bias) in out.iter_mut().zip(lanes).zip(bias) {
                        *out = lane + bias;
                    }
                    if let Some(add) = add {
                        out.iter_mut().zip(&add[at..]).for_each(|(out, add)| *out += add);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::level::{at_level, levels};
    use crate::kernel::testing::{close, values};

    /// By the definition, in f64.
    fn truth(picture: Picture<'_>, kernel: &[f32], output: usize, doubled: bool) -> Vec<f32> {
        let factor = if doubled { 2 } else { 1 };
        let (height, width, input) = (picture.height * factor, picture.width * factor, picture.channels);
        let mut out = Vec::new();
        for at in 0..height * width * output {
            let (y, x, o) = (at / output / width, at / output % width, at % output);
            let mut sum = 0f64;
            for tap in 0..9 {
                let (y, x) = ((y + tap / 3).wrapping_sub(1), (x + tap % 3).wrapping_sub(1));
                if y < height && x < width {
                    let pixel = picture.pixels(y / factor, x / factor, 1);
                    for (c, value) in pixel.iter().enumerate() {
                        sum += f64::from(*value) * f64::from(kernel[(o * input + c) * 9 + tap]);
                    }
                }
            }
            out.push(sum as f32);
        }
        out
    }

    #[test]
    fn every_level_agrees_with_the_definition() {
        let shapes = match cfg!(miri) {
            true => [(1, 1, 1, 1), (5, 7, 3, 40), (3, 4, 33, 5), (2, 34, 4, 3), (1, 2, 5, 64)],
            false => [(1, 1, 1, 1), (5, 7, 3, 40), (6, 4, 33, 5), (2, 90, 16, 3), (11, 23, 48, 64)],
        };
        for (height, width, input, output) in shapes {
            for doubled in [false, true] {
                let picture: Vec<f32> = values(height * width * input, 1);
                let kernel: Vec<f32> = values(output * input * 9, 2);
                let picture = Picture::new(&picture, height, width, input);
                let truth = truth(picture, &kernel, output, doubled);
                for level in levels() {
                    let out = at_level(level, || {
                        let kernel = Kernel::new(&kernel, output, input, doubled);
                        let mut out = vec![f32::NAN; truth.len()];
                        convolve(picture, None, &kernel, None, None, &mut out);
                        out
                    });
                    close(&out, &truth, 1e-5 * (input as f32).max(4.0).sqrt());
                }
            }
        }
    }

    #[test]
    fn what_comes_before_and_behind_is_as_by_itself() {
        let (height, width, input, output) = if cfg!(miri) { (3, 5, 10, 37) } else { (9, 13, 20, 37) };
        let picture: Vec<f32> = values(height * width * input, 1);
        let picture = Picture::new(&picture, height, width, input);
        let (weight, shift): (Vec<f32>, Vec<f32>) = (values(input, 3), values(input, 4));
        let (bias, add): (Vec<f32>, Vec<f32>) = (values(output, 5), values(height * width * output, 6));
        let kernel = Kernel::new(&values::<f32>(output * input * 9, 2), output, input, false);
        let norm = Norm::of(picture, &weight, &shift, 5, 1e-3);
        let mut fused = vec![0f32; add.len()];
        convolve(picture, Some(&norm), &kernel, Some(&bias), Some(&add), &mut fused);
        let activated = norm.apply(picture, true);
        let mut plain = vec![0f32; add.len()];
        convolve(Picture::new(&activated, height, width, input), None, &kernel, None, None, &mut plain);
        for (i, plain) in plain.iter_mut().enumerate() {
            *plain = *plain + bias[i % output] + add[i];
        }
        close(&fused, &plain, 0.0);
    }
}
