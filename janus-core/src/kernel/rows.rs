//! Matrices as rows inside a slice.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::element::Element;
use super::level::Level;
use super::matrix::Matrix;
use super::vector::by_level;

/// Values between rows that keep them out of each other's cache sets: a line or two.
pub(crate) const SPREAD: usize = 32;

/// A matrix by rows inside a slice: `count` rows of `width` values, `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a, E> {
    pub(super) values: &'a [E],
    pub(super) count: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl<'a, E: Element> Rows<'a, E> {
    /// A matrix whose rows are `stride` values apart.
    pub(crate) fn new(values: &'a [E], count: usize, width: usize, stride: usize) -> Self {
        assert!(extent(count, width, stride) <= values.len(), "matrix reaches beyond its values");
        Self { values, count, width, stride }
    }

    /// A matrix without gaps.
    pub(crate) fn dense(values: &'a [E], count: usize, width: usize) -> Self {
        Self::new(values, count, width, width)
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Values of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Values from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Whether so many rows so far apart meet in the same few cache sets that a copy pays over `columns` results.
    pub(super) fn crowded(&self, columns: usize) -> bool {
        self.count > 1 && columns >= 256 && (self.stride * size_of::<E>()).is_multiple_of(2048)
    }

    /// Some rows and some columns of it.
    pub(crate) fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.end <= self.count && columns.end <= self.width, "part beyond its matrix");
        let start = if rows.is_empty() || columns.is_empty() { 0 } else { rows.start * self.stride + columns.start };
        Self { values: &self.values[start..], count: rows.len(), width: columns.len(), stride: self.stride }
    }

    /// The same rows in f32.
    pub(super) fn widened(&self, level: Level, parallel: bool) -> Matrix<f32> {
        self.copied(parallel, |values, wide| widen(level, values, wide))
    }

    /// The same rows further apart.
    pub(crate) fn spread(&self, parallel: bool) -> Matrix<E> {
        self.copied(parallel, |values, copy| copy.copy_from_slice(values))
    }

    fn copied<O: Element>(&self, parallel: bool, copy: impl Fn(&[E], &mut [O]) + Sync) -> Matrix<O> {
        let mut copies = Matrix::new(self.count, self.width);
        let stride = copies.stride();
        if stride == 0 {
            return copies;
        }
        let copy = |(i, to): (usize, &mut [O])| copy(self.row(i), &mut to[..self.width]);
        if parallel {
            copies.values_mut().par_chunks_mut(stride).with_min_len(16).enumerate().for_each(copy);
        } else {
            copies.values_mut().chunks_mut(stride).enumerate().for_each(copy);
        }
        copies
    }

    /// The rows as columns, without gaps.
    pub(crate) fn turned(&self) -> Vec<E> {
        // A square of values at a time, so that neither side's lines are met once a value.
        const SIDE: usize = 16;
        let (count, width) = (self.count, self.width);
        let mut turned = E::zeros(count * width);
        for top in (0..count).step_by(SIDE) {
            for left in (0..width).step_by(SIDE) {
                for i in top..(top + SIDE).min(count) {
                    let row = &self.row(i)[left..(left + SIDE).min(width)];
                    for (j, value) in row.iter().enumerate() {
                        turned[(left + j) * count + i] = *value;
                    }
                }
            }
        }
        turned
    }

    /// Where the values begin.
    pub(super) fn as_ptr(&self) -> *const E {
        self.values.as_ptr()
    }

    /// Row `i`.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &'a [E] {
        &self.values[i * self.stride..][..self.width]
    }
}

/// Rows that several threads write, each its own places.
#[derive(Debug)]
pub(super) struct SharedRows<'a, E> {
    values: *mut E,
    count: usize,
    width: usize,
    stride: usize,
    /// The values are borrowed for as long as this lives.
    borrow: PhantomData<&'a mut [E]>,
}

// SAFETY: only [`SharedRows::place`] reaches the values, and its callers keep to places of their own.
unsafe impl<E: Send> Sync for SharedRows<'_, E> {}

impl<'a, E> SharedRows<'a, E> {
    /// `count` rows of `width` values, `stride` apart.
    pub(super) fn new(values: &'a mut [E], count: usize, width: usize, stride: usize) -> Self {
        assert!(width <= stride || count <= 1, "rows overlap");
        assert!(extent(count, width, stride) <= values.len(), "rows reach beyond their values");
        Self { values: values.as_mut_ptr(), count, width, stride, borrow: PhantomData }
    }

    /// Some columns of a row.
    ///
    /// # Safety
    /// No one else holds any of these values.
    #[allow(clippy::mut_from_ref, reason = "threads share the matrix and write places of their own")]
    #[inline(always)]
    pub(super) unsafe fn place(&self, row: usize, columns: Range<usize>) -> &mut [E] {
        assert!(row < self.count && columns.start <= columns.end && columns.end <= self.width, "beyond the rows");
        // SAFETY: `new` saw that every column of every row lies inside the values; the rest is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.stride + columns.start), columns.len()) }
    }
}

fn widen<E: Element>(level: Level, values: &[E], wide: &mut [f32]) {
    by_level!(level, |_fused| fn<E>(values: &[E], wide: &mut [f32]) {
        values.iter().zip(wide).for_each(|(value, wide)| *wide = value.widen());
    })
}

/// Values from the first of a strided matrix to its last.
pub(super) fn extent(count: usize, width: usize, stride: usize) -> usize {
    if count == 0 || width == 0 { 0 } else { (count - 1) * stride + width }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_write_at_once_lies_where_one_would_have_written_it() {
        let (count, width, stride) = (23, 12, 15);
        let value = |row: usize, column: usize| (row * 100 + column) as f32;
        let mut slow = vec![-1f32; extent(count, width, stride)];
        for row in 0..count {
            (0..width).for_each(|column| slow[row * stride + column] = value(row, column));
        }
        let mut shared = vec![-1f32; slow.len()];
        let rows = SharedRows::new(&mut shared, count, width, stride);
        (0..count * 3).into_par_iter().with_max_len(1).for_each(|part| {
            let (row, columns) = (part / 3, part % 3 * 4..(part % 3 + 1) * 4);
            // SAFETY: every part is met once, and no two overlap.
            let place = unsafe { rows.place(row, columns.clone()) };
            place.iter_mut().zip(columns).for_each(|(place, column)| *place = value(row, column));
        });
        assert_eq!(shared, slow);
    }

    #[test]
    fn no_place_reaches_beyond_its_rows() {
        let mut values = vec![0f32; 10];
        for (count, width, stride) in [(3, 4, 4), (2, 5, 4)] {
            let refused = std::panic::catch_unwind(|| {
                SharedRows::new(&mut [0f32; 10], count, width, stride);
            });
            assert!(refused.is_err(), "{count} rows of {width}, {stride} apart");
        }
        let rows = std::panic::AssertUnwindSafe(SharedRows::new(&mut values, 2, 3, 4));
        for (row, columns) in [(2, 0..1), (0, 0..4), (1, Range { start: 2, end: 1 })] {
            // SAFETY: nothing else holds the values, and the place is refused.
            let place = || unsafe { rows.place(row, columns.clone()) }.len();
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(place)).is_err(), "{row} {columns:?}");
        }
    }

    #[test]
    fn rows_turn_into_columns() {
        let values: Vec<f32> = (0..19 * 40).map(|i| i as f32).collect();
        let rows = Rows::new(&values, 19, 37, 40);
        let turned = rows.turned();
        assert_eq!(turned.len(), 19 * 37);
        assert!((0..19).all(|i| (0..37).all(|j| turned[j * 19 + i] == rows.row(i)[j])));
    }
}
