//! What stands beside an adapter's pairs, the dynamic encoder and task heads: trained, stopped and gone on with, merged, asked.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use janus_tests::compare::close;
use janus_tests::expected::Expected;
use janus_tests::program::refused;
use janus_tests::rows::{images, picture, texts, write_table};
use janus_tests::tiny::Workplace;

const EXTRAS: &str = "janus_extras.safetensors";

/// Both paths of a base with this adapter, or none: image features and text logits, and logits of codes.
fn outputs(place: &Workplace, base: &str, adapter: Option<&str>) -> [Tensor; 3] {
    let pixels: Vec<f32> = (0..3 * 32 * 32).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
    let pixels = Tensor::from_vec(pixels, (1, 3, 32, 32), &Device::Cpu).unwrap();
    let ids = Tensor::new(&[[256i64, 5, 80, 9, 33]], &Device::Cpu).unwrap();
    let codes = Tensor::new(&[[1i64, 5, 7, 2]], &Device::Cpu).unwrap();
    let probe = |name: &str, input: Vec<(&str, Tensor)>| {
        place.write("in.safetensors", safetensors::serialize(input, None).unwrap());
        let mut arguments = vec!["probe", "--base", base, "--input", "in.safetensors", "--output", "out.safetensors"];
        arguments.extend(adapter.iter().flat_map(|adapter| ["--adapter", adapter]));
        place.janus(&arguments).expect_success();
        Expected::load(place.folder(), "out.safetensors").tensor(name).clone()
    };
    let placeholders = Tensor::cat(&[&ids, &placeholder_ids(place)], 1).unwrap();
    [
        probe("image_features", vec![("input_ids", placeholders.clone()), ("pixel_values", pixels.clone())]),
        probe("logits", vec![("input_ids", placeholders), ("pixel_values", pixels)]),
        probe("gen_logits", vec![("input_ids", ids), ("image_tokens", codes)]),
    ]
}

/// As many ids of the image placeholder as a picture has patches.
fn placeholder_ids(place: &Workplace) -> Tensor {
    let config: serde_json::Value = serde_json::from_slice(&place.read("base/config.json")).unwrap();
    let id = config["image_token_id"].as_i64().unwrap();
    let vision = &config["vision_config"];
    let side = vision["image_size"].as_u64().unwrap() / vision["patch_size"].as_u64().unwrap();
    Tensor::full(id, (1, (side * side) as usize), &Device::Cpu).unwrap()
}

fn far(one: &Tensor, other: &Tensor) -> bool {
    (one - other).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 1e-3
}

#[cfg(unix)]
#[test]
fn a_dynamic_encoder_is_trained_on_both_paths_resumed_to_the_bit_and_folded() {
    use janus_tests::joint::{difference, lines, place, run, stopped};

    let place = place();
    // The alignment's temperature is in checkpoints alone, and has to come back with them.
    let dynamic = [
        "dynamic.enabled=true",
        "dynamic.learning_rate=2e-3",
        "mifs.weight=0.2",
        "adapter.targets=[\"decoder\", \"generation\"]",
    ];
    assert_eq!(run(&place, "whole", &dynamic).code, Some(0));
    let ended = stopped(&place, "cut", &dynamic, "TERM", &|| lines(&place, "cut") >= 5);
    assert_eq!(ended.code(), Some(143));
    let resumed = run(&place, "cut", &[&dynamic[..], &["--resume"]].concat());
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert_eq!(difference(&place, "whole", "cut"), None);
    assert_eq!(place.read(&format!("cut/{EXTRAS}")), place.read(&format!("whole/{EXTRAS}")));

    let plain = outputs(&place, "base", None);
    let attached = outputs(&place, "base", Some("whole"));
    for (attached, plain) in attached.iter().zip(&plain) {
        assert!(far(attached, plain));
    }
    // Without its encoder the adapter leaves the tower alone.
    let arguments = ["merge", "--base", "base", "--adapter", "whole", "--out", "merged", "--json"];
    let receipt = place.janus(&arguments).expect_success().json();
    assert!(receipt["largest_logit_difference"].as_f64().unwrap() < 2e-4, "{receipt}");
    for (name, (merged, attached)) in
        ["image_features", "logits", "gen_logits"].iter().zip(outputs(&place, "merged", None).iter().zip(&attached))
    {
        close(name, merged, attached, 2e-4);
    }
    fs_err::remove_file(place.path(&format!("whole/{EXTRAS}"))).unwrap();
    let refused = place.janus(&["understand", "--base", "base", "--adapter", "whole", "What?"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("`{EXTRAS}` is missing")), "{}", refused.stderr);
    // Its pairs alone are an adapter, too, of one who says so.
    place.edit_json("whole/adapter_config.json", |config| {
        config["auto_mapping"]["janus_extras"] = serde_json::json!([])
    });
    let pairs_alone = outputs(&place, "base", Some("whole"));
    close("image_features", &pairs_alone[0], &plain[0], 0.0);
    assert!(far(&pairs_alone[2], &attached[2]));
}

const LABELS: [&str; 3] = ["clean", "pit", "scratch"];

/// A base, nine pictures of three labels, and a recipe to classify them.
fn labelled() -> Workplace {
    let place = Workplace::with_base();
    rows(&place, "rows.parquet", |i| LABELS[i % 3]);
    for i in 0..9 {
        place.write(&format!("{i}.png"), picture(40, 32, i));
    }
    place.write(
        "recipe.toml",
        "[base]\npath = \"base\"\ndtype = \"f32\"\n[adapter]\nrank = 3\ntargets = [\"vision\", \"aligner\"]\n\
         [[data]]\nname = \"defects\"\ntask = \"classify\"\ntrain = \"rows.parquet\"\neval = \"rows.parquet\"\n\
         columns = { label = \"kind\" }\n\
         [train]\nsteps = 120\nbatch_size = 9\nlearning_rate = 1e-2\n[output]\ndir = \"run\"\n",
    );
    place
}

fn rows(place: &Workplace, name: &str, label: impl Fn(usize) -> &'static str) {
    let pictures: Vec<_> = (0..9).map(|i| Some(picture(40, 32, i))).collect();
    let columns = vec![("image", images(&pictures)), ("kind", texts((0..9).map(label)))];
    write_table(&place.path(name), columns, 4);
}

#[test]
fn a_head_learns_a_handful_of_pictures_and_tells_them() {
    let place = labelled();
    place.janus(&["train", "recipe.toml"]).expect_success();
    let evaluated = place.metrics("run").into_iter().rfind(|line| line["eval"]["after"].is_object()).unwrap();
    let (before, after) = (&evaluated["eval"]["before"]["defects"], &evaluated["eval"]["after"]["defects"]);
    assert_eq!(after["accuracy"], 1.0, "{evaluated}");
    assert_eq!(after["confusion"], serde_json::json!([[3, 0, 0], [0, 3, 0], [0, 0, 3]]));
    assert!((before["loss"].as_f64().unwrap() - 3f64.ln()).abs() < 0.3, "labels are about alike at first: {before}");

    // The same of the saved adapter, and of a picture by itself.
    let adapter = ["--base", "base", "--adapter", "run", "--dtype", "f32", "--task", "classify", "--json"];
    for i in 0..9usize {
        let image = format!("{i}.png");
        let told = place.janus(&[&["understand", "--image", &image], &adapter[..]].concat()).expect_success().json();
        assert_eq!(told["label"], LABELS[i % 3], "{told}");
        let sum: f64 = told["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }
    let figures = place.janus(&["eval", "recipe.toml", "--adapter", "run", "--json"]).expect_success().json();
    assert_eq!(figures["after"]["defects"]["accuracy"], 1.0);
    assert!(figures["before"].get("defects").is_none(), "without the adapter there is no head: {figures}");

    let told = place.janus(&["adapter", "inspect", "run", "--base", "base", "--json"]).expect_success().json();
    assert_eq!(told["heads"]["defects"], serde_json::json!({ "task": "classify", "labels": LABELS }));

    let merged = place.janus(&["merge", "--base", "base", "--adapter", "run", "--out", "merged"]).expect_success();
    assert!(merged.stderr.contains("heads are no part of a checkpoint: `defects`"), "{}", merged.stderr);
}

#[test]
fn heads_and_labels_that_do_not_fit_are_refused() {
    let place = labelled();
    rows(&place, "strange.parquet", |i| if i == 4 { "rust" } else { LABELS[i % 3] });
    rows(&place, "same.parquet", |_| "pit");
    let train = |more: &[&str]| place.janus(&[&["train", "recipe.toml", "train.steps=2"], more].concat());
    refused(&train(&["data.0.eval=strange.parquet"]), &["the label `rust` is none of the 3 labels to train on"]);
    refused(&train(&["data.0.train=same.parquet"]), &["`kind` of `defects` holds one label"]);
    refused(&train(&["data.0.columns={ image = \"image\" }"]), &["no column `label`"]);
    assert!(!place.path("run").exists());
    train(&["data.0.eval=strange.parquet", "data_limits.max_bad_rows=1"]).expect_success();
    let rejected = String::from_utf8(place.read("run/rejected.jsonl")).unwrap();
    assert!(rejected.contains("rust") && rejected.lines().count() == 1, "{rejected}");

    let ask = |more: &[&str]| {
        place.janus(&[&["understand", "--base", "base", "--image", "0.png", "--task", "classify"], more].concat())
    };
    refused(&ask(&[]), &["there is no head `classify`, nor any other"]);
    refused(
        &ask(&["--adapter", "run", "--head", "others"]),
        &["there is no head `others (classify)` among `defects (classify)`"],
    );
    refused(&ask(&["--adapter", "run", "--adapter", "run"]), &["several heads"]);
    let other = ["eval", "recipe.toml", "--adapter", "run", "data.0.train=two.parquet", "data.0.eval=two.parquet"];
    rows(&place, "two.parquet", |i| LABELS[i % 2]);
    refused(
        &place.janus(&other),
        &["the head `defects` is for the labels clean, pit, scratch, the table has clean, pit"],
    );
}
