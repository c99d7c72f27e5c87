//! Adapters that PEFT made: what they compute attached and merged, through the library and through `janus probe`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use janus_core::checkpoint::Checkpoint;
use janus_lora::adapter::{Adapter, AdapterError};
use janus_tests::compare::{close, close_number};
use janus_tests::expected::Expected;
use janus_tests::program::janus;
use janus_tests::{fixtures, json};

/// Adapters whose choice of modules is told.
const CHOSEN: [&str; 8] = ["lora", "lora-all", "patterns", "layers", "modules-to-save", "conv", "rslora", "dora"];

/// Adapters of every method.
const ALL: [&str; 18] = [
    "lora",
    "lora-all",
    "patterns",
    "layers",
    "modules-to-save",
    "conv",
    "embedding",
    "rslora",
    "dora",
    "dora-rslora",
    "dora-conv",
    "dora-embedding",
    "loha",
    "lokr",
    "lokr-full",
    "vera",
    "ia3",
    "lora-bias",
];

/// The input of `understanding_single` or `generation_forced` as a file for `janus probe`.
fn probe_input(fixtures: &Path, into: &Path, generation: bool) -> String {
    let expected = fixtures.join("expected");
    let mut input: Vec<(String, Tensor)> = Vec::new();
    let path = if generation {
        let forced = Expected::load(&expected, "generation_forced.safetensors");
        let labels = forced.integers("labels").concat();
        let first = labels.iter().position(|label| *label >= 0).unwrap();
        let ids = forced.tensor("input_ids").narrow(1, 0, first).unwrap().contiguous().unwrap();
        input.push(("input_ids".into(), ids));
        input.push(("image_tokens".into(), forced.tensor("image_tokens").clone()));
        into.join("generation.safetensors")
    } else {
        let single = Expected::load(&expected, "understanding_single.safetensors");
        for name in ["input_ids", "attention_mask", "pixel_values", "labels"] {
            input.push((name.into(), single.tensor(name).clone()));
        }
        into.join("understanding.safetensors")
    };
    fs_err::write(&path, safetensors::serialize(input, None).unwrap()).unwrap();
    path.to_string_lossy().into_owned()
}

struct Probed {
    understanding: Expected,
    generation: Expected,
}

/// Runs `janus probe` on both inputs.
fn probe(fixtures: &Path, work: &Path, base: &Path, more: &[&str]) -> Probed {
    let run = |generation: bool, output: &str| {
        let input = probe_input(fixtures, work, generation);
        let base = base.to_string_lossy();
        let mut arguments = vec!["probe", "--base", &base, "--input", &input, "--output", output];
        arguments.extend(more);
        janus(work, &arguments).expect_success();
        Expected::load(work, output)
    };
    Probed { understanding: run(false, "und.out"), generation: run(true, "gen.out") }
}

/// Compares with `prefix` + the names of PEFT's outputs.
fn compare(what: &str, got: &Probed, expected: &Expected, prefix: &str) {
    let logits = got.understanding.tensor("logits");
    let last = logits.narrow(1, logits.dim(1).unwrap() - 4, 4).unwrap();
    close(&format!("{what}: logits"), &last, expected.tensor(&format!("{prefix}und_logits_last")), 2e-4);
    let image = got.generation.tensor("gen_logits").squeeze(0).unwrap();
    close(&format!("{what}: image logits"), &image, expected.tensor(&format!("{prefix}gen_image_logits")), 2e-4);
    if prefix.is_empty() && expected.names().any(|name| name == "und_loss") {
        close_number(&format!("{what}: loss"), got.understanding.number("loss"), expected.number("und_loss"), 2e-5);
        close_number(&format!("{what}: image loss"), got.generation.number("loss"), expected.number("gen_loss"), 2e-5);
    }
}

#[test]
fn the_base_without_adapter() {
    let Some(fixtures) = fixtures() else { return };
    let work = tempfile::tempdir().unwrap();
    for layout in ["hf", "hf-sharded", "deepseek"] {
        let got = probe(&fixtures, work.path(), &fixtures.join(layout), &[]);
        compare(layout, &got, &Expected::load(&fixtures.join("peft"), "base.safetensors"), "");
        let vision = Expected::load(&fixtures.join("expected"), "vision.safetensors");
        let features = got.understanding.tensor("image_features");
        assert_eq!(features.dims(), vision.tensor("aligner_output").dims());
    }
}

#[test]
fn peft_adapters_attached_and_merged() {
    let Some(fixtures) = fixtures() else { return };
    let base = fixtures.join("hf");
    for name in ALL {
        let work = tempfile::tempdir().unwrap();
        let folder = fixtures.join("peft").join(name);
        let expected = Expected::load(&folder, "expected.safetensors");
        let adapter = folder.to_string_lossy();
        let attached = probe(&fixtures, work.path(), &base, &["--adapter", &adapter]);
        compare(name, &attached, &expected, "");

        let base = base.to_string_lossy();
        if name == "lora-bias" {
            // Most of its sites have no bias in the base: PEFT cannot merge it either.
            let out = work.path().join("merged").to_string_lossy().into_owned();
            let refused = janus(work.path(), &["merge", "--base", &base, "--adapter", &adapter, "--out", &out]);
            janus_tests::program::refused(&refused, &["has no bias in the base", "lora_bias"]);
            assert!(!Path::new(&out).exists());
            continue;
        }
        for (layout, merged) in [("native", "merged"), ("deepseek", "merged-original")] {
            let out = work.path().join(merged).to_string_lossy().into_owned();
            let arguments =
                ["merge", "--base", &base, "--adapter", &adapter, "--out", &out, "--layout", layout, "--json"];
            let report = janus(work.path(), &arguments).expect_success().json();
            assert!(report["largest_logit_difference"].as_f64().unwrap() < 2e-4, "{name}: {report}");
            let folder = work.path().join(merged);
            compare(
                &format!("{name} merged, {layout}"),
                &probe(&fixtures, work.path(), &folder, &[]),
                &expected,
                "merged.",
            );
            let checkpoint = Checkpoint::open(&folder).unwrap();
            for key in expected.names().filter(|key| key.starts_with("merged_weight.")) {
                let weight = checkpoint.read(&key["merged_weight.".len()..], DType::F32).unwrap();
                close(&format!("{name}: {key}"), &weight, expected.tensor(key), 1e-5);
            }
        }
    }
}

fn is_gradient(name: &str) -> bool {
    name.starts_with("grad.")
}

#[test]
fn gradients_through_an_adapter() {
    let Some(fixtures) = fixtures() else { return };
    let with_gradients = |name: &&str| {
        Expected::load(&fixtures.join("peft").join(name), "expected.safetensors").names().any(is_gradient)
    };
    let names: Vec<&str> = ALL.into_iter().filter(with_gradients).collect();
    assert!(names.contains(&"dora") && names.contains(&"conv"), "{names:?}");
    for name in names {
        let work = tempfile::tempdir().unwrap();
        let folder = fixtures.join("peft").join(name);
        let expected = Expected::load(&folder, "expected.safetensors");
        let adapter = folder.to_string_lossy();
        let got = probe(&fixtures, work.path(), &fixtures.join("hf"), &["--adapter", &adapter, "--gradients"]);
        // PEFT's are those of the sum of both losses.
        let mut sums: BTreeMap<String, Tensor> = BTreeMap::new();
        for output in [&got.understanding, &got.generation] {
            for key in output.names().filter(|key| key.starts_with("grad.")) {
                let gradient = output.tensor(key).clone();
                let sum = match sums.remove(key) {
                    Some(other) => (other + gradient).unwrap(),
                    None => gradient,
                };
                sums.insert(key.to_owned(), sum);
            }
        }
        let mut compared = 0;
        for key in expected.names().filter(|key| key.starts_with("grad.")) {
            close(&format!("{name}: {key}"), &sums[key], expected.tensor(key), 5e-5);
            compared += 1;
        }
        assert_eq!(compared, sums.len(), "{name}: tensors with a gradient");
    }
}

#[test]
fn two_adapters_add_up_and_scale() {
    let Some(fixtures) = fixtures() else { return };
    let work = tempfile::tempdir().unwrap();
    let base = fixtures.join("hf");
    let adapter = |name: &str| fixtures.join("peft").join(name).to_string_lossy().into_owned();
    let (one, two) = (format!("{}:0.5", adapter("lora")), format!("{}:-1.5", adapter("layers")));
    let attached = probe(&fixtures, work.path(), &base, &["--adapter", &one, "--adapter", &two]);
    let out = work.path().join("merged").to_string_lossy().into_owned();
    let base = base.to_string_lossy();
    let arguments = ["merge", "--base", &base, "--adapter", &one, "--adapter", &two, "--out", &out];
    janus(work.path(), &arguments).expect_success();
    let merged = probe(&fixtures, work.path(), Path::new(&out), &[]);
    close("logits", attached.understanding.tensor("logits"), merged.understanding.tensor("logits"), 2e-4);
    close("image logits", attached.generation.tensor("gen_logits"), merged.generation.tensor("gen_logits"), 2e-4);
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let Some(fixtures) = fixtures() else { return };
    let checkpoint = Checkpoint::open(&fixtures.join("hf")).unwrap();
    let work = tempfile::tempdir().unwrap();
    for (field, value) in [("use_qalora", serde_json::json!(true)), ("peft_type", serde_json::json!("OFT"))] {
        let folder = std::path::PathBuf::from(lora_with(&fixtures, work.path(), &[(field, value)]));
        let error: AdapterError = Adapter::read(&folder, checkpoint.config(), checkpoint.is_tied()).unwrap_err();
        let mut chain = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            chain.push_str(&cause.to_string());
            source = cause.source();
        }
        assert!(chain.contains(field), "{chain}");
    }
}

#[test]
fn peft_s_choice_of_modules() {
    let Some(fixtures) = fixtures() else { return };
    let checkpoint = Checkpoint::open(&fixtures.join("hf")).unwrap();
    for name in CHOSEN {
        let folder = fixtures.join("peft").join(name);
        let adapter = Adapter::read(&folder, checkpoint.config(), checkpoint.is_tied()).unwrap();
        let modules = json(&folder, "modules.json");
        let modules = modules.as_object().unwrap();
        let chosen: Vec<&str> =
            modules.keys().map(String::as_str).filter(|path| modules[*path]["r"].is_u64()).collect();
        let mut chosen = chosen;
        chosen.sort_unstable();
        let ours: Vec<&str> = adapter.sites.keys().map(AsRef::as_ref).collect();
        assert_eq!(ours, chosen, "{name}");
        for (path, site) in &adapter.sites {
            let module = &modules[path.as_ref()];
            assert_eq!(site.rank as u64, module["r"].as_u64().unwrap(), "{name}: {path}");
            close_number(&format!("{name}: scale of {path}"), site.scale, module["scaling"].as_f64().unwrap(), 1e-12);
        }
    }
}

/// A copy of PEFT's adapter `lora` whose configuration has other fields.
fn lora_with(fixtures: &Path, into: &Path, fields: &[(&str, serde_json::Value)]) -> String {
    let folder = into.join("adapter");
    fs_err::create_dir_all(&folder).unwrap();
    let from = fixtures.join("peft/lora");
    fs_err::copy(from.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors")).unwrap();
    let mut config = json(&from, "adapter_config.json");
    for (key, value) in fields {
        config[*key] = value.clone();
    }
    fs_err::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder.to_string_lossy().into_owned()
}

#[test]
fn fields_that_change_no_number_change_none() {
    use serde_json::json as value;
    let Some(fixtures) = fixtures() else { return };
    let base = fixtures.join("hf");
    let expected = Expected::load(&fixtures.join("peft/lora"), "expected.safetensors");
    let eva = ("init_lora_weights", value!("eva"));
    for (fields, warned) in [
        (vec![eva.clone(), ("eva_config", value!({"rho": 2.0, "tau": 0.99, "whiten": false}))], None),
        (vec![eva, ("loftq_config", value!({})), ("fan_in_fan_out", value!(false))], None),
        (vec![("a_field_of_tomorrow", value!(null)), ("another", value!([]))], None),
        (vec![("ensure_weight_tying", value!(true))], Some("ensure_weight_tying")),
        (vec![("velora_config", value!({"num_groups": 4}))], Some("velora_config")),
        (vec![("runtime_config", value!({"ephemeral_gpu_offload": true}))], Some("runtime_config")),
        (vec![("rank_pattern", value!({"c_attn": 4}))], Some("`c_attn` in `rank_pattern`")),
    ] {
        let work = tempfile::tempdir().unwrap();
        let adapter = lora_with(&fixtures, work.path(), &fields);
        compare(&format!("{fields:?}"), &probe(&fixtures, work.path(), &base, &["--adapter", &adapter]), &expected, "");
        let base = base.to_string_lossy();
        let told = janus(work.path(), &["adapter", "inspect", &adapter, "--base", &base]).expect_success().stderr;
        match warned {
            Some(name) => assert!(told.contains("warning: ") && told.contains(name), "{told}"),
            None => assert!(!fields.iter().any(|(key, _)| told.contains(key)), "{told}"),
        }
    }
    for (key, active) in [("a_field_of_tomorrow", value!(3)), ("bias", value!("all")), ("use_qalora", value!(true))] {
        let work = tempfile::tempdir().unwrap();
        let adapter = lora_with(&fixtures, work.path(), &[(key, active)]);
        let base = base.to_string_lossy();
        let done = janus(work.path(), &["adapter", "inspect", &adapter, "--base", &base]);
        janus_tests::program::refused(&done, &[&format!("`{key}` = `"), "is not supported"]);
    }
}

#[test]
fn a_factor_is_for_copies_too() {
    let Some(fixtures) = fixtures() else { return };
    let base = fixtures.join("hf");
    let work = tempfile::tempdir().unwrap();
    let folder = fixtures.join("peft/modules-to-save").to_string_lossy().into_owned();
    let bits = |probed: &Probed| -> Vec<u32> {
        let both = [probed.understanding.tensor("logits"), probed.generation.tensor("gen_logits")];
        let values = both.map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        values.concat().into_iter().map(f32::to_bits).collect()
    };
    let with = |adapter: &str| probe(&fixtures, work.path(), &base, &["--adapter", adapter]);
    assert_eq!(bits(&with(&format!("{folder}:0"))), bits(&probe(&fixtures, work.path(), &base, &[])));
    assert_eq!(bits(&with(&format!("{folder}:1"))), bits(&with(&folder)));
    let half = with(&format!("{folder}:0.5"));
    assert_ne!(bits(&half), bits(&with(&folder)));
    // Merged, the same factor gives a checkpoint that computes the same.
    let out = work.path().join("merged");
    let (base, adapter) = (base.to_string_lossy(), format!("{folder}:0.5"));
    let (out_text, nothing) = (out.to_string_lossy(), format!("{folder}:0"));
    janus(work.path(), &["merge", "--base", &base, "--adapter", &adapter, "--out", &out_text]).expect_success();
    let merged = probe(&fixtures, work.path(), &out, &[]);
    for (attached, merged, name) in
        [(&half.understanding, &merged.understanding, "logits"), (&half.generation, &merged.generation, "gen_logits")]
    {
        close(name, merged.tensor(name), attached.tensor(name), 2e-4);
    }
    let refused = janus(work.path(), &["merge", "--base", &base, "--adapter", &nothing, "--out", "nothing"]);
    janus_tests::program::refused(&refused, &["changes nothing"]);
}
