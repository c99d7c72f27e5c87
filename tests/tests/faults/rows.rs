//! Tables of rows.

use janus_tests::rows::{conversations, image_lists, optional_texts, png_claiming};

use super::*;

#[test]
fn data_that_is_not_there() {
    train_refuses(&["data.0.train=absent.parquet"], &["absent.parquet"]);
    train_refuses(&["data.0.train=none-*.parquet"], &["none-*.parquet"]);
    train_refuses(&["data.0.train=base"], &["no `.parquet` file in folder"]);
    train_refuses(&["data.0.eval=absent.parquet"], &["`data.0.eval`: no file", "absent.parquet", "`data.0.eval=...`"]);
    train_refuses(
        &["data.0.eval=none-[ab]-*.parquet"],
        &["`data.0.eval`: no file matches", "`[[]` is the bracket itself"],
    );
    train_refuses(&["data.0.train=ftp://host/rows.parquet"], &["`ftp`"]);
}

#[test]
fn a_missing_column() {
    train_refuses(
        &[r#"data.0.columns={answer="anwser"}"#],
        &["rows.parquet", "no column `anwser` (for answer)", "`image`, `question`, `answer`", "did you mean `answer`"],
    );
    train_refuses(&["data.0.task=generate"], &["no column `prompt` (for prompt)"]);
    train_refuses(&[r#"data.0.columns={imge="image"}"#], &["task `understand` reads no column `imge`", "`image`"]);
}

#[test]
fn a_column_of_another_type() {
    train_refuses(
        &[r#"data.0.columns={answer="number"}"#],
        &["column `number` (for answer) has type `int64`, expected `string`"],
    );
    train_refuses(&[r#"data.0.columns={image="number"}"#], &["column `number` (for image) has type `int64`"]);
    train_refuses(&[r#"data.0.columns={messages="number"}"#], &["column `number` (for messages) has type `int64`"]);
    // A string may be JSON.
    train_refuses(
        &[r#"data.0.columns={messages="answer"}"#],
        &["the conversation in `answer` cannot be read", "no JSON"],
    );
    train_refuses(&[r#"data.0.columns={question="image"}"#], &["column `image` (for question) has type `struct<"]);
}

#[test]
fn files_that_are_no_parquet() {
    let place = place();
    let whole = place.read("rows.parquet");
    let (half, quarter) = (whole.len() / 2, whole.len() / 4);
    let mut damaged = whole.clone();
    damaged[quarter..half].fill(0x5a);
    let files: [(&str, &[u8]); 4] =
        [("text", b"no parquet at all"), ("empty", b""), ("cut", &whole[..half]), ("damaged", &damaged)];
    for (name, bytes) in files {
        place.write("rows.parquet", bytes);
        let done = place.refuses(&["train", "recipe.toml"], &["rows.parquet"]);
        assert!(done.stderr.contains("Parquet") || done.stderr.contains("damaged"), "{name}: {}", done.stderr);
    }
}

/// An encoded picture and an answer.
type Cells = (Option<Vec<u8>>, Option<&'static str>);

/// Bad rows, and what is said of each.
fn bad_rows() -> Vec<(Cells, &'static str)> {
    vec![
        ((None, Some("yes")), "`image` is null"),
        ((Some(truncated()), Some("yes")), "the image in `image` cannot be decoded"),
        ((Some(b"no picture".to_vec()), Some("yes")), "the image in `image` cannot be decoded"),
        ((Some(picture(1, 20_000, 1)), Some("yes")), "1x20000"),
        ((Some(png_claiming(30_000, 30_000)), Some("yes")), "30000x30000"),
        ((Some(picture(32, 32, 2)), None), "`answer` is null"),
        ((Some(picture(32, 32, 3)), Some("  ")), "`answer` is empty"),
        ((Some(picture(32, 32, 4)), Some("an <image_placeholder>")), "<image_placeholder>"),
    ]
}

/// Writes `rows.parquet` with a good row before and after these, in row groups of two.
fn write_rows(place: &Workplace, rows: &[Cells]) {
    let good = (Some(picture(48, 40, 9)), Some("fine"));
    let rows: Vec<_> = std::iter::once(&good).chain(rows).chain([&good]).collect();
    let pictures: Vec<_> = rows.iter().map(|(picture, _)| picture.clone()).collect();
    let answers: Vec<_> = rows.iter().map(|(_, answer)| *answer).collect();
    let columns = vec![("image", images(&pictures)), ("answer", optional_texts(&answers))];
    write_table(&place.path("rows.parquet"), columns, 2);
}

#[test]
fn one_bad_row_where_none_is_allowed() {
    let place = place();
    for (row, reason) in bad_rows() {
        write_rows(&place, &[row]);
        let said =
            ["1 of 3 rows cannot be used", "`max_bad_rows` = 0", "row 1 of row group 0 in", "rows.parquet", reason];
        place.refuses(&["train", "recipe.toml", "data_limits.max_bad_rows=0"], &said);
        place.refuses(&["train", "recipe.toml"], &["1 of 3 rows cannot be used", reason]);
        place.refuses(&["train", "recipe.toml", "--dry-run"], &["1 of 3 rows cannot be used", reason]);
    }
}

#[test]
fn rows_left_out_are_counted_and_listed() {
    let place = place();
    let bad = bad_rows();
    let rows: Vec<_> = bad.iter().map(|(row, _)| row.clone()).collect();
    write_rows(&place, &rows);
    let refused = place.refuses(
        &["train", "recipe.toml", "data_limits.max_bad_rows=7"],
        &["8 of 10 rows cannot be used", "`max_bad_rows` = 7"],
    );
    for (_, reason) in &bad {
        assert!(refused.stderr.contains(reason), "no `{reason}`: {}", refused.stderr);
    }

    let plan = place.janus(&["train", "recipe.toml", "data_limits.max_bad_rows=8", "--dry-run", "--json"]);
    let plan = plan.expect_success().json();
    assert_eq!((plan["rows"].as_u64(), plan["tables"][0]["rejected"].as_u64()), (Some(2), Some(8)), "{plan}");

    let done = place.janus(&["train", "recipe.toml", "data_limits.max_bad_rows=8"]).expect_success();
    assert!(done.stderr.contains("8 left out"), "{}", done.stderr);
    let listed = String::from_utf8(place.read("run/rejected.jsonl")).unwrap();
    let lines: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), bad.len());
    for (number, (line, (_, reason))) in lines.iter().zip(&bad).enumerate() {
        let row = number + 1;
        assert!(line["file"].as_str().unwrap().ends_with("rows.parquet"), "{line}");
        assert_eq!((line["row_group"].as_u64(), line["row"].as_u64()), (Some(row as u64 / 2), Some(row as u64 % 2)));
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line} has not `{reason}`");
        assert_eq!(line.as_object().unwrap().len(), 4, "{line}");
    }

    let check = place.janus(&["data", "check", "recipe.toml", "data_limits.max_bad_rows=8", "--json"]);
    let check = check.expect_success().json();
    let table = check.as_object().unwrap().values().next().unwrap();
    assert_eq!((table["rows"].as_u64(), table["rejected"].as_u64()), (Some(10), Some(8)), "{check}");
    assert_eq!(table["rejected_rows"].as_array(), Some(&lines), "every row, as in `rejected.jsonl`");
    assert_eq!(table["budget"], serde_json::json!({ "max_bad_rows": 8, "rows": 8, "kept": true }));
    let over = place.janus(&["data", "check", "recipe.toml", "data_limits.max_bad_rows=0.5"]);
    assert_eq!(over.code, Some(2), "{}", over.stderr);
    assert!(over.stderr.contains("8 of 10 rows cannot be used"), "{}", over.stderr);
    assert!(over.stdout.contains("budget: 5 rows (max_bad_rows = 0.5), exceeded"), "{}", over.stdout);
    for (number, (_, reason)) in bad.iter().enumerate() {
        let row = number + 1;
        let place = format!("row {} of row group {} in", row % 2, row / 2);
        let is_told = |line: &str| line.contains(&place) && line.contains(reason);
        assert!(over.stdout.lines().any(is_told), "no `{place}` with `{reason}`: {}", over.stdout);
    }
}

#[test]
fn no_accepted_row() {
    let place = place();
    let columns = vec![("image", images::<Vec<u8>>(&[None, None, None])), ("answer", texts(["a", "b", "c"]))];
    write_table(&place.path("rows.parquet"), columns, 2);
    let arguments = ["train", "recipe.toml", "data_limits.max_bad_rows=1.0"];
    place.refuses(&arguments, &["none of the 3 rows can be used", "`image` is null"]);
    let columns = vec![("image", images::<Vec<u8>>(&[])), ("answer", texts::<&str>([]))];
    write_table(&place.path("rows.parquet"), columns, 2);
    place.refuses(&arguments, &["none of the 0 rows can be used"]);
}

#[test]
fn bad_conversations_and_lists() {
    let place = place();
    let turns = vec![
        vec![("user", "What?"), ("assistant", "That.")],
        vec![("user", "What?")],
        vec![("assistant", "That.")],
        vec![("user", "What?"), ("robot", "That.")],
        vec![("user", "<image_placeholder> and <image_placeholder>"), ("assistant", "That.")],
        vec![],
    ];
    let pictures: Vec<_> = (0..6).map(|seed| vec![picture(32, 32, seed)]).collect();
    let columns = vec![("pictures", image_lists(&pictures)), ("turns", conversations(&turns))];
    write_table(&place.path("rows.parquet"), columns, 2);
    let columns = r#"data.0.columns={images="pictures", messages="turns"}"#;
    let said = ["5 of 6 rows cannot be used", "row 1 of row group 0", "row 1 of row group 2", "`robot`"];
    place.refuses(&["train", "recipe.toml", columns, "data_limits.max_bad_rows=0"], &said);
    let rows = vec![vec![picture(32, 32, 0)], vec![], vec![picture(32, 32, 1), truncated()]];
    let conversation = vec![("user", "What?"), ("assistant", "That.")];
    let turns = vec![conversation.clone(), conversation.clone(), conversation];
    write_table(
        &place.path("rows.parquet"),
        vec![("pictures", image_lists(&rows)), ("turns", conversations(&turns))],
        8,
    );
    let said = ["2 of 3 rows cannot be used", "row 1 of", "row 2 of", "cannot be decoded"];
    place.refuses(&["train", "recipe.toml", columns, "data_limits.max_bad_rows=0"], &said);
}
