//! What a `config.json` says of a Janus: sizes, constants and layout, from either of the two published forms.
//!
//! Sources of the keys and defaults: `configuration_janus.py` and `configuration_llama.py` of transformers 5.23.0 for the
//! native form, `modeling_vlm.py`, `clip_encoder.py` and `vq_model.py` of deepseek-ai/Janus at `1daa72f` for the original one.
//! Unknown keys are ignored; a known key whose value asks for something this crate does not compute is refused by name.

mod check;
mod deepseek;
mod native;
mod section;
mod shapes;

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::Value;

use crate::error::Diagnose;
use section::Section;

/// A `config.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON at all.
    #[error("`{}` is not valid JSON", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A key that has no default is absent.
    #[error("`{}` has no key `{key}`", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// The key, with the keys that lead to it.
        key: String,
    },
    /// A value of the wrong JSON type.
    #[error("`{key}` in `{}` is {got}, expected {expected}", file.display())]
    WrongType {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What was expected, in words.
        expected: &'static str,
        /// What stands there.
        got: String,
    },
    /// A value no model can have.
    #[error("`{key}` in `{}` is `{value}`, expected {expected}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What was expected, in words.
        expected: String,
    },
    /// Two values that do not go together.
    #[error("`{key}` = `{value}` and `{other_key}` = `{other_value}` in `{}` do not fit: {rule}", file.display())]
    Inconsistent {
        /// The file.
        file: PathBuf,
        /// One key.
        key: Box<str>,
        /// Its value.
        value: Box<str>,
        /// The other key.
        other_key: Box<str>,
        /// Its value.
        other_value: Box<str>,
        /// The rule they break.
        rule: &'static str,
    },
    /// A value that asks for something this crate does not compute.
    #[error("`{key}` = `{value}` in `{}` is not supported, only {supported}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is supported, in words.
        supported: &'static str,
    },
    /// Another architecture.
    #[error("model type `{model_type}` in `{}` is not a Janus", file.display())]
    UnknownModelType {
        /// The file.
        file: PathBuf,
        /// Its `model_type`.
        model_type: String,
    },
    /// JanusFlow, which shares the name and the model type only.
    #[error("`{}` describes JanusFlow (key `{key}`), which draws by rectified flow and is another architecture than Janus", file.display())]
    JanusFlow {
        /// The file.
        file: PathBuf,
        /// The key that gives it away.
        key: &'static str,
    },
}

/// What helps with a file that its publisher did not write so.
const FROM_ITS_SOURCE: &str = "take the file anew from where the base was published, together with its weights";

impl Diagnose for ConfigError {
    fn hints(&self) -> Vec<String> {
        match self {
            ConfigError::UnknownModelType { .. } => {
                vec!["`janus` (the native layout) and `multi_modality` (the original one) are read".into()]
            }
            ConfigError::JanusFlow { .. } => vec!["use Janus-1.3B, Janus-Pro-1B or Janus-Pro-7B".into()],
            ConfigError::Json { .. } | ConfigError::WrongType { .. } => vec![FROM_ITS_SOURCE.into()],
            ConfigError::Missing { .. } | ConfigError::Value { .. } | ConfigError::Inconsistent { .. } => vec![
                FROM_ITS_SOURCE.into(),
                "`janus base init` writes a whole base of a known shape, to compare with".into(),
            ],
            ConfigError::Unsupported { .. } => {
                vec!["Janus-1.3B, Janus-Pro-1B, Janus-Pro-7B and what was made from them can be used".into()]
            }
        }
    }
}

/// The two ways in which Janus checkpoints name their tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// transformers' `JanusForConditionalGeneration` (`model_type` `janus`).
    Native,
    /// deepseek-ai/Janus' `MultiModalityCausalLM` (`model_type` `multi_modality`).
    DeepSeek,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Layout::Native => "native",
            Layout::DeepSeek => "deepseek",
        })
    }
}

/// The whole of a Janus.
#[derive(Debug, Clone, PartialEq)]
pub struct JanusConfig {
    /// The decoder.
    pub text: TextConfig,
    /// The understanding encoder and its aligner.
    pub vision: VisionConfig,
    /// The image tokenizer, and the sizes of the generation aligner and head.
    pub vq: VqConfig,
    /// Id of `<image_placeholder>`; the original form names none, the tokenizer decides then.
    pub image_token_id: Option<u32>,
    /// Whether a missing `lm_head.weight` means that the head is the embedding table. A stored head is used all the same.
    pub tie_word_embeddings: bool,
    /// The form that was read.
    pub layout: Layout,
}

/// The decoder: LLaMA with rotate-half RoPE and no biases.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding table and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads, a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// First id of a prompt; `None` where the file names none: the tokenizer decides then, never Llama's class default.
    pub bos_token_id: Option<u32>,
    /// Id that ends an answer, `None` as above.
    pub eos_token_id: Option<u32>,
    /// Id that fills batches and unconditional prompts, `None` as above.
    pub pad_token_id: Option<u32>,
}

/// The understanding encoder (SigLIP without its pooling head) and its aligner.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP: `hidden_size * mlp_ratio`, cut to an integer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads, a divisor of the width.
    pub num_attention_heads: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Colours, 3.
    pub num_channels: usize,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f64,
    /// Whether `q_proj`, `k_proj` and `v_proj` have a bias.
    pub attention_bias: bool,
    /// Linear layers of the aligner (native key `depth`).
    pub aligner_depth: usize,
    /// Width the aligner gives: that of the decoder.
    pub projection_dim: usize,
}

impl VisionConfig {
    /// Patches along one side. Always computed: stored values (`vq_config.num_patches`) are unreliable.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of one image, which is also the number of its placeholders and of image tokens to generate.
    pub fn num_patches(&self) -> usize {
        self.grid() * self.grid()
    }
}

/// The image tokenizer (VQ-16 of LlamaGen), and the sizes of the generation aligner and head.
#[derive(Debug, Clone, PartialEq)]
pub struct VqConfig {
    /// Width of a code.
    pub embed_dim: usize,
    /// Codes.
    pub num_embeddings: usize,
    /// Channels between the convolutions and the quantiser.
    pub latent_channels: usize,
    /// Channels at full resolution before the multiplier.
    pub base_channels: usize,
    /// Channel multiplier per level, the finest first, for encoder and decoder alike.
    pub channel_multiplier: Vec<usize>,
    /// Residual blocks of a level: so many in the encoder, one more in the decoder.
    pub num_res_blocks: usize,
    /// Whether the encoder gives twice the latent channels; always false here.
    pub double_latent: bool,
    /// Colours in, 3.
    pub in_channels: usize,
    /// Colours out, 3.
    pub out_channels: usize,
    /// Width the generation aligner gives and of the middle of the generation head.
    pub projection_dim: usize,
    /// Width the generation head reads: that of the decoder.
    pub image_token_embed_dim: usize,
    /// Linear layers of the generation aligner (native key `num_hidden_layers`).
    pub aligner_depth: usize,
}

impl VqConfig {
    /// Pixels along one side of a code: each level but the last halves the resolution.
    pub fn down_factor(&self) -> usize {
        1 << (self.channel_multiplier.len().saturating_sub(1))
    }
}

/// Keys that only JanusFlow's configuration has.
const JANUS_FLOW_KEYS: [&str; 3] = ["vision_und_enc_config", "vision_gen_enc_config", "vision_gen_dec_config"];

impl JanusConfig {
    /// Reads the text of a `config.json`; `file` is only named in errors.
    ///
    /// # Errors
    /// Broken JSON, another model type, unsupported or impossible values.
    pub fn from_json(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let value: Value =
            serde_json::from_str(text).map_err(|source| ConfigError::Json { file: file.to_path_buf(), source })?;
        let root = Section::root(file, &value)?;
        if let Some(key) = JANUS_FLOW_KEYS.into_iter().find(|key| root.has(key)) {
            return Err(ConfigError::JanusFlow { file: file.to_path_buf(), key });
        }
        let model_type = root.required_str("model_type")?;
        let config = match model_type {
            "janus" => native::read(&root)?,
            "multi_modality" => deepseek::read(&root)?,
            _ => {
                return Err(ConfigError::UnknownModelType {
                    file: file.to_path_buf(),
                    model_type: model_type.to_string(),
                });
            }
        };
        config.check(file)?;
        Ok(config)
    }

    /// The `config.json` of this model in `layout`, with `dtype` as the stored precision.
    pub fn to_json(&self, layout: Layout, dtype: DType) -> Value {
        match layout {
            Layout::Native => native::write(self, dtype),
            Layout::DeepSeek => deepseek::write(self, dtype),
        }
    }

    /// A model known by name, see [`JanusConfig::shape_names`].
    pub fn shape(name: &str) -> Option<Self> {
        shapes::shape(name)
    }

    /// Names that [`JanusConfig::shape`] knows.
    pub fn shape_names() -> &'static [&'static str] {
        shapes::NAMES
    }
}

/// torch's name of a precision, as `dtype` and `torch_dtype` hold it.
pub(crate) fn torch_dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::F64 => "float64",
        _ => "float32",
    }
}

#[cfg(test)]
mod tests;
