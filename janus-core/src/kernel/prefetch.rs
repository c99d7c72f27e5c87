//! Lines asked for before they are needed.

use std::arch::x86_64::*;
use std::mem::size_of;
use std::ops::Range;

use super::element::Element;
use super::rows::Rows;

/// Asks for the lines of a block of a matrix to be brought near.
pub(super) fn bring<E: Element>(matrix: Rows<'_, E>, rows: Range<usize>, columns: Range<usize>) {
    for row in rows {
        for column in columns.clone().step_by(64 / size_of::<E>()) {
            let at = matrix.as_ptr().wrapping_add(row * matrix.stride() + column);
            // SAFETY: a prefetch touches nothing, whatever its address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
        }
    }
}

/// To the first-level cache.
pub(super) const INNER: i32 = _MM_HINT_T0;

/// To the second-level cache.
pub(super) const OUTER: i32 = _MM_HINT_T1;

/// Asks for some values from `first` on, as far as there are any.
#[inline(always)]
pub(super) fn bring_run<E: Element, const HINT: i32>(values: &[E], first: usize, count: usize) {
    for at in (first..(first + count).min(values.len())).step_by(64 / size_of::<E>()) {
        // SAFETY: a prefetch touches nothing, whatever its address.
        unsafe { _mm_prefetch::<HINT>(values.as_ptr().wrapping_add(at).cast()) };
    }
}

/// Asks for sums that are about to be added to: a block's are met once a chunk, and pushed out in between.
pub(super) fn bring_sums(sums: &[f32], first: usize, count: usize) {
    for at in (first..first + count).step_by(16) {
        // SAFETY: a prefetch touches nothing, whatever its address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(sums.as_ptr().wrapping_add(at).cast()) };
    }
}
