//! A matrix of its own memory, whose rows keep out of each other's cache sets.

use super::element::Element;
use super::product::{Rows, SPREAD};

/// `[rows, width]`, row by row with a small gap where rows would otherwise lie whole pages apart.
#[derive(Debug, Clone)]
pub(crate) struct Matrix<E> {
    values: Vec<E>,
    rows: usize,
    width: usize,
    stride: usize,
}

impl<E: Element> Matrix<E> {
    /// All zeros.
    pub(crate) fn zeros(rows: usize, width: usize) -> Self {
        let crowded = width * size_of::<E>() % 2048 == 0;
        let stride = if crowded { width + SPREAD } else { width };
        Self { values: vec![E::default(); rows * stride], rows, width, stride }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Values from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Row `i`.
    pub(crate) fn row(&self, i: usize) -> &[E] {
        &self.values[i * self.stride..][..self.width]
    }

    /// For reading.
    pub(crate) fn view(&self) -> Rows<'_, E> {
        Rows::new(&self.values, self.rows, self.width, self.stride)
    }

    /// All values and gaps, rows [`Matrix::stride`] apart.
    pub(crate) fn values_mut(&mut self) -> &mut [E] {
        &mut self.values
    }
}
