//! What a base is called, which of a repository's files it needs, what the environment says.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::server::{COMMIT, Hub};
use super::*;
use crate::error::{Diagnose, Fault};

#[test]
fn an_existing_folder_is_itself_even_if_named_like_an_id() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("owner/name");
    std::fs::create_dir_all(&base).unwrap();
    assert_eq!(resolve_base(base.to_str().unwrap(), &Silent).unwrap(), base);
    let file = base.join("config.json");
    std::fs::write(&file, "{}").unwrap();
    assert!(matches!(resolve_base(file.to_str().unwrap(), &Silent), Err(HubError::NotAFolder { .. })));
}

#[test]
fn what_is_no_folder_and_no_id_is_told_apart() {
    for path in ["./no-such", "../no/such", "/no/such/folder", "~/no-such", "a/b/c", "owner/", "C:\\x", "..."] {
        let error = resolve_base(path, &Silent).unwrap_err();
        assert!(matches!(error, HubError::NoSuchFolder { .. }), "{path}: {error:?}");
    }
    for neither in ["janus", "owner/na me", "owner/name@", "", "owner/name@v 1", "own--er/name"] {
        let error = resolve_base(neither, &Silent).unwrap_err();
        assert!(matches!(error, HubError::NotABase { .. }), "{neither}: {error:?}");
        assert!(error.to_string().contains("existing folder") && error.to_string().contains("owner/name"));
        assert_eq!(error.fault(), Fault::Input);
    }
}

#[test]
fn an_id_is_fetched() {
    let hub = simple_hub(b"some weights");
    let cache = tempfile::tempdir().unwrap();
    let folder = resolve_base_with("owner/name", &options(&hub, cache.path()), &Silent).unwrap();
    assert!(folder.ends_with(COMMIT) && folder.join("config.json").is_file());
}

#[test]
fn ids_follow_the_rules_of_the_hub() {
    for (spec, repository, revision) in [
        ("deepseek-ai/Janus-Pro-1B", "deepseek-ai/Janus-Pro-1B", "main"),
        ("a/b@v1.0", "a/b", "v1.0"),
        ("a_/b.c@refs/pr/12", "a_/b.c", "refs/pr/12"),
    ] {
        let id: RepoId = spec.parse().unwrap();
        assert_eq!((id.repository(), id.revision()), (repository, revision));
        assert_eq!(id.to_string(), spec);
    }
    let long = format!("a/{}", "b".repeat(95));
    for spec in [
        "a",
        "/a",
        "a/",
        "a/b/c",
        "../b",
        "a/..",
        "a/.b",
        "a/b-",
        "a/b--c",
        "a/b..c",
        "a/b.git",
        "ä/b",
        "a/b@",
        "a/b@/x",
        "a/b@x/../y",
        "a/b@.x",
        "a/b@x y",
        "a\\b/c",
        "a/b:c",
        &long,
    ] {
        assert!(matches!(spec.parse::<RepoId>(), Err(HubError::Id { .. })), "{spec}");
    }
}

/// Names in the snapshot after a download of a hub with `files`.
fn chosen(files: &[(&str, &[u8])]) -> Result<Vec<String>, HubError> {
    let hub = Hub::start(files);
    let cache = tempfile::tempdir().unwrap();
    fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).map(|folder| tree(&folder))
}

const INDEX: &[u8] = br#"{"metadata": {"total_size": 4}, "weight_map": {
    "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}"#;

#[test]
fn every_shard_of_the_index_is_taken_and_nothing_else() {
    let names = chosen(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", INDEX),
        ("model-00001-of-00002.safetensors", b"one"),
        ("model-00002-of-00002.safetensors", b"two"),
        ("model-00009-of-00009.safetensors", b"left over from another run"),
        ("pytorch_model.bin.index.json", b"{}"),
        ("pytorch_model-00001-of-00001.bin", b"pickle"),
    ])
    .unwrap();
    assert_eq!(
        names,
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json"
        ]
    );
}

#[test]
fn safetensors_come_before_pickles_and_the_rest_stays() {
    let names = chosen(&[
        (".gitattributes", b"x"),
        ("README.md", b"x"),
        ("chat_template.jinja", b"x"),
        ("config.json", b"{}"),
        ("generation_config.json", b"{}"),
        ("images/teaser.png", b"x"),
        ("janus_pro_teaser1.png", b"x"),
        ("model.safetensors", b"weights"),
        ("onnx/config.json", b"{}"),
        ("onnx/model.onnx", b"x"),
        ("preprocessor_config.json", b"{}"),
        ("processor_config.json", b"{}"),
        ("pytorch_model.bin", b"pickle"),
        ("special_tokens_map.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.model", b"x"),
        ("tokenizer_config.json", b"{}"),
    ])
    .unwrap();
    assert_eq!(
        names,
        [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "processor_config.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json"
        ]
    );
    let names = chosen(&[("config.json", b"{}"), ("pytorch_model.bin", b"pickle")]).unwrap();
    assert_eq!(names, ["config.json", "pytorch_model.bin"]);
}

#[test]
fn a_repository_without_config_or_weights_is_refused() {
    match chosen(&[("model.safetensors", b"weights")]).unwrap_err() {
        HubError::MissingFile { file, .. } => assert_eq!(file, "config.json"),
        other => panic!("{other:?}"),
    }
    let error = chosen(&[("config.json", b"{}"), ("model.gguf", b"weights")]).unwrap_err();
    assert!(matches!(error, HubError::NoWeights { .. }), "{error:?}");
    let error = chosen(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", INDEX),
        ("model-00001-of-00002.safetensors", b"one"),
    ])
    .unwrap_err();
    match error {
        HubError::MissingFile { file, .. } => assert_eq!(file, "model-00002-of-00002.safetensors"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hostile_index_is_refused() {
    for index in [
        &br#"{"weight_map": {"a": "../x.safetensors"}}"#[..],
        br#"{"weight_map": {"a": "/x.safetensors"}}"#,
        br#"{"weight_map": {"a": 1}}"#,
        br#"{"weight_map": {}}"#,
        br#"{"weight_map": []}"#,
        b"[[[",
    ] {
        let error = chosen(&[("config.json", b"{}"), ("model.safetensors.index.json", index)]).unwrap_err();
        assert!(matches!(error, HubError::Index { .. }), "{error:?}");
    }
}

fn from_variables(variables: &[(&str, &str)]) -> Result<HubOptions, HubError> {
    let variables: BTreeMap<_, _> = variables.iter().copied().collect();
    HubOptions::from_lookup(|name| variables.get(name).map(OsString::from))
}

#[test]
fn the_environment_has_the_meaning_it_has_for_python() {
    let options = from_variables(&[("HOME", "/home/me")]).unwrap();
    assert_eq!(options.endpoint, "https://huggingface.co");
    assert_eq!(options.cache_dir, Path::new("/home/me/.cache/huggingface/hub"));
    assert!(!options.offline);
    assert_eq!(options.token, None);

    let cache_of = |variables: &[(&str, &str)]| from_variables(variables).unwrap().cache_dir;
    assert_eq!(cache_of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), Path::new("/c/huggingface/hub"));
    assert_eq!(cache_of(&[("HOME", "/h"), ("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/c")]), Path::new("/h/hf/hub"));
    assert_eq!(cache_of(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/models")]), Path::new("/models"));
    assert_eq!(cache_of(&[("HF_HOME", ""), ("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
    assert!(matches!(from_variables(&[]), Err(HubError::NoCacheFolder)));

    let options = from_variables(&[("HF_HOME", "/hf"), ("HF_ENDPOINT", "https://mirror.test/hf")]).unwrap();
    assert_eq!(options.endpoint, "https://mirror.test/hf");
    for (value, offline) in
        [("1", true), ("true", true), ("YES", true), ("On", true), ("0", false), ("no", false), ("", false)]
    {
        assert_eq!(from_variables(&[("HF_HOME", "/hf"), ("HF_HUB_OFFLINE", value)]).unwrap().offline, offline);
    }
    match from_variables(&[("HF_HOME", "/hf"), ("HF_HUB_OFFLINE", "maybe")]).unwrap_err() {
        HubError::Setting { variable: "HF_HUB_OFFLINE", value, .. } => assert_eq!(value, "maybe"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn folders_of_the_environment_begin_at_home_by_any_name() {
    let cache_of = |variables: &[(&str, &str)]| from_variables(variables).unwrap().cache_dir;
    for home in ["~", "$HOME", "${HOME}"] {
        let below = |name: &str| format!("{home}/{name}");
        assert_eq!(cache_of(&[("HOME", "/h"), ("HF_HOME", &below("hf"))]), Path::new("/h/hf/hub"));
        assert_eq!(cache_of(&[("HOME", "/h"), ("HF_HUB_CACHE", &below("m"))]), Path::new("/h/m"));
        assert_eq!(cache_of(&[("HOME", "/h"), ("XDG_CACHE_HOME", &below("c"))]), Path::new("/h/c/huggingface/hub"));
        assert_eq!(cache_of(&[("USERPROFILE", "/u"), ("HF_HOME", &below("hf"))]), Path::new("/u/hf/hub"));
        // Without a home folder there is none, least of all one that is called so.
        let error = from_variables(&[("HF_HOME", &below("hf"))]).unwrap_err();
        assert!(matches!(error, HubError::Folder { variable: "HF_HOME", .. }), "{error:?}");
    }
    for (variable, value) in [("HF_HOME", "~bob/hf"), ("HF_HUB_CACHE", "$WORK/hf"), ("HF_TOKEN_PATH", "~bob/token")] {
        let error = from_variables(&[("HOME", "/h"), (variable, value)]).unwrap_err();
        assert!(error.to_string().contains(variable) && error.fault() == Fault::Input, "{error:?}");
        assert!(error.hints()[0].contains("`./"), "{:?}", error.hints());
    }
    let token = tempfile::tempdir().unwrap();
    std::fs::write(token.path().join("t"), "hf_at_home").unwrap();
    let home = ("HOME", token.path().to_str().unwrap());
    let options = from_variables(&[home, ("HF_HOME", "/hf"), ("HF_TOKEN_PATH", "$HOME/t")]).unwrap();
    assert_eq!(options.token.as_deref(), Some("hf_at_home"));
}

#[test]
fn named_files_of_a_repository_are_fetched_and_no_others() {
    let hub = simple_hub(b"some weights");
    let cache = tempfile::tempdir().unwrap();
    let id: RepoId = "owner/name".parse().unwrap();
    let named = NamedFiles { needed: &["config.json"], wanted: &["absent.json"] };
    let mut options = options(&hub, cache.path());
    let folder = named.fetch(&id, &options, &Silent).unwrap();
    let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["config.json"]);
    let missing = NamedFiles { needed: &["config.json", "absent.json"], wanted: &[] };
    let error = missing.fetch(&id, &options, &Silent).unwrap_err();
    assert!(matches!(error, HubError::MissingFile { ref file, .. } if file == "absent.json"), "{error:?}");
    // What is there is used without a network, and it is no whole base.
    options.offline = true;
    assert_eq!(named.fetch(&id, &options, &Silent).unwrap(), folder);
    assert!(matches!(missing.fetch(&id, &options, &Silent), Err(HubError::Offline { .. })));
    assert_eq!(cached_base("owner/name", &options).unwrap(), None);
    options.offline = false;
    let whole = resolve_base_with("owner/name", &options, &Silent).unwrap();
    assert_eq!(cached_base("owner/name", &options).unwrap(), Some(whole));
    assert_eq!(cached_base("owner/other", &options).unwrap(), None);
}

#[test]
fn the_token_is_that_of_the_variable_or_the_file() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().to_str().unwrap();
    assert_eq!(from_variables(&[("HF_HOME", folder)]).unwrap().token, None);
    std::fs::write(home.path().join("token"), "hf_of_the_file\n").unwrap();
    assert_eq!(from_variables(&[("HF_HOME", folder)]).unwrap().token.as_deref(), Some("hf_of_the_file"));
    let options = from_variables(&[("HF_HOME", folder), ("HF_TOKEN", " hf_of_the_variable ")]).unwrap();
    assert_eq!(options.token.as_deref(), Some("hf_of_the_variable"));
    let elsewhere = home.path().join("elsewhere");
    std::fs::write(&elsewhere, "hf_elsewhere").unwrap();
    let options = from_variables(&[("HF_HOME", folder), ("HF_TOKEN_PATH", elsewhere.to_str().unwrap())]).unwrap();
    assert_eq!(options.token.as_deref(), Some("hf_elsewhere"));
}
