//! Links that lead out of the folder they lie in, as a stranger's folder may hold them.

use std::os::unix::fs::symlink;

use super::*;

/// Puts a file elsewhere and a link to it in its place.
fn swap(place: &Workplace, name: &str) {
    fs_err::rename(place.path(name), place.path("elsewhere")).unwrap();
    symlink(place.path("elsewhere"), place.path(name)).unwrap();
}

const LEADS_OUT: &str = "is a link that leads out of";

#[test]
fn a_base_is_read_from_its_own_folder_only() {
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let place = place();
        swap(&place, &format!("base/{name}"));
        place.refuses(&["train", "recipe.toml"], &[name, LEADS_OUT]);
    }
    // What is copied into a new base is passed on with it.
    for name in ["LICENSE", "chat_template.jinja"] {
        let place = place();
        place.write("secret", "mine");
        let _ = fs_err::remove_file(place.path("base").join(name));
        symlink("../secret", place.path("base").join(name)).unwrap();
        let convert = ["base", "convert", "base", "--layout", "native", "--out", "out"];
        place.refuses(&convert, &[name, LEADS_OUT]);
    }
    let place = place();
    fs_err::remove_file(place.path("base/config.json")).unwrap();
    symlink("/dev/zero", place.path("base/config.json")).unwrap();
    // Not compared with what was there before: that would read it to its end.
    let done = place.janus(&["base", "inspect", "base"]);
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("config.json` is not a regular file"), "{}", done.stderr);
}

#[test]
fn a_snapshot_of_a_cache_keeps_its_files_in_blobs() {
    let place = place();
    let snapshot = place.path("models--owner--name/snapshots/abc");
    let blobs = place.path("models--owner--name/blobs");
    fs_err::create_dir_all(&snapshot).unwrap();
    fs_err::create_dir_all(&blobs).unwrap();
    for (number, entry) in fs_err::read_dir(place.path("base")).unwrap().enumerate() {
        let entry = entry.unwrap();
        fs_err::rename(entry.path(), blobs.join(number.to_string())).unwrap();
        symlink(format!("../../blobs/{number}"), snapshot.join(entry.file_name())).unwrap();
    }
    let snapshot = snapshot.to_str().unwrap();
    place.janus(&["base", "inspect", snapshot]).expect_success();
    place.janus(&["base", "convert", snapshot, "--layout", "native", "--out", "out"]).expect_success();
    assert!(place.path("out/tokenizer.json").symlink_metadata().unwrap().is_file());
}

#[test]
fn an_adapter_is_read_from_its_own_folder_only() {
    for name in ["adapter_config.json", "adapter_model.safetensors", "janus_adapter.json"] {
        let place = place_with_adapter();
        swap(&place, &format!("run/{name}"));
        place.refuses(&["adapter", "inspect", "run", "--base", "base"], &[name, LEADS_OUT]);
    }
}

#[test]
fn a_run_is_gone_on_with_and_told_of_in_its_own_folder_only() {
    for name in ["metrics.jsonl", ".lock", "checkpoints"] {
        let place = place_with_adapter();
        // Without its adapter a run is not over.
        fs_err::remove_file(place.path("run/adapter_model.safetensors")).unwrap();
        swap(&place, &format!("run/{name}"));
        place.refuses(&["train", "recipe.toml", "--resume"], &[name, "leads out of the run folder"]);
    }
    for name in ["metrics.jsonl", "recipe.toml", "run.json"] {
        let place = place_with_adapter();
        swap(&place, &format!("run/{name}"));
        place.refuses(&["report", "run"], &[name, LEADS_OUT]);
    }
}

#[test]
fn a_folder_of_tables_is_read_from_itself_only() {
    let place = place();
    fs_err::create_dir(place.path("data")).unwrap();
    symlink("../rows.parquet", place.path("data/rows.parquet")).unwrap();
    for source in ["data", "data/*.parquet"] {
        place.refuses(&["train", "recipe.toml", &format!("data.0.train={source}")], &[LEADS_OUT]);
    }
}
