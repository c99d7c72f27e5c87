//! Tables as other writers spell them: types, paths, pages, conversations, formats.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, FixedSizeListArray, Float16Array, Float64Array, Int32Array, Int64Array,
    LargeListArray, LargeListViewArray, ListViewArray, RecordBatch, StringArray, UInt8Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use half::f16;
use janus_core::{Diagnose, Fault};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::{WriterProperties, WriterVersion};

use super::error::DataError;
use super::index::Table;
use super::reader::{Asker, ReadOptions};
use super::schema::{ColumnKind, ColumnRequest};
use super::source::{FileSource, resolve};
use super::stream::RowStream;
use super::testing::*;

fn bytes(values: &[&[u8]]) -> ArrayRef {
    Arc::new(BinaryArray::from_iter_values(values))
}

#[test]
fn columns_and_fields_of_nulls_are_nulls_of_any_type() {
    let folder = tempfile::tempdir().unwrap();
    let picture = png(6, 4);
    let two = [picture.as_slice(), picture.as_slice()];
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("image", structure(vec![("bytes", bytes(&two)), ("path", nulls(2))])),
        ("images", list(&[1, 1], structure(vec![("bytes", bytes(&two)), ("path", nulls(2))]))),
        ("question", nulls(2)),
        ("boxes", list(&[0, 0], list(&[], nulls(0)))),
        ("bare boxes", list(&[0, 0], nulls(0))),
        ("labels", list(&[0, 0], nulls(0))),
    ];
    let path = write_table(&folder.path().join("a.parquet"), columns, 5);
    let asked = [
        required("image", "image", ColumnKind::Image),
        required("images", "images", ColumnKind::ImageList),
        ColumnRequest::optional("question", "question", ColumnKind::Text),
        ColumnRequest::optional("messages", "question", ColumnKind::Messages),
        required("boxes", "boxes", ColumnKind::Boxes),
        required("bare", "bare boxes", ColumnKind::Boxes),
        required("labels", "labels", ColumnKind::TextList),
    ];
    let rows = rows_of(Table::open(&[path], &asked).unwrap());
    assert_eq!(rows.len(), 2);
    for row in &rows {
        assert_eq!((&row.image("image").unwrap().bytes, &row.image("images").unwrap().bytes), (&picture, &picture));
        assert_eq!((row.text("question"), row.messages.len(), &row.lists["labels"][..]), (None, 0, &[][..]));
        assert!(row.boxes["boxes"].is_empty() && row.boxes["bare"].is_empty());
    }
    // A shard of nulls beside one of texts, and what must be there and is null.
    let texts = write_table(&folder.path().join("b.parquet"), vec![("question", numbered("q", 2))], 5);
    let empty = write_table(&folder.path().join("c.parquet"), vec![("question", nulls(2))], 5);
    let table = Table::open(&[texts, empty.clone()], &requests(&["question"])).unwrap();
    assert_eq!(rows_of(table).iter().map(|row| row.text("question").unwrap()).collect::<Vec<_>>(), ["q-0", "q-1"]);
    for kind in [ColumnKind::Text, ColumnKind::Image, ColumnKind::Boxes, ColumnKind::Messages, ColumnKind::TextList] {
        assert_eq!(reason(empty.clone(), required("x", "question", kind)), "`question` is null", "{kind:?}");
    }
    let pathless = structure(vec![("bytes", nulls(1)), ("path", nulls(1))]);
    let path = write_table(&folder.path().join("d.parquet"), vec![("image", pathless)], 5);
    assert_eq!(reason(path, image_request()), "`image` is null");
}

#[test]
fn what_lies_below_nulls_is_null() {
    let folder = tempfile::tempdir().unwrap();
    let boxes = list(&[1, 1], list(&[4, 4], Arc::new(Int32Array::from_iter_values(0..8))));
    let whole = structure(vec![("bbox", boxes)]);
    let whole = write_table(&folder.path().join("a.parquet"), vec![("objects", whole)], 5);
    let asked = [required("boxes", "objects.bbox", ColumnKind::Boxes)];
    for (number, empty) in
        [nulls(2), list(&[0, 0], nulls(0)), structure(vec![("bbox", nulls(2))])].into_iter().enumerate()
    {
        let path = write_table(&folder.path().join(format!("{number}.parquet")), vec![("objects", empty)], 5);
        let rows = rows_of(Table::open(&[whole.clone(), path.clone()], &asked).unwrap());
        assert_eq!(rows[..2].iter().map(|row| row.boxes["boxes"].len()).collect::<Vec<_>>(), [1, 1], "{number}");
        assert!(rows[2..].iter().all(|row| row.boxes["boxes"].is_empty()), "{number}");
    }
    let qa = write_table(&folder.path().join("qa.parquet"), vec![("qa", nulls(2)), ("answer", numbered("a", 2))], 5);
    let optional = ColumnRequest::optional("question", "qa.question", ColumnKind::Text);
    let asked = [optional, required("answer", "answer", ColumnKind::Text)];
    let rows = rows_of(Table::open(&[qa], &asked).unwrap());
    assert_eq!(rows.iter().map(|row| row.text("question")).collect::<Vec<_>>(), [None, None]);
}

#[test]
fn files_that_fit_different_columns_are_both_named() {
    let folder = tempfile::tempdir().unwrap();
    let picture = png(6, 4);
    let two = [picture.as_slice(), picture.as_slice()];
    let single = write_table(&folder.path().join("t-0.parquet"), vec![("image", bytes(&two))], 5);
    let many = write_table(&folder.path().join("t-1.parquet"), vec![("images", list(&[1, 1], bytes(&two)))], 5);
    let alternatives = [
        vec![required("image", "image", ColumnKind::Image)],
        vec![required("images", "images", ColumnKind::ImageList)],
    ];
    for (files, column) in [([&single, &many], "image"), ([&many, &single], "images")] {
        let sources = files.map(|path| FileSource::Local(path.clone()));
        let error = Table::open_with(&sources, &alternatives, ReadOptions::default()).unwrap_err();
        let (with, without) = (files[0].display(), files[1].display());
        assert_eq!(error.to_string(), format!("column `{column}` is in `{with}` but not in `{without}`"));
        assert!(!error.hints().is_empty());
    }
}

#[test]
fn numbers_with_names_in_only_some_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let names = r#"{"info": {"features": {"label": {"names": ["bolt", "nut"], "_type": "ClassLabel"}}}}"#;
    let write = |name: &str, label: ArrayRef, names: Option<&str>| {
        let schema = Schema::new(vec![Field::new("label", label.data_type().clone(), true)]);
        let metadata: std::collections::HashMap<_, _> =
            names.map(|names| ("huggingface".to_owned(), names.to_owned())).into_iter().collect();
        let batch = RecordBatch::try_new(schema.with_metadata(metadata).into(), vec![label]).unwrap();
        let path = folder.path().join(name);
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        path
    };
    let numbers = |values: &[i64]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
    let named = write("named.parquet", numbers(&[0, 1]), Some(names));
    let asked = [required("label", "label", ColumnKind::Label)];
    for (number, label) in
        [numbers(&[0, 1]), cast(&numbers(&[1, 0]), &DataType::UInt8).unwrap()].into_iter().enumerate()
    {
        let bare = write(&format!("bare-{number}.parquet"), label, None);
        for files in [[named.clone(), bare.clone()], [bare.clone(), named.clone()]] {
            let error = Table::open(&files, &asked).unwrap_err().to_string();
            assert!(["named.parquet", "bare-", "`label`"].iter().all(|part| error.contains(part)), "{error}");
        }
    }
    let permuted = names.replace(r#""bolt", "nut""#, r#""nut", "bolt""#);
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["nut", "bolt"]));
    for other in [
        write("permuted.parquet", numbers(&[1, 0]), Some(&permuted)),
        write("texts.parquet", texts, None),
        write("nulls.parquet", nulls(2), None),
        write("none.parquet", numbers(&[]), None),
    ] {
        let rows = rows_of(Table::open(&[named.clone(), other.clone()], &asked).unwrap());
        assert_eq!(rows[0].text("label"), Some("bolt"), "{}", other.display());
    }
}

/// One box and two, with numbers of every type and in lists of every kind.
#[test]
fn boxes_are_the_same_in_every_type_of_list_and_number() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f64> = (1..=12).map(f64::from).collect();
    let floats: ArrayRef = Arc::new(Float64Array::from(values.clone()));
    let halves: ArrayRef = Arc::new(Float16Array::from_iter_values(values.iter().map(|v| f16::from_f64(*v))));
    let of = |numbers: &ArrayRef| list(&[1, 2], list(&[4, 4, 4], numbers.clone()));
    let mut columns: Vec<(String, ArrayRef)> = vec![("half".into(), of(&halves)), ("double".into(), of(&floats))];
    for data_type in [
        DataType::Int8,
        DataType::UInt8,
        DataType::UInt16,
        DataType::Int32,
        DataType::UInt64,
        DataType::Float32,
        DataType::Decimal128(9, 3),
        DataType::Decimal32(7, 1),
        DataType::Decimal256(40, 2),
    ] {
        columns.push((format!("{data_type}"), of(&cast(&floats, &data_type).unwrap())));
    }
    let field = || Arc::new(Field::new("item", DataType::Float64, true));
    let fixed: ArrayRef = Arc::new(FixedSizeListArray::new(field(), 4, floats.clone(), None));
    columns.push(("fixed".into(), list(&[1, 2], fixed)));
    let large: ArrayRef =
        Arc::new(LargeListArray::new(field(), OffsetBuffer::from_lengths([4, 4, 4]), floats.clone(), None));
    columns.push(("large".into(), list(&[1, 2], large)));
    let (starts, sizes) = (vec![0, 4, 8], vec![4, 4, 4]);
    let view: ArrayRef = Arc::new(ListViewArray::new(field(), starts.into(), sizes.into(), floats.clone(), None));
    columns.push(("view".into(), list(&[1, 2], view)));
    let large_view: ArrayRef =
        Arc::new(LargeListViewArray::new(field(), vec![0, 4, 8].into(), vec![4, 4, 4].into(), floats, None));
    columns.push(("large view".into(), list(&[1, 2], large_view)));
    let written = columns.iter().map(|(name, array)| (name.as_str(), array.clone())).collect();
    let path = write_table(&folder.path().join("t.parquet"), written, 5);
    for (name, _) in &columns {
        let asked = [required("boxes", name, ColumnKind::Boxes)];
        let rows = rows_of(Table::open(std::slice::from_ref(&path), &asked).unwrap());
        assert_eq!(rows[0].boxes["boxes"], [[1.0, 2.0, 3.0, 4.0]], "{name}");
        assert_eq!(rows[1].boxes["boxes"], [[5.0, 6.0, 7.0, 8.0], [9.0, 10.0, 11.0, 12.0]], "{name}");
    }
}

#[test]
fn labels_are_names_numbers_or_truth_values() {
    let folder = tempfile::tempdir().unwrap();
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 0, 1]));
    let objects = structure(vec![
        ("category", list(&[1, 1, 0], Arc::new(Int64Array::from(vec![0, 1])))),
        ("bbox", list(&[1, 1, 0], list(&[4, 4], Arc::new(Int32Array::from_iter_values(0..8))))),
    ]);
    let things = list(&[1, 1, 0], structure(vec![("category", Arc::new(Int64Array::from(vec![0, 1])) as ArrayRef)]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("named", numbers.clone()),
        ("small", cast(&numbers, &DataType::UInt8).unwrap()),
        ("float", Arc::new(Float64Array::from(vec![Some(1.0), Some(0.0), None]))),
        ("bare", numbers),
        ("truth", Arc::new(BooleanArray::from(vec![true, false, true]))),
        ("beyond", Arc::new(Int64Array::from(vec![2, -1, 0]))),
        ("many", list(&[2, 0, 1], Arc::new(UInt8Array::from(vec![1, 0, 1])))),
        ("objects", objects),
        ("things", things),
    ];
    let label = r#"{"names": ["bolt", "nut"], "_type": "ClassLabel"}"#;
    let features = format!(
        r#"{{"info": {{"features": {{"named": {label}, "small": {label}, "float": {label}, "beyond": {label},
            "many": {{"feature": {label}, "_type": "Sequence"}},
            "objects": {{"feature": {{"category": {label}}}, "_type": "Sequence"}},
            "things": {{"feature": {{"category": {label}}}, "_type": "List"}} }}}}}}"#
    );
    let fields: Vec<Field> = columns.iter().map(|(name, a)| Field::new(*name, a.data_type().clone(), true)).collect();
    let schema =
        Schema::new(fields).with_metadata(std::collections::HashMap::from([("huggingface".to_owned(), features)]));
    let batch = RecordBatch::try_new(schema.into(), columns.into_iter().map(|(_, array)| array).collect()).unwrap();
    let path = folder.path().join("t.parquet");
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();

    let open = |request: ColumnRequest| Table::open(std::slice::from_ref(&path), &[request]).unwrap();
    let texts = |name: &str, kind| -> Vec<String> {
        rows_of(open(ColumnRequest::optional("x", name, kind)))
            .iter()
            .map(|row| row.text("x").unwrap_or("-").into())
            .collect()
    };
    for (name, expected) in [
        ("named", ["nut", "bolt", "nut"]),
        ("small", ["nut", "bolt", "nut"]),
        ("float", ["nut", "bolt", "-"]),
        ("bare", ["1", "0", "1"]),
        ("truth", ["true", "false", "true"]),
    ] {
        assert_eq!(texts(name, ColumnKind::Label), expected, "{name}");
    }
    assert_eq!(texts("named", ColumnKind::Text), ["nut", "bolt", "nut"], "an answer may be a label");
    assert!(Table::open(std::slice::from_ref(&path), &[required("x", "bare", ColumnKind::Text)]).is_err());
    let index = scan_all(&open(required("x", "beyond", ColumnKind::Label)), &accept_all);
    let reasons: Vec<String> = index.rejected().iter().map(|row| row.fault.to_string()).collect();
    assert_eq!(
        reasons,
        ["2", "-1"].map(|n| format!("the label {n} in `beyond` has no name: the file has 2, counted from 0"))
    );
    let lists = |name: &str| -> Vec<Vec<String>> {
        rows_of(open(required("x", name, ColumnKind::TextList))).iter().map(|row| row.lists["x"].clone()).collect()
    };
    assert_eq!(lists("many"), [vec!["nut", "bolt"], vec![], vec!["nut"]]);
    assert_eq!(lists("objects.category"), [vec!["bolt"], vec!["nut"], vec![]]);
    assert_eq!(lists("things.category"), [vec!["bolt"], vec!["nut"], vec![]]);
    let rows = rows_of(open(required("x", "objects.bbox", ColumnKind::Boxes)));
    assert_eq!(rows[1].boxes["x"], [[4.0, 5.0, 6.0, 7.0]]);
}

#[test]
fn paths_lead_where_they_may() {
    let outer = tempfile::tempdir().unwrap();
    let (table, root) = (outer.path().join("table"), outer.path().join("pictures"));
    let picture = png(8, 6);
    for place in [&table, &root, &outer.path().to_path_buf()] {
        std::fs::create_dir_all(place).unwrap();
        std::fs::write(place.join("a.png"), &picture).unwrap();
    }
    let absolute = |place: &Path| place.join("a.png").to_str().unwrap().to_owned();
    let paths = [
        "a.png".into(),
        absolute(&table),
        "../pictures/a.png".into(),
        absolute(&root),
        "../a.png".into(),
        absolute(outer.path()),
    ];
    let column = texts(paths.iter().map(|path| Some(path.as_str())));
    let path = write_table(&table.join("t.parquet"), vec![("image", column)], 10);
    let accepted = |image_root: Option<&Path>| {
        let options = ReadOptions { image_root: image_root.map(Into::into), ..ReadOptions::default() };
        let table = Table::open_with(&[FileSource::Local(path.clone())], &[vec![image_request()]], options).unwrap();
        let index = scan_all(&table, &accept_all);
        let bad: Vec<usize> = index.rejected().iter().map(|row| row.id.row).collect();
        let reasons: Vec<String> = index.rejected().iter().map(|row| row.fault.to_string()).collect();
        (bad, reasons)
    };
    let (bad, reasons) = accepted(None);
    assert_eq!(bad, [2, 3, 4, 5]);
    assert!(reasons.iter().all(|reason| reason.contains("`image_root` in the recipe's `[[data]]`")), "{reasons:?}");
    let (bad, reasons) = accepted(Some(&root));
    assert_eq!(bad, [4, 5]);
    assert!(
        reasons[0].contains("nor below `image_root` in the recipe's `[[data]]`, `") && reasons[0].contains("pictures"),
        "{reasons:?}"
    );
    assert_eq!(accepted(Some(outer.path())).0, [0; 0]);
    let gone = ReadOptions { image_root: Some(outer.path().join("gone")), ..ReadOptions::default() };
    let error = Table::open_with(&[FileSource::Local(path)], &[vec![image_request()]], gone).unwrap_err();
    assert!(matches!(error, DataError::ImageRoot { .. }) && error.fault() == Fault::Input, "{error}");
}

#[test]
fn columns_of_one_file_alone_are_not_proposed() {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |name: &str, column: &str| write_table(&folder.path().join(name), vec![(column, texts([Some("a")]))], 5);
    let (whole, other) = (write("a.parquet", "answer"), write("b.parquet", "answr"));
    let asked = requests(&["answer"]);
    for files in [[&whole, &other], [&other, &whole]] {
        let error = Table::open(&files.map(Clone::clone), &asked).unwrap_err();
        let told = format!("{error}; {:?}", error.hints());
        assert!(told.contains("need the same columns") && !told.contains("did you mean"), "{told}");
        assert!(told.contains("a.parquet") && told.contains("b.parquet"), "{told}");
    }
    let alone = Table::open(&[other], &asked).unwrap_err();
    assert!(alone.hints()[0].contains("did you mean `answr`"), "{:?}", alone.hints());
}

#[test]
fn a_table_of_the_command_line_is_told_of_options() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("table");
    let absolute = outer.path().join("a.png");
    std::fs::write(&absolute, png(8, 6)).unwrap();
    let column = texts(["b.png", "../a.png", absolute.to_str().unwrap()].map(Some));
    let path = write_table(&folder.join("t.parquet"), vec![("image", column)], 10);
    let open = |asker: Asker, image_root: Option<&str>, column: &str| {
        let image_root = image_root.map(|name| outer.path().join(name));
        let options = ReadOptions { asker, image_root, ..ReadOptions::default() };
        let asked = vec![required("image", column, ColumnKind::Image)];
        Table::open_with(&[FileSource::Local(path.clone())], &[asked], options)
    };
    for (asker, expected, other) in
        [(Asker::Command, "`--image-root`", "recipe"), (Asker::Recipe, "`image_root` in the recipe's", "--image-root")]
    {
        for root in [None, Some("table")] {
            let index = scan_all(&open(asker, root, "image").unwrap(), &accept_all);
            assert_eq!(index.rejected_rows(), 3);
            for row in index.rejected() {
                let reason = row.fault.to_string();
                assert!(reason.contains(expected) && !reason.contains(other), "{reason}");
            }
        }
        let fault = open(asker, Some("gone"), "image").unwrap_err();
        let told = format!("{fault} {:?}", fault.hints());
        assert!(told.contains(expected.trim_matches('`')) && !told.contains(other), "{told}");
    }
    let hints = open(Asker::Command, None, "picture").unwrap_err().hints();
    assert_eq!(hints, ["did you mean `image`? say `--column image=image`"]);
    let fault = DataError::NoAcceptedRows {
        rows: 3,
        first: scan_all(&open(Asker::Command, None, "image").unwrap(), &accept_all).rejected().to_vec(),
    };
    assert!(fault.hints()[0].contains("`[[data]]`"));
    assert!(DataError::OnCommandLine(fault.into()).hints()[0].contains("`--image-root FOLDER`"));
}

#[test]
fn what_is_no_path_is_named_and_never_shown_whole() {
    let folder = tempfile::tempdir().unwrap();
    let long = "iVBORw0KGgo".to_owned() + &"A".repeat(1 << 20);
    let uri = format!("data:image/png;base64,{long}");
    let values = ["https://example.com/a.png", "file:///data/a.png", &uri, &long, "pictures\\a.png", "gone.png"];
    let expected = [
        "is a URL, and pictures are not downloaded",
        "is a `file:` URL: write the path alone",
        "is a data URI: store the bytes",
        "is a picture in base64: store its bytes",
        "folders in it are to be parted by `/`",
        "there is no such file",
    ];
    let plain = texts(values.iter().map(|value| Some(*value)));
    let within = structure(vec![("bytes", nulls(values.len())), ("path", plain.clone())]);
    for (name, column) in [("plain.parquet", plain), ("struct.parquet", within)] {
        let path = write_table(&folder.path().join(name), vec![("image", column)], 10);
        let index = scan_all(&Table::open(&[path], &[image_request()]).unwrap(), &accept_all);
        assert_eq!(index.rejected_rows(), values.len());
        for (row, expected) in index.rejected().iter().zip(expected) {
            let reason = row.fault.to_string();
            assert!(reason.contains(expected) && reason.len() < 500, "{reason}");
            assert!(row.fault.group().len() < 200);
        }
    }
    let column = bytes(&[uri.as_bytes(), long.as_bytes(), b"https://example.com/a.png"]);
    let path = write_table(&folder.path().join("bytes.parquet"), vec![("image", column)], 10);
    let index = scan_all(&Table::open(&[path], &[image_request()]).unwrap(), &accept_all);
    for (row, expected) in index.rejected().iter().zip(["is a data URI", "is a picture in base64", "is a URL"]) {
        let reason = row.fault.to_string();
        assert!(reason.contains(expected) && reason.len() < 500, "{reason}");
    }
    assert_eq!(index.rejected_rows(), 3);
}

/// 40 values of 300 kB that do not pack, and 72 MiB of bitmaps that pack a thousandfold, in every encoding, codec and version.
#[test]
fn ordinary_files_of_any_writer_pass() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = 1_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    };
    let photos: Vec<Vec<u8>> = (0..40).map(|_| noise(300_000)).collect();
    let bitmaps: Vec<Vec<u8>> = (0..8).map(|n| [b"BM".to_vec(), vec![n; 9 << 20]].concat()).collect();
    let levels = (Default::default(), Default::default(), Default::default());
    let cases = [
        (&photos, Encoding::DELTA_BYTE_ARRAY, Compression::UNCOMPRESSED),
        (&photos, Encoding::DELTA_LENGTH_BYTE_ARRAY, Compression::SNAPPY),
        (&photos, Encoding::PLAIN, Compression::LZ4_RAW),
        (&bitmaps, Encoding::DELTA_BYTE_ARRAY, Compression::ZSTD(levels.0)),
        (&bitmaps, Encoding::PLAIN, Compression::ZSTD(levels.0)),
        (&bitmaps, Encoding::PLAIN, Compression::GZIP(levels.1)),
        (&bitmaps, Encoding::DELTA_LENGTH_BYTE_ARRAY, Compression::BROTLI(levels.2)),
    ];
    for (number, (values, encoding, compression)) in cases.into_iter().enumerate() {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let array: ArrayRef = Arc::new(BinaryArray::from_iter_values(values));
            let array = list(&vec![1; values.len()], array);
            let batch = RecordBatch::try_from_iter([("images", array)]).unwrap();
            let properties = WriterProperties::builder()
                .set_writer_version(version)
                .set_compression(compression)
                .set_dictionary_enabled(false)
                .set_encoding(encoding)
                .set_data_page_size_limit(256 << 20)
                .set_write_batch_size(1024)
                .build();
            let path = folder.path().join("t.parquet");
            let file = File::create(&path).unwrap();
            let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
            let table = Table::open(&[path], &[required("images", "images", ColumnKind::ImageList)]).unwrap();
            // The pictures are none; what counts is that every row is read to its end.
            let mut options = options(&accept_all, None);
            options.images.dimensions = |_| Ok((1, 1));
            options.images.decode = |_| Ok(());
            let index = table.scan(&options, &mut |_| {}).unwrap_or_else(|e| panic!("{number} {version:?}: {e}"));
            assert_eq!(index.accepted_rows(), values.len(), "{number} {version:?}");
            let mut stream = RowStream::new(Arc::new(table), Arc::new(index), 0, false).unwrap();
            for value in values {
                assert!(stream.next_row().unwrap().image("images").unwrap().bytes == *value, "{number} {version:?}");
            }
        }
    }
}

/// 3000 values that are the same 20 kB but for their last letter: 60 MB out of a page of some 100 kB.
#[test]
fn the_limit_on_pages_bounds_what_front_coded_values_come_to() {
    let folder = tempfile::tempdir().unwrap();
    let start = "x".repeat(20_000);
    let values: Vec<String> = (0..3000).map(|n| format!("{start}{n}")).collect();
    let array: ArrayRef = Arc::new(StringArray::from_iter_values(&values));
    let batch = RecordBatch::try_from_iter([("answer", array)]).unwrap();
    let path = folder.path().join("t.parquet");
    let properties = WriterProperties::builder().set_dictionary_enabled(false).set_encoding(Encoding::DELTA_BYTE_ARRAY);
    let mut writer =
        ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    let scan = |max_page_bytes| {
        let options = ReadOptions { max_page_bytes, ..ReadOptions::default() };
        let table = Table::open_with(&[FileSource::Local(path.clone())], &[requests(&["answer"])], options).unwrap();
        table.scan(&super::testing::options(&accept_all, None), &mut |_| {}).map(|index| index.accepted_rows())
    };
    assert_eq!(scan(512 << 20).unwrap(), 3000);
    let error = scan(10 << 20).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("column `answer`") && message.contains("`data_limits.max_page_bytes` allows 10485760"),
        "{message}"
    );
    assert!(
        !message.contains("damaged") && error.hints()[0].contains("data_limits.max_page_bytes="),
        "{:?}",
        error.hints()
    );
    assert_eq!(error.fault(), Fault::Input);
}

#[test]
fn a_repeated_column_is_refused_where_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let columns = vec![("answer", numbered("a", 2)), ("answer", numbered("b", 2)), ("other", numbered("c", 2))];
    let path = write_table(&folder.path().join("t.parquet"), columns, 5);
    let error = Table::open(std::slice::from_ref(&path), &requests(&["answer"])).unwrap_err();
    assert!(error.to_string().contains("there are 2 columns `answer` (for answer), expected one"), "{error}");
    assert!(error.hints()[0].contains("rename"), "{:?}", error.hints());
    assert_eq!(rows_of(Table::open(&[path], &requests(&["other"])).unwrap()).len(), 2);
}

#[test]
fn other_formats_are_named_with_how_to_convert_them() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    let write = |name: &str, bytes: &[u8]| {
        let path = base.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    };
    write("rows.jsonl", b"{\"a\": 1}\n{\"a\": 2}\n");
    write("rows.json", b"\xEF\xBB\xBF[{\"a\": 1}]");
    write("rows.csv", b"a,b\n1,2\n");
    write("rows.arrow", b"ARROW1\0\0rest");
    write("cache.arrow", b"\xFF\xFF\xFF\xFF\x10\0\0\0");
    write("rows.zip", b"PK\x03\x04....");
    write("rows.xlsx", b"PK\x03\x04....");
    write("page.parquet", b"<!DOCTYPE html><html>");
    write("saved/dataset_info.json", b"{}");
    write("saved/state.json", b"{}");
    write("saved/data-00000-of-00001.arrow", b"\xFF\xFF\xFF\xFF\x10\0\0\0");
    write("splits/dataset_dict.json", b"{}");
    write("splits/train/state.json", b"{}");
    write("lines/train.jsonl", b"{\"a\": 1}\n");
    write("pictures/a.png", &png(3, 3));
    for (name, what, python) in [
        ("rows.jsonl", "JSON Lines", "load_dataset('json', data_files='"),
        ("rows.json", "JSON", "load_dataset('json', data_files='"),
        ("rows.csv", "CSV", "pandas.read_csv('"),
        ("rows.arrow", "an Arrow IPC file", "pa.ipc.open_file("),
        ("cache.arrow", "an Arrow IPC stream", "pa.ipc.open_stream("),
        ("rows.zip", "a zip archive", ""),
        ("rows.xlsx", "an Excel workbook", "pandas.read_excel('"),
        ("page.parquet", "an HTML page", ""),
        ("saved", "a folder of `save_to_disk`", "load_from_disk('"),
        ("splits", "with several splits", "['train'].to_parquet('"),
        ("lines", "JSON Lines", "train.jsonl', split='train').to_parquet('"),
        ("pictures", "a folder of pictures", "'imagefolder', data_dir='"),
    ] {
        let error = resolve(name, base).and_then(|files| Table::open(&files, &requests(&["a"]))).unwrap_err();
        let hints = error.hints();
        assert!(matches!(error, DataError::NotParquet { .. }) && error.to_string().contains(what), "{name}: {error}");
        assert_eq!((error.fault(), hints.len()), (Fault::Input, 1), "{name}");
        let converts = hints[0].contains(python) && hints[0].contains(".parquet'");
        assert!(if python.is_empty() { hints[0].contains("`to_parquet`") } else { converts }, "{name}: {hints:?}");
    }
}
