//! Files whose parts tell different things of the same rows, over files made here.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use arrow::array::RecordBatch;
use janus_core::{Diagnose, Fault};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataReader, ParquetMetaDataWriter,
};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

use super::error::DataError;
use super::index::{Index, Table};
use super::pages;
use super::testing::*;

/// A table of two row groups, its description changed by `change`.
fn described(path: &Path, change: impl Fn(ParquetMetaData) -> ParquetMetaData) {
    let columns = vec![("answer", numbered("a", 7)), ("other", numbered("b", 7))];
    write_table(path, columns, 4);
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&std::fs::File::open(path).unwrap()).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    let described = u32::from_le_bytes(*bytes[..bytes.len() - 4].last_chunk().unwrap()) as usize;
    bytes.truncate(bytes.len() - 8 - described);
    ParquetMetaDataWriter::new(&mut bytes, &change(metadata)).finish().unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The same with so many rows of the file, which no writer can be told.
fn claiming_rows(path: &Path, rows: i64) {
    described(path, |metadata| metadata);
    let mut bytes = std::fs::read(path).unwrap();
    // Field 3, seven rows, doubled; then two row groups.
    let (before, behind) = ([0x16, 14, 0x19, 0x2C], 4);
    let at = bytes.windows(before.len()).rposition(|window| window == before).unwrap();
    let mut rest = ((rows << 1) ^ (rows >> 63)) as u64;
    let mut claim = vec![0x16];
    while rest >= 0x80 {
        claim.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    claim.push(rest as u8);
    let longer = claim.len() as u32 - 2;
    bytes.splice(at..at + 2, claim);
    let length = bytes.len() - 4 - behind;
    let described = u32::from_le_bytes(*bytes[length..].first_chunk().unwrap()) + longer;
    bytes[length..length + 4].copy_from_slice(&described.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

/// The description with other rows of its first row group, and values of that one's column of this number.
fn claiming(metadata: ParquetMetaData, group: i64, column: usize, values: i64) -> ParquetMetaData {
    let about = metadata.file_metadata().clone();
    let mut groups = metadata.row_groups().to_vec();
    let first = groups.remove(0);
    let mut columns = first.columns().to_vec();
    columns[column] = columns[column].clone().into_builder().set_num_values(values).build().unwrap();
    let first = first.into_builder().set_num_rows(group).set_column_metadata(columns).build().unwrap();
    groups.insert(0, first);
    ParquetMetaDataBuilder::new(about).set_row_groups(groups).build()
}

fn scanned(path: &Path) -> Result<Index, DataError> {
    let table = Table::open(&[path.to_path_buf()], &requests(&["answer"]))?;
    table.scan(&options(&accept_all, None), &mut |_| {})
}

#[track_caller]
fn refused(path: &Path, said: &str) {
    let error = scanned(path).unwrap_err();
    assert!(error.to_string().contains(said), "{error}");
    assert_eq!(error.fault(), Fault::Input);
    assert!(!error.hints().is_empty(), "{error}");
}

#[test]
fn a_description_that_contradicts_itself_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    described(&path, |metadata| claiming(metadata, 4, 0, 4));
    assert_eq!(scanned(&path).unwrap().rows(), 7);
    for rows in [1 << 62, -1, 0, 6] {
        claiming_rows(&path, rows);
        refused(&path, &format!("it claims {rows} rows, and its row groups 7"));
    }
    // Also of a column that nobody reads.
    for (column, name) in [(0, "answer"), (1, "other")] {
        for values in [1 << 62, -1, 3, 5] {
            described(&path, |metadata| claiming(metadata, 4, column, values));
            refused(&path, &format!("column `{name}` of row group 0 claims {values} values in 4 rows"));
        }
    }
    // Of one mind, and not with the pages.
    described(&path, |metadata| {
        let metadata = claiming(metadata, 3, 0, 3);
        claiming(metadata, 3, 1, 3)
    });
    refused(&path, "column `answer` claims 3 values, and its pages 4");
}

/// A few megabytes of pages could be millions of rows.
#[test]
fn row_groups_that_share_their_pages_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    described(&path, |metadata| {
        let first = metadata.row_groups()[0].clone();
        let few = |column: &ColumnChunkMetaData| column.clone().into_builder().set_num_values(3).build().unwrap();
        let columns = first.columns().iter().map(few).collect();
        let second = first.clone().into_builder().set_num_rows(3).set_column_metadata(columns).build().unwrap();
        let about = metadata.file_metadata().clone();
        ParquetMetaDataBuilder::new(about).set_row_groups(vec![first, second]).build()
    });
    refused(&path, "of row group 1 lies where another one does");
}

#[test]
fn pages_of_the_second_version_count_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let batch = RecordBatch::try_from_iter([("answer", numbered("a", 7))]).unwrap();
    let properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None);
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert_eq!(scanned(&path).unwrap().rows(), 7);
    let mut bytes = std::fs::read(&path).unwrap();
    // Seven values, no null, seven rows.
    let own = bytes.windows(7).position(|window| window == [0x5C, 0x15, 14, 0x15, 0, 0x15, 14]).unwrap();
    for (rows, said) in [(6, "a page with 6 rows of 7 values"), (0, "with 0 rows"), (8, "claims 8 rows of 7 values")] {
        bytes[own + 6] = rows * 2;
        std::fs::write(&path, &bytes).unwrap();
        refused(&path, said);
    }
}

#[test]
fn pages_that_claim_more_values_than_their_column_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_table(&folder.path().join("t.parquet"), vec![("answer", numbered("a", 7))], 4);
    let (file, mut bytes) = (std::fs::File::open(&path).unwrap(), std::fs::read(&path).unwrap());
    let dictionary = pages::header(&file, 4).unwrap();
    assert!(dictionary.is_dictionary);
    let at = (dictionary.data + dictionary.packed) as usize;
    let page = pages::header(&file, at as u64).unwrap();
    // The header of the page: its own begins with the number of values, four, which is stored doubled.
    let own = (at..page.data as usize).find(|at| bytes[*at..].starts_with(&[0x2C, 0x15, 8])).unwrap();
    for (values, said) in [(5, "claims 4 values, and its pages 5"), (3, "claims 4 values, and its pages 3")] {
        bytes[own + 2] = values * 2;
        std::fs::write(&path, &bytes).unwrap();
        refused(&path, said);
    }
}
