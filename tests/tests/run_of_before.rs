//! A run folder that an earlier program wrote is still a run: resumed to the same numbers, finished, read and reported.
//!
//! `golden/run_of_before` is a run of twelve steps over janus-nano by the program of commit 8b3957c, with its checkpoint of
//! step 6; where its files lay was replaced by `/data`. Its recipe has no `orientation`: pictures were taken as stored.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use janus_tests::rows::{images, picture, texts, write_table};
use janus_tests::tiny::{Workplace, plant, tree};
use serde_json::Value;

/// Losses of steps 7 to 12 of the run that nobody stopped.
const LOSSES: [f64; 6] = [1.6284891, 2.7885189, 1.6552047, 2.5165866, 1.5577437, 3.1000402];
/// The same bits need the same kind of processor; this is what rounding in bf16 makes of another.
const ROUNDING: f64 = 0.05;
const WEIGHTS: &str = "adapter_model.safetensors";

fn place() -> Workplace {
    let place = Workplace::empty();
    plant(&tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/run_of_before")), place.folder());
    place
}

/// The run as it was after its checkpoint.
fn cut() -> Workplace {
    let place = place();
    for name in [WEIGHTS, "adapter_config.json", "janus_adapter.json", "run.json"] {
        std::fs::remove_file(place.path(&format!("run/{name}"))).unwrap();
    }
    place
}

fn losses(place: &Workplace) -> Vec<f64> {
    place.metrics("run").iter().filter_map(|line| line["loss"].as_f64()).skip(6).collect()
}

#[test]
fn a_run_of_before_is_resumed_to_the_same_numbers() {
    let place = cut();
    let done = place.janus(&["train", "recipe.toml", "--resume"]).expect_success();
    assert!(done.stderr.contains("going on after step 6 of 12"), "{}", done.stderr);
    assert!(done.stderr.contains("kept no digests of rows: that those of `questions` are"), "{}", done.stderr);
    let found = losses(&place);
    assert_eq!(found.len(), LOSSES.len(), "{found:?}");
    for (found, expected) in found.iter().zip(LOSSES) {
        assert!((found - expected).abs() < ROUNDING * expected, "{found} and {expected}");
    }
    let kept = String::from_utf8(place.read("run/recipe.toml")).unwrap();
    assert!(kept.contains("orientation = \"stored\""), "{kept}");
    // Once more, by the recipe that it kept, whose rows lie elsewhere now.
    let again = cut();
    let kept = ["train", "run/recipe.toml", "--resume", "data.0.train=rows.parquet", "output.dir=run"];
    again.janus(&kept).expect_success();
    assert!(place.read(&format!("run/{WEIGHTS}")) == again.read(&format!("run/{WEIGHTS}")), "the weights differ");
    assert_eq!(losses(&again), found);
}

#[test]
fn what_happened_before_is_what_its_recipe_means() {
    let place = cut();
    let upright = ["train", "recipe.toml", "--resume", "data.0.orientation=upright"];
    place.refuses(&upright, &["`data.0.orientation` was \"stored\" and is \"upright\""]);
    place.janus(&["train", "recipe.toml", "--resume", "data.0.orientation=stored"]).expect_success();
    // A run that begins today says what it does, and its own recipe resumes it.
    place.janus(&["train", "recipe.toml", "train.steps=2", "output.dir=new"]).expect_success();
    let kept = String::from_utf8(place.read("new/recipe.toml")).unwrap();
    assert!(kept.contains("orientation = \"upright\""), "{kept}");
    let done = place.janus(&["train", "new/recipe.toml", "--resume"]).expect_success();
    assert!(done.stdout.contains("nothing to do"), "{}{}", done.stdout, done.stderr);
    // One that begins from the recipe of a run of before does what that did.
    let from_old = ["train", "run/recipe.toml", "data.0.train=rows.parquet", "train.steps=2", "output.dir=third"];
    place.janus(&from_old).expect_success();
    let kept = String::from_utf8(place.read("third/recipe.toml")).unwrap();
    assert!(kept.contains("orientation = \"stored\""), "{kept}");
}

#[test]
fn a_finished_run_of_before_is_read() {
    let place = place();
    let before = tree(place.folder());
    let done = place.janus(&["train", "recipe.toml", "--resume"]).expect_success();
    assert!(done.stdout.contains("is finished: nothing to do"), "{}", done.stdout);
    assert!(tree(place.folder()) == before, "something changed");
    let told = place.janus(&["adapter", "inspect", "run", "--base", "janus-nano", "--json"]).expect_success().json();
    assert_eq!(told["parameters"].as_u64(), Some(2048), "{told}");
    place.janus(&["report", "run"]).expect_success();
    assert!(String::from_utf8(place.read("run/report.html")).unwrap().contains("janus-nano"));
    // The checkpoint is an adapter, too, and has the fingerprint of today's base.
    let note: Value = serde_json::from_slice(&place.read("run/checkpoints/step-6/janus_adapter.json")).unwrap();
    assert!(note["base"]["fingerprint"].as_str().is_some_and(|fingerprint| fingerprint.len() == 64));
    let ask = ["understand", "--base", "janus-nano", "--adapter", "run/checkpoints/step-6", "What?", "--json"];
    assert!(place.janus(&ask).expect_success().json()["text"].is_string());
}

/// Three rows in batches of eight: a step was an epoch once, and is two and two thirds.
#[test]
fn epochs_are_counted_on_as_a_run_began() {
    let place = Workplace::with_base();
    let pictures: Vec<Option<Vec<u8>>> = (0..3).map(|seed| Some(picture(16, 16, seed))).collect();
    let columns =
        vec![("image", images(&pictures)), ("question", texts(["What?"; 3])), ("answer", texts(["A part."; 3]))];
    write_table(&place.path("rows.parquet"), columns, 4);
    place.write(
        "recipe.toml",
        "[base]\npath = \"base\"\ndtype = \"f32\"\n[adapter]\nrank = 1\ntargets = [\"aligner\"]\n[[data]]\ntask = \"understand\"\n\
         train = \"rows.parquet\"\n[train]\nsteps = 2\nbatch_size = 8\nschedule = \"constant\"\n[output]\ndir = \"run\"\n",
    );
    place.janus(&["train", "recipe.toml"]).expect_success();
    let run = tree(&place.path("run"));
    let lengthened = |change: &dyn Fn(String) -> String| {
        std::fs::remove_dir_all(place.path("run")).unwrap();
        plant(&run, &place.path("run"));
        let lines = change(String::from_utf8(place.read("run/metrics.jsonl")).unwrap());
        place.write("run/metrics.jsonl", lines);
        let done = place.janus(&["train", "recipe.toml", "--resume", "train.steps=4"]).expect_success();
        let epochs: Vec<f64> = place.metrics("run").iter().filter_map(|line| line["epoch"].as_f64()).collect();
        (epochs, done.stderr.contains("epochs are counted on as the run began to"))
    };
    let per_step = 8.0 / 3.0;
    assert_eq!(lengthened(&|lines| lines), ([1.0, 2.0, 3.0, 4.0].map(|step| step * per_step).to_vec(), false));
    // As long as they were, for the checkpoint knows how many bytes there are.
    let before = |lines: String| {
        (1..=2).fold(lines, |lines, step| {
            let now = format!("\"epoch\":{},", f64::from(step) * per_step);
            assert!(lines.contains(&now), "{now}: {lines}");
            let then = format!("\"epoch\":{step}.0");
            lines.replace(&now, &format!("{then:<width$},", width = now.len() - 1))
        })
    };
    assert_eq!(lengthened(&before), (vec![1.0, 2.0, 3.0, 4.0], true));
}

/// What an earlier version took for text, or accepted, is refused by name and nothing changes.
#[test]
fn rows_that_are_taken_otherwise_today_end_no_run_of_before() {
    let place = cut();
    let rows = |question: &str, answer: &str| {
        let pictures: Vec<Option<Vec<u8>>> = (0..8).map(|seed| Some(picture(16, 16, seed))).collect();
        let columns =
            vec![("image", images(&pictures)), ("question", texts([question; 8])), ("answer", texts([answer; 8]))];
        write_table(&place.path("rows.parquet"), columns, 4);
    };
    let resume = ["train", "recipe.toml", "--resume"];
    for (question, answer, said) in [
        ("<image> What?", "A part.", "`questions`: `<image>` was text and is the place of a picture"),
        ("[IMG] What?", "A part.", "`questions`: `[IMG]` was text and is the place of a picture"),
        ("What?", "See <image>.", "it accepted them, and now none of the 8 rows can be used"),
    ] {
        rows(question, answer);
        place.refuses(&resume, &["began with an earlier version", said, "the version of janus that began it"]);
    }
    // A file with other content is another matter.
    rows("What?", "A part.");
    place.refuses(&resume, &["with other content"]);
}
