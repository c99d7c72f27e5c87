//! The matrix of a product in the type that it is held in, which need not be that of the values it meets.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;

use super::element::Element;
use super::rows::Rows;

/// The rows of a matrix that values of type `E` meet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weights<'a, E> {
    /// Of the values' own type.
    Own(Rows<'a, E>),
    /// bf16 under f32 values: widened where they are read, so that the product is that of the same rows in f32, to the bit.
    Half(Rows<'a, bf16>),
}

impl<'a, E> From<Rows<'a, E>> for Weights<'a, E> {
    fn from(rows: Rows<'a, E>) -> Self {
        Self::Own(rows)
    }
}

/// The same expression of whichever rows there are.
macro_rules! of_rows {
    ($weights:expr, |$rows:ident| $body:expr) => {
        match $weights {
            $crate::kernel::Weights::Own($rows) => $body,
            $crate::kernel::Weights::Half($rows) => $body,
        }
    };
}

pub(super) use of_rows;

impl<'a, E: Element> Weights<'a, E> {
    /// bf16 rows under f32 values.
    pub(crate) fn half(rows: Rows<'a, bf16>) -> Self {
        assert!(!E::PAIRED, "bf16 rows are bf16 values' own");
        Self::Half(rows)
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        of_rows!(self, |rows| rows.count())
    }

    /// Values of a row.
    pub(crate) fn width(&self) -> usize {
        of_rows!(self, |rows| rows.width())
    }

    /// Some rows and some columns of it.
    pub(crate) fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        match self {
            Self::Own(own) => Self::Own(own.part(rows, columns)),
            Self::Half(own) => Self::Half(own.part(rows, columns)),
        }
    }

    /// A row in f32.
    pub(crate) fn wide_row(&self, row: usize) -> Cow<'a, [f32]> {
        match self {
            Self::Own(own) => wide(own.row(row)),
            Self::Half(own) => wide(own.row(row)),
        }
    }
}

fn wide<E: Element>(values: &[E]) -> Cow<'_, [f32]> {
    match E::as_wide(values) {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(values.iter().map(|value| value.widen()).collect()),
    }
}
