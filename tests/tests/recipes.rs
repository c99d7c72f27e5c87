//! The recipes that are shipped.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use janus_lora::recipe;
use janus_tests::program::janus;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("recipes")
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
