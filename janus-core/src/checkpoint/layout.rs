//! The original layout's names of native tensors. All but three kinds are pure renames: `q_proj`, `k_proj` and `v_proj` of the
//! vision tower are the thirds of a fused `qkv`, `pos_embed` has a leading dimension of 1, and some tensors are native nowhere.
//! Source: the table of `convert_janus_weights_to_hf.py` (transformers, `0760f12`) and the module tree of deepseek-ai/Janus.

use crate::config::Layout;

/// Where a native tensor stands in a stored layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Stored name.
    pub(crate) name: String,
    /// Which third of the stored rows it is; `None` for the whole.
    pub(crate) third: Option<usize>,
    /// Shape of the whole stored tensor.
    pub(crate) shape: Vec<usize>,
}

/// The place of the native tensor `name` of `shape` in `layout`.
pub(crate) fn place(layout: Layout, name: &str, shape: &[usize]) -> Place {
    match layout {
        Layout::Native => Place { name: name.to_string(), third: None, shape: shape.to_vec() },
        Layout::DeepSeek => original_place(name, shape),
    }
}

fn original_place(name: &str, shape: &[usize]) -> Place {
    let whole = |name: String| Place { name, third: None, shape: shape.to_vec() };
    if let Some(rest) = name.strip_prefix("model.vision_model.") {
        return original_vision(rest, shape);
    }
    if let Some(rest) = name.strip_prefix("model.vqmodel.") {
        return whole(format!("gen_vision_model.{}", original_vq(rest)));
    }
    for (native, original) in [("model.aligner.", "aligner."), ("model.generation_aligner.", "gen_aligner.")] {
        if let Some(rest) = name.strip_prefix(native) {
            return whole(format!("{original}{}", original_projector(rest)));
        }
    }
    for (native, original) in [
        ("model.generation_embeddings.", "gen_embed."),
        ("model.generation_head.proj_out.", "gen_head.output_mlp_projector."),
        ("model.generation_head.vision_head.", "gen_head.vision_head."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ] {
        if let Some(rest) = name.strip_prefix(native) {
            return whole(format!("{original}{rest}"));
        }
    }
    whole(name.to_string())
}

/// `fc1` is layer 0 and `hidden_layers.{i}` layer `2 i + 2` of a sequence whose odd members are the GELUs.
fn original_projector(rest: &str) -> String {
    if let Some(parameter) = rest.strip_prefix("fc1.") {
        return format!("layers.0.{parameter}");
    }
    match rest.strip_prefix("hidden_layers.").and_then(|rest| rest.split_once('.')) {
        Some((index, parameter)) => match index.parse::<usize>() {
            Ok(index) => format!("layers.{}.{parameter}", 2 * index + 2),
            Err(_) => rest.to_string(),
        },
        None => rest.to_string(),
    }
}

fn original_vision(rest: &str, shape: &[usize]) -> Place {
    const TOWER: &str = "vision_model.vision_tower";
    let whole = |name: String| Place { name, third: None, shape: shape.to_vec() };
    if rest == "embeddings.position_embedding.weight" {
        let shape = std::iter::once(1).chain(shape.iter().copied()).collect();
        return Place { name: format!("{TOWER}.pos_embed"), third: None, shape };
    }
    if let Some(parameter) = rest.strip_prefix("embeddings.patch_embedding.") {
        return whole(format!("{TOWER}.patch_embed.proj.{parameter}"));
    }
    if let Some(parameter) = rest.strip_prefix("post_layernorm.") {
        return whole(format!("{TOWER}.norm.{parameter}"));
    }
    let Some((block, inner)) = rest.strip_prefix("encoder.layers.").and_then(|rest| rest.split_once('.')) else {
        return whole(format!("{TOWER}.{rest}"));
    };
    for (third, projection) in ["q_proj.", "k_proj.", "v_proj."].into_iter().enumerate() {
        if let Some(parameter) = inner.strip_prefix("self_attn.").and_then(|inner| inner.strip_prefix(projection)) {
            let mut shape = shape.to_vec();
            if let Some(rows) = shape.first_mut() {
                *rows *= 3;
            }
            return Place { name: format!("{TOWER}.blocks.{block}.attn.qkv.{parameter}"), third: Some(third), shape };
        }
    }
    for (native, original) in
        [("layer_norm1.", "norm1."), ("layer_norm2.", "norm2."), ("self_attn.projection_layer.", "attn.proj.")]
    {
        if let Some(parameter) = inner.strip_prefix(native) {
            return whole(format!("{TOWER}.blocks.{block}.{original}{parameter}"));
        }
    }
    whole(format!("{TOWER}.blocks.{block}.{inner}"))
}

/// `down` and `up` are both `conv_blocks`, `block` is `res`, and the middle's three members are numbered.
fn original_vq(rest: &str) -> String {
    let Some((half, inner)) = rest.split_once('.') else {
        return rest.to_string();
    };
    let inner = match inner.split_once('.') {
        Some(("down" | "up", level)) => format!("conv_blocks.{}", level.replacen(".block.", ".res.", 1)),
        Some(("mid", member)) => {
            let numbered = [("block_1.", "0."), ("attn_1.", "1."), ("block_2.", "2.")]
                .into_iter()
                .find_map(|(native, original)| Some(format!("{original}{}", member.strip_prefix(native)?)));
            format!("mid.{}", numbered.unwrap_or_else(|| member.to_string()))
        }
        _ => inner.to_string(),
    };
    format!("{half}.{inner}")
}

/// Whether a stored tensor is one that published files hold and nothing reads: the tower's pooling head, usage counts of
/// the codes, rotary frequencies saved by old releases.
pub(crate) fn is_known_unused(stored_name: &str) -> bool {
    stored_name.starts_with("vision_model.vision_tower.attn_pool.")
        || matches!(stored_name, "gen_vision_model.quantize.codebook_used" | "model.vqmodel.quantize.codebook_used")
        || ((stored_name.starts_with("language_model.") || stored_name.starts_with("model.language_model."))
            && stored_name.ends_with(".rotary_emb.inv_freq"))
}

/// The stored name of the token embedding, which tells the layouts apart.
pub(crate) fn embedding_name(layout: Layout) -> &'static str {
    match layout {
        Layout::Native => super::names::EMBED_TOKENS,
        Layout::DeepSeek => "language_model.model.embed_tokens.weight",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checkpoint::names::expected_tensors;
    use crate::config::JanusConfig;

    /// The published count without the 13 tensors of the pooling head and `codebook_used`.
    #[test]
    fn published_models_have_their_published_counts() {
        for (shape, tensors) in [("janus-pro-1b", 882), ("janus-pro-7b", 936)] {
            let list = expected_tensors(&JanusConfig::shape(shape).unwrap(), true);
            let names: std::collections::HashSet<_> =
                list.iter().map(|t| place(Layout::DeepSeek, &t.name, &t.shape).name).collect();
            assert_eq!(names.len(), tensors - 14);
        }
    }

    #[test]
    fn names_are_those_of_the_published_table() {
        for (native, original) in [
            ("model.vision_model.embeddings.patch_embedding.bias", "vision_model.vision_tower.patch_embed.proj.bias"),
            (
                "model.vision_model.encoder.layers.3.layer_norm2.weight",
                "vision_model.vision_tower.blocks.3.norm2.weight",
            ),
            (
                "model.vision_model.encoder.layers.11.self_attn.projection_layer.bias",
                "vision_model.vision_tower.blocks.11.attn.proj.bias",
            ),
            ("model.vision_model.encoder.layers.1.mlp.fc2.weight", "vision_model.vision_tower.blocks.1.mlp.fc2.weight"),
            ("model.vision_model.post_layernorm.weight", "vision_model.vision_tower.norm.weight"),
            ("model.aligner.fc1.weight", "aligner.layers.0.weight"),
            ("model.aligner.hidden_layers.0.bias", "aligner.layers.2.bias"),
            ("model.generation_aligner.hidden_layers.1.bias", "gen_aligner.layers.4.bias"),
            ("model.generation_embeddings.weight", "gen_embed.weight"),
            ("model.generation_head.proj_out.weight", "gen_head.output_mlp_projector.weight"),
            ("model.generation_head.vision_head.bias", "gen_head.vision_head.bias"),
            (
                "model.vqmodel.encoder.down.2.block.0.nin_shortcut.weight",
                "gen_vision_model.encoder.conv_blocks.2.res.0.nin_shortcut.weight",
            ),
            (
                "model.vqmodel.encoder.down.4.attn.1.proj_out.bias",
                "gen_vision_model.encoder.conv_blocks.4.attn.1.proj_out.bias",
            ),
            (
                "model.vqmodel.encoder.down.0.downsample.conv.weight",
                "gen_vision_model.encoder.conv_blocks.0.downsample.conv.weight",
            ),
            (
                "model.vqmodel.decoder.up.1.block.2.conv1.weight",
                "gen_vision_model.decoder.conv_blocks.1.res.2.conv1.weight",
            ),
            (
                "model.vqmodel.decoder.up.0.upsample.conv.bias",
                "gen_vision_model.decoder.conv_blocks.0.upsample.conv.bias",
            ),
            ("model.vqmodel.decoder.mid.attn_1.q.weight", "gen_vision_model.decoder.mid.1.q.weight"),
            ("model.vqmodel.encoder.mid.block_2.norm1.bias", "gen_vision_model.encoder.mid.2.norm1.bias"),
            ("model.vqmodel.encoder.conv_in.weight", "gen_vision_model.encoder.conv_in.weight"),
            ("model.vqmodel.quant_conv.weight", "gen_vision_model.quant_conv.weight"),
            ("model.vqmodel.quantize.embedding.weight", "gen_vision_model.quantize.embedding.weight"),
            ("model.language_model.layers.7.mlp.up_proj.weight", "language_model.model.layers.7.mlp.up_proj.weight"),
            ("lm_head.weight", "language_model.lm_head.weight"),
        ] {
            let expected = Place { name: original.into(), third: None, shape: vec![6, 4] };
            assert_eq!(place(Layout::DeepSeek, native, &[6, 4]), expected);
        }
        let key = place(Layout::DeepSeek, "model.vision_model.encoder.layers.5.self_attn.k_proj.bias", &[32]);
        assert_eq!(key.name, "vision_model.vision_tower.blocks.5.attn.qkv.bias");
        assert_eq!((key.third, key.shape), (Some(1), vec![96]));
        let positions = place(Layout::DeepSeek, "model.vision_model.embeddings.position_embedding.weight", &[16, 32]);
        assert_eq!(
            (positions.name.as_str(), positions.shape),
            ("vision_model.vision_tower.pos_embed", vec![1, 16, 32])
        );
    }

    #[test]
    fn only_anchored_names_are_known_unused() {
        for name in [
            "vision_model.vision_tower.attn_pool.latent",
            "gen_vision_model.quantize.codebook_used",
            "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.language_model.layers.0.self_attn.rotary_emb.inv_freq",
        ] {
            assert!(is_known_unused(name), "{name}");
        }
        for name in ["attn_pool.latent", "x.codebook_used", "inv_freq", "model.aligner.attn_pool.q.weight"] {
            assert!(!is_known_unused(name), "{name}");
        }
    }
}
