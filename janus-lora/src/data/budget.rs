//! What reading a few rows takes: the pages that they lie in, unpacked, of all columns together.
//!
//! A page says how many values it holds, not which rows they are of. In a column without lists each value is a row's; in one
//! with lists a row may lie in any number of pages, and only their levels tell ([`super::lengths::levels`]).

/// A value in a list takes so much beside its own bytes: a view of 16, two levels of 2, a place in a list, and as much again
/// while the buffers of these grow.
pub(super) const LISTED_VALUE_BYTES: u64 = 48;

/// Consecutive pages of a column are taken for one up to this size, so that as many of them as there may be stay few.
const TOGETHER_BYTES: u64 = 64 << 10;

/// What a page takes of the memory that is allowed.
///
/// What lies in the file itself counts a quarter: pictures do not shrink, and hundreds of them in a page of each of several
/// columns are nothing unusual, while a file of some kilobytes is never to become gigabytes. `is_there`: whether the file has
/// the length that it says, and no holes.
pub(super) fn weight(packed_bytes: u64, bytes: u64, is_there: bool) -> u64 {
    let own = if is_there { packed_bytes.min(bytes) } else { 0 };
    bytes - own / 4 * 3
}

/// Rows `first` to `last` lie, in part, in pages of so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first: u64,
    last: u64,
    bytes: u64,
}

/// The pages of a column chunk by rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spans {
    spans: Vec<Span>,
    /// The dictionary, which every row may need.
    dictionary_bytes: u64,
    /// What each row takes beside its pages.
    row_bytes: u64,
}

impl Spans {
    /// Pages of a column whose rows take `row_bytes` each beside them.
    pub(super) fn new(dictionary_bytes: u64, row_bytes: u64) -> Self {
        Self { spans: Vec::new(), dictionary_bytes, row_bytes }
    }

    /// The next page, which holds rows `first` to `last` or parts of them.
    pub(super) fn push(&mut self, first: u64, last: u64, bytes: u64) {
        if let Some(span) = self.spans.last_mut()
            && span.bytes.saturating_add(bytes) <= TOGETHER_BYTES
        {
            (span.last, span.bytes) = (last.max(span.last), span.bytes + bytes);
            return;
        }
        self.spans.push(Span { first, last, bytes });
    }

    /// The most that any `rows` consecutive rows take.
    pub(super) fn most(&self, rows: u64) -> u64 {
        let (mut most, mut sum, mut end, mut start) = (0, 0_u64, 0, 0);
        for (number, span) in self.spans.iter().enumerate() {
            // Rows that begin with the last one of this page reach furthest.
            let behind = span.last.saturating_add(rows);
            while let Some(next) = self.spans.get(end).filter(|next| next.first < behind) {
                sum = sum.saturating_add(next.bytes);
                end += 1;
            }
            while start < number && self.spans[start].last < span.last {
                sum = sum.saturating_sub(self.spans[start].bytes);
                start += 1;
            }
            most = most.max(sum);
        }
        most.saturating_add(self.dictionary_bytes).saturating_add(self.row_bytes.saturating_mul(rows))
    }

    /// Bytes of the dictionary: each row may name all of it.
    pub(super) fn dictionary_bytes(&self) -> u64 {
        self.dictionary_bytes
    }
}

/// How many rows may be read together where `wanted` would be best: with their pages half of what is allowed, for values are
/// copied out of them, or else one. Fails with what one row takes where even that is too much.
pub(super) fn rows(columns: &[Spans], wanted: u64, limit_bytes: u64) -> Result<u64, u64> {
    let sum = |of: &dyn Fn(&Spans) -> u64| columns.iter().map(of).fold(0, u64::saturating_add);
    let one = sum(&|column| column.most(1));
    if one > limit_bytes {
        return Err(one);
    }
    let mut rows = wanted.max(1);
    while rows > 1
        && (sum(&|column| column.most(rows)) > limit_bytes / 2
            || sum(&|column| column.dictionary_bytes().saturating_mul(rows)) > limit_bytes)
    {
        rows /= 2;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 1 << 20;

    /// Pages of so many rows each, of a megabyte.
    fn flat(rows: &[u64]) -> Spans {
        let (mut spans, mut first) = (Spans::new(0, 0), 0);
        for rows in rows {
            spans.push(first, first + rows - 1, PAGE);
            first += rows;
        }
        spans
    }

    #[test]
    fn rows_take_every_page_that_they_reach_into() {
        let spans = flat(&[10, 10, 10, 10]);
        for (rows, pages) in [(1, 1), (2, 2), (11, 2), (12, 3), (21, 3), (22, 4), (100, 4), (u64::MAX, 4)] {
            assert_eq!(spans.most(rows), pages * PAGE, "{rows}");
        }
        // Small rows, then large ones.
        assert_eq!(flat(&[1000, 1, 1, 1, 1, 1000]).most(4), 4 * PAGE);
        // Row 3 lies in five pages, the first and the last of which hold others, too.
        let mut listed = Spans::new(7, 5);
        for (first, last) in [(0, 3), (3, 3), (3, 3), (3, 3), (3, 9), (10, 11)] {
            listed.push(first, last, PAGE);
        }
        assert_eq!((listed.most(1), listed.most(7), listed.most(8)), (5 * PAGE + 12, 5 * PAGE + 42, 6 * PAGE + 47));
    }

    #[test]
    fn small_pages_are_taken_together() {
        let mut spans = Spans::new(0, 0);
        (0..1000).for_each(|row| spans.push(row, row, 1 << 10));
        assert_eq!((spans.spans.len(), spans.most(1)), (1000_usize.div_ceil(64), 64 << 10));
    }

    #[test]
    fn as_many_rows_are_read_together_as_fit() {
        let large = [flat(&[1; 300]), flat(&[1; 300])];
        assert_eq!(rows(&large, 128, 512 * PAGE), Ok(128), "128 pages of each are the half");
        assert_eq!(rows(&large, 128, 511 * PAGE), Ok(64));
        assert_eq!(rows(&large, 16, 512 * PAGE), Ok(16));
        assert_eq!(rows(&large, 16, 2 * PAGE), Ok(1));
        assert_eq!(rows(&large, 16, 2 * PAGE - 1), Err(2 * PAGE));
        let mut named = flat(&[1000]);
        named.dictionary_bytes = 10 * PAGE;
        assert_eq!(rows(&[named], 128, 512 * PAGE), Ok(32), "each row may name all of a dictionary");
    }

    #[test]
    fn what_lies_in_the_file_counts_a_quarter() {
        assert_eq!(weight(100 << 20, 100 << 20, true), 25 << 20);
        assert_eq!(weight(0, 100 << 20, true), 100 << 20);
        assert_eq!(weight(200 << 20, 100 << 20, false), 100 << 20);
    }
}
