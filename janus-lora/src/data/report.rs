//! What `janus data check` tells of a table.

use serde::Serialize;

use super::index::{ClippedGreys, Index, Table};
use super::rejected::Reason;

/// Columns are told until their names and types come to so many bytes; those that are read always.
const MAX_COLUMNS_BYTES: usize = 1 << 20;

/// A table's files, columns and rows, with the bad ones counted by reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// In reading order.
    pub files: Vec<FileReport>,
    /// All columns of the first file; those that are read have a role.
    pub columns: Vec<ColumnReport>,
    /// Columns that there are besides.
    #[serde(skip_serializing_if = "is_none")]
    pub columns_left_out: usize,
    /// Rows looked at.
    pub rows: usize,
    /// Good ones.
    pub accepted: usize,
    /// Bad ones.
    pub rejected: usize,
    /// Whether every image was decoded, not only its header read.
    pub fully_decoded: bool,
    /// Size of the good rows' values.
    pub accepted_bytes: u64,
    /// 16-bit grey pictures of good rows whose values above 255 become white.
    pub clipped_greys: ClippedGreys,
    /// Why rows are bad, most frequent first.
    pub reasons: Vec<Reason>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Its path.
    pub file: String,
    /// Number of row groups.
    pub row_groups: usize,
    /// Number of rows.
    pub rows: u64,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnReport {
    /// Its name in the file.
    pub column: String,
    /// Its type, as pyarrow spells it.
    #[serde(rename = "type")]
    pub data_type: String,
    /// What the task calls it, where it reads it.
    pub role: Option<&'static str>,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

impl CheckReport {
    /// Sums up a scan made without a limit.
    pub fn new(table: &Table, index: &Index) -> Self {
        let mut reasons = index.reasons().to_vec();
        // Stable, so that equally frequent reasons stay in the order in which they were met.
        reasons.sort_by_key(|group| std::cmp::Reverse(group.rows));
        let role = |column: &str| table.requests().iter().find(|request| request.column == column).map(|r| r.role);
        let mut room = MAX_COLUMNS_BYTES;
        let all = table.columns();
        let told = all.iter().filter_map(|(column, data_type)| {
            let (role, bytes) = (role(column), column.len() + data_type.len());
            room = room.saturating_sub(bytes);
            let is_told = room > 0 || (role.is_some() && bytes < MAX_COLUMNS_BYTES);
            is_told.then(|| ColumnReport { column: column.clone(), data_type: data_type.clone(), role })
        });
        let columns: Vec<ColumnReport> = told.collect();
        Self {
            files: table
                .files()
                .map(|(path, row_groups, rows)| FileReport { file: path.display().to_string(), row_groups, rows })
                .collect(),
            columns_left_out: all.len() - columns.len(),
            columns,
            rows: index.rows(),
            accepted: index.accepted_rows(),
            rejected: index.rejected_rows(),
            fully_decoded: index.fully_decoded(),
            accepted_bytes: index.bytes(),
            clipped_greys: index.clipped_greys(),
            reasons,
        }
    }
}
