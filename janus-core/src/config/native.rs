//! transformers' form: `model_type` `janus` with `text_config`, `vision_config` and `vq_config`.
//! Both spellings are read: `rope_parameters` and `dtype` of release 5, `rope_theta`, `rope_scaling` and `torch_dtype` before.

use candle_core::DType;
use serde_json::{Map, Value, json};

use super::section::Section;
use super::{ConfigError, JanusConfig, Layout, TextConfig, VisionConfig, VqConfig, torch_dtype_name};

/// Id of `<image_placeholder>` by class default, that of Janus-Pro-1B.
const DEFAULT_IMAGE_TOKEN_ID: u32 = 100_581;

pub(super) fn read(root: &Section<'_>) -> Result<JanusConfig, ConfigError> {
    let text = read_text(&root.section("text_config")?)?;
    let vision = read_vision(&root.section("vision_config")?)?;
    let vq = read_vq(&root.section("vq_config")?)?;
    let image_token_id = match root.token_id("image_token_id")? {
        Some(id) => Some(id),
        // The default means the published vocabulary; a smaller one leaves the choice to its tokenizer.
        None => Some(DEFAULT_IMAGE_TOKEN_ID).filter(|id| (*id as usize) < text.vocab_size),
    };
    Ok(JanusConfig {
        text,
        vision,
        vq,
        image_token_id,
        tie_word_embeddings: root.flag("tie_word_embeddings", true)?,
        layout: Layout::Native,
    })
}

/// The decoder's section, `text_config` here and `language_config` in the original form; defaults are those of `LlamaConfig`.
pub(super) fn read_text(section: &Section<'_>) -> Result<TextConfig, ConfigError> {
    section.only("model_type", "llama", "`llama`")?;
    section.only("hidden_act", "silu", "`silu`")?;
    section.never("attention_bias")?;
    section.never("mlp_bias")?;
    let hidden_size = section.size("hidden_size", 4096)?;
    let num_attention_heads = section.size("num_attention_heads", 32)?;
    Ok(TextConfig {
        vocab_size: section.size("vocab_size", 32_000)?,
        hidden_size,
        intermediate_size: section.size("intermediate_size", 11_008)?,
        num_hidden_layers: section.size("num_hidden_layers", 32)?,
        num_attention_heads,
        num_key_value_heads: section.size("num_key_value_heads", num_attention_heads)?,
        head_dim: match section.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
        },
        max_position_embeddings: section.size("max_position_embeddings", 2048)?,
        rms_norm_eps: section.float("rms_norm_eps", 1e-6)?,
        rope_theta: read_rope_theta(section)?,
        bos_token_id: section.token_id("bos_token_id")?,
        eos_token_id: section.token_id("eos_token_id")?,
        pad_token_id: section.token_id("pad_token_id")?,
    })
}

fn read_rope_theta(section: &Section<'_>) -> Result<f64, ConfigError> {
    let mut theta = section.float("rope_theta", 10_000.0)?;
    for key in ["rope_scaling", "rope_parameters"] {
        let rope = section.section(key)?;
        for kind in ["rope_type", "type"] {
            rope.only(kind, "default", "`default` (no scaling)")?;
        }
        theta = rope.float("rope_theta", theta)?;
        refuse_partial_rotation(&rope)?;
    }
    refuse_partial_rotation(section)?;
    Ok(theta)
}

fn refuse_partial_rotation(section: &Section<'_>) -> Result<(), ConfigError> {
    let factor = section.float("partial_rotary_factor", 1.0)?;
    if factor == 1.0 { Ok(()) } else { Err(section.unsupported("partial_rotary_factor", factor, "`1`")) }
}

fn read_vision(section: &Section<'_>) -> Result<VisionConfig, ConfigError> {
    section.only("model_type", "janus_vision_model", "`janus_vision_model`")?;
    section.only("hidden_act", "gelu", "`gelu` (exact)")?;
    section.never("use_qk_norm")?;
    let hidden_size = section.size("hidden_size", 1024)?;
    Ok(VisionConfig {
        hidden_size,
        intermediate_size: mlp_width(hidden_size, section.float("mlp_ratio", 4.0)?),
        num_hidden_layers: section.size("num_hidden_layers", 24)?,
        num_attention_heads: section.size("num_attention_heads", 16)?,
        patch_size: section.side("patch_size", 16)?,
        image_size: section.side("image_size", 384)?,
        num_channels: section.size("num_channels", 3)?,
        layer_norm_eps: section.float("layer_norm_eps", 1e-6)?,
        attention_bias: section.flag("attention_bias", true)?,
        aligner_depth: section.size("depth", 2)?,
        projection_dim: section.size("projection_dim", 2048)?,
    })
}

fn read_vq(section: &Section<'_>) -> Result<VqConfig, ConfigError> {
    section.only("model_type", "janus_vqgan", "`janus_vqgan`")?;
    section.only("hidden_act", "gelu", "`gelu` (exact)")?;
    // transformers builds `quant_conv` for the single latent whatever the flag says, so such a model cannot run there either.
    section.never("double_latent")?;
    Ok(VqConfig {
        embed_dim: section.size("embed_dim", 8)?,
        num_embeddings: section.size("num_embeddings", 16_384)?,
        latent_channels: section.size("latent_channels", 256)?,
        base_channels: section.size("base_channels", 128)?,
        channel_multiplier: section.sizes("channel_multiplier")?.unwrap_or_else(|| vec![1, 1, 2, 2, 4]),
        num_res_blocks: section.size("num_res_blocks", 2)?,
        double_latent: false,
        in_channels: section.size("in_channels", 3)?,
        out_channels: section.size("out_channels", 3)?,
        projection_dim: section.size("projection_dim", 2048)?,
        image_token_embed_dim: section.size("image_token_embed_dim", 2048)?,
        aligner_depth: section.size("num_hidden_layers", 2)?,
    })
}

/// `int(hidden_size * mlp_ratio)` as both implementations compute it. A ratio below zero or beyond all bounds gives a width
/// that the checks refuse.
pub(super) fn mlp_width(hidden_size: usize, mlp_ratio: f64) -> usize {
    (hidden_size as f64 * mlp_ratio) as usize
}

/// The ratio from which [`mlp_width`] gets the width back.
pub(super) fn mlp_ratio(vision: &VisionConfig) -> f64 {
    let mut ratio = vision.intermediate_size as f64 / vision.hidden_size as f64;
    // The rounded quotient may lie just below the true one, and the cut would then lose a whole unit.
    for _ in 0..4 {
        if mlp_width(vision.hidden_size, ratio) < vision.intermediate_size {
            ratio = ratio.next_up();
        }
    }
    ratio
}

pub(super) fn write(config: &JanusConfig, dtype: DType) -> Value {
    let dtype = torch_dtype_name(dtype);
    let JanusConfig { text, vision, vq, .. } = config;
    let mut root = Map::new();
    root.insert("architectures".into(), json!(["JanusForConditionalGeneration"]));
    root.insert("dtype".into(), json!(dtype));
    if let Some(id) = config.image_token_id {
        root.insert("image_token_id".into(), json!(id));
    }
    root.insert("model_type".into(), json!("janus"));
    root.insert(
        "text_config".into(),
        json!({
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": text.bos_token_id,
            "dtype": dtype,
            "eos_token_id": text.eos_token_id,
            "head_dim": text.head_dim,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": text.num_attention_heads,
            "num_hidden_layers": text.num_hidden_layers,
            "num_key_value_heads": text.num_key_value_heads,
            "pad_token_id": text.pad_token_id,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_parameters": { "rope_theta": text.rope_theta, "rope_type": "default" },
            "rope_theta": text.rope_theta,
            "tie_word_embeddings": config.tie_word_embeddings,
            "vocab_size": text.vocab_size,
        }),
    );
    root.insert("tie_word_embeddings".into(), json!(config.tie_word_embeddings));
    root.insert(
        "vision_config".into(),
        json!({
            "attention_bias": vision.attention_bias,
            "attention_dropout": 0.0,
            "depth": vision.aligner_depth,
            "dtype": dtype,
            "hidden_act": "gelu",
            "hidden_dropout_rate": 0.0,
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "mlp_ratio": mlp_ratio(vision),
            "model_type": "janus_vision_model",
            "num_attention_heads": vision.num_attention_heads,
            "num_channels": vision.num_channels,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_image_tokens": vision.num_patches(),
            "patch_size": vision.patch_size,
            "projection_dim": vision.projection_dim,
            "projection_dropout": 0.0,
            "use_qk_norm": false,
        }),
    );
    root.insert(
        "vq_config".into(),
        json!({
            "base_channels": vq.base_channels,
            "channel_multiplier": vq.channel_multiplier,
            "double_latent": vq.double_latent,
            "dropout": 0.0,
            "dtype": dtype,
            "embed_dim": vq.embed_dim,
            "hidden_act": "gelu",
            "image_token_embed_dim": vq.image_token_embed_dim,
            "in_channels": vq.in_channels,
            "latent_channels": vq.latent_channels,
            "model_type": "janus_vqgan",
            "num_embeddings": vq.num_embeddings,
            "num_hidden_layers": vq.aligner_depth,
            "num_patches": vision.grid(),
            "num_res_blocks": vq.num_res_blocks,
            "out_channels": vq.out_channels,
            "projection_dim": vq.projection_dim,
        }),
    );
    Value::Object(root)
}
