//! Rows of epoch after epoch, without end, from any position.

use std::sync::Arc;

use super::error::DataError;
use super::index::{Index, Table};
use super::row::{Row, RowId};
use super::shuffle::EpochOrder;

/// A place in the endless stream of rows. What a checkpoint keeps to go on with the same rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Row of the epoch, from 0.
    pub index: usize,
}

/// The good rows of a table, epoch after epoch; never ends by itself.
///
/// Each window of the epoch's order is read once and held until its rows are given out.
#[derive(Debug)]
pub struct RowStream {
    table: Arc<Table>,
    index: Arc<Index>,
    seed: u64,
    shuffle: bool,
    order: EpochOrder,
    position: Position,
    window: Option<LoadedWindow>,
}

#[derive(Debug)]
struct LoadedWindow {
    number: usize,
    permutation: Vec<usize>,
    rows: Vec<Option<Row>>,
}

impl RowStream {
    /// A stream that starts with the first row of epoch 0.
    ///
    /// # Errors
    /// The index has no good row.
    pub fn new(table: Arc<Table>, index: Arc<Index>, seed: u64, shuffle: bool) -> Result<Self, DataError> {
        if index.accepted_rows() == 0 {
            return Err(DataError::NoAcceptedRows { rows: index.rows(), first: Vec::new() });
        }
        let order = EpochOrder::new(&index, 0, seed, shuffle);
        Ok(Self { table, index, seed, shuffle, order, position: Position::default(), window: None })
    }

    /// Where the next row stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Rows of an epoch.
    pub fn rows_per_epoch(&self) -> usize {
        self.index.accepted_rows()
    }

    /// Goes on from `position`; the end of an epoch is the start of the next one.
    ///
    /// # Errors
    /// The index lies beyond the epoch's end; the stream then stays where it is.
    pub fn seek(&mut self, position: Position) -> Result<(), DataError> {
        let rows = self.rows_per_epoch();
        if position.index > rows {
            return Err(DataError::NoPosition { index: position.index, rows });
        }
        let position = if position.index == rows {
            Position { epoch: position.epoch.wrapping_add(1), index: 0 }
        } else {
            position
        };
        self.go_to(position);
        // Rows already given out of the window may be asked for again.
        self.window = None;
        Ok(())
    }

    /// The names of `count` rows from `from` on, without reading them.
    pub fn row_ids(&self, from: Position, count: usize) -> Vec<RowId> {
        let mut ids = Vec::with_capacity(count);
        let Position { mut epoch, mut index } = from;
        while ids.len() < count {
            let order = EpochOrder::new(&self.index, epoch, self.seed, self.shuffle);
            ids.extend(order.row_ids(&self.table, &self.index).skip(index).take(count - ids.len()));
            (epoch, index) = (epoch.wrapping_add(1), 0);
        }
        ids
    }

    fn go_to(&mut self, position: Position) {
        if position.epoch != self.position.epoch {
            self.order = EpochOrder::new(&self.index, position.epoch, self.seed, self.shuffle);
            self.window = None;
        }
        self.position = position;
    }

    /// The next row.
    ///
    /// # Errors
    /// A file that was good when it was scanned cannot be read any more; the position then stays.
    pub fn next_row(&mut self) -> Result<Row, DataError> {
        let Position { index, .. } = self.position;
        let windows = self.order.windows();
        let number = windows.partition_point(|window| window.rows.end <= index);
        let offset = index - windows[number].rows.start;
        if self.window.as_ref().is_none_or(|window| window.number != number) {
            // The old window's rows go before the new ones come.
            self.window = None;
            self.window = Some(self.load(number)?);
        }
        let row = self.window.as_mut().and_then(|window| window.rows[window.permutation[offset]].take());
        let row = row.expect("a row is given out once: seeking drops the window");
        self.skip_row();
        Ok(row)
    }

    /// Passes over the next row without reading it.
    pub fn skip_row(&mut self) {
        let Position { epoch, index } = self.position;
        let next = index + 1;
        self.go_to(if next >= self.rows_per_epoch() {
            Position { epoch: epoch.wrapping_add(1), index: 0 }
        } else {
            Position { epoch, index: next }
        });
    }

    /// Another stream of the same rows, which stands at the same place.
    pub fn fork(&self) -> Self {
        Self { table: self.table.clone(), index: self.index.clone(), order: self.order.clone(), window: None, ..*self }
    }

    fn load(&self, number: usize) -> Result<LoadedWindow, DataError> {
        let window = &self.order.windows()[number];
        let mut rows = Vec::with_capacity(window.rows.len());
        for &block in self.order.blocks(window) {
            rows.extend(self.table.read_block(&self.index.blocks()[block])?.into_iter().map(Some));
        }
        Ok(LoadedWindow { number, permutation: self.order.permutation(number), rows })
    }
}

impl Iterator for RowStream {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_row())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::index::{BLOCK_ROWS, Index};
    use crate::data::testing::{accept_all, numbered, requests, scan_all, texts, write_table};
    use std::collections::HashSet;

    /// Three files, row groups of uneven size, every seventh row bad.
    fn table(rows: usize) -> (tempfile::TempDir, Arc<Table>, Arc<Index>) {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (number, row_group_rows) in [(0, 37), (1, 100), (2, 5000)] {
            let names: Vec<Option<String>> =
                (0..rows).map(|i| (i % 7 != 3).then(|| format!("file {number} row {i}"))).collect();
            let column = texts(names.iter().map(Option::as_deref));
            files.push(write_table(
                &folder.path().join(format!("{number}.parquet")),
                vec![("answer", column)],
                row_group_rows,
            ));
        }
        let table = Table::open(&files, &requests(&["answer"])).unwrap();
        let index = scan_all(&table, &accept_all);
        (folder, Arc::new(table), Arc::new(index))
    }

    fn take(stream: &mut RowStream, rows: usize) -> Vec<String> {
        (0..rows).map(|_| stream.next_row().unwrap().text("answer").unwrap().to_string()).collect()
    }

    #[test]
    fn an_epoch_has_every_row_once_in_an_order_of_its_own() {
        let (_folder, table, index) = table(3000);
        let rows = index.accepted_rows();
        assert_eq!(rows, 3 * (3000 - 429));
        let mut stream = RowStream::new(table.clone(), index.clone(), 5, true).unwrap();
        let (first, second) = (take(&mut stream, rows), take(&mut stream, rows));
        assert_eq!(stream.position(), Position { epoch: 2, index: 0 });
        assert_ne!(first, second);
        for epoch in [&first, &second] {
            assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), rows);
        }
        assert!(EpochOrder::new(&index, 0, 5, true).windows().len() > 1, "the table is larger than a window");
        let mut again = RowStream::new(table.clone(), index.clone(), 5, true).unwrap();
        assert_eq!(take(&mut again, rows), first);
        let mut other = RowStream::new(table, index, 6, true).unwrap();
        assert_ne!(take(&mut other, rows), first);
    }

    #[test]
    fn without_shuffling_rows_come_as_they_lie() {
        let (_folder, table, index) = table(1500);
        let rows = index.accepted_rows();
        let mut stream = RowStream::new(table, index, 5, false).unwrap();
        let expected: Vec<String> = (0..3)
            .flat_map(|file| (0..1500).filter(|i| i % 7 != 3).map(move |i| format!("file {file} row {i}")))
            .collect();
        assert_eq!(take(&mut stream, rows), expected);
        assert_eq!(take(&mut stream, rows), expected);
    }

    #[test]
    fn any_position_can_be_returned_to() {
        let (_folder, table, index) = table(2500);
        let rows = index.accepted_rows();
        let mut stream = RowStream::new(table, index, 11, true).unwrap();
        let all = take(&mut stream, 2 * rows);
        for at in [0, 1, 50, rows - 1, rows, rows + 1, 2 * rows - 3, 4000, 10] {
            let position = Position { epoch: (at / rows) as u64, index: at % rows };
            stream.seek(position).unwrap();
            assert_eq!(stream.position(), position);
            assert_eq!(take(&mut stream, 3), all[at..at + 3]);
        }
        stream.seek(Position { epoch: 0, index: rows }).unwrap();
        assert_eq!(stream.position(), Position { epoch: 1, index: 0 });
        assert!(matches!(stream.seek(Position { epoch: 0, index: rows + 1 }), Err(DataError::NoPosition { .. })));
        assert_eq!(stream.position(), Position { epoch: 1, index: 0 });
    }

    #[test]
    fn the_names_of_an_order_are_those_of_its_rows() {
        let (_folder, table, index) = table(800);
        let rows = index.accepted_rows();
        for shuffle in [false, true] {
            let mut stream = RowStream::new(table.clone(), index.clone(), 3, shuffle).unwrap();
            stream.seek(Position { epoch: 4, index: 0 }).unwrap();
            let order = EpochOrder::new(&index, 4, 3, shuffle);
            assert_eq!(order.rows(), rows);
            let names: Vec<_> = order.row_ids(&table, &index).collect();
            let read: Vec<_> = (0..rows).map(|_| stream.next_row().unwrap().id).collect();
            assert_eq!(names, read);
            let from = Position { epoch: 4, index: rows - 2 };
            stream.seek(from).unwrap();
            let read: Vec<_> = (0..5).map(|_| stream.next_row().unwrap().id).collect();
            assert_eq!(stream.row_ids(from, 5), read, "over the end of an epoch");
        }
    }

    #[test]
    fn one_huge_row_group_is_read_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_table(&folder.path().join("t.parquet"), vec![("answer", numbered("a", 9000))], 9000);
        let table = Table::open(&[path], &requests(&["answer"])).unwrap();
        let index = scan_all(&table, &accept_all);
        assert_eq!(index.blocks().len(), 9000usize.div_ceil(BLOCK_ROWS));
        let order = EpochOrder::new(&index, 0, 1, true);
        assert!(order.windows().iter().all(|window| window.rows.len() <= crate::data::shuffle::WINDOW_ROWS));
        let mut stream = RowStream::new(Arc::new(table), Arc::new(index), 1, true).unwrap();
        let rows = take(&mut stream, 9000);
        assert_eq!(rows.iter().collect::<HashSet<_>>().len(), 9000);
    }

    #[test]
    fn shuffling_moves_rows_far_and_evenly() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_table(&folder.path().join("t.parquet"), vec![("answer", numbered("a", 1000))], 100);
        let table = Arc::new(Table::open(&[path], &requests(&["answer"])).unwrap());
        let index = Arc::new(scan_all(&table, &accept_all));
        let mut moved = 0;
        for epoch in 0..10 {
            let order = EpochOrder::new(&index, epoch, 2, true);
            let places = order.row_ids(&table, &index).map(|id| id.row_group * 100 + id.row);
            moved += places.enumerate().map(|(place, row)| place.abs_diff(row)).sum::<usize>();
        }
        // Two even places among 1000 are 333 apart on average.
        assert!((323..343).contains(&(moved / 10_000)), "{}", moved / 10_000);
    }
}
