//! Runs in stages: the image tokenizer, copies of both sides, then pairs and a head, each beginning with what was before it.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use janus_tests::joint::{WEIGHTS, checkpoints, difference, lines, log, metrics, run, stopped, write_rows};
use janus_tests::tiny::Workplace;
use serde_json::Value;

/// Three stages of unequal length, of which two copy modules and one lays pairs elsewhere; the codes that the second learns
/// are those of the tokenizer that the first has trained.
const RECIPE: &str = r#"# janus train recipe.toml
[base]
path = "base"
dtype = "f32"

[adapter]
rank = 3
targets = []

[[data]]
name = "scenes"
task = "reconstruct"
train = "rows.parquet"
eval = "eval.parquet"
quantize_from = 2

[[data]]
name = "questions"
task = "understand"
train = "rows.parquet"
eval = "eval.parquet"

[[data]]
name = "pictures"
task = "generate"
train = "rows.parquet"
eval = "eval.parquet"
columns = { prompt = "question" }

[train]
batch_size = 2
learning_rate = 5e-3
checkpoint_every = 2

[[stage]]
name = "tokenizer"
steps = 5
data = ["scenes"]
adapter = { modules_to_save = ["vqmodel"] }

[[stage]]
name = "both"
steps = 4
data = ["questions", "pictures"]
adapter = { modules_to_save = ["aligner", "generation_head", "generation_aligner"] }
train = { rates = { generation_head = 0.5 }, mixture = "each", grad_accumulation = 2 }

[[stage]]
name = "pairs"
steps = 3
data = ["questions"]
adapter = { targets = ["decoder"], dropout = 0.0 }
train = { learning_rate = 1e-2, schedule = "constant" }

[output]
dir = "run"
"#;

const CODEBOOK: &str = "base_model.model.model.vqmodel.quantize.embedding.weight";

fn place() -> Workplace {
    let place = Workplace::with_base();
    place.write("recipe.toml", RECIPE);
    write_rows(&place.path("rows.parquet"), 0, 9);
    write_rows(&place.path("eval.parquet"), 50, 3);
    place
}

/// Every tensor of an adapter's weights as bits.
fn weights(place: &Workplace, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let bytes = place.read(&format!("{folder}/{WEIGHTS}"));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, tensor)| (name, tensor.data().to_vec())).collect()
}

fn moved<'a>(before: &'a BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) -> Vec<&'a str> {
    assert!(before.keys().eq(after.keys()));
    before.iter().filter(|(name, values)| after[*name] != **values).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn each_stage_moves_its_own_and_keeps_what_was_before() {
    let place = place();
    run(&place, "run", &["train.keep_checkpoints=9", "train.checkpoint_every=1"]).expect_success();
    assert_eq!(checkpoints(&place, "run"), (4..=12).collect::<Vec<u64>>());
    let at = |step: u64| weights(&place, &format!("run/checkpoints/step-{step}"));
    let (fourth, tokenizer, both, pairs) = (at(4), at(5), at(9), at(12));
    assert!(moved(&fourth, &tokenizer).iter().all(|name| name.contains(".vqmodel.")));
    assert!(moved(&fourth, &tokenizer).contains(&CODEBOOK));
    let by_both = moved(&tokenizer, &both);
    let modules = [".aligner.", ".generation_head.", ".generation_aligner."];
    assert!(by_both.iter().all(|name| modules.iter().any(|module| name.contains(module))), "{by_both:?}");
    assert!(modules.iter().all(|module| by_both.iter().any(|name| name.contains(module))));
    let by_pairs = moved(&both, &pairs);
    assert!(!by_pairs.is_empty() && by_pairs.iter().all(|name| name.contains(".lora_")), "{by_pairs:?}");
    assert_eq!(weights(&place, "run"), pairs);

    // The lines of the metrics name their stage, and losses of its own tables alone.
    let all = metrics(&place, "run");
    let steps: Vec<&Value> = all.iter().filter(|line| line.get("loss").is_some()).collect();
    let stages: Vec<&str> = steps.iter().map(|line| line["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, [&["tokenizer"; 5][..], &["both"; 4], &["pairs"; 3]].concat());
    assert!(steps[0]["losses"].get("scenes").is_some() && steps[0]["codes_alive"].as_f64() == Some(1.0));
    assert_eq!(steps[1]["codes_revived"].as_u64(), Some(64), "the codebook is laid over the latents before it counts");
    assert!(steps[6]["losses"].get("pictures").is_some() && steps[6].get("codes_alive").is_none());
    // A schedule of its own each: the first rate of a cosine, and a constant one.
    let rate = |step: usize| steps[step]["lr"].as_f64().unwrap();
    assert!(rate(0) == 5e-3 && rate(4) < 2e-3 && rate(5) == 5e-3 && rate(9) == 1e-2 && rate(11) == 1e-2);
    let evals: Vec<(u64, Vec<String>)> = all
        .iter()
        .filter_map(|line| Some((line["step"].as_u64()?, line.get("eval")?.get("after")?.as_object()?)))
        .map(|(step, after)| (step, after.keys().cloned().collect()))
        .collect();
    let tables = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let expected = [(5, tables(&["scenes"])), (9, tables(&["questions", "pictures"]))];
    assert_eq!(evals[..2], expected);
    assert_eq!(evals[2], (12, tables(&["scenes", "questions", "pictures"])), "at the end all of them");

    // Merged, the copies are the next base, and the codebook's rows have length one.
    let merge = ["merge", "--base", "base", "--adapter", "run", "--out", "merged", "--dtype", "f32", "--json"];
    let told = place.janus(&merge).expect_success().json();
    assert!(told["largest_logit_difference"].as_f64().unwrap_or(1.0) < 1e-3, "{told}");
    let rows: Vec<f32> =
        pairs[CODEBOOK].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert!(rows.chunks_exact(8).all(|row| (row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5));
    let asked = ["understand", "--base", "merged", "--json", "Part?", "--max-new-tokens", "3", "--image", "x.png"];
    place.write("x.png", janus_tests::rows::picture(40, 32, 5));
    place.janus(&asked).expect_success();
}

#[test]
fn a_stopped_run_goes_on_in_its_stage_to_the_same_bytes() {
    let place = place();
    run(&place, "whole", &[]).expect_success();
    // One line of the evaluation before all steps, then one a step, and one after each stage.
    for (name, after) in [("first", 3), ("border", 7), ("last", 13)] {
        let ended = stopped(&place, name, &[], "TERM", &|| lines(&place, name) >= after);
        assert_eq!(ended.code(), Some(143), "{}", log(&place, name));
        run(&place, name, &["--resume"]).expect_success();
        assert_eq!(difference(&place, "whole", name), None, "{name}");
    }
    // Killed, it goes back to the last checkpoint, which may be the end of a stage.
    let ended = stopped(&place, "killed", &[], "KILL", &|| lines(&place, "killed") >= 8);
    assert_eq!(ended.code(), None);
    run(&place, "killed", &["--resume"]).expect_success();
    assert_eq!(difference(&place, "whole", "killed"), None);
}

#[test]
fn the_plan_tells_of_every_stage() {
    let place = place();
    let plan = place.janus(&["train", "recipe.toml", "--dry-run", "--json"]).expect_success().json();
    assert_eq!((plan["steps"].as_u64(), plan["rows"].as_u64()), (Some(12), Some(27)));
    let stages = plan["stages"].as_array().unwrap();
    let steps: Vec<u64> = stages.iter().map(|stage| stage["steps"].as_u64().unwrap()).collect();
    assert_eq!(steps, [5, 4, 3]);
    let trained: u64 = stages.iter().map(|stage| stage["trainable_parameters"].as_u64().unwrap()).sum();
    assert_eq!(plan["trainable_parameters"].as_u64(), Some(trained), "no stage trains what another does");
}

#[test]
fn what_cannot_be_done_in_stages_is_refused() {
    let place = place();
    let refuses = |more: &str, said: &[&str]| {
        place.refuses(&["train", "recipe.toml", more], said);
    };
    refuses("stage.0.adapter.modules_to_save=[\"lm_hed\"]", &["`lm_hed`"]);
    // Pairs inside a copy are no PEFT adapter.
    refuses("stage.2.adapter.targets=[\"aligner\"]", &["`model.aligner."]);
    refuses("stage.1.train.rates={ vision_model = 0.5 }", &["`train.rates` names `vision_model`"]);
    // Codes that are learnt while they change.
    let beside = RECIPE.replace("data = [\"scenes\"]", "data = [\"scenes\", \"pictures\"]");
    place.write("beside.toml", beside);
    place.refuses(&["train", "beside.toml"], &["`pictures` learns image codes", "`[[stage]]` of its own"]);
}
