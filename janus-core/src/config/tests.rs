#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn parse(value: &Value) -> Result<JanusConfig, ConfigError> {
    JanusConfig::from_json(&value.to_string(), Path::new("config.json"))
}

/// The message of the error that `value` with `pointer` set to `new` gives.
fn refusal(value: &Value, pointer: &str, new: Value) -> String {
    let mut value = value.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = if parent.is_empty() { &mut value } else { value.pointer_mut(parent).unwrap() };
    parent[key] = new;
    parse(&value).unwrap_err().to_string()
}

#[test]
fn every_shape_survives_both_forms() {
    for name in JanusConfig::shape_names() {
        let shape = JanusConfig::shape(name).unwrap();
        shape.check(Path::new("config.json")).unwrap();
        for tie in [false, true] {
            let mut config = shape.clone();
            config.tie_word_embeddings = tie;
            assert_eq!(parse(&config.to_json(Layout::Native, DType::BF16)).unwrap(), config, "{name} native");
            // The original form has no place for the placeholder's id.
            config.layout = Layout::DeepSeek;
            config.image_token_id = None;
            assert_eq!(parse(&config.to_json(Layout::DeepSeek, DType::F32)).unwrap(), config, "{name} original");
        }
    }
    assert_eq!(JanusConfig::shape("janus"), None);
}

/// The `language_config` of Janus-Pro-7B names five keys; the rest is Llama's default.
#[test]
fn a_nearly_empty_language_config_gets_the_defaults_of_llama() {
    let mut value = JanusConfig::shape("janus-pro-7b").unwrap().to_json(Layout::DeepSeek, DType::BF16);
    value["language_config"] = json!({
        "max_position_embeddings": 16384, "model_type": "llama", "num_hidden_layers": 30,
        "torch_dtype": "bfloat16", "vocab_size": 102400,
    });
    let config = parse(&value).unwrap();
    let mut expected = JanusConfig::shape("janus-pro-7b").unwrap();
    expected.layout = Layout::DeepSeek;
    expected.image_token_id = None;
    expected.text.bos_token_id = None;
    expected.text.eos_token_id = None;
    expected.text.pad_token_id = None;
    assert_eq!(config, expected);
}

#[test]
fn a_published_original_file_needs_no_sizes() {
    let value = JanusConfig::shape("janus-pro-1b").unwrap().to_json(Layout::DeepSeek, DType::BF16);
    let tower = value["vision_config"]["params"].as_object().unwrap();
    assert_eq!(tower.keys().collect::<Vec<_>>(), ["image_size", "model_name", "select_feature", "select_layer"]);
    assert_eq!(value["gen_vision_config"]["params"], json!({"image_token_size": 16384, "n_embed": 8}));
}

#[test]
fn native_keys_have_class_defaults() {
    let value = json!({
        "model_type": "janus",
        "text_config": { "hidden_size": 2048, "num_attention_heads": 16, "vocab_size": 102400, "unknown_key": [1] },
    });
    let config = parse(&value).unwrap();
    assert_eq!(config.vision, JanusConfig::shape("janus-pro-1b").unwrap().vision);
    assert_eq!(config.vq, JanusConfig::shape("janus-pro-1b").unwrap().vq);
    assert!(config.tie_word_embeddings);
    assert_eq!(config.image_token_id, Some(100_581));
    assert_eq!((config.text.head_dim, config.text.num_key_value_heads), (128, 16));
    assert_eq!(config.text.bos_token_id, None);
}

#[test]
fn both_spellings_of_the_rotary_base_are_read() {
    let mut value = JanusConfig::shape("janus-tiny").unwrap().to_json(Layout::Native, DType::F32);
    let text = value["text_config"].as_object_mut().unwrap();
    text.remove("rope_parameters");
    text.insert("rope_theta".into(), json!(500.0));
    text.insert("rope_scaling".into(), Value::Null);
    assert_eq!(parse(&value).unwrap().text.rope_theta, 500.0);
    let text = value["text_config"].as_object_mut().unwrap();
    text.remove("rope_theta");
    text.insert("rope_parameters".into(), json!({"rope_theta": 700, "rope_type": "default"}));
    assert_eq!(parse(&value).unwrap().text.rope_theta, 700.0);
}

#[test]
fn the_mlp_width_survives_its_ratio() {
    let mut vision = JanusConfig::shape("janus-tiny").unwrap().vision;
    for hidden_size in [1, 3, 48, 49, 1152] {
        for intermediate_size in 1..3000 {
            vision.hidden_size = hidden_size;
            vision.intermediate_size = intermediate_size;
            assert_eq!(native::mlp_width(hidden_size, native::mlp_ratio(&vision)), intermediate_size);
        }
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    let error = parse(&json!({"model_type": "llama"})).unwrap_err();
    assert!(matches!(&error, ConfigError::UnknownModelType { model_type, .. } if model_type == "llama"), "{error}");
    let error = parse(&json!({"model_type": "multi_modality", "vision_und_enc_config": {}})).unwrap_err();
    assert!(matches!(&error, ConfigError::JanusFlow { key: "vision_und_enc_config", .. }), "{error}");
    assert!(matches!(parse(&json!({})).unwrap_err(), ConfigError::Missing { key, .. } if key == "model_type"));
    assert!(matches!(parse(&json!([])).unwrap_err(), ConfigError::WrongType { .. }));
    assert!(matches!(JanusConfig::from_json("{", Path::new("x")), Err(ConfigError::Json { .. })));
}

#[test]
fn what_is_not_computed_is_refused_by_key_and_value() {
    let native = JanusConfig::shape("janus-tiny").unwrap().to_json(Layout::Native, DType::F32);
    for (pointer, value, words) in [
        ("/text_config/hidden_act", json!("relu"), "`text_config.hidden_act` = `relu`"),
        ("/text_config/attention_bias", json!(true), "`text_config.attention_bias` = `true`"),
        ("/text_config/mlp_bias", json!(true), "`text_config.mlp_bias` = `true`"),
        ("/text_config/rope_scaling", json!({"type": "linear"}), "`text_config.rope_scaling.type` = `linear`"),
        (
            "/text_config/rope_parameters",
            json!({"rope_type": "yarn"}),
            "`text_config.rope_parameters.rope_type` = `yarn`",
        ),
        ("/text_config/partial_rotary_factor", json!(0.5), "partial_rotary_factor` = `0.5`"),
        ("/vision_config/hidden_act", json!("gelu_pytorch_tanh"), "`vision_config.hidden_act` = `gelu_pytorch_tanh`"),
        ("/vision_config/use_qk_norm", json!(true), "`vision_config.use_qk_norm` = `true`"),
        ("/vision_config/image_size", json!([32, 64]), "`vision_config.image_size` = `[32,64]`"),
        ("/vq_config/double_latent", json!(true), "`vq_config.double_latent` = `true`"),
    ] {
        let message = refusal(&native, pointer, value);
        assert!(message.contains(words) && message.contains("not supported"), "{message}");
    }
    let original = JanusConfig::shape("janus-tiny").unwrap().to_json(Layout::DeepSeek, DType::F32);
    for (pointer, value, words) in [
        ("/vision_config/cls", json!("HybridVisionTower"), "`vision_config.cls` = `HybridVisionTower`"),
        ("/vision_config/params/select_layer", json!(-2), "`vision_config.params.select_layer` = `-2`"),
        ("/vision_config/params/pixel_mean", json!([0.5]), "`vision_config.params.pixel_mean`"),
        ("/aligner_config/params/projector_type", json!("linear"), "projector_type` = `linear`"),
        ("/gen_vision_config/params/decoder_ch_mult", json!([1, 1, 2, 2]), "decoder_ch_mult` = `[1, 1, 2, 2]`"),
    ] {
        let message = refusal(&original, pointer, value);
        assert!(message.contains(words) && message.contains("not supported"), "{message}");
    }
}

#[test]
fn impossible_sizes_are_refused_by_key_and_value() {
    let native = JanusConfig::shape("janus-tiny").unwrap().to_json(Layout::Native, DType::F32);
    for (pointer, value, words) in [
        ("/text_config/num_attention_heads", json!(0), "`text_config.num_attention_heads` in `config.json` is `0`"),
        ("/text_config/num_attention_heads", json!(5), "`text_config.num_attention_heads` = `5`"),
        ("/text_config/num_key_value_heads", json!(3), "`text_config.num_key_value_heads` = `3`"),
        ("/text_config/num_hidden_layers", json!(4_000_000_000u64), "is `4000000000`"),
        ("/text_config/hidden_size", json!(u64::MAX), "`text_config.hidden_size`"),
        ("/text_config/hidden_size", json!(-64), "`text_config.hidden_size`"),
        ("/text_config/hidden_size", json!(64.5), "is `64.5`"),
        ("/text_config/head_dim", json!(11), "`text_config.head_dim`"),
        ("/text_config/rms_norm_eps", json!(0.0), "`text_config.rms_norm_eps`"),
        ("/text_config/pad_token_id", json!(400), "`text_config.pad_token_id`"),
        ("/text_config", json!([]), "`text_config` in `config.json` is an array of 0"),
        ("/vision_config/image_size", json!(33), "`vision_config.image_size` = `33`"),
        ("/vision_config/patch_size", json!(0), "`vision_config.patch_size`"),
        ("/vision_config/mlp_ratio", json!(-1.0), "`vision_config.mlp_ratio`"),
        ("/vision_config/mlp_ratio", json!(1e300), "`vision_config.mlp_ratio`"),
        ("/vision_config/projection_dim", json!(47), "`vision_config.projection_dim` = `47`"),
        ("/vq_config/channel_multiplier", json!([]), "`vq_config.channel_multiplier`"),
        ("/vq_config/channel_multiplier", json!([1, 0, 1, 1]), "`[1, 0, 1, 1]`"),
        ("/vq_config/channel_multiplier", json!([1, 1, 1]), "`vision_config.patch_size` = `8`"),
        ("/vq_config/base_channels", json!(48), "`vq_config.base_channels`"),
        ("/vq_config/num_res_blocks", json!(0), "`vq_config.num_res_blocks` in `config.json` is `0`"),
        ("/image_token_id", json!(400), "`image_token_id`"),
    ] {
        let message = refusal(&native, pointer, value);
        assert!(message.contains(words), "{message}");
    }
    let original = JanusConfig::shape("janus-tiny").unwrap().to_json(Layout::DeepSeek, DType::F32);
    for (pointer, value, words) in [
        ("/vision_config/params/heads", json!(0), "`vision_config.params.heads`"),
        ("/vision_config/params/width", Value::Null, "no key `vision_config.params.width`"),
        ("/aligner_config/params/n_embed", json!(47), "`aligner_config.params.n_embed` = `47`"),
        ("/gen_head_config/params/image_token_size", json!(65), "`gen_head_config.params.image_token_size` = `65`"),
        ("/language_config/vocab_size", json!(0), "`language_config.vocab_size`"),
        ("/language_config", Value::Null, "no key `language_config`"),
    ] {
        let message = refusal(&original, pointer, value);
        assert!(message.contains(words), "{message}");
    }
}
