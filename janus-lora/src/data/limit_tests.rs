//! Tables that come to more than they seem, over files made here.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, ListBuilder, RecordBatch, StringArray};
use janus_core::Diagnose;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

use super::error::DataError;
use super::index::Table;
use super::pages;
use super::schema::{ColumnKind, ColumnRequest};
use super::stream::RowStream;
use super::testing::*;

/// Lists of pictures that are 8 MB of zeros, each in a page of its own, so many in each row.
fn zeros_in_lists(folder: &Path, rows: &[usize]) -> PathBuf {
    const BYTES: usize = 8 << 20;
    let mut lists = ListBuilder::new(BinaryBuilder::new());
    for _ in 0..rows.iter().sum() {
        lists.values().append_value(vec![0_u8; BYTES]);
        lists.append(true);
    }
    let batch = RecordBatch::try_from_iter([("images", Arc::new(lists.finish()) as ArrayRef)]).unwrap();
    let properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_compression(Compression::ZSTD(Default::default()))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_size_limit(1)
        .set_data_page_row_count_limit(1)
        .set_write_batch_size(1)
        .build();
    let path = folder.join("t.parquet");
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    let about = writer.close().unwrap();
    // No writer has a row in several pages; the level that a page begins with says that it goes on.
    let (file, mut bytes) = (File::open(&path).unwrap(), std::fs::read(&path).unwrap());
    let (mut at, end) = about.row_group(0).column(0).byte_range();
    for pictures in rows {
        for number in 0..*pictures {
            let page = pages::header(&file, at).unwrap();
            let level = page.data as usize + 1;
            assert_eq!(bytes[level - 1..=level], [2, 0], "one level, which is 0");
            bytes[level] = u8::from(number > 0);
            at = page.data + page.packed;
        }
    }
    assert_eq!(at, 4 + end);
    std::fs::write(&path, &bytes).unwrap();
    path
}

/// What is allowed of a row is asked of the row, however its file spreads it over pages and however many others there are.
#[test]
fn a_row_of_many_pages_is_refused_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let open = |rows: &[usize]| {
        let path = zeros_in_lists(folder.path(), rows);
        assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
        Table::open(&[path], &[ColumnRequest::required("images", "images", ColumnKind::ImageList)]).unwrap()
    };
    for rows in [&[70][..], &[1, 1, 70, 1], &[2, 70]] {
        let error = open(rows).scan(&options(&accept_all, None), &mut |_| {}).unwrap_err();
        assert!(matches!(&error, DataError::RowLimit { bytes, .. } if *bytes > 70 * (8 << 20)), "{rows:?}: {error}");
        assert!(error.hints()[0].contains("data_limits.max_page_bytes="), "{:?}", error.hints());
    }
    // As much, but of many rows.
    let table = open(&[1; 70]);
    let index = table.scan(&options(&accept_all, None), &mut |_| {}).unwrap();
    assert_eq!((index.rows(), index.rejected_rows()), (70, 70), "they are no pictures");
}

/// Where a codec unpacks to its end, the header is held against it.
#[test]
fn a_page_that_unpacks_to_more_than_it_says_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let codecs = [Compression::GZIP(Default::default()), Compression::BROTLI(Default::default())];
    for compression in codecs {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let values: Vec<String> = (0..500).map(|n| format!("{n}").repeat(1 + n % 50)).collect();
            let texts = values.iter().enumerate().map(|(n, text)| (n % 7 > 0).then_some(text.as_str()));
            let array: ArrayRef = Arc::new(StringArray::from_iter(texts));
            let batch = RecordBatch::try_from_iter([("answer", array)]).unwrap();
            let properties = WriterProperties::builder()
                .set_writer_version(version)
                .set_compression(compression)
                .set_dictionary_enabled(false)
                .set_statistics_enabled(EnabledStatistics::None)
                .build();
            let path = folder.path().join("t.parquet");
            let mut writer =
                ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), Some(properties)).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
            let table = || Table::open(std::slice::from_ref(&path), &requests(&["answer"])).unwrap();
            let (index, expected) = (scan_all(&table(), &accept_all), values.iter().enumerate());
            assert_eq!(index.rejected_rows(), 72);
            let read = RowStream::new(Arc::new(table()), Arc::new(index), 0, false).unwrap();
            let read: Vec<String> = read.take(428).map(|row| row.unwrap().text("answer").unwrap().to_owned()).collect();
            let expected: Vec<String> = expected.filter(|(n, _)| n % 7 > 0).map(|(_, text)| text.clone()).collect();
            assert_eq!(read, expected, "{compression} {version:?}");

            // The header, which begins with type and size, says less.
            let mut bytes = std::fs::read(&path).unwrap();
            assert!(bytes[8] & 0x80 > 0 && bytes[9] > 1 && bytes[9] & 0x80 == 0, "a size of three bytes");
            bytes[9] = 1;
            std::fs::write(&path, &bytes).unwrap();
            let error = table().scan(&options(&accept_all, None), &mut |_| {}).unwrap_err().to_string();
            assert!(error.contains("does not unpack to the"), "{compression} {version:?}: {error}");
        }
    }
}
