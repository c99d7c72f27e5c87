//! Models known by name: the three published ones, and three small ones.
//! Sources: table 1 of the Janus-Pro report and the published files; sizes absent there are defaults of the two codes.

use super::{JanusConfig, Layout, TextConfig, VisionConfig, VqConfig};

pub(super) const NAMES: &[&str] =
    &["janus-1.3b", "janus-nano", "janus-pro-1b", "janus-pro-7b", "janus-small", "janus-tiny"];

pub(super) fn shape(name: &str) -> Option<JanusConfig> {
    match name {
        "janus-1.3b" => Some(published(ONE_B, IDS_7B)),
        "janus-nano" => Some(nano()),
        "janus-pro-1b" => Some(published(ONE_B, IDS_1B)),
        "janus-pro-7b" => Some(published(SEVEN_B, IDS_7B)),
        "janus-small" => Some(small()),
        "janus-tiny" => Some(tiny()),
        _ => None,
    }
}

/// Sizes in which the published decoders differ.
struct Decoder {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
}

const ONE_B: Decoder =
    Decoder { hidden_size: 2048, intermediate_size: 5632, num_hidden_layers: 24, num_attention_heads: 16 };
const SEVEN_B: Decoder =
    Decoder { hidden_size: 4096, intermediate_size: 11_008, num_hidden_layers: 30, num_attention_heads: 32 };

/// Ids of pad and `<image_placeholder>`: Janus-Pro-1B's, and those that Janus-1.3B and Janus-Pro-7B share.
const IDS_1B: (u32, u32) = (100_002, 100_581);
const IDS_7B: (u32, u32) = (100_015, 100_594);

fn published(decoder: Decoder, (pad, image): (u32, u32)) -> JanusConfig {
    JanusConfig {
        text: TextConfig {
            vocab_size: 102_400,
            hidden_size: decoder.hidden_size,
            intermediate_size: decoder.intermediate_size,
            num_hidden_layers: decoder.num_hidden_layers,
            num_attention_heads: decoder.num_attention_heads,
            num_key_value_heads: decoder.num_attention_heads,
            head_dim: decoder.hidden_size / decoder.num_attention_heads,
            max_position_embeddings: 16_384,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            bos_token_id: Some(100_000),
            eos_token_id: Some(100_001),
            pad_token_id: Some(pad),
        },
        vision: VisionConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            patch_size: 16,
            image_size: 384,
            num_channels: 3,
            layer_norm_eps: 1e-6,
            attention_bias: true,
            aligner_depth: 2,
            projection_dim: decoder.hidden_size,
        },
        vq: VqConfig {
            embed_dim: 8,
            num_embeddings: 16_384,
            latent_channels: 256,
            base_channels: 128,
            channel_multiplier: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            double_latent: false,
            in_channels: 3,
            out_channels: 3,
            projection_dim: decoder.hidden_size,
            image_token_embed_dim: decoder.hidden_size,
            aligner_depth: 2,
        },
        image_token_id: Some(image),
        tie_word_embeddings: false,
        layout: Layout::Native,
    }
}

/// Two cores train all of it within two hours: `janus-small`'s pictures and grid, 1024 codes, merged tokens. The image tokenizer
/// is as shallow as it can be, because many steps teach it more than many channels (docs/decisions/0013).
fn nano() -> JanusConfig {
    let small = small();
    let width = 128;
    JanusConfig {
        text: TextConfig {
            vocab_size: 1024,
            hidden_size: width,
            intermediate_size: 384,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 32,
            ..small.text
        },
        vision: VisionConfig {
            hidden_size: width,
            intermediate_size: 512,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            projection_dim: width,
            ..small.vision
        },
        vq: VqConfig {
            num_embeddings: 1024,
            base_channels: 32,
            channel_multiplier: vec![1, 1, 1, 1],
            num_res_blocks: 0,
            projection_dim: width,
            image_token_embed_dim: width,
            ..small.vq
        },
        ..small
    }
}

/// Two cores train it within minutes: 64 x 64 pixels, an 8 x 8 grid, 256 codes. Ids 0 to 255 are bytes.
fn small() -> JanusConfig {
    JanusConfig {
        text: TextConfig {
            vocab_size: 384,
            hidden_size: 128,
            intermediate_size: 352,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 32,
            max_position_embeddings: 1024,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            bos_token_id: Some(256),
            eos_token_id: Some(257),
            pad_token_id: Some(258),
        },
        vision: VisionConfig {
            hidden_size: 96,
            intermediate_size: 384,
            num_hidden_layers: 3,
            num_attention_heads: 3,
            patch_size: 8,
            image_size: 64,
            num_channels: 3,
            layer_norm_eps: 1e-6,
            attention_bias: true,
            aligner_depth: 2,
            projection_dim: 128,
        },
        vq: VqConfig {
            embed_dim: 8,
            num_embeddings: 256,
            latent_channels: 64,
            base_channels: 32,
            channel_multiplier: vec![1, 1, 2, 2],
            num_res_blocks: 1,
            double_latent: false,
            in_channels: 3,
            out_channels: 3,
            projection_dim: 128,
            image_token_embed_dim: 128,
            aligner_depth: 2,
        },
        image_token_id: Some(261),
        tie_word_embeddings: false,
        layout: Layout::Native,
    }
}

/// For tests: no two sizes that could be taken for each other are equal.
fn tiny() -> JanusConfig {
    JanusConfig {
        text: TextConfig {
            vocab_size: 400,
            hidden_size: 48,
            intermediate_size: 80,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 12,
            max_position_embeddings: 512,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            bos_token_id: Some(256),
            eos_token_id: Some(257),
            pad_token_id: Some(258),
        },
        vision: VisionConfig {
            hidden_size: 32,
            intermediate_size: 56,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            patch_size: 8,
            image_size: 32,
            num_channels: 3,
            layer_norm_eps: 1e-6,
            attention_bias: true,
            aligner_depth: 2,
            projection_dim: 48,
        },
        vq: VqConfig {
            embed_dim: 8,
            num_embeddings: 64,
            latent_channels: 16,
            base_channels: 32,
            channel_multiplier: vec![1, 1, 1, 2],
            num_res_blocks: 1,
            double_latent: false,
            in_channels: 3,
            out_channels: 3,
            projection_dim: 48,
            image_token_embed_dim: 48,
            aligner_depth: 2,
        },
        image_token_id: Some(261),
        tie_word_embeddings: false,
        layout: Layout::Native,
    }
}
