//! Tables read, scanned and refused, over files made here.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, DictionaryArray, FixedSizeBinaryArray, Int64Array, LargeBinaryArray,
    LargeStringArray, ListArray, RecordBatch, StringArray, StringViewArray, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Schema};
use base64::prelude::{BASE64_STANDARD, Engine};
use janus_core::{Diagnose, Fault};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::error::DataError;
use super::index::{Index, ScanOptions, Table};
use super::reader::{DEFAULT_PAGE_BYTES, ReadOptions};
use super::rejected::{BadRowLimit, RowFault};
use super::report::CheckReport;
use super::row::{Message, Row};
use super::schema::{ColumnKind, ColumnRequest};
use super::source::FileSource;
use super::stream::RowStream;
use super::testing::*;

fn reasons(index: &Index) -> Vec<(usize, String)> {
    index.rejected().iter().map(|r| (r.id.row, r.fault.to_string())).collect()
}

fn list(offsets: &[i32], items: ArrayRef, nulls: Option<Vec<bool>>) -> ArrayRef {
    let field = Field::new("item", items.data_type().clone(), true);
    let nulls = nulls.map(NullBuffer::from);
    Arc::new(ListArray::new(field.into(), OffsetBuffer::new(offsets.to_vec().into()), items, nulls))
}

#[test]
fn every_way_of_storing_texts_reads_alike() {
    let folder = tempfile::tempdir().unwrap();
    let values = ["one", "two", "one", "three"];
    let keyed: DictionaryArray<Int32Type> = values.into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("plain", Arc::new(StringArray::from_iter_values(values))),
        ("large", Arc::new(LargeStringArray::from_iter_values(values))),
        ("view", Arc::new(StringViewArray::from_iter_values(values))),
        ("keyed", Arc::new(keyed)),
    ];
    let path = write_table(&folder.path().join("t.parquet"), columns, 3);
    let rows = rows_of(Table::open(&[path], &requests(&["plain", "large", "view", "keyed"])).unwrap());
    for role in ["plain", "large", "view", "keyed"] {
        assert_eq!(rows.iter().map(|row| row.text(role).unwrap()).collect::<Vec<_>>(), values, "{role}");
    }
    assert_eq!((rows[3].id.row_group, rows[3].id.row), (1, 0));
}

#[test]
fn every_way_of_storing_images_reads_alike() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (png(8, 6), png(5, 7));
    std::fs::create_dir(folder.path().join("pictures")).unwrap();
    std::fs::write(folder.path().join("pictures/a.png"), &a).unwrap();
    std::fs::write(folder.path().join("b.png"), &b).unwrap();
    let both = [a.as_slice(), b.as_slice()];
    let items = image_structs(&[Some((Some(&a), None)), Some((Some(&b), None)), Some((None, Some("b.png")))]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("struct", image_structs(&[Some((Some(&a), Some("gone.png"))), Some((None, Some("b.png")))])),
        ("binary", Arc::new(BinaryArray::from_iter_values(both))),
        ("large", Arc::new(LargeBinaryArray::from_iter_values(both))),
        ("path", texts([Some("pictures/a.png"), Some("b.png")])),
        ("list", list(&[0, 2, 3], items, None)),
    ];
    let path = write_table(&folder.path().join("t.parquet"), columns, 10);
    let mut asked: Vec<ColumnRequest> =
        ["struct", "binary", "large", "path"].map(|name| ColumnRequest::required(name, name, ColumnKind::Image)).into();
    asked.push(ColumnRequest::required("list", "list", ColumnKind::ImageList));
    asked.push(ColumnRequest::required("one", "binary", ColumnKind::ImageList));
    let rows = rows_of(Table::open(&[path], &asked).unwrap());
    for role in ["struct", "binary", "large", "path", "one"] {
        assert_eq!(rows[0].image(role).unwrap().bytes, a, "{role}");
        assert_eq!(rows[1].image(role).unwrap().bytes, b, "{role}");
    }
    let listed = |row: &Row| row.images["list"].iter().map(|image| image.bytes.clone()).collect::<Vec<_>>();
    assert_eq!(listed(&rows[0]), [a, b.clone()]);
    assert_eq!(listed(&rows[1]), [b]);
}

#[test]
fn images_outside_the_table_s_folder_are_rejected() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("table");
    let png = png(8, 6);
    std::fs::create_dir_all(folder.join("x")).unwrap();
    std::fs::write(outer.path().join("secret.png"), &png).unwrap();
    std::fs::write(folder.join("own.png"), &png).unwrap();
    let absolute = outer.path().join("secret.png");
    #[allow(unused_mut, reason = "not every system has links")]
    let mut paths = vec!["./own.png", "../secret.png", absolute.to_str().unwrap(), "x/../../secret.png"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../secret.png", folder.join("link.png")).unwrap();
        paths.push("link.png");
    }
    let column = texts(paths.iter().copied().map(Some));
    let path = write_table(&folder.join("t.parquet"), vec![("image", column)], 10);
    let index = scan_all(&Table::open(&[path], &[image_request()]).unwrap(), &accept_all);
    assert_eq!((index.accepted_rows(), index.rejected_rows()), (1, paths.len() - 1));
    for ((row, reason), path) in reasons(&index).iter().zip(&paths[1..]) {
        let expected = format!(
            "the image file `{path}` of `image` cannot be read: it does not lie in the table's folder; `image_root`"
        );
        assert!(reason.starts_with(&expected), "row {row}: {reason}");
    }
}

/// One value of 20 MiB that 128 rows name: copied for each, they would be more than an array can hold.
#[test]
fn values_of_a_dictionary_are_not_copied_for_every_row() {
    let folder = tempfile::tempdir().unwrap();
    let values = StringArray::from_iter_values(["x".repeat(20 << 20)]);
    let keyed = DictionaryArray::<Int32Type>::new(vec![0; 128].into(), Arc::new(values));
    let field = Field::new("answer", keyed.data_type().clone(), true);
    let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![Arc::new(keyed)]).unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_page_size_limit(64 << 20)
        .set_compression(Compression::ZSTD(Default::default()))
        .build();
    let path = folder.path().join("t.parquet");
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    let index = scan_all(&Table::open(&[path], &requests(&["answer"])).unwrap(), &accept_all);
    let reason = "the text in `answer` has 20971520 bytes, at most 1048576 are read".to_string();
    assert_eq!(reasons(&index), (0..128).map(|row| (row, reason.clone())).collect::<Vec<_>>());
}

#[test]
fn rows_beyond_the_limits_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::File::create(folder.path().join("big.png")).unwrap().set_len(100 << 20).unwrap();
    let images = list(&[0, 3, 3 + 257], texts(vec![Some("big.png"); 3 + 257]), None);
    let path = write_table(&folder.path().join("images.parquet"), vec![("image", images)], 10);
    let asked = [ColumnRequest::required("image", "image", ColumnKind::ImageList)];
    let index = scan_all(&Table::open(&[path], &asked).unwrap(), &accept_all);
    let expected = [
        (0, "the images in `image` take 314572800 bytes together, at most 268435456 are read".to_string()),
        (1, "there are 257 images in `image`, at most 256 are read".to_string()),
    ];
    assert_eq!(reasons(&index), expected);

    let long = "x".repeat(600_000);
    let content = texts([Some("short"), Some(&long), Some(&long)].into_iter().chain(vec![Some("y"); 4097]));
    let fields =
        Fields::from(vec![Field::new("role", DataType::Utf8, true), Field::new("content", DataType::Utf8, true)]);
    let turns = StructArray::new(fields, vec![texts(vec![Some("user"); content.len()]), content], None);
    let column = list(&[0, 1, 3, 3 + 4097], Arc::new(turns), None);
    let path = write_table(&folder.path().join("messages.parquet"), vec![("messages", column)], 10);
    let asked = [ColumnRequest::required("messages", "messages", ColumnKind::Messages)];
    let index = scan_all(&Table::open(&[path], &asked).unwrap(), &accept_all);
    let expected = [
        (1, "the text in `messages` has 1200008 bytes, at most 1048576 are read".to_string()),
        (2, "there are 4097 messages in `messages`, at most 4096 are read".to_string()),
    ];
    assert_eq!(reasons(&index), expected);
}

#[test]
fn conversations_are_read_and_incomplete_ones_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let roles = texts([Some("user"), Some("assistant"), Some("user"), Some("user"), None]);
    let content = texts([Some("hello"), Some("good day"), None, Some("x"), Some("y")]);
    let fields =
        Fields::from(vec![Field::new("role", DataType::Utf8, true), Field::new("content", DataType::Utf8, true)]);
    let turns =
        StructArray::new(fields, vec![roles, content], Some(NullBuffer::from(vec![true, true, true, false, true])));
    let valid = Some(vec![true, true, true, false, true, true]);
    let column = list(&[0, 2, 3, 3, 3, 4, 5], Arc::new(turns), valid);
    let path = write_table(&folder.path().join("t.parquet"), vec![("messages", column)], 10);
    let asked = [ColumnRequest::required("messages", "messages", ColumnKind::Messages)];
    let table = Table::open(&[path], &asked).unwrap();
    let index = scan_all(&table, &accept_all);
    let incomplete = |row| (row, "message 0 in `messages` lacks its role or content".to_string());
    let null = |row| (row, "`messages` is null".to_string());
    assert_eq!(reasons(&index), [incomplete(1), null(2), null(3), incomplete(4), incomplete(5)]);
    let rows = rows_of(table);
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    assert_eq!(rows[0].messages["messages"], [turn("user", "hello"), turn("assistant", "good day")]);
}

#[test]
fn bad_rows_are_named_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let good = png(20, 10);
    let cut = &good[..good.len() * 2 / 3];
    let (thin, wide) = (png(1, 101), png(100, 1));
    // A PNG header that claims 30000 x 30000 pixels; nothing behind it is ever looked at.
    let mut huge = png(30, 30);
    huge[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    let crc = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&crc.to_be_bytes());
    let some = |bytes| Some((Some(bytes), Some("x.png")));
    let images = image_structs(&[
        some(good.as_slice()),
        None,
        Some((None, Some("gone.png"))),
        Some((None, None)),
        some(cut),
        some(b"plain text".as_slice()),
        some(thin.as_slice()),
        some(wide.as_slice()),
        some(huge.as_slice()),
        some(good.as_slice()),
        some(good.as_slice()),
        some(good.as_slice()),
        some(b"".as_slice()),
    ]);
    let mut answers = vec![Some("yes"); 13];
    answers[9] = Some(" \n\t");
    answers[10] = None;
    answers[11] = Some("refuse me");
    let path = write_table(&folder.path().join("t.parquet"), vec![("image", images), ("answer", texts(answers))], 5);
    let mut asked = requests(&["answer"]);
    asked.insert(0, image_request());
    let table = Table::open(&[path], &asked).unwrap();
    let check = |row: &Row| if row.text("answer") == Some("refuse me") { Err("too rude".to_string()) } else { Ok(()) };
    let index = scan_all(&table, &check);
    assert_eq!((index.rows(), index.accepted_rows(), index.rejected_rows()), (13, 2, 11));
    assert!(index.fully_decoded());
    let found: Vec<(usize, usize, String)> =
        index.rejected().iter().map(|r| (r.id.row_group, r.id.row, r.fault.to_string())).collect();
    let expected = [
        (0, 1, "`image` is null"),
        (0, 2, "the image file `gone.png` of `image` cannot be read: "),
        (0, 3, "`image` is null"),
        (0, 4, "the image in `image` cannot be decoded: "),
        (1, 0, "the image in `image` cannot be decoded: "),
        (1, 1, "the image in `image` has 1 x 101 pixels, beyond 100:1"),
        (1, 3, "the image in `image` has 30000 x 30000 pixels, over 64 megapixels"),
        (1, 4, "`answer` is empty"),
        (2, 0, "`answer` is null"),
        (2, 1, "too rude"),
        (2, 2, "the image in `image` cannot be decoded: "),
    ];
    assert_eq!(found.len(), expected.len());
    for ((row_group, row, reason), (group, number, opening)) in found.iter().zip(expected) {
        assert_eq!((*row_group, *row), (group, number));
        assert!(reason.starts_with(opening), "{reason}");
    }
    // By headers alone, the picture that is cut off is good.
    let few = ScanOptions { decode_rows: 12, ..options(&check, None) };
    let index = table.scan(&few, &mut |_| {}).unwrap();
    assert!(!index.fully_decoded());
    assert_eq!((index.accepted_rows(), index.rejected_rows()), (3, 10));
    // Only columns that are read count.
    let table = Table::open(&[folder.path().join("t.parquet")], &requests(&["answer"])).unwrap();
    assert_eq!(scan_all(&table, &accept_all).rejected_rows(), 2);
}

/// CRC-32 of ISO 3309, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn a_panicking_decoder_rejects_the_row() {
    let folder = tempfile::tempdir().unwrap();
    let image: ArrayRef = Arc::new(BinaryArray::from_iter_values([png(3, 3)]));
    let path = write_table(&folder.path().join("t.parquet"), vec![("image", image)], 5);
    let table = Table::open(&[path], &[image_request()]).unwrap();
    let mut options = options(&accept_all, None);
    options.images.decode = |image| panic!("{} bytes are too many", image.bytes.len());
    let index = table.scan(&options, &mut |_| {}).unwrap();
    assert!(
        matches!(&index.rejected()[0].fault, RowFault::Undecodable { reason, .. } if reason.contains("are too many"))
    );
}

#[test]
fn optional_columns_may_be_missing_or_null() {
    let folder = tempfile::tempdir().unwrap();
    let table_with = |name: &str, columns| write_table(&folder.path().join(name), columns, 10);
    let full = table_with("a.parquet", vec![("answer", numbered("a", 2)), ("question", texts([Some("why?"), None]))]);
    let bare = table_with("b.parquet", vec![("answer", numbered("b", 2))]);
    let mut asked = requests(&["answer"]);
    asked.push(ColumnRequest::optional("question", "question", ColumnKind::Text));
    let table = Table::open(std::slice::from_ref(&full), &asked).unwrap();
    assert!(table.has("question"));
    let rows = rows_of(table);
    assert_eq!(rows.iter().map(|row| row.text("question")).collect::<Vec<_>>(), [Some("why?"), None]);
    let table = Table::open(std::slice::from_ref(&bare), &asked).unwrap();
    assert!(!table.has("question"));
    assert_eq!(rows_of(table).len(), 2);
    let both = Table::open(&[full, bare], &asked).unwrap_err();
    assert!(matches!(&both, DataError::FilesDiffer { column, .. } if column == "question"), "{both}");
}

#[test]
fn missing_and_mistyped_columns_are_told_together() {
    let folder = tempfile::tempdir().unwrap();
    let count: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let path =
        write_table(&folder.path().join("t.parquet"), vec![("image", count.clone()), ("answers", numbered("a", 2))], 5);
    let mut asked = requests(&["answer"]);
    asked.insert(0, image_request());
    let error = Table::open(std::slice::from_ref(&path), &asked).unwrap_err();
    let message = error.to_string();
    for part in [
        path.to_str().unwrap(),
        "column `image` (for image) has type `int64`, expected `struct<bytes: binary, path: string>`",
        "no column `answer` (for answer), there are `image`, `answers`",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(error.fault(), Fault::Input);
    assert!(error.hints().iter().any(|hint| hint.contains("did you mean `answers`?")), "{:?}", error.hints());
}

#[test]
fn files_that_are_not_whole_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.parquet");
    std::fs::write(&text, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let empty = folder.path().join("empty.parquet");
    std::fs::write(&empty, "").unwrap();
    let whole = write_table(&folder.path().join("whole.parquet"), vec![("answer", numbered("a", 500))], 100);
    let bytes = std::fs::read(&whole).unwrap();
    let cut = folder.path().join("cut.parquet");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    // The end of the file with its description, the data gone: every offset points beyond the end.
    let tail = folder.path().join("tail.parquet");
    std::fs::write(&tail, [b"PAR1", &bytes[bytes.len() * 3 / 4..]].concat()).unwrap();
    for path in [&text, &empty, &cut, &tail, &folder.path().to_path_buf()] {
        let error = Table::open(std::slice::from_ref(path), &requests(&["answer"])).unwrap_err();
        assert!(matches!(&error, DataError::Unreadable { path: named, .. } if named == path), "{path:?}: {error:?}");
        assert_eq!(error.fault(), Fault::Input);
    }
    let gone = Table::open(&[folder.path().join("gone.parquet")], &requests(&["answer"])).unwrap_err();
    assert!(matches!(gone, DataError::Io { .. }) && gone.fault() == Fault::Input);
}

#[test]
fn damaged_pages_are_an_error_that_names_file_and_row_group() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_table(&folder.path().join("t.parquet"), vec![("answer", numbered("a", 300))], 100);
    let bytes = std::fs::read(&path).unwrap();
    let table = Table::open(std::slice::from_ref(&path), &requests(&["answer"])).unwrap();
    let scan = || table.scan(&options(&accept_all, None), &mut |_| {});
    let whole = scan().unwrap();
    // The pages of the second row group, overwritten.
    let metadata =
        parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&std::fs::File::open(&path).unwrap());
    let (start, length) = metadata.unwrap().row_group(1).column(0).byte_range();
    let mut damaged = bytes.clone();
    damaged[start as usize..(start + length) as usize].fill(0xFF);
    std::fs::write(&path, &damaged).unwrap();
    let error = scan().unwrap_err();
    assert!(matches!(&error, DataError::Damaged { path: named, row_group: 1, .. } if named == &path), "{error:?}");
    assert_eq!(error.fault(), Fault::Input);

    let mut stream = RowStream::new(Arc::new(table), Arc::new(whole), 0, false).unwrap();
    for _ in 0..100 {
        stream.next_row().unwrap();
    }
    assert!(matches!(stream.next_row(), Err(DataError::Damaged { row_group: 1, .. })));
    assert_eq!(stream.position().index, 100, "a row that failed is not passed over");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(stream.next_row().unwrap().text("answer"), Some("a-100"));
}

#[test]
fn no_byte_of_a_file_can_make_reading_panic() {
    let folder = tempfile::tempdir().unwrap();
    let image = png(6, 6);
    let images = image_structs(&[Some((Some(&image), Some("a"))), None, Some((Some(&image), None))]);
    let words: DictionaryArray<Int32Type> = ["a", "b", "a"].into_iter().collect();
    let columns = vec![("image", images), ("answer", Arc::new(words) as ArrayRef)];
    let path = write_table(&folder.path().join("t.parquet"), columns, 2);
    let bytes = std::fs::read(&path).unwrap();
    let mut asked = requests(&["answer"]);
    asked.push(image_request());
    let mut refused = 0;
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x5B;
        std::fs::write(&path, &damaged).unwrap();
        let outcome = Table::open(std::slice::from_ref(&path), &asked)
            .and_then(|table| table.scan(&options(&accept_all, None), &mut |_| {}));
        refused += usize::from(outcome.is_err());
    }
    assert!(refused > bytes.len() / 10, "{refused} of {} changed bytes were noticed", bytes.len());
}

#[test]
fn more_bad_rows_than_allowed_stop_the_scan() {
    let folder = tempfile::tempdir().unwrap();
    let answers = (0..200).map(|i| if i % 50 == 7 { None } else { Some("yes") });
    let path = write_table(&folder.path().join("t.parquet"), vec![("answer", texts(answers))], 64);
    let table = Table::open(&[path], &requests(&["answer"])).unwrap();
    let scan = |limit| table.scan(&options(&accept_all, Some(limit)), &mut |_| {});
    assert_eq!(scan(BadRowLimit::Count(4)).unwrap().rejected_rows(), 4);
    assert_eq!(scan(BadRowLimit::Share(0.02)).unwrap().rejected().len(), 4);
    assert!(scan(BadRowLimit::Count(3)).is_err());
    let error = scan(BadRowLimit::default()).unwrap_err();
    let DataError::TooManyBadRows { bad: 4, rows: 200, limit: BadRowLimit::Share(_), first } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(
        first.iter().map(|r| (r.id.row_group, r.id.row)).collect::<Vec<_>>(),
        [(0, 7), (0, 57), (1, 43), (2, 29)]
    );
    let message = error.to_string();
    assert!(
        message.starts_with(
            "4 of 200 rows cannot be used, more than `max_bad_rows` = 0.01 allows\n  row 7 of row group 0"
        )
    );
    assert_eq!((error.fault(), error.hints().len()), (Fault::Input, 2));
}

#[test]
fn a_table_without_good_rows_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let limit = Some(BadRowLimit::Share(1.0));
    for (name, column) in [("null", texts([None, None])), ("empty", texts([]))] {
        let path = write_table(&folder.path().join(name), vec![("answer", column)], 10);
        let table = Table::open(&[path], &requests(&["answer"])).unwrap();
        let error = table.scan(&options(&accept_all, limit), &mut |_| {}).unwrap_err();
        assert!(matches!(error, DataError::NoAcceptedRows { .. }), "{error:?}");
        let index = scan_all(&table, &accept_all);
        assert!(RowStream::new(Arc::new(table), Arc::new(index), 0, true).is_err());
    }
}

#[test]
fn a_report_counts_reasons_and_names_rows() {
    let folder = tempfile::tempdir().unwrap();
    let a = texts([Some("x"), None, None, Some(""), Some("y")]);
    let extra: ArrayRef = Arc::new(Int64Array::from(vec![0; 5]));
    let path = write_table(&folder.path().join("t.parquet"), vec![("extra", extra), ("reply", a)], 3);
    let table = Table::open(&[path], &[ColumnRequest::required("answer", "reply", ColumnKind::Text)]).unwrap();
    let mut seen = Vec::new();
    let index =
        table.scan(&options(&accept_all, None), &mut |progress| seen.push((progress.rows, progress.of))).unwrap();
    assert_eq!(seen, [(3, 5), (5, 5)]);
    let report = serde_json::to_value(CheckReport::new(&table, &index)).unwrap();
    assert_eq!((&report["rows"], &report["accepted"], &report["rejected"]), (&5.into(), &2.into(), &3.into()));
    assert_eq!(report["columns"][1], serde_json::json!({"column": "reply", "type": "string", "role": "answer"}));
    assert_eq!(report["columns"][0]["role"], serde_json::Value::Null);
    assert_eq!(report["reasons"][0]["reason"], "`reply` is null");
    assert_eq!(report["reasons"][0]["rows"], 2);
    assert_eq!(report["reasons"][1]["first"][0]["row_group"], 1);
}

#[test]
fn a_folder_under_another_name_reads_its_own_image_files() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("deep");
    let path = write_table(&deep.join("t.parquet"), vec![("image", texts([Some("a.png"), Some("."), Some(" ")]))], 5);
    std::fs::write(deep.join("a.png"), png(4, 4)).unwrap();
    let table = Table::open(&[path], &[image_request()]).unwrap();
    let index = scan_all(&table, &accept_all);
    assert_eq!(
        reasons(&index),
        [
            (1, "the image file `.` of `image` cannot be read: it is not a regular file".to_string()),
            (2, "`image` is null".into())
        ]
    );
    assert!(index.rejected()[0].id.file.ends_with(Path::new("deep/t.parquet")));
}

#[test]
fn a_page_that_claims_gigabytes_is_refused_before_room_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_table(&folder.path().join("t.parquet"), vec![("answer", numbered("a", 300))], 100);
    let mut bytes = std::fs::read(&path).unwrap();
    let metadata =
        parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&std::fs::File::open(&path).unwrap());
    let (start, length) = metadata.unwrap().row_group(2).column(0).byte_range();
    // A data page that unpacks from 30 bytes to 2 GiB: type, sizes, then a header of 100 plain values.
    let header =
        [0x15, 0, 0x15, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 0x15, 60, 0x2C, 0x15, 0xC8, 1, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0];
    assert!(length as usize > header.len() + 30);
    bytes[start as usize..][..header.len()].copy_from_slice(&header);
    std::fs::write(&path, &bytes).unwrap();
    let table = Table::open(&[path], &requests(&["answer"])).unwrap();
    let error = table.scan(&options(&accept_all, None), &mut |_| {}).unwrap_err();
    assert!(
        matches!(
            &error,
            DataError::PageLimit { row_group: 2, bytes: 2_147_483_647, limit_bytes: DEFAULT_PAGE_BYTES, .. }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("`data_limits.max_page_bytes` allows 536870912"), "{error}");
    assert!(error.hints()[0].contains("data_limits.max_page_bytes=2147483647"));
}

#[test]
fn a_dictionary_above_the_limit_is_named_with_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_table(&folder.path().join("t.parquet"), vec![("answer", numbered("a", 300))], 300);
    let scan = |max_page_bytes: u64| {
        let options = ReadOptions { max_page_bytes, ..ReadOptions::default() };
        let table = Table::open_with(&[FileSource::Local(path.clone())], &[requests(&["answer"])], options).unwrap();
        let scanned = table.scan(&self::options(&accept_all, None), &mut |_| {});
        scanned.map(|index| index.accepted_rows())
    };
    let error = scan(1000).unwrap_err();
    let DataError::PageLimit { is_dictionary: true, bytes, .. } = error else { panic!("{error}") };
    assert!(error.to_string().contains("a dictionary page of column `answer`"), "{error}");
    assert_eq!(
        error.hints()[0],
        format!("if you trust the file and have the memory: `data_limits.max_page_bytes={bytes}`")
    );
    assert!(error.hints()[1].contains("use_dictionary=False"), "{:?}", error.hints());
    assert_eq!(scan(bytes).unwrap(), 300);
}

/// As polars writes a column of 128-bit integers: a type in its note that the `arrow` crate does not know.
#[test]
fn a_column_of_an_unknown_type_keeps_no_other_from_being_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let fields = |wide: DataType| {
        Schema::new(vec![
            Field::new("answer", DataType::Utf8, true),
            Field::new("label", DataType::Int64, true),
            Field::new("wide", wide, true),
        ])
    };
    let noted = parquet::arrow::encode_arrow_schema(&fields(DataType::Int64));
    let mut noted = BASE64_STANDARD.decode(noted).unwrap();
    let widths: Vec<usize> = (0..noted.len() - 4).filter(|at| noted[*at..at + 4] == [64, 0, 0, 0]).collect();
    widths.iter().for_each(|at| noted[*at] = 128);
    assert!(!widths.is_empty());
    let features = r#"{"info": {"features": {"label": {"names": ["bolt", "nut"], "_type": "ClassLabel"}}}}"#;
    let note = |key: &str, value: String| KeyValue { key: key.into(), value: Some(value) };
    let notes = vec![note("ARROW:schema", BASE64_STANDARD.encode(noted)), note("huggingface", features.into())];
    let columns: Vec<ArrayRef> = vec![
        numbered("a", 2),
        Arc::new(Int64Array::from(vec![1, 0])),
        Arc::new(FixedSizeBinaryArray::try_from_iter([[0u8; 16], [1; 16]].into_iter()).unwrap()),
    ];
    let batch = RecordBatch::try_new(fields(DataType::FixedSizeBinary(16)).into(), columns).unwrap();
    let properties = WriterProperties::builder().set_key_value_metadata(Some(notes)).build();
    let written = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new_with_options(file, batch.schema(), written).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let stock = janus_core::guard::catch(|| ArrowReaderMetadata::load(&file, Default::default()));
    assert!(!matches!(stock, Ok(Ok(_))), "the note is understood");

    let asked = [
        ColumnRequest::required("answer", "answer", ColumnKind::Text),
        ColumnRequest::required("label", "label", ColumnKind::Label),
    ];
    let rows = rows_of(Table::open(std::slice::from_ref(&path), &asked).unwrap());
    let found: Vec<_> = rows.iter().map(|row| (row.text("answer").unwrap(), row.text("label").unwrap())).collect();
    assert_eq!(found, [("a-0", "nut"), ("a-1", "bolt")]);
    let wide = [ColumnRequest::required("label", "wide", ColumnKind::Label)];
    let error = Table::open(&[path], &wide).unwrap_err();
    assert!(error.to_string().contains("column `wide` (for label) has type `fixed_size_binary[16]`"), "{error}");
    assert!(!error.hints().iter().any(|hint| hint.contains("cut short")), "{:?}", error.hints());
}
