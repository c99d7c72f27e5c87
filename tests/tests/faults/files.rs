//! Pipes, devices and files of a length that no such file has, wherever a file is read: nothing waits, nothing is filled.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use janus_tests::program::refused;
use janus_tests::tiny::Workplace;

use super::place_with_adapter;

/// Longer than any file that is read whole, and no byte of it on the disk.
const GIANT_BYTES: u64 = 1 << 41;

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn device(path: &Path) {
    std::os::unix::fs::symlink("/dev/zero", path).unwrap();
}

/// In the place of a file, or as a new one.
fn put(place: &Workplace, name: &str, make: fn(&Path)) {
    let path = place.path(name);
    let _ = fs_err::remove_file(&path);
    make(&path);
}

#[test]
fn what_is_no_file_is_not_read() {
    for make in [pipe, device] {
        let place = place_with_adapter();
        for name in ["odd.toml", "odd.png", "odd.safetensors"] {
            put(&place, name, make);
        }
        for arguments in [
            &["train", "odd.toml"][..],
            &["recipe", "check", "odd.toml"],
            &["data", "check", "odd.toml"],
            &["understand", "--base", "base", "--image", "odd.png", "What?"],
            &["generate", "--base", "base", "--source", "odd.png", "A part", "--out", "x.png"],
            &["probe", "--base", "base", "--input", "odd.safetensors", "--output", "out.safetensors"],
        ] {
            refused(&place.janus(arguments), &["not a regular file", "hint: "]);
        }
        for name in
            ["adapter_config.json", "adapter_model.safetensors", "janus_adapter.json", "janus_extras.safetensors"]
        {
            let place = place_with_adapter();
            put(&place, &format!("run/{name}"), make);
            let ask = ["understand", "--base", "base", "--adapter", "run", "What?"];
            refused(&place.janus(&ask), &[name, "hint: "]);
        }
        let place = place_with_adapter();
        put(&place, "base/model.safetensors", make);
        refused(&place.janus(&["understand", "--base", "base", "What?"]), &["model.safetensors"]);
    }
    let place = place_with_adapter();
    fs_err::remove_file(place.path("run/adapter_model.safetensors")).unwrap();
    put(&place, "run/.lock", pipe);
    refused(&place.janus(&["train", "recipe.toml", "--resume"]), &[".lock", "hint: "]);
    let place = place_with_adapter();
    put(&place, "run/metrics.jsonl", pipe);
    refused(&place.janus(&["report", "run"]), &["metrics.jsonl"]);
}

/// Rows that cannot be read are not rows that are not there: a folder or pattern does not pass over them in silence.
#[test]
fn a_table_that_cannot_be_read_is_not_passed_over() {
    let gone = |path: &Path| std::os::unix::fs::symlink("../blobs/gone", path).unwrap();
    let socket = |path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    let makes: [&dyn Fn(&Path); 4] =
        [&pipe, &|path| std::os::unix::fs::symlink("/dev/null", path).unwrap(), &gone, &socket];
    let place = place_with_adapter();
    fs_err::create_dir(place.path("tables")).unwrap();
    fs_err::copy(place.path("rows.parquet"), place.path("tables/a.parquet")).unwrap();
    place.janus(&["data", "stats", "tables", "--base", "base"]).expect_success();
    for make in makes {
        make(&place.path("tables/b.parquet"));
        for source in ["tables", "tables/*.parquet", "tables/*", "*/b.parquet"] {
            refused(&place.janus(&["data", "stats", source, "--base", "base"]), &["b.parquet", "hint: "]);
        }
        fs_err::remove_file(place.path("tables/b.parquet")).unwrap();
    }
    // Other files that a pattern matches beside tables are passed over with a note.
    gone(&place.path("tables/notes"));
    pipe(&place.path("tables/pipe"));
    let done = place.janus(&["data", "stats", "tables/*", "--base", "base"]).expect_success();
    assert!(
        done.stderr.contains("also matches `notes` and `pipe`") || done.stderr.contains("`notes`, `pipe`"),
        "{}",
        done.stderr
    );
}

#[test]
fn what_is_longer_than_any_such_file_is_not_read() {
    let place = place_with_adapter();
    let giant = |name: &str| File::create(place.path(name)).unwrap().set_len(GIANT_BYTES).unwrap();
    for (name, arguments) in [
        ("odd.toml", &["train", "odd.toml"][..]),
        ("odd.png", &["understand", "--base", "base", "--image", "odd.png", "What?"]),
        ("odd.safetensors", &["probe", "--base", "base", "--input", "odd.safetensors", "--output", "out.safetensors"]),
        ("run/adapter_config.json", &["understand", "--base", "base", "--adapter", "run", "What?"]),
        ("run/janus_adapter.json", &["adapter", "inspect", "run"]),
    ] {
        giant(name);
        let done = place.janus(arguments);
        assert_eq!(done.code, Some(2), "{arguments:?}: {}", done.stderr);
        fs_err::remove_file(place.path(name)).unwrap();
    }
}
