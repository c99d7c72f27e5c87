//! Convolutions as matrix products: patches of pixels, unrolled a band of rows at a time, times the kernel; and the same way
//! back for the gradients.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernel::{Finish, Rows, SumOrder, Term, product};

/// Values of unrolled patches held at a time: 4 MiB.
const BAND_VALUES: usize = 1 << 20;

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    input: usize,
    height: usize,
    width: usize,
    kh: usize,
    kw: usize,
    stride: usize,
    padding: usize,
    out_height: usize,
    out_width: usize,
    /// That of the sums of [`Geometry::run`].
    order: SumOrder,
}

impl Geometry {
    /// Of pictures of a size `[height, width]` and a kernel of sides `[kh, kw]`, which is no larger than a picture with its
    /// margins.
    pub(super) fn new(
        input: usize,
        [height, width]: [usize; 2],
        [kh, kw]: [usize; 2],
        stride: usize,
        padding: usize,
    ) -> Self {
        let out_height = (height + 2 * padding - kh) / stride + 1;
        let out_width = (width + 2 * padding - kw) / stride + 1;
        let order = SumOrder::default();
        Self { input, height, width, kh, kw, stride, padding, out_height, out_width, order }
    }

    /// The same with sums made in an order.
    pub(super) fn in_order(self, order: SumOrder) -> Self {
        Self { order, ..self }
    }

    /// Rows and columns of the result.
    pub(super) fn out_size(&self) -> [usize; 2] {
        [self.out_height, self.out_width]
    }

    /// Values of a patch.
    fn depth(&self) -> usize {
        self.input * self.kh * self.kw
    }

    /// Whether the patches are the pixels.
    fn is_pointwise(&self) -> bool {
        [self.kh, self.kw, self.stride, self.padding] == [1, 1, 1, 0]
    }

    /// Rows of the result whose patches are held at a time.
    fn band(&self) -> usize {
        (BAND_VALUES / (self.depth() * self.out_width).max(1)).clamp(1, self.out_height.max(1))
    }

    /// `x: [batch, height, width, input]`, `kernel: [out, input, kh, kw]`; returns `[batch, out_height, out_width, out]`.
    pub(super) fn run(
        &self,
        batch: usize,
        out: usize,
        x: &[f32],
        kernel: &[f32],
        bias: Option<&[f32]>,
        add: Option<&[f32]>,
    ) -> Vec<f32> {
        let depth = self.depth();
        let area = self.out_height * self.out_width;
        let mut y = vec![0f32; batch * area * out];
        let mut multiply = |rows: Rows<'_, f32>, kernel: &[f32], first: usize| {
            let places = first * out..(first + rows.count()) * out;
            let add = add.map(|add| Rows::dense(&add[places.clone()], rows.count(), out));
            let term = Term::transposed(rows, Rows::dense(kernel, out, depth)).in_order(self.order);
            product(&[term], Finish { bias, add, ..Finish::default() }, &mut y[places], out);
        };
        if self.is_pointwise() {
            multiply(Rows::dense(x, batch * area, depth), kernel, 0);
            return y;
        }
        let kernel = self.channels_last(kernel);
        let band = self.band();
        let mut patches = vec![0f32; depth * band * self.out_width];
        for (i, x) in x.chunks_exact((self.height * self.width * self.input).max(1)).enumerate() {
            for first in (0..self.out_height).step_by(band) {
                let count = band.min(self.out_height - first) * self.out_width;
                let patches = &mut patches[..depth * count];
                self.unroll_band(x, first, patches);
                multiply(Rows::dense(patches, count, depth), &kernel, i * area + first * self.out_width);
            }
        }
        y
    }

    /// `[out, input, kh, kw]` as `[out, kh, kw, input]`.
    fn channels_last(&self, kernel: &[f32]) -> Vec<f32> {
        let taps = self.kh * self.kw;
        let mut turned = vec![0f32; kernel.len()];
        let size = (taps * self.input).max(1);
        for (turned, kernel) in turned.chunks_exact_mut(size).zip(kernel.chunks_exact(size)) {
            for (i, value) in kernel.iter().enumerate() {
                turned[i % taps * self.input + i / taps] = *value;
            }
        }
        turned
    }

    /// Fills the patches of as many of the output's rows as there is room for, from row `first` on.
    fn unroll_band(&self, x: &[f32], first: usize, patches: &mut [f32]) {
        let rows = patches.par_chunks_mut((self.depth() * self.out_width).max(1)).enumerate();
        rows.for_each(|(row, patches)| self.unroll(x, first + row, patches));
    }

    /// Fills the patches of the output's row `row`, `[out_width, kh, kw, input]`.
    fn unroll(&self, x: &[f32], row: usize, patches: &mut [f32]) {
        let line = self.kw * self.input;
        for (i, cells) in patches.chunks_exact_mut(line.max(1)).enumerate() {
            let Some((columns, from)) = self.line(i, row) else {
                cells.fill(0.0);
                continue;
            };
            let (left, right) = (columns.start * self.input, columns.end * self.input);
            cells[..left].fill(0.0);
            cells[left..right].copy_from_slice(&x[from..from + right - left]);
            cells[right..].fill(0.0);
        }
    }

    /// The gradient of the kernel, `[out, input, kh, kw]`, for `x: [batch, height, width, input]` and
    /// `dy: [batch, out_height, out_width, out]`: products of `dyᵀ` with the patches, band by band.
    pub(super) fn kernel_gradient(&self, batch: usize, out: usize, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let (depth, area) = (self.depth(), self.out_height * self.out_width);
        let mut sums = vec![0f32; out * depth];
        let mut turned = Vec::new();
        let mut add = |dy: &[f32], patches: &[f32]| {
            let count = dy.len() / out.max(1);
            transpose(dy, out, &mut turned);
            let term = Term::plain(Rows::dense(&turned, out, count), Rows::dense(patches, count, depth));
            product(&[term], Finish { accumulate: true, ..Finish::default() }, &mut sums, depth);
        };
        if self.is_pointwise() {
            let rows = (BAND_VALUES / depth.max(1)).max(1);
            dy.chunks(rows * out.max(1)).zip(x.chunks(rows * depth.max(1))).for_each(|(dy, x)| add(dy, x));
            return self.channels_first(&sums);
        }
        let band = self.band();
        let mut patches = vec![0f32; depth * band * self.out_width];
        let pictures = x.chunks_exact((self.height * self.width * self.input).max(1));
        for (x, dy) in pictures.zip(dy.chunks_exact((area * out).max(1))).take(batch) {
            for (number, dy) in dy.chunks((band * self.out_width * out).max(1)).enumerate() {
                let patches = &mut patches[..depth * (dy.len() / out.max(1))];
                self.unroll_band(x, number * band, patches);
                add(dy, patches);
            }
        }
        self.channels_first(&sums)
    }

    /// The gradient of the pictures, `[batch, height, width, input]`, for `dy: [batch, out_height, out_width, out]` and
    /// `kernel: [out, input, kh, kw]`: patches of gradients, each laid back where its pixels were read.
    pub(super) fn input_gradient(&self, batch: usize, out: usize, dy: &[f32], kernel: &[f32]) -> Vec<f32> {
        let (depth, area) = (self.depth(), self.out_height * self.out_width);
        let mut dx = vec![0f32; batch * self.height * self.width * self.input];
        let patches_of = |dy: &[f32], kernel: &[f32], patches: &mut [f32]| {
            let term = Term::plain(Rows::dense(dy, dy.len() / out.max(1), out), Rows::dense(kernel, out, depth));
            product(&[term], Finish::default(), patches, depth);
        };
        if self.is_pointwise() {
            patches_of(dy, kernel, &mut dx);
            return dx;
        }
        let (kernel, band) = (self.channels_last(kernel), self.band());
        let mut patches = vec![0f32; depth * band * self.out_width];
        let pictures = dx.chunks_exact_mut((self.height * self.width * self.input).max(1));
        for (dx, dy) in pictures.zip(dy.chunks_exact((area * out).max(1))) {
            for (number, dy) in dy.chunks((band * self.out_width * out).max(1)).enumerate() {
                let patches = &mut patches[..depth * (dy.len() / out.max(1))];
                patches_of(dy, &kernel, patches);
                for (row, patches) in patches.chunks_exact((depth * self.out_width).max(1)).enumerate() {
                    self.lay_back(patches, number * band + row, dx);
                }
            }
        }
        dx
    }

    /// `[out, kh, kw, input]` as `[out, input, kh, kw]`.
    fn channels_first(&self, kernel: &[f32]) -> Vec<f32> {
        let taps = self.kh * self.kw;
        let mut turned = vec![0f32; kernel.len()];
        let size = (taps * self.input).max(1);
        for (turned, kernel) in turned.chunks_exact_mut(size).zip(kernel.chunks_exact(size)) {
            for (i, value) in turned.iter_mut().enumerate() {
                *value = kernel[i % taps * self.input + i / taps];
            }
        }
        turned
    }

    /// Adds the patches of the output's row `row` to the pixels they were read from.
    fn lay_back(&self, patches: &[f32], row: usize, dx: &mut [f32]) {
        let line = self.kw * self.input;
        for (i, cells) in patches.chunks_exact(line.max(1)).enumerate() {
            let Some((columns, from)) = self.line(i, row) else { continue };
            let cells = &cells[columns.start * self.input..columns.end * self.input];
            dx[from..from + cells.len()].iter_mut().zip(cells).for_each(|(dx, cell)| *dx += cell);
        }
    }

    /// Of line `i` of the patches of the output's row `row`: the kernel's columns that lie in the picture, and where in the
    /// picture's values the first of them does; `None` where none does.
    #[inline(always)]
    fn line(&self, i: usize, row: usize) -> Option<(Range<usize>, usize)> {
        let (place, ky) = (i / self.kh, i % self.kh);
        let y = (row * self.stride + ky).wrapping_sub(self.padding);
        let start = place * self.stride;
        let left = self.padding.saturating_sub(start).min(self.kw);
        let right = (self.width + self.padding).saturating_sub(start).min(self.kw);
        let from = (y.wrapping_mul(self.width) + start + left).wrapping_sub(self.padding).wrapping_mul(self.input);
        (y < self.height && left < right).then_some((left..right, from))
    }
}

/// `rows: [.., columns]` as `[columns, ..]`.
pub(super) fn transpose(rows: &[f32], columns: usize, turned: &mut Vec<f32>) {
    let count = rows.len() / columns.max(1);
    turned.clear();
    turned.resize(rows.len(), 0.0);
    // Sixteen rows at a time: what is written then lies in as few lines as what is read.
    for (block, rows) in rows.chunks((16 * columns).max(1)).enumerate() {
        for (column, turned) in turned.chunks_exact_mut(count.max(1)).enumerate() {
            for (row, value) in rows.iter().skip(column).step_by(columns).enumerate() {
                turned[block * 16 + row] = *value;
            }
        }
    }
}
