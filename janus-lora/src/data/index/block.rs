//! The unit of reading and shuffling.

/// Consecutive rows of one row group, few enough to be held in memory at once: the unit of reading and shuffling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Which of the table's files.
    pub(crate) file: usize,
    /// Which row group of it.
    pub(crate) row_group: usize,
    /// First row, in the row group.
    pub(crate) first_row: usize,
    /// Rows, good and bad.
    pub(crate) rows: usize,
    /// Good rows.
    pub(crate) accepted: usize,
    /// Size of the good rows' values.
    pub(crate) bytes: u64,
    /// One bit a row, set for good ones.
    bits: Vec<u64>,
}

impl Block {
    pub(super) fn new(file: usize, row_group: usize, first_row: usize) -> Self {
        Self { file, row_group, first_row, rows: 0, accepted: 0, bytes: 0, bits: Vec::new() }
    }

    pub(super) fn push(&mut self, bytes: Option<u64>) {
        if self.rows.is_multiple_of(64) {
            self.bits.push(0);
        }
        if let (Some(bytes), Some(word)) = (bytes, self.bits.last_mut()) {
            *word |= 1 << (self.rows % 64);
            self.accepted += 1;
            self.bytes += bytes;
        }
        self.rows += 1;
    }

    /// Whether a row, counted in the block, is good.
    pub(crate) fn accepts(&self, row: usize) -> bool {
        self.bits.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }
}
