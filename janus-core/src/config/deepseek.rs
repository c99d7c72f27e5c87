//! The original form: `model_type` `multi_modality`, with `{cls, params}` sections and a `language_config`.
//!
//! Published files leave out whatever the code holds in tables: the sizes of the tower (by `model_name`), those of the VQ
//! model (by class), Llama's defaults. Models outside the tables give their sizes in `params` under the code's own
//! argument names: `width`, `layers`, `heads`, `patch_size`, `mlp_ratio`, `qkv_bias` for the tower; `ch`, `encoder_ch_mult`,
//! `decoder_ch_mult`, `num_res_blocks`, `z_channels` for the VQ model.

use candle_core::DType;
use serde_json::{Map, Value, json};

use super::native::{mlp_ratio, mlp_width, read_text};
use super::section::Section;
use super::{ConfigError, JanusConfig, Layout, VisionConfig, VqConfig, torch_dtype_name};

/// The tower of all published models.
const SIGLIP_LARGE: &str = "siglip_large_patch16_384";

pub(super) fn read(root: &Section<'_>) -> Result<JanusConfig, ConfigError> {
    let language = root.required_section("language_config")?;
    let text = read_text(&language)?;
    let aligner = params(root, "aligner_config", "MlpProjector", "`MlpProjector`")?;
    let generation_aligner = params(root, "gen_aligner_config", "MlpProjector", "`MlpProjector`")?;
    for projector in [&aligner, &generation_aligner] {
        projector.only("projector_type", "mlp_gelu", "`mlp_gelu`")?;
    }
    let vision = read_vision(root, &aligner)?;
    let vq = read_vq(root, &generation_aligner)?;
    Ok(JanusConfig {
        text,
        vision,
        vq,
        image_token_id: root.token_id("image_token_id")?,
        // The decoder is built from `language_config` alone, with LlamaConfig's default.
        tie_word_embeddings: language.flag("tie_word_embeddings", false)?,
        layout: Layout::DeepSeek,
    })
}

/// The `params` of a section, whose `cls` must be the one this crate knows.
fn params<'a>(root: &Section<'a>, key: &str, class: &str, supported: &'static str) -> Result<Section<'a>, ConfigError> {
    let section = root.required_section(key)?;
    section.only("cls", class, supported)?;
    section.required_section("params")
}

fn read_vision(root: &Section<'_>, aligner: &Section<'_>) -> Result<VisionConfig, ConfigError> {
    let params = params(root, "vision_config", "CLIPVisionTower", "`CLIPVisionTower`")?;
    params.only("select_feature", "same", "`same` (all patches)")?;
    let select_layer = params.signed("select_layer", -1)?;
    if select_layer != -1 {
        return Err(params.unsupported("select_layer", select_layer, "`-1` (all blocks)"));
    }
    for key in ["pixel_mean", "pixel_std"] {
        if params.has(key) {
            return Err(params.unsupported(key, "(set)", "normalisation by the image processor"));
        }
    }
    let known = params.string("model_name")? == Some(SIGLIP_LARGE);
    let size = |key: &str, large: usize| match known {
        true => params.size(key, large),
        false => params.required_size(key),
    };
    let hidden_size = size("width", 1024)?;
    Ok(VisionConfig {
        hidden_size,
        intermediate_size: mlp_width(hidden_size, params.float("mlp_ratio", 4.0)?),
        num_hidden_layers: size("layers", 24)?,
        num_attention_heads: size("heads", 16)?,
        patch_size: size("patch_size", 16)?,
        image_size: params.side("image_size", 384)?,
        num_channels: 3,
        layer_norm_eps: 1e-6,
        attention_bias: params.flag("qkv_bias", true)?,
        aligner_depth: aligner.size("depth", 2)?,
        projection_dim: aligner.required_size("n_embed")?,
    })
}

fn read_vq(root: &Section<'_>, aligner: &Section<'_>) -> Result<VqConfig, ConfigError> {
    let params_vq = params(root, "gen_vision_config", "VQ-16", "`VQ-16`")?;
    let head = params(root, "gen_head_config", "vision_head", "`vision_head`")?;
    let encoder = params_vq.sizes("encoder_ch_mult")?.unwrap_or_else(|| vec![1, 1, 2, 2, 4]);
    let decoder = params_vq.sizes("decoder_ch_mult")?.unwrap_or_else(|| encoder.clone());
    if decoder != encoder {
        return Err(params_vq.unsupported("decoder_ch_mult", format!("{decoder:?}"), "the same as `encoder_ch_mult`"));
    }
    let num_embeddings = params_vq.size("image_token_size", 16_384)?;
    let embed_dim = params_vq.size("n_embed", 8)?;
    let projection_dim = aligner.required_size("n_embed")?;
    // The original modules name these sizes twice; the tensors exist once.
    head.same("image_token_size", num_embeddings, &params_vq, "image_token_size")?;
    head.same("image_token_embed", projection_dim, aligner, "n_embed")?;
    aligner.same("input_dim", embed_dim, &params_vq, "n_embed")?;
    Ok(VqConfig {
        embed_dim,
        num_embeddings,
        latent_channels: params_vq.size("z_channels", 256)?,
        base_channels: params_vq.size("ch", 128)?,
        channel_multiplier: encoder,
        num_res_blocks: params_vq.size("num_res_blocks", 2)?,
        double_latent: false,
        in_channels: 3,
        out_channels: 3,
        projection_dim,
        image_token_embed_dim: head.required_size("n_embed")?,
        aligner_depth: aligner.size("depth", 2)?,
    })
}

pub(super) fn write(config: &JanusConfig, dtype: DType) -> Value {
    let dtype = torch_dtype_name(dtype);
    let JanusConfig { text, vision, vq, .. } = config;

    let mut tower = Map::new();
    let is_large = vision.hidden_size == 1024
        && vision.intermediate_size == 4096
        && vision.num_hidden_layers == 24
        && vision.num_attention_heads == 16
        && vision.patch_size == 16
        && vision.image_size == 384
        && vision.attention_bias;
    tower.insert("image_size".into(), json!(vision.image_size));
    if is_large {
        tower.insert("model_name".into(), json!(SIGLIP_LARGE));
    } else {
        tower.insert("model_name".into(), json!(format!("siglip_patch{}_{}", vision.patch_size, vision.image_size)));
    }
    tower.insert("select_feature".into(), json!("same"));
    tower.insert("select_layer".into(), json!(-1));
    if !is_large {
        tower.insert("width".into(), json!(vision.hidden_size));
        tower.insert("layers".into(), json!(vision.num_hidden_layers));
        tower.insert("heads".into(), json!(vision.num_attention_heads));
        tower.insert("patch_size".into(), json!(vision.patch_size));
        tower.insert("mlp_ratio".into(), json!(mlp_ratio(vision)));
        if !vision.attention_bias {
            tower.insert("qkv_bias".into(), json!(false));
        }
    }

    let mut tokenizer = Map::new();
    tokenizer.insert("image_token_size".into(), json!(vq.num_embeddings));
    tokenizer.insert("n_embed".into(), json!(vq.embed_dim));
    let is_vq_16 = vq.base_channels == 128
        && vq.channel_multiplier == [1, 1, 2, 2, 4]
        && vq.num_res_blocks == 2
        && vq.latent_channels == 256;
    if !is_vq_16 {
        tokenizer.insert("ch".into(), json!(vq.base_channels));
        tokenizer.insert("encoder_ch_mult".into(), json!(vq.channel_multiplier));
        tokenizer.insert("decoder_ch_mult".into(), json!(vq.channel_multiplier));
        tokenizer.insert("num_res_blocks".into(), json!(vq.num_res_blocks));
        tokenizer.insert("z_channels".into(), json!(vq.latent_channels));
    }

    let mut language = Map::new();
    language.insert("hidden_size".into(), json!(text.hidden_size));
    language.insert("intermediate_size".into(), json!(text.intermediate_size));
    language.insert("max_position_embeddings".into(), json!(text.max_position_embeddings));
    language.insert("model_type".into(), json!("llama"));
    language.insert("num_attention_heads".into(), json!(text.num_attention_heads));
    language.insert("num_hidden_layers".into(), json!(text.num_hidden_layers));
    language.insert("num_key_value_heads".into(), json!(text.num_key_value_heads));
    language.insert("torch_dtype".into(), json!(dtype));
    language.insert("vocab_size".into(), json!(text.vocab_size));
    // What differs from LlamaConfig's defaults, which published files leave out.
    if Some(text.head_dim) != text.hidden_size.checked_div(text.num_attention_heads) {
        language.insert("head_dim".into(), json!(text.head_dim));
    }
    if text.rms_norm_eps != 1e-6 {
        language.insert("rms_norm_eps".into(), json!(text.rms_norm_eps));
    }
    if text.rope_theta != 10_000.0 {
        language.insert("rope_theta".into(), json!(text.rope_theta));
    }
    if config.tie_word_embeddings {
        language.insert("tie_word_embeddings".into(), json!(true));
    }
    for (key, id) in
        [("bos_token_id", text.bos_token_id), ("eos_token_id", text.eos_token_id), ("pad_token_id", text.pad_token_id)]
    {
        if let Some(id) = id {
            language.insert(key.into(), json!(id));
        }
    }

    json!({
        "aligner_config": {
            "cls": "MlpProjector",
            "model_type": "aligner",
            "params": {
                "depth": vision.aligner_depth,
                "input_dim": vision.hidden_size,
                "n_embed": vision.projection_dim,
                "projector_type": "mlp_gelu",
            },
        },
        "architectures": ["MultiModalityCausalLM"],
        "gen_aligner_config": {
            "cls": "MlpProjector",
            "model_type": "gen_aligner",
            "params": {
                "depth": vq.aligner_depth,
                "input_dim": vq.embed_dim,
                "n_embed": vq.projection_dim,
                "projector_type": "mlp_gelu",
            },
        },
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {
                "image_token_embed": vq.projection_dim,
                "image_token_size": vq.num_embeddings,
                "n_embed": vq.image_token_embed_dim,
            },
        },
        "gen_vision_config": { "cls": "VQ-16", "model_type": "gen_vision", "params": tokenizer },
        "language_config": language,
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "vision_config": { "cls": "CLIPVisionTower", "model_type": "vision", "params": tower },
    })
}
