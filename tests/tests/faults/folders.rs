//! Folders that others can write to while a command works in them, and what killed commands leave there.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use janus_core::directory::Directory;
use janus_core::output::StagedFolder;
use janus_tests::joint::wait_until;
use janus_tests::program::{self, Done, refused};

use super::*;

const MERGE: [&str; 7] = ["merge", "--base", "base", "--adapter", "run", "--out", "merged"];

fn names(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn left_behind(folder: &Path) -> Vec<PathBuf> {
    tree(folder).into_keys().filter(|name| name.to_string_lossy().contains(".tmp-")).collect()
}

/// A folder of somebody else beside the run's.
fn victim(place: &Workplace) -> Tree {
    for name in ["state.json", "adapter_model.safetensors", "step-1/state.json", "step-2/state.json", "rows/0-0.png"] {
        fs_err::create_dir_all(place.path("victim").join(name).parent().unwrap()).unwrap();
        place.write(&format!("victim/{name}"), "mine");
    }
    tree(&place.path("victim"))
}

/// Puts a link in the place of `name`, again and again, until `is_over`: to a folder of somebody else's where the run has a
/// folder, to a file where it has a file.
fn plant_links(place: &Workplace, name: &str, is_over: &AtomicBool) {
    let (run, victim) = (place.path("run"), place.path("victim"));
    let target = match name.rsplit('/').next().unwrap() {
        last if last.contains('.') && !last.contains(".tmp-janus-folder") => victim.join("state.json"),
        _ => victim,
    };
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        let path = run.join(name);
        if path.parent().is_some_and(Path::is_dir) && !path.is_symlink() {
            // Aside, as whoever shares the folder may: what the run has open goes on in it.
            let _ = std::fs::rename(&path, place.path(&format!("aside-{number}")));
            let _ = symlink(&target, &path);
            number += 1;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn links_planted_during_a_run_lead_nowhere() {
    let more = ["train.steps=3", "train.checkpoint_every=1", "train.eval_every=1", "train.sample_every=1"];
    let eval = "data.0.eval=rows.parquet";
    for name in [
        ".lock",
        "metrics.jsonl",
        "recipe.toml",
        "rejected.jsonl",
        "run.json",
        "report.html",
        "loss.png",
        "adapter_config.json",
        "adapter_model.safetensors",
        "janus_adapter.json",
        "samples",
        "samples/rows",
        "samples/step-1",
        "checkpoints",
        "checkpoints/step-1",
        "checkpoints/step-2",
        "checkpoints/step-1/state.json",
        "checkpoints/.step-1.tmp-removed",
        "checkpoints/.step-2.tmp-janus-folder",
        ".report.html.tmp-x",
    ] {
        let place = place();
        let before = victim(&place);
        let is_over = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            scope.spawn(|| plant_links(&place, name, &is_over));
            let arguments = ["train", "recipe.toml", eval].into_iter().chain(more).collect::<Vec<_>>();
            let done = place.janus(&arguments);
            is_over.store(true, Ordering::Relaxed);
            done
        });
        assert!(tree(&place.path("victim")) == before, "`{name}`: {}", done.stderr);
        assert!(!done.stderr.contains("panicked"), "`{name}`: {}", done.stderr);
        let is_told = done.code == Some(2) && done.stderr.contains("hint: ");
        assert!(done.code == Some(0) || is_told, "`{name}`: {:?} {}", done.code, done.stderr);
        // And gone on with, by whoever has not looked into the folder.
        let again = place.janus(&["train", "recipe.toml", eval, more[0], more[1], more[2], more[3], "--resume"]);
        assert!(matches!(again.code, Some(0 | 2)) && !again.stderr.contains("panicked"), "`{name}`: {}", again.stderr);
        assert!(tree(&place.path("victim")) == before, "`{name}`, resumed: {}", again.stderr);
    }
}

/// Modes of everything below a folder, those of folders and those of files.
fn modes(folder: &Path) -> Vec<(PathBuf, u32)> {
    let mut modes = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        modes.push((next.clone(), fs_err::metadata(&next).unwrap().permissions().mode() & 0o7777));
        for name in names(&next) {
            let path = next.join(name);
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let mode = fs_err::metadata(&path).unwrap().permissions().mode() & 0o7777;
                    modes.push((path, mode));
                }
            }
        }
    }
    modes
}

#[test]
fn files_and_folders_are_made_with_the_users_umask() {
    for (umask, file_mode, folder_mode) in [("077", 0o600, 0o700), ("027", 0o640, 0o750), ("002", 0o664, 0o775)] {
        let place = place();
        place.write("picture.png", picture(40, 40, 1));
        let run = |arguments: &[&str]| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!(r#"umask {umask}; exec "$@""#), "sh"]).arg(program::program());
            command.args(arguments).current_dir(place.folder());
            command.env("JANUS_CACHE", place.path("kept")).env("HF_HUB_OFFLINE", "1");
            program::run(command).expect_success();
        };
        let samples = ["train.sample_every=1", "data.0.eval=rows.parquet"];
        run(&["train", "recipe.toml", "train.checkpoint_every=1", samples[0], samples[1], "output.dir=made/run"]);
        run(&["merge", "--base", "base", "--adapter", "made/run", "--out", "made/merged"]);
        run(&["base", "convert", "base", "--layout", "deepseek", "--out", "made/converted"]);
        run(&["generate", "--base", "base", "A part", "--out", "made/picture.png"]);
        run(&["base", "inspect", "init:janus-tiny"]);
        for folder in ["made", "kept"] {
            for (path, mode) in modes(&place.path(folder)) {
                let expected = if path.is_dir() { folder_mode } else { file_mode };
                assert_eq!(format!("{mode:o}"), format!("{expected:o}"), "umask {umask}: {}", path.display());
            }
        }
    }
}

#[test]
fn a_run_folder_that_everyone_may_write_to_is_refused() {
    let place = place();
    let set = |mode: u32| {
        fs_err::set_permissions(place.path("run"), Permissions::from_mode(mode)).unwrap();
    };
    let said = ["every user may write to the run folder", "chmod o-w"];
    fs_err::create_dir(place.path("run")).unwrap();
    set(0o777);
    place.refuses(&["train", "recipe.toml"], &said);
    // As /tmp is, and as folders are that a group shares.
    let of_groups = [0o1777, 0o775, 0o770];
    for mode in of_groups {
        set(mode);
        place.janus(&["train", "recipe.toml", "train.steps=1"]).expect_success();
        let resume = ["train", "recipe.toml", "train.steps=2", "train.schedule=constant", "--resume"];
        assert_eq!(place.janus(&resume).code, Some(2), "another schedule is another run");
        fs_err::remove_file(place.path("run/adapter_model.safetensors")).unwrap();
        set(0o777);
        place.refuses(&["train", "recipe.toml", "train.steps=1", "--resume"], &said);
        set(mode);
        let done = place.janus(&["train", "recipe.toml", "train.steps=1", "--resume"]).expect_success();
        assert!(!done.stderr.contains("every user may"), "{}", done.stderr);
        assert_eq!(place.path("run").metadata().unwrap().permissions().mode() & 0o7777, mode);
        fs_err::remove_dir_all(place.path("run")).unwrap();
        fs_err::create_dir(place.path("run")).unwrap();
    }
}

#[test]
fn a_run_folder_of_another_owner_is_told() {
    let place = place();
    fs_err::create_dir(place.path("run")).unwrap();
    let _ = std::os::unix::fs::chown(place.path("run"), Some(65_533), None);
    let owner = |name: &str| place.path(name).metadata().unwrap().uid();
    let is_given_away = owner("run") != owner("recipe.toml");
    let done = place.janus(&["train", "recipe.toml"]).expect_success();
    // Only root can give a folder away; everyone else's own is no matter for a word.
    assert_eq!(done.stderr.contains("belongs to another user"), is_given_away, "{}", done.stderr);
}

/// What else is wrong with these commands is not looked for: nothing is read before it is known that there is work to do.
#[test]
fn who_comes_second_is_told_before_the_work() {
    let place = place_with_adapter();
    let hold = |path: &str| StagedFolder::create(&place.path(path)).unwrap();
    fs_err::create_dir(place.path("empty")).unwrap();
    for out in ["out", "deep/er/out", "empty"] {
        let held = hold(out);
        for command in [
            &["merge", "--base", "absent", "--adapter", "absent", "--out", out][..],
            &["base", "convert", "absent", "--layout", "native", "--out", out],
            &["base", "init", "--shape", "janus-tiny", "--out", out],
            &["train", "recipe.toml", "base.path=absent", &format!("output.dir={out}")],
            &["train", "recipe.toml", "base.path=absent", &format!("output.dir={out}"), "--resume"],
        ] {
            place.refuses(command, &["another process is at work"]);
        }
        drop(held);
        place.refuses(&["base", "convert", "absent", "--layout", "native", "--out", out], &["absent"]);
    }
}

#[test]
fn of_three_merges_one_does_the_work() {
    let place = place_with_adapter();
    for round in 0..3 {
        let children: Vec<_> = (0..3)
            .map(|_| {
                let mut command = program::command(place.folder(), &MERGE);
                command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let done: Vec<Done> = outputs
            .into_iter()
            .map(|output| {
                let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
                Done { code: output.status.code(), stdout: String::new(), stderr }
            })
            .collect();
        assert_eq!(done.iter().filter(|done| done.code == Some(0)).count(), 1, "round {round}: {done:?}");
        for lost in done.iter().filter(|done| done.code != Some(0)) {
            refused(lost, &["error: ", "hint: "]);
        }
        assert!(place.path("merged/config.json").exists() && left_behind(place.folder()).is_empty());
        fs_err::remove_dir_all(place.path("merged")).unwrap();
    }
}

#[test]
fn what_killed_commands_left_goes_with_the_next_and_links_lead_nowhere() {
    let place = place_with_adapter();
    let before = victim(&place);
    symlink("victim", place.path(".merged.tmp-Ab3dEf")).unwrap();
    symlink("victim/state.json", place.path(".merged.tmp-janus-0123456789abcdef")).unwrap();
    // Of an earlier version, which held no locks, and of another command.
    for (name, age) in [(".merged.tmp-Oldest", 48), (".merged.tmp-Recent", 2), (".other.tmp-Oldest", 48)] {
        fs_err::create_dir(place.path(name)).unwrap();
        let then = std::time::SystemTime::now() - Duration::from_secs(age * 3600);
        std::fs::File::open(place.path(name)).unwrap().set_modified(then).unwrap();
    }
    let left = || -> Vec<String> { names(place.folder()).into_iter().filter(|name| name.contains(".tmp-")).collect() };
    let planted = left().len();
    let mut found = 0;
    for round in 0..8 {
        // What was left by the one before is taken over by this one.
        let mut command = program::command(place.folder(), &MERGE);
        let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        if round % 2 == 0 {
            wait_until(&mut child, || place.path(".merged.tmp-janus-folder").exists());
        }
        std::thread::sleep(Duration::from_millis(10 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        found += usize::from(left().contains(&".merged.tmp-janus-folder".into()));
        let _ = fs_err::remove_dir_all(place.path("merged"));
    }
    assert!(found > 0 && left().len() <= planted + 1, "{found} kills left something: {:?}", left());
    place.janus(&MERGE).expect_success();
    let links = [".merged.tmp-Ab3dEf", ".merged.tmp-janus-0123456789abcdef"];
    assert_eq!(left(), [links[0], ".merged.tmp-Recent", links[1], ".other.tmp-Oldest"]);
    assert!(tree(&place.path("victim")) == before);
}

/// A file of the base that is replaced by a link while the base is converted: what the link leads to is not passed on.
#[test]
fn a_swap_during_a_conversion_passes_nothing_on() {
    let place = place();
    place.write("secret", "private");
    place.write("base/LICENSE", "of the base");
    let (licence, aside, is_over) = (place.path("base/LICENSE"), place.path("aside"), AtomicBool::new(false));
    let mut done = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let _ = symlink(place.path("secret"), &aside);
                let _ = std::fs::rename(&aside, &licence);
                let _ = std::fs::write(&aside, "of the base");
                let _ = std::fs::rename(&aside, &licence);
                // Long enough to be copied.
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        for number in 0..12 {
            let out = format!("out{number}");
            done.push(place.janus(&["base", "convert", "base", "--layout", "native", "--out", &out]));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    for (number, done) in done.iter().enumerate() {
        assert!(matches!(done.code, Some(0 | 2)), "{}", done.stderr);
        if let Ok(text) = std::fs::read(place.path(&format!("out{number}/LICENSE"))) {
            assert_eq!(text, b"of the base");
        }
    }
}

#[test]
fn shared_places_work_as_before() {
    let place = place_with_adapter();
    // A folder in which everybody may make things, as /tmp.
    fs_err::create_dir(place.path("common")).unwrap();
    fs_err::set_permissions(place.path("common"), Permissions::from_mode(0o1777)).unwrap();
    place.janus(&["train", "recipe.toml", "train.steps=1", "output.dir=common/run"]).expect_success();
    let merge = |out: &str| place.janus(&["merge", "--base", "base", "--adapter", "run", "--out", out]);
    merge("common/merged").expect_success();
    assert!(left_behind(place.folder()).is_empty());

    // A mount point, as containers have them: it cannot be replaced and is filled within.
    for name in ["mounted", "mounted-run", "volume", "volume-run"] {
        fs_err::create_dir(place.path(name)).unwrap();
    }
    let mount = |what: &str, at: &str| {
        let mut mount = Command::new("mount");
        mount.arg("--bind").arg(place.path(what)).arg(place.path(at)).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success())
    };
    let is_mounted = mount("volume", "mounted") && mount("volume-run", "mounted-run");
    merge("mounted").expect_success();
    let train = ["train", "recipe.toml", "train.steps=1", "output.dir=mounted-run"];
    place.janus(&train).expect_success();
    fs_err::remove_file(place.path("mounted-run/adapter_model.safetensors")).unwrap();
    place.janus(&[&train[..], &["--resume"]].concat()).expect_success();
    let both = ["mounted", "mounted-run"].map(|name| names(&place.path(name)));
    if is_mounted {
        for name in ["mounted", "mounted-run"] {
            assert!(Command::new("umount").arg(place.path(name)).status().unwrap().success());
        }
        assert_eq!(both, ["volume", "volume-run"].map(|name| names(&place.path(name))));
    }
    assert!(both[0].contains(&"config.json".into()) && both[1].contains(&"adapter_model.safetensors".into()));
    assert!(both.iter().flatten().all(|name| !name.contains(".tmp-")), "{both:?}");
    assert!(Directory::open(&place.path("mounted")).is_ok());
}
