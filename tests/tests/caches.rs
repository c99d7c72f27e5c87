//! Runs with a cold cache, a warm one, a damaged one and none: the same adapters, and less to compute.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use janus_tests::program::{Done, janus_with};
use janus_tests::rows::{images, picture, texts, write_table};
use janus_tests::tiny::Workplace;

const ROWS: u32 = 4;

const RECIPE: &str = r#"
[base]
path = "base"
dtype = "f32"
[adapter]
rank = 3
dropout = 0.1
targets = ["decoder"]
[[data]]
name = "questions"
task = "understand"
train = "rows.parquet"
eval = "rows.parquet"
[[data]]
name = "pictures"
task = "generate"
train = "rows.parquet"
columns = { prompt = "caption" }
[train]
steps = 6
batch_size = 2
learning_rate = 5e-3
[output]
dir = "run"
"#;

fn place() -> Workplace {
    let place = Workplace::with_base();
    place.write("recipe.toml", RECIPE);
    let pictures: Vec<_> = (0..ROWS).map(|i| Some(picture(40, 28, i))).collect();
    let columns = vec![
        ("image", images(&pictures)),
        ("question", texts((0..ROWS).map(|i| format!("Part {i}?")))),
        ("answer", texts((0..ROWS).map(|i| format!("part {}", i * i)))),
        ("caption", texts((0..ROWS).map(|i| format!("a part of kind {i}")))),
    ];
    write_table(&place.path("rows.parquet"), columns, 3);
    place
}

/// What a run left: the adapter's weights and the losses of `metrics.jsonl`, and what it said.
#[track_caller]
fn train(
    place: &Workplace,
    run: &str,
    overrides: &[&str],
    environment: &[(&str, &str)],
) -> (Vec<u8>, Vec<String>, Done) {
    let folder = format!("output.dir={run}");
    // Entries are of a number of threads: on several, batches that are computed side by side would have their own.
    let arguments: Vec<&str> =
        ["train", "recipe.toml", &folder, "--threads", "1"].iter().chain(overrides).copied().collect();
    let done = janus_with(place.folder(), &arguments, environment).expect_success();
    let figures = place.metrics(run).into_iter();
    let figures =
        figures.map(|line| format!("{} {} {} {}", line["step"], line["loss"], line["grad_norm"], line["eval"]));
    (place.read(&format!("{run}/adapter_model.safetensors")), figures.collect(), done)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        fs_err::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    let kinds = ["features", "codes"].map(|kind| list(&folder.join("cache").join(kind)));
    kinds.concat().iter().flat_map(|shelf| list(shelf)).collect()
}

#[test]
fn cold_warm_damaged_and_no_cache_give_the_same_adapter() {
    for (targets, point, features) in [
        (r#"adapter.targets=["decoder"]"#, "vision features at the aligner's output, image codes", ROWS),
        (r#"adapter.targets=["decoder", "aligner"]"#, "vision features at the vision tower's output", ROWS),
        (r#"adapter.targets=["layers.1.mlp.fc1", "v_proj"]"#, "cached     image codes\n", 0),
        (r#"adapter.targets=["vision_model.encoder.layers.1.mlp.fc1", "o_proj"]"#, "vision tower's first block", ROWS),
    ] {
        let place = place();
        let plan = place.janus(&["train", "recipe.toml", "--dry-run", targets]).expect_success().stdout;
        assert!(plan.contains(point), "no `{point}` in {plan}");
        let computed = |done: &Done, kind: &str| -> Option<(u64, u64)> {
            let told = done.stderr.lines().rev().find(|line| line.contains("from the cache"))?;
            let told = told.split("; ").find_map(|part| part.strip_prefix(kind)?.strip_prefix(": "))?;
            let mut numbers = told.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
            Some((numbers.next()?, numbers.next()?))
        };
        let cold = train(&place, "cold", &[targets], &[]);
        assert_eq!(entries(place.folder()).len() as u32, features + ROWS);
        let warm = train(&place, "warm", &[targets], &[]);
        let off = train(&place, "off", &[targets], &[("JANUS_CACHE_LIMIT_BYTES", "0")]);
        for path in entries(place.folder()) {
            let mut bytes = fs_err::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs_err::write(&path, bytes).unwrap();
        }
        let damaged = train(&place, "damaged", &[targets], &[]);
        for (name, run) in [("warm", &warm), ("off", &off), ("damaged", &damaged)] {
            assert_eq!(run.1, cold.1, "{name} {targets}");
            assert!(run.0 == cold.0, "{name} {targets}");
        }
        let all = u64::from(ROWS);
        for (run, expected) in [(&cold, (all, 0)), (&warm, (0, all)), (&off, (all, 0)), (&damaged, (all, 0))] {
            assert_eq!(computed(&run.2, "image codes"), Some(expected), "{}", run.2.stderr);
        }
        if features == 0 {
            assert_eq!(computed(&cold.2, "vision features"), None, "{}", cold.2.stderr);
        } else {
            assert_eq!(computed(&cold.2, "vision features").unwrap().0, all, "{}", cold.2.stderr);
            assert_eq!(computed(&warm.2, "vision features").unwrap().0, 0, "{}", warm.2.stderr);
            assert!(computed(&warm.2, "vision features").unwrap().1 >= all);
            let (computed, read) = computed(&off.2, "vision features").unwrap();
            assert!(computed > all && read == 0, "{}", off.2.stderr);
        }
    }
}

#[test]
fn evaluations_use_the_cache() {
    let place = place();
    let eval = |environment: &[(&str, &str)]| {
        janus_with(place.folder(), &["eval", "recipe.toml", "--json"], environment).expect_success()
    };
    let (cold, warm, off) = (eval(&[]), eval(&[]), eval(&[("JANUS_CACHE_LIMIT_BYTES", "0")]));
    assert_eq!((cold.json(), cold.json()), (warm.json(), off.json()));
    assert!(cold.stderr.contains(&format!("vision features: {ROWS} computed, {ROWS} read")), "{}", cold.stderr);
    assert!(warm.stderr.contains("vision features: 0 computed"), "{}", warm.stderr);
}

#[test]
fn a_cache_that_cannot_be_written_is_one_warning() {
    let place = place();
    let plain = train(&place, "plain", &[], &[("JANUS_CACHE_LIMIT_BYTES", "0")]);
    fs_err::create_dir_all(place.path("cache")).unwrap();
    for kind in ["features", "codes"] {
        place.write(&format!("cache/{kind}"), "in the way");
    }
    let run = train(&place, "run", &[], &[]);
    assert!(run.0 == plain.0);
    assert_eq!(run.2.stderr.matches("warning: nothing more is kept in the cache").count(), 1, "{}", run.2.stderr);
}

#[test]
fn a_limit_that_is_no_number_is_refused() {
    let place = place();
    let done = janus_with(place.folder(), &["train", "recipe.toml"], &[("JANUS_CACHE_LIMIT_BYTES", "20GB")]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("`JANUS_CACHE_LIMIT_BYTES` is `20GB`") && done.stderr.contains("hint: "));
    assert!(!place.path("run").exists());
}

#[test]
fn a_small_limit_is_kept() {
    let place = place();
    let plain = train(&place, "plain", &[], &[("JANUS_CACHE_LIMIT_BYTES", "0")]);
    let run = train(&place, "run", &[], &[("JANUS_CACHE_LIMIT_BYTES", "10000")]);
    assert!(run.0 == plain.0);
    let total: u64 = entries(place.folder()).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!((1..=10_000).contains(&total), "{total}");
}

#[test]
fn questions_and_pictures_together_are_those_asked_for_alone() {
    let place = place();
    place.write("picture.png", picture(40, 28, 1));
    // With random weights nearly all questions have one answer.
    let run = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let done = place.janus(&[arguments, &["--base", "janus-nano", "--json"]].concat()).expect_success();
        done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let understand = ["understand", "--image", "picture.png", "--max-new-tokens", "6"];
    let light = "Is the light bright or dim?";
    let questions = [light, "How many parts are there?", light];
    let together = run(&[&understand[..], &questions].concat());
    for (answer, question) in together.iter().zip(questions) {
        assert_eq!(run(&[&understand[..], &[question]].concat()), std::slice::from_ref(answer));
    }
    assert_eq!((together.len(), &together[0]), (3, &together[2]));
    assert_ne!(together[0], together[1]);

    let generate = |seed: &str, count: &str| {
        run(&["generate", "A red ring.", "--out", "drawn.png", "--seed", seed, "--count", count])[0]["codes"].clone()
    };
    let together = generate("5", "3");
    for (number, seed) in ["5", "6", "7"].into_iter().enumerate() {
        assert_eq!(together[number], generate(seed, "1")[0]);
    }
    assert_ne!(together[0], together[1]);
}

/// Several commands that make the same base with random weights at once: each finds a whole one.
#[test]
fn a_base_that_several_make_at_once_is_whole_for_each() {
    let place = Workplace::empty();
    let cache = place.path("cache");
    let arguments = ["base", "inspect", "init:janus-tiny?seed=5&vocabulary=world"];
    let told: Vec<String> = std::thread::scope(|scope| {
        let one = || janus_with(place.folder(), &arguments, &[("JANUS_CACHE", cache.to_str().unwrap())]);
        let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|done| done.join().unwrap().expect_success().stdout).collect()
    });
    assert!(told.iter().all(|text| text == &told[0]), "{told:?}");
    let left = fs_err::read_dir(cache.join("bases")).unwrap().map(|entry| entry.unwrap().path());
    // Beside it lies the digest that it is known by.
    let left: Vec<_> = left.filter(|path| path.is_dir()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
