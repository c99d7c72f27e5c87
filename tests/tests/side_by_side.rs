//! Batches that are computed at once: the same bits as one after the other.
#![allow(clippy::unwrap_used)]

use janus_tests::tiny::Workplace;
use serde_json::Value;

const RECIPE: &str = r#"# janus train recipe.toml
[base]
path = "base"
dtype = "f32"

[adapter]
rank = 3
targets = ["all"]
modules_to_save = ["lm_head"]

[[data]]
name = "questions"
task = "understand"
train = "synth:inspection?rows=24&seed=1&size=32"

[[data]]
name = "pictures"
task = "generate"
train = "synth:inspection?rows=24&seed=1&size=32"
columns = { prompt = "caption", image = "image" }

[train]
steps = 4
batch_size = 5
grad_accumulation = 3
learning_rate = 5e-3

[output]
dir = "run"
"#;

/// Steps of up to six batches of two tables, those of a step differing in length. On one thread they come one after the other,
/// on two each is computed by a thread of its own.
#[test]
fn two_batches_at_once_give_the_bits_of_one_after_the_other() {
    let place = Workplace::with_base();
    place.write("recipe.toml", RECIPE);
    let run = |threads: &str| {
        let folder = format!("output.dir=run-{threads}");
        let plan = ["train", "recipe.toml", &folder, "--threads", threads, "--dry-run", "--json"];
        let plan = place.janus(&plan).expect_success().json();
        place.janus(&["train", "recipe.toml", &folder, "--threads", threads]).expect_success();
        let losses: Vec<Value> = place
            .metrics(&format!("run-{threads}"))
            .into_iter()
            .filter(|line| line.get("losses").is_some())
            .map(|line| Value::from_iter([line["losses"].clone(), line["grad_norm"].clone(), line["tokens"].clone()]))
            .collect();
        (plan, losses, place.read(&format!("run-{threads}/adapter_model.safetensors")))
    };
    let (one_after_the_other, losses, weights) = run("1");
    let (at_once, same_losses, same_weights) = run("2");
    assert_eq!((&one_after_the_other["side_by_side"], &at_once["side_by_side"]), (&false.into(), &true.into()));
    let bytes = |plan: &Value| plan["predicted_memory"]["activations"].as_u64().unwrap();
    let (one, two) = (bytes(&one_after_the_other), bytes(&at_once));
    assert!(one < two && two <= 2 * one, "the two largest batches: {one} bytes, {two} bytes");
    assert_eq!(losses.len(), 4);
    assert_eq!(same_losses, losses);
    assert!(same_weights == weights, "the adapters differ");
}

/// A failure in one of them is the run's, wherever it comes from.
#[test]
fn what_fails_in_one_of_them_ends_the_run() {
    let place = Workplace::with_base();
    place.write("recipe.toml", RECIPE);
    let refused = place.janus(&[
        "train",
        "recipe.toml",
        "train.learning_rate=1e30",
        "train.warmup_steps=0",
        "train.max_skipped_steps=0",
        "--threads",
        "2",
    ]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("the loss is") || refused.stderr.contains("gradient"), "{}", refused.stderr);
}
