//! Where a block puts the keys and values of new tokens, and what attention then reads.

use candle_core::Result;

use super::forward::Keep;
use crate::kernel::Matrix;
use crate::kernel::attention::{KeyValues, Segment};
use crate::model::decoder::HeadMajor;
use crate::ops::values::Stored;

/// Puts keys and values of a batch into its cache and reads all of them back.
pub(super) struct Sink<'a, E> {
    pub(super) store: &'a mut HeadMajor<E>,
    /// Tokens of each row that are new.
    pub(super) sequence: usize,
    /// Who sees whom, keys being rows of `batch · tokens so far`.
    pub(super) spans: Vec<Segment>,
}

impl<E: Stored> Keep<E> for Sink<'_, E> {
    fn keep(&mut self, keys: &Matrix<E>, values: &Matrix<E>) -> Result<()> {
        self.store.append(keys.view(), values.view(), self.sequence)
    }

    fn all(&self) -> Option<(Vec<KeyValues<'_, E>>, Vec<Segment>)> {
        let (keys, values, capacity) = self.store.matrices();
        let total = self.store.len().max(1);
        // Rows lie as far apart as there is room for, not as there are tokens.
        let moved = |span: &Segment| {
            let shift = span.keys.start / total * (capacity - total);
            Segment { keys: span.keys.start + shift..span.keys.end + shift, ..span.clone() }
        };
        let segments = self.spans.iter().map(moved).collect();
        Some((vec![KeyValues::head_major(keys, values, capacity)], segments))
    }
}

/// Puts the keys and values of one new token a row into the row's own cache.
pub(super) struct Sinks<'a, E>(pub(super) Vec<&'a mut HeadMajor<E>>);

impl<E: Stored> Keep<E> for Sinks<'_, E> {
    fn keep(&mut self, keys: &Matrix<E>, values: &Matrix<E>) -> Result<()> {
        let (keys, values) = (keys.view(), values.view());
        for (row, store) in self.0.iter_mut().enumerate() {
            let key = keys.part(row..row + 1, 0..keys.width());
            store.append(key, values.part(row..row + 1, 0..values.width()), 1)?;
        }
        Ok(())
    }

    fn all(&self) -> Option<(Vec<KeyValues<'_, E>>, Vec<Segment>)> {
        let of_rows = self.0.iter().enumerate().map(|(row, store)| {
            let (keys, values, capacity) = store.matrices();
            let segment = Segment { queries: row..row + 1, keys: 0..store.len() };
            (KeyValues::head_major(keys, values, capacity), segment)
        });
        Some(of_rows.unzip())
    }
}
