//! What rows mean as a table: where their pictures stand, what their boxes and masks are, and how long they may be.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::{DynamicImage, GrayImage, ImageFormat, Luma};
use janus_lora::base::Base;
use janus_lora::heads::Target;
use janus_lora::recipe;
use janus_lora::status::Silent;
use janus_lora::tasks::Draft;
use janus_lora::train::tables::{SampleStream, open_tables};
use janus_tests::rows::{boxes, conversations, image_lists, images, picture, text_lists, texts, write_table};
use janus_tests::tiny::Workplace;
use serde_json::{Value, json};

const ROWS: usize = 8;
const SIZE: (u32, u32) = (64, 32);

/// A recipe of one table over the tiny base.
fn write_recipe(place: &Workplace, task: &str, more: &str) {
    let text = format!(
        "[base]\npath = \"base\"\ndtype = \"f32\"\n[adapter]\nrank = 2\ntargets = [\"decoder\", \"vision\"]\n\
         [[data]]\nname = \"own\"\ntask = \"{task}\"\ntrain = \"rows.parquet\"\n{more}\n\
         [train]\nsteps = 2\nbatch_size = 2\nshuffle = false\n[output]\ndir = \"run\"\n"
    );
    place.write("recipe.toml", text);
}

/// The drafts of the first rows of a run.
fn drafts(place: &Workplace, count: usize) -> Vec<Draft> {
    let base = Base::open_folder("base", &place.path("base")).unwrap();
    let recipe = recipe::load(&place.path("recipe.toml"), &[], Path::new(".")).unwrap();
    let tables = open_tables(&recipe, &base, &Silent).unwrap();
    let mut stream = SampleStream::new(&tables[0], 1, false).unwrap();
    (0..count).map(|_| stream.draft(&base).unwrap().1).collect()
}

fn ids(draft: &Draft) -> Vec<u32> {
    match draft {
        Draft::Text { tokens, .. } => tokens.ids.clone(),
        Draft::Codes { prompt, .. } => prompt.clone(),
        other => panic!("no text: {other:?}"),
    }
}

fn checked(place: &Workplace) -> Value {
    let told = place.janus(&["data", "check", "recipe.toml", "--json"]).expect_success().json();
    told["own train"].clone()
}

/// `rows.parquet` of conversations with two pictures.
fn write_conversations(place: &Workplace, question: &str) {
    let turns = vec![vec![("user", question), ("assistant", "equal")]; ROWS];
    let pictures = vec![vec![picture(40, 30, 1), picture(40, 30, 2)]; ROWS];
    let columns = vec![("images", image_lists(&pictures)), ("messages", conversations(&turns))];
    write_table(&place.path("rows.parquet"), columns, 4);
}

#[test]
fn placeholders_of_other_toolkits_are_pictures_where_their_number_fits() {
    let place = Workplace::with_base();
    write_recipe(&place, "understand", "columns = { images = \"images\", messages = \"messages\" }");
    write_conversations(&place, "Compare <image_placeholder> with <image_placeholder>");
    let own: Vec<Vec<u32>> = drafts(&place, ROWS).iter().map(ids).collect();
    assert_eq!(checked(&place)["notes"].as_array().unwrap().len(), 0);
    for text in [
        "Compare <image> with <image>",
        "Compare <|image_1|> with <|image_2|>",
        "Compare <|vision_start|><|image_pad|><|image_pad|><|vision_end|> with <|vision_start|><|image_pad|><|vision_end|>",
        "Compare [IMG] with [IMG]",
        "Compare <img> with <ImageHere>",
        "Compare <image_soft_token> with <begin_of_image>",
    ] {
        write_conversations(&place, text);
        assert_eq!(drafts(&place, ROWS).iter().map(ids).collect::<Vec<_>>(), own, "{text}");
        let notes = checked(&place)["notes"].to_string();
        assert!(notes.contains("8 rows") && notes.contains("place of a picture"), "{text}: {notes}");
        let plan = place.janus(&["train", "recipe.toml", "--dry-run"]).expect_success();
        assert!(plan.stderr.contains("own: `"), "{text}: {}", plan.stderr);
    }
    for (text, said) in [
        ("Compare <image>", "1 image placeholder (`<image>`), but there are 2 pictures"),
        ("<|image|><|image|><|image|> three", "3 image placeholders (`<|image|>`), but there are 2 pictures"),
        ("<|image_2|> before <|image_1|>", "not each once and in their order"),
    ] {
        write_conversations(&place, text);
        place.refuses(&["train", "recipe.toml"], &[said, "row 0 of"]);
        let check = place.janus(&["data", "check", "recipe.toml"]);
        assert!(check.code == Some(2) && check.stdout.contains(said), "{}{}", check.stdout, check.stderr);
    }
}

#[test]
fn questions_and_answers_hold_no_text_that_stands_for_a_picture() {
    let place = Workplace::with_base();
    write_recipe(&place, "understand", "");
    let write = |question: &str, answer: &str| {
        let pictures = vec![Some(picture(40, 30, 1)); ROWS];
        let columns = vec![
            ("image", images(&pictures)),
            ("question", texts(vec![question; ROWS])),
            ("answer", texts(vec![answer; ROWS])),
        ];
        write_table(&place.path("rows.parquet"), columns, 4);
    };
    write("<image_placeholder>\nWhat?", "a part");
    let own = ids(&drafts(&place, 1)[0]);
    for text in ["<image>\nWhat?", "<image 1>\nWhat?", "<IMG_CONTEXT>\nWhat?"] {
        write(text, "a part");
        assert_eq!(ids(&drafts(&place, 1)[0]), own, "{text}");
        let stats = place.janus(&["data", "stats", "recipe.toml"]).expect_success();
        assert!(stats.stdout.contains("in 8 rows was taken for the place of a picture"), "{}", stats.stdout);
    }
    write("What?", "see <image>");
    place.refuses(&["train", "recipe.toml"], &["the answer contains `<image>`"]);

    // Without pictures a row has lost them; a text about pages has not.
    write_recipe(&place, "text", "");
    let write = |prompt: &str| {
        write_table(
            &place.path("rows.parquet"),
            vec![("prompt", texts([prompt, "b"])), ("answer", texts(["c", "d"]))],
            4,
        );
    };
    write("<image> what?");
    place.refuses(&["train", "recipe.toml"], &["1 image placeholder (`<image>`), but there are 0 pictures"]);
    write("what is the <img> tag?");
    assert_eq!(drafts(&place, 2).len(), 2);

    place.write("a.png", picture(40, 30, 1));
    let ask = |question: &str| {
        place.janus(&["understand", "--base", "base", "--image", "a.png", question, "--max-new-tokens", "2"])
    };
    let (own, foreign) = (ask("<image_placeholder> What?").expect_success(), ask("<image> What?").expect_success());
    assert_eq!(own.stdout, foreign.stdout);
    assert!(foreign.stderr.contains("`<image>` is taken for the place of a picture"), "{}", foreign.stderr);
    place.refuses(
        &["understand", "--base", "base", "--image", "a.png", "<image> and <image>?"],
        &["2 image placeholders (`<image>`), but there are 1 picture"],
    );
}

fn write_boxes(place: &Workplace, rows: &[Vec<[f32; 4]>]) {
    let pictures = vec![Some(picture(SIZE.0, SIZE.1, 1)); rows.len()];
    let labels: Vec<Vec<&str>> = rows.iter().map(|boxes| vec!["part"; boxes.len()]).collect();
    let columns = vec![("image", images(&pictures)), ("boxes", boxes(rows)), ("labels", text_lists(&labels))];
    write_table(&place.path("rows.parquet"), columns, 4);
}

fn corners(draft: &Draft) -> Vec<[f32; 4]> {
    let Draft::Picture(pictured) = draft else { panic!("no picture: {draft:?}") };
    let Target::Boxes(boxes) = &pictured.target else { panic!("no boxes: {pictured:?}") };
    boxes.iter().map(|marked| marked.corners).collect()
}

#[test]
fn a_table_of_boxes_is_refused_by_the_key_that_it_lacks() {
    let place = Workplace::with_base();
    let shares = vec![vec![[0.1, 0.2, 0.5, 0.9]]; ROWS];
    let widths = vec![vec![[20.0, 10.0, 40.0, 20.0], [40.0, 20.0, 10.0, 8.0]]; ROWS];
    let pixels = vec![vec![[4.0, 6.0, 60.5, 32.0]], vec![[-0.5, 2.0, 30.0, 28.0]]];
    for (rows, keys, said) in [
        (&shares, "", "`normalised = true`"),
        (&widths, "", "`box_format = \"xywh\"`"),
        (&widths, "box_format = \"xyxy\"", "`box_format = \"xywh\"`"),
        (&pixels, "normalised = true", "`normalised = false`"),
        (&pixels, "box_format = \"xywh\"", "`box_format = \"xyxy\"`"),
    ] {
        write_boxes(&place, rows);
        write_recipe(&place, "locate", keys);
        place.refuses(&["train", "recipe.toml"], &[said, "boxes of `own` (train)"]);
        for command in ["check", "stats"] {
            place.refuses(&["data", command, "recipe.toml"], &[said]);
        }
        place.refuses(&["train", "recipe.toml", "data_limits.max_bad_rows=1.0", "--dry-run"], &[said]);
    }
    for (rows, keys, expected) in [
        (&shares, "normalised = true", [6.4, 6.4, 32.0, 28.8]),
        (&widths, "box_format = \"xywh\"", [20.0, 10.0, 60.0, 30.0]),
        (&pixels, "", [4.0, 6.0, 60.5, 32.0]),
    ] {
        write_boxes(&place, rows);
        write_recipe(&place, "locate", keys);
        assert_eq!(checked(&place)["accepted"], rows.len());
        let found = corners(&drafts(&place, 1)[0])[0];
        assert!(found.iter().zip(expected).all(|(got, right)| (got - right).abs() < 1e-4), "{found:?} {expected:?}");
    }
    assert_eq!(corners(&drafts(&place, 2)[1])[0], [0.0, 2.0, 30.0, 28.0], "rounding is clipped");
    // The evaluation is judged by itself.
    write_boxes(&place, &widths);
    fs_err::rename(place.path("rows.parquet"), place.path("eval.parquet")).unwrap();
    write_boxes(&place, &pixels);
    write_recipe(&place, "locate", "eval = \"eval.parquet\"");
    place.refuses(&["train", "recipe.toml"], &["boxes of `own` (eval)", "`box_format = \"xywh\"`"]);
}

/// A grey mask: 1 or `object` in a rectangle, `rim` on the line above it.
fn mask(object: u8, rim: u8, format: ImageFormat) -> Vec<u8> {
    let value = |x: u32, y: u32| match (x, y) {
        (10..30, 8..20) => object,
        (9..31, 7) => rim,
        _ => 0,
    };
    let mut bytes = Cursor::new(Vec::new());
    let grey = GrayImage::from_fn(SIZE.0, SIZE.1, |x, y| Luma([value(x, y)]));
    DynamicImage::from(grey).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn write_masks(place: &Workplace, name: &str, masks: &[Vec<u8>]) {
    let pictures = vec![Some(picture(SIZE.0, SIZE.1, 1)); masks.len()];
    let masks: Vec<_> = masks.iter().map(Some).collect();
    write_table(&place.path(name), vec![("image", images(&pictures)), ("mask", images(&masks))], 4);
}

/// The object's share of the places, of what is counted, and places that are counted in part or not.
fn places(draft: &Draft) -> (f32, usize) {
    let Draft::Picture(pictured) = draft else { panic!("no picture: {draft:?}") };
    let Target::Mask(mask) = &pictured.target else { panic!("no mask: {pictured:?}") };
    let partly = mask.counted.iter().flatten().filter(|share| **share < 1.0).count();
    (mask.places.iter().sum(), partly)
}

#[test]
fn masks_are_judged_by_the_values_of_the_table() {
    let place = Workplace::with_base();
    let png = ImageFormat::Png;
    write_recipe(&place, "segment", "");
    write_masks(&place, "rows.parquet", &[mask(255, 0, png), mask(0, 0, png)]);
    let usual = places(&drafts(&place, 1)[0]);
    // 240 pixels of a picture that is half as large in the square, which has as many places as pixels.
    assert!((usual.0 - 60.0).abs() < 4.0, "{usual:?}");
    for object in [1, 2, 128] {
        write_masks(&place, "rows.parquet", &[mask(object, 0, png), mask(0, 0, png)]);
        assert_eq!(places(&drafts(&place, 1)[0]), usual, "{object}");
        let notes = checked(&place)["notes"].to_string();
        assert!(notes.contains(&format!("0 is ground, {object} the object")), "{notes}");
    }
    write_masks(&place, "rows.parquet", &[mask(255, 0, ImageFormat::Jpeg), mask(0, 0, png)]);
    assert_eq!(places(&drafts(&place, 1)[0]), usual, "what a JPEG moves comes back");
    write_masks(&place, "rows.parquet", &[mask(255, 128, ImageFormat::Jpeg)]);
    place.refuses(&["train", "recipe.toml"], &["in a JPEG", "neither near 0 nor near 25", "PNG"]);

    write_masks(&place, "rows.parquet", &vec![mask(1, 255, png); ROWS]);
    let said = ["the masks of `own` (train) have the values 0, 1, 255", "`mask_values = [1]`", "`ignore_value = 255`"];
    place.refuses(&["train", "recipe.toml"], &said);
    place.refuses(&["data", "check", "recipe.toml"], &said);
    let run = place.janus(&[
        "train",
        "recipe.toml",
        "data.0.mask_values=[1]",
        "data.0.ignore_value=255",
        "output.dir=kept",
        "data.0.eval=rows.parquet",
    ]);
    let run = run.expect_success();
    assert!(
        run.stderr.contains("own: masks: 1 is the object, other values are ground, 255 is not counted"),
        "{}",
        run.stderr
    );
    write_recipe(&place, "segment", "ignore_value = 255");
    let (share, partly) = places(&drafts(&place, 1)[0]);
    assert!(partly > 8 && (share - usual.0).abs() < 10.0, "{share} {partly}");
    place.refuses(&["train", "recipe.toml", "data.0.mask_values=[7]"], &["none is of `mask_values` = [7]"]);
    place.refuses(&["train", "recipe.toml", "data.0.mask_values=[255]"], &["`ignore_value` = 255 is one of"]);

    // Evaluated by what was decided for training.
    write_recipe(&place, "segment", "eval = \"eval.parquet\"");
    write_masks(&place, "rows.parquet", &[mask(255, 0, png), mask(0, 0, png)]);
    write_masks(&place, "eval.parquet", &[mask(1, 0, png)]);
    let said = ["the masks of `own` (eval) have the values 0, 1", "0 is ground, 255 the object"];
    place.refuses(&["train", "recipe.toml"], &said);
    write_masks(&place, "eval.parquet", &[mask(0, 0, png)]);
    place.janus(&["train", "recipe.toml", "--dry-run"]).expect_success();
}

fn write_long(place: &Workplace, question: &str) {
    let pictures = vec![Some(picture(40, 30, 1)); 2];
    let columns = vec![
        ("image", images(&pictures)),
        ("question", texts([question, "Short?"])),
        ("answer", texts(["a part", "yes"])),
    ];
    write_table(&place.path("rows.parquet"), columns, 4);
}

#[test]
fn rows_beyond_the_base_s_positions_are_bad_or_cut() {
    let place = Workplace::with_base();
    let long = "word ".repeat(400);
    write_long(&place, &long);
    write_recipe(&place, "understand", "");
    let said = ["1 of 2 rows cannot be used", "tokens with its pictures, the base has 512 positions"];
    place.refuses(&["train", "recipe.toml"], &said);
    let check = place.janus(&["data", "check", "recipe.toml"]);
    assert!(check.code == Some(2) && check.stdout.contains("the base has 512 positions"), "{}", check.stdout);
    place.refuses(
        &["train", "recipe.toml", "data_limits.max_tokens=100", "data_limits.max_bad_rows=0"],
        &["more than `data_limits.max_tokens` = 100"],
    );

    // Far longer ones are not looked at to their end, as a question, an answer or a caption.
    let endless = "word ".repeat(200_000);
    for (question, answer) in [(endless.as_str(), "a part"), ("What?", endless.as_str())] {
        let columns = vec![
            ("image", images(&[Some(picture(40, 30, 1))])),
            ("question", texts([question])),
            ("answer", texts([answer])),
            ("prompt", texts([endless.as_str()])),
            ("caption", texts([endless.as_str()])),
        ];
        write_table(&place.path("rows.parquet"), columns, 4);
        for task in ["understand", "generate", "retrieve"] {
            write_recipe(&place, task, "");
            let said = place.janus(&["data", "check", "recipe.toml"]);
            let (_, found) = said.stdout.split_once("it has more than ").expect("it says that there are more");
            let tokens: usize = found.split(' ').next().unwrap().parse().unwrap();
            assert!(said.code == Some(2) && (513..100_000).contains(&tokens), "{task}: {}", said.stdout);
            let hint = if task == "understand" && answer.len() > 100 { "too long alone" } else { "truncate" };
            assert!(task == "retrieve" || said.stdout.contains(hint), "{task}: {}", said.stdout);
        }
    }
    write_long(&place, &long);

    write_recipe(&place, "understand", "too_long = \"truncate\"");
    let base = Base::open_folder("base", &place.path("base")).unwrap();
    let found = ids(&drafts(&place, 1)[0]);
    let text = base.tokenizer().decode(&found, true).unwrap();
    assert!((505..=512).contains(&found.len()), "{}", found.len());
    assert!(text.contains("word word") && text.trim_end().ends_with("a part"), "{text}");
    let special = base.tokenizer().special();
    assert_eq!(found.iter().filter(|id| **id == special.image_placeholder).count(), 16);
    assert!(checked(&place)["notes"].to_string().contains("the question of 1 row was too long"));
    place.janus(&["train", "recipe.toml", "data.0.eval=rows.parquet", "output.dir=kept"]).expect_success();
    // What is left without a question stays bad.
    let columns = vec![
        ("image", images(&[Some(picture(40, 30, 1))])),
        ("question", texts(["What?"])),
        ("answer", texts([long.as_str()])),
    ];
    write_table(&place.path("rows.parquet"), columns, 4);
    place.refuses(&["train", "recipe.toml", "output.dir=other"], &["its pictures and answers alone are too long"]);
    // A system message is never cut, and said to be what is too long.
    for (answer, said) in [("yes", "its system message is too long"), (long.as_str(), "without its system message")] {
        let turns = [("system", long.as_str()), ("user", "What?"), ("assistant", answer)];
        let turns: Vec<_> = turns.iter().map(|(role, content)| json!({ "role": role, "content": content })).collect();
        let messages = serde_json::to_string(&turns).unwrap();
        let columns = vec![("image", images(&[Some(picture(40, 30, 1))])), ("messages", texts([messages.as_str()]))];
        write_table(&place.path("rows.parquet"), columns, 4);
        for way in ["reject", "truncate"] {
            let way = format!("data.0.too_long={way}");
            let refused = place.janus(&["train", "recipe.toml", "output.dir=other", &way]);
            assert!(refused.code == Some(2) && refused.stderr.contains(said), "{}", refused.stderr);
            assert!(!refused.stderr.contains("cuts"), "{}", refused.stderr);
        }
    }

    for task in ["text", "generate"] {
        write_recipe(&place, task, "");
        let columns = vec![
            ("prompt", texts([long.as_str()])),
            ("answer", texts(["yes"])),
            ("image", images(&[Some(picture(40, 30, 1))])),
        ];
        write_table(&place.path("rows.parquet"), columns, 4);
        let said = ["the base has 512 positions", "`too_long = \"truncate\"` in `[[data]]` cuts"];
        place.refuses(&["train", "recipe.toml", "output.dir=other"], &said);
        write_recipe(&place, task, "too_long = \"truncate\"");
        let found = ids(&drafts(&place, 1)[0]).len();
        assert!((440..=512).contains(&found), "{task}: {found}");
    }
}

#[test]
fn prompts_beyond_the_base_s_positions_are_refused_by_commands() {
    let place = Workplace::with_base();
    let long = "word ".repeat(400);
    place.write("a.png", picture(40, 30, 1));
    let said = ["the base has 512 positions for it and at least one token", "hint: shorten the text by"];
    place.refuses(&["understand", "--base", "base", "--image", "a.png", &long], &said);
    let said = ["codes of a picture", "hint: shorten the text by"];
    let drawn = ["generate", "--base", "base", &long, "--out", "b.png"];
    place.refuses(&drawn, &said);
    assert!(!place.janus(&drawn).stderr.contains("pictures"), "there are none to leave out");
    let source = ["generate", "--base", "base", "--source", "a.png", &long, "--out", "b.png"];
    place.refuses(&source, &said);
    let many: Vec<&str> = ["understand", "--base", "base"].into_iter().chain(["--image", "a.png"].repeat(40)).collect();
    let said = ["640 of them of pictures, the base has 512 positions", "hint: give fewer pictures"];
    place.refuses(&[&many[..], &["What?"]].concat(), &said);
    // The answer ends with the positions, whatever `--max-new-tokens` says.
    let nearly = "w".repeat(280);
    let asked = ["understand", "--base", "base", &nearly, "--max-new-tokens", "16384", "--json"];
    let answer = place.janus(&asked).expect_success().json();
    assert!(answer["token_ids"].as_array().unwrap().len() < 512 - 280, "{answer}");

    let ids = Tensor::full(65i64, (1, 513), &Device::Cpu).unwrap();
    place.write("in.safetensors", safetensors::serialize(vec![("input_ids", ids)], None).unwrap());
    let probe = ["probe", "--base", "base", "--input", "in.safetensors", "--output", "out.safetensors"];
    place.refuses(&probe, &["row 0 has 513 tokens, the base has 512 positions"]);
    let ids = Tensor::full(65i64, (1, 512), &Device::Cpu).unwrap().to_dtype(DType::I64).unwrap();
    place.write("in.safetensors", safetensors::serialize(vec![("input_ids", ids)], None).unwrap());
    place.janus(&probe).expect_success();
}
