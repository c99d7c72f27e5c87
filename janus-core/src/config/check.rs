//! Sizes no model can have, and sizes that contradict each other, refused with key and value.
//!
//! The upper bounds are far above any published model. They keep every product of sizes within 64 bits, and a lying file
//! from asking for millions of tensor names.

use std::path::Path;

use super::{ConfigError, JanusConfig, Layout};

/// Longest side of a matrix: width, MLP width, channels.
const MAX_WIDTH: usize = 1 << 20;
/// Most rows of a table.
const MAX_ROWS: usize = 1 << 24;
/// Most blocks of a stack.
const MAX_LAYERS: usize = 1024;
/// Most linear layers of a projector, and residual blocks of a level.
const MAX_DEPTH: usize = 64;
/// Most levels of the VQ model: a factor of 128.
const MAX_LEVELS: usize = 8;
/// Longest side of an image in pixels.
const MAX_IMAGE_SIZE: usize = 1 << 14;
/// Longest sequence.
const MAX_POSITIONS: usize = 1 << 24;
/// Groups of every GroupNorm in the VQ model.
const NORM_GROUPS: usize = 32;

/// Native keys and where the original form holds the same value.
const ORIGINAL_KEYS: [(&str, &str); 26] = [
    ("vision_config.hidden_size", "vision_config.params.width"),
    ("vision_config.mlp_ratio", "vision_config.params.mlp_ratio"),
    ("vision_config.num_hidden_layers", "vision_config.params.layers"),
    ("vision_config.num_attention_heads", "vision_config.params.heads"),
    ("vision_config.patch_size", "vision_config.params.patch_size"),
    ("vision_config.image_size", "vision_config.params.image_size"),
    ("vision_config.depth", "aligner_config.params.depth"),
    ("vision_config.projection_dim", "aligner_config.params.n_embed"),
    ("vq_config.embed_dim", "gen_vision_config.params.n_embed"),
    ("vq_config.num_embeddings", "gen_vision_config.params.image_token_size"),
    ("vq_config.latent_channels", "gen_vision_config.params.z_channels"),
    ("vq_config.base_channels", "gen_vision_config.params.ch"),
    ("vq_config.channel_multiplier", "gen_vision_config.params.encoder_ch_mult"),
    ("vq_config.num_res_blocks", "gen_vision_config.params.num_res_blocks"),
    ("vq_config.projection_dim", "gen_aligner_config.params.n_embed"),
    ("vq_config.image_token_embed_dim", "gen_head_config.params.n_embed"),
    ("vq_config.num_hidden_layers", "gen_aligner_config.params.depth"),
    ("text_config.vocab_size", "language_config.vocab_size"),
    ("text_config.hidden_size", "language_config.hidden_size"),
    ("text_config.intermediate_size", "language_config.intermediate_size"),
    ("text_config.num_hidden_layers", "language_config.num_hidden_layers"),
    ("text_config.num_attention_heads", "language_config.num_attention_heads"),
    ("text_config.num_key_value_heads", "language_config.num_key_value_heads"),
    ("text_config.head_dim", "language_config.head_dim"),
    ("text_config.rms_norm_eps", "language_config.rms_norm_eps"),
    ("text_config.rope_theta", "language_config.rope_theta"),
];

struct Checker<'a> {
    file: &'a Path,
    layout: Layout,
}

impl Checker<'_> {
    /// The key under which this file holds the value.
    fn key(&self, native: &str) -> String {
        match self.layout {
            Layout::Native => native.to_string(),
            Layout::DeepSeek => match ORIGINAL_KEYS.iter().find(|(key, _)| *key == native) {
                Some((_, original)) => (*original).to_string(),
                None => native.replacen("text_config.", "language_config.", 1),
            },
        }
    }

    fn within(&self, key: &str, value: usize, max: usize) -> Result<(), ConfigError> {
        if (1..=max).contains(&value) {
            return Ok(());
        }
        Err(self.value(key, value, format!("1 to {max}")))
    }

    fn value(&self, key: &str, value: impl std::fmt::Display, expected: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            file: self.file.to_path_buf(),
            key: self.key(key),
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    fn positive(&self, key: &str, value: f64) -> Result<(), ConfigError> {
        if value.is_finite() && value > 0.0 { Ok(()) } else { Err(self.value(key, value, "a number above 0")) }
    }

    fn pair(
        &self,
        fits: bool,
        (key, value): (&str, usize),
        (other_key, other_value): (&str, usize),
        rule: &'static str,
    ) -> Result<(), ConfigError> {
        if fits {
            return Ok(());
        }
        Err(ConfigError::Inconsistent {
            file: self.file.to_path_buf(),
            key: self.key(key).into(),
            value: value.to_string().into(),
            other_key: self.key(other_key).into(),
            other_value: other_value.to_string().into(),
            rule,
        })
    }
}

impl JanusConfig {
    /// Refuses sizes that no model can have; `file` is only named in errors.
    pub(super) fn check(&self, file: &Path) -> Result<(), ConfigError> {
        let checker = Checker { file, layout: self.layout };
        self.check_text(&checker)?;
        self.check_vision(&checker)?;
        self.check_vq(&checker)?;
        self.check_token_ids(&checker)
    }

    fn check_text(&self, checker: &Checker<'_>) -> Result<(), ConfigError> {
        let text = &self.text;
        checker.within("text_config.vocab_size", text.vocab_size, MAX_ROWS)?;
        checker.within("text_config.hidden_size", text.hidden_size, MAX_WIDTH)?;
        checker.within("text_config.intermediate_size", text.intermediate_size, MAX_WIDTH)?;
        checker.within("text_config.num_hidden_layers", text.num_hidden_layers, MAX_LAYERS)?;
        checker.within("text_config.num_attention_heads", text.num_attention_heads, MAX_WIDTH)?;
        checker.within("text_config.num_key_value_heads", text.num_key_value_heads, MAX_WIDTH)?;
        checker.within("text_config.max_position_embeddings", text.max_position_embeddings, MAX_POSITIONS)?;
        checker.positive("text_config.rms_norm_eps", text.rms_norm_eps)?;
        checker.positive("text_config.rope_theta", text.rope_theta)?;
        let heads = ("text_config.num_attention_heads", text.num_attention_heads);
        checker.pair(
            text.hidden_size.is_multiple_of(text.num_attention_heads),
            ("text_config.hidden_size", text.hidden_size),
            heads,
            "the width must be a multiple of the heads",
        )?;
        checker.pair(
            text.num_attention_heads.is_multiple_of(text.num_key_value_heads),
            heads,
            ("text_config.num_key_value_heads", text.num_key_value_heads),
            "the query heads must be a multiple of the key and value heads",
        )?;
        checker.within("text_config.head_dim", text.head_dim, MAX_WIDTH)?;
        if !text.head_dim.is_multiple_of(2) {
            return Err(checker.value("text_config.head_dim", text.head_dim, "an even number (rotary pairs)"));
        }
        checker.pair(
            text.num_attention_heads.saturating_mul(text.head_dim) <= MAX_WIDTH,
            heads,
            ("text_config.head_dim", text.head_dim),
            "their product must be at most 1048576",
        )
    }

    fn check_vision(&self, checker: &Checker<'_>) -> Result<(), ConfigError> {
        let vision = &self.vision;
        checker.within("vision_config.hidden_size", vision.hidden_size, MAX_WIDTH)?;
        if !(1..=MAX_WIDTH).contains(&vision.intermediate_size) {
            return Err(checker.value(
                "vision_config.mlp_ratio",
                format!("{} / {}", vision.intermediate_size, vision.hidden_size),
                format!("an MLP width of 1 to {MAX_WIDTH}"),
            ));
        }
        checker.within("vision_config.num_hidden_layers", vision.num_hidden_layers, MAX_LAYERS)?;
        checker.within("vision_config.num_attention_heads", vision.num_attention_heads, MAX_WIDTH)?;
        checker.within("vision_config.image_size", vision.image_size, MAX_IMAGE_SIZE)?;
        checker.within("vision_config.patch_size", vision.patch_size, MAX_IMAGE_SIZE)?;
        checker.within("vision_config.depth", vision.aligner_depth, MAX_DEPTH)?;
        checker.positive("vision_config.layer_norm_eps", vision.layer_norm_eps)?;
        if vision.num_channels != 3 {
            return Err(checker.value("vision_config.num_channels", vision.num_channels, "3"));
        }
        checker.pair(
            vision.hidden_size.is_multiple_of(vision.num_attention_heads),
            ("vision_config.hidden_size", vision.hidden_size),
            ("vision_config.num_attention_heads", vision.num_attention_heads),
            "the width must be a multiple of the heads",
        )?;
        checker.pair(
            vision.image_size.is_multiple_of(vision.patch_size),
            ("vision_config.image_size", vision.image_size),
            ("vision_config.patch_size", vision.patch_size),
            "the image must be a multiple of the patch",
        )?;
        checker.pair(
            vision.projection_dim == self.text.hidden_size,
            ("vision_config.projection_dim", vision.projection_dim),
            ("text_config.hidden_size", self.text.hidden_size),
            "the aligner must give the decoder's width",
        )
    }

    fn check_vq(&self, checker: &Checker<'_>) -> Result<(), ConfigError> {
        let vq = &self.vq;
        checker.within("vq_config.embed_dim", vq.embed_dim, MAX_WIDTH)?;
        checker.within("vq_config.num_embeddings", vq.num_embeddings, MAX_ROWS)?;
        checker.within("vq_config.latent_channels", vq.latent_channels, MAX_WIDTH)?;
        checker.within("vq_config.base_channels", vq.base_channels, MAX_WIDTH)?;
        checker.within("vq_config.num_hidden_layers", vq.aligner_depth, MAX_DEPTH)?;
        for (key, channels) in [("in_channels", vq.in_channels), ("out_channels", vq.out_channels)] {
            if channels != 3 {
                return Err(checker.value(&format!("vq_config.{key}"), channels, "3"));
            }
        }
        let multipliers = &vq.channel_multiplier;
        if !(1..=MAX_LEVELS).contains(&multipliers.len()) {
            let expected = format!("1 to {MAX_LEVELS} levels");
            return Err(checker.value("vq_config.channel_multiplier", format!("{multipliers:?}"), expected));
        }
        if !vq.base_channels.is_multiple_of(NORM_GROUPS) {
            let expected = format!("a multiple of {NORM_GROUPS} (groups of the norms)");
            return Err(checker.value("vq_config.base_channels", vq.base_channels, expected));
        }
        for multiplier in multipliers {
            let channels = multiplier.saturating_mul(vq.base_channels);
            if !(1..=MAX_WIDTH).contains(&channels) {
                let expected = format!("multipliers that give 1 to {MAX_WIDTH} channels");
                return Err(checker.value("vq_config.channel_multiplier", format!("{multipliers:?}"), expected));
            }
        }
        // Without residual blocks nothing in the encoder changes the number of channels.
        if vq.num_res_blocks != 0 || multipliers.iter().any(|multiplier| *multiplier != 1) {
            checker.within("vq_config.num_res_blocks", vq.num_res_blocks, MAX_DEPTH)?;
        }
        checker.pair(
            vq.down_factor() == self.vision.patch_size,
            ("vq_config.channel_multiplier", multipliers.len()),
            ("vision_config.patch_size", self.vision.patch_size),
            "2 to the power of levels - 1 must be the patch size, so that both grids are equal",
        )?;
        for (key, width) in [("projection_dim", vq.projection_dim), ("image_token_embed_dim", vq.image_token_embed_dim)]
        {
            checker.pair(
                width == self.text.hidden_size,
                (&format!("vq_config.{key}"), width),
                ("text_config.hidden_size", self.text.hidden_size),
                "generation aligner and head must have the decoder's width",
            )?;
        }
        Ok(())
    }

    fn check_token_ids(&self, checker: &Checker<'_>) -> Result<(), ConfigError> {
        for (key, id) in [
            ("text_config.bos_token_id", self.text.bos_token_id),
            ("text_config.eos_token_id", self.text.eos_token_id),
            ("text_config.pad_token_id", self.text.pad_token_id),
            ("image_token_id", self.image_token_id),
        ] {
            if let Some(id) = id.filter(|id| *id as usize >= self.text.vocab_size) {
                return Err(checker.value(key, id, format!("an id below {} (the vocabulary)", self.text.vocab_size)));
            }
        }
        Ok(())
    }
}
