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

/// The file that says how it draws unless a command says otherwise, and what it says.
const GENERATION: &str = "generation_config.json";
const GUIDANCE: f64 = 1.5;
const TEMPERATURE: f64 = 0.7;

#[test]
fn the_built_in_base_draws_as_its_own_file_says() {
    let place = Workplace::empty();
    let codes = |more: &[&str]| {
        let command =
            ["generate", "--base", "janus-nano", "A small red metal gear, centre.", "--out", "a.png", "--json"];
        place.janus(&[&command, more].concat()).expect_success().json()["codes"].clone()
    };
    let (guidance, temperature) = (GUIDANCE.to_string(), TEMPERATURE.to_string());
    let own = codes(&[]);
    assert_eq!(own, codes(&["--guidance", &guidance, "--temperature", &temperature]));
    assert_ne!(own, codes(&["--guidance", "5", "--temperature", "1"]));
}

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
    let (tables, stages) = (10, 6);
    let rows = |key: &str, tail: &str| -> Vec<String> {
        (0..tables).map(|table| format!("data.{table}.{key}=synth:world?rows=8&seed=1&size=64{tail}")).collect()
    };
    let mut arguments: Vec<String> =
        ["train", "nano.toml", "output.dir=run", "data.0.quantize_from=1"].map(String::from).into();
    arguments.extend(rows("train", ""));
    // Enough for every kind.
    arguments.push("data.2.train=synth:world?rows=96&seed=1&size=64".to_owned());
    arguments.extend((0..stages).map(|stage| format!("stage.{stage}.steps=2")));
    arguments.extend((0..stages).map(|stage| format!("stage.{stage}.train.batch_size=6")));
    arguments.push("train.warmup_steps=0".to_owned());
    // Conversations are not evaluated.
    for table in (0..tables).filter(|table| *table != 5) {
        arguments.push(format!("data.{table}.eval=synth:world?rows=4&seed=1&size=64&split=eval"));
    }
    place.janus(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).expect_success();
    let lines = place.metrics("run");
    let stages: Vec<&str> = lines.iter().filter_map(|line| line["step"].as_u64().and(line["stage"].as_str())).collect();
    let mut steps = stages.clone();
    steps.dedup();
    assert_eq!(steps, ["tokenizer", "rendering", "seeing", "describing", "joint", "drawing"]);
    assert!(stages.len() >= 12, "{stages:?}");

    let base = "init:janus-nano?seed=1&vocabulary=world";
    place.janus(&["merge", "--base", base, "--adapter", "run", "--dtype", "bf16", "--out", "made"]).expect_success();
    let built_in = repository().join("janus-lora/janus-nano");
    let names = |folder: &Path| -> BTreeSet<String> {
        let entries = fs_err::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let made = names(&place.path("made"));
    assert!(names(&built_in).is_subset(&made), "{made:?}");
    // How it draws best was found once it was there.
    place.edit_json(&format!("made/{GENERATION}"), |config| {
        config["guidance_scale"] = GUIDANCE.into();
        config["temperature"] = TEMPERATURE.into();
    });
    let parsed = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let (made_config, shipped_config) = (place.read(&format!("made/{GENERATION}")), built_in.join(GENERATION));
    assert_eq!(parsed(&made_config), parsed(&fs_err::read(shipped_config).unwrap()));
    // All but that and the weights is what the recipe makes.
    let is_made = |name: &&String| !["model.safetensors", GENERATION].contains(&name.as_str());
    for name in names(&built_in).iter().filter(is_made) {
        let (here, shipped) = (place.read(&format!("made/{name}")), fs_err::read(built_in.join(name)).unwrap());
        assert!(here == shipped, "{name} differs from the built-in base's");
    }
    // The classifier and the retrieval of the stage `seeing` are no part of a base.
    let length = |path: &Path| fs_err::metadata(path).unwrap().len();
    assert_eq!(length(&place.path("made/model.safetensors")), length(&built_in.join("model.safetensors")));
}
