//! Whole training runs on a small base: what learns, what stays, what is written, what comes again.
#![allow(clippy::unwrap_used)]

mod graph;
mod plans;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use janus_core::checkpoint::Checkpoint;
use janus_lora::adapter::Adapter;
use janus_lora::recipe::{self, Recipe};
use janus_tests::program::command;
use janus_tests::rows::{conversations, image_lists, images, picture, texts, write_table};
use janus_tests::tiny::{Workplace, tree};
use serde_json::Value;

const WEIGHTS: &str = "adapter_model.safetensors";

/// Rows of `rows.parquet`.
const ROWS: u32 = 10;

const UNDERSTAND: &str = r#"
[[data]]
name = "questions"
task = "understand"
train = "rows.parquet"
"#;

const GENERATE: &str = r#"
[[data]]
name = "pictures"
task = "generate"
train = "rows.parquet"
columns = { prompt = "caption" }
"#;

const TEXT: &str = r#"
[[data]]
name = "text"
task = "text"
train = "rows.parquet"
columns = { prompt = "question" }
"#;

/// A base, rows for every task, and a recipe with these tables.
fn place(tables: &[&str]) -> Workplace {
    let place = Workplace::with_base();
    let header = "# janus train recipe.toml\n[base]\npath = \"base\"\ndtype = \"f32\"\n";
    let adapter = "[adapter]\nrank = 4\ntargets = [\"all\"]\n";
    let train = "[train]\nsteps = 3\nbatch_size = 2\nlearning_rate = 5e-3\n[output]\ndir = \"run\"\n";
    place.write("recipe.toml", [header, adapter, &tables.concat(), train].concat());
    let pictures = |first: u32| -> Vec<_> { (0..ROWS).map(|i| Some(picture(40, 32, first + i))).collect() };
    // Answers of different lengths, so that batches differ in their number of supervised tokens.
    let answer = |i: u32| format!("part {}", "abcdefghijkl".get(..=i as usize).unwrap());
    let turns: Vec<Vec<(String, String)>> = (0..ROWS)
        .map(|i| {
            let turn = |role: &str, text: String| (role.to_owned(), text);
            vec![
                turn("system", "Be brief.".into()),
                turn("user", "<image_placeholder> then <image_placeholder>?".into()),
                turn("assistant", answer(i)),
                turn("user", "And then?".into()),
                turn("assistant", format!("number {i}")),
            ]
        })
        .collect();
    let turns: Vec<Vec<(&str, &str)>> =
        turns.iter().map(|row| row.iter().map(|(role, text)| (role.as_str(), text.as_str())).collect()).collect();
    let pairs: Vec<_> = (0..ROWS).map(|i| vec![picture(40, 40, i), picture(32, 48, 30 + i)]).collect();
    let columns = vec![
        ("image", images(&pictures(0))),
        ("question", texts((0..ROWS).map(|i| format!("Part {i}?")))),
        ("answer", texts((0..ROWS).map(answer))),
        ("caption", texts((0..ROWS).map(|i| format!("a part of kind {i}")))),
        ("other_caption", texts((0..ROWS).map(|i| format!("no such thing! {i}")))),
        ("pair", image_lists(&pairs)),
        ("turns", conversations(&turns)),
    ];
    write_table(&place.path("rows.parquet"), columns, 4);
    place
}

/// Runs the recipe into the folder `run`; gives the bytes of the adapter's weights.
#[track_caller]
fn train(place: &Workplace, run: &str, overrides: &[&str]) -> Vec<u8> {
    let folder = format!("output.dir={run}");
    let arguments: Vec<&str> = ["train", "recipe.toml", &folder].iter().chain(overrides).copied().collect();
    place.janus(&arguments).expect_success();
    place.read(&format!("{run}/{WEIGHTS}"))
}

/// The lines of a run's steps, and those of its evaluations.
fn metrics(place: &Workplace, run: &str) -> (Vec<Value>, Vec<Value>) {
    let lines = place.metrics(run).into_iter().filter(|line| line.get("samples").is_none());
    lines.partition(|line| line.get("eval").is_none())
}

/// The lines of samples.
fn samples(place: &Workplace, run: &str) -> Vec<Value> {
    place.metrics(run).into_iter().filter(|line| line.get("samples").is_some()).collect()
}

fn losses(place: &Workplace, run: &str) -> Vec<f64> {
    metrics(place, run).0.iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

fn tensors(bytes: &[u8]) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load_buffer(bytes, &Device::Cpu).unwrap().into_iter().collect()
}

fn largest_difference(a: &[u8], b: &[u8]) -> f32 {
    let (a, b) = (tensors(a), tensors(b));
    assert!(a.keys().eq(b.keys()));
    let difference = |name: &String| {
        let difference = (&a[name] - &b[name]).unwrap().abs().unwrap().flatten_all().unwrap();
        difference.max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    a.keys().map(difference).fold(0.0, f32::max)
}

fn load(place: &Workplace, overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    recipe::load(&place.path("recipe.toml"), &overrides, place.folder()).unwrap()
}

#[test]
fn equal_commands_give_equal_bytes() {
    let place = place(&[UNDERSTAND, GENERATE]);
    let one = train(&place, "one", &[]);
    assert!(one == train(&place, "two", &[]), "the same command");
    let (first, again) = (metrics(&place, "one").0, metrics(&place, "two").0);
    for (a, b) in first.iter().zip(&again) {
        for key in ["step", "loss", "lr", "grad_norm", "tokens", "losses"] {
            assert_eq!(a[key], b[key], "{key}");
        }
    }
    let other = train(&place, "three", &["train.seed=43"]);
    assert_eq!(other.len(), one.len());
    assert!(one != other, "another seed");
    let others = train(&place, "four", &["data.0.weight=3.0"]);
    assert!(one != others, "another mixture");

    // The recipe in the run folder says everything.
    fs_err::create_dir(place.path("elsewhere")).unwrap();
    fs_err::copy(place.path("one/recipe.toml"), place.path("elsewhere/recipe.toml")).unwrap();
    let written = ["train", "elsewhere/recipe.toml", "output.dir=five"];
    place.janus(&written).expect_success();
    assert!(one == place.read(&format!("five/{WEIGHTS}")), "the recipe of the run folder");
}

#[test]
fn a_number_of_threads_gives_the_same_bytes_each_time() {
    let place = place(&[UNDERSTAND, GENERATE]);
    let runs = ["1", "2"].map(|threads| {
        let once = train(&place, &format!("once-{threads}"), &["--threads", threads]);
        assert!(once == train(&place, &format!("again-{threads}"), &["--threads", threads]), "{threads} threads");
        once
    });
    assert!(largest_difference(&runs[0], &runs[1]) < 1e-4, "one thread and two");
}

/// While it trains, the program has the threads it was told to have, one that reads rows, and those of nobody else.
#[cfg(target_os = "linux")]
#[test]
fn a_run_has_one_pool() {
    let place = place(&[UNDERSTAND]);
    let mut command = command(place.folder(), &["train", "recipe.toml", "train.steps=20", "--threads", "3"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let tasks = format!("/proc/{}/task", child.id());
    let mut seen = BTreeSet::new();
    while child.try_wait().unwrap().is_none() {
        for task in std::fs::read_dir(&tasks).into_iter().flatten().flatten() {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            seen.insert(name.trim().to_owned());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    // A task that has just ended has no name to read; a new one still has its parent's, the first of them that of this test.
    seen.remove("");
    seen.remove(std::fs::read_to_string("/proc/thread-self/comm").unwrap().trim());
    // `digests` hashes what was read, and may have ended before it is seen.
    seen.remove("digests");
    // `rows` reads and decodes ahead of the steps.
    let expected = ["janus", "janus-0", "janus-1", "janus-2", "rows"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(expected));
}

#[test]
fn only_the_adapter_changes() {
    let place = place(&[UNDERSTAND, GENERATE]);
    let inspect = || place.janus(&["base", "inspect", "base", "--fingerprint", "--json"]).expect_success().json();
    let (files, before) = (tree(&place.path("base")), inspect());
    assert!(before["fingerprint"].as_str().unwrap().len() >= 64, "{before}");
    let modules = r#"adapter.modules_to_save=["generation_head"]"#;
    let targets = r#"adapter.targets=["decoder", "vision", "aligner", "lm_head", "embed_tokens"]"#;
    train(&place, "run", &[modules, targets]);
    assert_eq!(before, inspect());
    assert!(files == tree(&place.path("base")), "a file of the base changed");
    let note: Value = serde_json::from_slice(&place.read("run/janus_adapter.json")).unwrap();
    assert!(note.to_string().contains(before["fingerprint"].as_str().unwrap()), "{note}");
}

/// Answers and drawings of a base, with an adapter or without.
fn used(place: &Workplace, base: &str, adapter: Option<&str>) -> (Value, Value) {
    place.write("picture.png", picture(40, 32, 3));
    let adapter: Vec<&str> = adapter.map(|adapter| vec!["--adapter", adapter]).unwrap_or_default();
    let understand = [
        &["understand", "--base", base, "--image", "picture.png", "Part 3?", "--max-new-tokens", "12", "--json"],
        &adapter[..],
    ];
    let answer = place.janus(&understand.concat()).expect_success().json();
    assert!(answer["text"].is_string() && !answer["token_ids"].as_array().unwrap().is_empty(), "{answer}");
    let generate = [
        &["generate", "--base", base, "a part of kind 3", "--out", "drawn.png", "--temperature", "0", "--json"],
        &adapter[..],
    ];
    let drawing = place.janus(&generate.concat()).expect_success().json();
    assert_eq!(drawing["files"], serde_json::json!(["drawn.png"]));
    assert_eq!(drawing["codes"][0].as_array().unwrap().len(), 16, "{drawing}");
    assert!(place.read("drawn.png").starts_with(b"\x89PNG"));
    (answer["token_ids"].clone(), drawing["codes"].clone())
}

/// Attached and merged, in both layouts, an adapter computes the same; what it computes is not the base's.
fn same_attached_and_merged(place: &Workplace, run: &str) {
    let attached = used(place, "base", Some(run));
    let plain = used(place, "base", None);
    assert!(attached.0 != plain.0 && attached.1 != plain.1, "the adapter changes nothing: {attached:?}");
    for layout in ["native", "deepseek"] {
        let out = format!("merged-{layout}");
        let merge = ["merge", "--base", "base", "--adapter", run, "--out", &out, "--layout", layout, "--json"];
        let report = place.janus(&merge).expect_success().json();
        assert!(report["largest_logit_difference"].as_f64().unwrap() < 2e-4, "{report}");
        assert_eq!(used(place, &out, None), attached, "{layout}");
    }
}

#[test]
fn a_joint_run_from_end_to_end() {
    let place = place(&[UNDERSTAND, GENERATE]);
    let evals = ["data.0.eval=rows.parquet", "data.1.eval=rows.parquet"];
    let settings = ["train.steps=30", "train.learning_rate=1e-2", "train.eval_every=10", "train.checkpoint_every=20"];
    let targets = r#"adapter.targets=["all", "lm_head"]"#;
    let arguments = [&["train", "recipe.toml", "--json", targets], &evals[..], &settings[..]].concat();
    let done = place.janus(&arguments).expect_success();
    let summary = done.json();
    assert_eq!((summary["steps"].as_u64(), done.stdout.lines().count()), (Some(30), 1), "{summary}");
    assert!(!done.stderr.contains('\u{1b}'), "escapes where no terminal is: {}", done.stderr);

    let (steps, evaluations) = metrics(&place, "run");
    assert_eq!(steps.len(), 30);
    for (number, line) in steps.iter().enumerate() {
        assert_eq!(line["step"].as_u64(), Some(number as u64 + 1));
        for key in ["epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "peak_rss_bytes"] {
            assert!(line[key].as_f64().is_some_and(f64::is_finite), "`{key}` in {line}");
        }
        assert!(line["tokens"].as_u64() > Some(0) && line["rss_bytes"].as_u64() > Some(1 << 20), "{line}");
        assert!(line["peak_rss_bytes"].as_u64() > Some(1 << 20), "{line}");
        let losses = line["losses"].as_object().unwrap();
        assert_eq!(losses.keys().collect::<Vec<_>>(), ["questions", "pictures"]);
        let sum: f64 = losses.values().map(|loss| loss.as_f64().unwrap()).sum();
        assert!((sum - line["loss"].as_f64().unwrap()).abs() < 1e-9, "{line}");
    }
    // One batch of two rows a step, alternating between two tables of ten rows: an epoch is ten steps.
    assert!((steps[9]["epoch"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{}", steps[9]);
    assert!((steps[0]["lr"].as_f64().unwrap() - 1e-2).abs() < 1e-12 && steps[29]["lr"].as_f64().unwrap() < 1e-3);

    let at: Vec<Option<u64>> = evaluations.iter().map(|line| line["step"].as_u64()).collect();
    assert_eq!(at, [Some(0), Some(10), Some(20), Some(30)]);
    let (first, last) = (&evaluations[0]["eval"], &evaluations[3]["eval"]);
    assert!(first.get("before").is_some() && last.get("before") == first.get("before"));
    assert_eq!((&summary["before"], &summary["after"]), (&last["before"], &last["after"]));
    for table in ["questions", "pictures"] {
        let loss = |when: &str| last[when][table]["loss"].as_f64().unwrap();
        assert!(loss("after") < 0.85 * loss("before"), "{table}: {last}");
        assert_eq!(last["after"][table]["rows"].as_u64(), Some(10));
    }
    assert!(
        last["after"]["questions"]["exact_match"].is_f64() && last["after"]["pictures"].get("exact_match").is_none()
    );

    let files: BTreeSet<String> =
        tree(&place.path("run")).keys().map(|name| name.to_string_lossy().into_owned()).collect();
    for name in [
        "adapter_config.json",
        WEIGHTS,
        "janus_adapter.json",
        "recipe.toml",
        "metrics.jsonl",
        "loss.png",
        "rejected.jsonl",
    ] {
        assert!(files.contains(name), "no `{name}` in {files:?}");
    }
    assert!(files.contains("checkpoints/step-20/adapter_model.safetensors"), "{files:?}");
    assert!(!files.iter().any(|name| name.contains("tmp")), "{files:?}");
    let plot = image::load_from_memory_with_format(&place.read("run/loss.png"), image::ImageFormat::Png).unwrap();
    assert!(plot.width() >= 200 && plot.height() >= 100);
    assert!(place.read("run/rejected.jsonl").is_empty());

    // `janus eval` finds what the run found.
    let eval = [&["eval", "recipe.toml", "--adapter", "run", "--json"], &evals[..]].concat();
    let eval = place.janus(&eval).expect_success().json();
    for when in ["before", "after"] {
        for table in ["questions", "pictures"] {
            let figure = |value: &Value| value[when][table]["loss"].as_f64().unwrap();
            assert!((figure(&eval) - figure(last)).abs() < 1e-5, "{when} {table}: {eval} and {last}");
        }
    }

    let inspected = place.janus(&["adapter", "inspect", "run", "--base", "base", "--json"]).expect_success().json();
    let elements: usize = tensors(&place.read(&format!("run/{WEIGHTS}"))).values().map(Tensor::elem_count).sum();
    assert_eq!(inspected["parameters"].as_u64(), Some(elements as u64));
    same_attached_and_merged(&place, "run");
}

#[test]
fn a_run_shows_what_it_does() {
    let place = place(&[UNDERSTAND, GENERATE]);
    let evals = ["data.0.eval=rows.parquet", "data.1.eval=rows.parquet"];
    let more = ["train.steps=4", "train.sample_every=2", "train.checkpoint_every=2", "train.learning_rate=1e-2"];
    let sampled = train(&place, "run", &[&evals[..], &more].concat());
    let lines = samples(&place, "run");
    assert_eq!(lines.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2, 4]);
    for line in &lines {
        let samples = line["samples"].as_array().unwrap();
        let of = |table: &str| samples.iter().filter(|s| s["table"] == table).collect::<Vec<_>>();
        let (answers, pictures) = (of("questions"), of("pictures"));
        assert_eq!((answers.len(), pictures.len()), (4, 2), "{line}");
        for (row, sample) in answers.iter().enumerate() {
            assert_eq!(sample["prompt"], format!("Part {row}?"));
            assert!(sample["expected"].as_str().unwrap().starts_with("part a") && sample["answer"].is_string());
        }
        for (row, sample) in pictures.iter().enumerate() {
            assert_eq!(sample["prompt"], format!("a part of kind {row}"));
            for name in [&sample["picture"], &sample["image"]] {
                let bytes = place.read(&format!("run/{}", name.as_str().unwrap()));
                assert!(image::load_from_memory(&bytes).unwrap().width() >= 8, "{sample}");
            }
        }
        let stored = place.read(&format!("run/samples/step-{}/samples.json", line["step"]));
        assert_eq!(serde_json::from_slice::<Value>(&stored).unwrap(), line["samples"]);
    }
    let drawn = |step: u64| place.read(&format!("run/samples/step-{step}/1-0.png"));
    assert_ne!(drawn(0), drawn(4), "a learning rate of 1e-2 changes the picture");

    // Samples change nothing, and are the same each time; without a number there are some at the end.
    let plain = train(&place, "plain", &[&evals[..], &["train.steps=4", "train.learning_rate=1e-2"]].concat());
    assert!(sampled == plain, "sampling moved the adapter");
    let last = samples(&place, "plain");
    assert_eq!((last.len(), &last[0]), (1, &lines[2]));
    assert!(drawn(4) == place.read("plain/samples/step-4/1-0.png"));

    let facts: Value = serde_json::from_slice(&place.read("run/run.json")).unwrap();
    let predicted = facts["plan"]["predicted_memory"].as_object().unwrap();
    let sum: u64 = predicted.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(Some(sum), facts["plan"]["predicted_peak_bytes"].as_u64());
    assert!(facts["measured_peak_bytes"].as_u64() > Some(1 << 20), "{facts}");
    assert!(facts["candle"].as_str().unwrap().starts_with("0."), "{facts}");

    // One event file, whose records hold together; one more record than steps, evaluations and samples: the version.
    let names = tree(&place.path("run"));
    let events: Vec<_> = names.iter().filter(|(name, _)| name.to_string_lossy().contains("tfevents")).collect();
    let [(_, Some(events))] = events[..] else { panic!("{:?}", names.keys()) };
    let (mut rest, mut records) = (events.as_slice(), Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        records.push(&rest[12..12 + length]);
        rest = &rest[16 + length..];
    }
    assert_eq!(records.len(), 1 + 4 + 2 + 3);
    // Every curve of the evaluation begins with the base at step 0. A record is wall time, step, and then what it holds.
    let steps_of = |tag: &str| -> Vec<u8> {
        let has = |record: &&&[u8]| record.windows(tag.len()).any(|part| part == tag.as_bytes());
        records.iter().filter(has).map(|record| record[10]).collect()
    };
    for table in ["questions", "pictures"] {
        assert_eq!(steps_of(&format!("eval/{table}/loss")), [0, 4], "{table}");
        assert_eq!(steps_of(&format!("eval_base/{table}/loss")), [0], "{table}");
    }

    // The report is made of the folder alone.
    let report = place.read("run/report.html");
    let text = String::from_utf8(report.clone()).unwrap();
    for part in ["finished", "a part of kind 1", "Held-out rows", "data:image/", "predicted", "step 4"] {
        assert!(text.contains(part), "no `{part}` in the report");
    }
    fs_err::remove_file(place.path("run/report.html")).unwrap();
    fs_err::rename(place.path("base"), place.path("gone")).unwrap();
    fs_err::rename(place.path("rows.parquet"), place.path("gone.parquet")).unwrap();
    let told = place.janus(&["report", "run", "--json"]).expect_success().json();
    assert_eq!(told["file"], "run/report.html");
    assert!(report == place.read("run/report.html"));
    place.refuses(&["report", "gone"], &["`gone` is no run folder", "metrics.jsonl"]);
}

#[test]
fn accumulated_batches_are_one_batch() {
    let place = place(&[UNDERSTAND]);
    let settings = ["train.shuffle=false", "adapter.dropout=0.0", "train.steps=4", "train.learning_rate=1e-3"];
    let run = |name: &str, more: &[&str]| train(&place, name, &[&settings[..], more].concat());
    let whole = run("whole", &["train.batch_size=4", "train.grad_accumulation=1"]);
    let halves = run("halves", &["train.batch_size=2", "train.grad_accumulation=2"]);
    let difference = largest_difference(&whole, &halves);
    assert!(difference <= 1e-5, "by tokens: {difference}");
    for (a, b) in losses(&place, "whole").iter().zip(losses(&place, "halves")) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
    let means = run("means", &["train.batch_size=2", "train.grad_accumulation=2", "train.accumulation=mean"]);
    assert!(largest_difference(&whole, &means) > 1e-4, "a mean of means is another loss");
}

#[test]
fn text_messages_and_several_images() {
    let conversation = TEXT.replace(r#"{ prompt = "question" }"#, r#"{ messages = "chat" }"#);
    let pairs = UNDERSTAND.to_owned() + "columns = { images = \"pair\", messages = \"turns\" }\n";
    for (table, name) in [(TEXT.to_owned(), "text"), (conversation, "text"), (pairs, "questions")] {
        let place = place(&[&table]);
        let chat: Vec<Vec<(&str, &str)>> = (0..6).map(|_| vec![("user", "Hi"), ("assistant", "Hello.")]).collect();
        if table.contains("chat") {
            write_table(&place.path("rows.parquet"), vec![("chat", conversations(&chat))], 4);
        }
        let settings = ["data.0.eval=rows.parquet", "train.steps=15", "train.learning_rate=1e-2"];
        train(&place, "run", &settings);
        let (_, evaluations) = metrics(&place, "run");
        let last = &evaluations.last().unwrap()["eval"];
        let loss = |when: &str| last[when][name]["loss"].as_f64().unwrap();
        assert!(loss("after") < 0.9 * loss("before"), "{table}: {last}");
    }
}

#[test]
fn a_dropped_prompt_does_not_matter() {
    let place = place(&[GENERATE]);
    let other = r#"data.0.columns={prompt="other_caption"}"#;
    let run = |name: &str, dropout: &str, more: &[&str]| {
        let dropout = format!("data.0.prompt_dropout={dropout}");
        train(&place, name, &[&[dropout.as_str(), "train.steps=2"], more].concat());
        losses(&place, name)
    };
    // Captions of equal length in tokens; without a prompt nothing else of them is left.
    assert_eq!(run("a", "1.0", &[]), run("b", "1.0", &[other]));
    assert_ne!(run("c", "0.0", &[]), run("d", "0.0", &[other]));
}

#[test]
fn dropout_trains_and_comes_again() {
    let place = place(&[UNDERSTAND]);
    let settings = ["adapter.dropout=0.3", "train.steps=12", "train.learning_rate=1e-2", "data.0.eval=rows.parquet"];
    let one = train(&place, "one", &settings);
    assert!(one == train(&place, "two", &settings), "noise is a function of the seed");
    assert!(one != train(&place, "three", &settings[1..]), "dropout does something");
    let (_, evaluations) = metrics(&place, "one");
    let last = &evaluations.last().unwrap()["eval"];
    let loss = |when: &str| last[when]["questions"]["loss"].as_f64().unwrap();
    assert!(loss("after") < 0.9 * loss("before"), "{last}");
    let config: Value = serde_json::from_slice(&place.read("one/adapter_config.json")).unwrap();
    assert_eq!(config["lora_dropout"].as_f64(), Some(0.3));
}

#[test]
fn every_kind_of_site_and_copies() {
    let place = place(&[UNDERSTAND, GENERATE]);
    let targets = r#"adapter.targets=["decoder", "vision", "lm_head", "embed_tokens", "patch_embedding", "generation_embeddings"]"#;
    let modules = r#"adapter.modules_to_save=["model.aligner", "generation_head"]"#;
    let settings = [targets, modules, "train.steps=20", "train.learning_rate=1e-2"];
    let trained = tensors(&train(&place, "run", &settings));
    for key in [
        "lm_head.lora_A.weight",
        "language_model.embed_tokens.lora_embedding_A",
        "patch_embedding.lora_B.weight",
        "generation_embeddings.lora_embedding_B",
        "model.aligner.fc1.weight",
        "model.aligner.hidden_layers.0.bias",
        "generation_head.vision_head.weight",
    ] {
        assert!(trained.keys().any(|name| name.ends_with(key)), "no `{key}` in {:?}", trained.keys());
    }
    let checkpoint = Checkpoint::open(&place.path("base")).unwrap();
    let adapter = Adapter::read(&place.path("run"), checkpoint.config(), checkpoint.is_tied()).unwrap();
    assert!(adapter.saved.len() >= 6, "{:?}", adapter.saved.keys());
    for (name, copy) in &adapter.saved {
        let frozen = checkpoint.read(name, DType::F32).unwrap();
        let moved = (copy - frozen).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(moved > 0.0, "the copy of `{name}` did not move");
    }
    for (path, site) in &adapter.sites {
        let [_, b] = site.pair().unwrap();
        let size = b.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size > 0.0, "B of `{path}` did not move");
    }
    let (first, last) = (losses(&place, "run")[0], *losses(&place, "run").last().unwrap());
    assert!(last < 0.8 * first, "{first} to {last}");
    same_attached_and_merged(&place, "run");
}
