use serde_json::{Map, Value, json};

use super::*;

fn base() -> JanusConfig {
    JanusConfig::shape("janus-tiny").unwrap()
}

/// `fields` over a minimal configuration.
fn selection(fields: Value) -> Result<Selection, AdapterError> {
    let mut json = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8});
    for (key, value) in fields.as_object().unwrap() {
        json[key] = value.clone();
    }
    select(&PeftConfig::from_json(&json.to_string())?, &base(), false)
}

fn paths(fields: Value) -> Vec<String> {
    selection(fields).unwrap().sites.into_iter().map(|s| s.site.path.to_string()).collect()
}

const DECODER: &str = "model.language_model.layers";
const TOWER: &str = "model.vision_model.encoder.layers";

#[test]
fn a_list_names_suffixes_of_whole_segments() {
    let both = paths(json!({"target_modules": ["q_proj"]}));
    let expected: Vec<String> =
        [TOWER, DECODER].iter().flat_map(|l| [0, 1].map(|i| format!("{l}.{i}.self_attn.q_proj"))).collect();
    assert_eq!(both, expected);
    assert_eq!(paths(json!({"target_modules": ["aligner.fc1"]})), ["model.aligner.fc1"], "not generation_aligner");
    assert_eq!(paths(json!({"target_modules": ["model.generation_aligner.fc1"]})), ["model.generation_aligner.fc1"]);
    let error = selection(json!({"target_modules": ["proj"]})).unwrap_err().to_string();
    assert_eq!(error, "`target_modules` = `proj` matches no module of the base");
}

#[test]
fn a_string_is_a_regular_expression_for_the_whole_path() {
    assert_eq!(paths(json!({"target_modules": r".*\.aligner\.(fc1|hidden_layers\.\d+)"})).len(), 2);
    assert!(selection(json!({"target_modules": "q_proj"})).is_err(), "no path is `q_proj`");
    assert!(selection(json!({"target_modules": r"(?!a).*"})).unwrap_err().to_string().contains("look-around"));
}

#[test]
fn all_linear_leaves_out_the_text_head_and_all_that_is_not_linear() {
    let linear = paths(json!({"target_modules": "All-Linear"}));
    // Seven in a decoder layer, six in a layer of the tower, two in either aligner and in the generation head.
    assert_eq!(linear.len(), 2 * 7 + 2 * 6 + 2 + 2 + 2);
    assert!(linear.iter().all(|path| path != "lm_head" && !path.contains("vqmodel")));
    let fewer = paths(json!({"target_modules": "all-linear", "exclude_modules": ["q_proj"]}));
    assert_eq!(fewer.len(), linear.len() - 4);
}

#[test]
fn exclusion_goes_by_list_or_expression() {
    let without = paths(json!({"target_modules": ["q_proj"], "exclude_modules": r".*vision_model.*"}));
    assert_eq!(without, [0, 1].map(|i| format!("{DECODER}.{i}.self_attn.q_proj")));
    let without = paths(json!({"target_modules": ["fc1"], "exclude_modules": ["mlp.fc1", "model.aligner.fc1"]}));
    assert_eq!(without, ["model.generation_aligner.fc1"]);
    assert!(selection(json!({"target_modules": ["q_proj"], "exclude_modules": ".*"})).is_err());
}

#[test]
fn layers_are_told_by_their_number() {
    let one =
        paths(json!({"target_modules": ["up_proj", "fc2"], "layers_to_transform": [1], "layers_pattern": "layers"}));
    assert_eq!(one, [format!("{TOWER}.1.mlp.fc2"), format!("{DECODER}.1.mlp.up_proj")]);
    assert_eq!(one, paths(json!({"target_modules": ["up_proj", "fc2"], "layers_to_transform": 1})));
    let other = json!({"target_modules": ["up_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "layers"]});
    assert_eq!(paths(other), [format!("{DECODER}.0.mlp.up_proj")]);
    assert_eq!(paths(json!({"target_modules": ["up_proj"], "layers_to_transform": []})).len(), 2);
    // `hidden_layers.0` is a numbered segment too; a path with nothing behind its number has no layer.
    let nested = json!({"target_modules": ["hidden_layers.0"], "layers_to_transform": [0]});
    assert!(selection(nested).is_err());
    let exact = format!("{DECODER}.0.mlp.up_proj");
    let both = paths(json!({"target_modules": [exact, "down_proj"], "layers_to_transform": [1]}));
    assert_eq!(both, [exact.clone(), format!("{DECODER}.1.mlp.down_proj")], "a whole path is exempt");
    let numbers = json!({"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": ["h|layers"]});
    assert!(
        selection(numbers).is_err(),
        "the bar splits the whole expression: nothing is left of it that begins a path"
    );
}

#[test]
fn the_first_pattern_that_matches_gives_rank_and_alpha() {
    let all = selection(json!({
        "target_modules": ["q_proj", "down_proj"],
        "exclude_modules": ".*vision_model.*",
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 6, r"layers\.\d+\.mlp\.down_proj": 5},
        "alpha_pattern": {"^model.*down_proj": 3, "proj": 7},
    }));
    let found: Vec<_> = all.unwrap().sites.into_iter().map(|s| (s.site.path.to_string(), s.rank, s.alpha)).collect();
    let path = |layer, end: &str| format!("{DECODER}.{layer}.{end}");
    // `proj` is no whole segment, so it gives nothing; `^` stands at the start of the path.
    let expected = [
        (path(0, "self_attn.q_proj"), 2, 8.0),
        (path(0, "mlp.down_proj"), 5, 3.0),
        (path(1, "self_attn.q_proj"), 6, 8.0),
        (path(1, "mlp.down_proj"), 5, 3.0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn saved_modules_match_anywhere_at_the_end_of_a_path() {
    let saved = |fields| -> Vec<String> { selection(fields).unwrap().saved.into_iter().map(|t| t.name).collect() };
    let head = saved(json!({"target_modules": ["q_proj"], "modules_to_save": ["generation_head"]}));
    assert_eq!(head.len(), 4);
    let heads = saved(json!({"target_modules": ["q_proj"], "modules_to_save": ["head"]}));
    assert_eq!(heads.len(), 5, "vision_head and lm_head, too: {heads:?}");
    let norms = saved(json!({"target_modules": ["q_proj"], "modules_to_save": ["post_layernorm"]}));
    assert_eq!(norms, ["weight", "bias"].map(|end| format!("model.vision_model.post_layernorm.{end}")));
    assert!(saved(json!({"target_modules": ["q_proj"], "modules_to_save": ["classifier"]})).is_empty());
}

#[test]
fn targets_stay_out_of_saved_modules() {
    let outside = paths(json!({"target_modules": ["fc1", "hidden_layers.0"], "modules_to_save": ["model.aligner"]}));
    assert!(outside.iter().all(|path| !path.starts_with("model.aligner.")) && outside.len() == 4, "{outside:?}");
    let torn = selection(json!({"target_modules": ["aligner.fc1"], "modules_to_save": ["ligner"]}));
    assert!(matches!(torn, Err(AdapterError::TargetedAndSaved { .. })), "`ligner` saves, but keeps no target out");
    let all = selection(json!({"target_modules": ["aligner.fc1"], "modules_to_save": ["model.aligner"]}));
    assert!(matches!(all, Err(AdapterError::NothingTargeted { .. })));
    let alone = selection(json!({"target_modules": "dummy-target-modules", "modules_to_save": ["lm_head"]})).unwrap();
    assert_eq!((alone.sites.len(), alone.saved.len()), (0, 1));
    let nothing = selection(json!({"target_modules": "dummy-target-modules"})).unwrap();
    assert_eq!((nothing.sites.len(), nothing.saved.len()), (0, 0));
}

#[test]
fn what_is_no_site_is_refused_by_name() {
    for (target, path) in [
        ("position_embedding", "model.vision_model.embeddings.position_embedding"),
        ("quantize.embedding", "model.vqmodel.quantize.embedding"),
        ("self_attn", "model.vision_model.encoder.layers.0.self_attn"),
        ("input_layernorm", "model.language_model.layers.0.input_layernorm"),
    ] {
        let error = selection(json!({"target_modules": [target]})).unwrap_err();
        assert!(matches!(&error, AdapterError::NotASite { path: p } if p == path), "{error}");
    }
}

#[test]
fn every_kind_of_site_can_be_a_target() {
    let found = selection(json!({"target_modules": ["embed_tokens", "lm_head", "patch_embedding", "downsample.conv"]}));
    let kinds: Vec<_> = found.unwrap().sites.into_iter().map(|s| s.site.kind).collect();
    assert!(kinds.contains(&SiteKind::Embedding) && kinds.contains(&SiteKind::Linear));
    assert!(kinds.contains(&SiteKind::Conv2d { kernel: 8, stride: 8, padding: 0 }));
    assert!(kinds.contains(&SiteKind::Conv2d { kernel: 3, stride: 2, padding: 0 }));
}

#[test]
fn entries_that_match_nothing_are_remarked_on() {
    let remarks = |fields: Value| selection(fields).unwrap().remarks;
    let all = remarks(json!({
        "target_modules": ["q_proj", "c_attn", "language_model.layers.9.mlp.up_proj"],
        "exclude_modules": ["nothing"],
        "rank_pattern": {"q_proj": 2, "v_proj": 3, "layers.0.mlp": 4},
        "alpha_pattern": {"^model.*q_proj": 3, "Q_proj": 7},
        "modules_to_save": ["generation_head", "classifier"],
    }));
    let of = |entries: &str, field: &str, what: &str| {
        format!("{entries} in `{field}` of `adapter_config.json` matches no {what}")
    };
    let expected = [
        of("`c_attn`, `language_model.layers.9.mlp.up_proj`", "target_modules", "module of the base"),
        of("`nothing`", "exclude_modules", "target"),
        of("`v_proj`, `layers.0.mlp`", "rank_pattern", "target"),
        of("`Q_proj`", "alpha_pattern", "target"),
        of("`classifier`", "modules_to_save", "module of the base"),
    ];
    assert_eq!(all, expected);
    let layers = remarks(json!({"target_modules": ["up_proj"], "layers_to_transform": [1, 7, 30]}));
    assert_eq!(layers, [of("`7`, `30`", "layers_to_transform", "target")]);
    for (fields, expected) in [
        // One entry takes away, the other is no target in the first place; a whole field takes nothing away.
        (json!({"exclude_modules": ["layers.0.mlp.up_proj", "down_proj"]}), vec![("`down_proj`", "exclude_modules")]),
        (json!({"exclude_modules": r".*\.vision\..*"}), vec![(r"`.*\.vision\..*`", "exclude_modules")]),
        (json!({"exclude_modules": r".*layers\.0\.mlp\.up_proj"}), vec![]),
        (
            json!({"layers_to_transform": [1], "layers_pattern": ["h", "layers", "blocks"]}),
            vec![("`h`, `blocks`", "layers_pattern")],
        ),
        (json!({"layers_to_transform": [1], "layers_pattern": "layers"}), vec![]),
    ] {
        let mut all = json!({"target_modules": ["up_proj"]});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let expected: Vec<String> = expected.into_iter().map(|(e, field)| of(e, field, "target")).collect();
        assert_eq!(remarks(all), expected, "{fields}");
    }
    let many: Map<String, Value> = (0..20).map(|i| (format!("absent{i}"), json!(1))).collect();
    let cut = remarks(json!({"target_modules": "all-linear", "rank_pattern": many}));
    assert!(cut[0].contains("`absent7` and 12 more in `rank_pattern`"), "{cut:?}");
    assert_eq!(remarks(json!({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}})), [""; 0]);
}

#[test]
fn where_nothing_is_left_the_fields_that_took_it_are_named() {
    for (fields, said) in [
        (json!({"exclude_modules": ".*"}), "is left by `exclude_modules` = `.*` in `adapter_config.json`"),
        (json!({"layers_to_transform": [9]}), "is left by `layers_to_transform` = `9` in"),
        (
            json!({"layers_to_transform": [0, 1], "layers_pattern": ["h"]}),
            "is left by `layers_to_transform` = `0, 1` and `layers_pattern` = `h` in",
        ),
    ] {
        let mut all = json!({"target_modules": ["up_proj"]});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let error = selection(all).unwrap_err().to_string();
        assert!(
            error.starts_with("nothing of `target_modules` = `up_proj` is left") && error.contains(said),
            "{error}"
        );
    }
}

#[test]
fn weights_are_tied_where_they_are_not_or_refused() {
    let with = |targets: Value, tied| {
        let json = json!({"peft_type": "LORA", "target_modules": targets, "ensure_weight_tying": true});
        select(&PeftConfig::from_json(&json.to_string())?, &base(), tied)
    };
    for (targets, tied) in [(json!(["q_proj"]), false), (json!(["embed_tokens"]), false), (json!(["q_proj"]), true)] {
        let found = with(targets, tied).unwrap();
        assert!(found.remarks[0].contains("`ensure_weight_tying`"), "{:?}", found.remarks);
    }
    for targets in [json!(["embed_tokens"]), json!(["q_proj", "lm_head"]), json!(".*embed_tokens")] {
        let error = with(targets, true).unwrap_err().to_string();
        assert_eq!(error, "`ensure_weight_tying` = `true` in `adapter_config.json` is not supported");
    }
}
