//! Data sets of every domain.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::data::testing::{accept_all, requests, scan_all};
use crate::data::{ColumnKind, ColumnRequest, RowStream, Table};
use std::collections::HashSet;
use std::sync::Arc;

#[test]
fn specs_have_defaults_and_legal_names() {
    let parse = |text: &str| text.parse::<SynthSpec>();
    for name in Domain::NAMES {
        let spec = parse(&format!("synth:{name}")).unwrap();
        assert_eq!(spec.to_string(), format!("synth:{name}?rows=512&seed=1&size=64&split=train"));
        assert_eq!(spec.file_name(), format!("{name}-v7-train-rows512-seed1-size64.parquet"));
    }
    let other = parse("synth:medical?seed=9&split=eval&size=96&rows=3").unwrap();
    assert_eq!(other, SynthSpec { domain: Domain::Medical, rows: 3, seed: 9, size: 96, eval: true });
    assert_eq!(parse(&other.to_string()).unwrap(), other);
    for (wrong, says) in [
        (
            "synth:medicall",
            "unknown domain `medicall`, the domains are `inspection`, `medical`, `creative`, `world`; did you",
        ),
        ("synth:medicall", "did you mean `medical`?"),
        ("synth:inspection?row=3", "the keys are `rows`, `seed`, `size`, `split`; did you mean `rows`?"),
        ("synth:inspection?rows=0", "expected a whole number from 1 to"),
        ("synth:inspection?rows=99999999999", "expected a whole number from 1 to"),
        ("synth:inspection?size=8", "expected a whole number from 32 to 1024"),
        ("synth:inspection?seed=-1", "`seed` is `-1`"),
        ("synth:inspection?split=test", "expected `train` or `eval`"),
        ("synth:inspection?rows", "`rows` is not `key=value`"),
        ("synth:inspection?rows=1&rows=2", "given twice"),
    ] {
        let message = parse(wrong).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_splits_share_no_image() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = |spec: &str, folder: &Path| std::fs::read(synthesize(spec, folder).unwrap()).unwrap();
    let images = |spec: &str| {
        let parsed: SynthSpec = spec.parse().unwrap();
        let image = |row: u32| match parsed.draw(row).unwrap().swap_remove(0) {
            Cell::Image(png) => png,
            other => panic!("{other:?}"),
        };
        (0..130).map(image).collect::<HashSet<_>>()
    };
    for name in Domain::NAMES {
        let spec = format!("synth:{name}?rows=130&size=32");
        assert_eq!(bytes(&spec, a.path()), bytes(&spec, b.path()));
        assert_ne!(bytes(&spec, a.path()), bytes(&format!("{spec}&seed=2"), a.path()));
        let (train, eval) = (images(&spec), images(&format!("{spec}&split=eval")));
        assert_eq!((train.len(), eval.len()), (130, 130), "no image twice");
        assert!(train.is_disjoint(&eval));
    }
}

#[test]
fn cells_are_what_their_columns_say() {
    for domain in Domain::ALL {
        for (row, size) in (0..60).zip([32, 47, 64].into_iter().cycle()) {
            let spec = SynthSpec { domain, rows: 60, seed: 3, size, eval: true };
            let cells = spec.draw(row).unwrap();
            assert_eq!(cells.len(), domain.columns().len());
            let mut boxes_and_labels = Vec::new();
            for (cell, (name, kind)) in cells.iter().zip(domain.columns()) {
                match (cell, kind) {
                    (Cell::Image(png), ColumnType::Image) => {
                        let image = image::load_from_memory(png).unwrap();
                        assert_eq!((image.width(), image.height()), (size, size));
                        let mask = image.as_luma8();
                        assert_eq!(mask.is_some(), *name == "mask");
                        assert!(mask.is_none_or(|mask| mask.pixels().all(|pixel| [0, 255].contains(&pixel.0[0]))));
                    }
                    (Cell::Text(text), ColumnType::Text) => assert!(!text.trim().is_empty(), "{name}"),
                    (Cell::Boxes(boxes), ColumnType::Boxes) => {
                        boxes_and_labels.push(boxes.len());
                        for [left, top, right, bottom] in boxes {
                            assert!(0.0 <= *left && left < right && *right <= size as f32);
                            assert!(0.0 <= *top && top < bottom && *bottom <= size as f32);
                        }
                    }
                    (Cell::Texts(texts), ColumnType::Texts) => boxes_and_labels.push(texts.len()),
                    (Cell::Messages(turns), ColumnType::Messages) => {
                        assert!(turns.iter().all(|(question, answer)| question.len() > 3 && !answer.is_empty()));
                    }
                    _ => panic!("{name}: {cell:?}"),
                }
            }
            assert!(boxes_and_labels.iter().all(|count| *count == boxes_and_labels[0]), "a label for each box");
        }
    }
}

#[test]
fn the_file_reads_back_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = synthesize("synth:inspection?rows=230&size=32", folder.path()).unwrap();
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(synthesize("synth:inspection?size=32&rows=230", folder.path()).unwrap(), path);
    assert_eq!(
        std::fs::metadata(&path).unwrap().modified().unwrap(),
        before,
        "a file that is there is not drawn again"
    );

    for domain in Domain::ALL {
        let named = |kind: ColumnType| domain.columns().iter().filter(move |(_, k)| *k == kind).map(|(name, _)| *name);
        let mut requests = requests(&named(ColumnType::Text).collect::<Vec<_>>());
        for name in named(ColumnType::Image) {
            requests.push(ColumnRequest::required(name, name, ColumnKind::Image));
        }
        let path = synthesize(&format!("synth:{}?rows=230&size=32", domain.name()), folder.path()).unwrap();
        let table = Table::open(&[path], &requests).unwrap();
        assert_eq!(table.files().next().map(|(_, groups, rows)| (groups, rows)), Some((3, 230)));
        let types = table.columns();
        let expected = domain.columns().iter().map(|(name, kind)| {
            let kind = match kind {
                ColumnType::Image => "struct<bytes: binary, path: string>",
                ColumnType::Text => "string",
                ColumnType::Boxes => "list<item: list<item: float>>",
                ColumnType::Texts => "list<item: string>",
                ColumnType::Messages => "list<item: struct<role: string, content: string>>",
            };
            (name.to_string(), kind.to_string())
        });
        assert_eq!(types, expected.collect::<Vec<_>>());
        let index = scan_all(&table, &accept_all);
        assert_eq!((index.accepted_rows(), index.rejected_rows()), (230, 0));

        let (table, index) = (Arc::new(table), Arc::new(index));
        let rows: Vec<_> = RowStream::new(table, index, 0, false).unwrap().take(230).map(Result::unwrap).collect();
        for name in named(ColumnType::Image) {
            let image = image::load_from_memory(&rows[0].image(name).unwrap().bytes).unwrap();
            assert_eq!((image.width(), image.height()), (32, 32));
        }
        let values = |column: &str| rows.iter().map(|row| row.text(column).unwrap()).collect::<HashSet<_>>().len();
        let expected = match domain {
            Domain::Inspection => (4, 5),
            Domain::Medical => (3, 4),
            Domain::Creative => (5, 4),
            // Of two parts, questions name them.
            Domain::World => (10, 8),
        };
        assert_eq!(values("label"), expected.0);
        assert!(values("question") >= expected.1);
    }
}
