//! What people type and have: names with colons, `~`, adapters one level too high, a base left out, a hub's adapter.

use std::collections::BTreeMap;

use janus_tests::hub::{Hub, Manners};
use janus_tests::program::{Done, janus_with};
use serde_json::json;

use super::*;

const WEIGHTS: &str = "run/adapter_model.safetensors";

/// What the adapter answers over `base`.
fn answer(place: &Workplace, adapter: &str) -> Done {
    let more = ["--image", "picture.png", "--max-new-tokens", "3", "--json", "What?"];
    place.janus(&[&["understand", "--base", "base", "--adapter", adapter][..], &more[..]].concat())
}

/// All that is planted as `run` in another folder, too.
fn also_as(place: &Workplace, folder: &str) {
    plant(adapter(), &place.path(folder));
}

#[test]
fn a_folder_comes_before_a_factor() {
    let place = place_with_adapter();
    let expected = answer(&place, "run").expect_success().stdout;
    for name in ["runs/2026-01-05T12:30", "r:16", "b:2:1", "run with:0.5"] {
        also_as(&place, name);
        assert_eq!(answer(&place, name).expect_success().stdout, expected, "{name}");
        assert_eq!(answer(&place, &format!("{name}/")).expect_success().stdout, expected, "{name}");
        assert_eq!(answer(&place, &format!("{name}:1")).expect_success().stdout, expected, "{name}");
    }
    also_as(&place, "run:2");
    let both = ["understand", "--base", "base", "--adapter", "run:2", "What?"];
    place.refuses(&both, &["`run:2` is a folder, and `run` is one", "`run/:2`", "`run:2:1`"]);
    assert_eq!(answer(&place, "run:2:1").expect_success().stdout, expected);
    let twice = answer(&place, "run/:2").expect_success().stdout;
    fs_err::rename(place.path("run:2"), place.path("other")).unwrap();
    assert_eq!(answer(&place, "run:2").expect_success().stdout, twice);
    let absent = ["understand", "--base", "base", "--adapter", "runs/2026-02-02T10:00", "What?"];
    place.refuses(&absent, &["`runs/2026-02-02T10:00`", "`runs/2026-02-02T10`"]);
}

#[test]
fn the_home_folder_has_the_same_name_everywhere() {
    let place = place_with_adapter();
    let home = place.path("home");
    plant(&tree(&place.path("base")), &home.join("base"));
    fs_err::copy(place.path("rows.parquet"), home.join("rows.parquet")).unwrap();
    let home = home.to_str().unwrap().to_owned();
    let run = |arguments: &[&str], more: &[(&str, &str)]| {
        let environment: Vec<(&str, &str)> = [("HOME", home.as_str())].iter().chain(more).copied().collect();
        janus_with(place.folder(), arguments, &environment)
    };
    for (number, start) in ["~", "$HOME", "${HOME}"].into_iter().enumerate() {
        let at = |rest: &str| format!("{start}/{rest}");
        let recipe = RECIPE.replace("\"base\"", &format!("\"{}\"", at("base")));
        let recipe = recipe.replace("\"rows.parquet\"", &format!("\"{}\"", at("rows*.parquet")));
        place.write("home.toml", recipe.replace("\"run\"", &format!("\"{}\"", at(&format!("run{number}")))));
        run(&["train", "home.toml", "train.steps=1"], &[]).expect_success();
        let adapter = at(&format!("run{number}"));
        let inspected = run(&["adapter", "inspect", &adapter, "--base", &at("base")], &[]).expect_success();
        assert!(inspected.stdout.contains("sites"), "{}", inspected.stdout);
        let over = format!("output.dir={}", at(&format!("over{number}")));
        let rows = format!("data.0.train={}", at("rows.parquet"));
        run(&["train", "recipe.toml", "train.steps=1", &over, &rows], &[]).expect_success();
        let out = format!("--out={}", at(&format!("made{number}")));
        run(&["base", "init", "--shape", "janus-tiny", &out], &[]).expect_success();
        run(&["report", &at(&format!("over{number}"))], &[]).expect_success();
        let cache = at(&format!("cache{number}"));
        run(&["base", "inspect", "init:janus-tiny?seed=7", "--json"], &[("JANUS_CACHE", &cache)]).expect_success();
        for made in ["run", "over", "made", "cache"] {
            assert!(place.path(&format!("home/{made}{number}")).is_dir(), "{start}: {made}");
        }
    }
    let is_stray = |part: &std::ffi::OsStr| part.to_string_lossy().starts_with(['~', '$']);
    assert!(!tree(place.folder()).into_keys().any(|path| path.iter().any(is_stray)));
}

#[test]
fn a_home_that_is_not_known_is_refused_by_name() {
    let place = place_with_adapter();
    for arguments in [
        &["base", "init", "--shape", "janus-tiny", "--out=~bob/made"][..],
        &["train", "recipe.toml", "output.dir=~bob/run"],
        &["train", "recipe.toml", "data.0.train=~bob/rows.parquet"],
        &["train", "recipe.toml", "base.path=~bob/base"],
        &["train", "~bob/recipe.toml"],
        &["understand", "--base", "base", "--adapter", "~bob/run:0.5", "What?"],
        &["understand", "--base", "~bob/base", "What?"],
        &["understand", "--base", "base", "--image", "~bob/picture.png", "What?"],
        &["data", "stats", "~bob/rows.parquet", "--base", "base"],
    ] {
        place.refuses(arguments, &["`~bob` is no path here", "./~bob`"]);
    }
    place.refuses(&["train", "recipe.toml", "output.dir=$WORK/run"], &["`$WORK` is no path here"]);
    for (variable, value) in [("JANUS_CACHE", "~bob/cache"), ("HF_HOME", "~bob/hub"), ("HF_HUB_CACHE", "$WORK/hub")] {
        let base = if variable == "JANUS_CACHE" { "init:janus-tiny" } else { "owner/name" };
        let done = janus_with(place.folder(), &["base", "inspect", base], &[(variable, value)]);
        janus_tests::program::refused(&done, &[variable, "is no path here", "hint: "]);
    }
    assert!(!tree(place.folder()).into_keys().any(|path| path.starts_with("~bob") || path.starts_with("$WORK")));
}

#[test]
fn an_adapter_that_does_nothing_is_a_warning() {
    let place = place_with_adapter();
    let commands: [&[&str]; 4] = [
        &["understand", "--base", "base", "--adapter", "run", "--max-new-tokens", "2", "What?"],
        &["generate", "--base", "base", "--adapter", "run", "A part", "--out", "drawn.png"],
        &["eval", "recipe.toml", "data.0.eval=rows.parquet", "--adapter", "run"],
        &["adapter", "inspect", "run", "--base", "base"],
    ];
    for command in commands {
        let told = place.janus(command).expect_success().stderr;
        assert!(!told.contains("does nothing"), "{told}");
    }
    let mut tensors = candle_core::safetensors::load(place.path(WEIGHTS), &Device::Cpu).unwrap();
    tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")).for_each(|(_, b)| *b = zeros(b.dims()));
    place.write(WEIGHTS, safetensors::serialize(tensors, None).unwrap());
    for command in commands {
        let told = place.janus(command).expect_success().stderr;
        assert!(told.contains("warning: `run` does nothing to the base: every product B·A is zero"), "{told}");
    }
    let merge = ["merge", "--base", "base", "--adapter", "run", "--out", "merged"];
    place.refuses(&merge, &["changes nothing"]);
    let told = answer(&place_with_adapter(), "run:0").expect_success().stderr;
    assert!(told.contains("warning: `run` does nothing to the base: its factor is 0"), "{told}");
}

#[test]
fn patterns_that_match_nothing_are_a_warning() {
    let place = place_with_adapter();
    place.edit_json("run/adapter_config.json", |config| {
        config["rank_pattern"] = json!({ "c_attn": 4 });
        config["alpha_pattern"] = json!({ "layers.99.*": 3, "q_proj": 4 });
        config["target_modules"].as_array_mut().unwrap().push(json!("query_key_value"));
    });
    place.edit_json("run/adapter_config.json", |config| {
        config["exclude_modules"] = json!(["embed_tokens"]);
        config["layers_to_transform"] = json!([0, 1]);
        config["layers_pattern"] = json!(["h", "layers"]);
        config["fan_in_fan_out"] = json!(true);
    });
    let told = answer(&place, "run").expect_success().stderr;
    for entry in [
        "`c_attn` in `rank_pattern`",
        "`layers.99.*` in `alpha_pattern`",
        "`query_key_value` in `target_modules`",
        "`embed_tokens` in `exclude_modules`",
        "`h` in `layers_pattern`",
        "`fan_in_fan_out` in `adapter_config.json` is passed over",
    ] {
        assert!(told.contains(&format!("warning: `run`: {entry}")), "{told}");
    }
    assert!(!told.contains("`layers`"), "{told}");
}

#[test]
fn what_is_no_folder_leads_to_one() {
    let place = place_with_adapter();
    place.write("lora.zip", "PK");
    for (adapter, said) in [
        ("https://huggingface.co/owner/name", "`--adapter owner/name`"),
        ("hf://owner/name:0.5", "`--adapter owner/name:0.5`"),
        ("s3://bucket/adapter", "download the folder"),
        ("run/adapter_model.safetensors", "`--adapter run`"),
        ("lora.zip:0.5", "unpack it"),
    ] {
        for command in [
            &["understand", "--base", "base", "--adapter", adapter, "What?"][..],
            &["merge", "--base", "base", "--adapter", adapter, "--out", "merged"],
            &["eval", "recipe.toml", "data.0.eval=rows.parquet", "--adapter", adapter],
        ] {
            place.refuses(command, &["an adapter is a folder or a hub id", said]);
        }
    }
}

#[test]
fn an_adapter_one_level_too_high() {
    let place = place_with_adapter();
    let expected = answer(&place, "run").expect_success().stdout;
    also_as(&place, "saved/style");
    let done = answer(&place, "saved").expect_success();
    assert_eq!(done.stdout, expected);
    assert!(done.stderr.contains("the adapter in `saved` is `saved/style`"), "{}", done.stderr);
    also_as(&place, "saved/product");
    let several = ["understand", "--base", "base", "--adapter", "saved", "What?"];
    place.refuses(&several, &["holds 2: `product`, `style`", "`saved/style`"]);
    for step in ["step-9", "step-10"] {
        also_as(&place, &format!("going/checkpoints/{step}"));
    }
    let unfinished = ["understand", "--base", "base", "--adapter", "going:0.5", "What?"];
    place.refuses(&unfinished, &["no adapter yet", "`going/checkpoints/step-10`"]);
    assert_eq!(answer(&place, "going/checkpoints/step-9").expect_success().stdout, expected);
    place.refuses(&["merge", "--base", "base", "--adapter", "base", "--out", "m"], &["adapter_config.json"]);
}

#[test]
fn an_adapter_on_a_hub() {
    let place = place_with_adapter();
    let expected = answer(&place, "run").expect_success().stdout;
    let files: BTreeMap<String, Vec<u8>> = ["adapter_config.json", "adapter_model.safetensors", "janus_adapter.json"]
        .map(|name| (name.to_owned(), place.read(&format!("run/{name}"))))
        .into();
    let hub = Hub::start(files.clone(), Manners::default());
    let run = |endpoint: &str, offline: &str, adapter: &str| {
        let more = ["--image", "picture.png", "--max-new-tokens", "3", "--json", "What?"];
        let arguments = [&["understand", "--base", "base", "--adapter", adapter][..], &more[..]].concat();
        let hub_home = place.path("hub");
        let environment =
            [("HF_ENDPOINT", endpoint), ("HF_HUB_OFFLINE", offline), ("HF_HOME", hub_home.to_str().unwrap())];
        janus_with(place.folder(), &arguments, &environment)
    };
    assert_eq!(run(&hub.endpoint(), "0", "owner/name").expect_success().stdout, expected);
    assert_eq!(run(&hub.endpoint(), "1", "owner/name@main:1").expect_success().stdout, expected, "out of the cache");
    for (missing, said) in [("adapter_config.json", "`--base`"), ("adapter_model.safetensors", "safetensors")] {
        let mut files = files.clone();
        files.remove(missing);
        let other = Hub::start(files, Manners::default());
        fs_err::remove_dir_all(place.path("hub")).unwrap();
        let done = run(&other.endpoint(), "0", "owner/name");
        janus_tests::program::refused(&done, &["holds no adapter", missing, "hint: ", said]);
        run(&hub.endpoint(), "0", "owner/name").expect_success();
    }
    // Fetched with PEFT, which knows nothing of what lies beside its own files.
    place
        .janus(&["train", "recipe.toml", "output.dir=run-dynamic", "dynamic.enabled=true", "train.steps=1"])
        .expect_success();
    let names = ["adapter_config.json", "adapter_model.safetensors", "janus_adapter.json", "janus_extras.safetensors"];
    let mut files: BTreeMap<String, Vec<u8>> =
        names.map(|name| (name.to_owned(), place.read(&format!("run-dynamic/{name}")))).into();
    let whole = Hub::start(files.clone(), Manners::default());
    for left_out in ["janus_adapter.json", "janus_extras.safetensors"] {
        files.remove(left_out);
    }
    let pairs_alone = Hub::start(files, Manners::default());
    fs_err::remove_dir_all(place.path("hub")).unwrap();
    for offline in ["0", "1"] {
        let refused = run(&pairs_alone.endpoint(), offline, "owner/name");
        janus_tests::program::refused(
            &refused,
            &["`janus_extras.safetensors` is missing", "`dynamic.vision`", "hint: "],
        );
    }
    run(&whole.endpoint(), "0", "owner/name").expect_success();
    run(&whole.endpoint(), "1", "owner/name").expect_success();
    // A misspelt folder is asked of no hub.
    let misspelt = run("http://127.0.0.1:9", "0", "run/absent");
    janus_tests::program::refused(&misspelt, &["`run/absent` is not a folder"]);
}

#[test]
fn the_base_that_an_adapter_names_may_be_left_out() {
    let place = place_with_adapter();
    let expected = answer(&place, "run").expect_success().stdout;
    let question = ["--image", "picture.png", "--max-new-tokens", "3", "--json", "What?"];
    let understand = |adapters: &[&'static str]| {
        let given = adapters.iter().flat_map(|adapter| ["--adapter", *adapter]);
        ["understand"].into_iter().chain(given).chain(question).collect::<Vec<_>>()
    };
    // It was trained in another place, on a base that is gone.
    place.refuses(&understand(&["run"]), &["no base is given", "is not here", "`--base`"]);
    place.refuses(&understand(&[]), &["no base is given", "`--base`"]);
    place.refuses(&understand(&["absent"]), &["`absent` is not a folder"]);
    let named =
        |name: &'static str| place.edit_json("run/janus_adapter.json", |note| note["base"]["name"] = json!(name));
    named("base");
    let done = place.janus(&understand(&["run"])).expect_success();
    assert_eq!(done.stdout, expected);
    assert!(done.stderr.contains("base `base`, as `run` names it"), "{}", done.stderr);
    place.janus(&["adapter", "inspect", "run"]).expect_success();
    place.janus(&["merge", "--adapter", "run", "--out", "merged"]).expect_success();
    place.janus(&["generate", "--adapter", "run", "A part", "--out", "drawn.png"]).expect_success();
    // Named by PEFT's file alone.
    let note = place.read("run/janus_adapter.json");
    fs_err::remove_file(place.path("run/janus_adapter.json")).unwrap();
    place.edit_json("run/adapter_config.json", |config| config["base_model_name_or_path"] = json!("base"));
    assert_eq!(place.janus(&understand(&["run"])).expect_success().stdout, expected);
    place.edit_json("run/adapter_config.json", |config| config["base_model_name_or_path"] = json!(null));
    place.refuses(&understand(&["run"]), &["no adapter names one"]);
    place.edit_json("run/adapter_config.json", |config| config["base_model_name_or_path"] = json!("owner/name"));
    place.refuses(&understand(&["run"]), &["`owner/name`", "`janus base fetch owner/name`"]);
    // Whole in the Hugging Face cache, it is taken from there; the fingerprint is checked as ever.
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let cached = "hub/hub/models--owner--name";
    plant(&tree(&place.path("base")), &place.path(&format!("{cached}/snapshots/{commit}")));
    fs_err::create_dir_all(place.path(&format!("{cached}/refs"))).unwrap();
    place.write(&format!("{cached}/refs/main"), commit);
    let home = place.path("hub");
    let done = janus_with(place.folder(), &understand(&["run"]), &[("HF_HOME", home.to_str().unwrap())]);
    assert_eq!(done.expect_success().stdout, expected);
    place.write("run/janus_adapter.json", note);
    named("init:janus-tiny?seed=9");
    place.refuses(&understand(&["run"]), &["fingerprint"]);
}

#[test]
fn a_shipped_adapter_needs_no_base_to_be_named() {
    let place = Workplace::empty();
    let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../adapters/inspection");
    let done = place.janus(&["adapter", "inspect", shipped.to_str().unwrap(), "--json"]).expect_success();
    assert!(done.stderr.contains("base `janus-nano`"), "{}", done.stderr);
}

#[test]
fn a_home_that_cannot_be_written_to() {
    let place = place();
    place.write("home", "a file");
    place.write("rows.toml", RECIPE.replace("rows.parquet", "synth:inspection?rows=8"));
    let home = place.path("home");
    let home = home.to_str().unwrap();
    for (arguments, environment) in [
        (&["base", "inspect", "janus-nano"][..], [("JANUS_CACHE", ""), ("HOME", home), ("XDG_CACHE_HOME", "")]),
        (&["base", "inspect", "init:janus-tiny"], [("JANUS_CACHE", home), ("HOME", home), ("XDG_CACHE_HOME", "")]),
        (&["data", "check", "rows.toml"], [("JANUS_CACHE", ""), ("HOME", home), ("XDG_CACHE_HOME", home)]),
    ] {
        let done = janus_with(place.folder(), arguments, &environment);
        assert_eq!(done.code, Some(2), "{}{}", done.stdout, done.stderr);
        assert!(done.stderr.contains("the cache folder `"), "{}", done.stderr);
        assert!(done.stderr.contains(home) && done.stderr.contains("hint: set `JANUS_CACHE`"), "{}", done.stderr);
    }
}
