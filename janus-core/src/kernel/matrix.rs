//! A matrix of its own memory, whose rows keep out of each other's cache sets.
//!
//! Memory goes back to a store when a matrix is dropped and serves the next one: a step asks for the same sizes again and
//! again, and fresh pages cost as much as some of the loops that fill them.

use std::sync::{Mutex, PoisonError};

use half::bf16;
use rayon::prelude::*;

use super::element::Element;
use super::rows::{Rows, SPREAD};

/// Bytes the store keeps at most, about the activations of one micro-batch.
const STORE_BYTES: usize = 1 << 30;

/// Buffers waiting for their next use.
#[derive(Debug)]
pub(crate) struct Store<E> {
    buffers: Mutex<Vec<Vec<E>>>,
}

impl<E: Element> Store<E> {
    pub(crate) const fn new() -> Self {
        Self { buffers: Mutex::new(Vec::new()) }
    }

    /// A buffer of at least `count` values, whatever they are; the smallest that is not much too large.
    fn take(&self, count: usize) -> Vec<E> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Vec<E>| buffer.len() >= count && buffer.len() / 2 <= count;
        let best = (0..buffers.len()).filter(|i| fits(&buffers[*i])).min_by_key(|i| buffers[*i].len());
        match best {
            Some(best) => buffers.swap_remove(best),
            None => {
                // What this one outgrows makes room for it: batches of ever other lengths would leave a set of buffers each.
                let outgrown = |buffer: &Vec<E>| buffer.len() < count && buffer.len() > count / 2;
                let last = (0..buffers.len()).filter(|i| outgrown(&buffers[*i])).max_by_key(|i| buffers[*i].len());
                let outgrown = last.map(|last| buffers.swap_remove(last));
                drop(buffers);
                drop(outgrown);
                E::zeros(count)
            }
        }
    }

    fn clear(&self) {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn give_back(&self, buffer: Vec<E>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.push(buffer);
        let mut held: usize = buffers.iter().map(|buffer| buffer.len() * size_of::<E>()).sum();
        while held > STORE_BYTES {
            held -= buffers.remove(0).len() * size_of::<E>();
        }
    }
}

/// Frees the buffers that wait for their next use: before a phase that asks for other sizes, on top of which they would lie.
pub fn free_spares() {
    f32::spares().clear();
    bf16::spares().clear();
}

/// `[rows, width]`, row by row with a small gap where rows would otherwise lie whole pages apart.
#[derive(Debug)]
pub(crate) struct Matrix<E: Element> {
    values: Vec<E>,
    rows: usize,
    width: usize,
    stride: usize,
}

impl<E: Element> Drop for Matrix<E> {
    fn drop(&mut self) {
        E::spares().give_back(std::mem::take(&mut self.values));
    }
}

impl<E: Element> Matrix<E> {
    /// A matrix of any values, to be overwritten.
    pub(crate) fn new(rows: usize, width: usize) -> Self {
        let crowded = (width * size_of::<E>()).is_multiple_of(2048);
        let stride = if crowded { width + SPREAD } else { width };
        Self { values: E::spares().take(rows * stride), rows, width, stride }
    }

    /// All zeros.
    pub(crate) fn zeros(rows: usize, width: usize) -> Self {
        let mut zeros = Self::new(rows, width);
        zeros.values_mut().par_chunks_mut(1 << 16).for_each(|values| values.fill(E::default()));
        zeros
    }

    /// The values without gaps.
    pub(crate) fn to_dense(&self) -> Vec<E> {
        let mut values = E::zeros(self.rows * self.width);
        let rows = values.par_chunks_mut(self.width.max(1)).with_min_len(16).enumerate();
        rows.for_each(|(i, row)| row.copy_from_slice(self.row(i)));
        values
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
        &mut self.values[..self.rows * self.stride]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_growing_sizes_replace_each_other() {
        let store = Store::<f32>::new();
        let held = || store.buffers.lock().unwrap().iter().map(Vec::len).collect::<Vec<_>>();
        for count in [100, 110, 130, 199] {
            store.give_back(store.take(count));
            assert_eq!(held(), [count]);
        }
        store.give_back(store.take(500));
        assert_eq!(held(), [199, 500], "of other sizes");
        let (first, second) = (store.take(90), store.take(150));
        assert_eq!((first.len(), second.len()), (90, 199), "none is much too large");
    }

    #[test]
    fn a_buffer_serves_again_and_zeros_are_zeros() {
        let store = Store::<f32>::new();
        store.give_back(vec![3.0; 100]);
        assert_eq!(store.take(20).len(), 20, "the other is much too large");
        assert_eq!(store.take(60).len(), 100);
        let mut matrix = Matrix::<f32>::new(7, 512);
        matrix.values_mut().fill(5.0);
        drop(matrix);
        let zeros = Matrix::<f32>::zeros(7, 512);
        assert!((0..7).all(|i| zeros.row(i).iter().all(|v| *v == 0.0)));
    }
}
