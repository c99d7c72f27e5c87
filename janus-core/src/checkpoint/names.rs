//! The tensors a configuration asks for: native names and shapes, in the order of transformers' modules.
//! Source: the module trees of `modeling_janus.py` and `modeling_llama.py`, transformers 5.23.0.

use crate::config::JanusConfig;

/// A tensor by its native name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Native name.
    pub name: String,
    /// Native shape: linear `[out, in]`, convolution `[out, in, height, width]`, table `[rows, width]`.
    pub shape: Vec<usize>,
}

/// The head's weight, absent from the list of a tied model.
pub const LM_HEAD: &str = "lm_head.weight";
/// The table a tied head reads.
pub const EMBED_TOKENS: &str = "model.language_model.embed_tokens.weight";
/// The codes of the image tokenizer. Not the table of the generation embeddings, which has the same shape.
pub(crate) const CODEBOOK: &str = "model.vqmodel.quantize.embedding.weight";

/// All tensors of a model, in canonical order; `with_head` adds `lm_head.weight`, which a tied model lacks.
pub fn expected_tensors(config: &JanusConfig, with_head: bool) -> Vec<ExpectedTensor> {
    let mut list = List(Vec::new());
    list.vision(config);
    list.vq(config);
    list.generation(config);
    list.text(config);
    if with_head {
        list.push(LM_HEAD, &[config.text.vocab_size, config.text.hidden_size]);
    }
    list.0
}

struct List(Vec<ExpectedTensor>);

impl List {
    fn push(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push(ExpectedTensor { name: name.into(), shape: shape.to_vec() });
    }

    /// A weight and a bias as long as its first side.
    fn biased(&mut self, stem: &str, shape: &[usize]) {
        self.push(format!("{stem}.weight"), shape);
        self.push(format!("{stem}.bias"), &shape[..1]);
    }

    fn projector(&mut self, stem: &str, input: usize, width: usize, depth: usize) {
        self.biased(&format!("{stem}.fc1"), &[width, input]);
        for i in 0..depth.saturating_sub(1) {
            self.biased(&format!("{stem}.hidden_layers.{i}"), &[width, width]);
        }
    }

    fn vision(&mut self, config: &JanusConfig) {
        let vision = &config.vision;
        let (width, inner, patch) = (vision.hidden_size, vision.intermediate_size, vision.patch_size);
        let stem = "model.vision_model";
        self.push(format!("{stem}.embeddings.position_embedding.weight"), &[vision.num_patches(), width]);
        self.biased(&format!("{stem}.embeddings.patch_embedding"), &[width, vision.num_channels, patch, patch]);
        for i in 0..vision.num_hidden_layers {
            let layer = format!("{stem}.encoder.layers.{i}");
            self.biased(&format!("{layer}.layer_norm1"), &[width]);
            for projection in ["q_proj", "k_proj", "v_proj"] {
                self.push(format!("{layer}.self_attn.{projection}.weight"), &[width, width]);
                if vision.attention_bias {
                    self.push(format!("{layer}.self_attn.{projection}.bias"), &[width]);
                }
            }
            self.biased(&format!("{layer}.self_attn.projection_layer"), &[width, width]);
            self.biased(&format!("{layer}.layer_norm2"), &[width]);
            self.biased(&format!("{layer}.mlp.fc1"), &[inner, width]);
            self.biased(&format!("{layer}.mlp.fc2"), &[width, inner]);
        }
        self.biased(&format!("{stem}.post_layernorm"), &[width]);
        self.projector("model.aligner", width, vision.projection_dim, vision.aligner_depth);
    }

    fn residual_block(&mut self, stem: &str, channels_in: usize, channels_out: usize) {
        self.biased(&format!("{stem}.norm1"), &[channels_in]);
        self.biased(&format!("{stem}.conv1"), &[channels_out, channels_in, 3, 3]);
        self.biased(&format!("{stem}.norm2"), &[channels_out]);
        self.biased(&format!("{stem}.conv2"), &[channels_out, channels_out, 3, 3]);
        if channels_in != channels_out {
            self.biased(&format!("{stem}.nin_shortcut"), &[channels_out, channels_in, 1, 1]);
        }
    }

    fn attention_block(&mut self, stem: &str, channels: usize) {
        self.biased(&format!("{stem}.norm"), &[channels]);
        for projection in ["q", "k", "v", "proj_out"] {
            self.biased(&format!("{stem}.{projection}"), &[channels, channels, 1, 1]);
        }
    }

    fn middle(&mut self, stem: &str, channels: usize) {
        self.residual_block(&format!("{stem}.block_1"), channels, channels);
        self.attention_block(&format!("{stem}.attn_1"), channels);
        self.residual_block(&format!("{stem}.block_2"), channels, channels);
    }

    fn vq(&mut self, config: &JanusConfig) {
        let vq = &config.vq;
        let levels: Vec<usize> = vq.channel_multiplier.iter().map(|m| m * vq.base_channels).collect();
        let deepest = levels.len().saturating_sub(1);

        let encoder = "model.vqmodel.encoder";
        self.biased(&format!("{encoder}.conv_in"), &[vq.base_channels, vq.in_channels, 3, 3]);
        let mut channels = vq.base_channels;
        for (level, &out) in levels.iter().enumerate() {
            let stem = format!("{encoder}.down.{level}");
            for block in 0..vq.num_res_blocks {
                self.residual_block(&format!("{stem}.block.{block}"), channels, out);
                channels = out;
            }
            if level == deepest {
                for block in 0..vq.num_res_blocks {
                    self.attention_block(&format!("{stem}.attn.{block}"), channels);
                }
            } else {
                self.biased(&format!("{stem}.downsample.conv"), &[channels, channels, 3, 3]);
            }
        }
        self.middle(&format!("{encoder}.mid"), channels);
        self.biased(&format!("{encoder}.norm_out"), &[channels]);
        self.biased(&format!("{encoder}.conv_out"), &[vq.latent_channels, channels, 3, 3]);

        self.push(CODEBOOK, &[vq.num_embeddings, vq.embed_dim]);
        self.biased("model.vqmodel.quant_conv", &[vq.embed_dim, vq.latent_channels, 1, 1]);
        self.biased("model.vqmodel.post_quant_conv", &[vq.latent_channels, vq.embed_dim, 1, 1]);

        let decoder = "model.vqmodel.decoder";
        self.biased(&format!("{decoder}.conv_in"), &[channels, vq.latent_channels, 3, 3]);
        self.middle(&format!("{decoder}.mid"), channels);
        // Index 0 of `up` is the deepest level.
        for (index, &out) in levels.iter().rev().enumerate() {
            let stem = format!("{decoder}.up.{index}");
            for block in 0..=vq.num_res_blocks {
                self.residual_block(&format!("{stem}.block.{block}"), channels, out);
                channels = out;
            }
            if index == 0 {
                for block in 0..=vq.num_res_blocks {
                    self.attention_block(&format!("{stem}.attn.{block}"), channels);
                }
            }
            if index != deepest {
                self.biased(&format!("{stem}.upsample.conv"), &[channels, channels, 3, 3]);
            }
        }
        self.biased(&format!("{decoder}.norm_out"), &[channels]);
        self.biased(&format!("{decoder}.conv_out"), &[vq.out_channels, channels, 3, 3]);
    }

    fn generation(&mut self, config: &JanusConfig) {
        let vq = &config.vq;
        self.push("model.generation_embeddings.weight", &[vq.num_embeddings, vq.embed_dim]);
        self.projector("model.generation_aligner", vq.embed_dim, vq.projection_dim, vq.aligner_depth);
        self.biased("model.generation_head.proj_out", &[vq.projection_dim, vq.image_token_embed_dim]);
        self.biased("model.generation_head.vision_head", &[vq.num_embeddings, vq.projection_dim]);
    }

    fn text(&mut self, config: &JanusConfig) {
        let text = &config.text;
        let (width, inner) = (text.hidden_size, text.intermediate_size);
        let queries = text.num_attention_heads * text.head_dim;
        let keys = text.num_key_value_heads * text.head_dim;
        let stem = "model.language_model";
        self.push(EMBED_TOKENS, &[text.vocab_size, width]);
        for i in 0..text.num_hidden_layers {
            let layer = format!("{stem}.layers.{i}");
            self.push(format!("{layer}.self_attn.q_proj.weight"), &[queries, width]);
            self.push(format!("{layer}.self_attn.k_proj.weight"), &[keys, width]);
            self.push(format!("{layer}.self_attn.v_proj.weight"), &[keys, width]);
            self.push(format!("{layer}.self_attn.o_proj.weight"), &[width, queries]);
            self.push(format!("{layer}.mlp.gate_proj.weight"), &[inner, width]);
            self.push(format!("{layer}.mlp.up_proj.weight"), &[inner, width]);
            self.push(format!("{layer}.mlp.down_proj.weight"), &[width, inner]);
            self.push(format!("{layer}.input_layernorm.weight"), &[width]);
            self.push(format!("{layer}.post_attention_layernorm.weight"), &[width]);
        }
        self.push(format!("{stem}.norm.weight"), &[width]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Counts published for the two sizes: tensors of the native layout, and parameters without the pooling head
    /// (12,595,200), which only the original layout stores.
    #[test]
    fn published_models_have_their_published_counts() {
        for (shape, tensors, parameters) in [
            ("janus-pro-1b", 964, 2_089_232_011_usize),
            ("janus-pro-7b", 1018, 7_420_368_523),
            ("janus-1.3b", 964, 2_089_232_011),
        ] {
            let list = expected_tensors(&JanusConfig::shape(shape).unwrap(), true);
            assert_eq!(list.len(), tensors);
            let total: usize = list.iter().map(|t| t.shape.iter().product::<usize>()).sum();
            assert_eq!(total + 12_595_200, parameters);
        }
    }

    #[test]
    fn names_are_distinct_and_a_tied_model_has_no_head() {
        let config = JanusConfig::shape("janus-tiny").unwrap();
        let with = expected_tensors(&config, true);
        let distinct: std::collections::HashSet<_> = with.iter().map(|t| &t.name).collect();
        assert_eq!(distinct.len(), with.len());
        let without = expected_tensors(&config, false);
        assert_eq!(without.len() + 1, with.len());
        assert!(without.iter().all(|t| t.name != LM_HEAD));
    }
}
