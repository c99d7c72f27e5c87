//! Outputs that cannot be replaced: found out before the work, or written into.

use std::os::unix::fs::symlink;

use super::*;

/// Every command that makes a folder, and every one that makes a file, with `OUT` for what it makes.
const FOLDERS: [&[&str]; 4] = [
    &["train", "recipe.toml", "output.dir=OUT"],
    &["merge", "--base", "base", "--adapter", "run", "--out", "OUT"],
    &["base", "init", "--shape", "janus-tiny", "--out", "OUT"],
    &["base", "convert", "base", "--layout", "native", "--out", "OUT"],
];
const FILES: [&[&str]; 7] = [
    &["generate", "--base", "base", "A part", "--out", "OUT.png"],
    &["base", "features", "--base", "base", "--image", "picture.png", "--level", "mid", "--out", "OUT.png"],
    &["probe", "--base", "base", "--input", "in.safetensors", "--output", "OUT.png"],
    &["data", "synth", "--domain", "inspection", "--rows", "2", "--out", "OUT.png"],
    &["data", "preview", "recipe.toml", "--rows", "2", "--out", "OUT.png"],
    &["report", "run", "--curve", "OUT.png"],
    &["recipe", "copy", "recipe", "OUT.png", "--folder", "."],
];

fn filled(command: &[&str], out: &str) -> Vec<String> {
    command.iter().map(|argument| argument.replace("OUT", out)).collect()
}

#[track_caller]
fn refuses(place: &Workplace, command: &[&str], out: &str, said: &str) {
    let arguments = filled(command, out);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    place.refuses(&arguments, &[said]);
}

/// What keeps an output from being made, in a folder of its own.
fn place_with_obstacles() -> Workplace {
    let place = place_with_adapter();
    place.write("file", "mine");
    place.write("in.safetensors", "no tensors: it is not read");
    symlink("nothing", place.path("dangling")).unwrap();
    symlink("nothing", place.path("dangling.png")).unwrap();
    symlink("loop", place.path("loop")).unwrap();
    symlink("loop.png", place.path("loop.png")).unwrap();
    fs_err::create_dir(place.path("folder.png")).unwrap();
    place
}

#[test]
fn folders_that_cannot_be_made() {
    let place = place_with_obstacles();
    let long = "n".repeat(300);
    for (out, said) in [
        ("file", "is not a folder"),
        ("file/out", "nothing can be written to"),
        ("dangling", "is a link that leads to nothing"),
        ("loop", "nothing can be written to"),
        ("/dev/full", "is not a folder"),
        ("/proc/out", "nothing can be written to"),
        (&long, "nothing can be written to"),
    ] {
        FOLDERS.iter().for_each(|command| refuses(&place, command, out, said));
    }
    // A run's folder is made absolute and plain before.
    for (out, said) in [("new/..", "does not name a file or folder"), ("file/.", "nothing can be written to")] {
        FOLDERS[1..].iter().for_each(|command| refuses(&place, command, out, said));
    }
}

#[test]
fn files_that_cannot_be_made() {
    let place = place_with_obstacles();
    for (out, said) in [
        ("folder", "is a folder, not a file"),
        ("file/out", "nothing can be written to"),
        ("dangling", "is a link that leads to nothing"),
        ("loop", "nothing can be written to"),
        ("/proc/out", "nothing can be written to"),
    ] {
        FILES.iter().for_each(|command| refuses(&place, command, out, said));
    }
    let device = ["data", "synth", "--domain", "inspection", "--rows", "2", "--out"];
    for out in ["/dev/full", "/dev/null", "/dev/stdout", "folder.png/", "new/", "new/."] {
        place.refuses(&[&device[..], &[out]].concat(), &["not a file"]);
    }
}

#[test]
fn an_empty_folder_is_written_into_wherever_it_is() {
    let place = place_with_adapter();
    for (number, command) in FOLDERS.iter().enumerate() {
        for (name, out) in
            [("link", "link"), ("dot", "dot/."), ("up", "up/sub/.."), ("slash", "slash/"), ("new", "new/.")]
        {
            let (name, out) = (format!("{name}{number}"), out.replacen(['/', ' '], &format!("{number}/"), 1));
            let out = if out == "link" { name.clone() } else { out };
            match name.trim_end_matches(char::is_numeric) {
                "link" => {
                    fs_err::create_dir(place.path(&format!("real{number}"))).unwrap();
                    symlink(format!("real{number}"), place.path(&name)).unwrap();
                }
                // Not empty, so it is refused below.
                "up" => fs_err::create_dir_all(place.path(&format!("{name}/sub"))).unwrap(),
                "new" => {}
                _ => fs_err::create_dir(place.path(&name)).unwrap(),
            }
            let arguments = filled(command, &out);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            if name.starts_with("up") {
                place.refuses(&arguments, &["is not empty"]);
                continue;
            }
            place.janus(&arguments).expect_success();
            assert!(fs_err::read_dir(place.path(&name)).unwrap().count() > 2, "{out} of {command:?}");
            assert!(name != "link" || fs_err::symlink_metadata(place.path(&name)).unwrap().is_symlink());
        }
    }
    let left = tree(place.folder()).into_keys().find(|name| name.to_string_lossy().contains(".tmp-"));
    assert_eq!(left, None);
    // The folder that the user stands in.
    fs_err::create_dir(place.path("here")).unwrap();
    let init = ["base", "init", "--shape", "janus-tiny", "--out", "."];
    janus_tests::program::janus(&place.path("here"), &init).expect_success();
    assert!(place.path("here/config.json").exists());
}
