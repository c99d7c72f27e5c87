//! Every method of PEFT from a recipe to an adapter, and from there into weights and answers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use janus_tests::fixtures;
use janus_tests::rows::{images, picture, texts, write_table};
use janus_tests::tiny::Workplace;
use serde_json::Value;

/// What a recipe says of each, and a key of a tensor that it leaves.
const METHODS: [(&str, &[&str], &str); 12] = [
    ("lora", &["adapter.rank=4", "adapter.init=gaussian", "train.lora_plus_ratio=4.0"], "lora_B.weight"),
    ("rslora", &["adapter.rank=4", "adapter.rslora=true", "adapter.rank_pattern={ down_proj = 2 }"], "lora_A.weight"),
    ("bias", &["adapter.rank=4", "adapter.bias=true"], "lora_B.bias"),
    ("pissa", &["adapter.rank=4", "adapter.init=pissa", "adapter.dropout=0.1"], "lora_A.weight"),
    (
        "olora",
        &["adapter.rank=4", "adapter.init=olora", "adapter.rslora=true", "adapter.rank_pattern={ down_proj = 2 }"],
        "lora_B.weight",
    ),
    ("eva", &["adapter.rank=4", "adapter.init=eva"], "lora_A.weight"),
    ("dora", &["adapter.method=dora", "adapter.rank=4"], "lora_magnitude_vector"),
    ("loha", &["adapter.method=loha", "adapter.rank=2"], "hada_w1_a"),
    ("lokr", &["adapter.method=lokr", "adapter.rank=2"], "lokr_w1"),
    ("lokr-both", &["adapter.method=lokr", "adapter.rank=1", "adapter.decompose_both=true"], "lokr_w2_b"),
    ("vera", &["adapter.method=vera", "adapter.rank=8", "adapter.dropout=0.1"], "vera_lambda_b"),
    ("ia3", &["adapter.method=ia3"], "ia3_l"),
];

fn place() -> Workplace {
    let place = Workplace::with_base();
    place.write(
        "recipe.toml",
        "[base]\npath = \"base\"\ndtype = \"f32\"\n[adapter]\ntargets = [\"all\"]\n\
         [[data]]\nname = \"questions\"\ntask = \"understand\"\ntrain = \"rows.parquet\"\n\
         [[data]]\nname = \"pictures\"\ntask = \"generate\"\ntrain = \"rows.parquet\"\ncolumns = { prompt = \"question\" }\n\
         [train]\nsteps = 6\nbatch_size = 2\nlearning_rate = 1e-2\nschedule = \"constant\"\nmixture = \"each\"\nshuffle = false\ncheckpoint_every = 3\n\
         [output]\ndir = \"run\"\n",
    );
    let pictures: Vec<_> = (0..4).map(|i| Some(picture(40, 32, i))).collect();
    let columns = vec![
        ("image", images(&pictures)),
        ("question", texts((0..4).map(|i| format!("Part {i}?")))),
        ("answer", texts((0..4).map(|_| "a bent pin"))),
    ];
    write_table(&place.path("rows.parquet"), columns, 4);
    place
}

fn train(place: &Workplace, run: &str, keys: &[&str]) -> Vec<Value> {
    let folder = format!("output.dir={run}");
    let arguments: Vec<&str> = ["train", "recipe.toml", &folder].iter().chain(keys).copied().collect();
    place.janus(&arguments).expect_success();
    place.metrics(run).into_iter().filter(|line| line.get("loss").is_some()).collect()
}

#[test]
fn every_method_learns_resumes_and_merges() {
    let place = place();
    for (name, keys, tensor) in METHODS {
        let steps = train(&place, name, keys);
        let loss = |step: &Value| step["loss"].as_f64().unwrap();
        // Two steps a pass: both are of the same rows.
        assert!(loss(&steps[4]) < loss(&steps[0]), "{name}: {} to {}", loss(&steps[0]), loss(&steps[4]));
        let weights = place.read(&format!("{name}/adapter_model.safetensors"));
        let tensors = candle_core::safetensors::load_buffer(&weights, &candle_core::Device::Cpu).unwrap();
        assert!(tensors.keys().any(|key| key.ends_with(tensor)), "{name}: {:?}", tensors.keys());

        // Cut off in the middle and gone on with: the same bytes.
        let half = format!("{name}-half");
        train(&place, &half, &[keys, &["train.steps=3"]].concat());
        train(&place, &half, &[keys, &["--resume"]].concat());
        assert!(place.read(&format!("{half}/adapter_model.safetensors")) == weights, "{name}: resumed");

        let merged = format!("{name}-merged");
        let arguments = ["merge", "--base", "base", "--adapter", name, "--out", &merged, "--json"];
        let report = place.janus(&arguments).expect_success().json();
        let difference = report["largest_logit_difference"].as_f64().unwrap();
        assert!(difference < 2e-4, "{name}: {difference}");
    }
}

#[test]
fn a_plan_counts_what_a_run_trains() {
    let place = place();
    for (name, keys, _) in METHODS {
        let arguments: Vec<&str> =
            ["train", "recipe.toml", "--dry-run", "--json"].iter().chain(keys).copied().collect();
        let planned = place.janus(&arguments).expect_success().json()["trainable_parameters"].as_u64().unwrap();
        train(&place, name, &[keys, &["train.steps=1"]].concat());
        let told = place.janus(&["adapter", "inspect", name, "--base", "base", "--json"]).expect_success().json();
        // What a pair began with is saved beside it.
        let kept = if ["pissa", "olora"].contains(&name) { 2 } else { 1 };
        assert_eq!(told["parameters"].as_u64().unwrap(), kept * planned, "{name}");
        // Whatever the form of a shift, its singular values add up to its norm.
        for site in told["sites"].as_array().unwrap() {
            let values = site["spectrum"].as_array().unwrap_or_else(|| panic!("{name}: {site}"));
            let energy: f64 = values.iter().map(|value| value.as_f64().unwrap().powi(2)).sum();
            let norm = site["norm"].as_f64().unwrap();
            assert!((energy.sqrt() - norm).abs() <= 1e-4 * norm, "{name}: {site}");
            let effective = site["effective_rank"].as_f64().unwrap();
            assert!(norm == 0.0 || (effective > 0.99 && effective < values.len() as f64 + 0.01), "{name}: {site}");
        }
    }
}

/// Ranks go where a site's inputs take more directions, and all scales stay.
#[test]
fn ranks_follow_what_sites_see() {
    let place = place();
    let keys = ["adapter.rank=4", "adapter.init=eva", "adapter.eva_rho=2.0", "adapter.rslora=true", "train.steps=3"];
    let folder = "output.dir=spread";
    let arguments: Vec<&str> = ["train", "recipe.toml", folder].iter().chain(&keys).copied().collect();
    let told = place.janus(&arguments).expect_success().stderr;
    assert!(told.contains("by what sites see, their ranks are from"), "{told}");
    let config: Value = serde_json::from_slice(&place.read("spread/adapter_config.json")).unwrap();
    assert_eq!((&config["init_lora_weights"], &config["eva_config"]["rho"]), (&"eva".into(), &2.0.into()));
    let bytes = place.read("spread/adapter_model.safetensors");
    let tensors = candle_core::safetensors::load_buffer(&bytes, &candle_core::Device::Cpu).unwrap();
    let ranks: Vec<usize> = tensors
        .iter()
        .filter(|(key, _)| key.ends_with("lora_A.weight"))
        .map(|(_, value)| value.dim(0).unwrap())
        .collect();
    assert!(ranks.iter().all(|rank| (1..=8).contains(rank)) && ranks.iter().any(|rank| *rank > 4), "{ranks:?}");
    assert_eq!(ranks.iter().sum::<usize>() % 4, 0, "as many as without: {ranks:?}");
    // alpha · rank / 4 over √rank, whatever the rank.
    for (path, alpha) in config["alpha_pattern"].as_object().unwrap() {
        let rank = config["rank_pattern"][path].as_f64().unwrap();
        assert!((alpha.as_f64().unwrap() - 4.0 * rank / 4.0).abs() < 1e-9, "{path}: {alpha} {rank}");
    }
    // Directions are orthonormal at first.
    train(&place, "still", &[&keys[..4], &["train.steps=1", "train.learning_rate=1e-30"]].concat());
    let bytes = place.read("still/adapter_model.safetensors");
    for (key, value) in candle_core::safetensors::load_buffer(&bytes, &candle_core::Device::Cpu).unwrap() {
        if key.ends_with("lora_A.weight") {
            let square = value.matmul(&value.t().unwrap()).unwrap();
            let one = candle_core::Tensor::eye(value.dim(0).unwrap(), value.dtype(), value.device()).unwrap();
            let apart = (square - one).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            let apart = apart.to_scalar::<f32>().unwrap();
            assert!(apart < 1e-4, "{key}: {apart}");
        }
    }
    // A run that goes on does not look again.
    let on: Vec<&str> = ["train", "recipe.toml", folder, "--resume"].iter().chain(&keys[..4]).copied().collect();
    let told = place.janus(&on).expect_success().stderr;
    assert!(!told.contains("by what sites see"), "{told}");
    // All steps at once: the same bytes.
    let once: Vec<&str> = ["train", "recipe.toml", "output.dir=once"].iter().chain(&keys[..4]).copied().collect();
    place.janus(&once).expect_success();
    let read = |run: &str| place.read(&format!("{run}/adapter_model.safetensors"));
    assert!(read("once") == read("spread"));
}

/// The largest difference of two adapters' tensors, which have the same names.
fn apart(place: &Workplace, one: &str, other: &str) -> f32 {
    let read = |run: &str| {
        let bytes = place.read(&format!("{run}/adapter_model.safetensors"));
        candle_core::safetensors::load_buffer(&bytes, &candle_core::Device::Cpu).unwrap()
    };
    let (one, other) = (read(one), read(other));
    assert_eq!(one.len(), other.len());
    let largest = |(name, value): (&String, &candle_core::Tensor)| -> f32 {
        let difference = (value - &other[name]).unwrap().abs().unwrap().flatten_all().unwrap();
        difference.max(0).unwrap().to_scalar().unwrap()
    };
    one.iter().map(largest).fold(0.0, f32::max)
}

#[test]
fn a_run_begins_from_an_adapter_once() {
    let place = place();
    // What hardly moves is what it began with.
    let still = ["train.learning_rate=1e-30", "train.steps=2"];
    for (name, keys, _) in [METHODS[1], METHODS[3], METHODS[6], METHODS[8], METHODS[10], METHODS[11]] {
        train(&place, name, keys);
        let from = format!("adapter.start_from={name}");
        let plain: Vec<&str> = keys.iter().copied().filter(|key| !key.starts_with("adapter.init")).collect();
        // What began as a part of the weight is saved with twice the rank.
        let doubled = ["adapter.rank=8"];
        let plain = if name == "pissa" { [&doubled[..], &plain[1..]].concat() } else { plain };
        let next = format!("{name}-next");
        train(&place, &next, &[&plain[..], &still, &[&from]].concat());
        let moved = apart(&place, name, &next);
        assert!(moved < 1e-20, "{name}: {moved:e}");
    }

    // Cut off, the run goes on from its own checkpoint: DIR may be another one, or gone.
    let keys = ["adapter.rank=4", "adapter.rslora=true", "adapter.rank_pattern={ down_proj = 2 }"];
    let keys = [&keys[..], &["adapter.start_from=rslora"]].concat();
    train(&place, "whole", &keys);
    for run in ["cut", "gone"] {
        train(&place, run, &[&keys[..], &["train.steps=3"]].concat());
    }
    let from_nothing = [&["train", "recipe.toml", "output.dir=cut", "--resume"], &keys[..3]].concat();
    place.refuses(&from_nothing, &["`adapter.start_from`: it began from an adapter and now would from nothing"]);
    // What a run's figures begin with is the base's, whatever it begins from.
    let before = |run: &str, keys: &[&str]| {
        let folder = format!("output.dir={run}");
        let arguments =
            [&["train", "recipe.toml", &folder, "data.0.eval=rows.parquet", "train.steps=1"], keys].concat();
        place.janus(&arguments).expect_success();
        place.metrics(run)[0]["eval"]["before"].clone()
    };
    let (of_start, of_nothing) = (before("from-start", &keys), before("from-nothing", &keys[..3]));
    assert!(of_nothing["questions"]["loss"].is_f64() && of_start == of_nothing, "{of_start} {of_nothing}");
    train(&place, "other", &["adapter.rank=4"]);
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs_err::copy(place.path(&format!("other/{file}")), place.path(&format!("rslora/{file}"))).unwrap();
    }
    let resume = |run: &str| {
        let folder = format!("output.dir={run}");
        let arguments = [&["train", "recipe.toml", &folder, "--resume"], &keys[..]].concat();
        place.janus(&arguments).expect_success().stderr
    };
    let told = resume("cut");
    assert!(told.contains("holds another adapter than when the run began"), "{told}");
    fs_err::remove_dir_all(place.path("rslora")).unwrap();
    assert!(!resume("gone").contains("holds another adapter"));
    let weights = |run: &str| place.read(&format!("{run}/adapter_model.safetensors"));
    assert!(weights("cut") == weights("whole") && weights("gone") == weights("whole"));
}

#[test]
fn an_adapter_of_another_form_is_no_beginning() {
    let place = place();
    train(&place, "first", &["adapter.rank=4", "train.steps=1"]);
    let config = place.read("first/adapter_config.json");
    for (keys, said) in [
        (&["adapter.method=dora", "adapter.rank=4"][..], "`peft_type`: expected `dora`, got `lora`"),
        (&[], ": expected rank 8, got rank 4"),
        (&["adapter.rank=4", "adapter.scale=1.5"], ": expected scale 1.5, got scale 2"),
        (&["adapter.rank=4", "adapter.bias=true"], "`lora_B.bias` of"),
        (&["adapter.rank=4", "adapter.exclude=[\"q_proj\"]"], "q_proj`: expected nothing, got rank 4"),
        (
            &["adapter.rank=4", "adapter.modules_to_save=[\"language_model.norm\"]"],
            "norm.weight`: expected a copy, got none",
        ),
        (&["adapter.rank=4", "adapter.start_from=recipe.toml"], "recipe.toml` is a file, and an adapter is a folder"),
        (&["adapter.rank=4", "adapter.start_from=./nothing"], "is not a folder"),
        (&["adapter.rank=4", "adapter.start_from=first:0.5"], "`first` with a factor of 0.5, and a run begins"),
        (&["adapter.rank=4", "adapter.start_from=hf://owner/name"], "`hf://owner/name` is an address"),
        (
            &["adapter.rank=4", "adapter.init=olora", "adapter.scale=1e6"],
            "under a scale of 1000000, expected at most 100",
        ),
    ] {
        let first = &["train", "recipe.toml", "adapter.start_from=first"][..];
        let own = keys.iter().any(|key| key.starts_with("adapter.start_from") || key.starts_with("adapter.init"));
        let arguments = [if own { &first[..2] } else { first }, keys].concat();
        place.refuses(&arguments, &[said]);
        assert!(!place.path("run").exists(), "{keys:?}");
    }
    // A look tells as much.
    place.refuses(
        &["train", "recipe.toml", "adapter.start_from=first", "--dry-run"],
        &[": expected rank 8, got rank 4"],
    );
    let look = ["train", "recipe.toml", "adapter.rank=4", "adapter.start_from=./nothing", "--dry-run"];
    place.refuses(&look, &["is not a folder"]);
    // Another base.
    place
        .janus(&["base", "init", "--shape", "janus-tiny", "--seed", "4", "--dtype", "f32", "--out", "another"])
        .expect_success();
    let arguments = ["train", "recipe.toml", "adapter.start_from=first", "adapter.rank=4", "base.path=another"];
    place.refuses(&arguments, &["the adapter was made for base"]);
    // Weights that are cut off.
    fs_err::create_dir(place.path("broken")).unwrap();
    fs_err::write(place.path("broken/adapter_config.json"), config).unwrap();
    fs_err::write(place.path("broken/adapter_model.safetensors"), b"nothing").unwrap();
    place.refuses(
        &["train", "recipe.toml", "adapter.start_from=broken", "adapter.rank=4"],
        &["adapter_model.safetensors"],
    );
}

/// A folder as PEFT wrote it.
#[test]
fn a_run_begins_from_an_adapter_of_peft() {
    let Some(fixtures) = fixtures() else { return };
    let place = place();
    let folder = |name: &str| fixtures.join(name).to_string_lossy().into_owned();
    let (base, start) =
        (format!("base.path={}", folder("hf")), format!("adapter.start_from={}", folder("peft/rslora")));
    let keys = [
        base.as_str(),
        &start,
        "adapter.targets=[\"q_proj\", \"v_proj\"]",
        "adapter.rank=4",
        "adapter.alpha=6",
        "adapter.rslora=true",
        "train.learning_rate=1e-30",
        "train.steps=1",
    ];
    train(&place, "next", &keys);
    let read = |bytes: &[u8]| candle_core::safetensors::load_buffer(bytes, &candle_core::Device::Cpu).unwrap();
    let theirs = read(&fs_err::read(fixtures.join("peft/rslora/adapter_model.safetensors")).unwrap());
    let ours = read(&place.read("next/adapter_model.safetensors"));
    assert_eq!(ours.keys().collect::<BTreeSet<_>>(), theirs.keys().collect::<BTreeSet<_>>());
    for (name, value) in &ours {
        let difference = (value - &theirs[name]).unwrap().abs().unwrap().flatten_all().unwrap();
        let difference: f32 = difference.max(0).unwrap().to_scalar().unwrap();
        assert!(difference < 1e-20, "{name}: {difference:e}");
    }
}

#[test]
fn stages_give_a_site_one_form() {
    let place = place();
    let recipe = String::from_utf8(place.read("recipe.toml")).unwrap().replace("steps = 6\n", "");
    let stages = "[[stage]]\nname = \"first\"\nsteps = 2\n[[stage]]\nname = \"second\"\nsteps = 2\n";
    place.write("stages.toml", format!("{recipe}{stages}adapter = {{ rank_pattern = {{ q_proj = 3 }} }}\n"));
    place.refuses(
        &["train", "stages.toml", "adapter.rank_pattern={ q_proj = 5 }"],
        &["the stage `second` gives `", "rank 3 and alpha", "a stage before it rank 5", "for all stages"],
    );
}

#[test]
fn adapters_of_different_methods_add_up() {
    let place = place();
    for (name, keys, _) in [METHODS[6], METHODS[8], METHODS[11]] {
        train(&place, name, keys);
    }
    let adapters = ["--adapter", "dora:0.5", "--adapter", "lokr:-1.5", "--adapter", "ia3:2"];
    let merge = |order: &[&str], out: &str| {
        let arguments = [&["merge", "--base", "base", "--out", out, "--json"], order].concat();
        place.janus(&arguments).expect_success().json()
    };
    let report = merge(&adapters, "merged");
    assert!(report["largest_logit_difference"].as_f64().unwrap() < 5e-4, "{report}");
    // In any order.
    let turned = [&adapters[4..], &adapters[2..4], &adapters[..2]].concat();
    let other = merge(&turned, "turned");
    let norm = |report: &Value| report["total"]["delta_norm"].as_f64().unwrap();
    assert!((norm(&report) - norm(&other)).abs() < 1e-5 * norm(&report), "{} {}", norm(&report), norm(&other));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let place = place();
    for (keys, said) in [
        (&["adapter.method=ia3", "adapter.rank=8"][..], "`adapter.rank` says nothing of the method `ia3`"),
        (&["adapter.method=oft"], "oft"),
        (&["adapter.method=vera", "adapter.targets=[\"patch_embedding\"]"], "is no place for `vera`"),
        (&["adapter.method=loha", "adapter.targets=[\"embed_tokens\"]"], "is no place for `loha`"),
        (&["adapter.exclude=[\"no_such\"]"], "`no_such` in `adapter.exclude` matches none"),
        (&["adapter.rank_pattern={ no_such = 3 }"], "`no_such` in `adapter.rank_pattern` matches none"),
        (&["adapter.alpha_pattern={ no_such = 3 }"], "`no_such` in `adapter.alpha_pattern` matches none"),
        (&["adapter.layers=[77]"], "names layer 77"),
        (
            &["adapter.method=dora", "adapter.init=pissa"],
            "`adapter.init` = `pissa` is for the pairs of the method `lora`",
        ),
        (&["adapter.bias=true", "adapter.init=olora"], "its pairs have a bias"),
        (&["adapter.method=dora", "adapter.init=eva"], "`adapter.init` = `eva` is for the pairs of the method `lora`"),
        (&["adapter.eva_rho=2.0"], "`adapter.eva_rho` says nothing of `adapter.init` = `kaiming`"),
        (&["adapter.init=eva", "adapter.eva_rho=0.5"], "`adapter.eva_rho` must be a finite number, 1 or more"),
        (&["adapter.init=eva", "adapter.targets=[\"embed_tokens\"]"], "is no place for pairs that begin with `eva`"),
        (
            &["adapter.init=pissa", "adapter.targets=[\"patch_embedding\"]"],
            "is no place for pairs that begin with `pissa`",
        ),
        (&["adapter.init=olora", "adapter.rank=77"], "a pair of rank 77 at"),
        (&["adapter.bias=true", "adapter.targets=[\"decoder\"]"], "has no bias in the base"),
    ] {
        let arguments = [&["train", "recipe.toml"], keys].concat();
        place.refuses(&arguments, &[said]);
        assert!(!place.path("run").exists(), "{keys:?}");
    }
}
