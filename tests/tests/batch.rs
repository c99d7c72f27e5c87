//! `janus batch`: whole tables through the engine.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Int32Array, LargeBinaryArray, LargeStringArray, RecordBatch,
    TimestampMillisecondArray,
};
use arrow::datatypes::{Field, Int8Type, Schema};
use janus_tests::program::command;
use janus_tests::rows::{images, integers, optional_texts, picture, texts, write_table};
use janus_tests::tiny::Workplace;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

const ADAPTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../adapters/inspection");
const MEDICAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../adapters/medical");

fn lines(place: &Workplace, name: &str) -> Vec<Value> {
    let text = String::from_utf8(place.read(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn table(path: &Path) -> Vec<RecordBatch> {
    let file = std::fs::File::open(path).unwrap();
    ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().map(Result::unwrap).collect()
}

fn names(batch: &RecordBatch) -> Vec<String> {
    batch.schema().fields().iter().map(|field| field.name().clone()).collect()
}

/// Rows of pictures and questions, of which every hundredth is bad in one of four ways.
fn questions(place: &Workplace, name: &str, rows: usize) -> usize {
    let asked = ["What is there?", "What should be done?", "Which part is it?", "Is it whole?"];
    let long = "word ".repeat(6000);
    let mut bad = 0;
    let (mut pictures, mut texts) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let is_bad = row % 100 == 57;
        let kind = bad % 4;
        bad += usize::from(is_bad);
        pictures.push(match (is_bad, kind) {
            (true, 0) => None,
            (true, 1) => Some(b"no picture".to_vec()),
            _ => Some(picture(24, 20, row as u32 % 7)),
        });
        texts.push(Some(match (is_bad, kind) {
            (true, 2) => long.as_str(),
            (true, 3) => "What is <video>?",
            _ => asked[row % 4],
        }));
    }
    let columns = vec![
        ("number", integers((0..rows as i64).map(|row| row * row))),
        ("image", images(&pictures)),
        ("question", optional_texts(&texts)),
        ("answer", optional_texts(&vec![Some("expected"); rows])),
    ];
    write_table(&place.path(name), columns, 64);
    bad
}

const QUESTIONS: &[&str] =
    &["batch", "--base", "janus-nano", "--task", "understand", "--input", "rows.parquet", "--max-new-tokens", "6"];

#[test]
fn a_table_comes_out_with_its_columns_and_its_answers() {
    let place = Workplace::empty();
    let bad = questions(&place, "rows.parquet", 200);
    let done = place.janus(&[QUESTIONS, &["--out", "out.jsonl", "--json"]].concat()).expect_success().json();
    assert_eq!(done, json!({ "out": "out.jsonl", "rows": 200, "failed": bad, "resumed": 0 }));
    let rows = lines(&place, "out.jsonl");
    assert_eq!(rows.len(), 200);
    let keys: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["number", "image", "question", "input_answer", "answer", "error"]);
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row["number"], json!(number * number));
        assert_eq!(row["input_answer"], "expected");
        let (answer, error) = (row["answer"].as_str(), row["error"].as_str());
        assert!(answer.is_some() != error.is_some() && (number % 100 == 57) == error.is_some(), "{row}");
        // The same questions one at a time.
        if number < 3 {
            std::fs::write(place.path("one.png"), picture(24, 20, number as u32 % 7)).unwrap();
            let question = row["question"].as_str().unwrap();
            let ask = ["understand", "--base", "janus-nano", "--image", "one.png", question, "--max-new-tokens", "6"];
            let told = place.janus(&[&ask[..], &["--json"]].concat()).expect_success().json();
            assert_eq!(told["text"], row["answer"]);
        }
    }
    let errors: Vec<&str> = rows.iter().filter_map(|row| row["error"].as_str()).collect();
    assert!(errors[0].contains("null") && errors[1].contains("image"), "{errors:?}");

    place.janus(&[QUESTIONS, &["--out", "out.parquet"]].concat()).expect_success();
    let batches = table(&place.path("out.parquet"));
    assert_eq!(names(&batches[0]), ["number", "image", "question", "input_answer", "answer", "error"]);
    let answers: Vec<Option<String>> = batches
        .iter()
        .flat_map(|batch| {
            let column = arrow::array::AsArray::as_string::<i32>(batch.column(4).as_ref());
            column.iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>()
        })
        .collect();
    let of_lines: Vec<Option<String>> = rows.iter().map(|row| row["answer"].as_str().map(str::to_owned)).collect();
    assert_eq!(answers, of_lines);
    // What came out is a table that can be asked again.
    let again =
        ["batch", "--base", "janus-nano", "--task", "understand", "--input", "out.parquet", "--out", "again.jsonl"];
    let done = place.janus(&[&again[..], &["--max-new-tokens", "6", "--json"]].concat()).expect_success().json();
    assert_eq!(done["failed"], bad);
    let rows = lines(&place, "again.jsonl");
    assert!(rows[0].get("input_answer").is_some() && rows[0].get("input_input_answer").is_some(), "{}", rows[0]);
    assert!(!place.path("out.jsonl.answers").exists());
}

#[test]
fn columns_keep_their_types_and_what_the_file_says_of_them() {
    let place = Workplace::empty();
    let words: DictionaryArray<Int8Type> = ["red", "blue", "red"].into_iter().collect();
    let zoned = TimestampMillisecondArray::from(vec![Some(0), None, Some(i64::MAX)]).with_timezone("Europe/Berlin");
    let long = LargeStringArray::from(vec!["a", "b", "c"]);
    let bytes = LargeBinaryArray::from_vec(vec![b"\xff", b"", b"z"]);
    let keys = Int32Array::from(vec![1, 2, 3]);
    let arrays: Vec<(&str, ArrayRef, bool)> = vec![
        ("question", texts(["What is it?", "Why?", "Is it whole?"]), false),
        ("words", Arc::new(words), true),
        ("zoned", Arc::new(zoned), true),
        ("long", Arc::new(long), false),
        ("bytes", Arc::new(bytes), true),
        ("keys", Arc::new(keys), false),
    ];
    let of_keys = [("unit".to_owned(), "piece".to_owned())];
    let field = |(name, array, is_nullable): &(&str, ArrayRef, bool)| {
        let field = Field::new(*name, array.data_type().clone(), *is_nullable);
        if *name == "keys" {
            field.with_metadata(of_keys.clone().into_iter().collect::<HashMap<_, _>>())
        } else {
            field
        }
    };
    let metadata: HashMap<String, String> = [("made".to_owned(), "here".to_owned())].into_iter().collect();
    let schema = Arc::new(Schema::new_with_metadata(arrays.iter().map(field).collect::<Vec<_>>(), metadata));
    let batch = RecordBatch::try_new(schema, arrays.into_iter().map(|(_, array, _)| array).collect()).unwrap();
    let file = std::fs::File::create(place.path("rows.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();

    place.janus(&[QUESTIONS, &["--out", "out.parquet"]].concat()).expect_success();
    let out = table(&place.path("out.parquet"));
    assert_eq!(out.len(), 1);
    for (number, field) in batch.schema().fields().iter().enumerate() {
        assert_eq!(out[0].schema().field(number), &**field);
        assert_eq!(out[0].column(number), batch.column(number), "{}", field.name());
    }
    let file = std::fs::File::open(place.path("out.parquet")).unwrap();
    let schema = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().schema().clone();
    assert_eq!(schema.metadata().get("made").map(String::as_str), Some("here"));
    place.janus(&[QUESTIONS, &["--out", "out.jsonl"]].concat()).expect_success();
    let rows = lines(&place, "out.jsonl");
    assert_eq!(
        (&rows[1]["words"], &rows[1]["zoned"], &rows[0]["bytes"]),
        (&json!("blue"), &Value::Null, &json!("/w=="))
    );
    // One beyond the calendar is told as its number.
    assert_eq!((&rows[0]["zoned"], &rows[2]["zoned"]), (&json!("1970-01-01T00:00:00Z"), &json!(i64::MAX.to_string())));

    let twice = vec![("question", texts(["a"])), ("x", texts(["b"])), ("x", texts(["c"]))];
    write_table(&place.path("rows.parquet"), twice, 1);
    place.refuses(&[QUESTIONS, &["--out", "twice.parquet"]].concat(), &["several columns `x`"]);
}

#[test]
fn a_batch_that_is_killed_goes_on_to_the_same_bytes() {
    let place = Workplace::empty();
    let bad = questions(&place, "rows.parquet", 1000);
    assert_eq!(bad, 10);
    place.janus(&[QUESTIONS, &["--out", "whole.parquet"]].concat()).expect_success();
    let cut = [QUESTIONS, &["--out", "cut.parquet"]].concat();
    let journal = place.path("cut.parquet.answers");
    let mut lengths = Vec::new();
    for attempt in 0..4 {
        let arguments = if attempt == 0 { cut.clone() } else { [&cut[..], &["--resume"]].concat() };
        let mut child = command(place.folder(), &arguments).spawn().unwrap();
        let before = std::fs::metadata(&journal).map_or(0, |about| about.len());
        let begin = Instant::now();
        // Until some more answers are there.
        while std::fs::metadata(&journal).map_or(0, |about| about.len()) < before + 2000
            && begin.elapsed() < Duration::from_secs(60)
            && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!place.path("cut.parquet").exists(), "attempt {attempt} came to the end");
        lengths.push(std::fs::metadata(&journal).unwrap().len());
    }
    assert!(lengths.windows(2).all(|pair| pair[0] < pair[1]), "{lengths:?}");
    place.refuses(&cut, &["has answers of a batch that was cut off", "--resume"]);
    let other = [&cut[..], &["--resume", "--question", "Why?"]].concat();
    place.refuses(&other, &["answers of another batch", "not of the same question"]);
    let done = place.janus(&[&cut[..], &["--resume", "--json"]].concat()).expect_success().json();
    assert!(done["resumed"].as_u64().unwrap() > 0 && done["failed"] == 10, "{done}");
    assert!(place.read("cut.parquet") == place.read("whole.parquet"), "the bytes are others");
    assert!(!journal.exists());

    // A picture in a file of its own that is another one now.
    std::fs::write(place.path("one.png"), picture(24, 20, 1)).unwrap();
    let paths: Vec<&str> = vec!["one.png"; 400];
    write_table(&place.path("paths.parquet"), vec![("image", texts(&paths))], 50);
    let by_path =
        ["batch", "--base", "janus-nano", "--task", "understand", "--input", "paths.parquet", "--out", "p.jsonl"];
    let mut child = command(place.folder(), &by_path).spawn().unwrap();
    while std::fs::metadata(place.path("p.jsonl.answers")).map_or(0, |about| about.len()) < 2000 {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::write(place.path("one.png"), picture(24, 20, 2)).unwrap();
    place.refuses(&[&by_path[..], &["--resume"]].concat(), &["another batch", "pictures"]);

    // Another input of the same name.
    questions(&place, "rows.parquet", 900);
    let mut child = command(place.folder(), &[QUESTIONS, &["--out", "third.jsonl"]].concat()).spawn().unwrap();
    while std::fs::metadata(place.path("third.jsonl.answers")).map_or(0, |about| about.len()) == 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    questions(&place, "rows.parquet", 800);
    place.refuses(&[QUESTIONS, &["--out", "third.jsonl", "--resume"]].concat(), &["another batch", "input"]);
}

#[test]
fn heads_and_pictures_fill_their_columns() {
    let place = Workplace::empty();
    let synth = ["data", "synth", "--domain", "inspection", "--rows", "6", "--size", "64", "--out", "rows.parquet"];
    place.janus(&synth).expect_success();
    let ask = |task: &str, more: &[&str]| -> Vec<Value> {
        let out = format!("{task}.jsonl");
        let adapter = if task == "segment" { MEDICAL } else { ADAPTER };
        let base = ["batch", "--base", "janus-nano", "--adapter", adapter, "--task", task, "--input", "rows.parquet"];
        place.janus(&[&base[..], &["--out", &out], more].concat()).expect_success();
        lines(&place, &out)
    };
    let classified = ask("classify", &[]);
    let right = classified.iter().filter(|row| row["label"] == row["input_label"]).count();
    assert!(right >= 5, "{right} of 6 labels are right");
    let located = ask("locate", &[]);
    for row in &located {
        let (boxes, labels) = (row["boxes"].as_array().unwrap(), row["box_labels"].as_array().unwrap());
        assert!(boxes.len() == labels.len() && boxes.len() == row["scores"].as_array().unwrap().len(), "{row}");
    }
    let segmented = ask("segment", &[]);
    for row in &segmented {
        assert!(row["mask"]["bytes"].as_str().unwrap().starts_with("iVBOR"), "{row}");
        assert!((0.0..=1.0).contains(&row["share"].as_f64().unwrap()), "{row}");
    }
    let drawn = ask("generate", &["--column", "prompt=caption", "--guidance", "2", "--seed", "3"]);
    let pictures: BTreeMap<&str, usize> =
        drawn.iter().map(|row| row["image"]["bytes"].as_str().unwrap()).map(|png| (png, 1)).collect();
    assert!(pictures.len() > 3, "rows draw pictures of their own");
    // The third row alone, with its seed.
    let prompt = drawn[2]["caption"].as_str().unwrap();
    let alone = ["generate", "--base", "janus-nano", "--adapter", ADAPTER, prompt, "--out", "alone.png"];
    place.janus(&[&alone[..], &["--guidance", "2", "--seed", "5"]].concat()).expect_success();
    let of = |png: &[u8]| image::load_from_memory(png).unwrap().into_rgb8();
    let own = decoded(drawn[2]["image"]["bytes"].as_str().unwrap());
    assert_eq!(of(&own), of(&place.read("alone.png")));
}

/// Bytes of base64.
fn decoded(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'=').collect();
    digits
        .chunks(4)
        .flat_map(|four| {
            let sum = four.iter().fold(0u32, |sum, byte| (sum << 6) | value(*byte)) << (6 * (4 - four.len()));
            sum.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect()
}

#[test]
fn what_cannot_be_answered_is_refused_and_writes_nothing() {
    let place = Workplace::empty();
    questions(&place, "rows.parquet", 4);
    let none = ["label", "words"].map(|name| (name, texts(["a", "b"])));
    write_table(&place.path("texts.parquet"), none.to_vec(), 10);
    place.write("there.jsonl", "mine");
    let with = |more: &[&'static str]| -> Vec<&str> {
        [&["batch", "--base", "janus-nano", "--input", "rows.parquet"], more].concat()
    };
    for (arguments, said) in [
        (with(&["--task", "understand", "--out", "there.jsonl"]), &["is there already"][..]),
        (with(&["--task", "understand", "--out", "there.jsonl", "--resume"]), &["is there already"]),
        (with(&["--task", "understand", "--out", "out.csv"]), &[".parquet", ".jsonl"]),
        (with(&["--task", "classify", "--out", "out.jsonl"]), &["classify"]),
        (with(&["--task", "classify", "--adapter", ADAPTER, "--head", "nose", "--out", "out.jsonl"]), &["nose"]),
        (with(&["--task", "generate", "--out", "out.jsonl"]), &["no column `prompt`"]),
        (with(&["--task", "generate", "--question", "Why?", "--out", "out.jsonl"]), &["takes no `--question`"]),
        (with(&["--task", "understand", "--guidance", "2", "--out", "out.jsonl"]), &["takes no `--guidance`"]),
        (with(&["--task", "understand", "--temperature", "nan", "--out", "out.jsonl"]), &["temperature"]),
        (with(&["--task", "understand", "--column", "caption=x", "--out", "out.jsonl"]), &["no role of understand"]),
        (with(&["--task", "understand", "--out", "none/../../..//"]), &[]),
        (
            vec![
                "batch",
                "--base",
                "janus-nano",
                "--task",
                "understand",
                "--input",
                "texts.parquet",
                "--out",
                "o.jsonl",
            ],
            &["no column `image`"],
        ),
    ] {
        place.refuses(&arguments, said);
    }
    assert_eq!(place.read("there.jsonl"), b"mine");
    // What lies where answers would be kept.
    place.write("o.jsonl.answers", "my own notes");
    let out = ["--task", "understand", "--out", "o.jsonl", "--resume"];
    place.refuses(&with(&out), &["o.jsonl.answers", "no batch's"]);
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/quickstart.toml");
    place.refuses(&["eval", recipe, "--predictions", "there.jsonl"], &["is there already"]);
    place.refuses(&["eval", recipe, "--predictions", "new.csv"], &[".parquet", ".jsonl"]);
}
