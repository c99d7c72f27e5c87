//! Small Parquet files and pictures, made on the spot.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, Float32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

/// A file of these columns, so many rows a row group.
///
/// # Panics
/// Columns of different lengths, or a file that cannot be written.
pub fn write_table(path: &Path, columns: Vec<(&str, ArrayRef)>, row_group_rows: usize) {
    let fields: Vec<Field> = columns.iter().map(|(name, a)| Field::new(*name, a.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(row_group_rows)).build();
    let file = fs_err::File::create(path).unwrap().into_parts().0;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// A column of text.
pub fn texts<S: AsRef<str>>(values: impl IntoIterator<Item = S>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

/// A column of text with nulls.
pub fn optional_texts(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from_iter(values.iter().copied()))
}

/// A column of integers.
pub fn integers(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

/// `struct<bytes, path>` without paths, as the Hugging Face `datasets` library writes images; `None` is a null struct.
pub fn images<B: AsRef<[u8]>>(pictures: &[Option<B>]) -> ArrayRef {
    let bytes: BinaryArray = pictures.iter().map(|picture| picture.as_ref().map(AsRef::as_ref)).collect();
    let path: StringArray = pictures.iter().map(|_| None::<&str>).collect();
    let fields =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    let nulls: NullBuffer = pictures.iter().map(Option::is_some).collect();
    Arc::new(StructArray::new(fields, vec![Arc::new(bytes), Arc::new(path)], Some(nulls)))
}

/// A list of such images in every row.
pub fn image_lists(rows: &[Vec<Vec<u8>>]) -> ArrayRef {
    let pictures: Vec<Option<&Vec<u8>>> = rows.iter().flatten().map(Some).collect();
    list(rows.iter().map(Vec::len), images(&pictures))
}

/// A conversation in every row: turns of role and content, `list<struct<role, content>>`.
pub fn conversations(rows: &[Vec<(&str, &str)>]) -> ArrayRef {
    let field = |name: &str| Field::new(name, DataType::Utf8, true);
    let roles = texts(rows.iter().flatten().map(|(role, _)| role));
    let contents = texts(rows.iter().flatten().map(|(_, content)| content));
    let turns = StructArray::new(Fields::from(vec![field("role"), field("content")]), vec![roles, contents], None);
    list(rows.iter().map(Vec::len), Arc::new(turns))
}

fn list(lengths: impl Iterator<Item = usize>, items: ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new("item", items.data_type().clone(), true));
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), items, None))
}

/// Boxes in every row, `list<list<float>>`.
pub fn boxes(rows: &[Vec<[f32; 4]>]) -> ArrayRef {
    let corners: Float32Array = rows.iter().flatten().flatten().copied().collect();
    let items = list(rows.iter().flatten().map(|_| 4), Arc::new(corners));
    list(rows.iter().map(Vec::len), items)
}

/// A list of texts in every row.
pub fn text_lists(rows: &[Vec<&str>]) -> ArrayRef {
    list(rows.iter().map(Vec::len), texts(rows.iter().flatten()))
}

/// A PNG picture of rectangles, each of a colour, on a dark ground.
///
/// # Panics
/// It cannot be encoded.
pub fn rectangles(width: u32, height: u32, all: &[([f32; 4], [u8; 3])]) -> Vec<u8> {
    let pixel = |x: u32, y: u32| {
        let at = (x as f32 + 0.5, y as f32 + 0.5);
        let holds = |[left, top, right, bottom]: [f32; 4]| left < at.0 && at.0 < right && top < at.1 && at.1 < bottom;
        let colour = all.iter().find(|(corners, _)| holds(*corners)).map_or([30, 34, 38], |(_, colour)| *colour);
        image::Rgb(colour)
    };
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(width, height, pixel).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A PNG picture in colour; another `seed` gives another one.
///
/// # Panics
/// It cannot be encoded.
pub fn picture(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let pixel = |x: u32, y: u32| image::Rgb([x * 7 + seed * 41, y * 13 + seed * 97, (x + y) * 5 + seed * 23].map(byte));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(width, height, pixel).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn byte(value: u32) -> u8 {
    value.to_le_bytes()[0]
}

/// A small PNG whose header claims `width` x `height` pixels, with the right checksum.
///
/// # Panics
/// It cannot be encoded.
pub fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    // Signature (8 bytes), length and name of IHDR (8), its 13 bytes beginning with both sides, its checksum
    // (PNG specification, section 11.2.2).
    let mut bytes = picture(8, 8, 1);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc32(&bytes[12..29]).to_be_bytes();
    bytes[29..33].copy_from_slice(&checksum);
    bytes
}

/// CRC-32 as PNG has it (PNG specification, annex D).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_png() {
        assert_eq!(crc32(b"IEND"), 0xae42_6082);
        assert_eq!(png_claiming(8, 8), picture(8, 8, 1));
    }
}
