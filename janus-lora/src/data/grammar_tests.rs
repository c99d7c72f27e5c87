//! Every number that a file says of its rows, replaced by others: what is read in spite of it is what is there.
//!
//! Descriptions and page headers are taken apart as Thrift's compact protocol has them, and put together again around the pages.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use janus_core::{Diagnose, Fault};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::properties::{WriterProperties, WriterVersion};

use super::error::DataError;
use super::index::Table;
use super::stream::RowStream;
use super::testing::*;

#[derive(Debug, Clone)]
enum Value {
    Truth(bool),
    Byte(u8),
    /// With the protocol's type, 4 to 6.
    Number(u8, i64),
    Double([u8; 8]),
    Bytes(Vec<u8>),
    List(u8, Vec<Value>),
    Struct(Vec<(i64, Value)>),
}

fn taken<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = taken(bytes, 1)[0];
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(bytes: &mut &[u8]) -> i64 {
    let stored = varint(bytes);
    (stored >> 1) as i64 ^ -((stored & 1) as i64)
}

fn put_number(value: i64, out: &mut Vec<u8>) {
    put_varint(((value << 1) ^ (value >> 63)) as u64, out);
}

impl Value {
    fn read(kind: u8, bytes: &mut &[u8]) -> Self {
        match kind {
            1 | 2 => Value::Truth(kind == 1),
            3 => Value::Byte(taken(bytes, 1)[0]),
            4..=6 => Value::Number(kind, number(bytes)),
            7 => Value::Double(taken(bytes, 8).try_into().unwrap()),
            8 => {
                let count = varint(bytes) as usize;
                Value::Bytes(taken(bytes, count).to_vec())
            }
            9 => {
                let head = taken(bytes, 1)[0];
                let count = if head >> 4 == 15 { varint(bytes) } else { u64::from(head >> 4) };
                Value::List(head & 15, (0..count).map(|_| Value::read(head & 15, bytes)).collect())
            }
            12 => {
                let (mut fields, mut last) = (Vec::new(), 0);
                loop {
                    let head = taken(bytes, 1)[0];
                    if head == 0 {
                        return Value::Struct(fields);
                    }
                    last = if head >> 4 == 0 { number(bytes) } else { last + i64::from(head >> 4) };
                    fields.push((last, Value::read(head & 15, bytes)));
                }
            }
            other => panic!("type {other}"),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Value::Truth(true) => 1,
            Value::Truth(false) => 2,
            Value::Byte(_) => 3,
            Value::Number(kind, _) => *kind,
            Value::Double(_) => 7,
            Value::Bytes(_) => 8,
            Value::List(..) => 9,
            Value::Struct(_) => 12,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::Truth(_) => {}
            Value::Byte(byte) => out.push(*byte),
            Value::Number(_, value) => put_number(*value, out),
            Value::Double(bytes) => out.extend(bytes),
            Value::Bytes(bytes) => {
                put_varint(bytes.len() as u64, out);
                out.extend(bytes);
            }
            Value::List(kind, values) => {
                out.push(0xF0 | kind);
                put_varint(values.len() as u64, out);
                values.iter().for_each(|value| value.write(out));
            }
            Value::Struct(fields) => {
                for (number, value) in fields {
                    out.push(value.kind());
                    put_number(*number, out);
                    value.write(out);
                }
                out.push(0);
            }
        }
    }

    fn field(&mut self, number: i64) -> Option<&mut Value> {
        let Value::Struct(fields) = self else { panic!("no struct") };
        fields.iter_mut().find(|(other, _)| *other == number).map(|(_, value)| value)
    }

    fn items(&mut self) -> &mut Vec<Value> {
        let Value::List(_, items) = self else { panic!("no list") };
        items
    }

    fn set(&mut self, number: i64, to: i64) {
        if let Some(Value::Number(_, value)) = self.field(number) {
            *value = to;
        }
    }

    /// Hands out each number and truth value in turn; what `is_left_out` says of the fields on the way is passed over.
    fn each(
        &mut self,
        way: &mut Vec<i64>,
        is_left_out: &dyn Fn(&[i64]) -> bool,
        look: &mut dyn FnMut(&mut Value, &[i64]),
    ) {
        if is_left_out(way) {
            return;
        }
        match self {
            Value::Number(..) | Value::Truth(_) => look(self, way),
            Value::List(_, items) => items.iter_mut().for_each(|item| item.each(way, is_left_out, look)),
            Value::Struct(fields) => {
                for (number, value) in fields {
                    way.push(*number);
                    value.each(way, is_left_out, look);
                    way.pop();
                }
            }
            Value::Byte(_) | Value::Double(_) | Value::Bytes(_) => {}
        }
    }
}

/// A file in parts: of each column chunk its pages, and the description.
#[derive(Debug, Clone)]
struct Parts {
    chunks: Vec<Vec<(Value, Vec<u8>)>>,
    description: Value,
}

impl Parts {
    fn of(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&std::fs::File::open(path).unwrap()).unwrap();
        let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
        let chunk = |column: &parquet::file::metadata::ColumnChunkMetaData| {
            let (start, length) = column.byte_range();
            let mut rest = &bytes[start as usize..(start + length) as usize];
            let mut pages = Vec::new();
            while !rest.is_empty() {
                let mut header = Value::read(12, &mut rest);
                let Some(Value::Number(_, packed)) = header.field(3) else { panic!("a page without a size") };
                let packed = *packed as usize;
                pages.push((header, taken(&mut rest, packed).to_vec()));
            }
            pages
        };
        let chunks = columns.map(chunk).collect();
        let end = bytes.len() - 8;
        let length = u32::from_le_bytes(*bytes[end..].first_chunk().unwrap()) as usize;
        Parts { chunks, description: Value::read(12, &mut &bytes[end - length..end]) }
    }

    /// Pages, and the description with their places.
    fn placed(&self) -> (Vec<u8>, Value) {
        let (mut bytes, mut description, mut chunks) = (b"PAR1".to_vec(), self.description.clone(), self.chunks.iter());
        for group in description.field(4).unwrap().items() {
            for column in group.field(1).unwrap().items() {
                let (about, start) = (column.field(3).unwrap(), bytes.len());
                for (number, (header, page)) in chunks.next().unwrap().iter().enumerate() {
                    if number == usize::from(about.field(11).is_some()) {
                        about.set(9, bytes.len() as i64);
                    }
                    header.write(&mut bytes);
                    bytes.extend(page);
                }
                about.set(11, start as i64);
                about.set(7, (bytes.len() - start) as i64);
            }
        }
        (bytes, description)
    }
}

fn write(path: &Path, (mut bytes, description): (Vec<u8>, Value)) {
    let start = bytes.len();
    description.write(&mut bytes);
    let length = (bytes.len() - start) as u32;
    bytes.extend(length.to_le_bytes());
    bytes.extend(b"PAR1");
    std::fs::write(path, bytes).unwrap();
}

fn read(path: &Path) -> Result<Vec<String>, DataError> {
    let table = Table::open(&[path.to_path_buf()], &requests(&["answer"]))?;
    let index = table.scan(&options(&accept_all, None), &mut |_| {})?;
    let rows = index.accepted_rows();
    let stream = RowStream::new(table.into(), index.into(), 0, false)?;
    stream.take(rows).map(|row| Ok(row?.text("answer").unwrap().to_owned())).collect()
}

/// Replaces each number of `of` by others in turn, and hands it out with the fields on the way to it.
fn replaced(of: &Value, is_left_out: &dyn Fn(&[i64]) -> bool, look: &mut dyn FnMut(Value, &[i64], String)) {
    let mut count = 0;
    of.clone().each(&mut Vec::new(), is_left_out, &mut |_, _| count += 1);
    for place in 0..count {
        for choice in 0..8 {
            let (mut other, mut number, mut at, mut what) = (of.clone(), 0, Vec::new(), String::new());
            other.each(&mut Vec::new(), is_left_out, &mut |value, way| {
                if number == place {
                    let before = format!("{value:?}");
                    match value {
                        Value::Truth(truth) => *truth ^= choice == 0,
                        Value::Number(_, value) => {
                            let now = *value;
                            let others = [now.wrapping_add(1), now.wrapping_sub(1), now.wrapping_mul(2), now / 2];
                            *value = [&others[..], &[0, -1, i32::MAX.into(), i64::MAX]].concat()[choice];
                        }
                        _ => {}
                    }
                    (at, what) = (way.to_vec(), format!("{before} -> {value:?}"));
                }
                number += 1;
            });
            look(other, &at, what);
        }
    }
}

#[test]
fn whatever_a_file_claims_its_rows_are_refused_or_read_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let expected: Vec<String> = (0..23).map(|n| format!("answer-{}", n % 9)).collect();
    let mut tried = 0;
    let mut judge = |what: &str| {
        tried += 1;
        match read(&path) {
            Ok(rows) => assert!(rows == expected, "{what}: {rows:?}"),
            Err(error) => assert!(error.fault() == Fault::Input && !error.hints().is_empty(), "{what}: {error}"),
        }
    };
    for (version, compression, has_dictionary) in [
        (WriterVersion::PARQUET_1_0, Compression::SNAPPY, false),
        (WriterVersion::PARQUET_1_0, Compression::UNCOMPRESSED, true),
        (WriterVersion::PARQUET_2_0, Compression::ZSTD(Default::default()), true),
    ] {
        let texts: arrow::array::ArrayRef = std::sync::Arc::new(arrow::array::StringArray::from_iter_values(&expected));
        let batch =
            arrow::array::RecordBatch::try_from_iter([("answer", texts), ("other", numbered("b", 23))]).unwrap();
        let properties = WriterProperties::builder()
            .set_writer_version(version)
            .set_compression(compression)
            .set_dictionary_enabled(has_dictionary)
            .set_data_page_row_count_limit(5)
            .set_write_batch_size(5)
            .set_max_row_group_row_count(Some(13));
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties.build())).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let parts = Parts::of(&path);
        write(&path, parts.placed());
        assert_eq!(read(&path).unwrap(), expected);
        // The schema says what rows are, not how many: field 2.
        let (pages, description) = parts.placed();
        replaced(&description, &|way| way.first() == Some(&2), &mut |description, way, what| {
            write(&path, (pages.clone(), description));
            judge(&format!("{version:?} description {way:?}: {what}"));
        });
        // Likewise how values and levels are written.
        let of_encodings = |way: &[i64]| matches!(way, [5, 2..=4] | [7, 2] | [8, 4]);
        for (chunk, page) in [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)] {
            replaced(&parts.chunks[chunk][page].0, &of_encodings, &mut |header, way, what| {
                let mut parts = parts.clone();
                parts.chunks[chunk][page].0 = header;
                write(&path, parts.placed());
                judge(&format!("{version:?} page {page} of chunk {chunk} {way:?}: {what}"));
            });
        }
    }
    assert!(tried > 1000, "{tried}");
}
