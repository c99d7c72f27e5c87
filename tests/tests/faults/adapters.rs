//! Adapter folders.

use serde_json::json;

use super::*;

const WEIGHTS: &str = "run/adapter_model.safetensors";
const A: &str = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight";

/// Commands that read the adapter and must all refuse it alike.
const READERS: [&[&str]; 4] = [
    &["understand", "--base", "base", "--adapter", "run", "--image", "picture.png", "What?"],
    &["generate", "--base", "base", "--adapter", "run", "A part", "--out", "drawn.png"],
    &["merge", "--base", "base", "--adapter", "run", "--out", "deep/merged"],
    &["eval", "recipe.toml", "data.0.eval=rows.parquet", "--adapter", "run"],
];

/// Replaces tensors of the adapter (`None` takes one out) and sees every command refuse it.
#[track_caller]
fn refuses_changed(change: &[(&str, Option<Tensor>)], said: &[&str]) {
    let place = place_with_adapter();
    let mut tensors = candle_core::safetensors::load(place.path(WEIGHTS), &Device::Cpu).unwrap();
    for (name, tensor) in change {
        match tensor {
            Some(tensor) => tensors.insert((*name).to_owned(), tensor.clone()),
            None => tensors.remove(*name),
        };
    }
    place.write(WEIGHTS, safetensors::serialize(tensors, None).unwrap());
    for command in READERS {
        place.refuses(command, said);
    }
    place.refuses(&["adapter", "inspect", "run", "--base", "base"], said);
}

#[test]
fn an_adapter_whose_tensors_do_not_fit() {
    refuses_changed(&[(A, Some(zeros(&[2, 47])))], &["adapter `run`", A, "[2, 47]", "[2, 48]"]);
    refuses_changed(&[(B, Some(zeros(&[48, 3])))], &[B, "[48, 3]", "[48, 2]"]);
    refuses_changed(&[(B, None)], &[B]);
    refuses_changed(&[(A, None), (B, None)], &[A, B]);
    let left = "base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_A.weight";
    refuses_changed(&[(left, Some(zeros(&[2, 48])))], &[left]);
    refuses_changed(&[("extra", Some(zeros(&[1])))], &["`extra`"]);
    for value in [f32::NAN, f32::INFINITY] {
        let tensor = Tensor::full(value, (2, 48), &Device::Cpu).unwrap();
        refuses_changed(&[(A, Some(tensor))], &[A]);
    }
}

#[test]
fn an_adapter_of_another_base() {
    let place = place_with_adapter();
    let arguments = ["base", "init", "--shape", "janus-tiny", "--seed", "4", "--dtype", "f32", "--out", "other"];
    place.janus(&arguments).expect_success();
    fs_err::remove_dir_all(place.path("base")).unwrap();
    fs_err::rename(place.path("other"), place.path("base")).unwrap();
    for command in READERS {
        let done = place.refuses(command, &["fingerprint"]);
        let note: Value = serde_json::from_slice(&place.read("run/janus_adapter.json")).unwrap();
        let trained = note.to_string();
        let named = done.stderr.split(['`', ' ', '\n', ',']).filter(|word| word.len() >= 16);
        assert!(named.into_iter().any(|word| trained.contains(word)), "the fingerprint is not told: {}", done.stderr);
    }
    place.refuses(&["adapter", "inspect", "run", "--base", "base"], &["fingerprint"]);
}

#[test]
fn an_adapter_without_a_fingerprint_is_a_warning() {
    let place = place_with_adapter();
    fs_err::remove_file(place.path("run/janus_adapter.json")).unwrap();
    let done = place.janus(READERS[0]).expect_success();
    assert!(done.stderr.contains("warning: `run` does not say which base it was trained on"), "{}", done.stderr);
}

#[test]
fn adapter_folders_that_are_none() {
    let place = place_with_adapter();
    for folder in ["absent", "base", "picture.png"] {
        let arguments = ["understand", "--base", "base", "--adapter", folder, "What?"];
        place.refuses(&arguments, &[folder]);
    }
    let understand = |adapter: &'static str| ["understand", "--base", "base", "--adapter", adapter, "What?"];
    place.refuses(&understand("run:nan"), &["run:nan"]);
    place.refuses(&understand("run:inf"), &["run:inf"]);
    let whole = place.read(WEIGHTS);
    let (header, values) = split(&whole);
    let mut lying = header.clone();
    lying[A]["data_offsets"] = json!([0, u64::MAX]);
    for bytes in [&whole[..whole.len() / 2], &whole[..100], b"", &join(&lying, values)] {
        place.write(WEIGHTS, bytes);
        place.refuses(&understand("run"), &["adapter_model.safetensors"]);
    }
    place.write(WEIGHTS, &whole);
    let config = place.read("run/adapter_config.json");
    for (key, value, named) in [
        ("use_dora", json!(true), "lora_magnitude_vector"),
        ("use_qalora", json!(true), "use_qalora"),
        ("peft_type", json!("OFT"), "OFT"),
        ("peft_type", json!("IA3"), "lora_alpha"),
        ("r", json!(0), "`r`"),
        ("r", json!(3), "[3, 48]"),
        ("lora_alpha", json!("much"), "lora_alpha"),
        ("bias", json!("all"), "bias"),
        ("an_unknown_field", json!({ "x": 1 }), "an_unknown_field"),
    ] {
        place.write("run/adapter_config.json", &config);
        place.edit_json("run/adapter_config.json", |config| config[key] = value);
        for command in READERS {
            place.refuses(command, &[named]);
        }
    }
    place.write("run/adapter_config.json", "[1, 2");
    place.refuses(&understand("run"), &["adapter_config.json"]);
    place.write("run/adapter_config.json", &config);
    place.write("run/janus_adapter.json", "{\"version\": \"x\"}");
    place.refuses(&understand("run"), &["janus_adapter.json"]);
}
