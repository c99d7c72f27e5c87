//! Telling is never fatal to doing: readers that go away, full disks below a log, closed streams.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use janus_tests::joint::{self, checkpoints, lines, signal, start, wait_until};
use janus_tests::program::{command, run};
use janus_tests::tiny::{Workplace, tree};

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// The end of a pipe whose reader is gone.
fn unread() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

/// Exit code and stderr of a command whose stdout is this.
fn with_stdout(place: &Workplace, arguments: &[&str], stdout: Stdio) -> (Option<i32>, String) {
    let mut command = command(place.folder(), arguments);
    let done = command.stdout(stdout).stderr(Stdio::piped()).output().unwrap();
    (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
}

/// Exit code and stderr of a command under a shell's redirection.
fn redirected(place: &Workplace, redirection: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let plain = command(place.folder(), arguments);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec \"$@\" {redirection}")).arg("sh").arg(plain.get_program()).args(plain.get_args());
    shell.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(place.folder());
    let done = shell.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
}

#[test]
fn a_result_that_nobody_wants_is_no_failure_and_one_that_is_lost_is() {
    let place = joint::place();
    let results: [&[&str]; 9] = [
        &["recipe", "schema"],
        &["recipe", "schema", "--markdown"],
        &["recipe", "check", "recipe.toml"],
        &["base", "inspect", "base", "--json"],
        &["data", "check", "recipe.toml"],
        &["train", "recipe.toml", "--dry-run"],
        &["understand", "--base", "base", "What?", "--max-new-tokens", "2"],
        &["--help"],
        &["train", "--version"],
    ];
    for arguments in results {
        let (code, said) = with_stdout(&place, arguments, unread().into());
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        assert!(!said.contains("error") && !said.contains("panicked"), "{arguments:?}: {said}");
        let (code, said) = with_stdout(&place, arguments, full().into());
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(said.contains("error: the result cannot be written to stdout"), "{arguments:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("internal error"), "{arguments:?}: {said}");
        // Closed from the beginning, and open for reading alone; with stdin closed, too, its place is taken by another.
        for redirection in [">&-", "1</dev/null", "<&- >&-"] {
            let (code, said) = redirected(&place, redirection, arguments);
            assert_eq!(code, Some(1), "{arguments:?} {redirection}: {said}");
            assert!(said.contains("error: the result cannot be written to stdout"), "{arguments:?}: {said}");
        }
        // Nobody is to read it: as a shell writes that, and as other programs do.
        for redirection in [">/dev/null", "1<>/dev/null", "<&- >/dev/null"] {
            let (code, said) = redirected(&place, redirection, arguments);
            assert_eq!(code, Some(0), "{arguments:?} {redirection}: {said}");
        }
    }
    // What was wrong stays wrong, whether it can be told or not.
    for stream in [Stdio::from(full()), Stdio::from(unread())] {
        let mut command = command(place.folder(), &["train", "absent.toml"]);
        assert_eq!(command.stderr(stream).status().unwrap().code(), Some(2));
    }
    let mut unknown = command(place.folder(), &["trian"]);
    assert_eq!(unknown.stderr(full()).status().unwrap().code(), Some(2));
}

#[test]
fn work_that_is_done_is_done() {
    let place = joint::place();
    joint::run(&place, "run", &["train.steps=2", "-q"]).expect_success();
    let merge = ["merge", "--base", "base", "--adapter", "run", "--out", "OUT"];
    let draw = ["generate", "--base", "base", "A part", "--out", "OUT.png"];
    let synth = ["data", "synth", "--domain", "inspection", "--rows", "2", "--out", "OUT.parquet"];
    let copy = ["recipe", "copy", "recipe", "OUT.toml", "--folder", "."];
    let init = ["base", "init", "--shape", "janus-tiny", "--out", "OUT"];
    let report = ["report", "run"];
    let all: [&[&str]; 6] = [&merge, &draw, &synth, &copy, &init, &report];
    for (number, arguments) in all.iter().enumerate() {
        for (name, stdout) in [("full", Stdio::from(full())), ("gone", Stdio::from(unread()))] {
            let out = format!("{name}-{number}");
            let arguments: Vec<String> = arguments.iter().map(|argument| argument.replace("OUT", &out)).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let (code, said) = with_stdout(&place, &arguments, stdout);
            assert_eq!(code, Some(0), "{arguments:?} into {name}: {said}");
            assert!(!said.contains("panicked") && !said.contains("internal error"), "{said}");
        }
        let arguments: Vec<String> =
            arguments.iter().map(|argument| argument.replace("OUT", &format!("closed-{number}"))).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, said) = redirected(&place, ">&-", &arguments);
        assert_eq!(code, Some(0), "{arguments:?} with stdout closed: {said}");
    }
    assert!(place.path("full-0/config.json").exists() && place.path("gone-1.png").exists());
    assert!(place.path("closed-0/config.json").exists() && place.path("closed-1.png").exists());
    let (code, said) = with_stdout(&place, &["cache", "clear", "--all"], full().into());
    assert_eq!(code, Some(0), "{said}");
    // Asked for as JSON, what it did is its result; it is done all the same.
    let (code, said) =
        with_stdout(&place, &["merge", "--json", "--base=base", "--adapter=run", "--out=m"], full().into());
    assert_eq!((code, place.path("m/config.json").exists()), (Some(1), true), "{said}");
    let (code, said) = redirected(&place, ">&-", &["merge", "--json", "--base=base", "--adapter=run", "--out=c"]);
    assert_eq!((code, place.path("c/config.json").exists()), (Some(1), true), "{said}");
}

#[test]
fn no_step_is_lost_with_a_log() {
    let place = joint::place();
    joint::run(&place, "whole", &[]).expect_success();
    for (name, stdout, stderr) in
        [("full", Stdio::from(full()), Stdio::from(full())), ("gone", Stdio::from(unread()), Stdio::from(unread()))]
    {
        let status = start(&place, name, &[]).stdout(stdout).stderr(stderr).status().unwrap();
        assert_eq!(status.code(), Some(0), "{name}");
        assert_eq!(joint::difference(&place, "whole", name), None, "{name}");
    }
    // Closed before it starts, and both at once.
    let plain = start(&place, "closed", &[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" >&- 2>&-", "sh"]).arg(plain.get_program()).args(plain.get_args());
    shell.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(place.folder());
    run(shell).expect_success();
    assert_eq!(joint::difference(&place, "whole", "closed"), None);
    // A reader that goes away under way, as a killed `tee` does; the signal then still saves and has its code.
    for (name, code) in [("TERM", 143), ("HUP", 129)] {
        let folder = name.to_lowercase();
        let mut child =
            start(&place, &folder, &["train.steps=2000"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(wait_until(&mut child, || lines(&place, &folder) >= 4));
        signal(&mut child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(!checkpoints(&place, &folder).is_empty());
    }
}

#[test]
fn quiet_tells_results_warnings_and_errors_alone() {
    let place = joint::place();
    let done = joint::run(&place, "run", &["--quiet"]).expect_success();
    assert_eq!(done.stderr, "");
    assert!(done.stdout.contains("adapter in "), "{}", done.stdout);
    let loud = joint::run(&place, "loud", &[]).expect_success();
    for step in [0, 4, 8, 12, 14] {
        let line = loud.stderr.lines().find(|line| line.starts_with(&format!("evaluation at step {step}")));
        let line = line.unwrap_or_else(|| panic!("no evaluation of step {step}: {}", loud.stderr));
        assert!(line.contains(": questions ") && line.contains("loss ") && line.contains("; pictures "), "{line}");
        assert_eq!(line.contains("(the base alone)"), step == 0, "{line}");
    }
    assert!(tree(&place.path("run")).len() == tree(&place.path("loud")).len());
    let wrong = place.janus(&["-q", "train", "recipe.toml"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    assert!(wrong.stderr.starts_with("error: output folder"), "{}", wrong.stderr);
    let answer = place.janus(&["understand", "-q", "--base", "base", "What?", "--max-new-tokens=2"]).expect_success();
    assert_eq!((answer.stderr.as_str(), answer.stdout.lines().count() > 0), ("", true));
}
