//! A table row by row with everything that its files hold: what is asked of each row, and all of its columns.

use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::index::Table;
use super::reader::{Batches, DataFile};
use super::rejected::RowFault;
use super::{DataError, Row};

/// Some rows of a row group with all of their columns.
pub(crate) struct WholeBatch {
    /// The number of its file.
    pub(crate) file: usize,
    /// Every column, in the file's order; texts and bytes as views into their pages.
    pub(crate) columns: RecordBatch,
    /// What was asked of each row, or what is wrong with it.
    pub(crate) rows: Vec<Result<Row, RowFault>>,
    /// Whether pictures of its rows may lie in files of their own.
    pub(crate) names_files: bool,
}

/// All batches of a table opened with [`all_columns`](super::ReadOptions::all_columns), in the order of its files.
pub(crate) struct WholeBatches<'t> {
    table: &'t Table,
    file: usize,
    row_group: usize,
    batches: Option<Batches<'t>>,
    /// Rows of the row group that were handed out.
    read: u64,
}

impl Table {
    /// Starts to read all columns of all rows.
    pub(crate) fn whole_batches(&self) -> WholeBatches<'_> {
        WholeBatches { table: self, file: 0, row_group: 0, batches: None, read: 0 }
    }

    /// Of each file its path, its columns as it describes them, and as they are in its batches.
    pub(crate) fn schemas(&self) -> Vec<(PathBuf, SchemaRef, SchemaRef)> {
        let of_file =
            |file: &DataFile| (file.path.to_path_buf(), file.own_schema().clone(), file.read_schema().clone());
        self.data_files().iter().map(of_file).collect()
    }
}

impl WholeBatches<'_> {
    /// The next batch; `None` at the end. The columns come with the names and types of their file's [`Table::schemas`].
    ///
    /// # Errors
    /// A file that is damaged, beyond its limits, or cannot be brought here.
    pub(crate) fn next(&mut self) -> Result<Option<WholeBatch>, DataError> {
        loop {
            let Some(file) = self.table.data_files().get(self.file) else { return Ok(None) };
            if self.row_group >= file.row_groups() {
                (self.file, self.row_group) = (self.file + 1, 0);
                continue;
            }
            let batches = match &mut self.batches {
                Some(batches) => batches,
                None => {
                    file.check_pages(self.row_group)?;
                    let claimed = usize::try_from(file.claimed_rows(self.row_group)).unwrap_or(usize::MAX);
                    self.batches.insert(file.batches(self.row_group, 0..claimed)?)
                }
            };
            if let Some((batch, columns)) = batches.next_whole(self.table.requests())? {
                let rows = (0..batch.rows).map(|row| self.table.row(&batch, row)).collect();
                self.read += batch.rows as u64;
                let names_files = batch.names_files();
                return Ok(Some(WholeBatch { file: self.file, columns, rows, names_files }));
            }
            let claimed = file.claimed_rows(self.row_group);
            if self.read != claimed {
                return Err(file.damaged(self.row_group, format!("it claims {claimed} rows and holds {}", self.read)));
            }
            (self.batches, self.row_group, self.read) = (None, self.row_group + 1, 0);
        }
    }
}
