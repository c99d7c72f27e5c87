//! Heads that locate, segment and retrieve: trained on a handful of rows, evaluated, asked, refused.
#![allow(clippy::unwrap_used)]

use janus_tests::program::{Done, refused};
use janus_tests::rows::{boxes, images, rectangles, text_lists, texts, write_table};
use janus_tests::tiny::Workplace;
use serde_json::{Value, json};

const SIZE: (u32, u32) = (40, 32);
const RED: [u8; 3] = [220, 40, 40];
const BLUE: [u8; 3] = [50, 80, 230];
const WHITE: [u8; 3] = [255; 3];

/// Things of each row: a box and what it is.
fn things(row: usize) -> Vec<([f32; 4], &'static str)> {
    let all = [
        vec![([4.0, 6.0, 16.0, 14.0], "pit")],
        vec![([22.0, 3.0, 38.0, 25.0], "scratch")],
        vec![([2.0, 18.0, 12.0, 30.0], "pit"), ([24.0, 10.0, 36.0, 20.0], "scratch")],
        vec![],
        vec![([10.0, 8.0, 30.0, 26.0], "pit")],
        vec![([6.0, 2.0, 14.0, 10.0], "scratch"), ([20.0, 16.0, 34.0, 28.0], "pit")],
    ];
    all[row % all.len()].clone()
}

const ROWS: usize = 6;

fn captions() -> [&'static str; ROWS] {
    ["one small pit", "one tall scratch", "a pit and a scratch", "nothing at all", "a large pit", "a scratch and a pit"]
}

fn painted(row: usize) -> Vec<u8> {
    let colour = |label: &str| if label == "pit" { RED } else { BLUE };
    let all: Vec<_> = things(row).into_iter().map(|(corners, label)| (corners, colour(label))).collect();
    rectangles(SIZE.0, SIZE.1, &all)
}

fn mask(row: usize) -> Vec<u8> {
    let all: Vec<_> = things(row).into_iter().map(|(corners, _)| (corners, WHITE)).collect();
    let picture = image::load_from_memory(&rectangles(SIZE.0, SIZE.1, &all)).unwrap();
    // Black beside the things, one channel.
    let mut grey = picture.to_luma8();
    grey.pixels_mut().for_each(|pixel| pixel.0 = [if pixel.0[0] > 200 { 255 } else { 0 }]);
    let mut bytes = std::io::Cursor::new(Vec::new());
    grey.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A base, six pictures of things, and a recipe of one table.
fn place(table: &str) -> Workplace {
    let place = Workplace::with_base();
    let pictures: Vec<_> = (0..ROWS).map(|row| Some(painted(row))).collect();
    let masks: Vec<_> = (0..ROWS).map(|row| Some(mask(row))).collect();
    let corners: Vec<Vec<[f32; 4]>> =
        (0..ROWS).map(|row| things(row).iter().map(|(corners, _)| *corners).collect()).collect();
    let labels: Vec<Vec<&str>> = (0..ROWS).map(|row| things(row).iter().map(|(_, label)| *label).collect()).collect();
    let columns = vec![
        ("image", images(&pictures)),
        ("mask", images(&masks)),
        ("boxes", boxes(&corners)),
        ("labels", text_lists(&labels)),
        ("caption", texts(captions())),
    ];
    write_table(&place.path("rows.parquet"), columns, 4);
    for row in 0..ROWS {
        place.write(&format!("{row}.png"), painted(row));
    }
    place.write(
        "recipe.toml",
        format!(
            "[base]\npath = \"base\"\ndtype = \"f32\"\n[adapter]\nrank = 3\ntargets = [\"decoder\", \"vision\", \"aligner\"]\n\
             [[data]]\nname = \"own\"\n{table}\ntrain = \"rows.parquet\"\neval = \"rows.parquet\"\n\
             [train]\nsteps = 120\nbatch_size = 6\nlearning_rate = 1e-2\n[output]\ndir = \"run\"\n"
        ),
    );
    place
}

/// The figures of the run's last evaluation.
fn after(place: &Workplace) -> Value {
    let last = place.metrics("run").into_iter().rfind(|line| line["eval"]["after"].is_object()).unwrap();
    last["eval"]["after"]["own"].clone()
}

fn ask(place: &Workplace, more: &[&str]) -> Done {
    let adapter = ["understand", "--base", "base", "--adapter", "run", "--dtype", "f32", "--json"];
    place.janus(&[&adapter[..], more].concat())
}

#[test]
fn boxes_are_learnt_found_and_drawn() {
    let place = place("task = \"locate\"");
    place.janus(&["train", "recipe.toml"]).expect_success();
    let figures = after(&place);
    assert!(figures["map_50"].as_f64().unwrap() > 0.99, "{figures}");
    assert!(figures["map_50_95"].as_f64().unwrap() > 0.8, "{figures}");
    assert!(figures["mean_iou"].as_f64().unwrap() > 0.85, "{figures}");
    assert!(figures["mean_box_map_50"].as_f64().unwrap() < 0.5, "{figures}");

    // The run shows what it found, too.
    let samples: Value = serde_json::from_slice(&place.read("run/samples/step-120/samples.json")).unwrap();
    assert_eq!(samples[0]["expected"], "pit at 4.0, 6.0, 16.0, 14.0");
    assert!(samples[0]["answer"].as_str().unwrap().starts_with("pit 0."), "{samples}");
    assert!(place.path(&format!("run/{}", samples[0]["picture"].as_str().unwrap())).exists());

    let told = ask(&place, &["--task", "locate", "--image", "2.png", "--out", "found.png"]).expect_success().json();
    let sure: Vec<&Value> =
        told["boxes"].as_array().unwrap().iter().filter(|found| found["score"].as_f64().unwrap() > 0.5).collect();
    assert_eq!(sure.len(), 2, "{told}");
    for (corners, label) in things(2) {
        let found = sure.iter().find(|found| found["label"] == label).unwrap();
        for (got, expected) in found["box"].as_array().unwrap().iter().zip(corners) {
            assert!((got.as_f64().unwrap() - f64::from(expected)).abs() < 2.5, "{found}");
        }
    }
    assert_eq!(told["overlay"], "found.png");
    let overlay = image::load_from_memory(&place.read("found.png")).unwrap().to_rgb8();
    assert_eq!(overlay.dimensions(), (400, 320), "small pictures are enlarged");
    // By the program's own name for it where none is given.
    let told = ask(&place, &["--task", "locate", "--image", "3.png"]).expect_success().json();
    assert_eq!(told["overlay"], "3.locate.png");
    assert!(place.path("3.locate.png").exists());
    let told = place.janus(&["adapter", "inspect", "run", "--base", "base", "--json"]).expect_success().json();
    assert_eq!(told["heads"]["own"], json!({ "task": "locate", "labels": ["pit", "scratch"] }));
}

#[test]
fn masks_are_learnt_measured_at_their_own_size_and_drawn() {
    let place = place("task = \"segment\"");
    place.janus(&["train", "recipe.toml", "train.steps=400"]).expect_success();
    let figures = after(&place);
    assert!(figures["dice"].as_f64().unwrap() > 0.9, "{figures}");
    assert!((figures["empty_mask_dice"].as_f64().unwrap() - 1.0 / 6.0).abs() < 1e-9, "{figures}");

    let told = ask(&place, &["--task", "segment", "--image", "4.png"]).expect_success().json();
    assert_eq!(told["size"], json!([40, 32]));
    let runs: Vec<usize> = serde_json::from_value(told["runs"].clone()).unwrap();
    assert_eq!(runs.iter().sum::<usize>(), 40 * 32);
    let inside: usize = runs.iter().skip(1).step_by(2).sum();
    assert_eq!(told["pixels"], inside);
    assert!((300..420).contains(&inside), "of 360: {told}");
    assert!(place.path("4.segment.png").exists());
}

#[test]
fn captions_find_their_pictures() {
    let place = place("task = \"retrieve\"");
    place.janus(&["train", "recipe.toml", "train.steps=50"]).expect_success();
    let figures = after(&place);
    for figure in ["recall_at_1", "caption_recall_at_1"] {
        assert_eq!(figures[figure], 1.0, "{figures}");
    }
    let all = captions();
    let told = ask(&place, &[&["--task", "retrieve", "--image", "1.png"], &all[..]].concat()).expect_success().json();
    assert_eq!(told["captions"][0]["caption"], all[1], "{told}");
    refused(&ask(&place, &["--task", "retrieve", "--image", "1.png"]), &["no captions"]);
    refused(
        &place.janus(&["train", "recipe.toml", "train.batch_size=1", "output.dir=one"]),
        &["hold against each other"],
    );
    assert!(!place.path("one").exists());
}

#[test]
fn rows_and_questions_that_do_not_fit_are_refused() {
    let place = place("task = \"locate\"");
    let table = |corners: [f32; 4], labels: Vec<&'static str>, mask: Vec<u8>| {
        let (mut all, mut names) = (vec![vec![[4.0, 6.0, 16.0, 14.0]]; 5], vec![vec!["pit"]; 5]);
        (all[3], names[3], names[0]) = (vec![corners], labels, vec!["scratch"]);
        let pictures: Vec<_> = (0..5).map(|_| Some(painted(0))).collect();
        let mut masks = vec![Some(self::mask(0)); 5];
        masks[3] = Some(mask);
        let columns = vec![
            ("image", images(&pictures)),
            ("mask", images(&masks)),
            ("boxes", boxes(&all)),
            ("labels", text_lists(&names)),
        ];
        write_table(&place.path("bad.parquet"), columns, 4);
    };
    let train = |more: &[&str]| {
        place.janus(&[&["train", "recipe.toml", "train.steps=1", "data.0.train=bad.parquet"], more].concat())
    };
    for (corners, labels, said) in [
        ([30.0, 2.0, 41.0, 9.0], vec!["pit"], "reaches beyond its image of 40 x 32 pixels"),
        ([39.0, 2.0, 30.0, 31.0], vec!["pit"], "has no area"),
        ([4.0, 2.0, 9.0, 9.0], vec!["pit", "pit"], "1 boxes and 2 labels"),
    ] {
        table(corners, labels, mask(0));
        refused(&train(&[]), &[said, "row 3"]);
        train(&["data_limits.max_bad_rows=1", "output.dir=kept"]).expect_success();
        let rejected = String::from_utf8(place.read("kept/rejected.jsonl")).unwrap();
        assert!(rejected.contains(said), "{rejected}");
        fs_err::remove_dir_all(place.path("kept")).unwrap();
    }
    table([4.0, 2.0, 9.0, 9.0], vec!["pit"], rectangles(20, 16, &[]));
    refused(&train(&["data.0.task=segment", "data.0.columns={}"]), &["the mask has 20 x 16 pixels, its image 40 x 32"]);
    refused(&train(&["data.0.columns={ boxes = \"labels\" }"]), &["expected `list<list<float>>`"]);

    place.janus(&["train", "recipe.toml", "train.steps=1"]).expect_success();
    refused(&ask(&place, &["--task", "segment", "--image", "0.png"]), &["no head `segment` among `own (locate)`"]);
    refused(&ask(&place, &["--task", "locate", "--image", "0.png", "what?"]), &["takes no question"]);
    refused(&ask(&place, &["--task", "locate", "--image", "0.png", "--out", "x.jpg"]), &["not named `.png`"]);
    let other = ["eval", "recipe.toml", "--adapter", "run", "data.0.task=segment"];
    refused(&place.janus(&other), &["the head `own` is to locate, the table's rows are to segment"]);
}

#[test]
fn a_picture_is_changed_as_asked() {
    let place = Workplace::with_base();
    let colour = |row: usize| [[RED, BLUE], [BLUE, RED]][row % 2];
    let picture =
        |row: usize, edited: bool| rectangles(32, 32, &[([8.0, 8.0, 24.0, 24.0], colour(row)[usize::from(edited)])]);
    let sources: Vec<_> = (0..4).map(|row| Some(picture(row, false))).collect();
    let edited: Vec<_> = (0..4).map(|row| Some(picture(row, true))).collect();
    let columns = vec![
        ("source", images(&sources)),
        ("image", images(&edited)),
        ("prompt", texts((0..4).map(|_| "Swap the colours."))),
    ];
    write_table(&place.path("rows.parquet"), columns, 4);
    for row in 0..2 {
        place.write(&format!("{row}.png"), picture(row, false));
    }
    place.write(
        "recipe.toml",
        "[base]\npath = \"base\"\ndtype = \"f32\"\n[adapter]\nrank = 8\ntargets = [\"all\"]\n\
         [[data]]\nname = \"own\"\ntask = \"edit\"\ntrain = \"rows.parquet\"\neval = \"rows.parquet\"\nprompt_dropout = 0.0\n\
         [train]\nsteps = 120\nbatch_size = 4\nlearning_rate = 8e-3\n[output]\ndir = \"run\"\n",
    );
    place.janus(&["train", "recipe.toml"]).expect_success();
    let figures = after(&place);
    assert!(figures["token_accuracy"].as_f64().unwrap() > 0.98, "{figures}");

    // Which picture comes depends on the source: the codes are those of the other colour's picture.
    let drawn: Vec<Value> = (0..2)
        .map(|row| {
            let (source, out) = (format!("{row}.png"), format!("out{row}.png"));
            let arguments = [
                "generate",
                "--base",
                "base",
                "--adapter",
                "run",
                "--dtype",
                "f32",
                "--source",
                &source,
                "--out",
                &out,
                "--guidance",
                "1",
                "--temperature",
                "0",
                "--json",
                "Swap the colours.",
            ];
            place.janus(&arguments).expect_success().json()["codes"][0].clone()
        })
        .collect();
    assert_ne!(drawn[0], drawn[1]);

    // Pictures are drawn and measured where a recipe asks for it, and what else the adapter changed is told.
    fs_err::copy(place.path("recipe.toml"), place.path("other.toml")).unwrap();
    let other = ["eval", "other.toml", "--adapter", "run", "data.0.eval_pictures=3", "data.0.name=other", "--json"];
    let told = place.janus(&other).expect_success().json();
    let figures = &told["after"]["other"];
    assert_eq!(figures["pictures"], 3);
    // An image tokenizer with random weights draws nothing that could be better.
    for name in ["tower_distance", "tower_frechet", "psnr", "ssim"] {
        assert!(figures[name].as_f64().unwrap().is_finite(), "{name}: {told}");
        assert_ne!(figures[name], told["before"]["other"][name], "{name}: {told}");
    }
    assert!(figures.get("caption_agreement").is_none(), "the source is no drawing: {figures}");
    let loss = |side: &str| told[side]["other"]["loss"].clone();
    assert_eq!(told["forgetting"]["other"], json!({ "before": loss("before"), "after": loss("after") }));
    let features = |image: &str| {
        place
            .janus(&[
                "base",
                "features",
                "--base",
                "base",
                "--image",
                image,
                "--level",
                "mid",
                "--out",
                "f.safetensors",
                "--json",
            ])
            .expect_success()
            .json()
    };
    assert_eq!(features("0.png")["shapes"]["features"], json!([1, 16, 48]));
}

#[test]
fn an_alignment_brings_both_paths_together_and_leaves_nothing_behind() {
    let place = place("task = \"segment\"");
    let train = |out: &str, more: &[&str]| {
        let out = format!("output.dir={out}");
        place.janus(&[&["train", "recipe.toml", "train.steps=60", &out], more].concat())
    };
    train("with", &["mifs.weight=0.5"]).expect_success();
    let alignment: Vec<f64> = place.metrics("with").iter().filter_map(|line| line["alignment"].as_f64()).collect();
    assert_eq!(alignment.len(), 60);
    assert!(alignment[59] < 0.5 * alignment[0], "{alignment:?}");
    let keys = |file: &str| {
        let bytes = place.read(file);
        let names: Vec<String> = safetensors::SafeTensors::deserialize(&bytes)
            .unwrap()
            .names()
            .into_iter()
            .map(ToString::to_string)
            .collect();
        names
    };
    assert!(keys("with/janus_extras.safetensors").iter().all(|name| !name.contains("mifs")));
    let checkpoint = "with/checkpoints/step-60/janus_extras.safetensors";
    assert!(keys(checkpoint).iter().any(|name| name == "mifs.log_temperature"), "{:?}", keys(checkpoint));
    // Without pictures or anything that could move, it is refused.
    refused(&train("none", &["mifs.weight=0.5", "adapter.targets=[]"]), &["`[mifs]` can teach nothing"]);
    refused(&train("none", &["mifs.weight=0.5", "train.batch_size=1"]), &["no batch has two pictures"]);
    assert!(!place.path("none").exists());
}
