//! Small Parquet files for the room's tests.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, ListArray, NullArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::index::{ImageChecks, Index, ScanOptions, Table};
use super::rejected::BadRowLimit;
use super::row::Row;
use super::schema::{ColumnKind, ColumnRequest};
use super::stream::RowStream;

/// Required text columns, each read under its own name.
pub(crate) fn requests(names: &[&'static str]) -> Vec<ColumnRequest> {
    names.iter().map(|name| ColumnRequest::required(name, *name, ColumnKind::Text)).collect()
}

pub(crate) fn image_request() -> ColumnRequest {
    ColumnRequest::required("image", "image", ColumnKind::Image)
}

/// Decoding by the `image` crate.
pub(crate) fn image_checks() -> ImageChecks {
    ImageChecks {
        dimensions: |image| {
            image::ImageReader::new(std::io::Cursor::new(&image.bytes))
                .with_guessed_format()
                .map_err(|e| e.to_string())?
                .into_dimensions()
                .map_err(|e| e.to_string())
        },
        decode: |image| image::load_from_memory(&image.bytes).map(|_| ()).map_err(|e| e.to_string()),
        clipped_grey: |_| None,
    }
}

pub(crate) fn accept_all(_: &Row) -> Result<(), String> {
    Ok(())
}

pub(crate) fn options<'a>(
    check: &'a (dyn Fn(&Row) -> Result<(), String> + Sync),
    limit: Option<BadRowLimit>,
) -> ScanOptions<'a> {
    ScanOptions { images: image_checks(), check, limit, decode_rows: u64::MAX }
}

pub(crate) fn scan_all(table: &Table, check: &(dyn Fn(&Row) -> Result<(), String> + Sync)) -> Index {
    table.scan(&options(check, None), &mut |_| {}).unwrap()
}

/// A file of these columns, so many rows a row group.
pub(crate) fn write_table(path: &Path, columns: Vec<(&str, ArrayRef)>, row_group_rows: usize) -> PathBuf {
    let fields: Vec<Field> = columns.iter().map(|(name, a)| Field::new(*name, a.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(row_group_rows)).build();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path.to_path_buf()
}

pub(crate) fn texts<'a>(values: impl IntoIterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

/// `n` texts `PREFIX-0`, `PREFIX-1`, ...
pub(crate) fn numbered(prefix: &str, n: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..n).map(|i| format!("{prefix}-{i}"))))
}

/// Bytes and path of an image; `None` is a null struct.
pub(crate) type ImageValue<'a> = Option<(Option<&'a [u8]>, Option<&'a str>)>;

/// `struct<bytes, path>`.
pub(crate) fn image_structs(rows: &[ImageValue<'_>]) -> ArrayRef {
    let bytes: BinaryArray = rows.iter().map(|row| row.and_then(|(bytes, _)| bytes)).collect();
    let path: StringArray = rows.iter().map(|row| row.and_then(|(_, path)| path)).collect();
    let fields =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    let nulls: NullBuffer = rows.iter().map(Option::is_some).collect();
    Arc::new(StructArray::new(fields, vec![Arc::new(bytes), Arc::new(path)], Some(nulls)))
}

/// A grey PNG.
pub(crate) fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::GrayImage::from_fn(width, height, |x, y| image::Luma([(x * 7 + y * 13) as u8]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

/// Lists of these lengths.
pub(crate) fn list(lengths: &[usize], items: ArrayRef) -> ArrayRef {
    let field = Field::new("item", items.data_type().clone(), true);
    Arc::new(ListArray::new(field.into(), OffsetBuffer::from_lengths(lengths.iter().copied()), items, None))
}

/// A struct of these fields.
pub(crate) fn structure(columns: Vec<(&str, ArrayRef)>) -> ArrayRef {
    let fields: Fields = columns.iter().map(|(name, a)| Field::new(*name, a.data_type().clone(), true)).collect();
    Arc::new(StructArray::new(fields, columns.into_iter().map(|(_, array)| array).collect(), None))
}

/// A column of type null.
pub(crate) fn nulls(count: usize) -> ArrayRef {
    Arc::new(NullArray::new(count))
}

pub(crate) fn required(role: &'static str, column: &str, kind: ColumnKind) -> ColumnRequest {
    ColumnRequest::required(role, column, kind)
}

/// All good rows, in order.
pub(crate) fn rows_of(table: Table) -> Vec<Row> {
    let index = scan_all(&table, &accept_all);
    let count = index.accepted_rows();
    if count == 0 {
        return Vec::new();
    }
    RowStream::new(Arc::new(table), Arc::new(index), 0, false).unwrap().take(count).map(Result::unwrap).collect()
}

/// The first reason for which a row of the column is bad.
pub(crate) fn reason(path: PathBuf, request: ColumnRequest) -> String {
    let index = scan_all(&Table::open(&[path], &[request]).unwrap(), &accept_all);
    index.rejected().first().map(|row| row.fault.to_string()).unwrap_or_default()
}
