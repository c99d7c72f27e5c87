//! Adapters made out of adapters and of checkpoints, and looked at, as users do it.
//!
//! `golden/weighted` holds three adapters and what PEFT 0.21.2 (`add_weighted_adapter`) made of them.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use janus_tests::compare::close;
use janus_tests::expected::Expected;
use janus_tests::fixtures;
use janus_tests::program::janus;
use janus_tests::tiny::Workplace;
use serde_json::{Value, json};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const Q: &str = "model.language_model.layers.0.self_attn.q_proj";
const GATE: &str = "model.language_model.layers.1.mlp.gate_proj";
const PATCH: &str = "model.vision_model.embeddings.patch_embedding";
const TABLE: &str = "model.language_model.embed_tokens";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/weighted").join(name)
}

/// Shapes of A and B, and whether their names are those of a table, at a site of `janus-tiny`.
fn shapes(site: &str, rank: usize) -> (Vec<usize>, Vec<usize>, bool) {
    match site {
        GATE => (vec![rank, 48], vec![80, rank], false),
        PATCH => (vec![rank, 3, 8, 8], vec![32, rank, 1, 1], false),
        TABLE => (vec![rank, 400], vec![48, rank], true),
        _ => (vec![rank, 48], vec![48, rank], false),
    }
}

fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
    Tensor::from_vec((0..count).map(value).collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

/// An adapter for `janus-tiny` with these sites.
fn plant(place: &Workplace, name: &str, sites: &[&str], rank: usize, seed: usize, fields: Value) {
    fs_err::create_dir_all(place.path(name)).unwrap();
    let mut tensors = Vec::new();
    for (number, site) in sites.iter().enumerate() {
        let (a, b, is_table) = shapes(site, rank);
        let (a_end, b_end) = match is_table {
            true => ("lora_embedding_A", "lora_embedding_B"),
            false => ("lora_A.weight", "lora_B.weight"),
        };
        let seed = 10 * seed + number;
        tensors.push((format!("base_model.model.{site}.{a_end}"), numbers(&a, seed)));
        tensors.push((format!("base_model.model.{site}.{b_end}"), numbers(&b, seed + 5)));
    }
    place.write(&format!("{name}/{WEIGHTS}"), safetensors::serialize(tensors, None).unwrap());
    let mut config = json!({ "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sites });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    place.write(&format!("{name}/{CONFIG}"), config.to_string());
}

/// `scale · B·A` of a site, by the configuration as it is written.
fn shift(adapter: &Path, site: &str) -> Tensor {
    let config = janus_tests::json(adapter, CONFIG);
    let tensors = Expected::load(adapter, WEIGHTS);
    let key = |end: &str| format!("base_model.model.{site}.{end}");
    let is_table = tensors.has(&key("lora_embedding_A"));
    let (a, b) = if is_table { ("lora_embedding_A", "lora_embedding_B") } else { ("lora_A.weight", "lora_B.weight") };
    let (a, b) = (tensors.tensor(&key(a)).flatten_from(1).unwrap(), tensors.tensor(&key(b)).flatten_from(1).unwrap());
    let pattern = site.replace('.', "\\.");
    let alpha = config["alpha_pattern"][&pattern].as_f64().or(config["lora_alpha"].as_f64()).unwrap();
    let rank = a.dim(0).unwrap() as f64;
    let scale = if config["use_rslora"] == true { alpha / rank.sqrt() } else { alpha / rank };
    (b.matmul(&a).unwrap() * scale).unwrap()
}

fn sites_of(adapter: &Path) -> Vec<String> {
    let tensors = Expected::load(adapter, WEIGHTS);
    let site = |name: &str| name.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight").map(str::to_owned);
    tensors.names().filter_map(site).collect()
}

/// Combines as a case of `cases.json` says.
fn combine_case(work: &Path, name: &str, case: &Value) -> PathBuf {
    let list = |key: &str| case[key].as_array().unwrap().clone();
    let folder = |adapter: &Value| golden(adapter.as_str().unwrap()).display().to_string();
    let mut arguments = vec!["adapter".to_owned(), "combine".to_owned()];
    arguments.extend(list("adapters").iter().zip(list("weights")).map(|(a, weight)| format!("{}:{weight}", folder(a))));
    let method = case["combination_type"].as_str().unwrap();
    arguments.extend(["--method", method, "--out", name].map(str::to_owned));
    for (key, option) in [("svd_rank", "--rank"), ("density", "--density"), ("majority_sign_method", "--majority-sign")]
    {
        if let Some(value) = case.get(key) {
            arguments.extend([option.to_owned(), value.to_string().trim_matches('"').to_owned()]);
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    janus(work, &arguments).expect_success();
    work.join(name)
}

#[test]
fn combinations_are_those_of_peft() {
    let cases = janus_tests::json(&golden(""), "cases.json");
    let cases = cases.as_object().unwrap();
    assert_eq!(cases.len(), 7);
    let work = tempfile::tempdir().unwrap();
    for (name, case) in cases {
        let made = combine_case(work.path(), name, case);
        let (got, expected) = (Expected::load(&made, WEIGHTS), Expected::load(&golden(name), WEIGHTS));
        assert_eq!(got.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>(), "{name}");
        let config = janus_tests::json(&made, CONFIG);
        let theirs = janus_tests::json(&golden(name), CONFIG);
        for key in ["r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "base_model_name_or_path"] {
            assert_eq!(config[key], theirs[key], "{name}: {key}");
        }
        if case["combination_type"] == "svd" {
            for site in sites_of(&made) {
                close(&format!("{name}: {site}"), &shift(&made, &site), &shift(&golden(name), &site), 1e-5);
            }
            continue;
        }
        for tensor in got.names() {
            close(&format!("{name}: {tensor}"), got.tensor(tensor), expected.tensor(tensor), 1e-5);
        }
    }
}

/// Over the base of the fixtures, through the whole model: what PEFT's own combination computes there.
#[test]
fn combinations_compute_what_those_of_peft_compute() {
    let Some(fixtures) = fixtures() else { return };
    let work = tempfile::tempdir().unwrap();
    let forced = Expected::load(&fixtures.join("expected"), "generation_forced.safetensors");
    let labels = forced.integers("labels").concat();
    let first = labels.iter().position(|label| *label >= 0).unwrap();
    let ids = forced.tensor("input_ids").narrow(1, 0, first).unwrap().contiguous().unwrap();
    let input = vec![("input_ids", ids), ("image_tokens", forced.tensor("image_tokens").clone())];
    fs_err::write(work.path().join("in.safetensors"), safetensors::serialize(input, None).unwrap()).unwrap();
    let base = fixtures.join("hf").display().to_string();
    let cases = janus_tests::json(&golden(""), "cases.json");
    for name in ["linear-negative", "cat", "svd", "ties-frequency"] {
        combine_case(work.path(), name, &cases[name]);
        let files = ["--input", "in.safetensors", "--output", "out.safetensors"];
        janus(work.path(), &[&["probe", "--base", &base, "--adapter", name], &files[..]].concat()).expect_success();
        let got = Expected::load(work.path(), "out.safetensors").tensor("gen_logits").squeeze(0).unwrap();
        let expected = Expected::load(&fixtures.join("peft/weighted").join(name), "expected.safetensors");
        close(name, &got, expected.tensor("gen_image_logits"), 2e-4);
    }
}

#[test]
fn what_is_drawn_is_drawn_again_with_its_seed() {
    let place = Workplace::empty();
    let (a, b) = (golden("a").display().to_string(), format!("{}:-0.4", golden("b").display()));
    let drawn = |out: &str, method: &str, seed: &str| {
        let arguments =
            ["adapter", "combine", &a, &b, "--density", "0.5", "--method", method, "--seed", seed, "--out", out];
        place.janus(&arguments).expect_success();
        place.read(&format!("{out}/{WEIGHTS}"))
    };
    for method in ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"] {
        let first = drawn(&format!("{method}-1"), method, "5");
        assert!(first == drawn(&format!("{method}-2"), method, "5"), "{method}");
        assert!(first != drawn(&format!("{method}-3"), method, "6"), "{method}");
    }
}

/// Sites of every kind, over a base: the sum of the shifts is what both adapters do together.
#[test]
fn the_combination_does_what_its_parts_do_together() {
    let place = Workplace::with_base();
    plant(&place, "a", &[Q, GATE, PATCH, TABLE], 2, 1, json!({ "use_rslora": true }));
    plant(&place, "b", &[Q, PATCH], 3, 2, json!({}));
    let combine = ["adapter", "combine", "a:0.7", "b:-0.5", "--method", "cat", "--out", "cat", "--json"];
    let told = place.janus(&combine).expect_success().json();
    assert_eq!((&told["sites"], &told["rank"], &told["method"]), (&json!(4), &json!(5), &json!("cat")), "{told}");
    place
        .janus(&["adapter", "combine", "a:0.7", "b:-0.5", "--method", "svd", "--rank", "5", "--out", "svd"])
        .expect_success();
    for site in [Q, PATCH] {
        let (one, other) = (shift(&place.path("a"), site), shift(&place.path("b"), site));
        let sum = ((one * 0.7).unwrap() + (other * -0.5).unwrap()).unwrap();
        close(site, &shift(&place.path("cat"), site), &sum, 1e-5);
        close(site, &shift(&place.path("svd"), site), &sum, 1e-5);
    }
    // It is an adapter like any other, and the program does not take rslora for what it is not.
    let merge = ["merge", "--base", "base", "--adapter", "cat", "--out", "merged", "--json"];
    assert!(place.janus(&merge).expect_success().json()["largest_logit_difference"].as_f64().unwrap() < 2e-4);
    let told = place.janus(&["adapter", "diff", "cat", "svd", "--json"]).expect_success().json();
    assert!(told["total"]["cosine"].as_f64().unwrap() > 1.0 - 1e-9, "{told}");
}

#[test]
fn what_cannot_be_combined_is_refused_and_nothing_is_written() {
    let place = Workplace::empty();
    plant(&place, "a", &[Q, GATE], 2, 1, json!({}));
    plant(&place, "b", &[Q], 3, 2, json!({}));
    plant(&place, "expression", &[Q], 2, 3, json!({ "target_modules": ".*q_proj" }));
    plant(&place, "dora", &[Q], 2, 3, json!({ "use_dora": true }));
    plant(&place, "broken", &[Q], 2, 3, json!({ "r": 4 }));
    plant(&place, "patterns", &[Q, GATE], 2, 4, json!({ "r": 1, "rank_pattern": { "q_proj": 2, "gate_proj": 2 } }));
    for (name, fingerprint) in [("a", "ab"), ("b", "cd")] {
        let note = json!({ "version": 1, "base": { "fingerprint": fingerprint } });
        plant(&place, &format!("{name}-of-{fingerprint}"), &[Q], 2, 1, json!({}));
        place.write(&format!("{name}-of-{fingerprint}/janus_adapter.json"), note.to_string());
    }
    plant(
        &place,
        "heads",
        &[Q],
        2,
        1,
        json!({ "auto_mapping": { "janus_extras": ["head.defects", "dynamic.vision"] } }),
    );
    place
        .write("heads/janus_extras.safetensors", safetensors::serialize(Vec::<(String, Tensor)>::new(), None).unwrap());
    fs_err::create_dir(place.path("full")).unwrap();
    place.write("full/kept", "theirs");
    let refused = |adapters: &[&str], more: &[&str], said: &[&str]| {
        let options = [&["--out", "out"][..], more].concat();
        place.refuses(&[&["adapter", "combine"], adapters, &options].concat(), said);
    };
    refused(
        &["a", "b"],
        &["--method", "linear"],
        &["`linear` takes adapters of one rank", "`a` has 2", "`b` has 3", "--method cat"],
    );
    refused(&["a", "b"], &["--method", "ties", "--density", "0.5"], &["`ties` takes adapters of one rank"]);
    refused(&["a", "b"], &["--method", "ties_svd"], &["`--method ties_svd` needs `--density`", "--density 0.5"]);
    for density in ["0", "1.5", "-0.5", "NaN", "inf"] {
        refused(
            &["a", "b"],
            &["--method", "ties_svd", "--density", density],
            &["`--density` is", "above 0 and at most 1"],
        );
    }
    refused(&["a", "b"], &["--method", "svd", "--density", "0.5"], &["`--density` does nothing with `--method svd`"]);
    refused(&["a", "b"], &["--method", "cat", "--rank", "2"], &["`--rank` does nothing with `--method cat`"]);
    for rank in ["0", "5000"] {
        refused(&["a", "b"], &["--method", "svd", "--rank", rank], &["`--rank` is", "at most the longest side"]);
    }
    refused(&["a"], &["--method", "svd", "--rank", "1"], &["one adapter alone keeps its rank", "adapter resize"]);
    for weight in ["a:inf", "a:NaN"] {
        refused(&[weight, "b"], &["--method", "cat"], &["is not finite"]);
    }
    refused(&["a:1e300", "b"], &["--method", "cat"], &["is not finite", "the weights are too large"]);
    refused(&["a", "expression"], &["--method", "cat"], &["a list of `a`, an expression of `expression`"]);
    refused(&["a", "dora"], &["--method", "cat"], &["`dora` is no plain LoRA", "`use_dora` = `true`"]);
    refused(&["a", "broken"], &["--method", "cat"], &["`broken`", "of another shape"]);
    refused(&["a", "absent"], &["--method", "cat"], &["`absent`"]);
    refused(&["a-of-ab", "b-of-cd"], &["--method", "cat"], &["was made for the base `ab`", "for `cd`"]);
    refused(&["a", "heads"], &["--method", "cat"], &["`heads` has `head.defects`, `dynamic.vision`", "no sum"]);
    place.edit_json("heads/adapter_config.json", |config| config["auto_mapping"] = json!({}));
    refused(&["a", "heads"], &["--method", "cat"], &["`heads` has `janus_extras.safetensors`"]);
    refused(&["a", "b"], &["--method", "average"], &["average"]);
    let out = ["--method", "cat", "--out", "full"];
    place.refuses(&[&["adapter", "combine", "a", "b"], &out[..]].concat(), &["`full` is not empty"]);
    // One rank, be it by patterns.
    place.janus(&["adapter", "combine", "a", "patterns", "--method", "linear", "--out", "patterned"]).expect_success();
}

/// Copies have no sum, and a result has only those of one adapter at a place.
#[test]
fn copies_of_modules_are_taken_over_from_one_adapter_and_refused_of_two() {
    let place = Workplace::with_base();
    let head = "model.generation_head.vision_head";
    for (name, seed, saved) in [("a", 1, true), ("b", 2, false), ("c", 3, true)] {
        plant(
            &place,
            name,
            &[Q],
            2,
            seed,
            if saved { json!({ "modules_to_save": ["vision_head"] }) } else { json!({}) },
        );
        if saved {
            let mut tensors: Vec<(String, Tensor)> = Vec::new();
            let before = Expected::load(&place.path(name), WEIGHTS);
            tensors.extend(before.names().map(|tensor| (tensor.to_owned(), before.tensor(tensor).clone())));
            tensors.push((format!("base_model.model.{head}.weight"), numbers(&[64, 48], seed)));
            tensors.push((format!("base_model.model.{head}.bias"), numbers(&[64], seed)));
            place.write(&format!("{name}/{WEIGHTS}"), safetensors::serialize(tensors, None).unwrap());
        }
    }
    let arguments = ["adapter", "combine", "b", "a:0.5", "--method", "linear", "--out", "both"];
    let done = place.janus(&arguments).expect_success();
    assert!(done.stderr.contains("copies of `vision_head` are taken over from `a` as they are"), "{}", done.stderr);
    let both = Expected::load(&place.path("both"), WEIGHTS);
    let name = format!("base_model.model.{head}.weight");
    close(&name, both.tensor(&name), &numbers(&[64, 48], 1), 0.0);
    place.janus(&["adapter", "inspect", "both", "--base", "base"]).expect_success();
    let refused = ["adapter", "combine", "a", "c", "--method", "linear", "--out", "out"];
    place.refuses(&refused, &["`a` and `c` both have a copy of `model.generation_head.vision_head.bias`"]);
    plant(&place, "d", &[Q, head], 2, 4, json!({ "target_modules": [Q] }));
    let tensors = Expected::load(&place.path("d"), WEIGHTS);
    let kept: Vec<(String, Tensor)> = tensors
        .names()
        .map(|name| {
            (
                name.to_owned(),
                if name.contains("vision_head.lora_B") { numbers(&[64, 2], 1) } else { tensors.tensor(name).clone() },
            )
        })
        .collect();
    place.write(&format!("d/{WEIGHTS}"), safetensors::serialize(kept, None).unwrap());
    let refused = ["adapter", "combine", "a", "d", "--method", "linear", "--out", "out"];
    place.refuses(&refused, &["`d` has a pair at `model.generation_head.vision_head`, of which `a` has a copy"]);
}

#[test]
fn another_rank_is_the_nearest_and_keeps_scale_and_note() {
    let place = Workplace::with_base();
    plant(&place, "a", &[Q, GATE, PATCH, TABLE], 4, 1, json!({ "use_rslora": true, "lora_alpha": -3 }));
    place.write(
        "a/janus_adapter.json",
        json!({ "version": 1, "recipe": "[train]\n", "metrics": { "loss": 1 } }).to_string(),
    );
    let told =
        place.janus(&["adapter", "resize", "a", "--rank", "6", "--out", "more", "--json"]).expect_success().json();
    assert!((told["kept"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{told}");
    let note: Value = serde_json::from_slice(&place.read("more/janus_adapter.json")).unwrap();
    assert_eq!((&note["recipe"], &note["resized"]["rank"]), (&json!("[train]\n"), &json!(6)));
    assert!(note.get("metrics").is_none(), "{note}");
    let config = janus_tests::json(&place.path("more"), CONFIG);
    assert_eq!((&config["r"], &config["lora_alpha"], &config["use_rslora"]), (&json!(6), &json!(-9), &json!(false)));
    for site in [Q, GATE, PATCH, TABLE] {
        close(site, &shift(&place.path("more"), site), &shift(&place.path("a"), site), 1e-5);
    }
    place.janus(&["adapter", "inspect", "more", "--base", "base"]).expect_success();

    let fewer = ["adapter", "resize", "a", "--variance", "0.7", "--out", "fewer", "--json"];
    let told = place.janus(&fewer).expect_success().json();
    for site in told["sites"].as_array().unwrap() {
        let (rank, kept) = (site["rank"].as_u64().unwrap(), site["kept"].as_f64().unwrap());
        assert!(rank < 4 && kept >= 0.7, "{site}");
        let path = site["path"].as_str().unwrap();
        let (before, after) = (shift(&place.path("a"), path), shift(&place.path("fewer"), path));
        let square = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let lost = square(&(&before - after).unwrap()) / square(&before);
        assert!((f64::from(lost) - (1.0 - kept)).abs() < 1e-4, "{path}: {lost}, kept {kept}");
    }
    // What it says to have beside has to be there.
    plant(&place, "lacking", &[Q], 2, 1, json!({ "auto_mapping": { "janus_extras": ["head.defects"] } }));
    let lacking = ["adapter", "resize", "lacking", "--rank", "1", "--out", "out"];
    place.refuses(&lacking, &["`janus_extras.safetensors` is missing", "`head.defects`"]);
    // Ranks differ by site, and the program reads them so.
    place.janus(&["adapter", "inspect", "fewer", "--base", "base"]).expect_success();
    for (options, said) in [
        (&["--rank", "0"][..], "`--rank` is 0"),
        (&["--rank", "5000"], "at most the longest side"),
        (&["--variance", "0"], "`--variance` is 0"),
        (&["--variance", "NaN"], "`--variance` is NaN"),
        (&["--rank", "2", "--variance", "0.5"], "--variance"),
        (&[], "--rank"),
    ] {
        place.refuses(&[&["adapter", "resize", "a", "--out", "out"], options].concat(), &[said]);
    }
    place.refuses(&["adapter", "resize", "a:0.5", "--rank", "2", "--out", "out"], &["without a factor"]);
}

/// A checkpoint with an adapter folded in gives the adapter back.
#[test]
fn what_was_merged_is_extracted_again() {
    let place = Workplace::with_base();
    plant(&place, "a", &[Q, GATE, PATCH, TABLE], 3, 1, json!({}));
    place.janus(&["merge", "--base", "base", "--adapter", "a", "--out", "tuned"]).expect_success();
    let extract = ["adapter", "extract", "--base", "base", "--tuned", "tuned", "--rank", "3", "--json"];
    let targets = ["--targets", "all,patch_embedding,embed_tokens", "--out", "extracted"];
    let told = place.janus(&[&extract[..], &targets].concat()).expect_success().json();
    assert_eq!(told["sites"].as_array().unwrap().len(), 4, "{told}");
    assert_eq!(told["changed_outside"], json!([]));
    assert!(told["kept"].as_f64().unwrap() > 1.0 - 1e-6 && told["unchanged_sites"].as_u64().unwrap() > 20, "{told}");
    for site in [Q, GATE, PATCH, TABLE] {
        close(site, &shift(&place.path("extracted"), site), &shift(&place.path("a"), site), 2e-5);
    }
    // It says its base, and is one that the program loads over it without a word.
    let inspected = place.janus(&["adapter", "inspect", "extracted", "--json"]).expect_success();
    assert_eq!(inspected.json()["base_fingerprint"], told["base_fingerprint"]);
    assert!(!inspected.stderr.contains("warning"), "{}", inspected.stderr);

    let partly = [&extract[..], &["--targets", "decoder", "--out", "partly"]].concat();
    let done = place.janus(&partly).expect_success();
    assert_eq!(done.json()["changed_outside"], json!([format!("{TABLE}.weight"), format!("{PATCH}.weight")]));
    assert!(done.stderr.contains("2 tensors outside the targets changed"), "{}", done.stderr);

    let refused = |more: &[&str], said: &[&str]| {
        place.refuses(&[&["adapter", "extract", "--base", "base", "--out", "out"], more].concat(), said);
    };
    refused(
        &["--tuned", "base", "--rank", "2"],
        &["the checkpoints are equal at all", "hint: give a checkpoint that was trained"],
    );
    refused(
        &["--tuned", "tuned", "--rank", "2", "--targets", "aligner"],
        &["and differ at 4 other tensors", "--targets"],
    );
    refused(&["--tuned", "tuned", "--rank", "0"], &["`--rank` is 0"]);
    refused(&["--tuned", "tuned", "--rank", "2", "--targets", "decodr"], &["decodr", "`decoder`"]);
    let mut broken = candle_core::safetensors::load(place.path("tuned/model.safetensors"), &Device::Cpu).unwrap();
    let norm = "model.language_model.norm.weight".to_owned();
    broken.insert(norm, Tensor::full(f32::NAN, 48, &Device::Cpu).unwrap());
    fs_err::create_dir(place.path("broken")).unwrap();
    for file in fs_err::read_dir(place.path("tuned")).unwrap() {
        let file = file.unwrap();
        fs_err::copy(file.path(), place.path("broken").join(file.file_name())).unwrap();
    }
    place.write("broken/model.safetensors", safetensors::serialize(broken, None).unwrap());
    refused(&["--tuned", "broken", "--rank", "2"], &["`model.language_model.norm.weight` is not finite"]);
    let init = ["base", "init", "--shape", "janus-small", "--seed", "1", "--out", "other"];
    place.janus(&init).expect_success();
    refused(
        &["--tuned", "other", "--rank", "2"],
        &["the checkpoints are of different models", "in the base", "in the other"],
    );
}

#[test]
fn two_adapters_are_told_apart() {
    let place = Workplace::empty();
    plant(&place, "a", &[Q, GATE], 2, 1, json!({}));
    plant(&place, "b", &[Q], 2, 1, json!({ "lora_alpha": 2 }));
    let told = place.janus(&["adapter", "diff", "a", "b", "--json"]).expect_success().json();
    let sites = told["sites"].as_array().unwrap();
    assert_eq!((&sites[0]["path"], &sites[0]["ranks"]), (&json!(Q), &json!([2, 2])));
    let number = |site: &Value, key: &str| site[key].as_f64().unwrap();
    // Half the scale: half the shift, in the same direction.
    assert!((number(&sites[0], "norm_b") / number(&sites[0], "norm_a") - 0.5).abs() < 1e-12, "{told}");
    assert!((number(&sites[0], "norm_of_difference") / number(&sites[0], "norm_a") - 0.5).abs() < 1e-12);
    assert!((number(&sites[0], "cosine") - 1.0).abs() < 1e-12);
    assert_eq!((&sites[1]["ranks"], &sites[1]["cosine"]), (&json!([2, null]), &json!(null)));
    assert_eq!(told["config"]["lora_alpha"], json!([4, 2]));
    assert_eq!((&told["same"], &told["base_fingerprints"]), (&json!(false), &json!([null, null])));
    let shown = place.janus(&["adapter", "diff", "a", "b"]).expect_success().stdout;
    for part in ["rank A", "cosine", "all together", "`lora_alpha` is 4 in A, 2 in B", "not both say which base"] {
        assert!(shown.contains(part), "no `{part}`: {shown}");
    }
    let same = place.janus(&["adapter", "diff", "a", "a"]).expect_success().stdout;
    assert!(same.contains("they change the same by the same"), "{same}");
    place.refuses(&["adapter", "diff", "a", "b:0.5"], &["without a factor"]);
    place.refuses(&["adapter", "diff", "a", "absent"], &["`absent`"]);
}

#[test]
fn spectra_are_told_and_drawn() {
    let place = Workplace::with_base();
    plant(&place, "a", &[Q, GATE, PATCH, TABLE], 3, 1, json!({}));
    let inspect = ["adapter", "inspect", "a", "--base", "base"];
    let told = place.janus(&[&inspect[..], &["--json", "--picture", "spectra.png"]].concat()).expect_success().json();
    for site in told["sites"].as_array().unwrap() {
        for key in ["path", "rank", "scale", "norm_a", "norm_b"] {
            assert!(!site[key].is_null(), "{key}: {site}");
        }
        let values: Vec<f64> = site["spectrum"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let square = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let norm = f64::from(square(&shift(&place.path("a"), site["path"].as_str().unwrap())).sqrt());
        assert!((site["norm"].as_f64().unwrap() / norm - 1.0).abs() < 1e-5, "{site}");
        let energy: f64 = values.iter().map(|value| value * value).sum();
        assert!((energy.sqrt() / norm - 1.0).abs() < 1e-5 && values.is_sorted_by(|one, other| one >= other), "{site}");
        let effective = site["effective_rank"].as_f64().unwrap();
        assert!(values.len() == 3 && effective > 1.0 && effective <= 3.0, "{site}");
    }
    let picture = image::load_from_memory(&place.read("spectra.png")).unwrap();
    assert!(picture.width() > 1000 && picture.height() > 100);
    let shown = place.janus(&inspect).expect_success().stdout;
    assert!(shown.contains("norm of shift") && shown.contains("eff. rank"), "{shown}");
    place.refuses(&[&inspect[..], &["--picture", "absent/a/"]].concat(), &["absent/a/"]);
    place.refuses(&[&inspect[..], &["--picture", "base"]].concat(), &["`base` is a folder"]);
}
