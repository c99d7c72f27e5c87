//! What `janus data` tells and draws of rows, and conversations with several turns and several images.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use janus_core::checkpoint::init_checkpoint;
use janus_core::config::{JanusConfig, Layout};
use janus_core::processing::{Decoding, decode_image};
use janus_lora::base::Base;
use janus_lora::recipe;
use janus_lora::status::Silent;
use janus_lora::tasks::Draft;
use janus_lora::train::tables::{SampleStream, open_tables};
use janus_tests::program::{Done, command, run};
use janus_tests::rows::{conversations, image_lists, images, optional_texts, picture, texts, write_table};
use janus_tests::{fixtures, json};
use serde_json::Value;

fn recipe_text(task: &str, more: &str) -> String {
    format!(
        "[base]\npath = \"base\"\n[[data]]\ntask = \"{task}\"\ntrain = \"rows.parquet\"\n{more}[train]\nsteps = 1\nshuffle = false\n[output]\ndir = \"run\"\n"
    )
}

/// The drafts of a table's rows in order.
fn drafts(folder: &Path, base: &Base, task: &str, more: &str, count: usize) -> Vec<Draft> {
    let path = folder.join("recipe.toml");
    fs_err::write(&path, recipe_text(task, more)).unwrap();
    let recipe = recipe::load(&path, &[], Path::new(".")).unwrap();
    let tables = open_tables(&recipe, base, &Silent).unwrap();
    let mut stream = SampleStream::new(&tables[0], 1, false).unwrap();
    (0..count).map(|_| stream.draft(base).unwrap().1).collect()
}

fn text(draft: &Draft) -> (&[u32], &[i64], usize) {
    match draft {
        Draft::Text { tokens, images } => (&tokens.ids, &tokens.labels, images.len()),
        Draft::Codes { .. } | Draft::Picture(_) | Draft::Pixels { .. } => panic!("no text"),
    }
}

/// The ids of a conversation of the fixtures, with the system prompt, to be answered.
fn fixture_ids(expected: &Value, name: &str) -> Vec<u32> {
    let cases = expected["text_mode"].as_array().unwrap();
    let is_it = |case: &&Value| {
        case["conversation"] == name
            && case["add_generation_prompt"] == true
            && case["use_default_system_prompt"] == true
    };
    let ids = cases.iter().find(is_it).unwrap()["input_ids"].as_array().unwrap();
    ids.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The labelled text of a draft; fails where a label is not its own id.
fn learnt(base: &Base, draft: &Draft) -> String {
    let (ids, labels, _) = text(draft);
    let learnt: Vec<u32> = ids.iter().zip(labels).filter(|(_, label)| **label >= 0).map(|(id, _)| *id).collect();
    assert!(ids.iter().zip(labels).all(|(id, label)| *label == -100 || *label == i64::from(*id)));
    base.tokenizer().decode(&learnt, false).unwrap()
}

#[test]
fn conversations_are_those_of_transformers_and_every_answer_is_learnt() {
    let Some(fixtures) = fixtures() else { return };
    let base = Base::open_folder("fixture", &fixtures.join("hf")).unwrap();
    let expected = json(&fixtures, "expected/chat.json");
    let eos = base.tokenizer().decode(&[base.tokenizer().special().eos], false).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pictures = |numbers: &[u32]| -> Vec<Vec<u8>> { numbers.iter().map(|n| picture(40, 30, *n)).collect() };
    let rows = [
        (
            pictures(&[1, 2]),
            vec![
                ("user", "<image_placeholder>\n\n<image_placeholder>\nWhich of the two images is brighter?"),
                ("assistant", "The second."),
            ],
        ),
        (
            pictures(&[3]),
            vec![("user", "Look at this: \n<image_placeholder>\nDescribe the image."), ("assistant", "Sand.")],
        ),
        (
            pictures(&[4, 5]),
            vec![
                ("user", "<image_placeholder>\nWhat is in the picture?"),
                ("assistant", "A kite."),
                ("user", "And here <image_placeholder>?"),
                ("assistant", "A boat."),
            ],
        ),
        // Without placeholders the images come first.
        (pictures(&[6]), vec![("user", "What is in the picture?"), ("assistant", "A hill.")]),
    ];
    let columns = vec![
        ("images", image_lists(&rows.iter().map(|row| row.0.clone()).collect::<Vec<_>>())),
        ("messages", conversations(&rows.iter().map(|row| row.1.clone()).collect::<Vec<_>>())),
    ];
    write_table(&folder.path().join("rows.parquet"), columns, 3);
    let columns = "columns = { images = \"images\", messages = \"messages\" }\n";
    let found = drafts(folder.path(), &base, "understand", columns, rows.len());
    for (draft, (name, images)) in
        found.iter().zip([("two_images", 2), ("text_first", 1), ("one_image", 2), ("one_image", 1)])
    {
        let (ids, labels, count) = text(draft);
        let prompt = fixture_ids(&expected, name);
        assert_eq!(ids[..prompt.len()], prompt, "{name}");
        assert!(labels[..prompt.len()].iter().all(|label| *label == -100));
        let placeholders = ids.iter().filter(|id| **id == base.tokenizer().special().image_placeholder).count();
        assert_eq!((count, placeholders), (images, images * base.prompts().tokens_per_image()), "{name}");
    }
    // They are found by their own names, too.
    for (named, unnamed) in found.iter().zip(drafts(folder.path(), &base, "understand", "", rows.len())) {
        assert_eq!(text(named), text(&unnamed));
    }
    let answers = ["The second.", "Sand.", "A kite.", "A hill."];
    for (draft, answer) in found.iter().zip(answers) {
        assert!(learnt(&base, draft).starts_with(&format!(" {answer}{eos}")), "{}", learnt(&base, draft));
    }
    assert_eq!(learnt(&base, &found[2]), format!(" A kite.{eos} A boat.{eos}"));

    let turns = vec![
        ("user", "How many circles do you see?"),
        ("assistant", "Three."),
        ("user", "And how many lines?"),
        ("assistant", "Five."),
    ];
    write_table(&folder.path().join("rows.parquet"), vec![("messages", conversations(&[turns]))], 3);
    let found = drafts(folder.path(), &base, "text", "columns = { messages = \"messages\" }\n", 1);
    let prompt = fixture_ids(&expected, "turns");
    assert_eq!(text(&found[0]).0[..prompt.len()], prompt);
    assert_eq!(learnt(&base, &found[0]), format!(" Three.{eos} Five.{eos}"));
}

struct Place {
    folder: tempfile::TempDir,
    base: Base,
}

const ANSWERS: [Option<&str>; 5] = [Some("yes"), Some("it is a rather long answer"), None, Some("no"), Some("  ")];
/// The picture of each row.
const PICTURES: [(u32, u32, u32); 5] = [(40, 30, 1), (20, 61, 2), (40, 30, 3), (40, 30, 1), (9, 9, 4)];

impl Place {
    fn new(task: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        fs_err::create_dir(&base).unwrap();
        let config = JanusConfig::shape("janus-tiny").unwrap();
        init_checkpoint(&config, 5, candle_core::DType::F32, &base, Layout::Native, &mut |_, _| {}).unwrap();
        let base = Base::open_folder("tiny", &base).unwrap();
        let pictures: Vec<_> = PICTURES.iter().map(|(w, h, seed)| Some(picture(*w, *h, *seed))).collect();
        let columns = vec![
            ("image", images(&pictures)),
            ("answer", optional_texts(&ANSWERS)),
            ("caption", texts((0..5).map(|number| format!("picture {number}")))),
        ];
        write_table(&folder.path().join("rows.parquet"), columns, 2);
        fs_err::write(folder.path().join("recipe.toml"), recipe_text(task, more)).unwrap();
        Self { folder, base }
    }

    fn janus(&self, arguments: &[&str]) -> Done {
        run(command(self.folder.path(), arguments))
    }
}

#[test]
fn statistics_count_rows_tokens_pictures_and_repetitions() {
    let place = Place::new("understand", "");
    let stats = place.janus(&["data", "stats", "recipe.toml", "--json"]).expect_success().json();
    let table = &stats["understand train"];
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!([&table["rows"], &table["accepted"], &table["rejected"]].map(number), [5, 3, 2], "{stats}");
    assert_eq!(table["reasons"], serde_json::json!([["`answer` is null", 1], ["`answer` is empty", 1]]));
    assert_eq!([&table["images"], &table["repeated_images"]].map(number), [3, 1], "row 3 has the picture of row 0");
    let sample = |answer: &str| {
        let sample = place.base.prompts().understanding_sample("Describe this image.", answer, 1, true).unwrap();
        let learnt = sample.labels.iter().filter(|label| **label >= 0).count();
        (sample.ids.len() as u64, learnt as u64)
    };
    let mut samples = [sample("yes"), sample("it is a rather long answer"), sample("no")];
    samples.sort_unstable();
    for (key, values) in [("tokens", samples.map(|s| s.0)), ("supervised", samples.map(|s| s.1))] {
        let found = &table[key];
        let found = ["min", "median", "p95", "max", "total"].map(|name| number(&found[name]));
        assert_eq!(found, [values[0], values[1], values[2], values[2], values.iter().sum()], "{key}");
    }
    assert_eq!([&table["image_width"]["min"], &table["image_height"]["max"]].map(number), [20, 61]);

    let table = place.janus(&[
        "data",
        "stats",
        "rows.parquet",
        "--base",
        "base",
        "--task",
        "generate",
        "--column",
        "prompt=caption",
    ]);
    let table = table.expect_success().stdout;
    let grid = place.base.config().vision.image_size / place.base.config().vq.down_factor();
    for expected in [
        "rows: 5 rows, 5 good, 0 left out",
        "5 images, 1 of them repeat",
        "supervised tokens per row",
        &(grid * grid * 5).to_string(),
    ] {
        assert!(table.contains(expected), "`{expected}` is not in\n{table}");
    }
    for (arguments, expected) in [
        (&["rows.parquet"][..], "`--base` names one"),
        (&["rows.parquet", "--base", "base", "--column", "picture=image"][..], "`picture` is no role of understand"),
        (&["rows.parquet", "train.steps=3", "--base", "base"][..], "sets a key of a recipe"),
        (&["recipe.toml", "--base", "base"][..], "belongs to a table"),
    ] {
        let done = place.janus(&[&["data", "stats"], arguments].concat());
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains(expected), "{}", done.stderr);
    }
}

#[test]
fn a_table_without_a_recipe_takes_a_folder_of_pictures() {
    let place = Place::new("understand", "");
    let folder = place.folder.path();
    fs_err::create_dir_all(folder.join("pictures")).unwrap();
    fs_err::write(folder.join("pictures/a.png"), picture(20, 20, 1)).unwrap();
    let there = folder.join("pictures/a.png");
    fs_err::create_dir_all(folder.join("tables")).unwrap();
    let columns = vec![
        ("image", texts(["a.png", "../pictures/a.png", there.to_str().unwrap()])),
        ("question", texts(["What?"; 3])),
        ("answer", texts(["yes"; 3])),
    ];
    write_table(&folder.join("tables/paths.parquet"), columns, 4);
    let stats =
        |more: &[&str]| place.janus(&[&["data", "stats", "tables/paths.parquet", "--base", "base"], more].concat());
    let none = stats(&[]);
    // No row can be used, which is said where errors are, too.
    assert!(none.code == Some(2) && none.stderr.contains("hint: "), "{}", none.stderr);
    let without = none.stdout;
    assert!(without.contains("0 good, 3 left out") && without.contains("`--image-root`"), "{without}");
    assert!(!without.contains("recipe"), "{without}");
    let with = stats(&["--image-root", "pictures"]).expect_success().stdout;
    assert!(with.contains("3 good, 0 left out"), "{with}");
    for (more, said) in [
        (&["--image-root", "gone"][..], ["`--image-root`: no folder", "relative to the current folder"]),
        (
            &["--column", "answer=anser"],
            ["no column `anser`", "hint: did you mean `answer`? say `--column answer=answer`"],
        ),
    ] {
        let done = stats(more);
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(said.iter().all(|said| done.stderr.contains(said)), "{}", done.stderr);
    }
    let of_recipe = place.janus(&["data", "stats", "recipe.toml", "--image-root", "pictures"]);
    assert!(of_recipe.code == Some(2) && of_recipe.stderr.contains("belongs to a table"), "{}", of_recipe.stderr);
    // As a recipe says it.
    let check = place.janus(&["data", "check", "recipe.toml", "data.0.train=tables/paths.parquet"]);
    assert!(check.code == Some(2) && check.stderr.contains("hint: paths of pictures start at"), "{}", check.stderr);
    assert!(check.stderr.contains("`image_root` in the recipe's `[[data]]`"), "{}", check.stderr);
}

#[test]
fn a_preview_shows_the_pictures_as_the_model_gets_them() {
    for (task, more) in [("understand", ""), ("generate", "columns = { prompt = \"caption\" }\n")] {
        let place = Place::new(task, more);
        let limit = "data_limits.max_bad_rows=2";
        let done = place.janus(&["data", "preview", "recipe.toml", limit, "--rows", "2", "--out", "sheet.png"]);
        done.expect_success();
        let sheet =
            decode_image(&fs_err::read(place.folder.path().join("sheet.png")).unwrap(), Decoding::default()).unwrap();
        let processor = place.base.images();
        let times = 288u32.div_ceil(processor.image_size as u32);
        for (number, (width, height, seed)) in PICTURES.into_iter().take(2).enumerate() {
            let stored = decode_image(&picture(width, height, seed), Decoding::default()).unwrap();
            let seen = match task {
                "understand" => processor.understanding_u8(&stored),
                _ => processor.generation_target_u8(&stored),
            };
            let left = 16 + number as u32 * (seen.width() * times + 16);
            for (x, y, pixel) in seen.enumerate_pixels() {
                for (dx, dy) in [(0, 0), (times - 1, times - 1)] {
                    let drawn = sheet.get_pixel(left + x * times + dx, 46 + y * times + dy);
                    assert_eq!(drawn, pixel, "{task}, picture {number} at {x}, {y}");
                }
            }
        }
        let learnt = sheet.pixels().filter(|pixel| pixel.0 == [214, 242, 224]).count();
        assert!(learnt > 1000, "{learnt} pixels are set off");
    }
    let place = Place::new("understand", "");
    let refused = place.janus(&["data", "preview", "recipe.toml", "--out", "sheet.png"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(!place.folder.path().join("sheet.png").exists());
}
