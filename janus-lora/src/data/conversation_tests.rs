//! Conversations as other writers lay them out.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use arrow::array::ArrayRef;
use janus_core::processing::IMAGE_PLACEHOLDER;

use super::index::Table;
use super::reader::ReadOptions;
use super::row::Row;
use super::schema::{ColumnKind, ColumnRequest};
use super::source::FileSource;
use super::testing::*;

fn turns(role: &str, content: &str, said: ArrayRef) -> ArrayRef {
    list(&[2], structure(vec![(role, texts([Some("human"), Some("gpt")])), (content, said)]))
}

#[test]
fn conversations_are_read_in_every_spelling() {
    let folder = tempfile::tempdir().unwrap();
    let picture = png(6, 4);
    let plain = || texts([Some("<image_placeholder>\nWhat?"), Some("A part.")]);
    let parts = |image: Option<ArrayRef>| {
        let mut columns = vec![
            ("type", texts([Some("image"), Some("text"), Some("text")])),
            ("text", texts([None, Some("What?"), Some("A part.")])),
        ];
        columns.extend(image.map(|image| ("image", image)));
        list(&[2, 1], structure(columns))
    };
    let json = r#"[{"from": "human", "value": "<image_placeholder>\nWhat?"}, {"from": "gpt", "value": "A part."}]"#;
    let pictures = image_structs(&[Some((Some(&picture), None)), None, None]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("role", turns("role", "content", plain())),
        ("from", turns("from", "value", plain())),
        ("parts", turns("role", "content", parts(None))),
        ("null parts", turns("role", "content", parts(Some(nulls(3))))),
        ("pictured", turns("role", "content", parts(Some(pictures)))),
        ("json", texts([Some(json)])),
    ];
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let path = write_table(&folder.path().join("t.parquet"), columns, 5);
    for name in names {
        let row = rows_of(
            Table::open(std::slice::from_ref(&path), &[required("messages", name, ColumnKind::Messages)]).unwrap(),
        );
        let found: Vec<String> =
            row[0].messages["messages"].iter().map(|turn| format!("{}: {}", turn.role, turn.content)).collect();
        assert_eq!(found, ["user: <image_placeholder>\nWhat?", "assistant: A part."], "{name}");
        assert_eq!(
            row[0].image("messages").map(|image| &image.bytes),
            (name == "pictured").then_some(&picture),
            "{name}"
        );
        let asked = [required("messages", name, ColumnKind::PicturedMessages)];
        assert_eq!(Table::open(std::slice::from_ref(&path), &asked).is_ok(), name == "pictured", "{name}");
    }
    let path = write_table(&folder.path().join("bad.parquet"), vec![("json", texts([Some("Hello there")]))], 5);
    let reason = reason(path, required("messages", "json", ColumnKind::Messages));
    assert!(reason.starts_with("the conversation in `json` cannot be read: it is a text, and no JSON"), "{reason}");
}

/// The turns and the number of pictures of each row.
fn told(rows: &[Row]) -> Vec<(Vec<String>, usize)> {
    let turns = |row: &Row| row.messages["m"].iter().map(|turn| format!("{}: {}", turn.role, turn.content)).collect();
    rows.iter().map(|row| (turns(row), row.images.get("m").map_or(0, Vec::len))).collect()
}

#[test]
fn a_shard_without_pictures_need_not_know_of_any() {
    let folder = tempfile::tempdir().unwrap();
    let picture = png(6, 4);
    let parts = |image: Option<ArrayRef>| {
        let mut columns =
            vec![("type", texts([Some("text"), Some("text")])), ("text", texts([Some("What?"), Some("A part.")]))];
        columns.extend(image.map(|image| ("image", image)));
        turns("role", "content", list(&[1, 1], structure(columns)))
    };
    let pictured = {
        let image = image_structs(&[Some((Some(&picture), None)), None, None]);
        let columns = vec![
            ("type", texts([Some("image"), Some("text"), Some("text")])),
            ("text", texts([None, Some("What?"), Some("A part.")])),
            ("image", image),
        ];
        turns("role", "content", list(&[2, 1], structure(columns)))
    };
    let write = |name: &str, column: ArrayRef| write_table(&folder.path().join(name), vec![("messages", column)], 5);
    let whole = write("whole.parquet", pictured);
    let shards = [
        write("null.parquet", parts(Some(nulls(2)))),
        write("absent.parquet", parts(None)),
        write("bytes-null.parquet", parts(Some(structure(vec![("bytes", nulls(2)), ("path", nulls(2))])))),
        write("plain.parquet", turns("role", "content", texts([Some("What?"), Some("A part.")]))),
    ];
    // As a task asks: columns of pictures first.
    let alternatives = || {
        vec![
            vec![required("image", "image", ColumnKind::Image), required("m", "messages", ColumnKind::Messages)],
            vec![required("m", "messages", ColumnKind::PicturedMessages)],
        ]
    };
    let open = |files: &[&PathBuf]| {
        let files: Vec<FileSource> = files.iter().map(|file| FileSource::Local((*file).clone())).collect();
        Table::open_with(&files, &alternatives(), ReadOptions::default())
    };
    let (asked, said) = (format!("user: {IMAGE_PLACEHOLDER}\nWhat?"), "assistant: A part.".to_owned());
    for shard in &shards {
        let bare = (vec!["user: What?".to_owned(), said.clone()], 0);
        let with_picture = (vec![asked.clone(), said.clone()], 1);
        let name = shard.display();
        assert_eq!(told(&rows_of(open(&[&whole, shard]).unwrap())), [with_picture.clone(), bare.clone()], "{name}");
        assert_eq!(told(&rows_of(open(&[shard, &whole]).unwrap())), [bare, with_picture], "{name}");
    }
    // Where no file has a place for them, there are none.
    let fault = open(&[&shards[0], &shards[1]]).unwrap_err().to_string();
    assert!(fault.contains("no column `image`"), "{fault}");
    let empty = write("empty.parquet", nulls(1));
    assert_eq!(told(&rows_of(open(&[&whole, &empty]).unwrap())), [(vec![asked, said], 1)]);
}

#[test]
fn lists_of_roles_and_of_contents_are_conversations() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.parquet");
    let lists = |role: &str, content: &str, roles: &[usize], said: ArrayRef| {
        let names = texts(["user", "assistant"].into_iter().cycle().take(roles.iter().sum()).map(Some));
        structure(vec![(role, list(roles, names)), (content, said)])
    };
    let four = || texts([Some("a"), Some("b"), Some("c"), Some("d")]);
    let in_parts = {
        let part = structure(vec![("type", texts([Some("text"); 4])), ("text", four())]);
        list(&[2, 2], list(&[1; 4], part))
    };
    for column in [
        lists("role", "content", &[2, 2], list(&[2, 2], four())),
        lists("from", "value", &[2, 2], list(&[2, 2], four())),
        lists("role", "content", &[2, 2], in_parts),
    ] {
        let path = write_table(&file, vec![("messages", column)], 5);
        let rows = rows_of(Table::open(&[path], &[required("m", "messages", ColumnKind::Messages)]).unwrap());
        let turns = |one: &str, other: &str| (vec![format!("user: {one}"), format!("assistant: {other}")], 0);
        assert_eq!(told(&rows), [turns("a", "b"), turns("c", "d")]);
    }
    // Pictures stand in parts as they do elsewhere.
    let picture = png(3, 3);
    let image = image_structs(&[Some((Some(&picture), None)), None]);
    let parts = structure(vec![("type", texts([Some("image"), Some("text")])), ("image", image)]);
    let column = lists("role", "content", &[2], list(&[2], list(&[1, 1], parts)));
    let path = write_table(&file, vec![("messages", column)], 5);
    let rows = rows_of(Table::open(&[path], &[required("m", "messages", ColumnKind::PicturedMessages)]).unwrap());
    assert_eq!(rows[0].images["m"][0].bytes, picture);
    // Lists of unequal length, of nothing, and of nulls.
    let cases: [(ArrayRef, &str); 4] = [
        (lists("role", "content", &[2], list(&[3], texts([Some("a"); 3]))), "has 2 roles and 3 contents"),
        (lists("role", "content", &[1], list(&[0], texts([]))), "has 1 roles and 0 contents"),
        (lists("role", "content", &[0], list(&[0], texts([]))), "`messages` is null"),
        (lists("role", "content", &[2], list(&[2], texts([Some("a"), None]))), "message 1 in `messages` lacks"),
    ];
    for (column, expected) in cases {
        let path = write_table(&file, vec![("messages", column)], 5);
        let reason = reason(path, required("m", "messages", ColumnKind::Messages));
        assert!(reason.contains(expected), "{reason}");
    }
    // What is no list of texts is no conversation.
    let single = structure(vec![("role", texts([Some("user")])), ("content", texts([Some("a")]))]);
    let path = write_table(&file, vec![("messages", single)], 5);
    assert!(Table::open(&[path], &[ColumnRequest::required("m", "messages", ColumnKind::Messages)]).is_err());
}
