//! The order of an epoch's rows: a matter of the seed, the epoch and the index alone.
//!
//! Blocks are permuted over the whole table, of a table on a hub over a few files at a time, themselves in a permuted order; consecutive blocks of that order make a window as large as memory allows
//! (at least one block), and rows are permuted within their window. A table that fits one window is shuffled evenly.

use std::ops::Range;

use super::index::{Index, Table};
use super::random::Random;
use super::row::RowId;

/// Most rows of a window of more than one block.
pub const WINDOW_ROWS: usize = 4096;

/// Most bytes of values of a window of more than one block.
pub const WINDOW_BYTES: u64 = 128 << 20;

/// Streams of random numbers that an epoch uses.
const BLOCK_STREAM: u64 = 0;
const ROW_STREAM: u64 = 1;
const FILE_STREAM: u64 = 2;

/// The order of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOrder {
    seed: u64,
    epoch: u64,
    shuffle: bool,
    /// Numbers of the index's blocks, in the order of reading.
    blocks: Vec<usize>,
    windows: Vec<Window>,
}

/// Rows that are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    /// Places in the order of blocks.
    pub(crate) blocks: Range<usize>,
    /// Rows of the epoch that it holds.
    pub(crate) rows: Range<usize>,
}

/// Numbers of the index's blocks in an epoch's order, and the places in it where a window has to begin.
fn block_order(index: &Index, epoch: u64, seed: u64, shuffle: bool) -> (Vec<usize>, Vec<usize>) {
    let mut blocks: Vec<usize> = (0..index.blocks().len()).collect();
    if !shuffle {
        return (blocks, Vec::new());
    }
    if index.files_together() == 0 {
        Random::new(seed, &[epoch, BLOCK_STREAM]).shuffle(&mut blocks);
        return (blocks, Vec::new());
    }
    let mut files: Vec<Vec<usize>> = Vec::new();
    let mut last = None;
    for block in blocks {
        let file = index.blocks()[block].file;
        if last.replace(file) != Some(file) {
            files.push(Vec::new());
        }
        files.last_mut().into_iter().for_each(|file| file.push(block));
    }
    Random::new(seed, &[epoch, FILE_STREAM]).shuffle(&mut files);
    let (mut order, mut begins) = (Vec::new(), Vec::new());
    for (number, together) in files.chunks(index.files_together()).enumerate() {
        let mut blocks = together.concat();
        Random::new(seed, &[epoch, BLOCK_STREAM, number as u64]).shuffle(&mut blocks);
        begins.push(order.len());
        order.extend(blocks);
    }
    (order, begins)
}

impl EpochOrder {
    /// The order of epoch `epoch` (from 0); without `shuffle`, the table's own order in every epoch.
    pub fn new(index: &Index, epoch: u64, seed: u64, shuffle: bool) -> Self {
        let (blocks, begins) = block_order(index, epoch, seed, shuffle);
        let mut windows: Vec<Window> = Vec::new();
        let mut bytes = 0u64;
        let mut row = 0;
        for (place, &number) in blocks.iter().enumerate() {
            let block = &index.blocks()[number];
            let joined = windows.last_mut().filter(|window| {
                // Rows of a window in the table's own order need not wait for one another.
                shuffle
                    && begins.binary_search(&place).is_err()
                    && window.rows.len() + block.accepted <= WINDOW_ROWS
                    && bytes.saturating_add(block.bytes) <= WINDOW_BYTES
            });
            match joined {
                Some(window) => {
                    bytes += block.bytes;
                    window.blocks.end = place + 1;
                    window.rows.end += block.accepted;
                }
                None => {
                    bytes = block.bytes;
                    windows.push(Window { blocks: place..place + 1, rows: row..row + block.accepted });
                }
            }
            row += block.accepted;
        }
        Self { seed, epoch, shuffle, blocks, windows }
    }

    /// Rows of the epoch.
    pub fn rows(&self) -> usize {
        self.windows.last().map_or(0, |window| window.rows.end)
    }

    /// The epoch's rows by name, in order.
    pub fn row_ids<'a>(&'a self, table: &'a Table, index: &'a Index) -> impl Iterator<Item = RowId> + 'a {
        self.windows.iter().enumerate().flat_map(move |(number, window)| {
            let mut names: Vec<Option<RowId>> = self.blocks[window.blocks.clone()]
                .iter()
                .map(|&block| &index.blocks()[block])
                .flat_map(|block| (0..block.rows).filter(|&row| block.accepts(row)).map(move |row| (block, row)))
                .map(|(block, row)| Some(table.row_id(block, row)))
                .collect();
            self.permutation(number).into_iter().filter_map(move |place| names[place].take())
        })
    }

    pub(crate) fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Numbers of a window's blocks, in the order of reading.
    pub(crate) fn blocks(&self, window: &Window) -> &[usize] {
        &self.blocks[window.blocks.clone()]
    }

    /// Which of the window's rows, counted in the order of reading, comes at each place.
    pub(crate) fn permutation(&self, window: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.windows[window].rows.len()).collect();
        if self.shuffle {
            Random::new(self.seed, &[self.epoch, ROW_STREAM, window as u64]).shuffle(&mut places);
        }
        places
    }
}
