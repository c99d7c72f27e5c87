//! The recipes that are shipped.

use std::collections::BTreeSet;
use std::path::PathBuf;

use janus_lora::recipe;
use janus_tests::program::janus;
use janus_tests::tiny::Workplace;

use crate::repository;

fn folder() -> PathBuf {
    repository().join("recipes")
}

/// Every `*.toml` below the folder, by its path in it.
fn shipped() -> BTreeSet<PathBuf> {
    let (root, mut found, mut open) = (folder(), BTreeSet::new(), vec![folder()]);
    while let Some(folder) = open.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "toml") {
                found.insert(path.strip_prefix(&root).unwrap().to_path_buf());
            }
        }
    }
    found
}

#[test]
fn every_recipe_loads_and_opens_with_its_command() {
    let recipes = shipped();
    assert!(recipes.len() >= 5, "{recipes:?}");
    for name in &recipes {
        let path = folder().join(name);
        let recipe = recipe::load(&path, &[], &folder()).unwrap_or_else(|error| panic!("{error}"));
        assert!(recipe.output.dir.components().next().is_some(), "{}", name.display());
        let written = recipe::to_toml(&recipe);
        let copy = tempfile::tempdir().unwrap();
        fs_err::write(copy.path().join("again.toml"), written).unwrap();
        let reread = recipe::load(&copy.path().join("again.toml"), &[], &folder()).unwrap();
        assert_eq!(reread, recipe, "{} as it is written", name.display());

        let text = fs_err::read_to_string(&path).unwrap();
        let first = text.lines().next().unwrap();
        let command = format!("janus train recipes/{}", name.to_string_lossy().replace('\\', "/"));
        assert!(
            first.starts_with('#') && first.contains(&command),
            "{}: `{first}` is not `# {command} ...`",
            name.display()
        );
    }
}

#[test]
fn the_program_lists_and_checks_them_all() {
    let root = folder();
    let work = root.parent().unwrap();
    let listed = janus(work, &["recipe", "list", "--json"]).expect_success().json();
    let listed = listed["recipes"].as_array().unwrap();
    let names: BTreeSet<PathBuf> =
        listed.iter().map(|recipe| PathBuf::from(format!("{}.toml", recipe["name"].as_str().unwrap()))).collect();
    assert_eq!(names, shipped());
    for recipe in listed {
        assert!(recipe["error"].is_null(), "{recipe}");
        assert!(!recipe["summary"].as_str().unwrap().is_empty() && !recipe["tasks"].as_array().unwrap().is_empty());
    }
    let table = janus(work, &["recipe", "list"]).expect_success().stdout;
    for name in shipped() {
        let name = name.with_extension("");
        assert!(table.lines().any(|line| line.starts_with(&*name.to_string_lossy())), "{table}");
        let path = format!("recipes/{}.toml", name.display());
        janus(work, &["recipe", "check", &path]).expect_success();
    }
}

/// A shipped recipe whose command names the file `out`.
fn original(name: &str, out: &str) -> Vec<u8> {
    let text = fs_err::read_to_string(folder().join(format!("{name}.toml"))).unwrap();
    let (command, rest) = text.split_once('\n').unwrap();
    let own = command.replace(&format!("recipes/{name}.toml"), out);
    assert_ne!(own, command);
    format!("{own}\n{rest}").into_bytes()
}

#[test]
fn the_command_of_a_copy_is_its_own() {
    let place = Workplace::empty();
    let first = |out: &str| {
        place.janus(&["recipe", "copy", "quickstart", out]).expect_success();
        String::from_utf8(place.read(out)).unwrap().lines().next().unwrap().to_owned()
    };
    assert!(first("own.toml").starts_with("# janus train own.toml      two to three minutes"));
    assert!(first("my recipes/it's.toml").starts_with("# janus train 'my recipes/it'\\''s.toml'  "));
    // It is what `recipe list` and a shell make of it.
    let listed = place.janus(&["recipe", "list", "my recipes", "--json"]).expect_success().json();
    assert!(listed["recipes"][0]["error"].is_null(), "{listed}");
    let odd = first("two\nlines.toml");
    assert!(odd.starts_with("# janus train recipes/quickstart.toml "), "{odd}");
    place.janus(&["recipe", "check", "two\nlines.toml"]).expect_success();
}

#[test]
fn a_recipe_is_copied_as_it_stands_and_over_nothing() {
    let place = Workplace::empty();
    let recipes = folder();
    let recipes = recipes.to_str().unwrap();
    let copy = |name: &str, out: &str| place.janus(&["recipe", "copy", name, out, "--folder", recipes]);
    let done = copy("quickstart", "mine/first.toml").expect_success();
    assert_eq!(done.stdout.trim(), "mine/first.toml");
    assert!(!done.stderr.contains("reads"), "its rows are drawn, wherever it lies: {}", done.stderr);
    assert_eq!(place.read("mine/first.toml"), original("quickstart", "mine/first.toml"));
    place.janus(&["recipe", "check", "mine/first.toml"]).expect_success();
    // What this one reads lies beside the recipes.
    let told = copy("grocery-joint", "joint.toml").expect_success().stderr;
    assert!(told.contains("`data.0.train` reads") && told.contains("`data.1.eval` reads"), "{told}");
    place.refuses(&["recipe", "copy", "quickstart", "joint.toml", "--folder", recipes], &["exists"]);
    place.refuses(&["recipe", "copy", "quickstrat", "new.toml", "--folder", recipes], &["no recipe", "`quickstart`"]);
}

#[test]
fn recipes_are_listed_and_copied_far_from_the_repository() {
    let place = Workplace::empty();
    let listed = place.janus(&["recipe", "list", "--json"]).expect_success().json();
    let listed = listed["recipes"].as_array().unwrap();
    let names: BTreeSet<PathBuf> =
        listed.iter().map(|recipe| PathBuf::from(format!("{}.toml", recipe["name"].as_str().unwrap()))).collect();
    assert_eq!(names, shipped());
    assert!(listed.iter().all(|recipe| recipe["path"].is_null() && recipe["error"].is_null()), "{listed:?}");

    for (name, out) in [("quickstart", "a.toml"), ("understand", "deep/b.toml"), ("generate", "c.toml")] {
        let done = place.janus(&["recipe", "copy", name, out]).expect_success();
        assert_eq!(done.stdout.trim(), out);
        assert!(!done.stderr.contains("nothing is yet"), "its rows are drawn: {}", done.stderr);
        assert_eq!(place.read(out), original(name, out));
        place.janus(&["recipe", "check", out]).expect_success();
    }
    let curve = fs_err::read(folder().join("quickstart.curve.json")).unwrap();
    assert_eq!(place.read("a.curve.json"), curve, "a run from there is held against the same losses");
    assert!(!place.path("c.curve.json").exists());
    // What this one reads is not carried along.
    let told = place.janus(&["recipe", "copy", "grocery-joint", "joint.toml"]).expect_success().stderr;
    assert!(told.contains("`data.0.train` reads") && told.contains("nothing is yet"), "{told}");

    place.refuses(&["recipe", "copy", "quickstrat", "new.toml"], &["no recipe", "`quickstart`"]);
    place.write("d.curve.json", "{}");
    place.refuses(&["recipe", "copy", "quickstart", "d.toml"], &["`d.curve.json` exists"]);
    place.refuses(&["train", "recipes/quickstart.toml"], &["janus recipe copy quickstart quickstart.toml"]);
    // Recipes of one's own stand beside them.
    fs_err::create_dir(place.path("recipes")).unwrap();
    place.write("recipes/mine.toml", place.read("c.toml"));
    let listed = place.janus(&["recipe", "list", "--json"]).expect_success().json();
    let mine = listed["recipes"].as_array().unwrap().iter().find(|recipe| recipe["name"] == "mine").unwrap().clone();
    assert_eq!(mine["path"], "./recipes/mine.toml");
    assert_eq!(listed["recipes"].as_array().unwrap().len(), shipped().len() + 1);
}

#[test]
fn starting_points_begin_with_trained_weights_and_run_as_they_stand() {
    let place = Workplace::empty();
    for name in ["understand", "generate"] {
        let out = format!("{name}.toml");
        place.janus(&["recipe", "copy", name, &out]).expect_success();
        let done = place.janus(&["train", &out, "train.steps=2", &format!("output.dir={name}")]).expect_success();
        assert!(!done.stderr.contains("random weights"), "{}", done.stderr);
        assert!(done.stderr.contains("base       janus-nano"), "{}", done.stderr);
    }
}

#[test]
fn the_schema_and_the_reference_page_are_printed() {
    let place = Workplace::empty();
    let schema = place.janus(&["recipe", "schema"]).expect_success().json();
    assert_eq!(schema["properties"]["train"]["properties"]["sample_every"]["type"], "integer");
    let page = place.janus(&["recipe", "schema", "--markdown"]).expect_success().stdout;
    assert!(page.starts_with("# Recipe\n") && page.contains("| `rank` | "), "{page}");
}
