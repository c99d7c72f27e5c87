use super::*;
use crate::adapter::init::Init;

/// `fields` over a minimal configuration.
fn config(fields: Value) -> Result<PeftConfig, AdapterError> {
    let mut json = json!({"peft_type": "LORA", "target_modules": ["q_proj"]});
    for (key, value) in fields.as_object().unwrap() {
        json[key] = value.clone();
    }
    PeftConfig::from_json(&json.to_string())
}

fn refusal(fields: Value) -> String {
    config(fields).unwrap_err().to_string()
}

#[test]
fn fields_are_read_and_absent_ones_are_pefts_defaults() {
    let read = config(json!({
        "r": 4, "lora_alpha": 6.5, "lora_dropout": 0.25, "exclude_modules": ".*vision.*", "layers_to_transform": [0, 2],
        "layers_pattern": "layers", "rank_pattern": {"b": 2, "a": 3}, "alpha_pattern": {"z": 1.5, "q_proj": -2},
        "modules_to_save": ["lm_head"], "base_model_name_or_path": "somewhere",
    }))
    .unwrap();
    assert_eq!((read.rank, read.alpha, read.dropout), (4, 6.5, 0.25));
    assert_eq!(read.targets, ModuleNames::Suffixes(vec!["q_proj".into()]));
    assert_eq!(read.excluded, ModuleNames::Expression(".*vision.*".into()));
    assert_eq!((read.layers, read.layers_patterns), (Some(vec![0, 2]), vec!["layers".to_string()]));
    assert_eq!(read.rank_patterns, [("b".to_string(), 2), ("a".to_string(), 3)], "in the file's order");
    assert_eq!(read.alpha_patterns, [("z".to_string(), 1.5), ("q_proj".to_string(), -2.0)]);
    assert_eq!((read.modules_to_save, read.base_name), (vec!["lm_head".to_string()], Some("somewhere".to_string())));

    let bare = config(json!({})).unwrap();
    assert_eq!((bare.rank, bare.alpha, bare.dropout), (8, 8.0, 0.0));
    assert_eq!((bare.excluded, bare.layers, bare.base_name), (ModuleNames::Nothing, None, None));
    assert_eq!(config(json!({"target_modules": "all-linear"})).unwrap().targets, ModuleNames::AllLinear);
}

#[test]
fn what_is_not_computed_is_refused_by_name_where_it_is_active_only() {
    let active_and_inactive = [
        ("bias", json!("all"), json!("none")),
        ("bias", json!("lora_only"), json!(null)),
        ("use_qalora", json!(true), json!(false)),
        ("alora_invocation_tokens", json!([3]), json!(null)),
        ("layer_replication", json!([[0, 4]]), json!([])),
        ("arrow_config", json!({"top_k": 3}), json!(null)),
        ("kasa_config", json!({"a": 1}), json!(null)),
        ("monteclora_config", json!({"a": 1}), json!(null)),
        ("trainable_token_indices", json!([1, 2]), json!(null)),
        ("target_parameters", json!(["experts"]), json!([])),
        ("use_bdlora", json!({"nblocks": 2}), json!(null)),
        ("peft_type", json!("OFT"), json!("LORA")),
        ("peft_type", json!("PREFIX_TUNING"), json!("LORA")),
        ("init_lora_weights", json!("pissa"), json!("gaussian")),
        ("init_lora_weights", json!("olora"), json!(true)),
        ("init_lora_weights", json!("loftq"), json!(false)),
        ("init_lora_weights", json!("lora_ga"), json!("eva")),
        ("init_lora_weights", json!("corda"), json!("mica")),
        ("init_lora_weights", json!("pissa_niter_16"), json!("orthogonal")),
        ("some_field_of_tomorrow", json!(1), json!("")),
        ("some_field_of_tomorrow", json!(0), json!(null)),
        ("some_field_of_tomorrow", json!({"on": false}), json!({})),
        ("some_field_of_tomorrow", json!("none"), json!([])),
        ("some_field_of_tomorrow", json!([null]), json!(false)),
    ];
    for (key, active, inactive) in active_and_inactive {
        let message = refusal(json!({key: active}));
        let expected = format!("`{key}` = `{}` in `adapter_config.json` is not supported", brief(&active));
        assert_eq!(message, expected);
        config(json!({key: inactive})).unwrap_or_else(|e| panic!("{key}: {e}"));
    }
    let both = refusal(json!({"use_bdlora": true, "use_qalora": true}));
    assert_eq!(both, "`use_bdlora` = `true`, `use_qalora` = `true` in `adapter_config.json` are not supported");
}

#[test]
fn fields_without_effect_may_hold_anything() {
    let read = config(json!({
        "auto_mapping": {"base_model_class": "X"}, "inference_mode": true, "task_type": "CAUSAL_LM", "revision": "main",
        "peft_version": "0.99", "qalora_group_size": 16, "megatron_core": "megatron.core",
        "runtime_config": {"ephemeral_gpu_offload": false}, "loftq_config": {}, "fan_in_fan_out": false,
        "init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99, "whiten": true},
    }))
    .unwrap();
    assert_eq!(read.passed_over, [""; 0]);
}

#[test]
fn how_an_adapter_began_is_trained_or_run_is_passed_over_by_name() {
    for (key, value) in [
        ("eva_config", json!({"rho": 2.0})),
        ("loftq_config", json!({"loftq_bits": 4, "loftq_iter": 1})),
        ("corda_config", json!({"corda_method": "kpm"})),
        ("lora_ga_config", json!({"direction": "ArB2r"})),
        ("velora_config", json!({"num_groups": 64, "scale": 1.0})),
        ("megatron_config", json!({"tensor_model_parallel_size": 2})),
        ("runtime_config", json!({"ephemeral_gpu_offload": true})),
        ("fan_in_fan_out", json!(true)),
    ] {
        let read = config(json!({key: value})).unwrap_or_else(|e| panic!("{key}: {e}"));
        let [remark] = read.passed_over.as_slice() else { panic!("{key}: {:?}", read.passed_over) };
        assert!(remark.starts_with(&format!("`{key}` in `adapter_config.json` is passed over")), "{remark}");
        assert_eq!(config(json!({key: null})).unwrap().passed_over, [""; 0]);
        // What is kept for those who know what to do with it.
        assert!(read.to_json().contains(key));
    }
    // The way of beginning is refused where it left a changed base behind, whatever stands beside it.
    for (init, key) in [("loftq", "loftq_config"), ("corda", "corda_config"), ("lora_ga", "lora_ga_config")] {
        let message = refusal(json!({"init_lora_weights": init, key: {"a": 1}}));
        assert_eq!(message, format!("`init_lora_weights` = `{init}` in `adapter_config.json` is not supported"));
    }
    assert!(config(json!({"ensure_weight_tying": true})).unwrap().ties_weights);
    assert!(!config(json!({"ensure_weight_tying": false})).unwrap().ties_weights);
}

#[test]
fn impossible_values_are_refused() {
    for (fields, part) in [
        (json!({"r": 0}), "`r` = `0` in `adapter_config.json`, expected a whole number from 1 to 1048576"),
        (json!({"r": -1}), "`r` = `-1`"),
        (json!({"r": 1.5}), "`r` = `1.5`"),
        (json!({"r": "8"}), "`r` = `8`"),
        (json!({"r": 18_446_744_073_709_551_615_u64}), "`r` = `18446744073709551615`"),
        (json!({"r": null}), "`r` = `null`"),
        (
            json!({"lora_alpha": 0}),
            "`lora_alpha` = `0` in `adapter_config.json`, expected a finite number other than 0",
        ),
        (json!({"lora_alpha": null}), "`lora_alpha` = `null`"),
        (json!({"lora_dropout": 1.0}), "`lora_dropout` = `1.0`"),
        (json!({"lora_dropout": -0.1}), "`lora_dropout` = `-0.1`"),
        (json!({"rank_pattern": {"q_proj": 0}}), "`rank_pattern.q_proj` = `0`"),
        (json!({"alpha_pattern": {"q_proj": "x"}}), "`alpha_pattern.q_proj` = `x`"),
        (json!({"rank_pattern": [1]}), "`rank_pattern` = `[1]`"),
        (json!({"target_modules": null}), "`target_modules` = `null`"),
        (json!({"target_modules": []}), "`target_modules` = `[]`"),
        (json!({"target_modules": ["a", 3]}), "`target_modules` = `3`"),
        (json!({"target_modules": 3}), "`target_modules` = `3`"),
        (json!({"modules_to_save": "lm_head"}), "`modules_to_save` = `lm_head`"),
        (json!({"modules_to_save": [""]}), "`modules_to_save` = ``"),
        (json!({"layers_to_transform": [-1]}), "`layers_to_transform` = `-1`"),
        (json!({"layers_to_transform": true}), "`layers_to_transform` = `true`"),
        (json!({"layers_pattern": "layers"}), "`layers_pattern` = `layers`"),
        (json!({"target_modules": ".*q", "layers_to_transform": [1]}), "`layers_to_transform` = `[1]`"),
        (json!({"peft_type": null}), "`peft_type` = `null` in `adapter_config.json`, expected `LORA`"),
    ] {
        let message = refusal(fields.clone());
        assert!(message.contains(part), "{fields}: {message}");
    }
}

#[test]
fn endless_patterns_are_refused() {
    let table: Map<String, Value> = (0..1025).map(|i| (format!("a{i}"), json!(1))).collect();
    assert!(refusal(json!({"rank_pattern": table})).contains("at most 1024 patterns"));
    let names: Vec<String> = (0..1025).map(|i| format!("a{i}")).collect();
    assert!(refusal(json!({"modules_to_save": names})).contains("at most 1024 names"));
}

#[test]
fn broken_json_is_refused() {
    let nested = "[".repeat(100_000);
    for text in ["", "{", "[]", "null", "{\"peft_type\": NaN}", nested.as_str()] {
        assert!(matches!(PeftConfig::from_json(text), Err(AdapterError::Json { .. })), "{text:.40}");
    }
    let long = refusal(json!({"use_qalora": "é".repeat(1000)}));
    assert!(long.len() < 500 && long.contains('…'));
}

#[test]
fn writing_keeps_what_was_read_and_sorts_the_keys() {
    let text = r#"{"use_dora": false, "r": 2, "peft_type": "LORA", "remark": "", "target_modules": ["b", "a"],
        "rank_pattern": {"z": 1, "a": 2}}"#;
    let read = PeftConfig::from_json(text).unwrap();
    let written = read.to_json();
    let keys = ["\"peft_type\"", "\"r\"", "\"rank_pattern\"", "\"remark\"", "\"target_modules\"", "\"use_dora\""];
    let places: Vec<_> = keys.iter().map(|key| written.find(key).unwrap()).collect();
    assert!(places.is_sorted(), "{written}");
    let again = PeftConfig::from_json(&written).unwrap();
    assert_eq!(again.rank_patterns, read.rank_patterns, "patterns keep their order, which counts");
    assert_eq!(again.to_json(), written);
}

/// PEFT refuses any other word beside a bias.
#[test]
fn pairs_with_a_bias_say_no_word_of_their_beginning() {
    let names = ["model.vision_model.encoder.layers.0.mlp.fc1".to_string()];
    let written = |bias| {
        PeftConfig::new(&NewConfig {
            method: &Method::Lora { bias },
            rank: 4,
            alpha: 4.0,
            rslora: false,
            dropout: 0.0,
            init: Init::Gaussian,
            targets: &names,
            ranks: &[],
            alphas: &[],
            modules_to_save: &[],
            base_name: None,
        })
        .unwrap()
        .to_json()
    };
    assert!(written(true).contains("\"init_lora_weights\": true"));
    assert!(written(false).contains("\"init_lora_weights\": \"gaussian\""));
}

#[test]
fn a_new_configuration_is_what_was_asked_for() {
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let (targets, saved) = (names(&["b", "a"]), names(&["lm_head"]));
    let make = |alpha, targets: &[String]| {
        let base_name = Some("base");
        PeftConfig::new(&NewConfig {
            method: &Method::Lora { bias: false },
            rank: 4,
            alpha,
            rslora: false,
            dropout: 0.1,
            init: Init::Kaiming,
            targets,
            ranks: &[],
            alphas: &[],
            modules_to_save: &saved,
            base_name,
        })
        .unwrap()
    };
    let config = make(16.0, &targets);
    assert_eq!((config.rank, config.alpha, config.dropout), (4, 16.0, 0.1));
    assert_eq!(config.targets, ModuleNames::Suffixes(names(&["a", "b"])));
    assert_eq!(config.modules_to_save, saved);
    assert!(config.to_json().contains("\"lora_alpha\": 16,"), "PEFT's alpha is an integer where it can be");
    assert!(make(0.8, &targets).to_json().contains("\"lora_alpha\": 0.8,"));
    assert_eq!(make(1.0, &[]).targets, ModuleNames::Nothing);
    assert_eq!(config.scaling(4, 16.0), 4.0);
}
