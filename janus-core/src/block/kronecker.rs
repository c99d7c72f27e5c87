//! Kronecker products of a block's sites: `y[o₁·O₂ + o₂] += scale · Σ left[o₁, i₁] · right[o₂, i₂] · x[i₁·I₂ + i₂]`.
//!
//! The right factor meets pieces of the input, the left one then goes across the pieces: neither the product itself nor a
//! matrix of its size is made.

use rayon::prelude::*;

use crate::kernel::low_rank::{down, outer};
use crate::kernel::{Element, Finish, Rows, SumOrder, Term, product};

/// The factors of one product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product<'a> {
    /// `[O₁, I₁]`.
    pub(super) left: Rows<'a, f32>,
    /// `[O₂, I₂]`.
    pub(super) right: Rows<'a, f32>,
    pub(super) scale: f32,
}

/// The input's rows one behind the other, `[m · I₁, I₂]`.
struct Pieces<E> {
    values: Vec<E>,
    count: usize,
    width: usize,
}

impl<E: Element> Pieces<E> {
    fn of(x: Rows<'_, E>, width: usize) -> Self {
        let values: Vec<E> = (0..x.count()).flat_map(|row| x.row(row).iter().copied()).collect();
        Self { count: values.len() / width.max(1), values, width }
    }

    fn rows(&self) -> Rows<'_, E> {
        Rows::dense(&self.values, self.count, self.width)
    }
}

impl Product<'_> {
    /// The right factor on the pieces, `[m · I₁, O₂]`.
    fn through_right<E: Element>(&self, pieces: &Pieces<E>, order: SumOrder) -> Vec<f32> {
        down(&[(pieces.rows(), vec![self.right])], order).concat()
    }

    /// Adds what the product gives of `x: [m, I₁ · I₂]` to `y: [m, O₁ · O₂]`.
    pub(super) fn add_to<E: Element>(&self, x: Rows<'_, E>, order: SumOrder, y: &mut [f32]) {
        if y.is_empty() || x.width() == 0 {
            return;
        }
        let between = self.through_right(&Pieces::of(x, self.right.width()), order);
        let (o1, i1, o2) = (self.left.count(), self.left.width(), self.right.count());
        y.par_chunks_mut(o1 * o2).zip(between.par_chunks(i1 * o2)).for_each(|(y, between)| {
            for (o, y) in y.chunks_exact_mut(o2).enumerate() {
                for (factor, between) in self.left.row(o).iter().zip(between.chunks_exact(o2)) {
                    let factor = factor * self.scale;
                    y.iter_mut().zip(between).for_each(|(y, b)| *y += factor * b);
                }
            }
        });
    }

    /// Writes the gradients of both factors and adds that of the input, `[m, I₁ · I₂]`, to `dx` where it is wanted.
    pub(super) fn backward<E: Element>(
        &self,
        x: Rows<'_, E>,
        dy: Rows<'_, E>,
        d_left: &mut [f32],
        d_right: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let (o1, i1, o2, i2) = (self.left.count(), self.left.width(), self.right.count(), self.right.width());
        if x.count() == 0 {
            return;
        }
        let pieces = Pieces::of(x, i2);
        let between = self.through_right(&pieces, SumOrder::ByCount);
        self.left_gradient(dy, &between, d_left);
        // The gradient of what the right factor gives: the left factor the other way.
        let mut d_between = vec![0f32; x.count() * i1 * o2];
        d_between.par_chunks_mut(i1 * o2).enumerate().for_each(|(row, d_between)| {
            let dy = dy.row(row);
            for o in 0..o1 {
                let dy = &dy[o * o2..(o + 1) * o2];
                for (factor, d_between) in self.left.row(o).iter().zip(d_between.chunks_exact_mut(o2)) {
                    let factor = factor * self.scale;
                    d_between.iter_mut().zip(dy).for_each(|(d, dy)| *d += factor * dy.widen());
                }
            }
        });
        let d_rows = Rows::dense(&d_between, x.count() * i1, o2);
        d_right.copy_from_slice(&outer(&[(vec![d_rows], pieces.rows())]).concat());
        if let Some(dx) = dx {
            let finish = Finish { accumulate: true, ..Finish::default() };
            product(&[Term::plain(d_rows, self.right)], finish, dx, i2);
        }
    }

    /// `scale · Σ dy[o₁, o₂] · between[i₁, o₂]` over rows and o₂. Outputs of the left factor are spread over the threads.
    fn left_gradient<E: Element>(&self, dy: Rows<'_, E>, between: &[f32], d_left: &mut [f32]) {
        let (i1, o2) = (self.left.width(), self.right.count());
        d_left.par_chunks_mut(i1).enumerate().for_each(|(o, d_left)| {
            for (row, between) in between.chunks_exact(i1 * o2).enumerate() {
                let dy = &dy.row(row)[o * o2..(o + 1) * o2];
                for (d, between) in d_left.iter_mut().zip(between.chunks_exact(o2)) {
                    *d += dy.iter().zip(between).map(|(dy, b)| dy.widen() * b).sum::<f32>();
                }
            }
            d_left.iter_mut().for_each(|d| *d *= self.scale);
        });
    }
}
