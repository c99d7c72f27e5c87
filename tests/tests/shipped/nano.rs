//! The built-in base and the recipe that made it.

use std::collections::BTreeSet;
use std::path::Path;

use janus_tests::tiny::Workplace;

use crate::repository;

/// Questions of the world that its train split does not have, answered by the built-in base.
const QUESTIONS: &str = r#"# janus eval questions.toml
[base]
path = "janus-nano"
dtype = "f32"

[adapter]
targets = ["decoder"]

[[data]]
name = "questions"
task = "understand"
train = "synth:world?rows=8&seed=1&size=64"
eval = "synth:world?rows=64&seed=7&size=64&split=eval"

[train]
steps = 1

[output]
dir = "run"
"#;

/// A regression of the shipped weights, or of anything between a picture and an answer, would show here.
#[test]
fn the_built_in_base_answers_and_draws_from_any_folder() {
    let place = Workplace::empty();
    let inspected = place.janus(&["base", "inspect", "janus-nano"]).expect_success().stdout;
    assert!(inspected.contains("native"), "{inspected}");
    place.write("questions.toml", QUESTIONS);
    let evaluated = place.janus(&["eval", "questions.toml", "--json"]).expect_success().json();
    let exact = evaluated["before"]["questions"]["exact_match"].as_f64().unwrap();
    assert!(exact > 0.85, "{evaluated}");
    for light in ["dim", "bright"] {
        let caption = format!("Two large orange wooden wedges, on a plain ground in {light} light.");
        let picture = format!("{light}.png");
        place.janus(&["generate", "--base", "janus-nano", &caption, "--out", &picture]).expect_success();
        for (question, answer) in [
            ("Is the light bright or dim?", light),
            ("What colour is it?", "orange"),
            ("How many parts are there?", "two"),
        ] {
            let asked = ["understand", "--base", "janus-nano", "--image", &picture, question, "--json"];
            assert_eq!(place.janus(&asked).expect_success().json()["text"], answer, "{question}");
        }
    }
}

/// Every stage of the recipe, some steps each and few rows, and the merge that makes a base of the result.
#[test]
fn the_recipe_of_the_built_in_base_runs_in_short() {
    let place = Workplace::empty();
    fs_err::copy(repository().join("recipes/janus-nano.toml"), place.path("nano.toml")).unwrap();
    let tables = 9;
    let rows = |key: &str, tail: &str| -> Vec<String> {
        (0..tables).map(|table| format!("data.{table}.{key}=synth:world?rows=8&seed=1&size=64{tail}")).collect()
    };
    let mut arguments: Vec<String> =
        ["train", "nano.toml", "output.dir=run", "data.0.quantize_from=1"].map(String::from).into();
    arguments.extend(rows("train", ""));
    // Enough for every kind.
    arguments.push("data.2.train=synth:world?rows=96&seed=1&size=64".to_owned());
    arguments.extend((0..5).map(|stage| format!("stage.{stage}.steps=2")));
    arguments.extend((0..5).map(|stage| format!("stage.{stage}.train.batch_size=6")));
    arguments.push("train.warmup_steps=0".to_owned());
    for table in [0, 1, 2, 3, 4, 6, 7, 8] {
        arguments.push(format!("data.{table}.eval=synth:world?rows=4&seed=1&size=64&split=eval"));
    }
    place.janus(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).expect_success();
    let lines = place.metrics("run");
    let stages: Vec<&str> = lines.iter().filter_map(|line| line["step"].as_u64().and(line["stage"].as_str())).collect();
    let mut steps = stages.clone();
    steps.dedup();
    assert_eq!(steps, ["tokenizer", "rendering", "seeing", "describing", "joint"]);
    assert!(stages.len() >= 10, "{stages:?}");

    let base = "init:janus-nano?seed=1&vocabulary=world";
    place.janus(&["merge", "--base", base, "--adapter", "run", "--dtype", "bf16", "--out", "made"]).expect_success();
    let built_in = repository().join("janus-lora/janus-nano");
    let names = |folder: &Path| -> BTreeSet<String> {
        let entries = fs_err::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let made = names(&place.path("made"));
    assert!(names(&built_in).is_subset(&made), "{made:?}");
    // All but the weights is what the recipe makes.
    for name in names(&built_in).iter().filter(|name| *name != "model.safetensors") {
        let (here, shipped) = (place.read(&format!("made/{name}")), fs_err::read(built_in.join(name)).unwrap());
        assert!(here == shipped, "{name} differs from the built-in base's");
    }
    // The classifier and the retrieval of the stage `seeing` are no part of a base.
    let length = |path: &Path| fs_err::metadata(path).unwrap().len();
    assert_eq!(length(&place.path("made/model.safetensors")), length(&built_in.join("model.safetensors")));
}
