//! The finished adapters over the built-in base.

use std::collections::BTreeSet;

use janus_tests::tiny::Workplace;
use serde_json::Value;

use crate::repository;

fn folder_of(name: &str) -> String {
    repository().join("adapters").join(name).to_str().unwrap().to_owned()
}

#[test]
fn every_adapter_has_a_card_a_recipe_and_the_built_in_base() {
    let root = repository().join("adapters");
    let catalogue = fs_err::read_to_string(root.join("README.md")).unwrap();
    let folders = fs_err::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let names: BTreeSet<String> =
        folders.map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let place = Workplace::empty();
    for name in &names {
        assert!(catalogue.contains(&format!("({name}/README.md)")), "{name} is not in the catalogue");
        assert!(root.join(name).join("README.md").exists(), "{name} has no card");
        let inspected = place.janus(&["adapter", "inspect", &folder_of(name), "--base", "janus-nano"]).expect_success();
        assert!(!inspected.stderr.contains("warning"), "{}", inspected.stderr);
        let recipe = repository().join(format!("recipes/{name}.toml"));
        place.janus(&["recipe", "check", recipe.to_str().unwrap()]).expect_success();
    }
    for name in ["creative", "inspection", "medical"] {
        assert!(names.contains(name), "{names:?}");
    }
}

#[test]
fn the_inspection_adapter_tells_defects_and_what_to_do() {
    let place = Workplace::empty();
    let recipe = repository().join("recipes/inspection.toml");
    let (recipe, adapter) = (recipe.to_str().unwrap(), folder_of("inspection"));
    let mut arguments: Vec<String> = ["eval", recipe, "--adapter", &adapter, "--json"].map(String::from).into();
    for table in 0..3 {
        arguments.push(format!("data.{table}.train=synth:inspection?rows=64&seed=1&size=64"));
        arguments.push(format!("data.{table}.eval=synth:inspection?rows=48&seed=5&size=64&split=eval"));
    }
    let told = place.janus(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).expect_success().json();
    let (before, after) = (&told["before"], &told["after"]);
    let figure = |of: &Value, table: &str, name: &str| of[table][name].as_f64().unwrap();
    let accuracy = figure(after, "defects", "accuracy");
    assert!(accuracy > figure(after, "defects", "majority_accuracy") + 0.5, "{after}");
    assert!(figure(after, "advice", "exact_match") > figure(before, "advice", "exact_match") + 0.4, "{after}");
}

#[test]
fn the_answers_of_the_cards_are_given() {
    let place = Workplace::empty();
    for (name, picture, question, answer) in [
        ("inspection", "plate", "What should be done?", "Grind the heavy scratch down and brush the plate again."),
        (
            "medical",
            "chest",
            "Write the report.",
            "Two nodules. Large nodule in the upper left lung; small nodule in the lower right lung.",
        ),
        ("creative", "product", "Write a line of copy.", "Cool and calm: the blue cup."),
    ] {
        let (folder, card) = (folder_of(name), folder_of(&format!("{name}/README.md")));
        let picture = format!("{folder}/{picture}.png");
        let asked = ["understand", "--base", "janus-nano", "--adapter", &folder, "--image", &picture, question];
        assert_eq!(place.janus(&asked).expect_success().stdout.trim(), answer);
        assert!(fs_err::read_to_string(card).unwrap().contains(answer), "the card of {name} says otherwise");
    }
}
