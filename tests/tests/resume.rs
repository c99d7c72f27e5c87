//! Runs that are stopped and gone on with: the same bits, the right refusals, what is kept.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::process::Command;

use janus_tests::joint::{
    STEPS, WEIGHTS, checkpoints, difference, lines, log, metrics, place, run, signal, spawn, spawn_as, start,
    stop_signals, stopped, wait_until, write_rows,
};
use janus_tests::program::program;
use janus_tests::tiny::{Workplace, tree};
use serde_json::Value;

/// Starts a run, stops it by a signal once it has written so many lines, and gives the exit code.
#[track_caller]
fn left(place: &Workplace, folder: &str, name: &str, after: usize) -> Option<i32> {
    stopped(place, folder, &[], name, &|| lines(place, folder) >= after).code()
}

#[track_caller]
fn refuses(place: &Workplace, folder: &str, more: &[&str], said: &[&str]) {
    let output = format!("output.dir={folder}");
    place.refuses(&[&["train", "recipe.toml", &output], more].concat(), said);
}

#[test]
fn a_signal_saves_and_the_resumed_run_ends_with_the_same_bytes() {
    let place = place();
    run(&place, "whole", &[]).expect_success();
    assert_eq!(checkpoints(&place, "whole"), [9, 12, 14], "the last three");
    for ((name, code), after) in stop_signals().into_iter().zip([4, 9]) {
        let folder = name.to_lowercase();
        assert_eq!(left(&place, &folder, name, after), Some(code), "{}", log(&place, &folder));
        let said = log(&place, &folder);
        assert!(said.contains("a second signal leaves at once"), "{said}");
        let saved = *checkpoints(&place, &folder).last().unwrap();
        assert!(said.contains(&format!("stopped by SIG{name} after step {saved}, saved in `")), "{said}");
        let hint = format!("hint: `janus train {} --resume`", place.path(&format!("{folder}/recipe.toml")).display());
        assert!(said.contains(&hint), "{said}");
        // Nothing is lost: the lines of the metrics are those of the steps saved.
        let steps = metrics(&place, &folder).iter().filter(|line| line.get("eval").is_none()).count();
        assert_eq!(steps as u64, saved);
        refuses(&place, &folder, &[], &["holds a run", "/recipe.toml --resume` resumes it"]);
        let done = run(&place, &folder, &["--resume", "--json"]).expect_success();
        assert!(done.stderr.contains(&format!("going on after step {saved} of {STEPS}")), "{}", done.stderr);
        assert_eq!(done.json()["resumed_from"].as_u64(), Some(saved));
        assert_eq!(difference(&place, "whole", &folder), None);
    }
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let place = place();
    run(&place, "run", &[]).expect_success();
    let before = tree(&place.path("run"));
    let done = run(&place, "run", &["--resume"]).expect_success();
    assert!(done.stdout.contains("is finished: nothing to do"), "{}", done.stdout);
    let told = run(&place, "run", &["--resume", "--json"]).expect_success().json();
    assert_eq!((told["finished"].as_bool(), told["metrics"]["steps"].as_u64()), (Some(true), Some(STEPS)));
    assert!(tree(&place.path("run")) == before, "something changed");
    refuses(&place, "run", &[], &["holds a run"]);
    for length in ["train.steps=20", "train.epochs=9"] {
        let said = ["it was to have 14 steps and now", "the schedule `cosine`", "output.dir=", "janus merge --base"];
        refuses(&place, "run", &["--resume", length], &said);
    }
    refuses(&place, "run", &["--resume", "adapter.rank=4"], &["`adapter.rank` was 3 and is 4"]);
    // Another way to the same number of steps is the same run.
    let done = run(&place, "run", &["--resume", "train.epochs=2", "train.checkpoint_every=2"]).expect_success();
    assert!(done.stdout.contains("nothing to do"), "{}", done.stdout);
    // Nor does it need to be written to, or to be held by this process.
    let lock = std::fs::File::open(place.path("run/.lock")).unwrap();
    lock.lock().unwrap();
    let done = run(&place, "run", &["--resume", "train.epochs=2"]).expect_success();
    assert!(done.stdout.contains("nothing to do"), "{}", done.stdout);
    assert!(tree(&place.path("run")) == before, "something changed");
}

#[test]
fn a_checkpoint_is_an_adapter_by_itself() {
    let place = place();
    run(&place, "run", &["train.steps=3"]).expect_success();
    assert_eq!(place.read(&format!("run/checkpoints/step-3/{WEIGHTS}")), place.read(&format!("run/{WEIGHTS}")));
    let inspect = ["adapter", "inspect", "run/checkpoints/step-3", "--base", "base", "--json"];
    assert!(place.janus(&inspect).expect_success().json()["parameters"].as_u64() > Some(0));
    let checksums: Value = serde_json::from_slice(&place.read("run/checkpoints/step-3/checksums.json")).unwrap();
    let names: Vec<&str> = checksums.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["adapter_config.json", WEIGHTS, "janus_adapter.json", "optimizer.safetensors", "state.json"];
    assert_eq!(names, expected);
}

#[test]
fn what_differs_is_refused_by_name() {
    let place = place();
    assert_eq!(left(&place, "run", "TERM", 6), Some(143));
    for (key, said) in [
        ("train.learning_rate=1e-3", "`train.learning_rate` was 0.005 and is 0.001"),
        ("adapter.rank=4", "`adapter.rank` was 3 and is 4"),
        ("data.0.weight=1.0", "`data.0.weight` was 2.0 and is 1.0"),
        ("train.steps=20", "it was to have 14 steps and now 20, but the schedule `cosine`"),
    ] {
        refuses(&place, "run", &["--resume", key], &["cannot be resumed", said]);
    }
    let rows = place.read("rows.parquet");
    write_rows(&place.path("rows.parquet"), 1, 9);
    refuses(&place, "run", &["--resume"], &["`questions` had the file `rows.parquet`", "`pictures` had the file"]);
    std::fs::remove_file(place.path("rows.parquet")).unwrap();
    refuses(&place, "run", &["--resume"], &["rows.parquet"]);
    // Elsewhere, and named otherwise: files are known by what is in them.
    place.write("moved.parquet", rows);
    let other = ["base", "init", "--shape", "janus-tiny", "--seed", "4", "--dtype", "f32", "--out", "other"];
    place.janus(&other).expect_success();
    let moved = ["--resume", "data.0.train=moved.parquet", "data.1.train=moved.parquet"];
    refuses(&place, "run", &[&moved[..], &["base.path=other"]].concat(), &["the base had fingerprint `"]);
    run(&place, "run", &[&moved[..], &["train.checkpoint_every=1"]].concat()).expect_success();
    assert_eq!(checkpoints(&place, "run"), [12, 13, 14]);
}

/// Length, rows and footer of the files are what they were; what lies in their pages is not.
#[test]
fn other_bytes_in_the_same_place_are_other_rows() {
    let place = place();
    run(&place, "whole", &[]).expect_success();
    assert_eq!(left(&place, "run", "TERM", 6), Some(143));
    let before = tree(&place.path("run"));
    for (file, text, said) in [
        ("rows.parquet", "Part 5?", "row group 1 of the file `rows.parquet` of `questions` holds other bytes"),
        ("eval.parquet", "Part 51?", "row group 0 of the file `eval.parquet` of the evaluation of `questions`"),
    ] {
        let whole = place.read(file);
        let mut bytes = whole.clone();
        let places = bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count();
        assert_eq!(places, 1, "the footer has it, too");
        let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
        bytes[at] = b'C';
        place.write(file, bytes);
        // The table of pictures reads the same file.
        refuses(&place, "run", &["--resume"], &["cannot be resumed: ", said, "as do 1 more", "or begin a new run"]);
        refuses(&place, "run", &["--resume", "adapter.rank=4"], &["`adapter.rank` was 3 and is 4; ", said]);
        assert!(tree(&place.path("run")) == before, "something changed");
        place.write(file, whole);
    }
    run(&place, "run", &["--resume"]).expect_success();
    assert_eq!(difference(&place, "whole", "run"), None);
}

#[test]
fn a_constant_rate_can_go_on_for_longer() {
    let place = place();
    let constant = "train.schedule=constant";
    run(&place, "whole", &[constant]).expect_success();
    let ended = stopped(&place, "run", &[constant, "train.steps=9"], "TERM", &|| lines(&place, "run") >= 5);
    assert_eq!(ended.code(), Some(143), "{}", log(&place, "run"));
    run(&place, "run", &["--resume", constant]).expect_success();
    assert_eq!(difference(&place, "whole", "run"), None);
}

/// A finished run of a constant rate goes on, by the recipe that it keeps, and ends as the longer run would have.
#[test]
fn a_finished_run_of_a_constant_rate_is_given_more_steps() {
    let place = place();
    let constant = "train.schedule=constant";
    run(&place, "whole", &[constant]).expect_success();
    run(&place, "run", &[constant, "train.steps=9"]).expect_success();
    let kept = place.path("run/recipe.toml").display().to_string();
    refuses(&place, "run", &["--resume", constant, "train.steps=8"], &["now 8, but 9 are done"]);
    let done = place.janus(&["train", &kept, "--resume", "train.steps=14"]).expect_success();
    assert!(done.stderr.contains("going on after step 9 of 14"), "{}", done.stderr);
    assert_eq!(difference(&place, "whole", "run"), None);
    // Killed on the way, it is not taken for finished.
    run(&place, "killed", &[constant, "train.steps=5"]).expect_success();
    let ended = stopped(&place, "killed", &["--resume", constant], "KILL", &|| lines(&place, "killed") >= 9);
    assert_eq!(ended.code(), None);
    run(&place, "killed", &["--resume", constant]).expect_success();
    assert_eq!(difference(&place, "whole", "killed"), None);
}

/// Both hints of a run whose rate falls over all its steps lead to a run.
#[test]
fn what_is_hinted_instead_of_more_steps_works_as_it_stands() {
    let place = place();
    run(&place, "a run", &["train.steps=3"]).expect_success();
    let said = run(&place, "a run", &["--resume", "train.steps=5"]);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    let commands: Vec<&str> = said
        .stderr
        .lines()
        .filter_map(|line| line.split('`').nth(1))
        .filter(|text| text.starts_with("janus "))
        .collect();
    assert_eq!(commands.len(), 2, "{}", said.stderr);
    for (text, made, steps) in [(commands[0], "a run-5", 5), (commands[1], "a run-more", 3)] {
        let mut shell = Command::new("sh");
        let text = text.replace("janus ", "\"$JANUS\" ");
        shell.args(["-c", &text]).env("JANUS", program()).current_dir("/");
        shell.env("JANUS_CACHE", place.path("cache")).env("HF_HUB_OFFLINE", "1");
        janus_tests::program::run(shell).expect_success();
        let last = metrics(&place, made).iter().filter_map(|line| line["step"].as_u64()).max();
        assert_eq!(last, Some(steps), "{text}");
    }
}

/// A head is no part of what is merged, so no run can begin where one of heads ended.
#[test]
fn no_merge_is_hinted_where_heads_are_trained() {
    let place = place();
    for targets in ["[]", "[\"vision\"]"] {
        place.write(
            "heads.toml",
            format!(
                "[base]\npath = \"janus-nano\"\n[adapter]\ntargets = {targets}\n[[data]]\nname = \"t\"\ntask = \
                 \"classify\"\ntrain = \"synth:inspection?rows=8\"\n[train]\nsteps = 2\nbatch_size = 2\n[output]\n\
                 dir = \"heads-{}\"\n",
                targets.len()
            ),
        );
        place.janus(&["train", "heads.toml"]).expect_success();
        let said = place.janus(&["train", "heads.toml", "--resume", "train.steps=3"]);
        assert_eq!(said.code, Some(2), "{}", said.stderr);
        assert!(
            said.stderr.contains("a new run of 3 steps") && !said.stderr.contains("janus merge"),
            "{}",
            said.stderr
        );
    }
}

#[test]
fn a_terminal_that_is_closed_is_a_signal_to_save() {
    let place = place();
    run(&place, "whole", &[]).expect_success();
    assert_eq!(left(&place, "hup", "HUP", 4), Some(129), "{}", log(&place, "hup"));
    assert!(log(&place, "hup").contains("stopped by SIGHUP after step"), "{}", log(&place, "hup"));
    run(&place, "hup", &["--resume"]).expect_success();
    assert_eq!(difference(&place, "whole", "hup"), None);
    // The shell sends it once more.
    let mut child = spawn(&place, "twice", &["train.steps=2000"]);
    assert!(wait_until(&mut child, || lines(&place, "twice") >= 3), "{}", log(&place, "twice"));
    signal(&mut child, "HUP");
    signal(&mut child, "HUP");
    assert_eq!(child.wait().unwrap().code(), Some(129), "{}", log(&place, "twice"));
    // `nohup`: it was to be ignored, and is.
    let plain = start(&place, "nohup", &[]);
    let program = plain.get_program().to_owned();
    let arguments: Vec<_> = plain.get_args().map(ToOwned::to_owned).collect();
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(program).args(arguments).current_dir(place.folder());
    nohup.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = spawn_as(&place, "nohup", nohup);
    assert!(wait_until(&mut child, || lines(&place, "nohup") >= 3), "{}", log(&place, "nohup"));
    signal(&mut child, "HUP");
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", log(&place, "nohup"));
    assert_eq!(difference(&place, "whole", "nohup"), None);
}

#[test]
fn damaged_checkpoints_are_passed_over() {
    let place = place();
    run(&place, "whole", &[]).expect_success();
    stopped(&place, "run", &[], "KILL", &|| checkpoints(&place, "run").len() >= 3);
    let there = checkpoints(&place, "run");
    let (newest, one_before) = (there[there.len() - 1], there[there.len() - 2]);
    let state = format!("run/checkpoints/step-{newest}/state.json");
    let mut bytes = place.read(&state);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    place.write(&state, bytes);
    place.write(&format!("run/checkpoints/step-{newest}/half"), "");
    let done = run(&place, "run", &["--resume"]).expect_success();
    assert!(
        done.stderr.contains(&format!("step-{newest}` cannot be used: `state.json` has checksum")),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains(&format!("going on after step {one_before} of")), "{}", done.stderr);
    assert_eq!(difference(&place, "whole", "run"), None);

    // Files of a terabyte without anything in them are not hashed.
    for name in ["state.json", "optimizer.safetensors", WEIGHTS, "adapter_config.json"] {
        assert_eq!(left(&place, "sparse", "TERM", 6), Some(143));
        let [.., one_before, newest] = checkpoints(&place, "sparse")[..] else { panic!("one checkpoint") };
        let path = place.path(&format!("sparse/checkpoints/step-{newest}/{name}"));
        std::fs::File::options().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
        let done = run(&place, "sparse", &["--resume"]).expect_success();
        let said = format!("step-{newest}` cannot be used: `{name}` has 1099511627776 bytes, expected ");
        assert!(done.stderr.contains(&said), "{}", done.stderr);
        assert!(done.stderr.contains(&format!("going on after step {one_before} of")), "{}", done.stderr);
        assert_eq!(difference(&place, "whole", "sparse"), None);
        std::fs::remove_dir_all(place.path("sparse")).unwrap();
        std::fs::remove_file(place.path("sparse.log")).unwrap();
    }

    assert_eq!(left(&place, "none", "TERM", 6), Some(143));
    for step in checkpoints(&place, "none") {
        std::fs::remove_file(place.path(&format!("none/checkpoints/step-{step}/optimizer.safetensors"))).unwrap();
    }
    refuses(&place, "none", &["--resume"], &["none of the", "can be used"]);
    std::fs::remove_dir_all(place.path("none/checkpoints")).unwrap();
    run(&place, "none", &["--resume"]).expect_success();
    assert_eq!(difference(&place, "whole", "none"), None);
}

#[test]
fn resuming_where_there_is_nothing_starts() {
    let place = place();
    run(&place, "whole", &["--resume"]).expect_success();
    // Killed before the first checkpoint.
    stopped(&place, "run", &["train.checkpoint_every=0"], "KILL", &|| lines(&place, "run") >= 3);
    assert!(checkpoints(&place, "run").is_empty() && place.path("run/metrics.jsonl").exists());
    run(&place, "run", &["--resume"]).expect_success();
    assert_eq!(difference(&place, "whole", "run"), None);

    std::fs::create_dir(place.path("mine")).unwrap();
    place.write("mine/metrics.jsonl", "{}\n");
    refuses(&place, "mine", &["--resume"], &["mine` is not empty and holds no run"]);
}

#[test]
fn one_folder_has_one_run() {
    let place = place();
    let mut child = spawn(&place, "run", &["train.steps=2000"]);
    assert!(wait_until(&mut child, || lines(&place, "run") >= 2), "{}", log(&place, "run"));
    let done = run(&place, "run", &["--resume", "train.steps=2000"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("another process is at work in `"), "{}", done.stderr);
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock died with its process.
    let mut again = spawn(&place, "run", &["--resume", "train.steps=2000"]);
    let before = lines(&place, "run");
    assert!(wait_until(&mut again, || lines(&place, "run") > before + 1), "{}", log(&place, "run"));
    again.kill().unwrap();
    again.wait().unwrap();
}

/// Every file of a run that is over tells of the adapter after `step` of `steps` steps, of whose figures `told` is what the
/// program printed.
fn tells_of(place: &Workplace, run: &str, step: u64, steps: u64, told: &Value) {
    let json = |name: &str| -> Value { serde_json::from_slice(&place.read(&format!("{run}/{name}"))).unwrap() };
    let (facts, note) = (json("run.json"), json("janus_adapter.json"));
    for left in [&facts["left"], &note["metrics"]] {
        assert_eq!((left["step"].as_u64(), left["steps"].as_u64()), (Some(step), Some(steps)), "{left}");
        assert_eq!((&left["after"], &left["before"]), (&told["after"], &told["before"]));
        assert_eq!(
            (&left["reason"], &left["stopped_early"]),
            (&told["ending"]["reason"], &told["ending"]["stopped_early"])
        );
    }
    // The last samples are of that adapter, and none of a later one are shown.
    let sampled = metrics(place, run).into_iter().rfind(|line| line.get("samples").is_some()).unwrap();
    assert_eq!(sampled["step"].as_u64(), Some(step));
    assert!(json(&format!("samples/step-{step}/samples.json")) == sampled["samples"]);
    assert!(!place.path(&format!("{run}/samples/step-{steps}")).exists() || step == steps);
    let report = |run: &str| String::from_utf8(place.read(&format!("{run}/report.html"))).unwrap();
    let shown = report(run);
    assert!(shown.contains(&format!("The adapter is that of step {step}.")), "{run}");
    assert!(shown.contains(&format!("step {step}, saved")), "{run}");
    assert!(step == steps || !shown.contains(&format!("step {steps}, saved")), "{run}");
    place.janus(&["report", run]).expect_success();
    assert!(report(run) == shown, "made again, it is another one");
    // As earlier programs left it: nothing in `run.json`, and samples that bear the last step.
    let before: Vec<(String, Vec<u8>)> = ["run.json", "janus_adapter.json", "metrics.jsonl"]
        .map(|name| (format!("{run}/{name}"), place.read(&format!("{run}/{name}"))))
        .into();
    let (mut old_facts, mut old_note, mut lines) = (facts, note, metrics(place, run));
    old_facts.as_object_mut().unwrap().retain(|key, _| !["left", "starts", "ended", "commit"].contains(&key.as_str()));
    let added = ["step", "planned_steps", "stopped_early", "reason"];
    old_note["metrics"].as_object_mut().unwrap().retain(|key, _| !added.contains(&key.as_str()));
    lines.iter_mut().rfind(|line| line.get("samples").is_some()).unwrap()["step"] = steps.into();
    place.write(&before[0].0, old_facts.to_string());
    place.write(&before[1].0, old_note.to_string());
    place.write(&before[2].0, lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    place.janus(&["report", run]).expect_success();
    let old = report(run);
    let part = |page: &str, from: &str, to: &str| page.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    assert!(
        old.contains(&format!("The adapter is that of step {step}.")) && old.contains(&format!("step {step}, saved"))
    );
    for (from, to) in [("class=\"tiles", "<h2>"), ("Held-out rows", "<h2>")] {
        assert_eq!(part(&old, from, to), part(&shown, from, to));
    }
    for (name, bytes) in before {
        std::fs::write(place.path(&name), bytes).unwrap();
    }
    place.janus(&["report", run]).expect_success();
}

#[test]
fn a_run_that_nothing_stops_tells_of_its_best_step_too() {
    let place = place();
    // The rate is far too high: it gets worse soon, and patience has no end.
    let settings = ["train.schedule=constant", "train.learning_rate=0.3", "train.eval_every=2", "train.sample_every=4"];
    let rule = r#"train.early_stopping={ metric = "questions.loss", patience = 0 }"#;
    let told = run(&place, "run", &[&settings[..], &[rule, "--json"]].concat()).expect_success().json();
    let step = told["ending"]["step"].as_u64().unwrap();
    assert_eq!((told["steps"].as_u64(), told["ending"]["stopped_early"].as_bool()), (Some(14), Some(false)));
    assert_eq!(told["best"]["step"].as_u64(), Some(step));
    assert!(step < 14, "{told}");
    tells_of(&place, "run", step, 14, &told);
    // Without a rule the last step counts.
    let told = run(&place, "last", &["--json"]).expect_success().json();
    tells_of(&place, "last", 14, 14, &told);
}

#[test]
fn the_best_evaluation_is_kept_and_taken() {
    let place = place();
    // The rate is far too high: it gets worse soon.
    let settings = [
        "train.steps=200",
        "train.schedule=constant",
        "train.learning_rate=0.3",
        "train.eval_every=2",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=2",
        r#"train.early_stopping={ metric = "questions.loss", patience = 4 }"#,
    ];
    let told = run(&place, "run", &[&settings[..], &["--json"]].concat()).expect_success().json();
    let best = told["best"]["step"].as_u64().unwrap();
    let steps = told["steps"].as_u64().unwrap();
    assert_eq!(steps, best + 8, "four evaluations of every other step without a gain: {told}");
    assert_eq!(checkpoints(&place, "run"), [best, steps - 1, steps]);
    let weights = place.read(&format!("run/{WEIGHTS}"));
    assert!(weights == place.read(&format!("run/checkpoints/step-{best}/{WEIGHTS}")), "the adapter is the best one");
    let evals: Vec<(u64, f64)> = metrics(&place, "run")
        .iter()
        .filter_map(|line| Some((line["step"].as_u64()?, line["eval"]["after"]["questions"]["loss"].as_f64()?)))
        .collect();
    let least = evals.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
    assert!(evals.contains(&(best, least)), "{evals:?} {told}");
    assert_eq!(told["after"]["questions"]["loss"].as_f64(), Some(least));
    let note: Value = serde_json::from_slice(&place.read("run/janus_adapter.json")).unwrap();
    assert_eq!(note["metrics"]["best_step"].as_u64(), Some(best));
    tells_of(&place, "run", best, steps, &told);
    let finished = run(&place, "run", &[&settings[..], &["--resume"]].concat()).expect_success().stdout;
    assert!(finished.ends_with(&format!("; the adapter is that of step {best}\n")), "{finished}");

    stopped(&place, "again", &settings, "KILL", &|| checkpoints(&place, "again").last() > Some(&best));
    let resumed = run(&place, "again", &[&settings[..], &["--resume"]].concat()).expect_success();
    assert_eq!(difference(&place, "run", "again"), None);
    tells_of(&place, "again", best, steps, &told);
    let remark =
        format!("stopped early after step {steps} of 200: `questions.loss` has not got better in 4 evaluations");
    let lines: Vec<&str> = resumed.stdout.lines().collect();
    assert!(lines[lines.len() - 4..].iter().any(|line| line.starts_with(&remark)), "{}", resumed.stdout);

    let stopping = |table: &str| format!("train.early_stopping={table}");
    refuses(&place, "new", &[&stopping(r#"{ metric = "answers.loss" }"#)], &["the tables are `questions`, `pictures`"]);
    for more in [&[][..], &["--dry-run"]] {
        let rule = stopping(r#"{ metric = "questions.los" }"#);
        refuses(
            &place,
            "new",
            &[&[&*rule][..], more].concat(),
            &["has no such figure", "name one of `questions.loss`"],
        );
    }
    refuses(
        &place,
        "new",
        &[&stopping(r#"{ metric = "pictures.loss", pateince = 1 }"#)],
        &["did you mean `patience`?"],
    );
    let never = [&*stopping(r#"{ metric = "pictures.loss" }"#), "train.eval_every=0"];
    refuses(&place, "new", &never, &["`train.eval_every` is 0"]);
}

/// Makes the embedding of one letter infinite.
fn spoil(place: &Workplace, letter: u8) {
    use candle_core::{Device, Tensor, safetensors};
    const EMBEDDINGS: &str = "model.language_model.embed_tokens.weight";
    let path = place.path("base/model.safetensors");
    let mut tensors = safetensors::load(&path, &Device::Cpu).unwrap();
    let mut rows: Vec<Vec<f32>> = tensors[EMBEDDINGS].to_vec2().unwrap();
    rows[usize::from(letter)][0] = f32::INFINITY;
    tensors.insert(EMBEDDINGS.into(), Tensor::new(rows, &Device::Cpu).unwrap());
    safetensors::save(&tensors, &path).unwrap();
}

#[test]
fn a_row_without_a_finite_loss_is_skipped_told_and_at_last_refused() {
    let place = place();
    // The letter `Z` stands in no row but the last of twelve; nothing is shuffled.
    write_rows(&place.path("rows.parquet"), 0, 12);
    spoil(&place, b'Z');
    let recipe = String::from_utf8(place.read("recipe.toml")).unwrap();
    let tables = recipe.find("[[data]]\nname = \"pictures\"").unwrap()..recipe.find("[train]").unwrap();
    place.write("recipe.toml", [&recipe[..tables.start], &recipe[tables.end..]].concat().replace("eval = ", "# "));
    let settings = ["train.shuffle=false", "train.steps=7", "train.grad_accumulation=1"];
    let done = run(&place, "run", &[&settings[..], &["--json"]].concat()).expect_success();
    let row = "row 3 of row group 2 in `";
    assert!(
        done.stderr.contains("warning: step 6 on table `questions`: the loss is NaN; the step is skipped"),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains(row), "{}", done.stderr);
    assert_eq!(done.json()["skipped_steps"].as_u64(), Some(1));
    let all = metrics(&place, "run");
    let steps: Vec<&Value> = all.iter().filter(|line| line.get("eval").is_none()).collect();
    assert_eq!(steps.len(), 7);
    for (number, line) in steps.iter().enumerate() {
        assert_eq!(line.get("skipped").is_some(), number == 5, "{line}");
        assert_eq!(line["loss"].is_null(), number == 5, "{line}");
    }
    let rows = steps[5]["skipped"]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "the batch: {}", steps[5]);
    assert!(rows[1].as_str().unwrap().contains(row), "{}", steps[5]);

    let done = run(&place, "none", &[&settings[..], &["train.max_skipped_steps=0"]].concat());
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(
        done.stderr.contains("1 steps gave no finite loss and gradient") && done.stderr.contains(row),
        "{}",
        done.stderr
    );
    assert_eq!(checkpoints(&place, "none"), [3], "the last checkpoint stays");
    assert!(done.stderr.contains("recipe.toml --resume` goes on from step"), "{}", done.stderr);
    run(&place, "none", &[&settings[..], &["--resume"]].concat()).expect_success();
    assert_eq!(place.read(&format!("none/{WEIGHTS}")), place.read(&format!("run/{WEIGHTS}")));
}

#[test]
fn a_step_left_between_two_batches_starts_over() {
    let place = place();
    let long = ["train.grad_accumulation=60", "train.steps=2", "train.eval_every=0"];
    run(&place, "whole", &long).expect_success();
    let ended = stopped(&place, "run", &long, "TERM", &|| lines(&place, "run") >= 1);
    assert_eq!((ended.code(), checkpoints(&place, "run")), (Some(143), vec![0]), "{}", log(&place, "run"));
    run(&place, "run", &[&["--resume"], &long[..]].concat()).expect_success();
    assert_eq!(difference(&place, "whole", "run"), None);
}

#[test]
fn a_second_signal_leaves_at_once() {
    let place = place();
    // One batch that takes seconds, in which there is no place to stop at.
    let long = ["train.batch_size=4000", "train.grad_accumulation=1", "train.steps=1"];
    let mut child = spawn(&place, "run", &long);
    assert!(wait_until(&mut child, || lines(&place, "run") >= 1), "{}", log(&place, "run"));
    signal(&mut child, "TERM");
    assert!(wait_until(&mut child, || log(&place, "run").contains("a second signal leaves at once")));
    signal(&mut child, "TERM");
    let ended = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(15), "{}", log(&place, "run"));
    assert_eq!((lines(&place, "run"), checkpoints(&place, "run")), (1, vec![]));
}
