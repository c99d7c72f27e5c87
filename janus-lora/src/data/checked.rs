//! A row group looked at before it is read: how large its pages are, and how many rows may be read at a time.

use std::fs::File;
use std::sync::Arc;

use parquet::basic::{Compression, Type};
use parquet::file::metadata::ColumnChunkMetaData;

use super::budget::{self, LISTED_VALUE_BYTES, Spans, weight};
use super::error::DataError;
use super::lengths;
use super::pages::{self, Page, PageFault};
use super::reader::{DEFAULT_PAGE_BYTES, DataFile, chunk_range};
use super::rejected::cut;
use super::unpack::Unpacking;

/// Rows of a batch are as many as take this much by the mean, at least one, at most [`BATCH_ROWS`].
const BATCH_BYTES: u64 = 16 << 20;
const BATCH_ROWS: u64 = 1024;

/// What a row of a column without lists takes beside its bytes: a view, a level.
const VALUE_BYTES: u64 = 24;

/// The pages of a column chunk with values.
#[derive(Default)]
struct Chunk {
    /// What each takes of the memory that is allowed, and its values.
    pages: Vec<(u64, u64)>,
    dictionary_bytes: u64,
    /// Bytes once they are unpacked, values whose lengths stand apart as such.
    bytes: u64,
    packed_bytes: u64,
    /// What the page that takes most takes while it is unpacked, the packed bytes beside.
    unpacking_bytes: u64,
}

/// What is found out of a row group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looked {
    /// The most rows that are read at a time.
    pub(super) rows: usize,
    /// What its pages take while they are unpacked, one of each column: rows read are views of them until they are copied.
    pub(super) unpacking_bytes: u64,
}

impl DataFile {
    /// The most rows of a row group that are read at a time.
    pub(super) fn batch_rows(&self, row_group: usize) -> Result<usize, DataError> {
        match self.batch_rows[row_group].get() {
            Some(rows) => Ok(*rows),
            None => Ok(self.check_pages(row_group)?.rows),
        }
    }

    /// Checks that the requested columns' pages are of sizes that are allowed, each and those of a row together, before anything
    /// makes room for them, and finds out how many rows a batch may have.
    pub(super) fn check_pages(&self, row_group: usize) -> Result<Looked, DataError> {
        let file = Arc::new(self.unpacking(row_group)?);
        let (_, mask) = self.projection();
        let description = self.metadata.metadata().row_group(row_group);
        let (rows, is_there) = (self.claimed_rows(row_group), has_no_holes(file.file()));
        let columns = description.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf));
        let (leaves, columns): (Vec<usize>, Vec<&ColumnChunkMetaData>) = columns.unzip();
        let (mut spans, mut chunks) = (Vec::new(), Vec::new());
        for (leaf, column) in leaves.iter().zip(&columns) {
            let refused = |fault| self.refused_page(row_group, column, fault);
            let compression = self.as_packed.row_group(row_group).column(*leaf).compression();
            let chunk = self.check_column(&file, column, compression, rows, is_there).map_err(refused)?;
            spans.push(chunk.spans(column, rows));
            chunks.push(chunk);
        }
        // A smaller limit on pages than the usual one is none on rows: these have a page of every column.
        let limit_bytes = self.options.max_page_bytes.max(DEFAULT_PAGE_BYTES);
        let all = chunks.iter().fold(0_u64, |sum, chunk| sum.saturating_add(chunk.bytes));
        let wanted = (BATCH_BYTES / (all / rows.max(1)).max(1)).clamp(1, BATCH_ROWS);
        let mut found = budget::rows(&spans, wanted, limit_bytes);
        // A column with lists is taken for one row at first: its levels tell more.
        for number in (0..columns.len()).filter(|number| is_listed(columns[*number])) {
            if found.is_ok() || rows == 1 {
                break;
            }
            let refused = |fault| self.refused_page(row_group, columns[number], fault);
            spans[number] = chunks[number].listed(&file, columns[number], rows, limit_bytes).map_err(refused)?;
            found = budget::rows(&spans, wanted, limit_bytes);
        }
        let rows = found.map_err(|bytes| DataError::RowLimit {
            path: self.path.to_path_buf(),
            row_group,
            packed_bytes: chunks.iter().map(|chunk| chunk.packed_bytes).fold(0, u64::saturating_add),
            bytes,
            limit_bytes,
        })? as usize;
        let _ = self.batch_rows[row_group].set(rows);
        let unpacking_bytes = chunks.iter().map(|chunk| chunk.unpacking_bytes).fold(0, u64::saturating_add);
        Ok(Looked { rows, unpacking_bytes })
    }

    fn check_column(
        &self,
        file: &Arc<Unpacking>,
        column: &ColumnChunkMetaData,
        compression: Compression,
        rows: u64,
        is_there: bool,
    ) -> Result<Chunk, PageFault> {
        let (start, size) = chunk_range(column).unwrap_or_default();
        let limit_bytes = self.options.max_page_bytes;
        let (mut chunk, mut has_packed_lengths) = (Chunk { packed_bytes: size, ..Chunk::default() }, false);
        let is_packed = column.compression() != Compression::UNCOMPRESSED;
        let mut contradiction = None;
        pages::check(file.file(), start, size, limit_bytes, compression, &mut |page: Page| {
            let taken = weight(page.packed, page.bytes(), is_there);
            has_packed_lengths |= page.has_packed_lengths;
            let packed = if is_packed && page.is_packed { page.packed } else { 0 };
            chunk.unpacking_bytes = chunk.unpacking_bytes.max(page.bytes().saturating_add(packed));
            chunk.bytes = chunk.bytes.saturating_add(page.bytes());
            if page.is_dictionary {
                let values = page.values.saturating_mul(VALUE_BYTES);
                chunk.dictionary_bytes = chunk.dictionary_bytes.saturating_add(taken).saturating_add(values);
            } else if page.is_data {
                // Without lists a value is a row, and rows that are passed over are counted by what the page says.
                let told = page.rows.filter(|rows| *rows != page.values && !is_listed(column));
                let of_rows = told.map(|rows| format!("a page with {rows} rows of {} values", page.values));
                if contradiction.is_none() {
                    contradiction = of_rows.or_else(|| levels_without_any(column, &page));
                }
                chunk.pages.push((taken, page.values));
            }
        })?;
        let values = chunk.pages.iter().fold(0_u64, |sum, (_, values)| sum.saturating_add(*values));
        let is_other = u64::try_from(column.num_values()).ok() != Some(values);
        let other_values = is_other.then(|| format!("{} values, and its pages {values}", column.num_values()));
        if let Some(reason) = contradiction.or(other_values) {
            return Err(PageFault::Damaged(format!(
                "column `{}` claims {reason}",
                cut(&column.column_path().string())
            )));
        }
        if has_packed_lengths {
            lengths::check(file, column, rows, limit_bytes, &mut |number, bytes| {
                if let Some((taken, _)) = chunk.pages.get_mut(number) {
                    *taken = taken.saturating_add(bytes);
                }
                chunk.bytes = chunk.bytes.saturating_add(bytes);
            })?;
        }
        if is_listed(column) {
            for (taken, values) in &mut chunk.pages {
                *taken = taken.saturating_add(values.saturating_mul(LISTED_VALUE_BYTES + fixed_bytes(column)));
            }
        }
        Ok(chunk)
    }

    fn refused_page(&self, row_group: usize, column: &ColumnChunkMetaData, fault: PageFault) -> DataError {
        let (path, column) = (self.path.to_path_buf(), column.column_path().string());
        match fault {
            PageFault::Damaged(reason) => self.damaged(row_group, reason),
            PageFault::TooLarge { is_dictionary, packed_bytes, bytes, limit_bytes } => {
                DataError::PageLimit { path, row_group, column, is_dictionary, packed_bytes, bytes, limit_bytes }
            }
            PageFault::TooMany { what, count, limit } => {
                DataError::ValueLimit { path, row_group, column, what, count, limit }
            }
        }
    }
}

impl Chunk {
    /// The pages by rows: without lists a value is a row, with lists any row may lie in all pages.
    fn spans(&self, column: &ColumnChunkMetaData, rows: u64) -> Spans {
        if is_listed(column) {
            let mut spans = Spans::new(self.dictionary_bytes, 0);
            let all = self.pages.iter().fold(0, |sum: u64, (taken, _)| sum.saturating_add(*taken));
            spans.push(0, rows.saturating_sub(1), all);
            return spans;
        }
        let (mut spans, mut first) = (Spans::new(self.dictionary_bytes, VALUE_BYTES + fixed_bytes(column)), 0);
        for (taken, values) in &self.pages {
            spans.push(first, first + values.saturating_sub(1), *taken);
            first += values;
        }
        spans
    }

    /// The pages of a column with lists by the rows that their levels tell.
    fn listed(
        &self,
        file: &Arc<Unpacking>,
        column: &ColumnChunkMetaData,
        rows: u64,
        limit_bytes: u64,
    ) -> Result<Spans, PageFault> {
        let mut spans = Spans::new(self.dictionary_bytes, 0);
        let (mut row, mut taken_of_row) = (None, 0_u64);
        lengths::levels(file, column, rows, &mut |number, first, last| {
            let taken = self.pages.get(number).map_or(0, |(taken, _)| *taken);
            taken_of_row = if row == Some(first) { taken_of_row.saturating_add(taken) } else { taken };
            row = Some(last);
            if taken_of_row <= limit_bytes {
                spans.push(first, last, taken);
                return true;
            }
            // The row is too large. What is still to come may be of it, too.
            let rest = self.pages.iter().skip(number).fold(0, |sum: u64, (taken, _)| sum.saturating_add(*taken));
            spans.push(first, first, rest);
            false
        })?;
        Ok(spans)
    }
}

/// Levels that a page claims of a column that has none: values would be read from behind them.
fn levels_without_any(column: &ColumnChunkMetaData, page: &Page) -> Option<String> {
    let about = column.column_descr();
    let expected = match (about.max_def_level(), about.max_rep_level()) {
        (0, 0) => page.levels == 0,
        (_, 0) => page.repetition_levels == 0,
        _ => true,
    };
    (!expected).then(|| format!("a page with {} bytes of levels that it cannot have", page.levels))
}

/// Whether values are those of lists, so that a row may have several.
fn is_listed(column: &ColumnChunkMetaData) -> bool {
    column.column_descr().max_rep_level() > 0
}

/// Size of a value that is copied, not looked at in its page.
fn fixed_bytes(column: &ColumnChunkMetaData) -> u64 {
    let description = column.column_descr();
    match description.physical_type() {
        Type::FIXED_LEN_BYTE_ARRAY => u64::try_from(description.type_length()).unwrap_or(0),
        _ => 0,
    }
}

/// Whether the file takes as much room as it is long, more or less; what is compressed by its file system may take less.
#[cfg(unix)]
fn has_no_holes(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    const SECTOR_BYTES: u64 = 512;
    file.metadata().is_ok_and(|about| about.blocks().saturating_mul(SECTOR_BYTES) >= about.len() / 2)
}

#[cfg(not(unix))]
fn has_no_holes(_: &File) -> bool {
    true
}
